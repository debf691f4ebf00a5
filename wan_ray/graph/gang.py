"""Gang: all ranks of one model copy, in one placement group. It fails, is killed and is built anew as one."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from wan_ray.degrees import Degrees
from wan_ray.errors import ClipStoppedError, ConfigError, GangError, OutOfMemoryError
from wan_ray.graph.placement import Resources, bundle_of_rank, reserve_group

logger = logging.getLogger(__name__)

_BEAT_S = 0.5
_CONTROL = "control"
_MISSED_BEATS = 6
_ALIVE_S = 10.0  # for an idle rank to answer
_CAUSE_S = 2.0  # for the rank that died to be told from those that lost it

# Ray types an actor method as a plain function, without `.remote`: hence Any.
RankHandle = Any


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank's process is; node is Ray's id."""

    node: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank says of itself. saves counts what there was to save of its clip; notice: why it should stop."""

    step: int
    num_steps: int
    saves: int = 0
    notice: str | None = None


class RankClass(Protocol):
    """What runs in a rank's process. All but reserve, load and run are called while one of these runs."""

    def place(self) -> Place:
        """Where this is."""

    def reserve(self) -> str:
        """Rank 0: the address where the ranks are to meet."""

    def load(self, address: str, former: Sequence[Place]) -> None:
        """Meet the others and load the model, once the former ranks' processes have ended."""

    def run(self, row: Any, resume: bytes | None) -> Any:
        """This rank's part of one clip; rank 0 returns the whole."""

    def beat(self) -> Beat:
        """How far this is."""

    def saved(self) -> bytes | None:
        """Rank 0: what was last saved of its clip."""

    def stop(self, why: str) -> None:
        """Rank 0: have all ranks raise ClipStoppedError out of run at the next step boundary."""


Watch = Callable[[Mapping[int, Beat]], None]


class Gang:
    """A leader owns it and closes it. The placement group is found again by its name, so a leader may come back.

    arguments go to the rank class, after the rank's number; leaner ones take their place in every gang after one of
    which a rank had not the memory. timeout_s bounds loading, and each step of a call. A group that is given stays
    another's, and its first bundle is the leader's.
    """

    def __init__(
        self,
        rank_class: type[RankClass],
        arguments: Mapping[str, Any],
        *,
        name: str,
        degrees: Degrees,
        resources: Resources,
        timeout_s: float,
        group: PlacementGroup | None = None,
        leaner: Mapping[str, Any] | None = None,
    ) -> None:
        # Ray's types know neither concurrency groups nor the class that comes back.
        remote: Any = ray.remote
        self._actor: Any = remote(concurrency_groups={_CONTROL: 1})(rank_class)
        self._arguments = arguments
        self._leaner = leaner or {}
        self._name = name
        self._degrees = degrees
        self._resources = resources
        self._timeout_s = timeout_s
        self._group = group
        self._num_others = 0 if group is None else 1
        self._ranks: list[RankHandle] = []
        self._locating: list[ray.ObjectRef] = []
        self._loading: list[ray.ObjectRef] = []
        self._places: dict[int, Place] = {}
        self._former: list[Place] = []
        self.epoch = 0

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the ranks are, as far as they have said."""
        found, _ = ray.wait(self._locating, num_returns=len(self._locating), timeout=0) if self._locating else ([], [])
        for ref in found:
            rank = self._locating.index(ref)
            if rank not in self._places:
                try:
                    self._places[rank] = ray.get(ref)
                except RayError:  # it died before it could say
                    continue
        return tuple(self._places[rank] for rank in sorted(self._places))

    def build(self, waiting: Callable[[], None]) -> None:
        """Start the ranks and have them load, without awaiting it.

        Until there is room for them on the cluster, however long that takes, waiting() is called every second.
        """
        self.kill()
        self._group = self._group or reserve_group(self._name, self._degrees, self._resources)
        while not self._group.wait(_BEAT_S):
            waiting()
        self.epoch += 1
        for rank, bundle in enumerate(bundle_of_rank(self._group, self._degrees, num_others=self._num_others)):
            actor = self._actor.options(
                num_cpus=self._resources.cpus,
                num_gpus=self._resources.gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
            )
            self._ranks.append(actor.remote(rank, **self._arguments))
        self._locating = [rank.place.options(concurrency_group=_CONTROL).remote() for rank in self._ranks]
        address = self._ranks[0].reserve.remote()
        self._loading = [rank.load.remote(address, self._former) for rank in self._ranks]

    def ready(self) -> None:
        """Return when all ranks have loaded and live. GangError when they do not, ConfigError when they must not."""
        if not self._ranks:
            raise GangError("it was killed")
        if self._loading:
            self._results(self._loading, doing="load")
            self._loading = []
            ray.wait(self._locating, num_returns=len(self._locating), timeout=_ALIVE_S)
            return
        answers = [rank.beat.options(concurrency_group=_CONTROL).remote() for rank in self._ranks]
        answered, _ = ray.wait(answers, num_returns=len(answers), timeout=_ALIVE_S)
        for number, ref in enumerate(answers):
            try:
                if ref in answered:
                    ray.get(ref)
                    continue
                reason = f"does not answer in {_ALIVE_S:g} s"
            except RayError as error:
                reason = _cause(error)
            named = self._named(number)
            self.kill()
            raise GangError(f"{named} {reason}, while idle")

    def run(self, row: Any, resume: ray.ObjectRef | bytes | None, *, watch: Watch) -> Any:
        """Rank 0's result of one clip, which may go on from what was saved of it; both may be references.

        watch(beats by rank) is called about once a second meanwhile. GangError, with every rank killed, once one
        dies, raises, or finishes no step for timeout_s. ClipStoppedError, with the ranks alive, when they stopped as
        asked.
        """
        return self._results([rank.run.remote(row, resume) for rank in self._ranks], doing="step", watch=watch)[0]

    def stop(self, why: str) -> None:
        """Ask the ranks to stop at a step boundary; run() then raises ClipStoppedError."""
        self._ranks[0].stop.options(concurrency_group=_CONTROL).remote(why)

    def saved(self) -> bytes | None:
        """What rank 0 last saved of its clip; None when there is nothing, or it is gone."""
        try:
            return ray.get(self._ranks[0].saved.options(concurrency_group=_CONTROL).remote(), timeout=_ALIVE_S)
        except RayError:
            return None

    def nodes(self) -> set[str]:
        """Ids of the nodes where the ranks have their place."""
        return set(placement_group_table(self._group)["bundles_to_node_id"].values()) if self._group else set()

    def kill(self) -> None:
        """End all ranks at once. The placement group stays."""
        if self._ranks:
            self._former = list(self.places)
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)
        self._ranks, self._locating, self._loading, self._places = [], [], [], {}

    def close(self) -> None:
        """Kill the ranks and give their place back."""
        self.kill()
        if self._group is not None and not self._num_others:
            remove_placement_group(self._group)
            self._group = None

    def _results(self, calls: list[ray.ObjectRef], *, doing: str, watch: Watch | None = None) -> list[Any]:
        pending = {ref: number for number, ref in enumerate(calls)}
        results: dict[int, Any] = {}
        stopped: str | None = None
        pulse = _Pulse(self._ranks)
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=_BEAT_S)
            for ref in done:
                number = pending.pop(ref)
                try:
                    results[number] = ray.get(ref)
                except RayError as error:
                    if not isinstance(raised_in(error), ClipStoppedError):
                        raise self._failed(number, error, pending, pulse) from None
                    stopped = str(raised_in(error))
            if done:
                continue
            pulse.take(pending.values())
            silent = pulse.silent(pending.values(), self._timeout_s)
            if silent is not None:
                told = f"{self._named(silent)} did not finish to {doing} in {self._timeout_s:g} s"
                self.kill()
                raise GangError(told if pulse.answers(silent) else f"{told}, and does not answer")
            if watch is not None:
                watch(pulse.beats)
        if stopped is not None:
            raise ClipStoppedError(stopped)
        return [results[number] for number in range(len(calls))]

    def _failed(
        self, number: int, error: RayError, pending: Mapping[ray.ObjectRef, int], pulse: "_Pulse"
    ) -> GangError | ConfigError:
        """What to raise when a rank's call has failed: the cause, which may be another rank's. Kills them all."""
        failures = {number: error}
        told, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_CAUSE_S) if pending else ([], [])
        for ref in told:
            try:
                ray.get(ref)
            except RayError as other:
                failures[pending[ref]] = other
        if any(isinstance(raised_in(failure), OutOfMemoryError) for failure in failures.values()):
            self._arguments = {**self._arguments, **self._leaner}
        number, error = min(failures.items(), key=lambda failure: not isinstance(failure[1], RayActorError))
        cause, origin = f"{self._named(number)} {_cause(error)}", raised_in(error)
        mute = [other for other in pending.values() if other not in failures and not pulse.answers(other)]
        if mute:  # a stopped process fails the others first, whose exchange with it timed out
            cause = f"{self._named(mute[0])} does not answer; {cause}"
        self.kill()
        return origin if isinstance(origin, ConfigError) else GangError(cause)

    def _named(self, number: int) -> str:
        _ = self.places
        return f"rank {number}" + (f" at {self._places[number]}" if number in self._places else "")


class _Pulse:
    """When each rank last answered and last finished a step; asked once a second at most, and never twice at once."""

    def __init__(self, ranks: Sequence[RankHandle]) -> None:
        self._ranks = ranks
        self._asked: dict[int, ray.ObjectRef] = {}
        self._heard = dict.fromkeys(range(len(ranks)), time.monotonic())
        self._moved = dict(self._heard)
        self.beats: dict[int, Beat] = {}

    def take(self, numbers: Iterable[int]) -> None:
        """Hear those that have answered, and ask them again."""
        for number in numbers:
            asked = self._asked.get(number)
            if asked is not None:
                if not ray.wait([asked], timeout=0)[0]:
                    continue
                self._hear(number, asked)
            self._asked[number] = self._ranks[number].beat.options(concurrency_group=_CONTROL).remote()

    def _hear(self, number: int, answer: ray.ObjectRef) -> None:
        try:
            beat: Beat = ray.get(answer)
        except RayError:  # its call fails as well, and tells more
            return
        self._heard[number] = time.monotonic()
        before = self.beats.get(number)
        if before is None or beat.step != before.step:
            self._moved[number] = time.monotonic()
        self.beats[number] = beat

    def silent(self, numbers: Iterable[int], timeout_s: float) -> int | None:
        """A rank that finished no step for so long: of several, the one that was longest not heard."""
        late = [number for number in numbers if time.monotonic() - self._moved[number] > timeout_s]
        return min(late, key=lambda number: self._heard[number], default=None)

    def answers(self, number: int) -> bool:
        """Whether the rank still says how far it is."""
        return time.monotonic() - self._heard[number] < _MISSED_BEATS * _BEAT_S


def raised_in(error: Exception) -> BaseException:
    """What was raised in another process, where something was."""
    return error.cause if isinstance(error, RayTaskError) else error


def _cause(error: RayError) -> str:
    """What happened to a rank, in a line, from what Ray says."""
    if isinstance(error, RayTaskError):
        return f"raised {type(error.cause).__name__}: {error.cause}"
    lines = [line for line in str(error).splitlines() if line.startswith("The actor")]
    return f"died: {(lines or [str(error)])[-1].partition('. ')[0]}"
