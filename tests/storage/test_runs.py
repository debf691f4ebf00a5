import pytest

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.runs import read_runs, write_run


def entry(run_id, **fields):
    return {"run_id": run_id, "num_rows": 3, **fields}


def test_runs_are_kept_in_the_order_they_began_and_updated_in_place(tmp_path):
    store = Store(tmp_path)
    assert read_runs(store) == []
    write_run(store, entry("a", status="running", config={"output": "夜"}))
    write_run(store, entry("b", status="running"))
    write_run(store, entry("a", status="finished"))
    assert read_runs(store) == [entry("a", status="finished"), entry("b", status="running")]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"runs": 3}', b'{"runs": [3]}', b'{"runs": [{}]}', b"\xff"])
def test_a_run_json_of_another_tool_is_told_and_not_overwritten(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    for act in (read_runs, lambda store: write_run(store, entry("a"))):
        with pytest.raises(StorageError, match=r"run\.json' is not a run\.json of wan-ray.*move it away"):
            act(Store(tmp_path))
    assert (tmp_path / "run.json").read_bytes() == content
