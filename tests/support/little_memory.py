"""A process that may have only so much more memory than it has: a real allocation fails in it, on any machine."""

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def run_alone(program: Path, *arguments: object, timeout_s: float = 500.0) -> dict[str, dict]:
    """What a program of its own process wrote as JSON, on its last line."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # What is freed goes back at once, so that the limit is about what is in use.
        "MALLOC_MMAP_THRESHOLD_": "262144",
        "MALLOC_TRIM_THRESHOLD_": "262144",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
    }
    command = [sys.executable, str(program), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def at_most_more(size_bytes: int) -> Iterator[None]:
    """In it, this process may have so many bytes more than now; what asks for more is refused by the system."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize:"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class Told(logging.Handler):
    """What a logger says, line by line; heard is called at each."""

    def __init__(self, name: str, heard: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._heard = heard
        logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._heard()
