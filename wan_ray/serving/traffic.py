"""Counts of what a process answered over HTTP, for /metrics."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """By (method, route, status): how many answers, and the seconds they took until their last byte."""

    answers: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    seconds: defaultdict[tuple[str, str, int], float] = field(default_factory=lambda: defaultdict(float))

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer; status 0 is one that broke off before it began."""
        key = (method if method in _METHODS else "other", route, status)
        self.answers[key] += 1
        self.seconds[key] += seconds


_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})
