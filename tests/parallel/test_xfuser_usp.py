"""xfuser's attention and ours: the same on the same inputs, what we use of xfuser, and which one is chosen and why."""

import logging
import sys
from typing import Any, cast

import pytest
import torch

from wan_ray.degrees import Degrees
from wan_ray.errors import ConfigError, MissingExtraError
from wan_ray.parallel.process_group import Groups
from wan_ray.parallel.xfuser_usp import choose_attention

ULYSSES, RING = ["1 2 1", "2 2 1"], ["1 1 2", "1 2 2"]
EVEN, UNEVEN = "96", "93"
USED = {
    "USP": ["query", "key", "value", "combine_qkv_a2a", "attention_kwargs"],
    "init_distributed_environment": ["rank", "world_size", "local_rank", "backend"],
    "initialize_model_parallel": [
        "classifier_free_guidance_degree",
        "sequence_parallel_degree",
        "ulysses_degree",
        "ring_degree",
        "backend",
    ],
    "initialize_runtime_state": ["pipeline", "engine_config"],
    "xFuserArgs": ["ulysses_degree", "ring_degree", "use_cfg_parallel", "attention_backend"],
    "create_config": ["self"],
    "destroy_model_parallel": [],
    "destroy_distributed_environment": [],
    "_set_pg_timeout": ["timeout", "group"],
}


@pytest.fixture(scope="module")
def report(launch) -> dict:
    return launch("xfuser")


@pytest.mark.parametrize("name", USED)
def test_xfuser_has_the_names_and_parameters_that_we_use(report, name):
    found = report["contract"]["parameters"][name]
    assert set(USED[name]) <= set(found)
    if name == "USP":  # these are passed by position
        assert found[:3] == ["query", "key", "value"]
    if name == "initialize_runtime_state":
        assert found == USED[name]
    if name.startswith("destroy"):
        assert found == []


def test_usp_exchanges_on_what_yunchang_s_process_group_names(report):
    assert report["contract"]["process group"] == ["ULYSSES_PG", "RING_PG"]
    assert report["contract"]["one process group"]
    assert report["contract"]["pg map"]


@pytest.mark.parametrize("layout", ULYSSES + RING)
def test_usp_exchanges_on_the_gang_s_groups_and_all_that_xfuser_makes_have_its_timeout(report, layout):
    for rank in report[layout]:
        assert rank["exchanges on ours"]
        assert rank["num groups"] > 10
        assert rank["timeouts"] == [40.0]


@pytest.mark.parametrize("layout", ULYSSES + RING)
@pytest.mark.parametrize("length", [EVEN, UNEVEN])
def test_xfuser_s_attention_and_ours_are_one_process_s(report, layout, length):
    for rank in report[layout]:
        found = rank["lengths"][length]
        assert max(found["theirs"], found["ours"]) == 0 if layout in ULYSSES else 0 < found["ours"] < 1e-6
        assert found["theirs"] < 1e-6


@pytest.mark.parametrize("layout", ULYSSES + RING)
def test_usp_is_what_runs_but_for_padded_clips_on_a_ring(report, layout):
    for rank in report[layout]:
        assert rank["lengths"][EVEN]["calls"] == 1
        assert rank["lengths"][UNEVEN]["calls"] == (1 if layout in ULYSSES else 0)


def test_usp_by_itself_attends_to_the_pad_on_a_ring(report):
    """Why padded clips on a ring are ours; when this fails, xfuser can be given them."""
    assert min(report["bare"]) > 1e-3


@pytest.mark.parametrize("layout", ULYSSES + RING)
@pytest.mark.parametrize("clip", ["even", "uneven"])
def test_a_clip_denoised_with_xfuser_is_one_process_s(report, layout, clip):
    found = [rank["clips"][clip] for rank in report[layout]]
    assert all(one["equal"] for one in found) if layout in ULYSSES else True
    assert max(one["off"] for one in found) < 1e-5
    assert len({one["digest"] for one in found}) == 1


def test_one_process_can_be_in_one_xfuser_gang_after_the_other(report):
    for first, second, third in report["again"]:
        assert first == third == 0
        assert second < 1e-6


def groups_of(device: str, **degrees: int) -> Groups:
    """As far as a choice looks at them; nothing is exchanged."""
    nobody = cast(Any, None)
    return Groups(
        degrees=Degrees(**degrees),
        rank=1,
        device=torch.device(device),
        timeout_s=1,
        world=nobody,
        control=nobody,
        sequence=None,
        ulysses=None,
        ring=None,
        cfg=None,
    )


# Groups, heads and dtype for which xfuser's attention cannot be used, and the reason given.
OBSTACLES = [
    (groups_of("cpu", ulysses=2), 4, torch.bfloat16, "it needs a GPU, and this rank computes on cpu"),
    (groups_of("cuda", ulysses=2), 4, torch.float32, "its kernels take 16 bits, and the model computes in float32"),
    (groups_of("cuda", ulysses=8), 12, torch.bfloat16, "ulysses_degree=8 does not divide the model's 12 heads"),
]


@pytest.mark.parametrize(("groups", "num_heads", "dtype", "why"), OBSTACLES)
def test_auto_takes_ours_where_xfuser_s_cannot_be_and_the_log_says_why(caplog, groups, num_heads, dtype, why):
    with caplog.at_level(logging.INFO, logger="wan_ray"):
        choose_attention(groups, "auto", num_heads=num_heads, dtype=dtype)
    assert caplog.messages == [f"attention across ranks: rank=1 strategy=torch wanted=auto why={why}"]


@pytest.mark.parametrize(("groups", "num_heads", "dtype", "why"), OBSTACLES)
def test_xfuser_where_it_cannot_be_used_is_an_error_that_says_why_and_what_to_use(groups, num_heads, dtype, why):
    with pytest.raises(ConfigError) as refused:
        choose_attention(groups, "xfuser", num_heads=num_heads, dtype=dtype)
    assert str(refused.value) == f"gang.strategy='xfuser' cannot be used: {why}; use 'torch' or 'auto'"


@pytest.fixture
def no_xfuser(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """A gang on GPUs where xfuser is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "xfuser"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "xfuser", None)
    return groups_of("cuda", ulysses=2)


def test_auto_takes_ours_where_xfuser_is_not_installed_and_the_log_says_why(caplog, no_xfuser):
    with caplog.at_level(logging.INFO, logger="wan_ray"):
        choose_attention(no_xfuser, "auto", num_heads=4, dtype=torch.bfloat16)
    (message,) = caplog.messages
    assert message.startswith("attention across ranks: rank=1 strategy=torch wanted=auto why=xfuser cannot be used: ")
    assert message.endswith('pip install "wan-ray[xfuser]"')


def test_xfuser_where_it_is_not_installed_names_the_extra(no_xfuser):
    with pytest.raises(MissingExtraError, match=r'pip install "wan-ray\[xfuser\]"'):
        choose_attention(no_xfuser, "xfuser", num_heads=4, dtype=torch.bfloat16)


def test_torch_is_ours_without_a_word(caplog):
    with caplog.at_level(logging.INFO, logger="wan_ray"):
        choose_attention(groups_of("cuda", ulysses=2), "torch", num_heads=4, dtype=torch.bfloat16)
    assert caplog.messages == []
