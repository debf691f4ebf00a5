"""The Dockerfile's steps leave a package that works, out of a context that holds what it needs and nothing else."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


def said(image: Any, *command: str) -> str:
    """What a command says inside the image."""
    environment = {"PATH": f"{image.bin}:/usr/bin:/bin", "HOME": str(image.root), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        command, cwd=image.root, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_context_is_the_package_its_jobs_and_its_configs(build_context: list[str]) -> None:
    assert {name.partition("/")[0] for name in build_context} == {
        "README.md",
        "cluster",
        "configs",
        "constraints.txt",
        "jobs",
        "pyproject.toml",
        "wan_ray",
    }
    assert "wan_ray/model/debug_tokenizer/tokenizer.json" in build_context
    assert not [name for name in build_context if "__pycache__" in name or name.endswith(".pyc")]
    sizes = {name: (ROOT / name).stat().st_size for name in build_context}
    weights = sum(size for name, size in sizes.items() if name.startswith("wan_ray/demo/weights/"))
    assert weights < 20_000_000
    assert sum(sizes.values()) - weights < 4_000_000


def test_each_step_is_known_and_the_pip_steps_were_run(image: Any) -> None:
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "VOLUME"}
    assert {instruction for instruction, _ in image.steps} == known
    others = [argument.split()[0] for name, argument in image.steps if name == "RUN" and argument not in image.run]
    assert others == ["apt-get", "useradd"]
    assert len(image.run) == 2
    assert ("USER", "ray") in image.steps


def test_the_installed_package_has_all_that_the_source_has_and_its_commands_work(
    image: Any, build_context: list[str]
) -> None:
    where = "import wan_ray; print(wan_ray.__path__[0])"
    installed = Path(said(image, "python", "-c", where).strip())
    assert installed.is_relative_to(image.environment)
    source = {name.removeprefix("wan_ray/") for name in build_context if name.startswith("wan_ray/")}
    assert {name for name in source if not (installed / name).exists()} == {"model/README.md"}
    said(image, "wan-ray", "init-debug", "demo")
    manifest, output = str(image.root / "demo/manifest.parquet"), str(image.root / "clips")
    job = ["python", "app/jobs/render.py", "app/configs/debug.yaml", "--manifest", manifest, "--output", output]
    checkpoint = f"model.checkpoint={image.root / 'demo/checkpoint'}"
    assert "rendered 0 now" in said(image, *job, "--limit", "0", checkpoint)


def test_what_stays_in_the_image_s_folder_is_what_runs_from_there(image: Any) -> None:
    left = {str(path.relative_to(image.root / "app")) for path in (image.root / "app").iterdir()}
    assert left >= {"jobs", "configs", "cluster"}
    assert not left & {"wan_ray", "build"}, "a second copy of the package"
    assert [path.name for path in (image.root / "app" / "cluster").iterdir()] == ["watch_preemption.py"]
