"""Triton kernels of a block's element-wise work, without a GPU: interpreted on the CPU, and compiled for an H100."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wan_ray.model.fused import elementwise_kernels

KERNELS = ("modulate", "gate", "norm", "norm and turn")
WIDTHS = (192, 1536, 5120, 96)  # most of them no powers of two


@pytest.fixture(scope="module")
def report() -> dict:
    pytest.importorskip("triton", reason="Triton comes with the extra gpu")
    code = [sys.executable, str(Path(__file__).with_name("kernels_on_cpu.py"))]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_round_where_plain_pytorch_does(report: dict, width: int) -> None:
    """In float16: the interpreter rounds to it as GPUs do, and cuts bfloat16 off."""
    for kernel in KERNELS:
        found = report[f"float16 {width}"][kernel]
        assert found["largest"] < 2**-10, kernel
        assert found["share"] < 0.002, kernel  # those that float32's last bit puts on the other side of a half


@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_compute_in_float32(report: dict, width: int) -> None:
    for kernel in KERNELS:
        assert report[f"float32 {width}"][kernel]["largest"] < 1e-6, kernel
        assert report[f"bfloat16 {width}"][kernel]["largest"] < 2**-6, kernel
    for dtype in ("float32", "float16", "bfloat16"):  # x + y * gate has no sum whose order could differ
        assert report[f"{dtype} {width}"]["gate"]["share"] == 0


def test_the_check_before_first_use_finds_them_alike(report: dict) -> None:
    assert report["checked"] == [None, None, None]


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("width", [1536, 5120])
def test_kernels_compile_for_an_h100_and_round_to_nearest(width: int, tmp_path: Path, monkeypatch) -> None:
    triton = pytest.importorskip("triton", reason="Triton comes with the extra gpu")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from wan_ray.model import triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    block = triton.next_power_of_2(width)
    streams = {"x_ptr": "*fp32", "out_ptr": "*bf16"}
    for kernel, types, sizes in (
        (kernels._layer_norm_kernel, {**streams, "scale_ptr": "*fp32", "shift_ptr": "*fp32"}, {"eps": 1e-6}),
        (kernels._gate_kernel, {"x_ptr": "*fp32", "y_ptr": "*bf16", "gate_ptr": "*fp32", "out_ptr": "*fp32"}, {}),
        (
            kernels._rms_norm_kernel,
            {"x_ptr": "*bf16", "weight_ptr": "*fp32", "turns_ptr": "*fp32", "out_ptr": "*bf16"},
            {"eps": 1e-6, "PAIRS": 64},
        ),
    ):
        constants = {**sizes, "WIDTH": width, "BLOCK": block}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names) if name in types}
        options = {name: value for name, value in kernels._options(width).items() if name != "BLOCK"}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        text = compiled.asm["ptx"]
        assert len(compiled.asm["cubin"]) > 1000
        assert set(re.findall(r"cvt\.(r\w)", text)) <= {"rn"}  # to nearest
        assert not re.findall(r"fma\.rn\.f32", text), kernel  # as eager: a product, rounded, and a sum, rounded
        assert "ld.global.v4.b32" in text  # 16 bytes at a time
        assert ".local" not in text  # nothing spilled


def test_no_kernel_is_compiled_anew_for_another_clip() -> None:
    """Triton compiles by the values of numbers: there are none but those of the model."""
    pytest.importorskip("triton", reason="Triton comes with the extra gpu")
    from wan_ray.model import triton_kernels as kernels

    for kernel in (kernels._layer_norm_kernel, kernels._gate_kernel, kernels._rms_norm_kernel):
        given = {parameter.name for parameter in kernel.params if not parameter.is_constexpr}
        assert given
        assert all(name.endswith("_ptr") for name in given)
        assert {parameter.name for parameter in kernel.params} - given <= {"eps", "WIDTH", "BLOCK", "PAIRS"}


def test_on_a_cpu_plain_pytorch_does_the_work() -> None:
    assert elementwise_kernels(torch.device("cpu")) == "torch"
