"""Denoises in a process that is refused memory in a step; writes what came of each row. Run by test_memory.py.

On a CPU, weights that wait in host memory wait where they are: so the memory comes back as the stage tries again.
"""

import hashlib
import json
import sys
from contextlib import ExitStack

import torch
from little_memory import Told, at_most_more

from wan_ray.config import ModelSection
from wan_ray.errors import OutOfMemoryError
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant


def item_of(width: int, height: int) -> Item:
    fields = {"id": str(width), "prompt": "A red car", "width": width, "height": height, "num_frames": 5}
    request = resolve(RenderRequest.model_validate({**fields, "num_inference_steps": 5}), get_variant("debug"))
    return Item(name=request.id, id=request.id, row=0, request=request, prompt=request.prompt)


def main() -> None:
    torch.set_num_threads(1)
    loader = StageLoader(model=ModelSection(variant="debug", checkpoint=sys.argv[1], device="cpu"))
    encode, denoise = loader.encode(), loader.denoise()
    large, small = encode(item_of(416, 240)), encode(item_of(64, 64))
    found: dict[str, dict] = {}

    def note(name: str, item: Item, *, refuse_at: int | None = None, relieved: bool = True) -> None:
        limit, steps = ExitStack(), []
        told = Told("wan_ray.stages.memory", heard=limit.close if relieved else lambda: None)

        def on_step(done: int, _: int) -> None:
            steps.append(done)
            if done == refuse_at:
                limit.enter_context(at_most_more(0))

        try:
            done = denoise(item, on_step)
        except OutOfMemoryError as error:
            found[name] = {"message": str(error), "steps": steps}
            return
        finally:
            limit.close()
        latents = hashlib.sha256(done.tensors["latents"].numpy().tobytes()).hexdigest()
        offload = done.rendered_on.get("offload")
        found[name] = {"latents": latents, "offload": offload, "steps": steps, "told": len(told.lines)}

    note("enough", large)
    note("small", small)
    note("refused", large, refuse_at=3)
    note("small, after refused", small)
    note("again", large)
    note("refused for good", large, refuse_at=2, relieved=False)
    note("after all", large)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
