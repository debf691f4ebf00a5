"""Fixtures of all tests."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flaky_s3 import FlakyS3
    from torch import Tensor

_GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=int, default=40, help="how long tests/serving/test_fuzz.py sends requests")


@pytest.fixture(scope="session")
def debug_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint in the released layout; its weights are those the goldens were made with."""
    from wan_ray.model.debug import write_debug_checkpoint

    folder = tmp_path_factory.mktemp("debug-checkpoint")
    write_debug_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def golden() -> "Callable[[str], tuple[dict[str, Tensor], dict[str, object]]]":
    """golden(kind): what the released code computed, and the request it was given, as arguments of RenderRequest."""
    from safetensors.torch import load_file

    from wan_ray.request import FIELDS

    def load(kind: str) -> "tuple[dict[str, Tensor], dict[str, object]]":
        request = json.loads((_GOLDENS / "a" / f"{kind}.json").read_text(encoding="utf-8"))
        fields = {name: value for name, value in request.items() if name in FIELDS}
        return load_file(_GOLDENS / "a" / f"{kind}.safetensors"), {"task": kind.partition("-")[0], **fields}

    return load


@pytest.fixture(scope="session")
def golden_json() -> Callable[[str], dict]:
    """golden_json(name): one of the goldens that are JSON, such as "schedules"."""
    return lambda name: json.loads((_GOLDENS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def relative_error() -> "Callable[[Tensor, Tensor], float]":
    """relative_error(found, wanted): length of the difference over the length of what is wanted, of equal shapes."""

    def error(found: "Tensor", wanted: "Tensor") -> float:
        assert found.shape == wanted.shape
        found, wanted = found.float(), wanted.float()
        return ((found - wanted).norm() / wanted.norm()).item()

    return error


@pytest.fixture(scope="session")
def released_shapes(golden_json: Callable[[str], dict]) -> Callable[[str], dict[str, tuple[int, ...]]]:
    """released_shapes(model): shape of each tensor of a released model."""
    packed = golden_json("released_shapes")

    def shapes(model: str) -> dict[str, tuple[int, ...]]:
        return {
            name.replace("#", str(block)): tuple(shape)
            for name, shape, blocks in packed[model]
            for block in (blocks if blocks is not None else [""])
        }

    return shapes


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> "Iterator[FlakyS3]":
    """An S3 with a bucket named "bucket" that s3fs finds by itself; it fails as its fields are set."""
    import fsspec.config
    import s3fs
    from flaky_s3 import flaky_s3

    with flaky_s3(seed=3) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        fsspec.config.set_conf_env(fsspec.config.conf)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield server
        fsspec.config.conf.pop("s3", None)
        s3fs.S3FileSystem.clear_instance_cache()
