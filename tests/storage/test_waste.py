import os
import time

from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.index import IndexWriter
from wan_ray.storage.prompts import KeptReply, PromptCache
from wan_ray.storage.records import Record, RecordStore
from wan_ray.storage.runs import alive
from wan_ray.storage.waste import find_waste


def make_record(name, **fields):
    given = {"name": name, "id": name, "status": "ok", "run_id": "r1", "created_at": "2025-01-01T00:00:00Z", **fields}
    return Record(**given)


def keys(store, older_than_s=-1):
    return {waste.key for waste in find_waste(store, older_than_s=older_than_s)}


def test_waste_is_what_no_record_names_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    records = RecordStore(store)
    for name in ("b", "c"):
        Claims(store, "r1").take(name, 1)
    with IndexWriter(store, "r1", {}) as index:
        for record in (make_record("a", clip="clips/a.1.mp4"), make_record("b", status="failed")):
            records.commit(record)
            index.append(record)
    records.commit(make_record("a", attempt=2, clip="clips/a.2.mp4"))  # not yet in the index
    for clip in ("a.1", "a.2", "a.orphan", "c.orphan"):
        store.put(f"clips/{clip}.mp4", b"x")
    (tmp_path / "clips/.d.mp4.0f.tmp").write_bytes(b"half")
    store.put("progress/a~2.safetensors", b"x")
    store.put("progress/c.safetensors", b"x")
    store.put("runs/dead.alive", b'{"machine": ["another"], "pid": 1, "started": "1"}')
    os.utime(tmp_path / "runs/dead.alive", (0, 0))
    with alive(store, "r2"):
        assert keys(store) == {
            "clips/a.orphan.mp4",
            "clips/c.orphan.mp4",
            "clips/.d.mp4.0f.tmp",
            "progress/a~2.safetensors",
            "claims/b",
            "runs/dead.alive",
        }


def test_a_claim_of_a_prompt_goes_when_there_is_a_reply(tmp_path):
    store = Store(tmp_path)
    cache, reply = PromptCache(store, "r1"), KeptReply(text="a", num_tokens=1, extender="x", model="m", prompt="p")
    for key in ("a" * 64, "b" * 64):
        assert cache.claim(key)
    cache.put("a" * 64, reply)
    assert keys(store) == {f"claims/prompt-{'a' * 16}"}


def test_what_is_young_stays(tmp_path):
    store = Store(tmp_path)
    store.put("clips/a.mp4", b"x")
    assert keys(store, older_than_s=60) == set()
    long_ago = time.time() - 3600
    os.utime(tmp_path / "clips/a.mp4", (long_ago, long_ago))
    assert keys(store, older_than_s=60) == {"clips/a.mp4"}
