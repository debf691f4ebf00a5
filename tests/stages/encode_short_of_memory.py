"""Encodes an image in a process that is refused memory; writes what came of each row. Run by test_memory.py.

On a CPU, a model that waits in host memory waits where it is: so it is tiles that make the difference here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from little_memory import Told, at_most_more
from PIL import Image

from wan_ray.config import ModelSection
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant

MB = 1 << 20


def item_of(side: int, image: Path) -> Item:
    fields = {"id": str(side), "prompt": "A red car", "width": side, "height": side, "num_frames": 5, "task": "i2v"}
    request = resolve(RenderRequest.model_validate({**fields, "image": str(image)}), get_variant("debug-i2v"))
    return Item(name=request.id, id=request.id, row=0, request=request, prompt=request.prompt)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    write_debug_checkpoint(folder / "i2v", kind="i2v")
    image = folder / "image.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (512, 512, 3), np.uint8)).save(image)
    encode = StageLoader(model=ModelSection(variant="debug-i2v", checkpoint=str(folder / "i2v"), device="cpu")).encode()
    told = Told("wan_ray.stages.memory")
    large, small = item_of(512, image), item_of(64, image)
    found: dict[str, dict] = {}
    wanted = encode(large).tensors

    def note(name: str, item: Item) -> Item:
        told.lines.clear()
        done = encode(item)
        found[name] = {"rendered_on": dict(done.rendered_on), "told": len(told.lines)}
        return done

    with at_most_more(250 * MB):
        little = note("little", large).tensors
        note("small", small)
    again = note("again", large).tensors
    for tensors, name in ((little, "little"), (again, "again")):
        found[name]["farthest"] = max((tensors[part] - wanted[part]).abs().max().item() for part in wanted)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
