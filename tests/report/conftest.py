"""An index to report on: records as a run writes them, without a model."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wan_ray.config import RenderConfig
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter
from wan_ray.storage.records import Record
from wan_ray.storage.runs import write_run

START = datetime(2026, 3, 6, 18, 0, tzinfo=UTC).timestamp()


@pytest.fixture(scope="session")
def start() -> float:
    """Unix time at which the runs of `written` began."""
    return START


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    """record(name, at=seconds after the start, **fields): a record of run r1; with error_message a failed one."""

    def make(name: str, *, at: float = 0.0, **fields: object) -> Record:
        if "error_message" in fields:
            fields = {"status": "failed", "error_stage": "denoise", "error_type": "StageError", **fields}
        created_at = datetime.fromtimestamp(START + at, UTC).isoformat(timespec="milliseconds")
        return Record.model_validate(
            {"name": name, "id": name, "status": "ok", "run_id": "r1", "created_at": created_at, **fields}
        )

    return make


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    """written(records, part_of="r1", **fields of the run): the output folder, with the records in its index."""

    def write(records: Iterable[Record], *, part_of: str = "r1", **fields: object) -> str:
        store = Store(tmp_path / "out")
        run = {
            "run_id": part_of,
            "started_at": datetime.fromtimestamp(START, UTC).isoformat(),
            "status": "finished",
            "num_rows": 10,
            "config": RenderConfig.model_validate(
                {"model": {"variant": "t2v-1.3B", "checkpoint": "/m"}, "stages": {"denoise": {"num_gpus": 1}}}
            ).model_dump(mode="json"),
            "versions": {"torch": "2.9.0"},
        }
        write_run(store, {**run, **fields})
        with IndexWriter(store, part_of, {}) as index:
            for one in records:
                index.append(one)
        return str(tmp_path / "out")

    return write
