"""Bytes of what a row names: a local path, an fsspec URL, a data: URL, a folder, or the bytes themselves.

What is wrong with the source itself is a RequestError; a store that fails is a StorageError, which may pass.
"""

import base64
import binascii
import errno
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import unquote_to_bytes

import fsspec
import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from wan_ray.errors import RequestError, StorageError, WanRayError
from wan_ray.wording import shown, without_secrets

MAX_IMAGE_BYTES = 100_000_000
MAX_VIDEO_BYTES = 1 << 30
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_FIX = "give a path, a URL, a data: URL or bytes"
HEAD_BYTES = 1 << 20  # an image's header stands within it
_END_BYTES = 4 << 20  # and a video's index at one end or the other, with the first frame after it
_CHUNK_BYTES = 1 << 20
# By scheme, what to install for it.
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_NAME_CHARS = 80
_DATA_URL = re.compile(r"data:[^,]*?(?P<base64>;base64)?,", re.IGNORECASE)
_NO_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
_IMAGE = re.compile(rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|BM|II\*\x00|MM\x00\*", re.DOTALL)
# What a file may be taken for, by how it begins; for messages only.
_BEGINNINGS = (
    (re.compile(rb"\x89PNG"), "a PNG image"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG image"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "a WebP image"),
    (re.compile(rb"BM|II\*\x00|MM\x00\*"), "a BMP or TIFF image"),
    (re.compile(rb"GIF8"), "a GIF"),
    (re.compile(rb".{4}ftyp|.{4}moov", re.DOTALL), "an MP4 or similar file"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "a WebM or Matroska video"),
    (re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE), "a web page"),
    (re.compile(rb"#EXTM3U"), "a playlist"),
    (re.compile(rb"\x93NUMPY"), "a numpy array"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer"),
)


def read_source(source: str | bytes, *, what: str, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """All bytes of the source; `what` is the row's field, for messages.

    RequestError when it is empty, missing, a folder, no regular file, not readable or larger than max_bytes.
    """
    if isinstance(source, bytes):
        return _checked(source, source, what=what, max_bytes=max_bytes)
    if _holds_data(source, what):
        return _checked(_decoded(source, what=what, max_bytes=max_bytes), source, what=what, max_bytes=max_bytes)
    with _opened(source, what=what, max_bytes=max_bytes) as file:
        return _checked(_read(file, max_bytes + 1), source, what=what, max_bytes=max_bytes)


def read_head(source: str | bytes, *, what: str, max_bytes: int = MAX_IMAGE_BYTES) -> tuple[bytes, bool]:
    """The source's first HEAD_BYTES, and whether these are all; as read_source."""
    if isinstance(source, bytes) or _holds_data(source, what):
        return read_source(source, what=what, max_bytes=max_bytes), True
    with _opened(source, what=what, max_bytes=max_bytes, block_bytes=HEAD_BYTES) as file:
        head = _checked(_read(file, HEAD_BYTES), source, what=what, max_bytes=max_bytes)
    return head, len(head) < HEAD_BYTES


@contextmanager
def local_file(source: str | bytes, *, what: str, max_bytes: int = MAX_VIDEO_BYTES) -> Iterator[Path]:
    """The source as a file of this machine, its own or a copy that lives as long as the context; as read_source."""
    if isinstance(source, str) and not _holds_data(source, what):
        filesystem, path = _open_filesystem(source, what)
        if isinstance(filesystem, LocalFileSystem):
            with _opened(source, what=what, max_bytes=max_bytes) as file:
                _checked(file.read(1), source, what=what, max_bytes=max_bytes)
            yield Path(path).absolute()
            return
    with tempfile.NamedTemporaryFile(prefix="wan-ray-") as copy:
        for chunk in _chunks(source, what=what, max_bytes=max_bytes):
            copy.write(chunk)
        copy.flush()
        yield Path(copy.name)


@contextmanager
def local_sketch(source: str | bytes, *, what: str, max_bytes: int = MAX_VIDEO_BYTES) -> Iterator[tuple[Path, bool]]:
    """As local_file, and whether it is whole: of a large remote file only both ends are copied, with a hole between."""
    ends = None
    if isinstance(source, str) and not _holds_data(source, what):
        ends = _remote_ends(source, what=what, max_bytes=max_bytes)
    if ends is None:
        with local_file(source, what=what, max_bytes=max_bytes) as path:
            yield path, True
        return
    head, tail, size_bytes = ends
    with tempfile.NamedTemporaryFile(prefix="wan-ray-") as copy:
        copy.write(head)
        copy.seek(size_bytes - len(tail))
        copy.write(tail)
        copy.flush()
        yield Path(copy.name), False


def is_folder(source: str | bytes, *, what: str) -> bool:
    """Whether the source names a folder, here or in a bucket; RequestError when there is nothing of that name."""
    if isinstance(source, bytes) or _holds_data(source, what):
        return False
    filesystem, path = _open_filesystem(source, what)
    if isinstance(filesystem, LocalFileSystem):
        with _row_faults(source, what):
            return stat.S_ISDIR(Path(path).stat().st_mode)
    with _row_faults(source, what):
        return filesystem.info(path)["type"] == "directory"


def read_folder(source: str, *, what: str, max_bytes: int = MAX_IMAGE_BYTES) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image in the folder, read as they are taken, frame_2 before frame_10.

    Only IMAGE_SUFFIXES count, and hidden files do not. RequestError when there are none, or of several kinds.
    """
    filesystem, path = _open_filesystem(source, what)
    with _row_faults(source, what):
        filesystem.invalidate_cache()
        entries = filesystem.ls(path, detail=True)
    files = [PurePosixPath(entry["name"]) for entry in entries if entry["type"] == "file"]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    kinds = {file.suffix.lower().replace("jpeg", "jpg") for file in images}
    if len(kinds) != 1:
        found = f"images of several kinds ({', '.join(sorted(kinds))})" if kinds else "no images"
        raise RequestError(f"{what}: folder {name_of(source)} holds {found}; put the frames there, all of one kind")
    for file in sorted(images, key=_natural):
        with _row_faults(source, what), filesystem.open(str(file), "rb") as opened:
            data = _read(cast(BinaryIO, opened), max_bytes + 1)
        yield file.name, _checked(data, file.name, what=what, max_bytes=max_bytes)


def name_of(source: object) -> str:
    """The source in a message: without passwords, and where it is long its beginning and its end."""
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if not isinstance(source, str):
        return shown(source)
    if source[:5].lower() == "data:":
        return repr(source[:40])
    text = without_secrets(source)
    return repr(text if len(text) <= _NAME_CHARS else f"{text[:24]}...{text[27 - _NAME_CHARS :]}")


def likeness(head: bytes) -> str:
    """What data that begin so look like, such as "a PNG image"; for messages about what they are not."""
    return next((name for pattern, name in _BEGINNINGS if pattern.match(head)), "something else")


def looks_like_image(head: bytes) -> bool:
    """Whether data that begin so are a still image's, to decide how to decode them."""
    return _IMAGE.match(head) is not None


def _chunks(source: str | bytes, *, what: str, max_bytes: int) -> Iterator[bytes]:
    if isinstance(source, bytes) or _holds_data(source, what):
        yield read_source(source, what=what, max_bytes=max_bytes)
        return
    size_bytes = 0
    with _opened(source, what=what, max_bytes=max_bytes) as file:
        while chunk := _read(file, _CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise _too_large(source, what=what, max_bytes=max_bytes)
            yield chunk
    if size_bytes == 0:
        raise RequestError(f"{what}: {name_of(source)} is empty; {_FIX}")


def _read(file: BinaryIO, num_bytes: int) -> bytes:
    """So many bytes, fewer at the end only: a stream over HTTP gives what has arrived."""
    parts = []
    while num_bytes and (part := file.read(num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


@contextmanager
def _opened(source: str, *, what: str, max_bytes: int, block_bytes: int | None = None) -> Iterator[BinaryIO]:
    """The source's file, once it is known to be one and, where its size is known, small enough.

    block_bytes is how much a remote one reads ahead.
    """
    filesystem, path = _open_filesystem(source, what)
    with _row_faults(source, what):
        _check_size(filesystem, path, source, what=what, max_bytes=max_bytes)
        # Over HTTP as one stream, which any server gives; parts of a file not every one does.
        block_bytes = 0 if _is_http(source) else block_bytes
        with filesystem.open(path, "rb", block_size=block_bytes) as file:
            yield cast(BinaryIO, file)


def _check_size(
    filesystem: fsspec.AbstractFileSystem, path: str, source: str, *, what: str, max_bytes: int
) -> int | None:
    """The file's size where it is known; RequestError when it is no file, or too large."""
    if isinstance(filesystem, LocalFileSystem):
        status = Path(path).stat()
        folder, regular, size_bytes = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode), status.st_size
    else:
        info = filesystem.info(path)
        folder, regular, size_bytes = info["type"] == "directory", True, cast(int | None, info.get("size"))
    if folder:
        raise RequestError(f"{what}: {name_of(source)} is a folder; give one file")
    if not regular:
        raise RequestError(f"{what}: {name_of(source)} is a device or pipe; give a regular file")
    if size_bytes is not None and size_bytes > max_bytes:
        raise _too_large(source, what=what, max_bytes=max_bytes, size_bytes=size_bytes)
    return size_bytes


def _remote_ends(source: str, *, what: str, max_bytes: int) -> tuple[bytes, bytes, int] | None:
    """Beginning, end and size of a large remote file; None for another, and from a server that gives no parts."""
    filesystem, path = _open_filesystem(source, what)
    if isinstance(filesystem, LocalFileSystem):
        return None
    with _row_faults(source, what):
        size_bytes = _check_size(filesystem, path, source, what=what, max_bytes=max_bytes)
        if size_bytes is None or size_bytes <= 2 * _END_BYTES:
            return None
        with filesystem.open(path, "rb", block_size=_END_BYTES) as file:
            head = _read(cast(BinaryIO, file), _END_BYTES)
            try:
                file.seek(size_bytes - _END_BYTES)
                return head, _read(cast(BinaryIO, file), _END_BYTES), size_bytes
            except ValueError:  # of fsspec, for such a server
                return None


def _open_filesystem(source: str, what: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(source)
    except ImportError as error:
        extra = _EXTRAS.get(source.partition(":")[0].lower())
        fix = f"install 'wan-ray[{extra}]' where the workers run" if extra else _FIX
        raise RequestError(f"{what}: {name_of(source)} needs a package that is not here ({error}); {fix}") from error
    except ValueError as error:
        raise RequestError(
            f"{what}: {name_of(source)} is no path or URL that can be opened: {error}; {_FIX}"
        ) from error


@contextmanager
def _row_faults(source: str, what: str) -> Iterator[None]:
    """Turns what a source answers into RequestError, and what keeps it from answering into StorageError.

    That may be any Exception: drivers raise types of their own.
    """
    name = f"{what}: {name_of(source)}"
    try:
        yield
    except WanRayError:
        raise
    except Exception as error:
        # fsspec's HTTP takes whatever goes wrong with its first request for a missing file.
        cause = (_is_http(source) and error.__cause__) or error
        status = getattr(cause, "status", None)  # of aiohttp's errors
        if isinstance(cause, FileNotFoundError | NotADirectoryError) or status in (404, 410):
            raise RequestError(f"{name} does not exist, or not where the workers run; {_FIX}") from error
        if isinstance(cause, PermissionError) or status in (401, 403):
            raise RequestError(f"{name} may not be read by the user that renders; allow it, or {_FIX}") from error
        # A text too long for a path, or with a NUL in it, is no path; base64 without "data:" ends here.
        if isinstance(cause, ValueError) or (isinstance(cause, OSError) and cause.errno in _NO_PATH):
            raise RequestError(f"{name} is no path: {_cause(cause)}; {_FIX}") from error
        raise StorageError(f"{name} cannot be read: {_cause(cause)}") from error


def _is_http(source: str) -> bool:
    return source[:7].lower() == "http://" or source[:8].lower() == "https://"


def _holds_data(source: object, what: str) -> bool:
    """Whether the source is a data: URL; RequestError when it is no text at all."""
    if not isinstance(source, str):
        raise RequestError(f"{what}: {shown(source)} is neither text nor bytes; {_FIX}")
    if not source.strip():
        raise RequestError(f"{what}: {source!r} is empty; {_FIX}")
    return source[:5].lower() == "data:"


def _decoded(source: str, *, what: str, max_bytes: int) -> bytes:
    """What a data: URL holds (RFC 2397); its media type is not looked at, the content decides."""
    head = _DATA_URL.match(source)
    if head is None:
        raise RequestError(f"{what}: {name_of(source)} is no data: URL; write data:image/png;base64,<base64>")
    if (len(source) - head.end()) * 3 // 4 > max_bytes * (1 if head["base64"] else 4):
        raise _too_large(source, what=what, max_bytes=max_bytes)
    data = unquote_to_bytes(source[head.end() :])
    if head["base64"] is None:
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise RequestError(f"{what}: {name_of(source)} is no valid base64: {error}; encode it again") from error


def _checked(data: bytes, source: str | bytes, *, what: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise _too_large(source, what=what, max_bytes=max_bytes)
    if not data:
        raise RequestError(f"{what}: {name_of(source)} is empty; {_FIX}")
    return data


def _too_large(source: str | bytes, *, what: str, max_bytes: int, size_bytes: int | None = None) -> RequestError:
    size = "" if size_bytes is None else f"{size_bytes} bytes, "
    return RequestError(f"{what}: {name_of(source)} is {size}more than {max_bytes} bytes; make it smaller")


def _natural(file: PurePosixPath) -> list[tuple[int, str]]:
    """A sort key that takes digits in a name as numbers; the name itself decides between 01 and 1."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() and part.isascii() else (0, part) for part in parts] + [(0, file.name)]


def _cause(error: BaseException) -> str:
    return without_secrets(shown(str(error) or type(error).__name__))
