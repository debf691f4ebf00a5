"""Import the real xfuser on a CPU build of torch: patches while it is imported, none afterwards."""

import contextlib
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Iterator
from unittest import mock

import torch


@contextlib.contextmanager
def _fake_cuda() -> Iterator[None]:
    """xfuser looks at these as it is imported, and leaves its sequence parallelism out where they find no GPU."""
    properties = types.SimpleNamespace(gcnArchName="", name="cpu-shim")
    with (
        mock.patch.object(torch.version, "cuda", "12.8"),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch.cuda, "current_device", lambda: 0),
        mock.patch.object(torch.cuda, "get_device_properties", lambda *_: properties),
    ):
        yield


@contextlib.contextmanager
def _some_triton() -> Iterator[None]:
    """xfuser imports triton for kernels that are not used here; a CPU build of torch comes without it."""
    if importlib.util.find_spec("triton") is not None:
        yield
        return
    stand_ins = {"triton": mock.MagicMock(), "triton.language": mock.MagicMock()}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def import_xfuser() -> None:
    """From here on `import xfuser` gives a working xfuser for gloo."""
    os.environ.setdefault("LOG_LEVEL", "error")
    # These are settled first: they must not remember the fake state.
    import accelerate  # noqa: F401
    import diffusers
    import transformers  # noqa: F401
    import yunchang  # noqa: F401

    _ = diffusers.WanPipeline, diffusers.WanTransformer3DModel, diffusers.WanVACETransformer3DModel
    with _some_triton(), _fake_cuda():
        import xfuser.core.distributed.attention_backend
        import xfuser.model_executor.layers.usp  # noqa: F401
    from xfuser import envs

    assert envs.get_device_name() == "cpu"
    assert envs.PACKAGES_CHECKER.get_packages_info()["has_long_ctx_attn"]
    logging.getLogger("xfuser").setLevel(logging.ERROR)


def register_cpu_flash_attention() -> None:
    """Ring needs attention with its log-sum-exp: the CPU's, under the name of the one for GPUs."""
    from xfuser.core.distributed.attention_backend import AttentionBackendType, register_attention_function

    @register_attention_function(AttentionBackendType.SDPA_FLASH)
    def attention(query, key, value, dropout_p, is_causal, attention_kwargs=None):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p=dropout_p, is_causal=is_causal
        )[:2]
