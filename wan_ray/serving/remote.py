"""What clients name by URL, reached without reaching what only this machine can reach.

A name is resolved once; every address that it stands for must be public, or in a network that the operator listed; and
the connection goes to one of these addresses, whatever the name stands for later. Redirects are checked like the first.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from wan_ray.errors import RequestError
from wan_ray.media.source import name_of
from wan_ray.serving.api_error import ApiError

MAX_URL_CHARS = 4096  # signed URLs of object stores take about 2000
FETCH_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_ADDRESS = "{}: the host has no address; correct the URL"
# Names that strangers give may take long to resolve: in threads of their own, they keep nobody else waiting.
_RESOLVERS = ThreadPoolExecutor(8, thread_name_prefix="resolve")
# Of IPv6 only what is routed between networks; each of these holds an IPv4 address, which counts instead.
_GLOBAL = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_NOT_PUBLIC = (
    ip_network("168.63.129.16/32"),  # Azure's host, from inside a machine
    ip_network("192.0.0.0/24"),  # the same of others
    ip_network("3fff::/20"),  # for documentation, unknown to Python 3.11
)


@dataclass(frozen=True)
class Hosts:
    """config.serve.allowed_media_hosts: names, and addresses or networks, which may be private ones."""

    entries: Sequence[str]

    def have(self, url: URL) -> bool:
        """Whether the URL's host is listed, by its name or as an address."""
        if url.raw_host in self.entries:
            return True
        try:
            return self.have_address(ip_address(url.raw_host or ""))
        except ValueError:
            return False

    def have_address(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether the address is in a network that is listed."""
        return any(address in network for entry in self.entries for network in _networks(entry))


async def fetch_media(url: str, *, allowed_hosts: Sequence[str], max_bytes: int, param: str | None = None) -> bytes:
    """What lies there, once; ApiError 400 for a host that is not listed, an address that is not public, and the rest.

    The rest: redirects that lead there or go on, answers but 200, more than max_bytes, more than FETCH_TIMEOUT_S.
    """
    hosts = Hosts(allowed_hosts)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            return await _fetched(url, hosts, max_bytes)
    except RequestError as error:
        message = str(error)
    except TimeoutError:
        message = f"{name_of(url)} took more than {FETCH_TIMEOUT_S:.0f} s; send the file itself"
    except (socket.gaierror, UnicodeError):
        message = _NO_ADDRESS.format(name_of(url))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        message = f"{name_of(url)} cannot be fetched: {type(error).__name__}; send the file itself"
    raise ApiError(400, "invalid_media_url", message if param is None else f"{param}: {message}", param=param)


async def check_reachable(url: str, allowed_hosts: Sequence[str]) -> URL:
    """The URL of any host, whose addresses are public or listed; RequestError when it is not."""
    target = parse_url(url)
    try:
        await _addresses(target, Hosts(allowed_hosts))
    except (OSError, UnicodeError):
        raise RequestError(_NO_ADDRESS.format(name_of(url))) from None
    return target


def parse_url(url: str) -> URL:
    """An absolute http or https URL without a user or password in it; RequestError for another."""
    try:
        target = URL(url if len(url) <= MAX_URL_CHARS and url.isprintable() and not {" ", "\\"} & set(url) else "")
        sound = target.scheme in ("http", "https") and bool(target.host) and target.port is not None
    except ValueError:
        target, sound = URL(), False
    if not sound:
        raise RequestError(
            f"{name_of(url)} is no http:// or https:// URL of at most {MAX_URL_CHARS} characters; give one, or the "
            "content itself"
        )
    if target.user is not None or target.password is not None:
        raise RequestError(f"{name_of(url)} has a user or password in it; give a URL without")
    return target


@asynccontextmanager
async def connected(target: URL, allowed_hosts: Hosts) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose connections go to the target's addresses alone, all of which are public or listed."""
    resolver = _Resolved(await _addresses(target, allowed_hosts))
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield session


async def _fetched(url: str, hosts: Hosts, max_bytes: int) -> bytes:
    target = parse_url(url)
    for _ in range(_MAX_REDIRECTS + 1):
        if not hosts.have(target):
            raise RequestError(
                f"{name_of(str(target))} is not of a host that this server fetches from; send the file itself, or a "
                "data: URL"
            )
        async with (
            connected(target, hosts) as session,
            session.get(target, allow_redirects=False, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            if answer.status not in _REDIRECTS:
                return await _body(answer, target, max_bytes)
            target = parse_url(str(target.join(URL(answer.headers.get("Location", "")))))
    raise RequestError(f"{name_of(url)} is redirected more than {_MAX_REDIRECTS} times; give the last URL")


async def _body(answer: aiohttp.ClientResponse, target: URL, max_bytes: int) -> bytes:
    name = name_of(str(target))
    if answer.status != 200:
        raise RequestError(f"{name} answers {answer.status}; give a URL that anyone may read")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise RequestError(f"{name} is compressed on the way, though that was not asked for; send the file itself")
    too_large = RequestError(f"{name} is more than {max_bytes} bytes; make it smaller")
    if (answer.content_length or 0) > max_bytes:
        raise too_large
    data = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > max_bytes:
            raise too_large
    return bytes(data)


async def _addresses(target: URL, hosts: Hosts) -> list[ResolveResult]:
    """Where the target may be connected to; RequestError unless all of its host's addresses may.

    OSError when it has none now, UnicodeError when it is no name.
    """
    host, port = target.raw_host or "", target.port or 0
    lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, lookup)
    for *_, address in found:
        _check_address(ip_address(address[0]), target, hosts)
    return [
        ResolveResult(hostname=host, host=str(address[0]), port=port, family=family, proto=proto, flags=0)
        for family, _, proto, _, address in found
    ]


def _check_address(address: IPv4Address | IPv6Address, target: URL, hosts: Hosts) -> None:
    if not is_public(address) and not hosts.have_address(address):
        raise RequestError(
            f"{name_of(str(target))} leads to an address inside a network, not on the internet; give a public one"
        )


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is one of a single host on the internet, by itself or by the IPv4 address it stands for."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL or address.scope_id is not None:
            return False
    listed = any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not (address.is_multicast or address.is_reserved or listed)


def _networks(entry: str) -> list[IPv4Network | IPv6Network]:
    try:
        return [ip_network(entry, strict=False)]
    except ValueError:
        return []


class _Resolved(AbstractResolver):
    """Says what was found and checked, and asks nobody."""

    def __init__(self, found: list[ResolveResult]) -> None:
        self._found = found

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return self._found

    async def close(self) -> None:
        pass
