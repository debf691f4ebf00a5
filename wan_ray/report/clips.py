"""Pictures of clips: the contact sheet of an output folder, and strips of frames for its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wan_ray.errors import StageError, StorageError
from wan_ray.media.contact_sheet import SheetEntry, contact_sheet, frame_strip
from wan_ray.media.video import read_frames
from wan_ray.report.rows import Rows, fetch, read_rows, while_parts_stay
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import CONTACT_SHEET

MAX_SHEET_CLIPS = 24
_STRIP_HEIGHT = 120
_MAX_STRIP_BYTES = 100_000
_COLUMNS = ("id", "prompt", "task", "width", "height", "num_frames", "seed", "clip")

_Columns = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class ClipStrip:
    """A clip in a line: strip is a JPEG of some of its frames, None where the clip could not be read."""

    id: str
    prompt: str
    shape: str
    key: str
    strip: bytes | None


def write_contact_sheet(output: str) -> None:
    """Draw the first clips of the output folder, in manifest order; nothing where there is no clip yet."""
    store = Store(output)

    def read(parts: list[str]) -> Sequence[_Columns]:
        rows = read_rows(store, parts, {})
        return fetch(store, rows, _ok_places(rows)[:MAX_SHEET_CLIPS], _COLUMNS)

    shown = while_parts_stay(store, read)
    if shown:
        store.put(CONTACT_SHEET, contact_sheet([_entry(store, columns) for columns in shown]))


def clip_strips(store: Store, rows: Rows, max_clips: int) -> list[ClipStrip]:
    """Up to max_clips clips, evenly spread over the manifest."""
    places = _ok_places(rows)
    spread = places[np.linspace(0, len(places) - 1, min(max_clips, len(places))).astype(np.int64)]
    return [_strip(store, columns) for columns in fetch(store, rows, spread, _COLUMNS)]


def _ok_places(rows: Rows) -> np.ndarray:
    ok = rows.table[rows.table["ok"]]
    return ok["place"][np.lexsort((ok["place"], ok["row"]))]


def _entry(store: Store, columns: _Columns) -> SheetEntry:
    return SheetEntry(
        title=str(columns["id"]),
        lines=[str(columns["prompt"] or ""), _shape(columns)],
        frames=_some_frames(store, str(columns["clip"])),
    )


def _strip(store: Store, columns: _Columns) -> ClipStrip:
    key = str(columns["clip"])
    try:
        strip = frame_strip(_some_frames(store, key), height=_STRIP_HEIGHT, max_bytes=_MAX_STRIP_BYTES)
    except (StorageError, StageError):  # moved away or damaged since: the page says so, and shows the others
        strip = None
    return ClipStrip(
        id=str(columns["id"]), prompt=str(columns["prompt"] or ""), shape=_shape(columns), key=key, strip=strip
    )


def _shape(columns: _Columns) -> str:
    length = "" if columns["task"] == "t2i" else f"  {columns['num_frames']} frames"
    return f"{columns['task']}  {columns['width']}x{columns['height']}{length}  seed {columns['seed']}"


def _some_frames(store: Store, key: str) -> list[np.ndarray]:
    frames = read_frames(store.get(key))
    return list(frames[np.linspace(0, len(frames) - 1, min(4, len(frames))).astype(int)])  # a copy: a clip is large
