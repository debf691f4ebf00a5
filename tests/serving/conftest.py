"""The tiny checkpoints that the server serves."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def debug_i2v_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wan_ray.model.debug import write_debug_checkpoint

    folder = tmp_path_factory.mktemp("debug-i2v-checkpoint")
    write_debug_checkpoint(folder, kind="i2v")
    return folder
