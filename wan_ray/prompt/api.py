"""Asking over HTTP: a request with its limits, tries and waits. Each service has a module that knows what to say."""

import email.utils
import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import JsonValue

from wan_ray.errors import ExtenderError, RunStoppedError
from wan_ray.prompt.extender import Messages, OnReply, Reply, has_pictures
from wan_ray.prompt.pace import Breaker, Pace
from wan_ray.wording import shown, without_secrets

logger = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 4 << 20
_PASSES = frozenset({408, 425, 429})
# A wrong key, a model that is not there, another URL: no other row could fare better.
_STOPS = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405})
_MAX_WAIT_S = 300.0
_REPLY_TOKENS = 400  # a guess for the limit, until the answer says
_PICTURE_TOKENS = 400


class WireForm(Protocol):
    """How a service is spoken to."""

    name: str
    key_name: str

    def request(self, messages: Messages, *, model: str, seed: int) -> tuple[str, dict[str, JsonValue]]:
        """Path below the base URL, and body."""
        ...

    def reply(self, answer: Any) -> Reply:
        """What the model wrote. ValueError, TypeError or LookupError when that is not in the answer, or is cut."""
        ...


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where it is and who asks. The key stays out of repr() and messages."""

    base_url: str
    key: str | None
    model: str
    image_model: str

    def __repr__(self) -> str:
        return f"Service({without_secrets(self.base_url)!r})"


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """A request that brought nothing. passes: another try may bring more. stops: nor will another row."""

    why: str
    passes: bool = True
    stops: bool = False
    is_throttled: bool = False
    wait_s: float | None = None


class ApiExtender:
    """Asks a service, rows_at_once requests at a time; holds no connection open."""

    def __init__(
        self,
        form: WireForm,
        service: Service,
        *,
        seed: int,
        pace: Pace,
        breaker: Breaker,
        rows_at_once: int,
        timeout_s: float,
        max_tries: int,
        first_wait_s: float = 1.0,
    ) -> None:
        self.name = form.name
        self.settings: Mapping[str, JsonValue] = {"seed": seed}
        self._form = form
        self._service = service
        self._seed = seed
        self._pace = pace
        self._breaker = breaker
        self._rows_at_once = rows_at_once
        self._timeout_s = timeout_s
        self._max_tries = max_tries
        self._first_wait_s = first_wait_s

    def model_for(self, messages: Messages) -> str:
        """The one that sees, where there are pictures."""
        return self._service.image_model if has_pictures(messages) else self._service.model

    def ask(self, asked: Sequence[Messages], on_reply: OnReply) -> list[Reply | ExtenderError]:
        """The outcome of each. RunStoppedError when the service refuses the key or does not know the model."""
        stopped = threading.Event()

        def answered(position: int, messages: Messages) -> Reply | ExtenderError:
            try:
                outcome = self._asked(messages, stopped)
            except RunStoppedError:
                stopped.set()
                raise
            if isinstance(outcome, Reply):
                on_reply(position, outcome)
            return outcome

        pool = ThreadPoolExecutor(min(self._rows_at_once, max(1, len(asked))), thread_name_prefix="wan-ray-ask")
        try:
            asking = [pool.submit(answered, position, messages) for position, messages in enumerate(asked)]
            wait(asking, return_when=FIRST_EXCEPTION)
        finally:
            # What was sent is paid for: its answer is waited for and handed on, whatever ended this.
            stopped.set()
            pool.shutdown(wait=True)
        for failed in filter(None, (one.exception() for one in asking)):
            raise failed
        return [one.result() for one in asking]

    def _asked(self, messages: Messages, stopped: threading.Event) -> Reply | ExtenderError:
        wait_s, tries = self._first_wait_s, 0
        while True:
            if stopped.is_set():
                return ExtenderError(f"{self.name} was not asked: the run ended")
            if (trouble := self._breaker.why_open()) is not None:
                return ExtenderError(f"{self.name} is left alone for a while after failing so often, last: {trouble}")
            tries += 1
            found = self._ask_once(messages, stopped)
            if isinstance(found, Reply):
                self._breaker.succeeded()
                return found
            why = f"{self.name}: {found.why}"
            if found.stops:
                raise RunStoppedError(f"{why}; check {self._form.key_name}, the model and base_url")
            if not found.passes:
                return ExtenderError(why)
            if not found.is_throttled:
                self._breaker.failed(why)
            pause_s = wait_s * random.uniform(0.5, 1) if found.wait_s is None else found.wait_s
            if tries >= self._max_tries or pause_s > _MAX_WAIT_S:
                return ExtenderError(f"{why} (tried {tries} times)")
            if found.is_throttled:
                self._pace.hold(pause_s)
            logger.warning("%s; trying again in %.1f s", why, pause_s)
            if stopped.wait(pause_s):
                return ExtenderError(f"{why} (the run ended)")
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    def _ask_once(self, messages: Messages, stopped: threading.Event) -> Reply | _Refusal:
        path, body = self._form.request(messages, model=self.model_for(messages), seed=self._seed)
        permit, num_tokens = self._pace.begin(_about_tokens(messages), stopped), None
        if permit is None:
            return _Refusal(why="the run ended", passes=False)
        try:
            found = self._sent(f"{self._service.base_url.rstrip('/')}/{path}", body)
            if isinstance(found, Reply):
                num_tokens = found.num_tokens or None
            return found
        finally:
            self._pace.end(permit, num_tokens)

    def _sent(self, url: str, body: Mapping[str, JsonValue]) -> Reply | _Refusal:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._service.key:
            headers["Authorization"] = f"Bearer {self._service.key}"
        request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self._timeout_s) as response:
                data = _read(response, time.monotonic() + self._timeout_s)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return _Refusal(why=self._masked(f"{type(error).__name__}: {error}".removesuffix(": ")))
        try:
            reply = self._form.reply(json.loads(data))
            reply.text.encode()  # JSON can hold half a character, which no file can
        except (ValueError, TypeError, LookupError) as error:
            return _Refusal(why=self._masked(f"an answer without a rewrite ({error!r}): {_excerpt(data)}"))
        return reply if reply.text.strip() else _Refusal(why="an empty rewrite")

    def _refused(self, error: urllib.error.HTTPError) -> _Refusal:
        with error:
            try:
                told = _excerpt(error.read(2000))
            except (OSError, http.client.HTTPException):
                told = ""
        return _Refusal(
            why=self._masked(f"HTTP {error.code} {told}".rstrip()),
            passes=error.code in _PASSES or error.code >= 500,
            stops=error.code in _STOPS,
            is_throttled=error.code == 429,
            wait_s=_retry_after(error.headers.get("Retry-After")),
        )

    def _masked(self, text: str) -> str:
        """Services repeat a wrong key in what they answer."""
        text = text.replace(self._service.key, "***") if self._service.key else text
        return without_secrets(text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    # urllib names its arguments, of which none is needed.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(response: Any, ends_at: float) -> bytes:
    """The whole body; TimeoutError when it trickles beyond the end, ValueError when it is too long to be a rewrite."""
    data = b""
    while chunk := response.read1(65536):
        data += chunk
        if time.monotonic() > ends_at:
            raise TimeoutError("the answer took too long")
        if len(data) > _MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
    return data


def _retry_after(value: str | None) -> float | None:
    """Seconds from now of a Retry-After header, which may also be a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _excerpt(data: bytes) -> str:
    return shown(" ".join(data.decode("utf-8", "replace").split())[:200])


def _about_tokens(messages: Messages) -> int:
    """A token is about three bytes of any language's text."""
    text = sum(len(message.text.encode("utf-8", "replace")) for message in messages) // 3
    return text + _REPLY_TOKENS + _PICTURE_TOKENS * sum(len(message.pictures) for message in messages)
