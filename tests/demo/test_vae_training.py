"""Training the VAE: the same network as the engine's, and a loss that falls."""

import numpy as np
import pytest
import torch

from wan_ray.demo.captions import scenes
from wan_ray.demo.scenes import draw
from wan_ray.demo.vae_training import (
    VaePlan,
    VaeTrainer,
    apply_initial_weights,
    apply_latent_scale,
    as_video,
    decode,
    draw_corpus,
    encode,
)
from wan_ray.model.vae import VAEArchitecture, WanVAE

SMALL = VAEArchitecture(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 2, 2))


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return np.stack([draw(scene) for scene in scenes(3, held_out=False, seed=0)])


def any_vae(seed: int = 0) -> WanVAE:
    torch.manual_seed(seed)
    vae = WanVAE(SMALL)
    apply_initial_weights(vae)
    for parameter in vae.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return vae.requires_grad_(False)


@pytest.mark.parametrize("num_frames", [1, 9])
def test_training_encodes_and_decodes_as_the_engine_does(corpus: np.ndarray, num_frames: int) -> None:
    vae, video_BCFHW = any_vae(), as_video(corpus[:2, :num_frames, :48, :80])
    latents_BCTHW = vae.encode(video_BCFHW)
    torch.testing.assert_close(encode(vae, video_BCFHW), latents_BCTHW, rtol=1e-5, atol=1e-5)
    decoded = decode(vae, latents_BCTHW).clamp(-1, 1)
    torch.testing.assert_close(decoded, vae.decode(latents_BCTHW), rtol=1e-5, atol=1e-5)


def test_scaled_latents_have_deviation_one_and_decode_to_the_same(corpus: np.ndarray) -> None:
    vae, video_BCFHW = any_vae(), as_video(corpus[:2, :9, :48, :80])
    before = decode(vae, encode(vae, video_BCFHW))
    apply_latent_scale(vae, iter([encode(vae, video_BCFHW)]))
    latents_BCTHW = encode(vae, video_BCFHW)
    channels = latents_BCTHW.transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-4
    assert channels.var(1).mean().sqrt() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(decode(vae, latents_BCTHW), before, rtol=1e-3, atol=1e-3)


def test_the_loss_falls_and_then_the_decoder_learns_alone(corpus: np.ndarray, tmp_path) -> None:
    plan = VaePlan(num_frame_steps=14, num_clip_steps=2, num_decoder_steps=2, num_scale_clips=2)
    trainer = VaeTrainer(corpus, plan=plan, architecture=SMALL)
    before = trainer.loss_of(0).item()
    trainer.train(tmp_path / "vae.pt")
    assert trainer.loss_of(0).item() < 0.9 * before
    encoder, decoder = trainer.vae.encoder.conv1.weight.clone(), trainer.vae.decoder.conv1.weight.clone()
    trainer.train_decoder(tmp_path / "decoder.pt")
    assert torch.equal(trainer.vae.encoder.conv1.weight, encoder)
    assert not torch.equal(trainer.vae.decoder.conv1.weight, decoder)

    again = VaeTrainer(corpus, plan=plan, architecture=SMALL)
    again.train(tmp_path / "vae.pt")
    assert torch.equal(again.vae.decoder.conv1.weight, decoder)
    again.train_decoder(tmp_path / "decoder.pt")
    assert torch.equal(again.vae.decoder.conv1.weight, trainer.vae.decoder.conv1.weight)


def test_the_corpus_is_drawn_once(tmp_path) -> None:
    drawn = draw_corpus(tmp_path / "clips.npy", num_clips=2, seed=5)
    assert (drawn[1] == draw(scenes(2, held_out=False, seed=5)[1])).all()
    written = (tmp_path / "clips.npy").stat().st_mtime_ns
    draw_corpus(tmp_path / "clips.npy", num_clips=2, seed=5)
    assert (tmp_path / "clips.npy").stat().st_mtime_ns == written
