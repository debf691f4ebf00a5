import pytest
import torch

from wan_ray.stages.denoise import draw_noise, latent_shape


def test_noise_is_what_the_release_draws_from_a_cpu_generator_with_that_seed(make_item, golden):
    computed, request = golden("t2v")
    item = make_item(**request)
    assert torch.equal(draw_noise(item.sound), computed["noise"].reshape(latent_shape(item.sound)))


def test_noise_depends_on_the_seed_and_the_size_alone(make_item):
    noise = draw_noise(make_item(seed=7).sound)
    same = make_item(seed=7, id="b", prompt="other", guidance_scale=2.0, num_inference_steps=9, fps=8, solver="dpm++")
    assert torch.equal(draw_noise(same.sound), noise)
    assert not torch.equal(draw_noise(make_item(seed=8).sound), noise)
    assert noise.dtype == torch.float32


def test_latents_have_the_vae_s_steps_in_time_and_space(encode, denoise, make_item):
    item = denoise(encode(make_item(width=96, height=48, num_frames=9)))
    assert item.tensors["latents"].shape == (16, 3, 6, 12)
    assert item.tensors["latents"].dtype == torch.float32
    assert set(item.tensors) == {"latents"}
    assert item.weights == {"text_encoder": encode.fingerprint, "transformer": denoise.fingerprint}


def test_the_same_item_gives_the_same_latents_and_another_text_seed_or_guidance_others(encode, denoise, make_item):
    def latents(**fields):
        return denoise(encode(make_item(**{"seed": 1, **fields}))).tensors["latents"]

    assert torch.equal(latents(), latents())
    for other in ({"seed": 2}, {"prompt": "b"}, {"negative_prompt": "b"}, {"guidance_scale": 2.0}, {"solver": "dpm++"}):
        assert not torch.equal(latents(), latents(**other)), other


def test_a_guidance_of_one_ignores_the_negative_prompt(encode, denoise, make_item):
    without = denoise(encode(make_item(guidance_scale=1.0, negative_prompt="a"))).tensors["latents"]
    assert torch.equal(without, denoise(encode(make_item(guidance_scale=1.0, negative_prompt="b"))).tensors["latents"])


def test_on_step_hears_of_every_step(encode, denoise, make_item):
    heard = []
    denoise(encode(make_item(num_inference_steps=3)), lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_what_on_step_raises_ends_the_rendering(encode, denoise, make_item):
    heard = []

    def cancel(done, total):
        heard.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(encode(make_item(num_inference_steps=5)), cancel)
    assert heard == [1, 2]
