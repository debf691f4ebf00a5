import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wan_ray.errors import StageError
from wan_ray.media.video import probe, read_frames


def with_latents(item, latents=None):
    request = item.sound
    shape = (16, (request.num_frames - 1) // 4 + 1, request.height // 8, request.width // 8)
    if latents is None:
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return replace(item, tensors={"latents": latents})


@pytest.mark.parametrize(("width", "height", "num_frames", "fps"), [(64, 32, 5, 16.0), (32, 48, 13, 24.0)])
def test_a_clip_has_the_size_length_and_rate_of_its_request(
    decode, make_item, tmp_path, width, height, num_frames, fps
):
    item = decode(with_latents(make_item(width=width, height=height, num_frames=num_frames, fps=fps)))
    file = tmp_path / f"clip{item.clip.suffix}"
    file.write_bytes(item.clip.data)
    info = probe(file)
    assert (info.width, info.height, info.num_frames, info.fps) == (width, height, num_frames, fps)
    assert (item.clip.suffix, item.clip.num_frames, info.codec) == (".mp4", num_frames, "h264")
    assert item.tensors == {}
    assert item.weights == {"vae": decode.fingerprint}


def test_the_clip_shows_the_decoded_frames(decode, make_item):
    item = with_latents(make_item())
    frames = np.concatenate(list(decode.frames(item.tensors["latents"])))
    shown = read_frames(decode(item).clip.data)
    assert frames.shape == shown.shape == (5, 32, 64, 3)
    assert frames.dtype == np.uint8
    # Chroma is halved in both directions: compare what survives that.
    assert np.abs(shown.mean((1, 2)) - frames.mean((1, 2))).max() < 2


def test_frames_are_the_released_video_in_rounded_levels(decode, golden):
    computed, _ = golden("t2v")
    frames = np.concatenate(list(decode.frames(computed["latents"].reshape(16, 3, 8, 12))))
    levels = (computed["video"].float().permute(1, 2, 3, 0) + 1) * 127.5
    away = torch.from_numpy(frames).float() - levels
    assert away.abs().max() < 0.6  # 0.5, and what float16 in the golden adds
    assert away.mean().abs() < 0.02


def test_an_image_is_a_png_of_exactly_the_decoded_frame(decode, make_item):
    item = with_latents(make_item(task="t2i", width=64, height=48))
    frames = np.concatenate(list(decode.frames(item.tensors["latents"])))
    clip = decode(item).clip
    image = Image.open(io.BytesIO(clip.data))
    assert (clip.suffix, clip.num_frames, image.format, image.size) == (".png", 1, "PNG", (64, 48))
    assert np.array_equal(np.asarray(image), frames[0])


def test_the_same_latents_give_the_same_bytes(decode, make_item):
    item = with_latents(make_item())
    assert decode(item).clip.data == decode(item).clip.data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("task", ["t2v", "t2i"])
def test_latents_that_are_not_finite_are_an_error_not_a_black_clip(decode, make_item, value, task):
    item = with_latents(make_item(task=task))
    item.tensors["latents"][3, 0, 1, 1] = value
    with pytest.raises(StageError, match="NaN or infinity"):
        decode(item)


def test_frames_come_one_and_then_four_at_a_time(decode, make_item):
    latents = with_latents(make_item(num_frames=13)).tensors["latents"]
    assert [len(chunk) for chunk in decode.frames(latents)] == [1, 4, 4, 4]
