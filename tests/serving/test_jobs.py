"""Jobs in a store: what is accepted is found again, by its owner alone, and what is deleted is gone."""

import time
from pathlib import Path

import pytest

from wan_ray.errors import JobNotFoundError
from wan_ray.serving.jobs import Job, JobStore, created_at, new_job_id
from wan_ray.storage.blob import Store
from wan_ray.storage.records import Record


def make_job(owner: str = "ann", *, at: float | None = None, **fields: object) -> Job:
    at = time.time() if at is None else at
    given = {"request": {"prompt": "a road"}, "model": "debug", **fields}
    return Job.model_validate({"id": new_job_id(at), "owner": owner, "created_at": at, **given})


@pytest.fixture
def jobs(tmp_path: Path) -> JobStore:
    return JobStore(Store(tmp_path))


def test_a_job_is_read_back_by_its_owner_and_by_nobody_else(jobs: JobStore) -> None:
    job = make_job(request={"prompt": "雨夜 \r\n“road”"}, metadata={"k": "v"})
    jobs.create(job)
    assert jobs.get("ann", job.id) == job
    for owner, job_id in (("bob", job.id), ("ann", job.id[:-1] + "g"), ("ann", "../" + job.id), ("ann", "")):
        with pytest.raises(JobNotFoundError):
            jobs.get(owner, job_id)


def test_ids_tell_when_and_cannot_be_guessed() -> None:
    first, second = new_job_id(1_800_000_000.25), new_job_id(1_800_000_000.25)
    assert created_at(first) == 1_800_000_000.25
    assert first != second
    assert new_job_id(1_800_000_001) > max(first, second)


def test_pages_hold_all_jobs_of_one_owner_in_order(jobs: JobStore) -> None:
    mine = [make_job(at=1000 + n) for n in range(7)]
    for job in [*mine, *(make_job("bob", at=1000 + n) for n in range(3))]:
        jobs.create(job)
    seen, after = [], None
    while True:
        page = jobs.page("ann", after=after, limit=3, order="desc")
        seen += page.jobs
        if not page.has_more:
            break
        after = seen[-1].id
    assert seen == mine[::-1]
    assert [job.id for job in jobs.page("ann", after=mine[4].id, limit=9, order="asc").jobs] == [j.id for j in mine[5:]]
    with pytest.raises(JobNotFoundError):
        jobs.page("bob", after=mine[0].id, limit=3, order="asc")


def test_a_job_is_pending_until_it_is_settled(jobs: JobStore) -> None:
    first, second = make_job(at=1000), make_job("bob", at=2000)
    jobs.create(second)
    jobs.create(first)
    assert [job.id for job in jobs.pending()] == [first.id, second.id]
    jobs.settle(first)
    assert [job.id for job in jobs.pending()] == [second.id]


def test_the_first_that_comes_with_an_idempotency_key_has_it(jobs: JobStore) -> None:
    assert jobs.reserve("ann", "key", body_sha256="1", job_id="a") == ("1", "a")
    assert jobs.reserve("ann", "key", body_sha256="2", job_id="b") == ("1", "a")
    assert jobs.reserve("bob", "key", body_sha256="2", job_id="b") == ("2", "b")


def test_what_is_deleted_leaves_no_file(jobs: JobStore, tmp_path: Path) -> None:
    job = make_job()
    jobs.create(job)
    jobs.put_upload(job.id, "image.png", b"x")
    jobs.store.put(f"progress/{job.id}.safetensors", b"x")
    jobs.store.put(f"clips/{job.id}.0123.mp4", b"x")
    record = Record(
        name=job.id, id=job.id, status="ok", clip=f"clips/{job.id}.0123.mp4", run_id="r", created_at="2026-01-01"
    )
    assert jobs.records.commit(record)
    assert jobs.record(job.id) == record
    jobs.delete(job)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not jobs.exists(job)


def test_jobs_expire_by_their_own_time(jobs: JobStore) -> None:
    old, kept, young = (
        make_job(at=1000, expires_at=2000),
        make_job(at=1000, expires_at=9000),
        make_job(at=4000, expires_at=4001),
    )
    for job in (old, kept, young):
        jobs.create(job)
    assert list(jobs.expired(5000, keep_s=1500)) == [old]
