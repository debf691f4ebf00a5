"""A request's body, JSON or multipart, as one tree of fields. It is bounded while it is read; files are spooled."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import NoReturn

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from wan_ray.serving.api_error import ApiError
from wan_ray.wording import shown

BODY_PAUSE_S = 30.0
BODY_TIMEOUT_S = 600.0
_MAX_FIELDS = 400
_MAX_FILES = 40
_MAX_DEPTH = 8
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PART_OF_KEY = re.compile(r"\[([^\[\]]*)\]")
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Upload:
    """A file that came in a body; it is gone when the request is answered."""

    file: UploadFile

    async def read(self) -> bytes:
        """All of it."""
        await self.file.seek(0)
        return await self.file.read()


@dataclass(frozen=True, eq=False)
class Held:
    """A file that the server had, or has fetched already."""

    data: bytes = field(repr=False)


Field = str | int | float | bool | None | Upload | Held | list["Field"] | dict[str, "Field"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a client sent. sha256 is of all of it, however it was written, files included."""

    fields: dict[str, Field]
    sha256: str


async def read_form(request: Request, *, max_bytes: int) -> Form:
    """The fields of a JSON object or a multipart form.

    ApiError 413 for more than max_bytes, 415 for another type, 400 for what is neither or names fields ambiguously.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        _too_large(max_bytes)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        _not_read("content-encoding", encoding, "send the body as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        fields = _json_object(b"".join([chunk async for chunk in _bounded(request, max_bytes)]))
    elif kind == "multipart/form-data":
        fields = _tree(await _multipart(request, max_bytes))
    else:
        _not_read("content-type", kind, "send application/json or multipart/form-data")
    return Form(fields=fields, sha256=await run_in_threadpool(_digest, fields))


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    num_bytes = 0
    loop, stream = asyncio.get_running_loop(), request.stream()
    end = loop.time() + BODY_TIMEOUT_S
    while True:
        try:
            async with asyncio.timeout_at(min(end, loop.time() + BODY_PAUSE_S)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise ApiError(
                408,
                "request_timeout",
                f"the body stood still for {BODY_PAUSE_S:.0f} s, or took {BODY_TIMEOUT_S:.0f} s in all; send it again",
                headers={"connection": "close"},
            ) from None
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            _too_large(max_bytes)
        yield chunk


def _not_read(header: str, value: str, fix: str) -> NoReturn:
    raise ApiError(415, "unsupported_media_type", f"{header} {value[:80]!r} is not read here; {fix}")


def _too_large(max_bytes: int) -> NoReturn:
    raise ApiError(
        413,
        "request_too_large",
        f"the body is more than {max_bytes} bytes, the most this server takes; send a smaller one",
        headers={"connection": "close"},
    )


def _json_object(body: bytes) -> dict[str, Field]:
    try:
        data = json.loads(body, parse_constant=_no_json, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}; send an object of fields") from None
    if not isinstance(data, dict):
        raise ApiError(400, "invalid_json", f"the body is {shown(data)}; send an object of fields")
    return data


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _without_doubles(pairs: list[tuple[str, Field]]) -> dict[str, Field]:
    """Whoever looks at the body on its way to us may have read the other of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


async def _multipart(request: Request, max_bytes: int) -> FormData:
    # Of the parts' charset only UTF-8 is read, whatever the header asks for.
    kind = re.sub(r";\s*charset=[^;]*", "", request.headers["content-type"], flags=re.IGNORECASE)
    parser = MultiPartParser(
        Headers({"content-type": kind}),
        _bounded(request, max_bytes),
        max_files=_MAX_FILES,
        max_fields=_MAX_FIELDS,
        max_part_size=max_bytes,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, "invalid_multipart", f"the body is not multipart/form-data: {error.message}") from None


def _tree(form: FormData) -> dict[str, Field]:
    """The fields by their keys' paths: a[b][c] is nested, a[] is a list, and so is a key that comes several times."""
    fields: dict[str, Field] = {}
    for key, value in form.multi_items():
        found = _KEY.fullmatch(key)
        path = [found[1], *_PART_OF_KEY.findall(found[2])] if found else []
        if not path or len(path) > _MAX_DEPTH:
            raise ApiError(400, "invalid_field", f"{shown(key)} is no name; use name or name[part]", param=key[:80])
        if isinstance(value, UploadFile):
            if not value.size and not value.filename:
                continue  # what a browser sends for a file input that was left empty
            _put_(fields, path, Upload(value), key)
        else:
            _put_(fields, path, value, key)
    return fields


def _put_(fields: dict[str, Field], path: list[str], value: Field, key: str) -> None:
    appends = path[-1] == ""
    names = path[:-1] if appends else path
    if "" in names:
        raise ApiError(
            400,
            "invalid_field",
            f"{shown(key)}: which of several objects a part belongs to cannot be told; send lists of objects as one "
            "field of JSON text",
            param=key[:80],
        )
    for name in names[:-1]:
        inner = fields.setdefault(name, {})
        if not isinstance(inner, dict):
            _contradicts(key)
        fields = inner
    name = names[-1]
    if name not in fields:
        fields[name] = [value] if appends else value
        return
    held = fields[name]
    if isinstance(held, dict):
        _contradicts(key)
    fields[name] = [*held, value] if isinstance(held, list) else [held, value]


def _contradicts(key: str) -> NoReturn:
    raise ApiError(
        400, "invalid_field", f"{shown(key)} is given both as a value and with parts; give one of them", param=key[:80]
    )


def _digest(fields: dict[str, Field]) -> str:
    """Of the content, in any order of fields; ApiError for text that cannot be written as UTF-8."""
    try:
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, default=_file_digest)
        return hashlib.sha256(text.encode()).hexdigest()
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body is nested too deeply; send a flat object of fields") from None
    except UnicodeEncodeError:
        raise ApiError(
            400, "invalid_json", "the body has half of a surrogate pair (\\ud800 to \\udfff); send whole characters"
        ) from None


def _file_digest(upload: Upload) -> str:
    found = hashlib.sha256()
    upload.file.file.seek(0)
    while chunk := upload.file.file.read(_CHUNK_BYTES):
        found.update(chunk)
    return f"sha256:{found.hexdigest()}"
