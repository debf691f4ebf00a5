"""Does a run fit its cluster? Asked before anything starts, since an actor that fits nowhere waits for ever."""

import ray

from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError

_OTHERS_CPUS = 1.1  # reading, and splitting into blocks of one row, which Ray Data does with a whole CPU


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
