import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from wan_ray.errors import ConfigError, MissingExtraError, StorageError
from wan_ray.storage.blob import Store, create_without_links
from wan_ray.wording import without_secrets

RACE = """
import os, sys, time
from pathlib import Path
from wan_ray.storage.blob import Store, create_without_links
root, way, who = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
store = Store(root)
(root / f"ready-{who}").touch()
while not (root / "go").exists():
    time.sleep(0.001)
for i in range(40):
    data = who.encode() * 5000
    path = root / "records" / f"{i}.json"
    won = store.create(f"records/{i}.json", data) if way == "links" else create_without_links(path, data)
    print(i, won)
"""
PUT = """
import sys
from wan_ray.storage.blob import Store
Store(sys.argv[1]).put("clips/a.mp4", bytes(400_000_000))
"""

REPLACE = """
import sys
from wan_ray.storage.blob import Store
for i in range(60):
    Store(sys.argv[1]).put("a", bytes(9_000_000 if i % 2 else 8_000_000))
"""


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return Store(tmp_path / "out" if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


@pytest.fixture
def often_switching():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_what_is_put_is_there_whole_and_replaces_what_was_before(store):
    store.put("clips/a.mp4", b"first")
    store.put("clips/a.mp4", b"second")
    assert store.get("clips/a.mp4") == b"second"
    with store.open("clips/a.mp4") as file:
        file.seek(2)
        assert file.read() == b"cond"


def test_create_keeps_what_is_already_there(store):
    assert store.create("records/a.json", b"first") is True
    assert store.create("records/a.json", b"second") is False
    assert store.get("records/a.json") == b"first"


def test_names_are_the_files_directly_in_the_folder(store):
    store.put("records/b.json", b"")
    store.put("records/a.json", b"")
    store.put("records/deeper/c.json", b"")
    assert store.names("records") == ["a.json", "b.json"]
    assert store.names("index") == []
    assert store.exists("records/a.json")
    assert not store.exists("records/c.json")
    assert not store.exists("records/deeper")


def test_a_missing_file_is_a_storage_error_that_names_it(store):
    with pytest.raises(StorageError, match=r"records/none\.json.*FileNotFoundError"):
        store.get("records/none.json")


def test_a_store_survives_pickling(store):
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_a_relative_root_stays_the_same_folder_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("out")
    monkeypatch.chdir("/")
    store.put("a", b"1")
    assert (tmp_path / "out/a").read_bytes() == b"1"
    assert store.location("a") == str(tmp_path / "out/a")


def test_threads_racing_for_one_key_in_memory_have_one_winner(often_switching):
    store = Store(f"memory://{uuid.uuid4().hex}")
    with ThreadPoolExecutor(16) as pool:
        for i in range(50):
            wins = list(pool.map(lambda who, i=i: store.create(f"r/{i}", bytes([who])), range(16)))
            assert wins.count(True) == 1
            assert store.get(f"r/{i}") == bytes([wins.index(True)])


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(tmp_path):
    store = Store(tmp_path)
    store.put("a", bytes(8_000_000))
    writer = subprocess.Popen([sys.executable, "-c", REPLACE, tmp_path])
    seen = set()
    while writer.poll() is None:
        data = store.get("a")
        assert len(data) in (8_000_000, 9_000_000)
        seen.add(len(data))
    assert writer.wait() == 0
    assert seen == {8_000_000, 9_000_000}


@pytest.mark.parametrize("way", ["links", "without-links"])
def test_processes_racing_for_one_key_have_one_winner_whose_bytes_are_whole(tmp_path, way):
    (tmp_path / "records").mkdir()
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, tmp_path, way, str(who)], stdout=subprocess.PIPE, text=True)
        for who in range(8)
    ]
    while len(list(tmp_path.glob("ready-*"))) < 8:
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [racer.communicate(timeout=60)[0].split("\n") for racer in racers]
    for i in range(40):
        winners = [who for who, lines in enumerate(said) if f"{i} True" in lines]
        assert len(winners) == 1
        assert (tmp_path / f"records/{i}.json").read_bytes() == str(winners[0]).encode() * 5000
    assert Store(tmp_path).names("records") == sorted(f"{i}.json" for i in range(40))


def test_without_links_a_winner_that_died_is_finished_by_the_next_creator(tmp_path):
    claim = tmp_path / ".a.json.claim"
    claim.mkdir()
    (claim / "data").write_bytes(b"of the dead")
    assert create_without_links(tmp_path / "a.json", b"of the living") is False
    assert (tmp_path / "a.json").read_bytes() == b"of the dead"


def test_a_process_killed_while_putting_leaves_no_file_under_the_final_name(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", PUT, tmp_path])
    while not list(tmp_path.glob("clips/.a.mp4.*")):
        assert writer.poll() is None
        time.sleep(0.0005)
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    assert list((tmp_path / "clips").iterdir()) != []
    assert not Store(tmp_path).exists("clips/a.mp4")
    assert Store(tmp_path).names("clips") == []


def test_a_root_that_is_a_file_fails_as_storage_error_naming_the_location(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    store = Store(tmp_path / "out")
    for attempt in (lambda: store.put("a", b""), lambda: store.create("a", b"")):
        with pytest.raises(StorageError, match="out/a"):
            attempt()


def test_a_driver_that_cannot_create_exactly_once_is_refused_as_output():
    with pytest.raises(StorageError, match=r"cannot be an output: its driver \['simplecache'\]"):
        Store("simplecache::memory://out").put("a", b"")


def test_an_unknown_protocol_and_a_missing_driver_are_config_errors():
    with pytest.raises(ConfigError, match="nosuch://out"):
        Store("nosuch://out")
    with pytest.raises(MissingExtraError, match=r"smb://user:\*\*\*@host/out.*smbprotocol"):
        Store("smb://user:hunter2@host/out")


def test_no_password_is_shown_in_a_location_or_an_error():
    assert without_secrets("cannot read 's3://key:hunter2@bucket/a'") == "cannot read 's3://key:***@bucket/a'"
    assert (
        without_secrets("abfs://clips@account.dfs.core.windows.net/a") == "abfs://clips@account.dfs.core.windows.net/a"
    )
    with pytest.raises(ConfigError) as caught:
        Store("smb://user:hunter2@host/out")
    assert "hunter2" not in str(caught.value)


def test_a_sound_store_is_not_refused_for_answers_that_were_lost(s3):
    s3.faults, s3.share = ("reset after",), 0.4
    store = Store("s3://bucket/out")
    for _ in range(12):
        store.check()
    assert s3.counts["reset after"] > 3
    s3.share = 0
    assert [entry.name for entry in store.entries("")] == []
