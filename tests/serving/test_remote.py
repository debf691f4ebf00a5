"""What fetch_media reaches, and what it does not: every server here is a real one, on this machine."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest

from wan_ray.errors import RequestError
from wan_ray.serving import remote
from wan_ray.serving.api_error import ApiError

HERE = ("127.0.0.0/8",)
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def web(answer: Answer, host: str = "127.0.0.1") -> Iterator[tuple[int, list[str]]]:
    """The port of a server that answers so, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = Server((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def gives(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def redirects(*targets: str) -> Answer:
    """Path /0 leads to the first target, /1 to the second and so on; a path beyond them gives b"found"."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        number = int(handler.path[1:])
        if number < len(targets):
            gives(b"", 302, Location=targets[number])(handler)
        else:
            gives(b"found")(handler)

    return answer


def fetch(url: str, allowed: tuple[str, ...] = HERE, max_bytes: int = 1000) -> bytes:
    return asyncio.run(remote.fetch_media(url, allowed_hosts=allowed, max_bytes=max_bytes, param="image"))


def refusal(url: str, allowed: tuple[str, ...] = HERE, max_bytes: int = 1000) -> str:
    with pytest.raises(ApiError) as caught:
        fetch(url, allowed, max_bytes)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_media_url", "image")
    assert caught.value.message.startswith("image: ")
    return caught.value.message


def unreachable(url: str, allowed: tuple[str, ...] = ()) -> str:
    with pytest.raises(RequestError) as caught:
        asyncio.run(remote.check_reachable(url, allowed))
    return str(caught.value)


def test_a_listed_address_is_fetched_from_over_redirects_too() -> None:
    with web(redirects("/1", "2")) as (port, asked):
        assert fetch(f"http://127.0.0.1:{port}/0") == b"found"
    assert asked == ["/0", "/1", "/2"]


def test_a_host_that_is_not_listed_is_not_even_connected_to() -> None:
    with web(gives(b"secret")) as (port, asked):
        for allowed in ((), ("10.0.0.0/8", "cdn.example.com")):
            assert "not of a host that this server fetches from" in refusal(f"http://127.0.0.1:{port}/", allowed)
    assert not asked


def test_a_listed_name_does_not_lead_into_a_network_that_is_not_listed() -> None:
    with web(gives(b"found")) as (port, asked):
        assert "inside a network" in refusal(f"http://localhost:{port}/", ("localhost",))
        assert not asked
        assert fetch(f"http://LOCALHOST:{port}/", ("localhost", "127.0.0.0/8", "::1/128")) == b"found"


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://localhost:{port}/",
        "//127.0.0.1:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "data:image/png;base64,AAAA",
    ],
)
def test_a_redirect_does_not_lead_where_the_url_itself_may_not(target: str) -> None:
    with (
        web(gives(b"secret")) as (inner_port, inner_asked),
        web(redirects(target.format(port=inner_port)), host="127.0.0.9") as (port, asked),
    ):
        refusal(f"http://127.0.0.9:{port}/0", ("127.0.0.9",))
        assert asked == ["/0"] and not inner_asked


def test_redirects_come_to_an_end() -> None:
    with web(redirects(*["/0"] * 9)) as (port, asked):
        assert "redirected more than 3 times" in refusal(f"http://127.0.0.1:{port}/0")
    assert len(asked) == 4


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "017700000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[::ffff:0:127.0.0.1]",
        "[2002:a9fe:a9fe::]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fec0::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[2001:db8::1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "127.0.0.1.",
        "１２７.0.0.1",
        "⑫⑦.0.0.1",
        socket.gethostname(),
    ],
)
def test_no_spelling_of_an_inner_address_is_reachable(host: str) -> None:
    said = unreachable(f"http://{host}:8000/")
    assert any(words in said for words in ("inside a network", "has no address", "is no http"))


@pytest.mark.parametrize(
    "url",
    ["https://8.8.8.8/a", "http://[2606:4700::1111]:8080/", "https://[64:ff9b::808:808]/", "http://[2002:808:808::]/"],
)
def test_public_addresses_are_reachable(url: str) -> None:
    assert str(asyncio.run(remote.check_reachable(url, ()))) == url


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_an_address_on_the_internet_is_public(address: str) -> None:
    assert remote.is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://example.com/",
        "javascript:alert(1)",
        "//example.com/a.png",
        "http://",
        "http:///a.png",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: inner",
        "http://example.com\\@127.0.0.1/",
        "http://example.com:99999/",
        "http://example.com:-1/",
        "http://[::1/",
        "http://" + "a" * 5000,
        "http://\x00example.com/",
    ],
)
def test_what_is_no_url_of_the_web_is_refused(url: str) -> None:
    assert "is no http:// or https:// URL" in unreachable(url)
    assert "is no http:// or https:// URL" in refusal(url, ("example.com",))


def test_a_url_with_a_password_is_refused_without_showing_it() -> None:
    said = refusal("http://127.0.0.1:hunter2@example.com/", ("example.com",))
    assert "has a user or password" in said and "hunter2" not in said


def test_the_secrets_in_a_url_are_not_repeated() -> None:
    with web(gives(b"", 403)) as (port, _):
        said = refusal(f"http://127.0.0.1:{port}/a.png?X-Amz-Signature=hunter2")
    assert "answers 403" in said and "hunter2" not in said


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
def test_any_answer_but_200_is_refused(status: int) -> None:
    with web(gives(b"", status)) as (port, _):
        assert f"answers {status}" in refusal(f"http://127.0.0.1:{port}/")


def test_a_body_is_read_up_to_the_limit_whether_it_says_its_size_or_not() -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.protocol_version = "HTTP/1.0"
        handler.send_response(200)
        handler.end_headers()
        try:
            while sent < 1 << 30:
                sent += handler.wfile.write(b"x" * 65536)
        except OSError:
            pass

    with web(gives(b"x" * 1000)) as (port, _):
        assert len(fetch(f"http://127.0.0.1:{port}/")) == 1000
    with web(gives(b"x" * 1001)) as (port, _):
        assert "more than 1000 bytes" in refusal(f"http://127.0.0.1:{port}/")
    with web(gives(b"x", Content_Length="10000000000")) as (port, _):
        assert "more than 1000 bytes" in refusal(f"http://127.0.0.1:{port}/")
    with web(endless) as (port, _):
        assert "more than 1000 bytes" in refusal(f"http://127.0.0.1:{port}/")
    assert sent < 1 << 26


def test_a_body_that_ends_early_is_no_body() -> None:
    with web(gives(b"x", Content_Length="100")) as (port, _):
        assert "cannot be fetched" in refusal(f"http://127.0.0.1:{port}/")


def test_a_compressed_answer_is_not_unpacked() -> None:
    with web(gives(b"\x1f\x8b bomb", Content_Encoding="gzip")) as (port, _):
        assert "compressed on the way" in refusal(f"http://127.0.0.1:{port}/")


def test_a_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FETCH_TIMEOUT_S", 1.0)
    done = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not done.wait(0.05):
                handler.wfile.write(b"x")
        except OSError:
            pass

    with web(trickle) as (port, _):
        began = time.monotonic()
        assert "took more than 1 s" in refusal(f"http://127.0.0.1:{port}/")
        assert time.monotonic() - began < 20
        done.set()


def test_a_name_is_resolved_once_so_that_it_cannot_change_between_check_and_connection() -> None:
    # A resolver whose answers change with every question, as that of whoever owns a name may.
    answers = iter(["127.0.0.9", "127.0.0.1", "127.0.0.1"])
    asked: list[str] = []
    real = socket.getaddrinfo

    def changing(host: str, *arguments: object, **options: object) -> object:
        asked.append(host)
        return real(next(answers) if host == "rebind.example" else host, *arguments, **options)

    with web(gives(b"first"), host="127.0.0.9") as (port, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", changing)
        assert fetch(f"http://rebind.example:{port}/", ("rebind.example", "127.0.0.9")) == b"first"
    assert asked.count("rebind.example") == 1
