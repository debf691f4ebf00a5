"""The whole training, as short as can be: every stage leaves what the next one goes on from."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wan_ray.demo.dit_training import DitPlan
from wan_ray.demo.pipeline import DemoPlan, Training, stages
from wan_ray.demo.vae_training import VaePlan
from wan_ray.model.vae import VAEArchitecture
from wan_ray.variants import DiTArchitecture

DIT = DiTArchitecture(dim=64, ffn_dim=64, num_heads=2, num_layers=1, text_dim=128, frequency_dim=32)
PLAN = DemoPlan(
    vae=VaePlan(num_frame_steps=1, num_clip_steps=1, num_decoder_steps=1, num_scale_clips=2),
    dit=DitPlan(num_frame_steps=1, num_clip_steps=1, frames_per_step=2, clips_per_step=1),
    i2v=DitPlan(num_frame_steps=0, num_clip_steps=1, clips_per_step=1),
    num_drawn=2,
    num_frame_latents=2,
    num_clip_latents=1,
    vae_architecture=VAEArchitecture(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 2, 2)),
    dit_architecture=DIT,
    i2v_architecture=replace(DIT, in_channels=36, image_tokens=257),
)


def training(folder: Path) -> Training:
    return Training(folder, PLAN, device=torch.device("cpu"))


def test_judging_an_empty_folder_trains_all_and_again_trains_nothing(tmp_path: Path) -> None:
    figures = training(tmp_path).judge(num_prompts=2, num_clips=1, num_inference_steps=2)
    assert json.loads((tmp_path / "figures.json").read_text()) == asdict(figures)
    assert set(figures.adherence) == set(figures.adherence_by_chance) == {"colour", "motion", "time"}
    assert len(figures.psnr_per_frame) == 33
    assert min(figures.psnr_per_frame) - 1e-6 <= figures.psnr <= max(figures.psnr_per_frame) + 1e-6
    card = (tmp_path / "checkpoint" / "CARD.md").read_text()
    assert "| vae | 2 |" in card
    assert f"{figures.psnr:.1f} dB" in card
    made = {file.name for file in tmp_path.iterdir()}
    assert made >= {
        "vae.pt",
        "decoder.pt",
        "dit.pt",
        "reconstruction.png",
        "adherence.png",
        "i2v.png",
        "checkpoint",
        "checkpoint-i2v",
    }
    written = {file.name: file.read_bytes() for file in (tmp_path / "checkpoint").rglob("*") if file.is_file()}

    again = training(tmp_path)
    again.write(tmp_path / "again")
    now = {file.name: file.read_bytes() for file in (tmp_path / "again").rglob("*") if file.is_file()}
    assert now.keys() == written.keys() - {"CARD.md"}
    assert now["diffusion_pytorch_model.safetensors"] == written["diffusion_pytorch_model.safetensors"]
    whole = load_file(tmp_path / "checkpoint-i2v" / "diffusion_pytorch_model.safetensors")
    trained = again.train_i2v().average.dit.state_dict()
    assert whole.keys() == trained.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in trained.items() if name.startswith("img_emb."))


@pytest.mark.parametrize("stage", ["vae", "latents"])
def test_early_stages_train_no_dit(tmp_path: Path, stage: str) -> None:
    stages(training(tmp_path))[stage]()
    assert (tmp_path / "vae.pt").exists()
    assert (tmp_path / "latents.pt").exists() == (stage == "latents")
    assert not (tmp_path / "dit.pt").exists()


def test_a_sheet_is_drawn_at_each_save(tmp_path: Path) -> None:
    plan = replace(PLAN, dit=replace(PLAN.dit, num_clip_steps=0))
    begun = Training(tmp_path, plan, device=torch.device("cpu"), sheet_every_s=0)
    begun.train_dit()
    assert (tmp_path / "dit.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sketch" / "config.json").exists()
