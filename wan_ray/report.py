"""What lies in an output folder: counts, failures by cause, and a contact sheet of its clips."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from wan_ray.errors import StorageError
from wan_ray.media.contact_sheet import SheetEntry, contact_sheet
from wan_ray.media.video import read_frames
from wan_ray.storage.blob import Store
from wan_ray.storage.index import read_index
from wan_ray.storage.paths import CONTACT_SHEET
from wan_ray.storage.records import Record, RecordStore
from wan_ray.storage.runs import RunEntry, read_runs

MAX_SHEET_CLIPS = 24


@dataclass(frozen=True, kw_only=True)
class Status:
    """num_rows: of the last run's manifest; ok and failed: rows of the index; failures: (stage, type, message)."""

    num_rows: int
    num_records: int
    ok: int
    failed: int
    failures: Counter[tuple[str, str, str]]
    last_run: RunEntry


def status(output: str) -> Status:
    """How far the output folder is, also while a run writes to it; StorageError when no run ever did."""
    store = Store(output)
    runs = read_runs(store)
    if not runs:
        raise StorageError(f"{output!r} holds no run.json: no run has written there")
    index = read_index(store).select(["status", "error_stage", "error_type", "error_message"]).to_pylist()
    failed = [row for row in index if row["status"] == "failed"]
    return Status(
        num_rows=int(str(runs[-1]["num_rows"])),
        num_records=len(RecordStore(store).names()),
        ok=len(index) - len(failed),
        failed=len(failed),
        failures=Counter((row["error_stage"], row["error_type"], row["error_message"]) for row in failed),
        last_run=runs[-1],
    )


def write_contact_sheet(output: str) -> None:
    """Draw the first clips of the output folder, in manifest order; nothing where there is no clip yet."""
    store = Store(output)
    index = read_index(store).select(["record", "row", "status"]).to_pylist()
    shown = sorted((row for row in index if row["status"] == "ok"), key=lambda row: (row["row"] is None, row["row"]))
    if not shown:
        return
    records = RecordStore(store).read_all([row["record"] for row in shown[:MAX_SHEET_CLIPS]])
    store.put(CONTACT_SHEET, contact_sheet([_entry(store, record) for record in records]))


def _entry(store: Store, record: Record) -> SheetEntry:
    assert record.clip is not None
    frames = read_frames(store.get(record.clip))
    shown = frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).astype(int)]  # a copy: a whole clip is large
    length = "" if record.task == "t2i" else f"  {record.num_frames} frames"
    shape = f"{record.task}  {record.width}x{record.height}{length}  seed {record.seed}"
    return SheetEntry(title=record.id, lines=[record.prompt or "", shape], frames=list(shown))
