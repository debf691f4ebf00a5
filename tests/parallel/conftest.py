"""Runs the scripts beside it, whose ranks are processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Launch = Callable[[str], dict]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """launch("layouts"): what ranks_layouts.py reports."""

    def launched(name: str) -> dict:
        folder = tmp_path_factory.mktemp(name)
        script = Path(__file__).with_name(f"ranks_{name}.py")
        command = [sys.executable, str(script), str(folder / "report.json"), str(folder)]
        # One thread a rank: two cores are shared by up to four of them.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads((folder / "report.json").read_text())

    return launched
