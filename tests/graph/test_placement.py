"""A run that does not fit is refused before it starts."""

import pytest

from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]


def test_stages_that_reserve_more_than_the_cluster_has_are_named(debug_config: RenderConfig) -> None:
    from wan_ray.graph.placement import check_fit

    check_fit(debug_config)
    stages = debug_config.stages
    greedy = stages.model_copy(update={"denoise": stages.denoise.model_copy(update={"replicas": 2, "num_gpus": 1.0})})
    with pytest.raises(ConfigError, match=r"2 GPUs.*has 0.*num_gpus"):
        check_fit(debug_config.model_copy(update={"stages": greedy}))
    many = stages.model_copy(update={"decode": stages.decode.model_copy(update={"replicas": 100})})
    with pytest.raises(ConfigError, match="CPUs"):
        check_fit(debug_config.model_copy(update={"stages": many}))
