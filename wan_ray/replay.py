"""Replay: a record's clip rendered again, from the record and its run's config alone, and compared with the first."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wan_ray.config import RenderConfig, override_config
from wan_ray.errors import ConfigError, RequestError, StorageError
from wan_ray.media.image import decode_image
from wan_ray.media.video import read_frames
from wan_ray.resolved import ResolvedRequest
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.stages.publish import package_versions
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RECORDS, RUNS, name_and_attempt
from wan_ray.storage.records import Record, RecordStore
from wan_ray.storage.runs import config_of, read_runs


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it. psnr_db: of the new frames against the first ones; differences: what is not as it was then."""

    id: str
    same_bytes: bool
    same_frames: bool
    psnr_db: float
    differences: Sequence[str]

    @property
    def is_same(self) -> bool:
        """Whether the frames are the same, bit by bit."""
        return self.same_bytes or self.same_frames

    def __str__(self) -> str:
        if self.same_bytes:
            return f"{self.id}: bytes match"
        found = "frames match, bytes do not" if self.same_frames else f"frames differ, PSNR {self.psnr_db:.1f} dB"
        return "\n  ".join([f"{self.id}: {found}", *self.differences])


def replay(place: str, overrides: Sequence[str] = (), *, out: Path | None = None) -> Replay:
    """Render the clip of the record at OUTPUT/records/NAME.json again, in this process; keep it at out, if given.

    overrides change the config of the record's run, such as where the checkpoint lies now. ConfigError when there is no
    such record or its run is not known, RequestError when it has no clip, or its row held an image or video as data.
    """
    folder, slash, file = place.rpartition("/")
    root, _, parent = folder.rpartition("/")
    if not slash or parent != RECORDS or not file.endswith(".json"):
        raise ConfigError(f"{place!r} is not the place of a record; give OUTPUT/{RECORDS}/NAME.json")
    store = Store(root)
    record = RecordStore(store).read(*name_and_attempt(file.removesuffix(".json")))
    if record.clip is None:
        raise RequestError(f"record {record.id!r} has no clip: {record.error_message or record.status}")
    config = override_config(_config_of(store, record), overrides)
    model = next((section for section in config.all_models if section.variant == record.variant), None)
    if model is None:
        raise ConfigError(f"run {record.run_id!r} has no model {record.variant!r}; its config was changed since")
    loader = StageLoader(model=model, video=config.video)
    request = _request_of(record)
    item = Item(name=record.name, id=record.id, row=record.row, request=request, prompt=record.prompt)
    item = loader.decode()(loader.denoise()(loader.encode()(item)))
    assert item.clip is not None
    if out is not None:
        out.write_bytes(item.clip.data)
    first = store.get(record.clip)
    psnr_db = _psnr_db(_frames(item.clip.data, item.clip.suffix), _frames(first, item.clip.suffix))
    compared = (
        (record.weights, item.weights),
        (record.rendered_on, item.rendered_on),
        (record.versions, package_versions()),
    )
    differences = [told for then, now in compared for told in _differences(then, now)]
    return Replay(
        id=record.id,
        same_bytes=hashlib.sha256(item.clip.data).hexdigest() == record.sha256,
        same_frames=math.isinf(psnr_db),
        psnr_db=psnr_db,
        differences=differences,
    )


def _config_of(store: Store, record: Record) -> RenderConfig:
    """The config of the run that made the record."""
    run = next((run for run in read_runs(store) if run["run_id"] == record.run_id), None)
    if run is None:
        raise ConfigError(f"{store.location(RUNS)!r} does not know run {record.run_id!r}, whose record this is")
    return config_of(run)


def _request_of(record: Record) -> ResolvedRequest:
    """What the record says was rendered."""
    media = {}
    for name, sources in record.inputs.items():
        if isinstance(sources, list) and all(isinstance(source, str) for source in sources):
            media[name] = [str(source) for source in sources]
    held = [name for name, sources in media.items() if any(source.startswith("sha256:") for source in sources)]
    if held:
        raise RequestError(
            f"record {record.id!r}: {', '.join(held)} lay in the row itself, and the record has its hash only"
        )
    fields: dict[str, Any] = {
        name: getattr(record, name) for name in ResolvedRequest.__dataclass_fields__ if hasattr(record, name)
    }
    missing = [name for name, value in sorted(fields.items()) if value is None and name not in ("compat", "quality")]
    if missing:
        raise StorageError(f"record {record.id!r} lacks {', '.join(missing)}: it is of another version")
    fields |= {"prompt": record.prompt_as_run, "media": media}
    return ResolvedRequest(**fields)


def _frames(data: bytes, suffix: str) -> np.ndarray:
    """uint8 [F, H, W, 3]."""
    return decode_image(data, what="clip")[None] if suffix == ".png" else read_frames(data)


def _psnr_db(found: np.ndarray, wanted: np.ndarray) -> float:
    """Infinite for equal frames; 0 for clips of other sizes."""
    if found.shape != wanted.shape:
        return 0.0
    error = float(np.mean((found.astype(np.float32) - wanted.astype(np.float32)) ** 2))
    return math.inf if error == 0 else 20 * math.log10(255) - 10 * math.log10(error)


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    names = sorted(then.keys() | now.keys())
    return [f"{n}: {then.get(n)} then, {now.get(n)} now" for n in names if then.get(n) != now.get(n)]
