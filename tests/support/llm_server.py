"""A server that speaks DashScope's wire form and OpenAI's, and fails as told; it remembers who asked what, and when."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-3f9a71c2"
TEXTS = "/api/v1/services/aigc/text-generation/generation"
PICTURES = "/api/v1/services/aigc/multimodal-generation/generation"
CHAT = "/v1/chat/completions"

Fault = (
    str | None
)  # "429", "429:0.1" (Retry-After), "500", "400", "401", "timeout", "malformed", "empty", "cut", "chunk"


@dataclass
class LlmServer:
    """write(prompt, body) is the rewrite; fault(prompt, times) what goes wrong when it is asked so many times before.

    paid counts the answers that were sent whole, by the text of the last message.
    """

    write: Callable[[str, Any], str] = lambda prompt, _: f"A long shot. {prompt} It moves on, slowly and steadily."
    fault: Callable[[str, int], Fault] = lambda prompt, times: None
    paid: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    inside: int = 0
    key: str | None = KEY  # None: it asks for none
    gate: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def dashscope_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"

    @property
    def openai_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def llm_server(**how: Any) -> Iterator[LlmServer]:
    state = LlmServer(**how)

    class Handler(_Handler):
        server_state = state

    server = _Server(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        state.gate.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    server_state: LlmServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        state = self.server_state
        arrived = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if state.key is not None and self.headers.get("Authorization") != f"Bearer {state.key}":
            return self._json(401, {"error": {"message": f"wrong key: {self.headers.get('Authorization')}"}})
        try:
            text = _last_text(self.path, body)
        except (LookupError, TypeError, ValueError) as error:
            return self._json(400, {"code": "InvalidParameter", "message": repr(error)})
        with state.lock:
            state.arrivals.append(arrived)
            state.bodies.append(body)
            times = state.asked[text]
            state.asked[text] += 1
            state.inside += 1
        try:
            self._answered(text, body, times)
        finally:
            with state.lock:
                state.inside -= 1

    def _answered(self, text: str, body: Any, times: int) -> None:
        state = self.server_state
        fault = state.fault(text, times)
        state.gate.wait(60)
        if fault is None:
            if state.closing.is_set():
                self.close_connection = True
                return
            rewrite = state.write(_brief(text), body)
            with state.lock:
                state.paid[text] += 1
            self._json(200, _answer(self.path, rewrite))
        elif fault.startswith("429"):
            _, _, wait = fault.partition(":")
            self._json(429, {"code": "Throttling"}, **({"Retry-After": wait} if wait else {}))
        elif fault.isdigit():
            headers = {"Location": state.openai_url} if fault.startswith("3") else {}
            self._json(int(fault), {"code": "Fault", "message": "as told"}, **headers)
        elif fault == "timeout":
            state.closing.wait(3.5)
            self.close_connection = True
        elif fault == "malformed":
            self._raw(b'{"output": [}', 13)
        elif fault == "half":
            data = json.dumps(_answer(self.path, "half \ud800")).encode()
            self._raw(data, len(data))
        elif fault == "empty":
            self._json(200, _answer(self.path, "  "))
        elif fault == "cut":
            data = json.dumps(_answer(self.path, "half")).encode()
            self._raw(data[: len(data) // 2], len(data))
        elif fault == "chunk":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"20\r\n" + b'{"choices": [')
            self.close_connection = True

    def _json(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        self._raw(data, len(data), status=status, **headers)

    def _raw(self, data: bytes, said: int, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(said), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True


def _last_text(path: str, body: Any) -> str:
    """The text of the last message; the body must be as the service wants it."""
    if not isinstance(body["model"], str) or not body["model"]:
        raise ValueError("model")
    if path in (TEXTS, PICTURES):
        messages = body["input"]["messages"]
        if not isinstance(body["parameters"]["seed"], int) or body["parameters"]["result_format"] != "message":
            raise ValueError("parameters")
        contents = [message["content"] for message in messages]
        if path == TEXTS:
            return _text(contents[-1])
        for part in (part for content in contents for part in content):
            if "image" in part and not part["image"].startswith("data:image/png;base64,"):
                raise ValueError("image")
        return _text(next(part["text"] for part in contents[-1] if "text" in part))
    if path == CHAT:
        content = body["messages"][-1]["content"]
        return _text(content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text"))
    raise LookupError(path)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _brief(text: str) -> str:
    return text.partition("<prompt>\n")[2].partition("\n</prompt>")[0]


def _answer(path: str, text: str) -> Any:
    if path == CHAT:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return {"object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 300}}
    content = [{"text": text}] if path == PICTURES else text
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return {"output": {"choices": [choice]}, "usage": {"input_tokens": 200, "output_tokens": 100}, "request_id": "r"}
