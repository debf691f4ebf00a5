import json
import os
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.config import RenderConfig
from wan_ray.errors import StorageError
from wan_ray.report.status import as_json, as_text, read_status
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter, compact_index
from wan_ray.storage.runs import alive, write_run

SECONDS = {"encode": 1.0, "denoise": 60.0, "decode": 9.0}
CLIP = {"seconds": SECONDS, "variant": "t2v-1.3B"}


def test_a_finished_run_in_words(written, record):
    records = [record(f"c{i}", at=70 * (i + 1), labels={"weather": "rain"}, **CLIP) for i in range(8)]
    records += [record(f"f{i}", at=560, row=90 + i, error_message=f"rank {i} died") for i in range(2)]
    output = written(records)
    # 8 clips in 560 s are 51 an hour; 1 + 60 + 9 s of work each, 60 of them on the one GPU of the denoise worker.
    assert as_text(read_status(output)).splitlines() == [
        "last run r1: finished, started 2026-03-06 18:00 UTC",
        "10 records: 8 ok, 2 failed; the last run's manifest has 10 rows",
        "",
        "                    clips/hour    s/clip  GPU-s/clip",
        "last run                  51.4        70          60",
        "",
        # The first row's 70 s began at once; 8 x 60 of 560 s are 86 %.
        "workers at work in the 9 min after 0 s of start-up: encode 1% of 1, denoise 86% of 1, decode 13% of 1",
        "no stage was at work all the time: the workers of denoise, which was most, were loading, lost, fewer than 1, "
        "or out of rows at the end",
        "",
        "labels",
        "  weather: rain 8",
        "",
        "failures",
        "       2 x StageError at denoise: rank # died",
        "           e.g. row 90, id f0: rank 0 died",
    ]


def test_the_stage_that_all_others_wait_for_is_named(written, record):
    # Three rows by two gangs; the only decoder works without a break from 20 s on, when the first row is denoised.
    seconds = {"encode": 1.0, "denoise": 19.0, "decode": 30.0}
    config = RenderConfig.model_validate(
        {"model": {"variant": "t2v-1.3B", "checkpoint": "/m"}, "stages": {"denoise": {"replicas": 2}}}
    )
    at = [15 + 20 + 30 * (i + 1) for i in range(20)]
    output = written([record(f"c{i}", at=t, seconds=seconds) for i, t in enumerate(at)], config=config.model_dump())
    found = read_status(output).at_work
    assert (found.start_up_s, found.over_s) == (15, 620)
    shares = {stage.stage: (stage.workers, round(stage.share, 3)) for stage in found.stages}
    assert shares == {"encode": (1, 0.032), "denoise": (2, 0.306), "decode": (1, 0.968)}
    assert found.verdict.startswith("decode bounds the run")
    assert json.loads(as_json(read_status(output)))["at_work"]["stages"][2]["share"] == pytest.approx(600 / 620)


def test_a_living_run_says_how_long_it_will_take(written, record):
    began = time.time() - 3600
    now = {
        "status": "running",
        "started_at": datetime.fromtimestamp(began, UTC).isoformat(),
        "num_rows": 200,
        "num_pending": 120,
    }
    at = began - datetime(2026, 3, 6, 18, 0, tzinfo=UTC).timestamp()
    output = written([record(f"c{i}", at=at + 60 * (i + 1), **CLIP) for i in range(60)], **now)
    with alive(Store(output), "r1"):
        status = read_status(output)
    assert status.is_running
    assert status.end_s == pytest.approx(began + 120 * 60, abs=1)
    wanted = r"run r1: running for 1 h, last record \d s ago, 1 h to go, until \d{4}-\d\d-\d\d \d\d:\d\d UTC"
    assert re.fullmatch(wanted, as_text(status).splitlines()[0])


def test_a_run_that_was_killed_is_said_to_have_died(written, record):
    status = read_status(written([record("a")], status="running", num_pending=9))
    assert not status.is_running
    assert status.end_s is None
    assert "last run r1: died" in as_text(status)


def test_a_run_without_a_record_and_a_folder_without_a_run(written, tmp_path):
    output = written([], status="running")
    with alive(Store(output), "r1"):
        assert "no record yet" in as_text(read_status(output))
    with pytest.raises(StorageError, match="no run has written there"):
        read_status(str(tmp_path))


def test_means_over_all_runs_stand_beside_the_last_ones(written, record):
    written(
        [record("a", at=-5000, run_id="r0", seconds={"denoise": 10.0})], part_of="r0", started_at="2026-03-06T16:00Z"
    )
    output = written([record("b", at=100, **CLIP)])
    lines = as_text(read_status(output)).splitlines()
    assert [line.split() for line in lines if line.startswith(("last run ", "all runs"))][1:] == [
        ["last", "run", "36", "70", "60"],
        ["all", "runs", "-", "40", "60"],
    ]


def test_scripts_get_the_same_as_json(written, record):
    records = [record("a", at=100, labels={"weather": "雨", "i": "1"}, **CLIP), record("b", error_message="no")]
    found = json.loads(as_json(read_status(written(records))))
    assert (found["records"], found["ok"], found["failed"], found["is_running"]) == (2, 1, 1, False)
    assert found["gpu_hours"] == pytest.approx(60 / 3600)
    assert found["pace"]["run"]["clips_per_hour"] == 36
    assert found["labels"]["weather"] == {"雨": {"ok": 1, "failed": 0}}
    assert found["failures"] == [
        {"count": 1, "stage": "denoise", "type": "StageError", "message": "no", "id": "b", "row": None, "text": "no"}
    ]


def test_what_would_move_a_terminals_cursor_is_left_out(written, record):
    records = [
        record("a", labels={"x\x1b[2J": "\x9b1A\r"}),
        record("b\x1b]0;", error_message="a\nb\x07\x1b[31m"),
    ]
    assert not set(as_text(read_status(written(records))).replace("\n", "")) & {*map(chr, range(32)), "\x9b"}


def test_a_long_list_of_causes_and_values_ends_in_a_line(written, record):
    letters = [chr(0x4E00 + i) for i in range(30)]
    records = [record(x, error_message=x, labels={"letter": x}) for x in letters]
    text = as_text(read_status(written(records)))
    assert "and 10 more causes" in text
    assert "and 22 more" in text


def test_reading_while_a_run_writes_and_the_index_is_compacted_never_fails(written, record):
    output = written([record("first")])
    store, ended = Store(output), threading.Event()

    def write():
        for run in range(20):
            with IndexWriter(store, f"w{run:02}", {}, flush_rows=5) as index:
                for row in range(20):
                    index.append(record(f"{run}-{row}", at=run))
            compact_index(store, run_id=f"c{run:02}")
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while not ended.is_set():
        seen.append(len(read_status(output).rows.table))
    thread.join()
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert len(read_status(output).rows.table) == 401


def test_a_million_records_are_counted_in_a_minute_and_a_gibibyte(tmp_path, written, record):
    output, part_rows = written([record("a", labels={"weather": "rain"}, **CLIP)]), 10_000
    (part,) = (tmp_path / "out/index").iterdir()
    one = pq.read_table(part)
    same = pa.concat_tables([one] * part_rows).combine_chunks()
    for number in range(100):
        names = pa.array([f"row-{number * part_rows + i:07}" for i in range(part_rows)])
        failed = pa.array(np.arange(part_rows) % 20 == 0)
        messages = pa.array([f"rank {i} of 'c{number}' died" for i in range(part_rows)])
        columns = {"record": names, "id": names, "error_message": messages}
        columns |= {"status": pa.array(np.where(failed, "failed", "ok")), "error_type": pa.array(["E"] * part_rows)}
        table = same
        for name, values in columns.items():
            table = table.set_column(table.schema.get_field_index(name), name, values)
        pq.write_table(table, part.with_name(f"part-{number:03}.parquet"))
    part.unlink()
    code = (
        "import resource, sys; from wan_ray.cli import main; main(['status', sys.argv[1]]);"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        # Not ru_maxrss, which a process has from the one that started it.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(int(peak.split()[1]) // 1024, used.ru_utime + used.ru_stime)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, output], env=environment, capture_output=True, text=True, check=True, timeout=250
    )
    assert "1000000 records: 950000 ok, 50000 failed" in done.stdout
    assert "50000 x E at" in done.stdout
    mebibytes, cpu_seconds = map(float, done.stdout.split()[-2:])
    assert mebibytes < 1024
    assert cpu_seconds < 60


def test_runs_are_taken_in_the_order_they_began(written, record):
    output = written([record("a")], started_at="2026-03-06T18:00:00+00:00")
    write_run(Store(output), {"run_id": "a0", "started_at": "2026-03-07T18:00:00+00:00", "status": "s", "num_rows": 77})
    assert "the last run's manifest has 77 rows" in as_text(read_status(output))


def test_a_reader_that_has_seen_enough_breaks_nothing(written, record):
    output = written([record(f"r{i}", labels={f"key{i}": "x" * 500}) for i in range(300)])  # more than a pipe holds
    command = f"{sys.executable} -m wan_ray.cli status {output} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=100)
    assert (done.stdout, done.stderr) == ("last run r1: finished, started 2026-03-06 18:00 UTC\n", "")
