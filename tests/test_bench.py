"""The bench, at sizes that take seconds."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from wan_ray.bench import BenchSizes, run_bench
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
    assert list(report["seconds"]) == ["text_encode", "dit_step", "vae_decode", "write_mp4", "clip"]
    for figure in report["seconds"].values():
        assert figure["ratio"] == pytest.approx(figure["diffusers"] / figure["wan_ray"])
    for engine in ("diffusers", "wan_ray"):
        for clip in report["clip_seconds"][engine]:
            stages = clip["text_encode"] + 2 * clip["dit_step"] + clip["vae_decode"] + clip["write_mp4"]
            assert clip["clip"] == pytest.approx(stages)
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
