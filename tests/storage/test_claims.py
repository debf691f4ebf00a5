from concurrent.futures import ThreadPoolExecutor

import pytest

from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.runs import alive


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_a_row_is_one_living_runs(store):
    with alive(store, "r1"), alive(store, "r2"):
        assert Claims(store, "r1").take("a", 1) is True
        assert Claims(store, "r2").take("a", 1) is False
        assert Claims(store, "r2").take("a", 2) is True
        assert Claims(store, "r1").take("a", 1) is True  # also from another of its workers


def test_of_the_runs_that_take_over_from_a_dead_one_a_single_one_gets_the_row(store):
    assert Claims(store, "dead").take("a", 1)
    assert Claims(store, "dead too").take("a", 1)
    names = [f"r{n}" for n in range(6)]
    with ThreadPoolExecutor(6) as pool, alive(store, "r0"), alive(store, "r1"), alive(store, "r2"):
        for name in names[3:]:
            store.put(f"runs/{name}.alive", b'{"machine": ["another"], "pid": 1, "started": "1"}')
        wins = list(pool.map(lambda name: Claims(store, name).take("a", 1), names))
    assert wins.count(True) == 1


def test_a_row_that_has_its_record_is_nobodys_and_leaves_no_claim(store, tmp_path):
    store.put("records/a.json", b"{}")
    store.put("records/b~2.json", b"{}")
    with alive(store, "r1"):
        claims = Claims(store, "r1")
        assert [claims.take("a", 1), claims.take("a", 2), claims.take("b", 1), claims.take("b", 2)] == [
            False,
            True,
            True,
            False,
        ]
    assert sorted(file.name for file in (tmp_path / "claims").iterdir()) == ["a~2", "b"]


def test_a_dropped_claim_leaves_nothing(store, tmp_path):
    Claims(store, "dead").take("a", 1)
    with alive(store, "r1"):
        claims = Claims(store, "r1")
        assert claims.take("a", 1)
        claims.drop("a", 1)
    assert list((tmp_path / "claims").iterdir()) == []
