"""`wan-ray bench --engine` on a CPU, at sizes that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wan_ray.cli import INVALID, OK, main
from wan_ray.costs.flops import dit_block, dit_pass
from wan_ray.model.attention import WHOLE
from wan_ray.model.blocks import Block
from wan_ray.model.debug import DebugSizes
from wan_ray.speed.account import KINDS
from wan_ray.variants import VARIANTS, DiTArchitecture

ENGINE = ["bench", "--engine", "--device", "cpu", "--size", "64x32", "--frames", "5"]
FIGURES = [
    "text keys and values",
    "q, k, v: three products",
    "q, k, v: one product",
    "self-attention",
    "DiT block",
    "DiT pass",
    "two passes as one batch",
    "step",
    "step, blocks offloaded",
]


def measured(tmp_path: Path, *flags: str) -> dict:
    file = tmp_path / "new" / "engine.json"
    assert main([*ENGINE, *flags, "--json", str(file)]) == OK
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_part_is_measured_and_a_block_s_time_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = measured(tmp_path)
    figures = report["figures"]
    assert list(figures) == [*FIGURES, "VAE decode", "VAE encode", "text encoder, 512 tokens"]
    for figure in figures.values():
        assert 3 <= len(figure["samples_ms"]) <= 20
        assert min(figure["samples_ms"]) <= figure["ms"] <= max(figure["samples_ms"])
        assert figure["flops_per_s"] == pytest.approx(figure["flops"] / figure["ms"] * 1000)
        assert figure["utilisation"] == pytest.approx(figure["flops_per_s"] / report["product_flops_per_s"])
        assert figure["moved_bytes_per_s"] > 0
        assert figure["peak_bytes"] is None  # torch does not tell it of a CPU
    num_tokens, sizes = 2 * 4 * 2, DebugSizes().dit
    assert figures["step"]["flops"] == 2 * dit_pass(sizes, num_tokens).flops
    account = report["block_accounts"]["torch"]
    assert [line["kind"] for line in account["lines"]] == list(KINDS)
    assert sum(line["share"] for line in account["lines"]) == pytest.approx(1)
    assert sum(line["ms"] for line in account["lines"]) == pytest.approx(account["ms"])
    assert sum(op["ms"] for op in account["ops"]) == pytest.approx(account["ms"])
    assert all(line["ms"] > line["least_ms"] > 0 for line in account["lines"] if line["kind"] != "other")
    assert report["is_whole_model"] is True
    assert report["not_measured"] == {}
    assert report["compiled_by_another_row"] == 0
    assert report["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    for text in (*FIGURES, *KINDS, report["device"]):
        assert text in printed


def test_every_operator_of_a_block_is_named_by_its_kind(tmp_path: Path) -> None:
    ops = measured(tmp_path, "--parts", "dit")["block_accounts"]["torch"]["ops"]
    calls = {(op["kind"], op["function"], op["op"]): op["calls"] for op in ops}
    assert calls[("products", "SelfAttention.forward", "linear")] == 4
    assert calls[("products", "CrossAttention.forward", "linear")] == 2
    assert calls[("products", "Block.forward", "linear")] == 2
    assert calls[("attention", "attend", "scaled_dot_product_attention")] == 2
    assert calls[("norms and modulation", "rms_norm", "rms_norm")] == 3
    assert calls[("norms and modulation", "modulate", "layer_norm")] == 2
    assert calls[("rotary", "rotate", "mul")] == 2
    assert calls[("gates and residuals", "gate", "mul")] == 2
    unnamed = {op["op"] for op in ops if op["kind"] == "other"}
    assert not unnamed - {"transpose", "flatten", "unflatten", "slice", "to"}, unnamed


def test_the_command_in_the_report_measures_the_same_and_nothing_else(tmp_path: Path) -> None:
    report = measured(tmp_path, "--variant", "vace-1.3B", "--layers", "2", "--parts", "dit")
    assert report["command"] == (
        "wan-ray bench --engine --variant vace-1.3B --size 64x32 --frames 5 --device cpu --layers 2 --parts dit"
    )
    assert list(report["figures"]) == FIGURES
    sizes = report["sizes"]["dit"]
    assert (sizes["dim"], sizes["num_layers"], sizes["vace_layers"]) == (1536, 2, [0])


def test_quantized_layers_are_measured_but_for_what_they_cannot_do(tmp_path: Path) -> None:
    report = measured(tmp_path, "--parts", "dit", "--quantization", "int8")
    lacking = {"q, k, v: one product", "step, blocks offloaded"}
    assert list(report["figures"]) == [name for name in FIGURES if name not in lacking]
    assert report["command"].endswith("--quantization int8 --parts dit")
    exact = measured(tmp_path, "--parts", "dit")["figures"]["step"]["predicted_bytes"]
    assert report["figures"]["step"]["predicted_bytes"] < exact


def test_a_model_with_an_image_has_an_image_encoder_too(tmp_path: Path) -> None:
    figures = measured(tmp_path, "--variant", "debug-i2v", "--parts", "dit,text")["figures"]
    assert list(figures) == [*FIGURES, "text encoder, 512 tokens", "image encoder"]


def test_layers_that_were_not_run_are_reckoned_and_said_to_be(tmp_path: Path) -> None:
    report = measured(tmp_path, "--variant", "t2v-1.3B", "--layers", "1", "--parts", "dit")
    step, block = report["figures"]["step"]["ms"], report["figures"]["DiT block"]["ms"]
    assert report["is_whole_model"] is False
    assert report["reckoned_step_ms"] == pytest.approx(step + 2 * 29 * block)
    assert measured(tmp_path, "--parts", "dit")["reckoned_step_ms"] is None


@pytest.mark.parametrize(
    ("name", "num_tokens"), [("debug", 30), ("t2v-1.3B", 1560), ("i2v-14B-480P", 1560), ("t2v-14B", 3600)]
)
def test_a_block_s_operations_are_those_torch_counts(name: str, num_tokens: int) -> None:
    sizes: DiTArchitecture = VARIANTS[name].architecture or DebugSizes().dit
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        block, text = Block(sizes), torch.empty(1, 512, sizes.dim)
        image = torch.empty(1, sizes.image_tokens, sizes.dim) if sizes.image_tokens else None
        sources = block.sources(text, image)
        rotary = torch.empty(num_tokens, 1, sizes.dim // sizes.num_heads // 2, dtype=torch.complex64)
        with FlopCounterMode(display=False) as counter:
            block(torch.empty(1, num_tokens, sizes.dim), torch.empty(1, 6, sizes.dim), rotary, sources, WHOLE)
    assert counter.get_total_flops() == dit_block(sizes, num_tokens).flops


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "65x32"], "--size '65x32' does not fall into tokens"),
        (["--size", "large"], "--size 'large' is not a width and a height"),
        (["--frames", "80"], "--frames 80 is no clip's length"),
        (["--variant", "t2v-2B"], "'t2v-2B' is not known"),
        (["--variant", "t2v-1.3B", "--layers", "31"], "--layers 31 of 't2v-1.3B'; use 1 to 30"),
        (["--layers", "0"], "--layers 0"),
        (["--parts", "dit,clip"], "--parts has 'clip'"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ENGINE, *flags]) == INVALID
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", "--device", "cuda"]) == INVALID
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_the_dit_and_the_vae_are_measured_with_torch_alone() -> None:
    """On a GPU machine with torch and nothing else; what the text encoder lacks is said."""
    missing = ("ray", "diffusers", "transformers", "tokenizers", "ftfy", "pyarrow", "fsspec", "pydantic", "PIL", "yaml")
    flags = ["--variant", "t2v-1.3B", "--layers", "1", "--device", "cpu", "--size", "32x32", "--frames", "1"]
    code = (
        f"import runpy, sys\nfor name in {missing}: sys.modules[name] = None\n"
        f"sys.argv = ['speed', *{flags}]\nrunpy.run_module('wan_ray.speed', run_name='__main__')"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=250)
    assert said.returncode == 0, said.stderr
    assert "VAE decode" in said.stdout
    assert "not measured: text" in said.stdout
