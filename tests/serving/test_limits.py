from dataclasses import dataclass

import pytest

from wan_ray.serving.api_error import ApiError
from wan_ray.serving.limits import RateLimiter


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_gets_its_requests_a_minute_and_no_more() -> None:
    clock = Clock()
    limiter = RateLimiter(3, clock=clock)
    for clock.now in (0.0, 10.0, 20.0):
        limiter.check("alice")
    clock.now = 30.5
    with pytest.raises(ApiError) as caught:
        limiter.check("alice")
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers["retry-after"] == "30"  # the first request leaves the window at 60
    limiter.check("bob")


def test_after_the_time_it_says_there_is_room_for_what_left_the_window() -> None:
    clock = Clock()
    limiter = RateLimiter(2, clock=clock)
    limiter.check("alice")
    clock.now = 40.0
    limiter.check("alice")
    for clock.now in (59.9, 59.99):  # being refused does not count
        with pytest.raises(ApiError):
            limiter.check("alice")
    clock.now = 60.0
    limiter.check("alice")
    with pytest.raises(ApiError) as caught:
        limiter.check("alice")
    assert caught.value.headers["retry-after"] == "40"


def test_in_no_minute_are_there_more_than_allowed() -> None:
    clock = Clock()
    limiter = RateLimiter(50, clock=clock)
    passed = []
    for tick in range(2000):
        clock.now = tick * 0.1
        try:
            limiter.check("alice")
            passed.append(clock.now)
        except ApiError:
            pass
    assert all(sum(start <= one < start + 60 for one in passed) <= 50 for start in passed)
    assert len(passed) == 200  # 200 s: fifty at the start of each minute
