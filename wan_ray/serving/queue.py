"""JobQueue: which job runs when, and each job's way to its end: rendered, failed, cancelled, or past its deadline.

It keeps nothing that is not in the store: a new queue finds the pending jobs there. It renders nothing itself, but
hands items to lanes, one for each model. Queues over one store at once share the jobs by claims, as batch runs do.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from wan_ray.config import RenderConfig
from wan_ray.errors import (
    CancelledError,
    ClipStoppedError,
    DeadlineError,
    QueueFullError,
    StageError,
    StorageError,
    WanRayError,
)
from wan_ray.serving.backend import Live, QueueView
from wan_ray.serving.jobs import Job, JobStore
from wan_ray.stages.items import Item, Row
from wan_ray.stages.publish import make_record
from wan_ray.stages.read import read_row
from wan_ray.storage.claims import Claims
from wan_ray.storage.records import Record
from wan_ray.storage.runs import alive

logger = logging.getLogger(__name__)

Tell = Callable[[Job, Record], Awaitable[bool]]

_MAX_TRIES = 3  # of a job whose workers die
_PLACE_KEPT_S = 600.0  # for a job that was admitted to be stored and submitted, should its process end
_RESCAN_S = 20.0
_OTHERS_WAIT_S = 5.0  # for another queue to end a job that it has claimed, or to die
_STORE_WAIT_S = 1.0  # the store itself was patient for minutes
_TELL_WAIT_S = (2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)
_STRANGER = "another worker has this job now"


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One model. run(row, token) renders a row to its committed record, on one of `slots` places.

    Whoever denoises calls beat() with the token, and stops when that says so, raising ClipStoppedError out of run. What
    is no fault of the row's raises StageError.
    """

    slots: int
    run: Callable[[Row, str], Awaitable[Record]]


@dataclass(kw_only=True)
class _Run:
    """A job that is in a lane. why: it is to stop."""

    job: Job
    lane: str
    token: str
    step: int = 0
    num_steps: int = 0
    why: str | None = None


@dataclass(kw_only=True)
class _Waiting:
    job: Job
    item: Item
    tries: int = 0
    not_before: float = 0.0  # of time.monotonic()

    @property
    def order(self) -> tuple[int, str]:
        return (self.job.priority, self.job.id)

    @property
    def lane(self) -> str:
        return self.item.sound.variant


@dataclass(kw_only=True)
class _State:
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    running: dict[str, _Run] = field(default_factory=dict)
    settling: set[str] = field(default_factory=set)
    admitted: list[tuple[float, str]] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)


class JobQueue:
    """Implements Backend. start() before use, close() at the end; all in one event loop, but beat(), which any may.

    grace_s: how long a new queue waits before it has jobs of an earlier one rendered, whose workers stop meanwhile.
    tell: called with each ended job that has a webhook, until it returns True.
    """

    def __init__(
        self,
        jobs: JobStore,
        config: RenderConfig,
        lanes: Mapping[str, Lane],
        *,
        run_id: str,
        grace_s: float = 3.0,
        tell: Tell | None = None,
    ) -> None:
        self._jobs = jobs
        self._config = config
        self._lanes = lanes
        self._run_id = run_id
        self._grace_s = grace_s
        self._tell = tell
        self._state = _State()
        self._claims = Claims(jobs.store, run_id)
        self._alive = ExitStack()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Find the pending jobs, and begin."""
        await asyncio.to_thread(self._alive.enter_context, alive(self._jobs.store, self._run_id))
        await self._rescan(not_before=time.monotonic() + self._grace_s)
        self._in_background(self._dispatch())
        self._in_background(self._look_after())

    async def close(self) -> None:
        """Stop handing out jobs; what is pending stays so."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._alive.close)

    async def admit(self, owner: str) -> None:
        """QueueFullError when there is no room for another job of this owner; else a place is kept until release()."""
        state, limits = self._state, self._config.serve
        now = time.monotonic()
        state.admitted = [(until, whose) for until, whose in state.admitted if until > now]
        taken = [entry.job.owner for entry in state.waiting.values()] + [whose for _, whose in state.admitted]
        if len(taken) >= limits.max_queued:
            raise QueueFullError(f"{len(taken)} jobs are waiting, and there is room for {limits.max_queued}; try later")
        if taken.count(owner) >= limits.max_queued_per_key:
            raise QueueFullError(
                f"{taken.count(owner)} of your jobs are waiting, and a key may have {limits.max_queued_per_key}; "
                "wait for some to end"
            )
        state.admitted.append((now + _PLACE_KEPT_S, owner))

    async def release(self, owner: str) -> None:
        """Give back a place that was kept for a job of this owner."""
        kept = next((place for place in self._state.admitted if place[1] == owner), None)
        if kept is not None:
            self._state.admitted.remove(kept)

    async def submit(self, job: Job) -> None:
        """Have a stored job run. One that is known already, or has ended, is left alone."""
        await self._take(job)

    async def live(self, job_ids: Sequence[str]) -> Mapping[str, Live]:
        """Those of the jobs that are queued or running."""
        found = {}
        order = [entry.job.id for entry in self._in_order()] if self._state.waiting else []
        for job_id in job_ids:
            if run := self._state.running.get(job_id):
                found[job_id] = Live(status="in_progress", step=run.step, num_steps=run.num_steps)
            elif job_id in self._state.waiting:
                found[job_id] = Live(status="queued", ahead=order.index(job_id))
        return found

    async def cancel(self, job: Job, why: str) -> None:
        """End the job with a failed record, unless it has ended; its gang stops at the next step."""
        await self._end_early(job, CancelledError(why))

    async def delete(self, job: Job) -> None:
        """Forget the job, and remove all that belongs to it."""
        self._state.waiting.pop(job.id, None)
        if run := self._state.running.get(job.id):
            run.why = "its job was deleted"
        await asyncio.to_thread(self._jobs.delete, job)
        self._wake.set()

    async def view(self) -> QueueView:
        """What the queue does now."""
        state = self._state
        slots = sum(lane.slots for lane in self._lanes.values())
        return QueueView(queued=len(state.waiting), running=len(state.running), slots=slots, ended=dict(state.ended))

    def beat(self, job_id: str, token: str, step: int, num_steps: int) -> str | None:
        """A worker says how far it is; why it must stop, or None."""
        run = self._state.running.get(job_id)
        if run is None or run.token != token:
            return _STRANGER
        run.step, run.num_steps = step, num_steps
        return run.why

    async def _take(self, job: Job, *, not_before: float = 0.0) -> None:
        state = self._state
        if job.id in state.waiting or job.id in state.running or job.id in state.settling:
            return
        item = self._item(job)
        if item.request is None or item.request.variant not in self._lanes:
            if item.failure is None:
                item = item.failed("queue", StageError("no model of this server renders it any more"))
            await self._commit(job, item)
        elif await asyncio.to_thread(self._jobs.record, job.id) is not None:
            self._settle(job)
        else:
            state.waiting[job.id] = _Waiting(job=job, item=item, not_before=not_before)
            self._wake.set()

    async def _rescan(self, *, not_before: float = 0.0) -> None:
        """Take the stored jobs that nobody has submitted, or whose queue is no more."""
        for job in await asyncio.to_thread(lambda: list(self._jobs.pending())):
            await self._take(job, not_before=not_before)

    async def _dispatch(self) -> None:
        while True:
            now = time.monotonic()
            free = Counter({name: lane.slots for name, lane in self._lanes.items()})
            free.subtract(run.lane for run in self._state.running.values())
            for entry in list(self._in_order()):
                if free[entry.lane] > 0 and entry.not_before <= now:
                    free[entry.lane] -= 1
                    self._start(entry)
            self._wake.clear()
            soonest = min((e.not_before for e in self._state.waiting.values() if e.not_before > now), default=now + 60)
            with suppress(TimeoutError):
                async with asyncio.timeout(soonest - now):  # wait_for() may lose a cancellation
                    await self._wake.wait()

    def _start(self, entry: _Waiting) -> None:
        job, token = entry.job, secrets.token_hex(8)
        del self._state.waiting[job.id]
        run = _Run(job=job, lane=entry.lane, token=token)
        self._state.running[job.id] = run
        self._in_background(self._see_through(entry, run))

    async def _see_through(self, entry: _Waiting, run: _Run) -> None:
        """One try of a job in its lane; what it comes to."""
        job, again = entry.job, 0.0
        record: Record | None = None
        try:
            if await asyncio.to_thread(self._claims.take, job.id, 1):
                record = await self._lanes[run.lane].run(entry.item.to_row(), run.token)
            else:
                again = _OTHERS_WAIT_S
        except ClipStoppedError as stopped:
            logger.info("stopped request_id=%s reason=%s", job.id, stopped)
        except StorageError as error:
            again = _STORE_WAIT_S
            logger.warning("rendering again request_id=%s wait_s=%g reason=%s", job.id, again, error)
        except WanRayError as error:
            entry.tries += 1
            logger.warning("lost request_id=%s try=%d reason=%s", job.id, entry.tries, error)
            if entry.tries >= _MAX_TRIES:
                record = await self._commit(job, entry.item.failed("denoise", error))
        finally:
            del self._state.running[job.id]
            self._wake.set()
        if not await asyncio.to_thread(self._jobs.exists, job):
            await asyncio.to_thread(self._jobs.wipe, job.id)
            await asyncio.to_thread(self._claims.drop, job.id, 1)
        elif run.why is not None:
            return  # whoever gave the reason saw to its end
        elif record is not None:
            self._ended(job, record)
        elif await asyncio.to_thread(self._jobs.record, job.id) is not None:
            self._settle(job)
        else:
            entry.not_before = time.monotonic() + again
            self._state.waiting[job.id] = entry

    async def _end_early(self, job: Job, error: WanRayError) -> None:
        """Commit this end of a job, and stop whoever works at it."""
        self._state.waiting.pop(job.id, None)
        if run := self._state.running.get(job.id):
            run.why = str(error)
        await self._commit(job, self._item(job).failed("queue", error))
        self._wake.set()

    def _item(self, job: Job) -> Item:
        """The job's row, under the job's name also where the row breaks a rule by now."""
        item = read_row({**job.request, "id": job.id}, self._config, variant=job.model)
        return replace(item, name=job.id, id=job.id)

    async def _commit(self, job: Job, item: Item) -> Record:
        """The job's one record: of this failed item, or the one it had."""

        def commit() -> Record:
            record = make_record(item, run_id=self._run_id)
            return record if self._jobs.records.commit(record) else self._jobs.records.read(job.id)

        record = await asyncio.to_thread(commit)
        self._ended(job, record)
        return record

    def _ended(self, job: Job, record: Record) -> None:
        if job.id not in self._state.settling:
            self._state.ended[record.status] += 1
        self._settle(job)

    def _settle(self, job: Job) -> None:
        if job.id not in self._state.settling:
            self._state.settling.add(job.id)
            self._in_background(self._settled(job))

    async def _settled(self, job: Job) -> None:
        """Tell whoever wanted to know, and take the job off the pending ones."""
        record = await asyncio.to_thread(self._jobs.record, job.id)
        if job.webhook_url is not None and self._tell is not None and record is not None:
            for wait_s in (*_TELL_WAIT_S, None):
                if await self._tell(job, record) or wait_s is None:
                    break
                await asyncio.sleep(wait_s)
        await asyncio.to_thread(self._claims.drop, job.id, 1)
        await asyncio.to_thread(self._jobs.settle, job)
        self._state.settling.discard(job.id)

    async def _look_after(self) -> None:
        """Now and then: deadlines, jobs that were stored and not submitted, jobs whose time is over."""
        scanned = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = time.time()
            try:
                for job in [*self._late(now)]:
                    await self._end_early(
                        job, DeadlineError(f"its deadline passed {now - (job.deadline_at or now):.0f} s ago")
                    )
                if time.monotonic() - scanned > _RESCAN_S:
                    scanned = time.monotonic()
                    await self._rescan()
                    for run in list(self._state.running.values()):
                        if await asyncio.to_thread(self._jobs.record, run.job.id) is not None:
                            run.why = "it was ended by another server"
                    for job in await asyncio.to_thread(self._expired):
                        await self.delete(job)
            except StorageError as error:  # it may pass; what is stored stays
                logger.warning("looking after jobs later: %s", error)

    def _expired(self) -> list[Job]:
        return list(self._jobs.expired(time.time(), keep_s=self._config.serve.keep_days * 86400))

    def _late(self, now: float) -> Iterator[Job]:
        state = self._state
        for job in [
            *(e.job for e in state.waiting.values()),
            *(r.job for r in state.running.values() if r.why is None),
        ]:
            if job.deadline_at is not None and job.deadline_at < now:
                yield job

    def _in_order(self) -> list[_Waiting]:
        return sorted(self._state.waiting.values(), key=lambda entry: entry.order)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the queue lost a task", exc_info=error)
