"""The strategies: attention across ranks by xfuser's USP on GPUs, or in plain PyTorch, on the same groups."""

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from wan_ray.errors import ConfigError, MissingExtraError
from wan_ray.parallel.process_group import Groups
from wan_ray.parallel.sequence import Attention, torch_attention

logger = logging.getLogger(__name__)

Strategy = Literal["auto", "torch", "xfuser"]


def choose_attention(groups: Groups, strategy: Strategy, *, num_heads: int, dtype: torch.dtype) -> Attention:
    """Attention over a gang's ranks; "auto" takes xfuser's where it can be used, and the log says why or why not.

    MissingExtraError when strategy "xfuser" is not installed, ConfigError when it cannot run here.
    """
    if strategy == "torch":
        return torch_attention(groups)
    obstacle = _obstacle(groups, num_heads, dtype)
    if obstacle is None:
        try:
            attention = xfuser_attention(groups, num_heads=num_heads)
        except MissingExtraError as error:
            if strategy == "xfuser":
                raise
            obstacle = str(error)
        else:
            logger.info("attention across ranks: rank=%d strategy=xfuser wanted=%s", groups.rank, strategy)
            return attention
    elif strategy == "xfuser":
        raise ConfigError(f"gang.strategy='xfuser' cannot be used: {obstacle}; use 'torch' or 'auto'")
    logger.info("attention across ranks: rank=%d strategy=torch wanted=%s why=%s", groups.rank, strategy, obstacle)
    return torch_attention(groups)


def _obstacle(groups: Groups, num_heads: int, dtype: torch.dtype) -> str | None:
    """Why xfuser's attention cannot be used for any clip of a gang."""
    if groups.device.type != "cuda":
        return f"it needs a GPU, and this rank computes on {groups.device.type}"
    if dtype == torch.float32:
        return "its kernels take 16 bits, and the model computes in float32"
    if num_heads % groups.degrees.ulysses:
        return f"ulysses_degree={groups.degrees.ulysses} does not divide the model's {num_heads} heads"
    return None


def xfuser_attention(groups: Groups, *, num_heads: int, backend: str | None = None) -> Attention:
    """xfuser's USP on these groups; plain PyTorch on the same ones for clips where USP is not exact.

    backend: an attention kernel by xfuser's name; without one xfuser takes the best it finds. num_heads must be a
    multiple of the Ulysses degree. All ranks call it. MissingExtraError when xfuser, or what it needs, is not there.
    """
    try:
        from xfuser.model_executor.layers.usp import USP
    # Without a GPU xfuser raises NotImplementedError as it is imported, and AssertionError without its long context.
    except (ImportError, NotImplementedError, AssertionError) as error:
        raise MissingExtraError(f'xfuser cannot be used: {error}; pip install "wan-ray[xfuser]"') from error
    _adopt(groups, num_heads=num_heads, backend=backend)
    portable = torch_attention(groups)

    def attention(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, num_tokens: int) -> Tensor:
        padded = num_tokens < q_BNHD.shape[1] * groups.degrees.sequence
        if padded and groups.ring is not None:  # USP's ring attends to the padding
            return portable(q_BNHD, k_BNHD, v_BNHD, num_tokens)
        q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
        cut = {"valid_kv_len": num_tokens} if padded else None
        return USP(q, k, v, combine_qkv_a2a=True, attention_kwargs=cut).transpose(1, 2)

    return attention


def _adopt(groups: Groups, *, num_heads: int, backend: str | None) -> None:
    """Make xfuser's world out of this gang; it has one per process."""
    from torch.distributed import distributed_c10d
    from xfuser.config import xFuserArgs
    from xfuser.core.distributed import (
        init_distributed_environment,
        initialize_model_parallel,
        initialize_runtime_state,
        parallel_state,
    )
    from yunchang.globals import PROCESS_GROUP

    degrees = groups.degrees
    kind = "nccl" if groups.device.type == "cuda" else "gloo"
    # A rank sees one GPU, its own: local_rank is 0 on all.
    init_distributed_environment(rank=groups.rank, world_size=degrees.world_size, local_rank=0, backend=kind)
    groups.on_close.append(parallel_state.destroy_distributed_environment)
    initialize_model_parallel(
        classifier_free_guidance_degree=degrees.cfg,
        sequence_parallel_degree=degrees.sequence,
        ulysses_degree=degrees.ulysses,
        ring_degree=degrees.ring,
        backend=kind,
    )
    groups.on_close.append(parallel_state.destroy_model_parallel)
    # xfuser makes dozens of groups with the default timeout of half an hour. Those that USP exchanges on are replaced
    # by the gang's, and the others get its timeout.
    if groups.ulysses is not None:
        PROCESS_GROUP.ULYSSES_PG = groups.ulysses
    if groups.ring is not None:
        PROCESS_GROUP.RING_PG = groups.ring
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=groups.timeout_s), group)
    config, _ = xFuserArgs(
        ulysses_degree=degrees.ulysses,
        ring_degree=degrees.ring,
        use_cfg_parallel=degrees.cfg == 2,
        attention_backend=backend,
    ).create_config()
    sizes = SimpleNamespace(config=SimpleNamespace(num_attention_heads=num_heads))
    # All it asks of a pipeline.
    initialize_runtime_state(cast(Any, SimpleNamespace(transformer=sizes)), config)
