"""Ranks meet, part, and miss each other; reports who shares what, and how long what goes wrong takes."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
import worlds
from clips import CPU
from torch.distributed import ProcessGroup

from wan_ray.degrees import Degrees
from wan_ray.errors import GangError
from wan_ray.parallel.process_group import Groups, open_groups

LAYOUTS = [(1, 4, 1), (1, 1, 4), (1, 2, 2), (2, 2, 1), (2, 1, 2), (1, 2, 1), (2, 1, 1), (1, 1, 1)]
TIMEOUT_S = 2.0
AXES = ("world", "control", "sequence", "ulysses", "ring", "cfg")


def timed(act: Callable[[], object]) -> dict[str, object]:
    """What an act raises, and after how long."""
    start = time.monotonic()
    try:
        act()
    except (GangError, RuntimeError) as error:
        return {"seconds": time.monotonic() - start, "type": type(error).__name__, "message": str(error)}
    return {"seconds": time.monotonic() - start, "type": None, "message": ""}


def groups_by_axis(groups: Groups) -> dict[str, ProcessGroup]:
    found = {axis: getattr(groups, axis) for axis in AXES}
    return {axis: group for axis, group in found.items() if group is not None}


def total(group: ProcessGroup, value: int) -> int:
    told = torch.tensor([value])
    dist.all_reduce(told, group=group)
    return int(told)


def members(degrees: Degrees, rank: int, address: str) -> dict[str, object]:
    """The ranks of each of this rank's groups, as a sum of powers of two that was really exchanged."""
    with open_groups(degrees, rank=rank, address=address, timeout_s=30, device=CPU) as groups:
        by_axis = groups_by_axis(groups)
        timeouts = {axis: group._get_backend(CPU).options._timeout.total_seconds() for axis, group in by_axis.items()}
        sums = {axis: total(group, 1 << rank) for axis, group in by_axis.items()}
        places = [groups.sequence_rank, groups.ulysses_rank, groups.ring_rank, groups.cfg_rank]
        return {
            "ranks": {axis: [n for n in range(8) if sums[axis] >> n & 1] for axis in sums},
            "timeouts": timeouts,
            "places": places,
            "told": groups.from_leader(40 + rank),
        }


def one_is_silent(degrees: Degrees, axes: list[str], rank: int, address: str) -> dict[str, object] | None:
    """The last rank does nothing; each other waits for it on one axis, then leaves."""
    groups = open_groups(degrees, rank=rank, address=address, timeout_s=TIMEOUT_S, device=CPU)
    if rank == len(axes):
        time.sleep(TIMEOUT_S + 2)
        return None
    group = groups_by_axis(groups)[axes[rank]]
    waited = timed(partial(total, group, 1))
    return {"waited": waited, "left": timed(groups.close), "closed": not dist.is_initialized()}


def one_dies(rank: int, address: str) -> dict[str, object] | None:
    """Its peer hears of it at once, and can leave."""
    degrees = Degrees(ulysses=2)
    groups = open_groups(degrees, rank=rank, address=address, timeout_s=60, device=CPU)
    if rank == 1:
        worlds.vanish()
    assert groups.sequence is not None
    waited = timed(partial(total, groups.sequence, 1))
    return {"waited": waited, "left": timed(groups.close), "closed": not dist.is_initialized()}


def one_never_comes(rank: int, address: str) -> dict[str, object] | None:
    """Rank 2 of 3 does not; then the two that came meet by themselves in the same processes."""
    if rank == 2:
        return None
    three = Degrees(ring=3)
    missed = timed(lambda: open_groups(three, rank=rank, address=address, timeout_s=TIMEOUT_S, device=CPU))
    return {"missed": missed, "open": dist.is_initialized()}


def gang_after_gang(rank: int, address: str) -> dict[str, object]:
    """Two layouts, one after the other, in one process and by one address; a second one at a time is refused."""
    sums, refused = [], {}
    for degrees in (Degrees(cfg=2), Degrees(ulysses=2), Degrees(ring=2)):
        with open_groups(degrees, rank=rank, address=address, timeout_s=20, device=CPU) as groups:
            sums.append(total(groups.world, 1 << rank))
            again = partial(open_groups, degrees, rank=rank, address=address, timeout_s=20, device=CPU)
            refused = timed(again)
        groups.close()  # once more: nothing happens
    return {"sums": sums, "refused": refused, "open": dist.is_initialized()}


def main() -> None:
    results: dict[str, object] = {}
    for cfg, ulysses, ring in LAYOUTS:
        degrees = Degrees(cfg=cfg, ulysses=ulysses, ring=ring)
        ranks = worlds.run(degrees.world_size, partial(members, degrees), timeout_s=60)
        results[f"{cfg} {ulysses} {ring}"] = ranks
    results["silent"] = {
        "world, ring, ulysses": worlds.run(
            4, partial(one_is_silent, Degrees(ulysses=2, ring=2), ["sequence", "ring", "ulysses"]), timeout_s=60
        ),
        "control, cfg, sequence": worlds.run(
            4, partial(one_is_silent, Degrees(cfg=2, ulysses=2), ["control", "cfg", "sequence"]), timeout_s=60
        ),
    }
    results["dies"] = worlds.run(2, one_dies, timeout_s=60)
    results["never comes"] = worlds.run(3, one_never_comes, timeout_s=60)
    results["gang after gang"] = worlds.run(2, gang_after_gang, timeout_s=60)
    worlds.report(results)


if __name__ == "__main__":
    main()
