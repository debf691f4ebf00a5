"""Checkpoints at a URL are copied once per node; a local path is used where it lies."""

import fcntl
import hashlib
import logging
import shutil
from pathlib import Path

from wan_ray.errors import CheckpointError
from wan_ray.storage.blob import failing_as, open_filesystem
from wan_ray.wording import without_secrets

logger = logging.getLogger(__name__)

_WANTED = (".safetensors", ".json", ".pth", ".model")
_FILE_SUFFIX = ".safetensors"  # a URL that ends so is one file, not a folder


def stage_checkpoint(url: str, cache_dir: str) -> Path:
    """A local path with the checkpoint at url; processes of one node wait for whoever copies it first.

    The copy appears under its name only when whole. A checkpoint at a URL is taken as immutable: to use changed
    weights, give them another name or delete the copy. CheckpointError when there is nothing at the URL.
    """
    if "://" not in url:
        return Path(url).expanduser()
    url = url.rstrip("/")
    cache = Path(cache_dir).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    name = url.rpartition("/")[2].removesuffix(_FILE_SUFFIX)
    key = f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    is_file = url.endswith(_FILE_SUFFIX)
    target = cache / (key + _FILE_SUFFIX if is_file else key)
    with (cache / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = cache / f"{key}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            copied = _copy(url, partial)
            (copied[0] if is_file else partial).rename(target)
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _copy(url: str, folder: Path) -> list[Path]:
    """The weight files at the URL, copied into the folder under their paths in the checkpoint."""
    filesystem, root = open_filesystem(url)
    with failing_as(CheckpointError, f"cannot read the checkpoint {without_secrets(url)!r}"):
        names = [root] if filesystem.isfile(root) else filesystem.find(root)
    wanted = [str(name) for name in names if str(name).endswith(_WANTED)]
    if not wanted:
        raise CheckpointError(
            f"checkpoint {without_secrets(url)!r} holds no files that end in {', '.join(_WANTED)}; check the URL"
        )
    copies = []
    for name in wanted:
        local = folder / (name.removeprefix(root).lstrip("/") or Path(name).name)
        local.parent.mkdir(parents=True, exist_ok=True)
        logger.info("copying %s to %s", name, local)
        with failing_as(CheckpointError, f"cannot copy {name!r} to {str(local)!r}"):
            filesystem.get_file(name, str(local))
        copies.append(local)
    return copies
