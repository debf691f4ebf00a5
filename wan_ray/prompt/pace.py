"""Pace: how fast a service may be asked, and when it is left alone. Shared by all threads that ask it."""

import threading
import time
from collections import deque
from dataclasses import dataclass

_LOOK_S = 0.5


@dataclass(kw_only=True)
class _Permit:
    """One request. It counts from when it is sent until a window after it has ended, whatever the way took."""

    num_tokens: int
    ended_at: float | None = None


class Pace:
    """At most so many requests and tokens in any window, as the service counts them.

    A request that alone is more than the limit of tokens is let through when nothing else counts.
    """

    def __init__(
        self, *, requests_per_window: int | None = None, tokens_per_window: int | None = None, window_s: float = 60.0
    ) -> None:
        self._max_requests = requests_per_window
        self._max_tokens = tokens_per_window
        self._window_s = window_s
        self._permits: deque[_Permit] = deque()
        self._held_until = 0.0
        self._changed = threading.Condition()

    def begin(self, num_tokens: int, stopped: threading.Event) -> _Permit | None:
        """Waits until a request of about so many tokens may be sent; its permit, for end(). None once stopped."""
        with self._changed:
            while (wait_s := self._wait_s(num_tokens)) > 0:
                if stopped.is_set():
                    return None
                self._changed.wait(min(wait_s, _LOOK_S))
            permit = _Permit(num_tokens=num_tokens)
            self._permits.append(permit)
            return permit

    def end(self, permit: _Permit, num_tokens: int | None = None) -> None:
        """The request has ended; num_tokens is what it really cost, where that is known."""
        with self._changed:
            permit.ended_at = time.monotonic()
            if num_tokens is not None:
                permit.num_tokens = num_tokens
            self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """The service asks to be left alone for so long: nobody sends until then."""
        with self._changed:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def _wait_s(self, num_tokens: int) -> float:
        """0 when a request may go now; else after how long to look again."""
        now = time.monotonic()
        self._permits = deque(p for p in self._permits if p.ended_at is None or now - p.ended_at < self._window_s)
        if now < self._held_until:
            return self._held_until - now
        too_many = self._max_requests is not None and len(self._permits) >= self._max_requests
        in_window = sum(permit.num_tokens for permit in self._permits)
        too_long = self._max_tokens is not None and in_window > 0 and in_window + num_tokens > self._max_tokens
        if not too_many and not too_long:
            return 0.0
        ends = [p.ended_at + self._window_s - now for p in self._permits if p.ended_at is not None]
        return max(min(ends, default=self._window_s), 0.001)


class Breaker:
    """Opens after so many failures in a row; then nothing is tried for a while, and one request after that decides."""

    def __init__(self, *, max_failures: int = 20, pause_s: float = 60.0) -> None:
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._failures = 0
        self._open_until = 0.0
        self._why = ""
        self._lock = threading.Lock()

    def why_open(self) -> str | None:
        """The last failure while nothing is to be tried; None when a request may be sent."""
        with self._lock:
            now = time.monotonic()
            if self._failures < self._max_failures:
                return None
            if now < self._open_until:
                return self._why
            self._open_until = now + self._pause_s  # this caller tries; the others wait for what becomes of it
            return None

    def succeeded(self) -> None:
        """The service answered."""
        with self._lock:
            self._failures = 0

    def failed(self, why: str) -> None:
        """The service did not answer, or not with sense."""
        with self._lock:
            self._failures += 1
            self._why = why
            if self._failures >= self._max_failures:
                self._open_until = time.monotonic() + self._pause_s
