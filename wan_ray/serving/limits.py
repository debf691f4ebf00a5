"""How often one key may ask. What one request may ask for is bounded where it is read: fields.py, pictures.py."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable

from wan_ray.serving.api_error import ApiError

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
