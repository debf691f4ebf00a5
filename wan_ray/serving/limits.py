"""How often one key may ask, and how much a request may say before its body.

What its body may hold is bounded where it is read: forms.py, fields.py, accept.py, pictures.py.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from starlette.requests import Request

from wan_ray.serving.api_error import ApiError

MAX_HEADER_BYTES = 32_768
_WINDOW_S = 60.0


class RateLimiter:
    """At most per_minute requests of an owner in any 60 seconds, in this process; any thread may ask."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._times: dict[str, deque[float]] = {}  # as many as there are keys, each of per_minute times at most
        self._lock = threading.Lock()

    def check(self, owner: str) -> None:
        """Count a request; ApiError 429, which is not counted, says in retry-after when there is room for one."""
        with self._lock:
            now = self._clock()
            times = self._times.setdefault(owner, deque())
            while times and times[0] <= now - _WINDOW_S:
                times.popleft()
            if len(times) < self._per_minute:
                times.append(now)
                return
            wait_s = math.ceil(times[0] + _WINDOW_S - now)
        raise ApiError(
            429,
            "rate_limit_exceeded",
            f"{self._per_minute} requests a minute are allowed to this key; try again in {wait_s} s",
            headers={"retry-after": str(wait_s), "x-should-retry": "true"},
        )


def check_head(request: Request) -> None:
    """ApiError for more than MAX_HEADER_BYTES of headers (431), and for several hosts (400)."""
    headers = request.headers
    num_bytes = sum(len(name) + len(value) for name, value in headers.raw)
    if num_bytes > MAX_HEADER_BYTES:
        raise ApiError(431, "headers_too_large", f"the headers are {num_bytes} bytes; send {MAX_HEADER_BYTES} or less")
    if len(headers.getlist("host")) > 1:
        raise ApiError(400, "invalid_host", "there are several Host headers; send one")
