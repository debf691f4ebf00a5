"""API keys: whose a request is. Only their SHA-256 is kept, which tells nothing of a key of 256 random bits."""

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError
from wan_ray.serving.api_error import ApiError

LOCAL = "local"  # whose the jobs are where there are no keys
_PREFIX = "wr_"
_OWNER = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_OWNER_RULE = "1 to 40 of a-z, 0-9 and -, not - first"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BEARER = re.compile(r"bearer +([\x21-\x7e]+) *", re.IGNORECASE)
_LOOPBACK_NAME = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]", re.IGNORECASE)
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class Keys:
    """(owner, SHA-256 of the key) of every key. An owner may have several, so that a key can be replaced by another."""

    entries: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @classmethod
    def from_lines(cls, text: str, *, what: str = "keys") -> "Keys":
        """The keys in lines "owner:sha256"; empty lines and lines that begin with # do not count.

        ConfigError names a line that is neither by its number alone, for a key may stand there by mistake.
        """
        entries: list[tuple[str, str]] = []
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            if line and not line.startswith("#"):
                entries.append(_entry(line, f"{what}: line {number}"))
        owners: dict[str, str] = {}
        for owner, digest in entries:
            if owners.setdefault(digest, owner) != owner:
                raise ConfigError(f"{what}: {owners[digest]!r} and {owner!r} have the same key; give each its own")
        return cls(tuple(entries))

    @classmethod
    def open(cls, file: str | None, *, more: str = "") -> "Keys":
        """The keys in a file and in further lines; ConfigError when the file cannot be read, or holds no key."""
        entries = list(cls.from_lines(more, what="the environment's keys").entries)
        if file is not None:
            what = f"serve.keys_file {file!r}"
            try:
                text = Path(file).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{what} cannot be read: {error}") from None
            found = cls.from_lines(text, what=what).entries
            if not found:
                raise ConfigError(f"{what} holds no key; add the line that `wan-ray key NAME` prints")
            entries += found
        return cls(tuple(entries))

    def owner_of(self, authorization: str | None) -> str:
        """Whose the request with this Authorization header is; ApiError 401 when that is no key of ours.

        Without any keys it is LOCAL's. A header that came several times is to be given joined by commas: it is refused.
        """
        if not self.entries:
            return LOCAL
        if authorization is None:
            raise _unauthorized("there is no API key; send the header 'Authorization: Bearer <key>'")
        found = _BEARER.fullmatch(authorization)
        if found is None:
            raise _unauthorized("the Authorization header is not of the form 'Bearer <key>'")
        digest, owner = sha256_of(found[1]), None
        for one, known in self.entries:  # all of them, so that the time it takes tells nothing
            if hmac.compare_digest(digest, known):
                owner = one
        if owner is None:
            raise _unauthorized("the API key is not one of this server's; `wan-ray key NAME` makes one")
        return owner


def new_key() -> str:
    """A key of 256 random bits, to be shown once."""
    return _PREFIX + secrets.token_urlsafe(32)


def key_line(owner: str, key: str) -> str:
    """The line that makes the key known to a server; ConfigError for an owner that Keys would not take."""
    return ":".join(_entry(f"{owner}:{sha256_of(key)}", "key"))


def sha256_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_exposure(config: RenderConfig, keys: Keys) -> None:
    """ConfigError when others than this machine could reach a server without keys."""
    host = config.serve.host
    if not keys.entries and not is_loopback(host):
        raise ConfigError(
            f"serve.host {host!r} is reached from other machines, and there are no API keys, so anyone could render "
            "here; put a line of `wan-ray key NAME` into a file and name it by serve.keys_file, or listen on 127.0.0.1"
        )


def check_same_site(headers: Mapping[str, str]) -> None:
    """ApiError 403 for what a page of another site has a browser send to a server without keys.

    A browser says which page asks (Origin), and by which name it reached us (Host): a name of the page's owner may
    have come to stand for this machine.
    """
    host = headers.get("host", "localhost")
    origin = headers.get("origin", f"http://{host}")
    name = re.sub(r":\d*$", "", host)
    if not _LOOPBACK_NAME.fullmatch(name) or origin.partition("://")[2] != host:
        raise ApiError(
            403,
            "cross_site_request",
            "a server without API keys answers only programs and pages of its own machine, as http://localhost; this "
            f"came to {host[:80]!r} from {origin[:80]!r}",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there: every address that the name stands for is loopback."""
    try:
        found = socket.getaddrinfo(host, None) if host else []
    except (OSError, UnicodeError):
        found = []
    return bool(found) and all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def _entry(line: str, what: str) -> tuple[str, str]:
    owner, _, digest = line.partition(":")
    if not _OWNER.fullmatch(owner):
        raise ConfigError(f"{what} does not begin with a name of {_OWNER_RULE}, and a colon; see `wan-ray key NAME`")
    if not _SHA256.fullmatch(digest):
        raise ConfigError(
            f"{what}: after {owner + ':'!r} comes no SHA-256 of a key in 64 lower-case hex digits; a key itself does "
            "not belong there: use the line that `wan-ray key NAME` prints"
        )
    return owner, digest


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, headers=_CHALLENGE)
