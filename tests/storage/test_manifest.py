import math
import pickle
import subprocess
import sys
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.errors import ConfigError, StorageError
from wan_ray.storage.manifest import Manifest, Shard

SCAN = """
import resource, sys, time
from wan_ray.storage.manifest import Manifest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
rows = sum(1 for _ in Manifest(sys.argv[1]).rows())
seconds = time.perf_counter() - start
print(rows, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def write(path, start, count, **options):
    table = pa.table({"id": [f"row-{i}" for i in range(start, start + count)], "seed": range(start, start + count)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def ids(manifest, shards=None):
    return [(number, row["id"]) for number, row in manifest.rows(shards)]


def test_one_file_gives_its_rows_in_order_with_their_numbers(tmp_path):
    write(tmp_path / "m.parquet", 0, 2500, row_group_size=1000)
    manifest = Manifest(str(tmp_path / "m.parquet"))
    assert manifest.num_rows == 2500
    assert manifest.schema.names == ["id", "seed"]
    assert [(s.row_group, s.first_row, s.num_rows) for s in manifest.shards()] == [
        (0, 0, 1000),
        (1, 1000, 1000),
        (2, 2000, 500),
    ]
    assert ids(manifest) == [(i, f"row-{i}") for i in range(2500)]


def test_a_folder_is_numbered_over_its_files_in_sorted_order(tmp_path):
    write(tmp_path / "m/b.parquet", 3, 2)
    write(tmp_path / "m/a/x.parquet", 0, 3)
    write(tmp_path / "m/_old/x.parquet", 90, 3)
    write(tmp_path / "m/.tmp.parquet", 95, 3)
    (tmp_path / "m/README.md").write_text("notes")
    assert ids(Manifest(f"{tmp_path}/m/")) == [(i, f"row-{i}") for i in range(5)]


def test_any_process_can_read_some_shards(tmp_path):
    write(tmp_path / "m/a.parquet", 0, 4, row_group_size=2)
    write(tmp_path / "m/b.parquet", 4, 2)
    manifest = pickle.loads(pickle.dumps(Manifest(str(tmp_path / "m"))))
    shards = pickle.loads(pickle.dumps(manifest.shards()))
    assert ids(manifest, shards[1:]) == [(2, "row-2"), (3, "row-3"), (4, "row-4"), (5, "row-5")]
    assert ids(manifest, []) == []


def test_a_url_gives_the_same_rows():
    root = f"memory://{uuid.uuid4().hex}"
    for name, start in (("a", 0), ("b", 2)):
        with fsspec.open(f"{root}/m/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"id": [f"row-{start}", f"row-{start + 1}"]}), file)
    assert ids(Manifest(f"{root}/m")) == [(i, f"row-{i}") for i in range(4)]
    assert ids(Manifest(f"{root}/m/b.parquet")) == [(0, "row-2"), (1, "row-3")]


def test_maps_are_dicts_and_nan_stays_nan(tmp_path):
    maps = pa.array([[("weather", "rain")], None, []], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"labels": maps, "score": [math.nan, None, 1.0]}), tmp_path / "m.parquet")
    rows = [row for _, row in Manifest(str(tmp_path / "m.parquet")).rows()]
    assert [row["labels"] for row in rows] == [{"weather": "rain"}, None, {}]
    assert math.isnan(rows[0]["score"])
    assert rows[1]["score"] is None


def test_files_with_other_columns_share_one_schema(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "score": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["b"], "score": [0.5], "city": ["x"]}), tmp_path / "b.parquet")
    manifest = Manifest(str(tmp_path))
    assert dict(zip(manifest.schema.names, manifest.schema.types, strict=True)) == {
        "id": pa.string(),
        "score": pa.float64(),
        "city": pa.string(),
    }
    assert [row for _, row in manifest.rows()] == [{"id": "a", "score": 1}, {"id": "b", "score": 0.5, "city": "x"}]


def test_no_rows_is_fine(tmp_path):
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), tmp_path / "m.parquet")
    manifest = Manifest(str(tmp_path / "m.parquet"))
    assert manifest.num_rows == 0
    assert list(manifest.rows()) == []


def test_a_missing_path_is_a_config_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.parquet' does not exist; give a Parquet file"):
        Manifest(str(tmp_path / "nowhere.parquet"))


def test_a_folder_without_parquet_is_a_config_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"has no file named \*\.parquet"):
        Manifest(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"id,prompt\na,b\n" * 10])
def test_a_file_that_is_not_parquet_is_a_config_error_that_says_how_to_write_one(tmp_path, content):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(ConfigError, match=r"m\.parquet' is not Parquet.*to_parquet"):
        Manifest(str(tmp_path))


def test_columns_of_one_name_are_a_config_error(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=r"columns of the same name: \['prompt'\]"):
        Manifest(str(tmp_path / "m.parquet"))


def test_files_that_disagree_about_a_type_are_a_config_error(tmp_path):
    pq.write_table(pa.table({"seed": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"seed": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"b\.parquet.*different types.*seed"):
        Manifest(str(tmp_path))


def test_a_file_that_goes_away_midway_is_a_storage_error(tmp_path):
    write(tmp_path / "m.parquet", 0, 3)
    manifest = Manifest(str(tmp_path / "m.parquet"))
    (tmp_path / "m.parquet").unlink()
    with pytest.raises(StorageError, match=r"m\.parquet"):
        list(manifest.rows())
    assert manifest.shards() == [Shard(file=str(tmp_path / "m.parquet"), row_group=0, first_row=0, num_rows=3)]


def test_a_million_rows_scan_in_seconds_within_bounded_memory(tmp_path):
    num_rows = 1_000_000
    prompts = pa.array([f"a street at night number {i}, {'wet asphalt ' * 10}" for i in range(num_rows)])
    table = pa.table({"prompt": prompts, "seed": range(num_rows), "width": pa.repeat(832, num_rows)})
    # One row group, the worst case: read whole it would be 150 MB of prompts.
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=num_rows, compression="none", use_dictionary=False)
    command = [sys.executable, "-c", SCAN, tmp_path / "m.parquet"]
    rows, seconds, grown_mb = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(rows) == num_rows
    assert float(seconds) < 30
    assert float(grown_mb) < 120


def test_text_that_is_not_utf8_is_told_with_its_file(tmp_path):
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    file = tmp_path / "latin.parquet"
    pq.write_table(pa.table({"prompt": broken}), file)
    with pytest.raises(ConfigError, match=r"latin\.parquet.*not sound.*utf-8"):
        list(Manifest(str(file)).rows())
