"""Clips are stopped on one layout of ranks and gone on with on another; reports where, and what came out."""

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import worlds
from clips import CPU, difference, digest, make_item, write_dit

from wan_ray.degrees import Degrees
from wan_ray.errors import ClipStoppedError, ProgressError
from wan_ray.parallel.process_group import Groups, open_groups
from wan_ray.parallel.sequence import torch_attention
from wan_ray.stages.denoise import DenoiseStage, Place
from wan_ray.stages.items import Item
from wan_ray.stages.pause import Pause

NUM_STEPS, STOP_AT = 6, 3  # the middle: unipc's and dpm++'s memory is full
ONE, ULYSSES, RING, CFG = Degrees(), Degrees(ulysses=2), Degrees(ring=2), Degrees(cfg=2)
HYBRID, FOUR = Degrees(cfg=2, ulysses=2), Degrees(ulysses=2, ring=2)
SOLVERS = ("unipc", "dpm++", "euler")
# Stopped on the first, gone on with on the second.
MOVES = [(ULYSSES, CFG), (CFG, HYBRID), (HYBRID, ONE), (ONE, ULYSSES), (RING, RING), (RING, ULYSSES), (CFG, FOUR)]

MODEL = write_dit(Path(sys.argv[2]) / "t2v", "t2v").load_dit(dtype=torch.float32, device=CPU)[0]
ITEMS: dict[str, Item] = {s: make_item("t2v", solver=s, num_inference_steps=NUM_STEPS) for s in SOLVERS}
WANTED = {s: DenoiseStage(MODEL, "w", Place(device=CPU))(ITEMS[s]).tensors["latents"] for s in SOLVERS}


def stage(groups: Groups | None) -> DenoiseStage:
    attention = None if groups is None or groups.sequence is None else torch_attention(groups)
    return DenoiseStage(MODEL, "w", Place(device=CPU, groups=groups, attention=attention))


def attempt(denoise: DenoiseStage, item: Item, resume: bytes | None, pause: Pause | None) -> dict[str, object]:
    """The steps that were done, and how it ended."""
    steps: list[int] = []
    try:
        done = denoise(item, lambda step, _: steps.append(step), resume=resume, pause=pause)
    except ClipStoppedError as error:
        return {"steps": steps, "stopped": str(error)}
    latents = done.tensors["latents"]
    return {"steps": steps, "digest": digest(latents), "off": difference(latents, WANTED[item.sound.solver])}


def stop_at(step: int, *, rank: int) -> tuple[Pause, list[bytes]]:
    """A pause that saves, and stops before a step; on other ranks than 0 it says to stop at once, which counts not."""
    saved: list[bytes] = []
    asked = iter(range(NUM_STEPS + 1))
    stop = partial(_reason, asked, step) if rank == 0 else (lambda: "this rank does not decide")
    return Pause(save=saved.append, save_every_s=1e9, should_stop=stop), saved


def _reason(asked: "iter[int]", step: int) -> str | None:
    return "preempted" if next(asked) == step else None


def on_ranks(degrees: Degrees, act: Callable[[Groups | None, int], object]) -> list:
    """What act(groups, rank) returns on each rank; without groups where there is one."""
    if degrees.world_size == 1:
        return [act(None, 0)]

    def program(rank: int, address: str) -> object:
        with open_groups(degrees, rank=rank, address=address, timeout_s=30, device=CPU) as groups:
            return act(groups, rank)

    return worlds.run(degrees.world_size, program, timeout_s=90)


def stopped(groups: Groups | None, rank: int) -> dict[str, object]:
    found = {}
    for solver, item in ITEMS.items():
        pause, saved = stop_at(STOP_AT, rank=rank)
        found[solver] = {**attempt(stage(groups), item, None, pause), "saved": saved}
    return found


def resumed(saved: dict[str, bytes], groups: Groups | None, rank: int) -> dict[str, object]:
    return {solver: attempt(stage(groups), item, saved[solver], None) for solver, item in ITEMS.items()}


def uninterrupted(groups: Groups | None, rank: int) -> dict[str, object]:
    return {solver: attempt(stage(groups), item, None, None) for solver, item in ITEMS.items()}


def at_any_time(groups: Groups | None, rank: int) -> dict[str, object]:
    """A deadline that passes, and a cancel that comes, in the middle of a step: rank 0 sees them, all heed them."""
    item = make_item("t2v", num_inference_steps=500)
    deadline = time.monotonic() + 0.3
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    passed = Pause(should_stop=lambda: "late" if time.monotonic() > deadline else None)
    cancel = Pause(should_stop=lambda: "cancelled" if cancelled.is_set() else None)
    return {
        "deadline": attempt(stage(groups), item, None, passed if rank == 0 else None),
        "cancel": attempt(stage(groups), item, None, cancel if rank == 0 else None),
    }


def of_another(groups: Groups | None, rank: int) -> list[str]:
    """What all ranks say to a progress of a clip with another seed: none may start alone."""
    other = make_item("t2v", seed=12, num_inference_steps=NUM_STEPS)
    pause, saved = stop_at(STOP_AT, rank=0)
    attempt(stage(None), other, None, pause)
    try:
        stage(groups)(ITEMS["unipc"], resume=saved[0])
    except ProgressError as error:
        return str(error)
    return ""


def main() -> None:
    moves = []
    kept: dict[str, list] = {}
    for before, after in MOVES:
        halves = kept.setdefault(str(before), None) or on_ranks(before, stopped)
        kept[str(before)] = halves
        saved = {solver: halves[0][solver]["saved"][-1] for solver in SOLVERS}
        moves.append({"before": str(before), "after": str(after), "ranks": on_ranks(after, partial(resumed, saved))})
    for half in (solver for ranks in kept.values() for rank in ranks for solver in rank.values()):
        half["saved"] = len(half["saved"])
    results = {
        "wanted": {solver: digest(latents) for solver, latents in WANTED.items()},
        "stopped": kept,
        "moves": moves,
        "ring": on_ranks(RING, uninterrupted),
        "at any time": on_ranks(HYBRID, at_any_time),
        "of another": on_ranks(ULYSSES, of_another),
    }
    worlds.report(results)


if __name__ == "__main__":
    main()
