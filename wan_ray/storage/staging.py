"""Checkpoints at a URL are copied once per node; a local path is used where it lies."""

import fcntl
import hashlib
import logging
import shutil
from pathlib import Path

import fsspec

from wan_ray.errors import CheckpointError

logger = logging.getLogger(__name__)

_WANTED = (".safetensors", ".json", ".pth", ".model")


def stage_checkpoint(url: str, cache_dir: str) -> Path:
    """A local path with the checkpoint at url; processes of one node wait for whoever copies it first.

    The copy appears under its name only when whole. A checkpoint at a URL is taken as immutable: to use changed
    weights, give them another name or delete the copy. CheckpointError when there is nothing at the URL.
    """
    if "://" not in url:
        return Path(url).expanduser()
    cache = Path(cache_dir).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    key = f"{Path(url.rstrip('/')).name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    target = cache / (key + ".safetensors" if url.endswith(".safetensors") else key)
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = cache / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            copied = _copy(url, partial)
            (copied if target.suffix else partial).rename(target)
    return target


def _copy(url: str, folder: Path) -> Path:
    filesystem, root = fsspec.core.url_to_fs(url)
    try:
        names = [root] if filesystem.isfile(root) else filesystem.find(root)
    except OSError as error:
        raise CheckpointError(f"checkpoint {url!r} cannot be read: {error}") from error
    wanted = [name for name in names if name.endswith(_WANTED)]
    if not wanted:
        raise CheckpointError(f"checkpoint {url!r} holds no weight files ({', '.join(_WANTED)})")
    local = folder
    for name in wanted:
        local = folder / (name.removeprefix(root).lstrip("/") or Path(name).name)
        local.parent.mkdir(parents=True, exist_ok=True)
        logger.info("copying %s to %s", name, local)
        filesystem.get_file(name, str(local))
    return local
