"""Decodes in a process that is refused memory; writes what came of each row. Run by test_memory.py."""

import hashlib
import json
import sys
from dataclasses import replace

import torch
from little_memory import Told, at_most_more

from wan_ray.config import ModelSection, VideoSection
from wan_ray.errors import OutOfMemoryError
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant

MB = 1 << 20


def item_of(side: int) -> Item:
    fields = {"id": str(side), "prompt": "A red car", "width": side, "height": side, "num_frames": 5}
    request = resolve(RenderRequest.model_validate(fields), get_variant("debug"))
    latents = torch.randn(16, 2, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    item = Item(name=request.id, id=request.id, row=0, request=request, prompt=request.prompt)
    return replace(item, tensors={"latents": latents})


def main() -> None:
    torch.set_num_threads(1)
    model = ModelSection(variant="debug", checkpoint=sys.argv[1], device="cpu")
    loader = StageLoader(model=model, video=VideoSection(preset="ultrafast", threads=1))
    told = Told("wan_ray.stages.memory")
    decode, large, small = loader.decode(), item_of(512), item_of(64)
    found: dict[str, dict] = {}

    def note(name: str, item: Item) -> None:
        told.lines.clear()
        done = decode(item)
        assert done.clip is not None
        digest = hashlib.sha256(done.clip.data).hexdigest()
        found[name] = {"sha256": digest, "rendered_on": dict(done.rendered_on), "told": list(told.lines)}

    note("enough", large)
    note("small", small)
    with at_most_more(250 * MB):
        note("little", large)
        note("small, with little", small)
    note("enough, after little", large)
    with at_most_more(90 * MB):
        note("less", large)
    try:
        with at_most_more(4 * MB):
            decode(large)
    except OutOfMemoryError as error:
        found["none"] = {"message": str(error)}
    note("small, after none", small)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
