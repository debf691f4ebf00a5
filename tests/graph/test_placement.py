"""A run that does not fit is refused before it starts."""

from pathlib import Path

import pytest

from wan_ray.config import RenderConfig
from wan_ray.errors import CheckpointError, ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]


def changed(config: RenderConfig, *, stage: str, gang: dict | None = None, **settings: object) -> RenderConfig:
    """The config with other settings of a stage, and of the gang."""
    data = config.model_dump()
    data["stages"][stage] |= settings
    data["model"]["gang"] = gang
    return RenderConfig.model_validate(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": "denoise", "replicas": 2, "num_gpus": 1}, r"2 GPUs.*has 0.*num_gpus"),
        ({"stage": "decode", "replicas": 100}, "CPUs"),
        ({"stage": "denoise", "num_gpus": 1, "gang": {"ulysses_degree": 4}}, r"4 GPUs.*has 0"),
        ({"stage": "denoise", "replicas": 3, "gang": {"ring_degree": 16}}, r"CPUs and the cluster has 6"),
        ({"stage": "denoise", "replicas": {"min": 40, "max": 50}}, r"CPUs and the cluster has 6"),
    ],
)
def test_a_run_that_reserves_more_than_the_cluster_has_is_refused(
    debug_config: RenderConfig, settings: dict, message: str
) -> None:
    from wan_ray.graph.placement import check_fit

    check_fit(debug_config)
    with pytest.raises(ConfigError, match=message):
        check_fit(changed(debug_config, **settings))


def test_a_pool_that_may_grow_beyond_the_cluster_is_let_start(debug_config: RenderConfig) -> None:
    from wan_ray.graph.placement import check_fit

    check_fit(changed(debug_config, stage="denoise", replicas={"min": 1, "max": 50}, gang={"ulysses_degree": 2}))


def test_ranks_that_exchange_heads_share_a_bundle_and_with_it_a_node(cluster: None) -> None:
    import ray

    from wan_ray.degrees import Degrees
    from wan_ray.graph.placement import Resources, bundle_of_rank, group_name, reserve_group, sweep_groups

    degrees = Degrees(cfg=2, ulysses=2, ring=1)
    group = reserve_group(group_name("here", "leader"), degrees, Resources(cpus=0.1, gpus=0.0))
    assert group.wait(30)
    assert group.bundle_specs == [{"CPU": 0.2}, {"CPU": 0.2}]
    assert bundle_of_rank(group, degrees) == [0, 0, 1, 1]
    assert reserve_group(group_name("here", "leader"), degrees, Resources(cpus=0.1, gpus=0.0)).id == group.id
    sweep_groups("elsewhere")
    assert ray.util.placement_group_table(group)["state"] == "CREATED"
    sweep_groups("here")
    assert ray.util.placement_group_table(group)["state"] == "REMOVED"


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
