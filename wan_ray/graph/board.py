"""Board: where workers note what they begin and finish, and the driver reads it. One actor per run."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """A stage took an item (seconds is None) or was done with it; error is what went wrong, if anything."""

    stage: str
    id: str
    seconds: float | None = None
    error: str | None = None


class Board:
    """Keeps events until they are fetched, and how many items are inside each stage."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._inside: Counter[str] = Counter()

    def note(self, event: Event) -> None:
        """Add one event."""
        self._events.append(event)
        self._inside[event.stage] += 1 if event.seconds is None else -1

    def fetch(self) -> tuple[list[Event], dict[str, int]]:
        """Events since the last fetch, and the items inside each stage now."""
        events, self._events = self._events, []
        return events, dict(self._inside)
