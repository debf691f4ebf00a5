"""Nothing is lost and nothing is rendered twice, whatever fails."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(590)]


def test_every_row_ends_once_on_a_cluster_and_a_bucket_that_fail_again_and_again() -> None:
    command = [sys.executable, str(Path(__file__).with_name("storm.py")), "--rows", "12", "--times", "1", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "killed: node" in done.stderr and "killed: driver" in done.stderr
