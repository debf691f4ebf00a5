"""The bench, at sizes that take seconds."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from wan_ray.bench import ENGINES, BenchSizes, run_bench
from wan_ray.errors import ConfigError, MissingExtraError
from wan_ray.model.debug import DebugSizes

TINY = BenchSizes(model=DebugSizes(), width=64, height=32, num_frames=5, num_inference_steps=2)


def test_a_bench_compares_equal_work_and_reports_every_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    file = tmp_path / "new" / "bench.json"
    assert run_bench(num_clips=2, json_file=file, sizes=TINY) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["outputs_agree"] is True
    assert len(report["relative_differences"]) == 2
    assert max(report["relative_differences"]) < 1e-4
    stages = ["text_encode", "dit_step", "denoise", "vae_decode", "write_mp4", "clip"]
    assert list(report["seconds"]) == stages
    for stage in stages:
        figure, samples = report["seconds"][stage], report["samples"][stage]
        assert figure["ratio"] == pytest.approx(figure["diffusers"] / figure["wan_ray"])
        for engine in ENGINES:
            assert len(samples[engine]) == (4 if stage == "dit_step" else 2)
            assert min(samples[engine]) <= figure[engine] <= max(samples[engine])
    for engine in ENGINES:
        first = {stage: report["samples"][stage][engine][0] for stage in stages}
        assert first["clip"] == pytest.approx(
            first["text_encode"] + first["denoise"] + first["vae_decode"] + first["write_mp4"]
        )
        assert report["memory_mib"]["peak"][engine] >= report["memory_mib"]["loaded"][engine] > 10
    assert report["machine"]["cpu"]
    assert report["versions"]["diffusers"]
    assert report["sizes"]["width"] == 64
    printed = capsys.readouterr().out
    for text in ("DiT step", "VAE decode", "memory peak", "latents agree", report["machine"]["cpu"]):
        assert text in printed


def test_no_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match="--clips 0"):
        run_bench(num_clips=0, json_file=None)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl_wan", None)
    monkeypatch.delitem(sys.modules, "wan_ray.diffusers_reference", raising=False)
    with pytest.raises(MissingExtraError, match=r"wan-ray\[dev\]"):
        importlib.import_module("wan_ray.diffusers_reference")
