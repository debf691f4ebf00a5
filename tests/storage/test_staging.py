import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from wan_ray.errors import CheckpointError, ConfigError
from wan_ray.storage.staging import stage_checkpoint

FILES = {
    "config.json": b"{}",
    "diffusion_pytorch_model.safetensors": b"dit" * 1000,
    "Wan2.1_VAE.pth": b"vae",
    "google/umt5-xxl/tokenizer.json": b"tokenizer",
    "assets/logo.png": b"not needed",
}
STAGED = {name for name in FILES if not name.endswith(".png")}


@pytest.fixture
def memory(tmp_path):
    """A folder on memory:// with a checkpoint, called as the released ones are; its URL."""
    filesystem = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}/Wan2.1-T2V-1.3B"
    for name, data in FILES.items():
        filesystem.pipe_file(f"{root}/{name}", data)
    yield f"memory:/{root}"
    filesystem.rm(f"/{tmp_path.name}", recursive=True)


def names_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_local_path_is_used_where_it_lies(tmp_path):
    assert stage_checkpoint(str(tmp_path), str(tmp_path / "cache")) == tmp_path
    assert stage_checkpoint("~/wan", str(tmp_path / "cache")) == Path.home() / "wan"
    assert not (tmp_path / "cache").exists()


def test_a_folder_is_copied_with_what_a_checkpoint_is_made_of(memory, tmp_path):
    staged = stage_checkpoint(memory, str(tmp_path))
    assert names_in(staged) == STAGED
    assert all((staged / name).read_bytes() == FILES[name] for name in STAGED)
    assert stage_checkpoint(memory + "/", str(tmp_path)) == staged
    assert names_in(tmp_path) == {f"{staged.name}/{name}" for name in STAGED} | {f"{staged.name}.lock"}


def test_a_single_file_keeps_its_suffix(memory, tmp_path):
    staged = stage_checkpoint(f"{memory}/diffusion_pytorch_model.safetensors", str(tmp_path))
    assert staged.suffix == ".safetensors" and staged.read_bytes() == b"dit" * 1000
    assert not list(tmp_path.glob("*.partial"))


def test_urls_of_equal_names_are_kept_apart(memory, tmp_path):
    other = memory.replace("/Wan2.1", "/fine/Wan2.1")
    fsspec.filesystem("memory").pipe_file(f"{other.removeprefix('memory:/')}/config.json", b"other")
    staged = {stage_checkpoint(url, str(tmp_path)) for url in (memory, other)}
    assert {(folder / "config.json").read_bytes() for folder in staged} == {b"{}", b"other"}


def test_what_is_not_there_is_told_with_the_url_and_nothing_is_left(tmp_path):
    for url in ("memory://nowhere/Wan2.1", f"file://{tmp_path}/none"):
        with pytest.raises(CheckpointError, match=url):
            stage_checkpoint(url, str(tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".lock", ".partial")]
    with pytest.raises(ConfigError, match="no path or URL that fsspec can open"):
        stage_checkpoint("gopher://host/wan", str(tmp_path / "cache"))


def test_a_driver_s_failure_midway_is_told_and_the_next_try_starts_afresh(memory, tmp_path, monkeypatch):
    calls = []
    whole = MemoryFileSystem.get_file

    def cut(self, source, target, **options):
        calls.append(source)
        if len(calls) == 2:
            Path(target).write_bytes(b"half")
            raise RuntimeError("connection reset")
        return whole(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", cut)
    with pytest.raises(CheckpointError, match=r"cannot copy .*Wan2\.1-T2V-1\.3B.*connection reset"):
        stage_checkpoint(memory, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.suffix != ".partial"] == []
    staged = stage_checkpoint(memory, str(tmp_path))
    assert all((staged / name).read_bytes() == FILES[name] for name in STAGED)


def test_threads_of_one_process_copy_once_and_never_see_a_part(memory, tmp_path, monkeypatch):
    copies, seen = [], []
    whole = MemoryFileSystem.get_file

    def slow(self, source, target, **options):
        copies.append(source)
        time.sleep(0.05)
        return whole(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", slow)
    ended = threading.Event()

    def watch():
        while not ended.wait(0.002):
            for path in tmp_path.iterdir():
                if path.is_dir() and path.suffix != ".partial":
                    seen.append(names_in(path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        staged = set(pool.map(lambda _: stage_checkpoint(memory, str(tmp_path)), range(4)))
    ended.set()
    watcher.join()
    assert len(staged) == 1 and len(copies) == len(STAGED)
    assert all(names == STAGED for names in seen)


def test_processes_of_one_node_copy_once(tmp_path):
    source = tmp_path / "Wan2.1-T2V-14B"
    for name, data in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO);"
        "from wan_ray.storage.staging import stage_checkpoint;"
        "print(stage_checkpoint(sys.argv[1], sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, source.as_uri(), str(tmp_path / "cache")]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({out for out, _ in said}) == 1
    assert sum(log.count("copying ") for _, log in said) == len(STAGED)
    assert names_in(Path(said[0][0].strip())) == STAGED
