"""FSDP: each rank of a gang holds a share of every weight, and whole blocks only while they are used (FSDP2)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.lora import Adapter
from wan_ray.model.weights import TensorFiles, check_shapes, shapes_of
from wan_ray.parallel.process_group import Groups

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel


def load_sharded_dit(
    checkpoint: Checkpoint,
    groups: Groups,
    *,
    dtype: torch.dtype,
    adapters: Sequence[Adapter] = (),
    on_host: bool = False,
) -> tuple[DiT, str]:
    """The denoiser with this rank's share of its weights, in host memory if on_host, and their fingerprint.

    All ranks call it. Each reads its own share from the files, which are mapped into memory: a node reads them once.
    """
    model, tensors = checkpoint.empty_dit(device=groups.device, adapters=adapters)
    # VACE's projections are called apart from their block, so they are gathered apart from it.
    ends = [module for name, module in model.named_modules() if name.endswith(("before_proj", "after_proj"))]
    units = [*ends, *model.blocks_in_order()]
    _load_sharded_(
        model, units, tensors, groups, dtype_of=lambda name: parameter_dtype(name, dtype), what="DiT", on_host=on_host
    )
    register_fsdp_forward_method(model, "encode_context")
    for block in model.blocks_in_order():
        register_fsdp_forward_method(block, "sources")
    return model.eval(), tensors.fingerprint


def load_sharded_text_encoder(
    checkpoint: Checkpoint, groups: Groups, *, dtype: torch.dtype, on_host: bool = False
) -> tuple["UMT5EncoderModel", str]:
    """umT5 with this rank's share of its weights, and their fingerprint; all ranks call it, and encode together."""
    model, tensors = checkpoint.empty_text_encoder()
    units = list(model.encoder.block)
    _load_sharded_(model, units, tensors, groups, dtype_of=lambda _: dtype, what="text encoder", on_host=on_host)
    return model.eval(), tensors.fingerprint


def _load_sharded_(
    model: nn.Module,
    units: Sequence[nn.Module],
    tensors: TensorFiles,
    groups: Groups,
    *,
    dtype_of: Callable[[str], torch.dtype],
    what: str,
    on_host: bool,
) -> None:
    """Divide a model that is still on the meta device, then fill each rank's shares, one tensor after the other."""
    check_shapes(shapes_of(model), tensors.shapes, what=what)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype_of(name))
    mesh = DeviceMesh.from_group(groups.world, groups.device.type)
    policy = CPUOffloadPolicy(pin_memory=groups.device.type == "cuda") if on_host else OffloadPolicy()
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
    model.to_empty(device="cpu" if on_host else groups.device)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        held = parameter.to_local()
        shares = tensors.read(name).chunk(mesh.size(), dim=0)
        if held.numel():
            held.copy_(shares[groups.rank])
