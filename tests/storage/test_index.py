import json
import math
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.errors import ConfigError, StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.index import (
    Indexed,
    IndexWriter,
    compact_index,
    indexed_clips,
    indexed_records,
    read_index,
)
from wan_ray.storage.records import Record


def make_record(name, **fields):
    return Record(
        **{"name": name, "id": name, "status": "ok", "run_id": "r1", "created_at": "2025-01-01T00:00:00Z", **fields}
    )


def test_a_folder_of_parts_reads_with_plain_pyarrow(tmp_path):
    store = Store(tmp_path)
    with IndexWriter(store, "r1", {"score": "float"}, flush_rows=2) as writer:
        for name in "abc":
            writer.append(make_record(name, width=832, labels={"weather": "rain"}, extra={"score": 0.5}))
    with IndexWriter(store, "r2", {"score": "float"}) as writer:
        writer.append(make_record("d", seconds={"encode": 1.5, "publish": 0.25}, weights={"dit": "ab12"}))
    assert store.names("index") == ["part-r1-00000.parquet", "part-r1-00001.parquet", "part-r2-00000.parquet"]
    table = pq.read_table(tmp_path / "index")
    assert table["record"].to_pylist() == ["a", "b", "c", "d"]
    assert table["width"].to_pylist() == [832, 832, 832, None]
    assert table["labels"].to_pylist()[0] == [("weather", "rain")]
    assert table["score"].to_pylist() == [0.5, 0.5, 0.5, None]
    assert table["seconds_encode"].to_pylist()[3] == 1.5
    assert table["seconds_denoise"].to_pylist()[3] is None
    assert table["weights"].to_pylist()[3] == [("dit", "ab12")]


def test_a_failed_record_has_its_error_in_the_index(tmp_path):
    with IndexWriter(Store(tmp_path), "r1", {}) as writer:
        writer.append(
            make_record("a", status="failed", error_type="RequestError", error_stage="read", error_message="m")
        )
    row = read_index(Store(tmp_path)).to_pylist()[0]
    assert (row["status"], row["error_type"], row["error_stage"], row["error_message"]) == (
        "failed",
        "RequestError",
        "read",
        "m",
    )
    assert row["prompt"] is None


def test_extras_keep_their_types_and_anything_deep_becomes_json(tmp_path):
    extra_columns = {"n": "int", "x": "float", "flag": "bool", "text": "str", "boxes": "str", "gap": "int"}
    with IndexWriter(Store(tmp_path), "r1", extra_columns) as writer:
        extra = {"n": 3, "x": math.inf, "flag": False, "text": "夜", "boxes": [{"w": 1}, None], "gap": None}
        writer.append(make_record("a", extra=extra))
    table = read_index(Store(tmp_path))
    assert [table.schema.field(name).type for name in extra_columns] == [
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.string(),
        pa.string(),
        pa.int64(),
    ]
    row = table.to_pylist()[0]
    assert (row["n"], row["x"], row["flag"], row["text"], row["gap"]) == (3, math.inf, False, "夜", None)
    assert json.loads(row["boxes"]) == [{"w": 1}, None]


def test_an_extra_named_like_a_column_of_ours_moves_aside(tmp_path):
    with IndexWriter(Store(tmp_path), "r1", {"clip": "str", "manifest.clip": "str"}) as writer:
        writer.append(make_record("a", clip="clips/a.mp4", extra={"clip": "theirs", "manifest.clip": "odd"}))
    row = read_index(Store(tmp_path)).to_pylist()[0]
    assert row["clip"] == "clips/a.mp4"
    assert row["manifest.clip"] == "odd"
    assert row["manifest.manifest.clip"] == "theirs"


def test_an_extra_that_fits_no_column_never_stops_the_index(tmp_path, caplog):
    with IndexWriter(Store(tmp_path), "r1", {"n": "int"}) as writer:
        writer.append(make_record("a", extra={"n": "three", "other": 1}))
    assert read_index(Store(tmp_path))["n"].to_pylist() == [None]
    assert "'other'" in caplog.text
    assert "a: n" in caplog.text


def test_rows_older_than_the_interval_are_written_by_the_next_append(tmp_path):
    writer = IndexWriter(Store(tmp_path), "r1", {}, flush_interval_s=0)
    writer.append(make_record("a"))
    assert set(indexed_records(Store(tmp_path))) == {"a"}


def test_rows_of_a_part_that_could_not_be_written_are_kept(tmp_path):
    (tmp_path / "index").write_bytes(b"a file where the folder should be")
    writer = IndexWriter(Store(tmp_path), "r1", {})
    writer.append(make_record("a"))
    with pytest.raises(StorageError, match="index/part-r1-00000"):
        writer.flush()
    (tmp_path / "index").unlink()
    writer.close()
    assert set(indexed_records(Store(tmp_path))) == {"a"}


def test_parts_of_runs_with_other_columns_are_read_together(tmp_path):
    for run_id, columns, extra in [
        ("r1", {"n": "int"}, {"n": 1}),
        ("r2", {"n": "float", "m": "str"}, {"n": 0.5, "m": "x"}),
    ]:
        with IndexWriter(Store(tmp_path), run_id, columns) as writer:
            writer.append(make_record(run_id, extra=extra))
    table = read_index(Store(tmp_path))
    assert table["n"].to_pylist() == [1.0, 0.5]
    assert table["m"].to_pylist() == [None, "x"]


def test_parts_that_cannot_be_one_table_are_an_error_that_says_why(tmp_path):
    for run_id, kind, value in [("r1", "int", 1), ("r2", "str", "x")]:
        with IndexWriter(Store(tmp_path), run_id, {"n": kind}) as writer:
            writer.append(make_record(run_id, extra={"n": value}))
    with pytest.raises(StorageError, match=r"disagree about a column.*n"):
        read_index(Store(tmp_path))


def test_an_index_without_parts_has_no_rows_but_its_columns(tmp_path):
    table = read_index(Store(tmp_path))
    assert table.num_rows == 0
    assert "seconds_denoise" in table.column_names
    assert set(indexed_records(Store(tmp_path))) == set()


def test_an_index_in_a_bucket_works_the_same():
    store = Store("memory://test-index")
    with IndexWriter(store, "r1", {}) as writer:
        writer.append(make_record("a"))
    assert set(indexed_records(store)) == {"a"}
    assert read_index(store)["id"].to_pylist() == ["a"]


def test_an_unknown_column_type_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"'n'.*'int64'.*int, float, bool, str"):
        IndexWriter(Store(tmp_path), "r1", {"n": "int64"})


def test_the_last_attempt_of_a_row_is_the_indexs_and_a_record_indexed_twice_counts_once(tmp_path):
    store = Store(tmp_path)
    for run, records in (
        ("r1", [make_record("a", status="failed", error_type="StageError"), make_record("b")]),
        ("r2", [make_record("a", attempt=2, content="c2"), make_record("b", run_id="late")]),
    ):
        with IndexWriter(store, run, {}) as index:
            for record in records:
                index.append(record)
    table = read_index(store)
    assert [(row["record"], row["attempt"], row["status"]) for row in table.to_pylist()] == [
        ("b", 1, "ok"),
        ("a", 2, "ok"),
    ]
    known = indexed_records(store)
    assert known["a"] == Indexed(2, "ok", "c2", None)
    assert known["b"].attempt == 1
    assert set(indexed_clips(store)) == {("a", 1), ("a", 2), ("b", 1)}
    compact_index(store, run_id="r3")
    assert pq.read_table(tmp_path / "index")["record"].to_pylist() == ["b", "a"]


def test_a_compacted_index_says_the_same_and_readers_at_work_lose_nothing(tmp_path):
    store = Store(tmp_path)
    for part in range(30):
        with IndexWriter(store, f"r{part:02d}", {"n": "int"}) as index:
            index.append(make_record(f"row{part}", extra={"n": part}))
    before = read_index(store)
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(lambda: [len(read_index(store)) for _ in range(10)]) for _ in range(3)]
        assert compact_index(store, run_id="c1") == 30
        counts = [count for reader in readers for count in reader.result()]
    assert set(counts) == {30}
    assert read_index(store).sort_by("record") == before.sort_by("record")
    assert len(store.names("index")) == 1
    assert compact_index(store, run_id="c2") == 1
