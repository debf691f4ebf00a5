"""xfuser's own attention on the groups of a gang; reports how far it and ours are from one process's, and its face."""

import inspect
import sys
from functools import partial
from pathlib import Path

import torch
import worlds
from clips import CPU, difference, digest, make_item, write_dit
from torch import Tensor
from torch.distributed import distributed_c10d
from xfuser_shim import import_xfuser, register_cpu_flash_attention

from wan_ray.degrees import Degrees
from wan_ray.model.attention import attend
from wan_ray.parallel.process_group import Groups, open_groups
from wan_ray.parallel.sequence import Attention, SequenceParallel, torch_attention
from wan_ray.parallel.xfuser_usp import xfuser_attention
from wan_ray.stages.denoise import DenoiseStage, Place

LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2)]
HEADS, WIDTH = 4, 24
LENGTHS = (96, 93)  # a multiple of all degrees, and one that needs pad
TIMEOUT_S = 40
SIZES = {"even": (128, 64, 5), "uneven": (80, 80, 9)}  # 64 and 75 tokens

import_xfuser()
register_cpu_flash_attention()
MODEL = write_dit(Path(sys.argv[2]) / "t2v", "t2v").load_dit(dtype=torch.float32, device=CPU)[0]
ITEMS = {name: make_item("t2v", size=size) for name, size in SIZES.items()}
LATENTS = {name: DenoiseStage(MODEL, "w", Place(device=CPU))(item).tensors["latents"] for name, item in ITEMS.items()}


def inputs(length: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(length)
    return [torch.randn(2, length, HEADS, WIDTH, generator=random) for _ in range(3)]


def attended(groups: Groups, attention: Attention, length: int) -> Tensor:
    """By this rank's part of the inputs, whole again."""
    layout = SequenceParallel(groups=groups, num_tokens=length, attention=attention, pad=50.0)
    out = layout.attend(*(layout.shard(x, dim=1) for x in inputs(length)))
    return layout.gather(out.flatten(2)).unflatten(2, (HEADS, WIDTH))


def counted() -> list[int]:
    """A list that gets the length of the keys of each call of xfuser's USP from now on."""
    from xfuser.model_executor.layers import usp

    calls, original = [], usp.USP

    def spied(query: Tensor, key: Tensor, value: Tensor, **more: object) -> Tensor:
        calls.append(key.shape[2])
        return original(query, key, value, **more)

    usp.USP = spied
    return calls


def program(degrees: Degrees, rank: int, address: str) -> dict[str, object]:
    from yunchang.globals import PROCESS_GROUP

    calls = counted()
    with open_groups(degrees, rank=rank, address=address, timeout_s=TIMEOUT_S, device=CPU) as groups:
        # The kernel that the ring needs returns its log-sum-exp; the other is the one that one process takes.
        backend = "SDPA" if groups.ring is None else "SDPA_FLASH"
        theirs, ours = xfuser_attention(groups, num_heads=HEADS, backend=backend), torch_attention(groups)
        lengths = {}
        for length in LENGTHS:
            wanted = attend(*inputs(length))
            found = {"theirs": attended(groups, theirs, length), "ours": attended(groups, ours, length)}
            lengths[length] = {name: difference(out, wanted) for name, out in found.items()}
            lengths[length]["calls"] = len(calls)
            calls.clear()
        place = Place(device=CPU, groups=groups, attention=theirs)
        clips = {}
        for name, item in ITEMS.items():
            latents = DenoiseStage(MODEL, "w", place)(item).tensors["latents"]
            off = difference(latents, LATENTS[name])
            clips[name] = {"off": off, "equal": torch.equal(latents, LATENTS[name]), "digest": digest(latents)}
        pairs = [(groups.ulysses, PROCESS_GROUP.ULYSSES_PG), (groups.ring, PROCESS_GROUP.RING_PG)]
        made = list(distributed_c10d._world.pg_map)
        return {
            "lengths": lengths,
            "clips": clips,
            "exchanges on ours": all(mine is used for mine, used in pairs if mine is not None),
            "num groups": len(made),
            "timeouts": sorted({group._get_backend(CPU).options._timeout.total_seconds() for group in made}),
        }


def bare(rank: int, address: str) -> float:
    """What USP makes of pad that it is not told of, on a ring: the reason why ours takes such clips."""
    from xfuser.model_executor.layers.usp import USP

    with open_groups(Degrees(ring=2), rank=rank, address=address, timeout_s=TIMEOUT_S, device=CPU) as groups:
        xfuser_attention(groups, num_heads=HEADS, backend="SDPA_FLASH")

        def attention(q: Tensor, k: Tensor, v: Tensor, num_tokens: int) -> Tensor:
            return USP(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

        return difference(attended(groups, attention, LENGTHS[1]), attend(*inputs(LENGTHS[1])))


def again(rank: int, address: str) -> list[float]:
    """One gang after the other, of other layouts, in one process."""
    off = []
    for degrees in (Degrees(ulysses=2), Degrees(ring=2), Degrees(ulysses=2)):
        with open_groups(degrees, rank=rank, address=address, timeout_s=TIMEOUT_S, device=CPU) as groups:
            attention = xfuser_attention(groups, num_heads=HEADS, backend="SDPA_FLASH")
            off.append(difference(attended(groups, attention, LENGTHS[0]), attend(*inputs(LENGTHS[0]))))
    return off


def contract() -> dict[str, object]:
    """The parts of xfuser, yunchang and torch that are not public, or not promised, and that we rest on."""
    from xfuser.config import xFuserArgs
    from xfuser.core.distributed import (
        init_distributed_environment,
        initialize_model_parallel,
        initialize_runtime_state,
    )
    from xfuser.core.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
    from xfuser.model_executor.layers import usp
    from yunchang.globals import PROCESS_GROUP

    used = {
        "USP": usp.USP,
        "init_distributed_environment": init_distributed_environment,
        "initialize_model_parallel": initialize_model_parallel,
        "initialize_runtime_state": initialize_runtime_state,
        "destroy_model_parallel": destroy_model_parallel,
        "destroy_distributed_environment": destroy_distributed_environment,
        "xFuserArgs": xFuserArgs,
        "create_config": xFuserArgs.create_config,
        "_set_pg_timeout": distributed_c10d._set_pg_timeout,
    }
    return {
        "parameters": {name: list(inspect.signature(what).parameters) for name, what in used.items()},
        "process group": [name for name in vars(PROCESS_GROUP) if name.endswith("_PG")],
        "one process group": usp.PROCESS_GROUP is PROCESS_GROUP,
        "pg map": isinstance(distributed_c10d._world.pg_map, dict),
    }


def main() -> None:
    results: dict[str, object] = {"contract": contract()}
    for cfg, ulysses, ring in LAYOUTS:
        degrees = Degrees(cfg=cfg, ulysses=ulysses, ring=ring)
        results[f"{cfg} {ulysses} {ring}"] = worlds.run(degrees.world_size, partial(program, degrees), timeout_s=90)
    results["bare"] = worlds.run(2, bare, timeout_s=60)
    results["again"] = worlds.run(2, again, timeout_s=60)
    worlds.report(results)


if __name__ == "__main__":
    main()
