"""The tiny checkpoints that the server serves, and the official clients."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def debug_i2v_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wan_ray.model.debug import write_debug_checkpoint

    folder = tmp_path_factory.mktemp("debug-i2v-checkpoint")
    write_debug_checkpoint(folder, kind="i2v")
    return folder


@pytest.fixture(scope="session")
def openai_client(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """openai_client(version): a folder for PYTHONPATH with that release of the official client; installed once."""
    cache = pytestconfig.cache
    assert cache is not None

    def folder(version: str) -> Path:
        place = cache.mkdir("openai") / version
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=place.parent) as fresh:
                command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", fresh, f"openai=={version}"]
                subprocess.run(command, check=True, timeout=280)
                Path(fresh).rename(place)
                Path(fresh).mkdir()  # for the context to remove
        return place

    return folder


@pytest.fixture(scope="session")
def debug_vace_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wan_ray.model.debug import write_debug_checkpoint

    folder = tmp_path_factory.mktemp("debug-vace-checkpoint")
    write_debug_checkpoint(folder, kind="vace")
    return folder


@pytest.fixture(scope="session")
def debug_flf2v_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wan_ray.model.debug import write_debug_checkpoint

    folder = tmp_path_factory.mktemp("debug-flf2v-checkpoint")
    write_debug_checkpoint(folder, kind="flf2v")
    return folder
