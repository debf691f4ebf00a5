"""Weights in shares, with and without sequence parallelism; reports what each rank computes and how much it holds."""

import sys
from functools import partial
from pathlib import Path
from weakref import WeakSet

import torch
import worlds
from clips import CPU, difference, digest, make_item, write_dit
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan_ray.degrees import Degrees
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.text_encoder import encode_prompt
from wan_ray.parallel.fsdp import load_sharded_text_encoder
from wan_ray.parallel.offload import Offload
from wan_ray.parallel.process_group import open_groups
from wan_ray.stages.denoise import DenoiseStage
from wan_ray.stages.items import Item

LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 2, 1)]
FOLDER = Path(sys.argv[2])
LARGE_BLOCKS = 12
IDS = [5, 17, 42, 1]

CHECKPOINTS = {kind: write_dit(FOLDER / kind, kind) for kind in ("t2v", "flf2v", "vace")}
# Random weights change by 0.5 to 0.9 from step to step: some of the first one's are not computed, by any rank.
FIELDS: dict[str, dict[str, float]] = {"t2v": {"num_inference_steps": 6, "step_cache": 0.7}}
ITEMS: dict[str, Item] = {kind: make_item(kind, **FIELDS.get(kind, {})) for kind in CHECKPOINTS}
LARGE = write_dit(FOLDER / "large", "t2v", dim=192, ffn_dim=2048, num_layers=LARGE_BLOCKS, text_dim=64)
LARGE_ITEM = make_item("t2v", text_dim=64, num_inference_steps=1, guidance_scale=1.0)
write_debug_checkpoint(FOLDER / "whole")
TEXT_ENCODER = find_checkpoint(FOLDER / "whole")


def load(checkpoint, **more) -> DenoiseStage:
    return DenoiseStage.load(checkpoint, dtype=torch.float32, device=CPU, strategy="torch", **more)


# Of one process that holds everything: before ranks are forked from here.
WANTED = {kind: load(checkpoint)(ITEMS[kind]).tensors["latents"] for kind, checkpoint in CHECKPOINTS.items()}
TEXT = encode_prompt(TEXT_ENCODER.load_text_encoder(dtype=torch.float32, device=CPU)[0], IDS)


class Memory(TorchDispatchMode):
    """Bytes of the tensors that come into being while it is entered and are there at the same time, at most.

    Counted when one is made; weights that lie in a mapped file come from none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: WeakSet[torch.UntypedStorage] = WeakSet()
        self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {id(storage) for storage in storages((args, kwargs))}
        out = operation(*args, **(kwargs or {}))
        if made := [storage for storage in storages(out) if id(storage) not in given]:
            self._made.update(made)
            self.peak = max(self.peak, sum(storage.nbytes() for storage in self._made))
        return out


def storages(tree: object) -> list[torch.UntypedStorage]:
    tensors = [x.to_local() if isinstance(x, DTensor) else x for x in tree_leaves(tree) if isinstance(x, Tensor)]
    return [x.untyped_storage() for x in tensors if not x.is_meta]


class Gathered:
    """How many of a model's blocks have whole weights at a time, as its modules are called."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self._blocks, self.most = blocks, 0
        for block in blocks:
            for module in block.modules():
                module.register_forward_pre_hook(lambda *_: self._count())

    def _count(self) -> None:
        whole = [b for b in self._blocks if not all(isinstance(p, DTensor) for p in b.parameters())]
        self.most = max(self.most, len(whole))


def held_bytes(model: nn.Module) -> tuple[int, int]:
    """Of its parameters here, and of all ranks'."""
    parameters = list(model.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    return sum(p.to_local().nbytes for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


def shares(degrees: Degrees, rank: int, address: str) -> dict[str, object]:
    """Every kind of model, in shares, and the text encoder."""
    with open_groups(degrees, rank=rank, address=address, timeout_s=60, device=CPU) as groups:
        kinds = {}
        for kind, checkpoint in CHECKPOINTS.items():
            stage = load(checkpoint, groups=groups, fsdp=True, offload="blocks" if kind == "vace" else "none")
            latents = stage(ITEMS[kind]).tensors["latents"]
            held, whole = held_bytes(stage.model)
            kinds[kind] = {
                "digest": digest(latents),
                "wanted": digest(WANTED[kind]),
                "off": difference(latents, WANTED[kind]),
                "share": held / whole,
            }
        encoder, _ = load_sharded_text_encoder(TEXT_ENCODER, groups, dtype=torch.float32)
        text = encode_prompt(encoder, IDS)
        held, whole = held_bytes(encoder)
        return {"kinds": kinds, "text": {"equal": torch.equal(text, TEXT), "share": held / whole}}


def memory(rank: int, address: str) -> dict[str, object]:
    """What a rank of two takes to load and run a model that is large beside all else."""
    with open_groups(Degrees(ulysses=2), rank=rank, address=address, timeout_s=60, device=CPU) as groups:
        with Memory() as memory:
            stage = load(LARGE, groups=groups, fsdp=True)
            loading = memory.peak
            gathered = Gathered(list(stage.model.blocks))
            stage(LARGE_ITEM)
        held, whole = held_bytes(stage.model)
        return {"loading": loading, "peak": memory.peak, "held": held, "whole": whole, "blocks": gathered.most}


def offloaded(offload: Offload) -> dict[str, bool]:
    """In one process: whether each kind of model gives the same bits from host memory."""
    found = {kind: load(checkpoint, offload=offload)(ITEMS[kind]) for kind, checkpoint in CHECKPOINTS.items()}
    return {kind: torch.equal(item.tensors["latents"], WANTED[kind]) for kind, item in found.items()}


def main() -> None:
    results: dict[str, object] = {
        "memory": worlds.run(2, memory, timeout_s=90),
        "offload": {offload: offloaded(offload) for offload in ("model", "blocks")},
    }
    for cfg, ulysses, ring in LAYOUTS:
        degrees = Degrees(cfg=cfg, ulysses=ulysses, ring=ring)
        results[f"{cfg} {ulysses} {ring}"] = worlds.run(degrees.world_size, partial(shares, degrees), timeout_s=120)
    worlds.report(results)


if __name__ == "__main__":
    main()
