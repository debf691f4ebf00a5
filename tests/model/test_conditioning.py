"""Conditions of images and of VACE looked at by hand; that they are the released ones is for tests/parity."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from wan_ray.errors import RequestError
from wan_ray.model.conditioning import (
    compat_last_frame_crop,
    first_frame_condition,
    fit_last_frame,
    letterbox_reference,
    vace_context,
)
from wan_ray.model.debug import DebugSizes, random_tensor
from wan_ray.model.vae import WanVAE

WIDTH, HEIGHT = 48, 32


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    model = WanVAE(DebugSizes().vae)
    model.load_state_dict({k: random_tensor("vae", k, tuple(v.shape), 0) for k, v in model.state_dict().items()})
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def photo(width: int, height: int) -> Tensor:
    """Smooth, and different at every place."""
    x, y = torch.linspace(-3, 3, width), torch.linspace(-2, 2, height)[:, None]
    return torch.stack([torch.sin(x + y), torch.cos(2 * x - y), torch.sin(x * y)])


def condition(vae: WanVAE, first: Tensor, num_frames: int, last: Tensor | None = None) -> Tensor:
    return first_frame_condition(vae, first, width=WIDTH, height=HEIGHT, num_frames=num_frames, last_CHW=last)


def context(
    vae: WanVAE,
    frames: Tensor | None = None,
    mask: Tensor | None = None,
    references: tuple[Tensor, ...] = (),
    num_frames: int = 9,
) -> Tensor:
    return vace_context(vae, frames, mask, references, width=WIDTH, height=HEIGHT, num_frames=num_frames)


def test_the_mask_marks_all_four_channels_of_the_first_latent_frame(vae: WanVAE) -> None:
    found = condition(vae, photo(WIDTH, HEIGHT), 17)
    assert found.shape == (20, 5, 4, 6)
    wanted = torch.tensor([[1, 0, 0, 0, 0]] * 4)
    assert torch.equal(found[:4], wanted[..., None, None].expand(4, 5, 4, 6))


@pytest.mark.parametrize("num_frames", [5, 17, 33, 81])
def test_a_last_frame_of_another_size_is_in_the_last_latent_frame_of_a_clip_of_any_length(
    vae: WanVAE, num_frames: int
) -> None:
    first, last = photo(60, 40), fit_last_frame(photo(90, 90), width=60, height=40)
    found, without = condition(vae, first, num_frames, last), condition(vae, first, num_frames)
    num_latent_frames = (num_frames + 3) // 4
    wanted = torch.zeros(4, num_latent_frames)
    wanted[:, 0] = 1
    wanted[3, -1] = 1
    assert torch.equal(found[:4], wanted[..., None, None].expand(4, num_latent_frames, 4, 6))
    assert torch.equal(found[:, :-1], without[:, :-1])
    assert not torch.equal(found[4:, -1], without[4:, -1])


def test_frames_between_are_gray_and_images_stretched(vae: WanVAE) -> None:
    first, last = photo(60, 20), photo(20, 60)
    video = torch.zeros(1, 3, 9, HEIGHT, WIDTH)
    for index, image in ((0, first), (8, last)):
        # The kernel by hand, as one matrix per side: each side is resized on its own.
        rows, columns = (_bicubic_weights(have, wanted) for have, wanted in zip(image.shape[1:], (32, 48), strict=True))
        video[0, :, index] = rows @ image @ columns.T
    torch.testing.assert_close(condition(vae, first, 9, last)[4:], vae.encode(video)[0], rtol=0, atol=1e-5)


def _bicubic_weights(have: int, wanted: int) -> Tensor:
    """[wanted, have], of Keys' cubic with a = -0.75 between the four nearest pixels, edges repeated."""
    weights = torch.zeros(wanted, have)
    for row in range(wanted):
        centre = (row + 0.5) * have / wanted - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            t, a = abs(centre - tap), -0.75
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            weights[row, min(max(tap, 0), have - 1)] += near if t <= 1 else far
    return weights


def test_a_clip_that_is_no_4n_plus_1_is_refused(vae: WanVAE) -> None:
    with pytest.raises(RequestError, match="cannot encode 16 frames"):
        condition(vae, photo(WIDTH, HEIGHT), 16)


def test_a_last_frame_of_the_first_one_s_size_is_left_alone() -> None:
    last = noise(3, 40, 60)
    assert fit_last_frame(last, width=60, height=40) is last
    assert compat_last_frame_crop(last, width=60, height=40) is last


@pytest.mark.parametrize("size", [(120, 80), (200, 80), (120, 200), (240, 160), (48, 32)])
def test_a_last_frame_is_resized_to_cover_the_first_and_cropped_to_its_middle(size: tuple[int, int]) -> None:
    levels = ((photo(*size) + 1) * 127.5).round()
    picture = Image.fromarray(levels.permute(1, 2, 0).to(torch.uint8).numpy())
    wanted = np.asarray(ImageOps.fit(picture, (60, 40), method=Image.Resampling.BICUBIC))
    found = fit_last_frame(levels / 127.5 - 1, width=60, height=40)
    assert found.shape == (3, 40, 60) and found.abs().max() <= 1
    difference = (found.permute(1, 2, 0) + 1) * 127.5 - torch.from_numpy(wanted.copy())
    assert difference.abs().max() < 2


@pytest.mark.parametrize("size", [(61, 40), (59, 40), (1, 1), (4000, 3), (37, 301)])
def test_a_last_frame_of_any_size_comes_out_at_the_first_one_s(size: tuple[int, int]) -> None:
    assert fit_last_frame(noise(3, size[1], size[0]), width=60, height=40).shape == (3, 40, 60)


@pytest.mark.parametrize(
    ("last", "first", "box"),
    [
        # A 1920x1080 frame beside one of 1280x720, a tenth of each: a portrait crop, 16 % of it gray.
        ((192, 108), (128, 72), (60, -10, 132, 118)),
        ((101, 57), (60, 40), (30, -7, 70, 64)),
        ((60, 40), (90, 90), (-15, -47, 75, 88)),
        ((20, 60), (45, 40), (-57, 8, 78, 53)),
    ],
)
def test_the_released_crop_of_a_last_frame_swaps_its_sides_and_fills_with_gray(
    last: tuple[int, int], first: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    frame = noise(3, last[1], last[0])
    found = compat_last_frame_crop(frame, width=first[0], height=first[1])
    wanted = [np.asarray(Image.fromarray(channel.numpy()).crop(box)) for channel in frame]
    assert np.array_equal(found.numpy(), np.stack(wanted))


def test_without_a_video_all_of_a_gray_clip_is_to_change(vae: WanVAE) -> None:
    found = context(vae)
    assert found.shape == (96, 3, 4, 6)
    assert torch.equal(found, context(vae, torch.zeros(3, 9, HEIGHT, WIDTH), torch.ones(9, HEIGHT, WIDTH)))
    assert torch.equal(found[:16], found[16:32]) and (found[32:] == 1).all()


def test_a_video_without_a_mask_is_all_to_change(vae: WanVAE) -> None:
    frames = noise(3, 9, HEIGHT, WIDTH)
    assert torch.equal(context(vae, frames), context(vae, frames, torch.ones(9, HEIGHT, WIDTH)))
    torch.testing.assert_close(context(vae, frames)[16:32], vae.encode(frames[None])[0])


def test_what_the_mask_covers_is_told_apart_from_what_is_kept(vae: WanVAE) -> None:
    frames, other = noise(3, 9, HEIGHT, WIDTH), noise(3, 9, HEIGHT, WIDTH, seed=1)
    mask = torch.zeros(9, HEIGHT, WIDTH)
    mask[:, :, 24:] = 1
    found = context(vae, frames, mask)
    inside, outside = frames.clone(), frames.clone()
    inside[..., 24:] = other[..., 24:]
    outside[..., :24] = other[..., :24]
    changed_inside, changed_outside = context(vae, inside, mask), context(vae, outside, mask)
    assert torch.equal(changed_inside[:16], found[:16]) and not torch.equal(changed_inside[16:32], found[16:32])
    assert torch.equal(changed_outside[16:32], found[16:32]) and not torch.equal(changed_outside[:16], found[:16])
    assert torch.equal(context(vae, frames, 1 - mask)[:16], found[16:32])


def test_a_soft_mask_is_cut_above_a_half_for_the_latents_alone(vae: WanVAE) -> None:
    frames = noise(3, 9, HEIGHT, WIDTH)
    soft = torch.zeros(9, HEIGHT, WIDTH)
    soft[..., :16], soft[..., 16:32], soft[..., 32:] = 0.2, 0.5, 0.51
    found, hard = context(vae, frames, soft), context(vae, frames, (soft > 0.5).float())
    assert torch.equal(found[:32], hard[:32])
    assert torch.equal(found[32:].unique(), torch.tensor([0.2, 0.5, 0.51]))


@pytest.mark.parametrize(
    ("num_frames", "seen"),
    [
        (1, [0]),
        (5, [1, 3]),
        (9, [1, 4, 7]),
        (81, [1, 5, 9, 13, 17, 21, 25, 28, 32, 36, 40, 44, 48, 52, 55, 59, 63, 67, 71, 75, 79]),
    ],
)
def test_mask_channels_show_each_pixel_of_a_cell_in_some_of_the_frames(
    vae: WanVAE, num_frames: int, seen: list[int]
) -> None:
    frame, row, column = torch.meshgrid(torch.arange(num_frames), torch.arange(16), torch.arange(24), indexing="ij")
    mask = frame * 1000 + row * 24 + column
    found = vace_context(
        vae, torch.zeros(3, num_frames, 16, 24), mask.float(), (), width=24, height=16, num_frames=num_frames
    )[32:]
    assert found.shape == (64, len(seen), 2, 3)
    for channel in (0, 13, 63):
        for latent_frame, source in enumerate(seen):
            for y, x in ((0, 0), (1, 2)):
                pixel = mask[source, 8 * y + channel // 8, 8 * x + channel % 8]
                assert found[channel, latent_frame, y, x] == pixel


def test_references_come_first_in_their_order_with_nothing_to_change(vae: WanVAE) -> None:
    frames, references = noise(3, 9, HEIGHT, WIDTH), (noise(3, HEIGHT, WIDTH, seed=1), noise(3, HEIGHT, WIDTH, seed=2))
    found = context(vae, frames, references=references)
    assert found.shape == (96, 5, 4, 6)
    assert torch.equal(found[:, 2:], context(vae, frames))
    for index, reference in enumerate(references):
        assert torch.equal(found[:16, index], vae.encode(reference[None, :, None])[0, :, 0])
    assert (found[16:, :2] == 0).all()


@pytest.mark.parametrize(
    ("size", "box"),
    [((96, 96), (16, 0, 48, 32)), ((24, 64), (26, 0, 38, 32)), ((128, 32), (0, 8, 64, 24)), ((64, 32), (0, 0, 64, 32))],
)
def test_a_reference_is_whole_in_the_middle_of_white(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = torch.full((3, size[1], size[0]), -0.25)
    found = letterbox_reference(image, width=64, height=32)
    wanted = torch.ones(3, 32, 64)
    left, top, right, bottom = box
    wanted[:, top:bottom, left:right] = -0.25
    torch.testing.assert_close(found, wanted)


def test_a_reference_of_the_clip_s_size_is_left_alone_and_a_thread_keeps_a_pixel() -> None:
    image = noise(3, 32, 64)
    assert letterbox_reference(image, width=64, height=32) is image
    assert (letterbox_reference(torch.zeros(3, 4000, 1), width=64, height=32) == 0).sum() == 3 * 32
