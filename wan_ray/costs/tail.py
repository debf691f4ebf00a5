"""The tail of a run: its last clips on larger gangs, so that no GPU waits for the last one."""

from collections.abc import Sequence
from dataclasses import dataclass

from wan_ray.costs.layout import Estimate, Layout, most_gangs


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The last clips of a run on larger gangs: how many clips, in which layout, and how much sooner the run ends."""

    num_clips: int
    layout: Layout
    sooner_s: float


def tail_layout(
    num_clips: int, chosen: Estimate, estimates: Sequence[Estimate], *, num_gpus: int, gpus_per_node: int = 8
) -> Tail | None:
    """How to widen the last wave of equal clips, so that it does not leave GPUs idle; None when nothing is won.

    Whole waves of the chosen layout come first; the last of them may be widened too. estimates: of the layouts there
    are for that shape.
    """
    gangs = most_gangs(chosen.layout.num_gpus, num_gpus=num_gpus, gpus_per_node=gpus_per_node)
    if not gangs:
        return None
    waves, plain = num_clips // gangs, -(-num_clips // gangs) * chosen.seconds
    best: Tail | None = None
    for wide in estimates:
        at_once = most_gangs(wide.layout.num_gpus, num_gpus=num_gpus, gpus_per_node=gpus_per_node)
        if not wide.fits or not at_once or wide.layout.num_gpus <= chosen.layout.num_gpus:
            continue
        for whole in range(waves, max(-1, waves - 2), -1):
            rest = num_clips - whole * gangs
            sooner = plain - whole * chosen.seconds - -(-rest // at_once) * wide.seconds
            if sooner > (best.sooner_s if best else 0):
                best = Tail(num_clips=rest, layout=wide.layout, sooner_s=sooner)
    return best
