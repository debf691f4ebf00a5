"""Linear layers of the DiT's blocks with weights of 8 bits, by torchao, which nothing else needs.

Weights have a scale per output channel. int8 computes in the model's dtype everywhere: torchao's products of int8
activations, which want a compiler, move four times the bytes without one, and take 25 times as long on a CPU. float8
has its activations quantized too, with a scale per token, on GPUs that multiply it; elsewhere it computes as int8 does.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from wan_ray.errors import MissingExtraError
from wan_ray.variants import Quantization

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

_LINEAR = re.compile(r"(vace_)?blocks\.\d+\.(self_attn|cross_attn|ffn)\..*\bweight")
_FLOAT8_CAPABILITY = (8, 9)  # Ada, Hopper and later


def quantizes_activations(quantization: Quantization, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether activations are quantized too: by float8, in the one dtype and on the GPUs that torchao does it for."""
    if quantization != "float8" or dtype != torch.bfloat16 or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY


def quantizer(
    quantization: Quantization, *, dtype: torch.dtype, device: torch.device
) -> Callable[[str, nn.Module], None] | None:
    """Quantizes the weight of that name in its module, if it is one of a block's linear layers; None for "none".

    MissingExtraError when torchao cannot be imported.
    """
    if quantization == "none":
        return None
    with_activations = quantizes_activations(quantization, dtype=dtype, device=device)
    quantize, config = _torchao(quantization, with_activations=with_activations)

    def apply(name: str, module: nn.Module) -> None:
        if _LINEAR.fullmatch(name) and isinstance(module, nn.Linear):
            quantize(module, config)

    return apply


def quantized_fingerprint(fingerprint: str, quantization: Quantization) -> str:
    """Of weights with that fingerprint, once they are quantized."""
    return fingerprint if quantization == "none" else f"{fingerprint}-{quantization}"


def told_of(quantization: Quantization, *, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """What a record says of quantized layers on that device; nothing of others."""
    if quantization == "none":
        return {}
    with_activations = quantizes_activations(quantization, dtype=dtype, device=device)
    return {"quantization": quantization, **({"activations": quantization} if with_activations else {})}


@contextmanager
def importing_torchao() -> Iterator[None]:
    """Silence around an import of it, or of transformers, which brings it: it warns of extensions nobody needs."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _torchao(
    quantization: Quantization, *, with_activations: bool
) -> tuple[Callable[[nn.Module, "AOBaseConfig"], None], "AOBaseConfig"]:
    try:
        with importing_torchao():
            from torchao.quantization import (
                Float8DynamicActivationFloat8WeightConfig,
                Float8WeightOnlyConfig,
                Int8WeightOnlyConfig,
                PerRow,
                quantize_,
            )
    except ImportError as error:
        raise MissingExtraError(
            f'model.quantization={quantization!r} needs torchao: {error}; pip install "wan-ray[quant]"'
        ) from None
    # set_inductor_config would change settings of the whole process, for a compiler that is not used.
    if with_activations:
        return quantize_, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    weights_only = Int8WeightOnlyConfig if quantization == "int8" else Float8WeightOnlyConfig
    return quantize_, weights_only(set_inductor_config=False)
