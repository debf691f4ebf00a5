"""Fixtures of all tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def debug_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the released layout."""
    from wan_ray.model.debug import write_debug_checkpoint

    folder = tmp_path_factory.mktemp("debug-checkpoint")
    write_debug_checkpoint(folder)
    return folder
