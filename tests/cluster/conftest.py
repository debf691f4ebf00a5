"""Environments as a cluster has them: one without this package, and one that the Dockerfile's steps made."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fnmatch
import re
import shutil
import site
import subprocess
import venv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Image:
    """What the Dockerfile made, under a folder in place of /: its steps, those that were run, and its environment."""

    root: Path
    environment: Path
    steps: list[tuple[str, str]]
    run: list[str] = field(default_factory=list)

    @property
    def bin(self) -> Path:
        return self.environment / "bin"


def dockerfile_steps() -> list[tuple[str, str]]:
    """Instructions and their arguments, in order."""
    text = (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def in_context(path: str) -> bool:
    """Whether .dockerignore leaves this path, relative to the root, in the build's context: the last match decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            parts = path.split("/")
            parents = ["/".join(parts[: n + 1]) for n in range(len(parts))]
            candidates = parts if pattern.startswith("**/") else parents
            if any(fnmatch.fnmatchcase(one, pattern.removeprefix("**/")) for one in candidates):
                kept = line.startswith("!")
    return kept


@cache
def context_files() -> list[str]:
    """Paths of the build's context, as the checkout has them."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        # An ignored folder may hold a file that is not, but .git and environments hold none and many others.
        folders[:] = [name for name in folders if name not in (".git", ".venv", "out")]
        relative = Path(folder).relative_to(ROOT)
        found += [str(relative / name) for name in names if in_context(str(relative / name))]
    return found


@pytest.fixture(scope="session")
def build_context() -> list[str]:
    """Paths of the files that `docker build` is given."""
    return context_files()


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with this one's packages, out of pip's reach, but without wan_ray."""
    folder = tmp_path_factory.mktemp("bare")
    return make_environment(folder / "venv", packages=folder / "packages", with_pip=False)


def make_environment(folder: Path, *, packages: Path, with_pip: bool) -> Path:
    packages.mkdir()
    for place in site.getsitepackages():
        for entry in Path(place).iterdir():
            if not re.match(r"wan_ray|__editable__|pip\b|.*\.pth$", entry.name):
                (packages / entry.name).symlink_to(entry)
    venv.create(folder, with_pip=with_pip, symlinks=True)
    (inner,) = folder.glob("lib/python*/site-packages")
    (inner / "others.pth").write_text(f"{packages}\n")
    script = folder / "bin" / "ray"
    script.write_text(f"#!{folder}/bin/python\nfrom ray.scripts.scripts import main\nmain()\n")
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The Dockerfile's COPY and pip steps, carried out in a folder and a scratch environment.

    The step that installs what others wrote is resolved against the constraints but not carried out: it would fetch
    gigabytes, and the environment has them. apt-get and the making of a user are left out.
    """
    folder = tmp_path_factory.mktemp("image")
    made = Image(
        root=folder / "root",
        environment=make_environment(folder / "venv", packages=folder / "packages", with_pip=True),
        steps=dockerfile_steps(),
    )
    environment = {**os.environ, "PATH": f"{made.bin}:/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    here = made.root
    for instruction, argument in made.steps:
        if instruction == "ARG":
            name, _, value = argument.partition("=")
            environment[name] = value
        elif instruction == "WORKDIR":
            here = made.root / argument.lstrip("/")
            here.mkdir(parents=True)
        elif instruction == "COPY":
            copy(argument.split(), here)
        elif instruction == "RUN" and "pip install" in argument:
            command = argument if "--no-deps" in argument else argument.replace("pip install", "pip install --dry-run")
            done = subprocess.run(
                ["bash", "-euc", command],
                cwd=here,
                env=environment,
                capture_output=True,
                text=True,
                timeout=280,
                check=False,
            )
            assert done.returncode == 0, f"RUN {argument}\n{done.stdout}\n{done.stderr}"
            made.run.append(argument)
    return made


def copy(arguments: list[str], here: Path) -> None:
    """COPY of files, and of folders' contents, out of the context."""
    *sources, target = arguments
    for source in sources:
        if source in context_files():
            copies = {source: here / target / Path(source).name if target.endswith("/") else here / target}
        else:
            inside = [name for name in context_files() if name.startswith(f"{source}/")]
            copies = {name: here / target / Path(name).relative_to(source) for name in inside}
        assert copies, f"COPY {source}: not in the context"
        for name, place in copies.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place)
