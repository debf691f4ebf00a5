"""Whole files under a root folder or URL: put atomically, or created exactly once. What is in them, others know."""

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from wan_ray.errors import ConfigError, MissingExtraError, StorageError, WanRayError
from wan_ray.wording import without_secrets

# Services that decide a create themselves (If-None-Match and its kin), and memory://, which lives in one process.
# The other drivers check, then write: two writers could both win, and a reader could see half a file.
_ATOMIC_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_MEMORY_LOCK = threading.Lock()


@contextmanager
def failing_as(kind: type[WanRayError], what: str) -> Iterator[None]:
    """Turns whatever is raised inside into `kind`, saying `what` and the cause; our own errors pass.

    The one place that catches every Exception: storage drivers raise types of their own (botocore's are no OSError).
    """
    try:
        yield
    except WanRayError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise kind(without_secrets(f"{what}: {cause}")) from error


def open_filesystem(source: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of a local path or URL and the path within it; ConfigError when there is no such driver."""
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise MissingExtraError(f"{without_secrets(source)!r} needs a package that is not here: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{without_secrets(source)!r} is no path or URL that fsspec can open: {error}") from error
    return filesystem, path


class Store:
    """Files under one root, named by relative keys such as "clips/a.mp4"; holds nothing open, and can be pickled.

    The root is a local path (made absolute at once) or any fsspec URL. Whatever fails raises StorageError.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        filesystem, path = open_filesystem(os.fspath(root))
        local = isinstance(filesystem, LocalFileSystem)
        self._files = _LocalFiles(Path(path)) if local else _RemoteFiles(filesystem, path)

    def put(self, key: str, data: bytes) -> None:
        """Stores the bytes whole under the key, replacing what was there."""
        with failing_as(StorageError, f"cannot write {self.location(key)!r}"):
            self._files.put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """True when the bytes now stand under the key; False when something already did, which is left as it was.

        Of any number of concurrent creators exactly one gets True.
        """
        with failing_as(StorageError, f"cannot create {self.location(key)!r}"):
            return self._files.create(key, data)

    def get(self, key: str) -> bytes:
        """The bytes under the key."""
        with failing_as(StorageError, f"cannot read {self.location(key)!r}"), self._files.open(key) as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        """A seekable file for reading parts of what stands under the key; the caller closes it."""
        with failing_as(StorageError, f"cannot open {self.location(key)!r}"):
            return self._files.open(key)

    def exists(self, key: str) -> bool:
        """Whether a finished file stands under the key."""
        with failing_as(StorageError, f"cannot look for {self.location(key)!r}"):
            return self._files.exists(key)

    def names(self, prefix: str) -> list[str]:
        """Sorted names of the finished files directly in the folder; empty when there is no such folder."""
        with failing_as(StorageError, f"cannot list {self.location(prefix)!r}"):
            return sorted(name for name in self._files.names(prefix) if not name.startswith("."))

    def location(self, key: str) -> str:
        """The path or URL of the key, as a person can open it, with passwords masked; "" gives the root's."""
        return without_secrets(self._files.location(key))


class _LocalFiles:
    """A folder. Unfinished files are hidden (".name...tmp"), so no listing shows them, also after a crash."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        path = self._root / key
        with _unfinished(path) as temp:
            _write_through(temp, data)
            temp.replace(path)

    def create(self, key: str, data: bytes) -> bool:
        path = self._root / key
        with _unfinished(path) as temp:
            _write_through(temp, data)
            try:
                os.link(temp, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                return create_without_links(path, data)
            return True

    def open(self, key: str) -> BinaryIO:
        return (self._root / key).open("rb")

    def exists(self, key: str) -> bool:
        return (self._root / key).is_file()

    def names(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self._root / prefix) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def location(self, key: str) -> str:
        return str(self._root / key)


class _RemoteFiles:
    """A bucket or other fsspec filesystem, where one put is all or nothing."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        self._require_atomic_writes()
        self._filesystem.pipe_file(self._path(key), data)

    def create(self, key: str, data: bytes) -> bool:
        self._require_atomic_writes()
        # memory:// checks and then writes, but lives in one process, where a lock makes that one step.
        lock = _MEMORY_LOCK if isinstance(self._filesystem, MemoryFileSystem) else nullcontext()
        try:
            with lock:
                self._filesystem.pipe_file(self._path(key), data, mode="create")
        except FileExistsError:
            return False
        return True

    def open(self, key: str) -> BinaryIO:
        return cast(BinaryIO, self._filesystem.open(self._path(key), "rb"))

    def exists(self, key: str) -> bool:
        self._filesystem.invalidate_cache()
        return self._filesystem.isfile(self._path(key))

    def names(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        # Drivers cache listings, and other processes write here too.
        self._filesystem.invalidate_cache()
        try:
            entries = self._filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        paths = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "file"]
        return [path.rpartition("/")[2] for path in paths if path != folder]

    def location(self, key: str) -> str:
        return self._filesystem.unstrip_protocol(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _require_atomic_writes(self) -> None:
        protocol = self._filesystem.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        if not protocols & _ATOMIC_PROTOCOLS:
            raise StorageError(
                f"{self.location('')!r} cannot be an output: its driver {sorted(protocols)} cannot create a file "
                f"exactly once; use a local or mounted folder, or one of {sorted(_ATOMIC_PROTOCOLS)}"
            )


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A hidden name of our own beside the path, whose folder exists; what still bears it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temp
    finally:
        temp.unlink(missing_ok=True)


def _write_through(path: Path, data: bytes) -> None:
    """Writes the bytes and waits until the disk has them, so that a name given later never outlives them."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def create_without_links(path: Path, data: bytes) -> bool:
    """create() on filesystems without hard links (FAT, some FUSE and SMB mounts); same promise, no lock.

    A folder that holds the bytes is renamed to ".<name>.claim". Renaming onto a folder that is not empty fails, so one
    creator's folder gets the name, and its bytes with it: who wins and what is written are one step, with nothing to
    wait for. Every creator then puts the winner's bytes in place, so a winner that dies there is finished by the next.
    """
    claim = path.with_name(f".{path.name}.claim")
    mine = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    if path.exists():
        return False
    mine.mkdir()
    try:
        _write_through(mine / "data", data)
        mine.rename(claim)
        won = True
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        won = False
    finally:
        shutil.rmtree(mine, ignore_errors=True)
    with _unfinished(path) as temp:
        _write_through(temp, (claim / "data").read_bytes())
        temp.replace(path)
    return won
