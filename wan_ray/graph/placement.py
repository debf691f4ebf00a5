"""Does a run fit its cluster, and are its weights right? Asked before a worker starts and fails, or waits for ever."""

from pathlib import Path

import ray

from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError

_OTHERS_CPUS = 0.1  # reading


def check_fit(config: RenderConfig) -> None:
    """Raise ConfigError when the stages reserve more than the connected cluster has."""
    stages = [getattr(config.stages, name) for name in type(config.stages).model_fields]
    have = ray.cluster_resources()
    for resource, wanted in (
        ("CPU", sum(s.replicas * s.num_cpus for s in stages) + _OTHERS_CPUS),
        ("GPU", sum(s.replicas * s.num_gpus for s in stages)),
    ):
        if wanted > have.get(resource, 0.0) + 1e-6:
            raise ConfigError(
                f"the stages reserve {wanted:g} {resource}s and the cluster has {have.get(resource, 0.0):g}; "
                f"lower replicas or num_{resource.lower()}s under stages, or add nodes"
            )


def check_weights(config: RenderConfig) -> None:
    """Raise CheckpointError when a checkpoint, as seen from here, is not the model it should be; reads shapes only.

    A URL is left to the workers, and so is a path that only other nodes may have.
    """
    # Imported here: it brings torch.
    from wan_ray.stages.loader import StageLoader

    for section in config.all_models:
        elsewhere = not Path(section.checkpoint).expanduser().exists() and len(ray.nodes()) > 1
        if "://" not in section.checkpoint and not elsewhere:
            StageLoader(model=section).check()
