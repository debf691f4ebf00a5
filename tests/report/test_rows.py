import numpy as np
import pyarrow.parquet as pq
import pytest

from wan_ray.config import RenderConfig
from wan_ray.errors import StorageError
from wan_ray.report.rows import NO_ROW, fetch, gpus_held, read_rows, while_parts_stay
from wan_ray.storage.blob import Store
from wan_ray.storage.index import compact_index


def read(output, gpus=None):
    store = Store(output)
    return while_parts_stay(store, lambda parts: read_rows(store, parts, gpus or {}))


def test_of_a_row_that_was_tried_again_the_last_attempt_counts(written, record):
    again = [record("a", attempt=2, at=5), record("b", attempt=10, at=9, error_message="still no")]
    written(again, part_of="r0")  # its part comes first
    first = [record("a", error_message="no"), record("b", at=1), record("b", attempt=9, at=2)]
    table = read(written([*first, record("c")])).table
    assert len(table) == 3
    assert table["attempt"].tolist() == [1, 2, 10]
    assert table["ok"].tolist() == [True, True, False]


def test_a_record_that_two_runs_indexed_counts_once(written, record):
    written([record("a"), record("b")], part_of="r2")
    assert len(read(written([record("b"), record("c")])).table) == 3


def test_rows_come_in_the_order_of_time_with_their_numbers(written, record, start):
    seconds = {"extend": 1.5, "encode": 0.5, "denoise": 8.0, "decode": 2.0}
    late = record("late", at=60.25, row=3, seconds=seconds, variant="t2v-1.3B")
    refused = record("refused", at=1, error_message="no", error_stage="read")
    table = read(written([late, refused]), {("r1", "t2v-1.3B"): (1, 0.25, 4, 0, 0)}).table
    assert table["time_s"].tolist() == [start + 1, start + 60.25]
    assert table["row"].tolist() == [NO_ROW, 3]
    assert table["refused"].tolist() == [True, False]
    np.testing.assert_array_equal(table["seconds"], [[np.nan] * 5, [1.5, 0.5, 8, 2, np.nan]])
    np.testing.assert_array_equal(table["gpu_seconds"], [np.nan, 1.5 + 0.25 * 0.5 + 4 * 8])


def test_a_run_that_does_not_say_its_gpus_gives_no_gpu_seconds(written, record):
    table = read(written([record("a", seconds={"denoise": 8.0}, variant="t2v-1.3B")])).table
    assert np.isnan(table["gpu_seconds"]).all()


def test_parts_of_an_older_version_without_a_column_still_count(written, record, tmp_path):
    output = written([record("a"), record("b")])
    (part,) = (tmp_path / "out/index").iterdir()
    pq.write_table(pq.read_table(part).drop_columns(["attempt"]), part)
    assert read(output).table["attempt"].tolist() == [1, 1]


def test_an_index_that_is_compacted_meanwhile_is_read_anew(written, record):
    for run in ("r1", "r2", "r3"):
        output = written([record(run)], part_of=run)
    store, listed = Store(output), []

    def slowly(parts):
        listed.append(len(parts))
        if len(listed) == 1:
            compact_index(store, run_id="r4")
        return read_rows(store, parts, {})

    assert len(while_parts_stay(store, slowly).table) == 3
    assert listed == [3, 1]


def test_a_broken_part_is_told(written, record, tmp_path):
    output = written([record("a")])
    (part,) = (tmp_path / "out/index").iterdir()
    part.write_bytes(b"PAR1 no")
    with pytest.raises(StorageError, match=r"cannot read the index part .*part-r1-00000"):
        read(output)


def test_columns_of_some_rows_come_in_the_order_they_are_asked_for(written, record):
    written([record("a", prompt="A"), record("b", prompt="B")])
    output = written([record("c", prompt="C"), record("d", prompt="D")], part_of="r2")
    rows = read(output)
    assert [row["prompt"] for row in fetch(Store(output), rows, np.array([3, 0, 2]), ["prompt"])] == ["D", "A", "C"]


def test_gpus_are_those_of_the_config_and_of_every_rank_of_a_gang():
    models = [
        {"variant": "t2v-14B", "checkpoint": "/a", "gang": {"cfg_degree": 2, "ulysses_degree": 4}},
        {"variant": "vace-14B", "checkpoint": "/b"},
    ]
    stages = {"encode": {"num_gpus": 0.25}, "denoise": {"num_gpus": 0.5}}
    config = RenderConfig.model_validate({"models": models, "stages": stages}).model_dump(mode="json")
    held = gpus_held([{"run_id": "r1", "config": config}, {"run_id": "r2", "config": {"of": "another version"}}])
    assert held == {("r1", "t2v-14B"): (0, 0.25, 4.0, 0, 0), ("r1", "vace-14B"): (0, 0.25, 0.5, 0, 0)}


def test_an_index_of_before_prompts_were_extended_is_still_read(written, record, tmp_path):
    output = written([record("a", seconds={"denoise": 8.0})])
    (part,) = (tmp_path / "out/index").glob("*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["seconds_extend", "extension"]), part)
    assert read(output).table["seconds"][0].tolist()[2] == 8.0
    assert np.isnan(read(output).table["seconds"][0][0])
