"""Whole files under a root folder or URL: put atomically, or created exactly once. What is in them, others know."""

import errno
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from wan_ray.errors import ConfigError, MissingExtraError, StorageError, WanRayError
from wan_ray.storage.patience import Patience, patiently
from wan_ray.wording import without_secrets

# Services that decide a create themselves (If-None-Match and its kin), and memory://, which lives in one process.
# The other drivers check, then write: two writers could both win, and a reader could see half a file.
_ATOMIC_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_MEMORY_LOCK = threading.Lock()

T = TypeVar("T")


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


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished file of a folder; modified_at is seconds since 1970."""

    name: str
    size_bytes: int
    modified_at: float


class Store:
    """Files under one root, named by relative keys such as "clips/a.mp4"; holds nothing open, and can be pickled.

    The root is a local path (made absolute at once) or any fsspec URL. What may pass (throttling, a reset connection, a
    full disk) is waited for as long as the patience says; what does not pass raises StorageError.
    """

    def __init__(self, root: str | os.PathLike[str], *, patience: Patience | None = None) -> None:
        filesystem, path = open_filesystem(os.fspath(root))
        local = isinstance(filesystem, LocalFileSystem)
        self._files = _LocalFiles(Path(path)) if local else _RemoteFiles(filesystem, path)
        self._patience = patience or Patience()

    def check(self) -> None:
        """Raise StorageError unless files can be written, created exactly once, read and removed here."""
        key = f".check-{uuid.uuid4().hex}"
        # False too when the answer was lost and the driver asked again: the key is ours, so what it holds tells.
        self.create(key, b"1")
        try:
            if self.create(key, b"2") or self.get(key) != b"1":
                raise StorageError(
                    f"{self.location('')!r} cannot be an output: it does not honour conditional creates, so two "
                    "writers could both win; use a store that does (S3, GCS, Azure, a local or mounted folder)"
                )
        finally:
            self.delete(key)

    def put(self, key: str, data: bytes) -> None:
        """Stores the bytes whole under the key, replacing what was there."""
        self._patiently("write", key, lambda: self._files.put(key, data))

    def create(self, key: str, data: bytes) -> bool:
        """True when the bytes now stand under the key; False when something already did, which is left as it was.

        Of any number of concurrent creators at most one gets True; exactly one, unless a connection broke after the
        store had made the file and before it could say so.
        """
        return self._patiently("create", key, lambda: self._files.create(key, data))

    def get(self, key: str) -> bytes:
        """The bytes under the key."""
        return self._patiently("read", key, lambda: self._files.get(key))

    def open(self, key: str) -> BinaryIO:
        """A seekable file for reading parts of what stands under the key; the caller closes it."""
        return self._patiently("open", key, lambda: self._files.open(key))

    def delete(self, key: str) -> None:
        """Removes what stands under the key, if anything does."""
        self._patiently("remove", key, lambda: self._files.delete(key))

    def exists(self, key: str) -> bool:
        """Whether a finished file stands under the key."""
        return self._patiently("look for", key, lambda: self._files.exists(key))

    def names(self, prefix: str) -> list[str]:
        """Sorted names of the finished files directly in the folder; empty when there is no such folder."""
        names = self._patiently("list", prefix, lambda: list(self._files.names(prefix)))
        return sorted(name for name in names if not name.startswith("."))

    def entries(self, prefix: str) -> list[Entry]:
        """The files directly in the folder, hidden and unfinished ones too."""
        return self._patiently("list", prefix, lambda: self._files.entries(prefix))

    def location(self, key: str) -> str:
        """The path or URL of the key, as a person can open it, with passwords masked; "" gives the root's."""
        return without_secrets(self._files.location(key))

    def _patiently(self, verb: str, key: str, operation: Callable[[], T]) -> T:
        return patiently(f"cannot {verb} {self.location(key)!r}", operation, self._patience)


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

    def get(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        return (self._root / key).open("rb")

    def exists(self, key: str) -> bool:
        return (self._root / key).is_file()

    def delete(self, key: str) -> None:
        (self._root / key).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        try:
            with os.scandir(self._root / prefix) as entries:
                return [entry.name for entry in entries if entry.is_file()]
        except FileNotFoundError:
            return []

    def entries(self, prefix: str) -> list[Entry]:
        found = []
        try:
            with os.scandir(self._root / prefix) as entries:
                for entry in entries:
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:  # removed while we looked
                        continue
                    if entry.is_file():
                        found.append(Entry(name=entry.name, size_bytes=stat.st_size, modified_at=stat.st_mtime))
        except FileNotFoundError:
            return []
        return found

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

    def get(self, key: str) -> bytes:
        return cast(bytes, self._filesystem.cat_file(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        return cast(BinaryIO, self._filesystem.open(self._path(key), "rb"))

    def exists(self, key: str) -> bool:
        self._filesystem.invalidate_cache()
        return self._filesystem.isfile(self._path(key))

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(key))

    def names(self, prefix: str) -> list[str]:
        return [_name(info) for info in self._listed(prefix)]

    def entries(self, prefix: str) -> list[Entry]:
        return [
            Entry(name=_name(info), size_bytes=info["size"], modified_at=self._modified_at(info))
            for info in self._listed(prefix)
        ]

    def _listed(self, prefix: str) -> list[dict[str, Any]]:
        folder = self._path(prefix)
        # Drivers cache listings, and other processes write here too.
        self._filesystem.invalidate_cache()
        try:
            infos = self._filesystem.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        return [info for info in infos if info["type"] == "file" and info["name"].rstrip("/") != folder]

    def _modified_at(self, info: dict[str, Any]) -> float:
        """Drivers name it differently; the one that none of these fits is asked for each file."""
        times = (info.get(name) for name in ("LastModified", "mtime", "updated", "last_modified", "created"))
        found = next((time for time in times if time), None) or self._filesystem.modified(info["name"])
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        return found.timestamp() if isinstance(found, datetime) else float(found)

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


def _name(info: dict[str, Any]) -> str:
    return info["name"].rstrip("/").rpartition("/")[2]


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
