"""The denoise stage's operator: it leads a gang, tries rows again on a new one, and keeps what clips have reached."""

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

import ray

from wan_ray.config import ModelSection, StagesSection
from wan_ray.errors import ClipStoppedError, ConfigError, GangError, RunStoppedError
from wan_ray.graph.board import BoardHandle, GangState
from wan_ray.graph.gang import Beat, Gang, RankClass
from wan_ray.graph.operator import Stage, Worker, without_tensors
from wan_ray.graph.placement import draining_nodes, gang_of, group_name, rank_resources
from wan_ray.graph.rank import Rank
from wan_ray.graph.shelf import Shelf
from wan_ray.stages.items import Item, Row

logger = logging.getLogger(__name__)

_LOOK_S = 2.0  # between looks at the nodes
_IDLE_S = 300.0
_END_S = 60.0  # for a driver that is interrupted to end its workers itself


class Denoise:
    """The operator. It is apart from the leader so that nothing else refers to it: Ray Data ends it by dropping it."""

    def __init__(
        self,
        *,
        model: ModelSection,
        stages: StagesSection,
        output: str | None,
        board: BoardHandle,
        run_id: str,
        rank_class: type[RankClass] = Rank,
        idle_s: float = _IDLE_S,
    ) -> None:
        section = gang_of(model)
        model = model.model_copy(update={"gang": section})
        worker = Worker("denoise", board)
        gang = Gang(
            rank_class,
            {"model": model, "gang": section},
            name=group_name(run_id, worker.id),
            degrees=section.degrees,
            resources=rank_resources(stages.denoise),
            timeout_s=section.timeout_s,
            leaner={"model": model.leaner or model},
        )
        self._leader = Leader(gang, worker, Shelf(output), max_tries=section.max_tries)
        self._leader.start(stages, idle_s=idle_s)

    def __call__(self, row: Row) -> Row:
        return self._leader(row)

    def __del__(self) -> None:
        self._leader.close()


class Leader:
    """Leads one gang. It holds no model, so that what kills a rank leaves this alive.

    It ends its process by os._exit(1) only: then Ray starts it anew and gives it its rows again. An exception while it
    starts anew would end the run, and any other end would lose its rows.
    """

    def __init__(self, gang: Gang, worker: Worker, shelf: Shelf, *, max_tries: int) -> None:
        self._gang = gang
        self._worker = worker
        self._stage = Stage(self._run, worker)
        self._shelf = shelf
        self._max_tries = max_tries
        self._clip: Item | None = None
        self._beat = Beat(step=0, num_steps=0)
        self._why: str | None = None
        self._told: ray.ObjectRef | None = None
        self._run_ends = self._asked = False
        self._notice: str | None = None
        self._looked_at = 0.0
        self._busy = threading.Lock()
        self._idle_since = time.monotonic()

    def start(self, stages: StagesSection, *, idle_s: float) -> None:
        """Return when the gang has its place on the cluster; a gang beyond the least number waits for the others."""
        signal.signal(signal.SIGTERM, self._take_notice)
        if self._worker.position >= stages.denoise.replicas.min:
            self._await_others(stages)
            threading.Thread(target=self._end_when_idle, args=[idle_s], name="wan-ray-idle", daemon=True).start()
        self._build(None)

    def close(self) -> None:
        """Kill the ranks and give their place back."""
        self._gang.close()
        self._worker.board.forget.remote(self._worker.id)

    def __call__(self, row: Row) -> Row:
        with self._busy:
            try:
                return self._stage(row)
            finally:
                self._clip, self._beat = None, Beat(step=0, num_steps=0)
                self._tell()
                self._idle_since = time.monotonic()

    def _run(self, row: Row) -> Row:
        """The denoised row. GangError when it has cost max_tries gangs, RunStoppedError when none can be started."""
        self._clip = without_tensors(row)
        saved = self._shelf.find(self._clip)
        given, resume = ray.put(row), None if saved is None else ray.put(saved)
        tries = 0
        while True:
            self._await_gang()
            try:
                return self._gang.run(given, resume, watch=self._watch)
            except ClipStoppedError as stopped:
                self._shelf.put(self._gang.saved())
                self._move(str(stopped))
            except GangError as error:
                tries += 1
                self._build(str(error))
                if tries == self._max_tries:
                    raise GangError(f"killed its gang {tries} times: {error}") from None
            if self._shelf.latest is not None:
                resume = ray.put(self._shelf.latest)

    def _await_gang(self) -> None:
        """Return when the gang is ready, after max_tries starts at most. RunStoppedError when it never is."""
        failures = 0
        while True:
            try:
                self._gang.ready()
                break
            except ConfigError as error:
                raise RunStoppedError(str(error)) from None
            except GangError as error:
                failures += 1
                if failures == self._max_tries:
                    raise RunStoppedError(f"no gang could be started in {failures} tries: {error}") from None
                self._build(str(error))
        self._tell()

    def _build(self, why: str | None) -> None:
        """Have a gang started in place of the one that is there, if any; why that one had to end."""
        if why is not None:
            logger.warning("building the gang anew: reason=%s", why)
            self._why = why
        self._beat = Beat(step=0, num_steps=0)
        self._gang.kill()
        self._tell()
        self._gang.build(self._while_waiting)
        self._tell()

    def _while_waiting(self) -> None:
        self._tell()
        if self._notice is not None:
            self._leave()

    def _watch(self, beats: Mapping[int, Beat]) -> None:
        """Once a second while a clip is denoised: tell the board, keep what rank 0 saved, look for notices."""
        first = beats.get(0)
        if first is not None:
            if first.saves > self._beat.saves:
                self._shelf.put(self._gang.saved())
            self._beat = first
        self._tell()
        self._asked = self._asked or self._should_stop(beats)

    def _should_stop(self, beats: Mapping[int, Beat]) -> bool:
        """Ask the gang to stop if there is a reason."""
        why = self._notice or next((beat.notice for beat in beats.values() if beat.notice), None)
        if why is None and self._run_ends:
            why = "the run ends"
        if why is None and time.monotonic() - self._looked_at > _LOOK_S:
            self._looked_at = time.monotonic()
            leaving = draining_nodes()
            if ray.get_runtime_context().get_node_id() in leaving:
                why = self._notice = "the leader's node is being taken away"
            elif leaving & self._gang.nodes():
                why = "a node of the gang is being taken away"
        if why is not None:
            self._gang.stop(why)
        return why is not None

    def _move(self, why: str) -> None:
        """After a stop: go on in another place, or end this worker or the run, whichever the notice was for."""
        self._asked = False
        self._shelf.flush()
        if self._run_ends:
            self._clip, self._beat = None, Beat(step=0, num_steps=0)
            self._tell()
            time.sleep(_END_S)
            raise RunStoppedError(why)
        if self._notice is not None:
            self._leave()
        self._gang.close()
        self._build(why)

    def _leave(self) -> NoReturn:
        """End this process, so that Ray starts it where it may live, with the same rows."""
        ray.get(self._worker.board.leave.remote(self._worker.id))
        self._gang.close()
        os._exit(1)

    def _take_notice(self, number: int, _: object) -> None:
        self._notice = f"the leader was sent {signal.Signals(number).name}"
        if not self._busy.locked():  # the gang's place is found again by its name
            os._exit(1)

    def _tell(self) -> None:
        """Tell the board how the gang is; whether the run ends is learnt a second later, without waiting for it."""
        if self._told is not None and ray.wait([self._told], timeout=0)[0]:
            self._run_ends = ray.get(self._told)
        state = GangState(
            worker=self._worker.id,
            epoch=self._gang.epoch,
            ranks=tuple(map(str, self._gang.places)),
            why=self._why,
            id=self._clip.id if self._clip else None,
            step=self._beat.step,
            num_steps=self._beat.num_steps,
        )
        self._told = self._worker.board.tell.remote(state)

    def _await_others(self, stages: StagesSection) -> None:
        """Return when the other stages have their workers, whose place this must not take."""
        least = {name: getattr(stages, name).replicas.min for name in ("encode", "decode", "publish")}
        while True:
            joined: Mapping[str, int] = ray.get(self._worker.board.joined.remote())
            if all(joined.get(name, 0) >= number for name, number in least.items()):
                return
            time.sleep(1.0)

    def _end_when_idle(self, idle_s: float) -> None:
        """Give the place back when no row has come for long: a worker of another stage may be waiting for it."""
        while time.monotonic() - self._idle_since < idle_s or not self._busy.acquire(blocking=False):
            time.sleep(1.0)
        self._gang.close()
        os._exit(1)
