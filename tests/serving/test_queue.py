"""The queue, with real stages in threads: every accepted job comes to one end, in order, and after any restart."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from serving_app import serving_config, serving_queue

from wan_ray.config import RenderConfig
from wan_ray.errors import QueueFullError
from wan_ray.serving.jobs import Job, new_job_id
from wan_ray.serving.queue import JobQueue
from wan_ray.storage.records import Record

_MS = itertools.count()


def make_job(prompt: str = "a road", *, owner: str = "ann", **fields: object) -> Job:
    now = time.time() + next(_MS) / 1000  # ids tell milliseconds
    given = {"request": {"prompt": prompt, "seed": 1}, "model": "debug", **fields}
    return Job.model_validate({"id": new_job_id(now), "owner": owner, "created_at": now, **given})


async def put(queue: JobQueue, *jobs: Job) -> None:
    for job in jobs:
        await queue.admit(job.owner)
        queue._jobs.create(job)
        await queue.submit(job)
        await queue.release(job.owner)


async def until(holds: Callable[[], object], *, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.02)


@pytest.fixture
def config(tmp_path: Path, debug_checkpoint: Path) -> RenderConfig:
    return serving_config(tmp_path, {"debug": debug_checkpoint}, serve={"max_queued": 5, "max_queued_per_key": 3})


def run(queue: JobQueue, script: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await queue.start()
        try:
            await script()
        finally:
            await queue.close()

    asyncio.run(whole())


def ended(queue: JobQueue, *jobs: Job) -> Callable[[], bool]:
    return lambda: all(queue._jobs.record(job.id) is not None for job in jobs)


def end_of(queue: JobQueue, job: Job) -> Record:
    record = queue._jobs.record(job.id)
    assert record is not None
    return record


def test_jobs_end_with_records_and_clips_and_are_pending_no_more(config: RenderConfig) -> None:
    queue = serving_queue(config)
    good, other = make_job(), make_job("雨夜的街道")

    async def script() -> None:
        await put(queue, good, other)
        await until(ended(queue, good, other))
        await until(lambda: not list(queue._jobs.pending()))
        assert (await queue.view()).ended == {"ok": 2}

    run(queue, script)
    assert queue._jobs.clip(end_of(queue, good))[4:8] == b"ftyp"
    assert end_of(queue, other).prompt == "雨夜的街道"


def test_a_row_that_no_model_renders_fails_with_the_reason(config: RenderConfig) -> None:
    queue = serving_queue(config)
    job = make_job(request={"prompt": "a road", "num_frames": 7})

    async def script() -> None:
        await put(queue, job)
        await until(ended(queue, job))

    run(queue, script)
    assert (end_of(queue, job).status, end_of(queue, job).error_type) == ("failed", "RequestError")
    assert "num_frames: 7 is not 4n+1" in (end_of(queue, job).error_message or "")


def test_the_smaller_priority_runs_first_and_the_older_of_equals(config: RenderConfig) -> None:
    queue = serving_queue(config, step_s=0.1)
    blockers = [make_job(owner="zoe"), make_job(owner="zoe")]
    late, first, second = make_job(priority=5), make_job(priority=-1), make_job(priority=-1)

    async def script() -> None:
        await put(queue, *blockers)
        await until(lambda: len(queue._state.running) == 2)
        await put(queue, late, first, second)
        live = await queue.live([late.id, first.id, second.id])
        assert [live[job.id].ahead for job in (first, second, late)] == [0, 1, 2]
        await until(ended(queue, late, first, second))

    run(queue, script)
    times = [end_of(queue, job).created_at for job in (first, second, late)]
    assert times == sorted(times)


def test_no_more_jobs_are_admitted_than_there_is_room_for(config: RenderConfig) -> None:
    queue = serving_queue(config, step_s=0.3)

    async def script() -> None:
        for _ in range(3):
            await queue.admit("ann")
        with pytest.raises(QueueFullError, match="3 of your jobs are waiting, and a key may have 3"):
            await queue.admit("ann")
        await queue.release("ann")
        for owner in ("ann", "bob", "bob"):
            await queue.admit(owner)
        with pytest.raises(QueueFullError, match="5 jobs are waiting, and there is room for 5"):
            await queue.admit("eve")

    run(queue, script)


def test_a_cancelled_job_stops_within_a_step_and_stays_cancelled(config: RenderConfig) -> None:
    queue = serving_queue(config, step_s=0.2)
    job = make_job(request={"prompt": "a road", "num_inference_steps": 100})
    waiting = [make_job(), make_job()]

    async def script() -> None:
        await put(queue, job, *waiting)
        await until(lambda: queue._state.running.get(job.id) and queue._state.running[job.id].step >= 2)
        begun = time.monotonic()
        await queue.cancel(job, "asked by its owner")
        await queue.cancel(waiting[1], "asked by its owner")
        await until(lambda: job.id not in queue._state.running)
        assert time.monotonic() - begun < 10  # of 100 steps of 0.2 s, all but a few are left out
        await until(ended(queue, *waiting))

    run(queue, script)
    for one in (job, waiting[1]):
        assert (end_of(queue, one).error_type, end_of(queue, one).clip) == ("CancelledError", None)
    assert end_of(queue, waiting[0]).status == "ok"


def test_a_job_past_its_deadline_fails_whether_it_waits_or_runs(config: RenderConfig) -> None:
    queue = serving_queue(config, step_s=0.2)
    long = {"prompt": "a road", "num_inference_steps": 200}
    soon = time.time() + 2
    running = [make_job(request=long, deadline_at=soon), make_job(request=long, deadline_at=soon)]
    waiting = make_job(deadline_at=soon)

    async def script() -> None:
        await put(queue, *running, waiting)
        await until(ended(queue, *running, waiting))
        await until(lambda: not queue._state.running)

    run(queue, script)
    assert {end_of(queue, job).error_type for job in (*running, waiting)} == {"DeadlineError"}


def test_a_new_queue_renders_what_the_one_before_left(config: RenderConfig) -> None:
    jobs = [make_job(), make_job(), make_job()]
    before = serving_queue(config, step_s=0.3)

    async def cut_short() -> None:
        await put(before, *jobs)
        await until(lambda: len(before._state.running) == 2)

    run(before, cut_short)
    assert len(list(before._jobs.pending())) > 0
    queue = serving_queue(config)

    async def script() -> None:
        await until(ended(queue, *jobs))
        await until(lambda: not list(queue._jobs.pending()))

    run(queue, script)
    assert {end_of(queue, job).status for job in jobs} == {"ok"}


def test_a_job_that_was_stored_but_never_submitted_is_rendered(config: RenderConfig, monkeypatch) -> None:
    monkeypatch.setattr("wan_ray.serving.queue._RESCAN_S", 0.5)
    queue, job = serving_queue(config), make_job()

    async def script() -> None:
        queue._jobs.create(job)
        await until(ended(queue, job))

    run(queue, script)
    assert end_of(queue, job).status == "ok"


def test_two_queues_over_one_store_share_the_jobs_and_render_none_twice(config: RenderConfig) -> None:
    one, two = serving_queue(config, step_s=0.1), serving_queue(config, step_s=0.1)
    jobs = [make_job(owner=f"owner-{n}") for n in range(5)]
    runs: list[str] = []

    async def script() -> None:
        await two.start()
        for job in jobs:
            one._jobs.create(job)
        await asyncio.gather(*(queue.submit(job) for job in jobs for queue in (one, two)))
        await until(ended(one, *jobs))
        await until(lambda: not list(one._jobs.pending()))
        runs.extend(end_of(one, job).run_id for job in jobs)
        assert sum((await one.view()).ended.values()) + sum((await two.view()).ended.values()) == len(jobs)
        await two.close()

    run(one, script)
    assert len(set(runs)) == 2
    assert one._jobs.store.names("claims") == []


def test_a_worker_of_an_earlier_queue_is_told_to_stop(config: RenderConfig) -> None:
    queue, job = serving_queue(config, step_s=0.2), make_job()

    async def script() -> None:
        await put(queue, job)
        await until(lambda: queue._state.running)
        token = queue._state.running[job.id].token
        assert queue.beat(job.id, token, 1, 2) is None
        assert queue.beat(job.id, "0123456789abcdef", 1, 2) == "another worker has this job now"

    run(queue, script)


def test_deleting_a_running_job_leaves_no_file_of_it(config: RenderConfig, tmp_path: Path) -> None:
    queue, job = serving_queue(config, step_s=0.2), make_job()

    async def script() -> None:
        await put(queue, job)
        await until(lambda: job.id in queue._state.running)
        await queue.delete(job)
        await until(lambda: job.id not in queue._state.running)
        await until(lambda: not [path for path in (tmp_path / "output").rglob("*") if job.id in path.name])

    run(queue, script)


def test_whoever_gave_a_webhook_is_told_until_it_hears(config: RenderConfig, monkeypatch) -> None:
    monkeypatch.setattr("wan_ray.serving.queue._TELL_WAIT_S", (0.05, 0.05))
    told: list[tuple[str, str]] = []

    async def tell(job: Job, record: Record) -> bool:
        told.append((job.id, record.status))
        return len(told) == 2

    queue, job = serving_queue(config, tell=tell), make_job(webhook_url="https://example.org/hook")

    async def script() -> None:
        await put(queue, job, make_job())
        await until(lambda: len(told) == 2)
        await until(lambda: not list(queue._jobs.pending()))

    run(queue, script)
    assert told == [(job.id, "ok")] * 2
