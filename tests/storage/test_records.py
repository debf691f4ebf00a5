import time

import pytest
from pydantic import ValidationError

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.records import Record, RecordStore


def make_record(name="a", **fields):
    return Record(
        **{"name": name, "id": name, "status": "ok", "run_id": "r1", "created_at": "2025-01-01T00:00:00Z", **fields}
    )


def test_a_committed_record_reads_back_equal(tmp_path):
    records = RecordStore(Store(tmp_path))
    record = make_record(
        prompt="夜晚",
        seed=2**63 - 1,
        labels={"k": "v"},
        extra={"n": 1, "list": [1, {"a": None}]},
        seconds={"encode": 0.5},
    )
    assert records.commit(record) is True
    assert records.read("a") == record


def test_the_first_record_of_a_row_stands(tmp_path):
    records = RecordStore(Store(tmp_path))
    first = make_record(run_id="first")
    records.commit(first)
    assert records.commit(make_record(run_id="second")) is False
    assert records.read("a") == first


def test_latest_and_read_all_cover_what_was_committed(tmp_path):
    records = RecordStore(Store(tmp_path))
    assert records.latest() == {}
    for name in ("b", "a.v2", "c"):
        records.commit(make_record(name))
    assert records.latest() == {"a.v2": 1, "b": 1, "c": 1}
    assert [record.name for record in records.read_all({"c": 1, "a.v2": 1})] == ["c", "a.v2"]


def test_a_later_attempt_replaces_the_one_before_which_stays_as_history(tmp_path):
    records = RecordStore(Store(tmp_path))
    first = make_record(status="failed", run_id="first")
    records.commit(first)
    assert records.commit(make_record(attempt=2, run_id="second")) is True
    assert records.commit(make_record(attempt=2, run_id="third")) is False
    assert records.latest() == {"a": 2}
    assert records.read("a", 2).run_id == "second"
    assert records.read("a", 1) == first


def test_nan_in_an_extra_is_null_in_the_file(tmp_path):
    records = RecordStore(Store(tmp_path))
    records.commit(make_record(extra={"score": float("nan")}))
    assert records.read("a").extra == {"score": None}


def test_a_file_that_is_no_record_is_named(tmp_path):
    store = Store(tmp_path)
    store.put("records/a.json", b'{"name": "a"}')
    with pytest.raises(StorageError, match=r"records/a\.json"):
        RecordStore(store).read("a")


def test_a_record_refuses_fields_it_does_not_know():
    with pytest.raises(ValidationError, match="extra_forbidden"):
        make_record(colour="red")


def test_listing_twenty_thousand_records_takes_a_fraction_of_a_second(tmp_path):
    (tmp_path / "records").mkdir()
    for i in range(20_000):
        (tmp_path / f"records/{i}.json").touch()
    start = time.perf_counter()
    assert len(RecordStore(Store(tmp_path)).latest()) == 20_000
    assert time.perf_counter() - start < 2
