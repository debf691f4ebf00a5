import subprocess
import sys
import threading
import time

import pytest

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.patience import Patience

SHORT = Patience(first_s=0.02, longest_s=0.5, total_s=30)

FULL_DISK = """
import sys, threading, time
from pathlib import Path
from wan_ray.storage.blob import Store
from wan_ray.storage.patience import Patience
root = Path(sys.argv[1])
(root / "ballast").write_bytes(bytes(900_000))
threading.Timer(1.0, (root / "ballast").unlink).start()
started = time.monotonic()
Store(root, patience=Patience(first_s=0.05, total_s=20)).put("clips/a.mp4", bytes(500_000))
assert time.monotonic() - started > 0.9, "it did not wait"
assert (root / "clips/a.mp4").read_bytes() == bytes(500_000)
assert [path.name for path in (root / "clips").iterdir()] == ["a.mp4"]
"""


def test_a_bucket_that_fails_now_and_then_loses_nothing(s3):
    store = Store("s3://bucket/out", patience=SHORT)
    store.check()
    s3.share = 0.3
    for i in range(12):
        store.put(f"clips/{i}.mp4", bytes([i]) * 10_000)
        store.create(f"records/{i}.json", b"%d" % i)
    s3.share = 0
    assert set(s3.counts) >= {"500", "503"}
    assert [store.get(f"clips/{i}.mp4") for i in range(12)] == [bytes([i]) * 10_000 for i in range(12)]
    assert len(store.names("records")) == 12
    assert {entry.name: entry.size_bytes for entry in store.entries("clips")} == {f"{i}.mp4": 10_000 for i in range(12)}
    assert all(abs(entry.modified_at - time.time()) < 600 for entry in store.entries("clips"))


def test_of_creators_in_a_bucket_one_wins(s3):
    stores = [Store("s3://bucket/out", patience=SHORT) for _ in range(4)]
    wins: list[bool] = []
    threads = [
        threading.Thread(target=lambda who=who, store=store: wins.append(store.create("records/a", bytes([who]))))
        for who, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(wins) == [False, False, False, True]


def test_a_bucket_that_stays_away_is_a_storage_error_after_the_time_given(s3):
    s3.share, s3.faults = 1.0, ("503",)
    with pytest.raises(StorageError, match=r"cannot read 's3://bucket/out/a'.*tried for 1 s"):
        Store("s3://bucket/out", patience=Patience(first_s=0.1, total_s=1)).get("a")


def test_a_missing_bucket_is_told_at_once(s3):
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot create 's3://nowhere/out/"):
        Store("s3://nowhere/out", patience=SHORT).check()
    assert time.monotonic() - started < 5


def test_a_folder_without_the_right_to_write_is_told_at_once(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="NotADirectoryError"):
        Store(tmp_path / "file" / "out", patience=SHORT).check()


def test_a_check_leaves_nothing_behind(tmp_path):
    Store(tmp_path).check()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_ignores_conditional_creates_is_refused(s3):
    s3.dropped_headers += ("if-none-match",)  # as older look-alikes of S3 do
    with pytest.raises(StorageError, match="does not honour conditional creates"):
        Store("s3://bucket/out", patience=SHORT).check()


@pytest.mark.skipif(sys.platform != "linux", reason="a full disk is made of a tmpfs in a user namespace")
def test_a_full_disk_is_waited_for(tmp_path):
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("this machine lets no user mount a tmpfs in a namespace of its own")
    script = f'mount -t tmpfs -o size=1200k none "{tmp_path}" && exec "{sys.executable}" -c "$0" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, FULL_DISK], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr
