"""Training the DiT: the same network as the engine's, a loss that falls, and a checkpoint that the engine loads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from wan_ray import Renderer, RenderRequest
from wan_ray.demo.batched import FirstFrames, Model, block_forward, velocity
from wan_ray.demo.captions import caption, scenes
from wan_ray.demo.checkpoint import write_checkpoint
from wan_ray.demo.dit_training import DitPlan, Examples, Trainer
from wan_ray.demo.examples import encoded, vehicle_mask
from wan_ray.demo.scenes import Scene, draw
from wan_ray.demo.tokens import write_tokenizer
from wan_ray.demo.vae_training import apply_initial_weights, as_video
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.model.text_encoder import TextEncoderArchitecture, encode_prompt, load_tokenizer, token_ids
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.variants import NEGATIVE_PROMPT, DiTArchitecture

DIT = DiTArchitecture(dim=96, ffn_dim=128, num_heads=4, num_layers=2, text_dim=128, frequency_dim=32)
VAE = VAEArchitecture(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 2, 2))
PLAN = DitPlan(num_frame_steps=6, num_clip_steps=2, frames_per_step=6, clips_per_step=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def any_model(tokenizer: Tokenizer, architecture: DiTArchitecture = DIT) -> Model:
    torch.manual_seed(0)
    text = TextEncoderArchitecture(
        vocab_size=tokenizer.get_vocab_size(), dim=128, num_layers=2, num_heads=4, head_dim=32, ffn_dim=64
    )
    model = Model(text, architecture)
    for parameter in model.dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False).eval()


def examples(num_latent_frames: int) -> Examples:
    generator = torch.Generator().manual_seed(num_latent_frames)
    flat = torch.randn(8, 16, 1, 1, 1, generator=generator).expand(-1, -1, num_latent_frames, 4, 6).contiguous()
    return Examples(
        latents=flat,
        vehicle=torch.zeros(8, 1, num_latent_frames, 4, 6),
        scenes=scenes(8, held_out=False, seed=0),
    )


def test_a_batch_gives_each_clip_the_engines_velocity(tokenizer: Tokenizer) -> None:
    model = any_model(tokenizer)
    latents_BCTHW = torch.randn(3, 16, 3, 4, 6)
    timesteps = torch.tensor([999, 500, 3])
    texts = [caption(scenes(1, held_out=True, seed=0)[0]), "", NEGATIVE_PROMPT]
    ids = [token_ids(tokenizer, text) for text in texts]
    batched = model(latents_BCTHW, timesteps, ids)
    for row, text in enumerate(ids):
        context = model.dit.encode_context(encode_prompt(model.text_encoder, text))
        alone = model.dit(latents_BCTHW[row : row + 1], int(timesteps[row]), context)
        torch.testing.assert_close(batched[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert (batched[0] - batched[1]).abs().max() > 0.01


def test_a_batch_gives_each_clip_the_engines_velocity_under_its_first_frame(tokenizer: Tokenizer) -> None:
    model = any_model(tokenizer, replace(DIT, in_channels=36, image_tokens=257))
    latents_BCTHW, condition_BCTHW, features_BLD = (
        torch.randn(2, 16, 3, 4, 6),
        torch.randn(2, 20, 3, 4, 6),
        torch.randn(2, 257, 1280),
    )
    timesteps = torch.tensor([999, 3])
    ids = [token_ids(tokenizer, caption(scenes(1, held_out=True, seed=0)[0])), token_ids(tokenizer, "")]
    first = FirstFrames(condition=condition_BCTHW, image=model.dit.img_emb(features_BLD))
    batched = model(latents_BCTHW, timesteps, ids, first=first)
    for row, text in enumerate(ids):
        context = model.dit.encode_context(
            encode_prompt(model.text_encoder, text),
            image_features=features_BLD[row],
            condition=condition_BCTHW[row],
        )
        alone = model.dit(latents_BCTHW[row : row + 1], int(timesteps[row]), context)
        torch.testing.assert_close(batched[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    other = FirstFrames(condition=condition_BCTHW, image=first.image.flip(0))
    assert (model(latents_BCTHW, timesteps, ids, first=other) - batched).abs().max() > 0.01


def test_padding_tokens_count_as_in_the_engine(tokenizer: Tokenizer) -> None:
    model = any_model(tokenizer)
    latents_BCTHW, text_BLD = torch.randn(1, 16, 1, 4, 6), torch.randn(1, 5, 128)
    one = torch.tensor([500])
    with_padding = velocity(model.dit, latents_BCTHW, one, text_BLD, torch.tensor([5]), block=block_forward)
    longer = torch.nn.functional.pad(text_BLD, (0, 0, 0, 20))
    padded = velocity(model.dit, latents_BCTHW, one, longer, torch.tensor([5]), block=block_forward)
    torch.testing.assert_close(with_padding, padded, rtol=1e-5, atol=1e-5)
    counted = velocity(model.dit, latents_BCTHW, one, longer, torch.tensor([25]), block=block_forward)
    torch.testing.assert_close(counted, padded, rtol=1e-5, atol=1e-5)  # zeros are padding, wherever they are


def test_the_loss_falls_and_a_stopped_run_ends_as_a_whole_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def trainer() -> Trainer:
        return Trainer(tokenizer, examples(1), examples(3), plan=PLAN, architecture=DIT)

    class CutError(Exception):
        pass

    whole = trainer()
    before = [whole.loss_of(step).item() for step in (3, 7)]
    whole.train(tmp_path / "whole.pt")
    after = [whole.loss_of(step).item() for step in (3, 7)]
    assert all(now < then for now, then in zip(after, before, strict=True))

    def cut() -> None:
        raise CutError

    with pytest.raises(CutError):  # right after the first save
        trainer().train(tmp_path / "parts.pt", on_save=cut, save_every_s=0)
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["steps_done"] == 1
    then = trainer()
    then.train(tmp_path / "parts.pt")
    for name in ("model", "average"):
        ours, theirs = getattr(then, name).state_dict(), getattr(whole, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_where_the_vehicle_is_counts_more(tokenizer: Tokenizer) -> None:
    plain = examples(1)
    trainer = Trainer(tokenizer, plain, plain, plan=PLAN, architecture=DIT)
    first = trainer.loss_of(0).item()
    mask = torch.zeros_like(plain.vehicle)
    mask[..., 0, 0] = 1
    trainer.frames = Examples(latents=plain.latents, vehicle=mask, scenes=plain.scenes)
    assert trainer.loss_of(0).item() != first
    mask[:] = 1  # everywhere alike is as nowhere
    assert trainer.loss_of(0).item() == pytest.approx(first, rel=1e-5)


def test_latents_are_the_engines_and_know_where_the_vehicle_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = WanVAE(VAE)
    apply_initial_weights(vae)
    vae.requires_grad_(False)
    made = encoded(tmp_path / "latents.pt", vae, num=2, num_frames=9, seed=3)
    engines = vae.encode(as_video(draw(made.scenes[1], num_frames=9))[None])
    assert (made.latents[1:] - engines).square().mean() < 1e-3 * engines.square().mean()
    assert made.vehicle.shape == (2, 1, 3, 12, 20)
    assert 0.01 < made.vehicle.mean() < 0.3
    drawn = draw(made.scenes[0])
    mask = vehicle_mask(made.scenes[0], drawn, vae)
    assert mask.shape == (1, 9, 12, 20)
    assert mask.flatten(2).amax(2).all()  # in every latent frame


def test_encoding_that_was_cut_short_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vae = WanVAE(VAE)
    apply_initial_weights(vae)
    vae.requires_grad_(False)
    file = tmp_path / "latents.pt"
    whole = encoded(tmp_path / "whole.pt", vae, num=3, num_frames=1, seed=3)
    encoded(file, vae, num=2, num_frames=1, seed=3)
    asked = []

    def counted(scene: Scene, *, num_frames: int, **others: bool) -> np.ndarray:
        asked.append(scene)
        return draw(scene, num_frames=num_frames, **others)

    monkeypatch.setattr("wan_ray.demo.examples.draw", counted)
    then = encoded(file, vae, num=3, num_frames=1, seed=3)
    assert set(asked) == {whole.scenes[2]}
    assert torch.equal(then.latents, whole.latents)
    assert torch.equal(then.vehicle, whole.vehicle)


def test_the_written_checkpoint_is_an_ordinary_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = any_model(tokenizer)
    torch.manual_seed(1)
    vae = WanVAE(VAE)
    apply_initial_weights(vae)
    write_checkpoint(tmp_path, model, vae)
    checkpoint = find_checkpoint(tmp_path)
    assert checkpoint.layout == "released"
    assert checkpoint.check() == DIT
    dit, _ = checkpoint.load_dit(dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(dit.blocks[1].ffn[0].weight, model.dit.blocks[1].ffn[0].weight, rtol=1e-2, atol=1e-3)
    assert torch.equal(dit.head.head.weight, model.dit.head.head.weight)  # kept in float32
    loaded, _ = checkpoint.load_vae(device=torch.device("cpu"))
    torch.testing.assert_close(loaded.decoder.conv1.weight, vae.decoder.conv1.weight, rtol=1e-3, atol=1e-5)
    renderer = Renderer.from_checkpoint(tmp_path, device="cpu")
    request = RenderRequest(prompt="A red car", num_frames=5, height=32, width=48, num_inference_steps=2)
    assert renderer(request).frames.shape == (5, 32, 48, 3)
