"""The stages on the debug checkpoint, loaded once, and items for them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from asking import item_of, section_of, server

from wan_ray.config import ModelSection, VideoSection
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.decode import DecodeStage
from wan_ray.stages.denoise import DenoiseStage
from wan_ray.stages.encode import EncodeStage
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant

__all__ = ["item_of", "section_of", "server"]
MakeItem = Callable[..., Item]


@pytest.fixture(scope="session")
def loader(debug_checkpoint: Path) -> StageLoader:
    model = ModelSection(variant="debug", checkpoint=str(debug_checkpoint), device="cpu")
    return StageLoader(model=model, video=VideoSection(preset="ultrafast", threads=1))


@pytest.fixture(scope="session")
def loaded_encode(loader: StageLoader) -> EncodeStage:
    return loader.encode()


@pytest.fixture
def encode(loaded_encode: EncodeStage) -> EncodeStage:
    """With nothing kept from other tests."""
    return EncodeStage(loaded_encode.encoder, loaded_encode.tokenizer, loaded_encode.fingerprint)


@pytest.fixture(scope="session")
def denoise(loader: StageLoader) -> DenoiseStage:
    return loader.denoise()


@pytest.fixture(scope="session")
def decode(loader: StageLoader) -> DecodeStage:
    return loader.decode()


@pytest.fixture(scope="session")
def make_item() -> MakeItem:
    """An item of a small, quick request; its fields may be given."""

    def make(**fields: object) -> Item:
        small = {"id": "a", "prompt": "A red car", "width": 64, "height": 32, "num_frames": 5, "num_inference_steps": 2}
        if fields.get("task") == "t2i":
            small["num_frames"] = 1
        request = resolve(RenderRequest.model_validate({**small, **fields}), get_variant("debug"))
        return Item(name=request.id, id=request.id, row=0, request=request, prompt=request.prompt)

    return make
