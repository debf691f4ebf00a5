"""A server to be attacked over raw sockets, a trap that leads inside, and what attacks are made of."""

import base64
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from serving_app import ServingApp, serving_app

from wan_ray.serving.keys import Keys, key_line

ALICE, BOB = "wr_" + "a" * 43, "wr_" + "b" * 43
Sent = bytes | Iterable[bytes]
KEYS = Keys.from_lines(f"{key_line('alice', ALICE)}\n{key_line('bob', BOB)}")
MAX_BODY_BYTES = 200_000
TRAP_HOST = "127.0.0.9"  # the one host that is allowed; it leads elsewhere
BOUNDARY = "multipart/form-data; boundary=B"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        """Of an error in our form; None of the HTTP server's own refusals."""
        try:
            return json.loads(self.body)["error"]["code"]
        except (ValueError, KeyError):
            return None


@dataclass(frozen=True)
class Scene:
    """A server with a finished video of Alice's and one of Bob's, and a trap that redirects from the allowed host."""

    app: ServingApp
    alice_video: str
    bob_video: str
    trap_port: int
    inner_asked: list[str]

    def exchange(self, parts: bytes | Iterable[bytes]) -> Answer:
        """What the server answers to these bytes; it may do so, and hang up, before all are sent."""
        host, port = self.app.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            try:
                for part in [parts] if isinstance(parts, bytes) else parts:
                    connection.sendall(part)
            except OSError:
                pass
            file = connection.makefile("rb")
            try:
                status = int(file.readline().split()[1])
                headers = dict(
                    line.decode("latin-1").lower().strip().split(": ", 1) for line in iter(file.readline, b"\r\n")
                )
                return Answer(status, headers, file.read(int(headers.get("content-length", 0))))
            except (IndexError, OSError):
                return Answer(0, {}, b"")


def request(
    method: str, path: str, body: bytes = b"", *headers: str, key: str | None = ALICE, length: int | None = None
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if length is not None or body:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path: str, *headers: str, key: str | None = ALICE) -> bytes:
    return request("GET", path, b"", *headers, key=key)


def create(*headers: str, **fields: object) -> bytes:
    return raw_create(json.dumps({"prompt": "a road", **fields}).encode(), *headers)


def raw_create(body: bytes, *headers: str) -> bytes:
    return request("POST", "/v1/videos", body, "Content-Type: application/json", *headers)


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--B\r\nContent-Disposition: form-data; name=" + name.encode() + b"\r\n\r\n" + value + b"\r\n"
        for name, value in parts
    )
    return request("POST", "/v1/videos", body + b"--B--\r\n", f"Content-Type: {BOUNDARY}")


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of a hundred bytes that says it is that large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(bytes((width * 3 + 1) * height if width < 1000 else 100))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated_png(num_frames: int) -> bytes:
    control = struct.pack(">II", num_frames, 0)
    return png(64, 48, struct.pack(">I", 8) + b"acTL" + control + struct.pack(">I", zlib.crc32(b"acTL" + control)))


def endless(head: bytes, part: bytes) -> Iterator[bytes]:
    yield head
    while True:
        yield part


@contextmanager
def hostile_scene(folder: Path, models: Mapping[str, Path]) -> Iterator[Scene]:
    """A server with keys of Alice and Bob, each of whom has a video."""
    inner_asked: list[str] = []

    class Trap(BaseHTTPRequestHandler):
        """/?URL leads there; anything else is an inner service that must not be asked."""

        def do_GET(self) -> None:
            if self.path.startswith("/?"):
                self.send_response(302)
                self.send_header("Location", self.path[2:])
            else:
                inner_asked.append(self.path)
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    trap = ThreadingHTTPServer(("0.0.0.0", 0), Trap)
    thread = threading.Thread(target=trap.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    serve = {"max_body_bytes": MAX_BODY_BYTES, "requests_per_minute": 100_000, "allowed_media_hosts": [TRAP_HOST]}
    with serving_app(folder, models=models, serve=serve, keys=KEYS) as app:
        scene = Scene(app, "", "", trap.server_port, inner_asked)
        ids = []
        for key in (ALICE, BOB):
            body = json.dumps({"prompt": "a road"}).encode()
            made = scene.exchange(request("POST", "/v1/videos", body, "Content-Type: application/json", key=key))
            ids.append(json.loads(made.body)["id"])
        yield Scene(app, *ids, trap.server_port, inner_asked)
    trap.shutdown()
    thread.join()
    trap.server_close()
