"""Does a run fit its cluster, and are its weights right? Asked before a worker starts and fails, or waits for ever.

Also where ranks go: a placement group has one bundle for each group of Ulysses ranks, so that they share a node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group

from wan_ray.config import GangSection, ModelSection, RenderConfig, StageSection
from wan_ray.degrees import Degrees
from wan_ray.errors import ConfigError

LEADER_CPUS = 0.05
_OTHERS_CPUS = 0.1  # reading
_ROUNDING = 1e-6
_PREFIX = "wan-gang-"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What something reserves of the cluster."""

    cpus: float
    gpus: float

    def __mul__(self, count: int) -> "Resources":
        return Resources(cpus=self.cpus * count, gpus=self.gpus * count)

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(cpus=self.cpus + other.cpus, gpus=self.gpus + other.gpus)

    def times_in(self, resources: dict[str, float]) -> int:
        """How many of these a node with these resources holds."""
        wanted = (("CPU", self.cpus), ("GPU", self.gpus))
        return min(int((resources.get(name, 0.0) + _ROUNDING) / amount) for name, amount in wanted if amount > 0)


def gang_of(model: ModelSection) -> GangSection:
    """The gang that renders the model's clips: one rank unless the config says otherwise."""
    return GangSection() if model.gang is None or model.gang == "auto" else model.gang


def rank_resources(section: StageSection) -> Resources:
    """What one rank reserves."""
    return Resources(cpus=section.num_cpus, gpus=section.num_gpus)


def reserve_group(name: str, degrees: Degrees, rank: Resources) -> PlacementGroup:
    """The placement group of this name, which an earlier life of the same leader may have left, or a new one."""
    try:
        return ray.util.get_placement_group(name)
    except ValueError:
        pass
    whole = rank * degrees.world_size
    fits_a_node = any(whole.times_in(node) for node in _node_resources())
    return placement_group(bundles_of(degrees, rank), strategy="STRICT_PACK" if fits_a_node else "PACK", name=name)


def bundles_of(degrees: Degrees, rank: Resources) -> list[dict[str, float]]:
    """One bundle for each group of Ulysses ranks."""
    block = rank * degrees.ulysses
    bundle = {"CPU": round(block.cpus, 4), **({"GPU": block.gpus} if block.gpus else {})}
    return [bundle] * (degrees.world_size // degrees.ulysses)


def bundle_of_rank(group: PlacementGroup, degrees: Degrees, *, num_others: int = 0) -> list[int]:
    """Bundle of each rank. Bundles are taken node by node, so that neighbours in the ring are near where possible.

    The first num_others bundles are not for ranks.
    """
    node_of: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    bundles = sorted(list(node_of)[num_others:], key=lambda bundle: (node_of[bundle], bundle))
    return [bundles[rank // degrees.ulysses] for rank in range(degrees.world_size)]


def group_name(run_id: str, actor_id: str) -> str:
    """Name of a leader's placement group. An actor's id outlives its process."""
    return f"{_PREFIX}{run_id}-{actor_id}"


def sweep_groups(run_id: str) -> None:
    """Remove the placement groups that leaders of the run have left: Ray keeps them until the job ends."""
    table: dict[str, dict[str, Any]] = placement_group_table()
    for entry in table.values():
        if entry["name"].startswith(group_name(run_id, "")) and entry["state"] != "REMOVED":
            try:
                remove_placement_group(ray.util.get_placement_group(entry["name"]))
            except ValueError:  # its leader was quicker
                continue


def check_fit(config: RenderConfig) -> None:
    """Raise ConfigError when the stages' least number of workers reserves more than the connected cluster has."""
    have = ray.cluster_resources()
    for model in config.all_models:
        needed = others_least(config) + gangs_least(config, model)
        for resource, wanted in (("CPU", needed.cpus), ("GPU", needed.gpus)):
            if wanted > have.get(resource, 0.0) + _ROUNDING:
                raise ConfigError(
                    f"the stages reserve {wanted:g} {resource}s and the cluster has {have.get(resource, 0.0):g}; "
                    f"lower replicas or num_{resource.lower()}s under stages, or add nodes"
                )
        _check_gangs(config.stages.denoise, gang_of(model).degrees)


def others_least(config: RenderConfig) -> Resources:
    """What all but the gangs reserve at least."""
    stages = config.stages
    needed = Resources(cpus=_OTHERS_CPUS + LEADER_CPUS * stages.denoise.replicas.max, gpus=0.0)
    extend = (stages.extend,) if config.extend is not None else ()
    for section in (*extend, stages.encode, stages.decode, stages.publish):
        needed += rank_resources(section) * section.replicas.min
    return needed


def gangs_least(config: RenderConfig, model: ModelSection) -> Resources:
    """What the ranks of the least number of gangs reserve."""
    section = config.stages.denoise
    return rank_resources(section) * (gang_of(model).degrees.world_size * section.replicas.min)


def _check_gangs(section: StageSection, degrees: Degrees) -> None:
    rank, world_size = rank_resources(section), degrees.world_size
    if world_size > 1 and not float(rank.gpus).is_integer():
        raise ConfigError(
            f"stages.denoise.num_gpus={rank.gpus:g}: the {world_size} ranks of a gang cannot share a GPU; use 1"
        )
    block, nodes = rank * degrees.ulysses, _node_resources()
    room, wanted = sum(block.times_in(node) for node in nodes), section.replicas.min * world_size // degrees.ulysses
    if room < wanted:
        raise ConfigError(
            f"{section.replicas.min} gangs of {degrees} need {wanted} times {block.gpus:g} GPUs and {block.cpus:g} "
            f"CPUs on one node, where Ulysses ranks must be, and the nodes have room for {room}; lower "
            "stages.denoise.replicas or the degrees, or add nodes"
        )


def _node_resources() -> Sequence[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away."""
    # Ray has no public name for it; its own trainer reads it here too (ray/train/v2/_internal/execution/preemption.py).
    return set(ray._private.state.state.get_draining_nodes())


def check_weights(config: RenderConfig) -> dict[str, str]:
    """Fingerprints of the DiTs by variant; CheckpointError when a checkpoint, as seen from here, is another model.

    Reads shapes only. A URL is left to the workers, and so is a path that only other nodes may have.
    """
    # Imported here: it brings torch.
    from wan_ray.stages.loader import StageLoader

    found = {}
    for section in config.all_models:
        elsewhere = not Path(section.checkpoint).expanduser().exists() and len(ray.nodes()) > 1
        if "://" not in section.checkpoint and not elsewhere:
            found[section.variant] = StageLoader(model=section).check()
    return found
