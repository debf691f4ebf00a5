"""An S3 that fails: moto's server behind a proxy that answers some requests with 500 or SlowDown, or hangs up.

Which requests fail is drawn from a seed.
"""

import http.client
import random
import socket
import struct
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
FAULTS = ("500", "503", "reset before", "reset after")


@dataclass
class FlakyS3:
    """url: the endpoint. share: of requests that fail. only: faults to draw from. counts: what was injected."""

    url: str = ""
    share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    dropped_headers: tuple[str, ...] = ("connection", "expect")
    counts: Counter = field(default_factory=Counter)

    @property
    def options(self) -> dict[str, object]:
        return {
            "endpoint_url": self.url,
            "key": "test",
            "secret": "test",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def environment(self) -> dict[str, str]:
        """What makes s3fs in another process talk to this endpoint, and give up soon enough for a test."""
        return {
            "FSSPEC_S3_ENDPOINT_URL": self.url,
            "FSSPEC_S3_KEY": "test",
            "FSSPEC_S3_SECRET": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def flaky_s3(*, seed: int = 0) -> Iterator[FlakyS3]:
    """The server while the block runs; faults begin when `share` is set."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"")  # its buckets are the process's
    s3, dice = FlakyS3(), random.Random(seed)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(s3, dice, host, port))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    s3.url = f"http://127.0.0.1:{proxy.server_address[1]}"
    try:
        yield s3
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


def _handler(s3: FlakyS3, dice: random.Random, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = dice.choice(s3.faults) if dice.random() < s3.share else None
            if fault:
                s3.counts[fault] += 1
            if fault in ("500", "503"):
                code = "InternalError" if fault == "500" else "SlowDown"
                self.answer(int(fault), [("Content-Type", "application/xml")], ERROR.format(code=code).encode())
                return
            if fault == "flip" and self.command == "PUT" and "/clips/" in self.path:
                body = bytes([body[0] ^ 1]) + body[1:]
            if fault == "reset before":
                self.hang_up()
                return
            connection = http.client.HTTPConnection(host, port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in s3.dropped_headers}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            if fault == "reset after":
                self.hang_up()
                return
            skipped = ("transfer-encoding", "content-length", "connection", "server", "date")
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.answer(answer.status, kept, data, length)
            connection.close()

        def answer(self, status: int, headers: list, data: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def hang_up(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, ValueError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

    return Handler
