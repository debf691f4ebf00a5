"""Every command and every program in the README runs as it stands there."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree's tracked files in a folder of their own, with this environment as its .venv."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    environment = Path(sys.executable).parents[1]
    (folder / ".venv").symlink_to(environment)
    for stamp in (".installed", ".installed-dev"):  # as make would leave them after installing
        (environment / stamp).touch()
    return folder


def run(command: list[str], folder: Path) -> str:
    # A Ray of its own: the session's cluster, or a stranger's, is no user's.
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_make_demo_renders_eight_rows_and_says_where_they_are(checkout: Path) -> None:
    assert COMMANDS[0].split("\n")[:2] == ["make demo", "make test"]
    said = run(["make", "demo"], checkout)
    assert "8 of 8 rows have a clip, 0 failed" in said
    for line in ("clips ", "index ", "contact sheet "):
        assert Path(re.search(rf"^{line}\s*(\S+)$", said, re.MULTILINE)[1]).exists()


def test_make_test_is_what_ci_runs() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    planned = subprocess.run(["make", "-n", "-B", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for check in ("pip install", "ruff check", "ruff format --check", "pyrefly check", "lint-imports", "pytest"):
        assert check in planned


def test_the_other_commands_run_in_the_order_they_are_shown(checkout: Path) -> None:
    from_first_frames, *said = [run(["bash", "-euc", block], checkout) for block in COMMANDS[1:4]]
    assert "4 of 4 rows have a clip, 0 failed" in from_first_frames
    assert "2 rows for debug: 0 invalid" in said[1]
    assert "2 of 2 rows have a clip, 0 failed" in said[1]
    assert "2 records: 2 ok, 0 failed; the last run's manifest has 2 rows" in said[1]
    assert (checkout / "out/mine/report.html").exists()


def test_a_video_is_made_over_http(checkout: Path) -> None:
    serve, client = COMMANDS[4:]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local", "PYTHONPATH": str(checkout)}
    with subprocess.Popen(
        shlex.split(serve), cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            assert "serving http://127.0.0.1:8000/" in server.stdout.readline()
            assert '"status":"completed"' in run(["bash", "-euc", client], checkout).replace(": ", ":")
            assert (checkout / "out/video.mp4").read_bytes()[4:8] == b"ftyp"
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)
    assert server.returncode == 130


@pytest.mark.parametrize("program", PROGRAMS, ids=["renderer", "processor"])
def test_the_programs_run(program: str, checkout: Path) -> None:
    said = run([sys.executable, "-c", program], checkout)
    assert "(9, 96, 160, 3)" in said or "'status': 'ok'" in said


def test_the_jobs_script_takes_the_commands_arguments(checkout: Path) -> None:
    said = run(
        [sys.executable, "jobs/render.py", "configs/debug.yaml", "--output", "out/mine", "--limit", "0"], checkout
    )
    assert "rendered 0 now" in said


def test_every_config_is_valid_and_its_model_known() -> None:
    from wan_ray.config import load_config

    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        config = load_config(file)
        assert file.name.startswith(config.all_models[0].variant)
