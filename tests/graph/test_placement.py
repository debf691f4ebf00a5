"""A run that does not fit is refused before it starts."""

from pathlib import Path

import pytest

from wan_ray.config import RenderConfig
from wan_ray.errors import CheckpointError, ConfigError

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


def test_weights_that_are_another_model_are_refused_before_a_worker_starts(
    debug_config: RenderConfig, tmp_path: Path
) -> None:
    from wan_ray.graph.placement import check_weights

    check_weights(debug_config)
    other = debug_config.model.model_copy(update={"variant": "t2v-1.3B"})
    with pytest.raises(CheckpointError, match="dim 96 instead of 1536"):
        check_weights(debug_config.model_copy(update={"model": other}))
    nowhere = debug_config.model.model_copy(update={"checkpoint": str(tmp_path / "nowhere")})
    with pytest.raises(CheckpointError, match="does not exist"):
        check_weights(debug_config.model_copy(update={"model": nowhere}))
