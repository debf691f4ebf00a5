"""Board: where workers say what they begin and finish, and the driver reads it. One actor per run."""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

# Ray types an actor method as a plain function, without `.remote`: hence Any.
BoardHandle = Any

_MAX_EVENTS = 100_000  # kept when nobody fetches them, as in a user's own pipeline


@dataclass(frozen=True, kw_only=True)
class Event:
    """A worker took an item (seconds is None), was done with it, or died in it (died); error is what went wrong."""

    stage: str
    id: str
    worker: str
    seconds: float | None = None
    error: str | None = None
    died: bool = False


@dataclass(frozen=True, kw_only=True)
class GangState:
    """A gang as its leader last saw it. epoch counts how often it was built; why: what ended the epoch before.

    ranks: "host:pid" of each, none while it waits for its place or starts. id, step, num_steps: the clip it works on.
    """

    worker: str
    epoch: int
    ranks: tuple[str, ...] = ()
    why: str | None = None
    id: str | None = None
    step: int = 0
    num_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a run does now: events since the last one, items inside each stage that ever had one, and the gangs."""

    events: list[Event]
    inside: dict[str, int]
    gangs: list[GangState]


class Board:
    """Knows what each worker is inside of, so that it notices a worker that died there when that worker comes back."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._inside: dict[str, Event] = {}
        self._stages: set[str] = set()
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._workers: dict[str, list[str]] = {}
        self._gangs: dict[str, GangState] = {}
        self._stopping = False

    def join(self, stage: str, worker: str) -> int:
        """How many workers of the stage joined before this one; the same again when it comes back."""
        workers = self._workers.setdefault(stage, [])
        if worker not in workers:
            workers.append(worker)
        return workers.index(worker)

    def joined(self) -> dict[str, int]:
        """How many workers of each stage have joined."""
        return {stage: len(workers) for stage, workers in self._workers.items()}

    def begin(self, event: Event) -> int:
        """A worker takes an item: how many workers have died in it at this stage."""
        left = self._inside.get(event.worker)
        if left is not None:
            self._deaths[left.stage, left.id] += 1
            self._events.append(Event(stage=left.stage, id=left.id, worker=left.worker, died=True))
        self._events.append(event)
        self._inside[event.worker] = event
        self._stages.add(event.stage)
        return self._deaths[event.stage, event.id]

    def end(self, event: Event) -> None:
        """A worker is done with its item, and no longer inside."""
        self._events.append(event)
        self._inside.pop(event.worker, None)
        self._deaths.pop((event.stage, event.id), None)

    def leave(self, worker: str) -> None:
        """The worker puts its item back and ends, which is no death."""
        self._inside.pop(worker, None)

    def tell(self, gang: GangState) -> bool:
        """Take a gang's state in place of its last; True when the run is being stopped."""
        self._gangs[gang.worker] = gang
        return self._stopping

    def forget(self, worker: str) -> None:
        """The worker's gang is no more."""
        self._gangs.pop(worker, None)

    def stop(self) -> None:
        """Tell gangs to save what they have and end."""
        self._stopping = True

    def num_stepping(self) -> int:
        """How many gangs are between a clip's first and last step."""
        return sum(gang.num_steps > 0 for gang in self._gangs.values())

    def fetch(self) -> Snapshot:
        """What there is to see; each event is handed out once."""
        events = list(self._events)
        self._events.clear()
        inside = Counter(event.stage for event in self._inside.values())
        return Snapshot(
            events=events,
            inside={stage: inside[stage] for stage in sorted(self._stages)},
            gangs=list(self._gangs.values()),
        )
