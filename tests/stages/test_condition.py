"""Conditions made by the encode stage from a row's files, of models that take images or follow videos."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from small_clips import HEIGHT, WIDTH, numbered, write_folder, write_mp4, write_png

from wan_ray.config import ModelSection
from wan_ray.model.conditioning import first_frame_condition
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.image_encoder import encode_image
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.condition import as_tensor
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The encode stages of the models that go from a first to a last frame, and of those that follow a video."""
    folder, stages = tmp_path_factory.mktemp("kinds"), {}
    for kind in ("flf2v", "vace"):
        write_debug_checkpoint(folder / kind, kind=kind)
        section = ModelSection(variant=f"debug-{kind}", checkpoint=str(folder / kind), device="cpu")
        stages[kind] = StageLoader(model=section).encode()
    return stages


def encoded(stages, task, **fields):
    row = {"task": task, "prompt": "a", "guidance_scale": 1, "width": 48, "height": 32, **fields}
    request = resolve(RenderRequest.model_validate(row), get_variant(f"debug-{task}"))
    return stages[task](Item(name="a", id="a", row=0, request=request, prompt="a"))


def photo(width, height):
    """Smooth, and different at every place and in every color."""
    x, y = np.linspace(-3, 3, width), np.linspace(-2, 2, height)[:, None]
    return np.rint((np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(x * y)], -1) + 1) * 127.5).astype(np.uint8)


@torch.inference_mode()
def condition(stages, item, first, last):
    """By hand of what the first and last frame become; pixels in [-1, 1]."""
    size = {"width": item.sound.width, "height": item.sound.height, "num_frames": item.sound.num_frames}
    conditioner = stages["flf2v"].conditioner
    features = torch.cat([encode_image(conditioner.image_encoder, image) for image in (first, last)])
    return first_frame_condition(conditioner.vae, first, **size, last_CHW=last), features


@pytest.mark.parametrize(("num_frames", "size"), [(17, (90, 90)), (33, (60, 150)), (81, (200, 80))])
def test_a_last_frame_of_another_size_is_resized_and_cropped_in_a_clip_of_any_length(
    stages, tmp_path, relative_error, num_frames, size
):
    first, last = photo(96, 64), photo(*size)
    files = {"image": write_png(tmp_path / "f.png", first), "last_image": write_png(tmp_path / "l.png", last)}
    item = encoded(stages, "flf2v", num_frames=num_frames, **files)
    found = item.tensors["condition"]
    num_latent_frames = (num_frames - 1) // 4 + 1
    assert found.shape == (20, num_latent_frames, 4, 6)
    # Wan2.1: all four channels of the first latent frame, of the last one the last.
    mask = torch.zeros(4, num_latent_frames)
    mask[:, 0] = mask[3, -1] = 1
    assert torch.equal(found[:4], mask[..., None, None].expand(-1, -1, 4, 6))
    middle = np.asarray(ImageOps.fit(Image.fromarray(last), (96, 64), Image.Resampling.BICUBIC))
    wanted, features = condition(stages, item, as_tensor(first), as_tensor(middle))
    assert relative_error(found, wanted) < 5e-3
    assert relative_error(item.tensors["image_features"], features) < 5e-3
    assert item.tensors["image_features"].shape == (514, 1280)
    squeezed = np.asarray(Image.fromarray(last).resize((96, 64), Image.Resampling.BICUBIC))
    stretched, _ = condition(stages, item, as_tensor(first), as_tensor(squeezed))
    assert relative_error(found[:, -1], stretched[:, -1]) > 10 * relative_error(found[:, -1], wanted[:, -1])


def test_the_released_last_frame_is_a_padded_crop_with_its_sides_swapped(stages, tmp_path, relative_error):
    """1920x1080 beside 1280x720 was seen to become 720 wide and 1280 high, 16 % of it gray."""
    first, last = photo(1280, 720), photo(1920, 1080)
    files = {"image": write_png(tmp_path / "f.png", first), "last_image": write_png(tmp_path / "l.png", last)}
    crop = torch.zeros(3, 1280, 720)
    crop[:, 100:1180] = as_tensor(last)[:, :, 600:1320]
    assert round((crop == 0).all(0).float().mean().item(), 2) == 0.16
    item = encoded(stages, "flf2v", num_frames=5, compat="released", **files)
    wanted, features = condition(stages, item, as_tensor(first), crop)
    assert relative_error(item.tensors["condition"], wanted) < 1e-5
    assert relative_error(item.tensors["image_features"], features) < 1e-5
    ours = encoded(stages, "flf2v", num_frames=5, **files)
    assert relative_error(ours.tensors["condition"][:, -1], wanted[:, -1]) > 0.01
    assert torch.equal(ours.tensors["condition"][:4], wanted[:4])


def test_a_last_frame_of_the_first_one_s_size_is_the_same_either_way(stages, tmp_path):
    files = {"image": write_png(tmp_path / "f.png", photo(96, 64))}
    files["last_image"] = write_png(tmp_path / "l.png", photo(96, 64)[::-1])
    ours, theirs = (encoded(stages, "flf2v", num_frames=5, compat=compat, **files) for compat in (None, "released"))
    assert torch.equal(ours.tensors["condition"], theirs.tensors["condition"])


def thirds(path, num_frames):
    """A mask that is black, a third of the way to white, and white, in upright thirds."""
    mask = np.zeros((num_frames, HEIGHT, WIDTH, 3), np.uint8)
    mask[:, :, 32:64], mask[:, :, 64:] = 85, 255
    return write_mp4(path, mask)


def test_only_a_released_mask_reaches_the_model_soft_and_decides_size_and_length(stages, tmp_path):
    files = {"control_video": write_mp4(tmp_path / "a.mp4", numbered(9)), "mask_video": thirds(tmp_path / "m.mp4", 6)}
    item = encoded(stages, "vace", num_frames=5, width=96, height=64, compat="released", **files)
    context = item.tensors["vace_context"]
    assert context.shape == (96, 2, 8, 12)
    channels = context[32:].mean(dim=(0, 1, 2))  # by columns of 8 pixels
    assert channels[:3].max() < 0.02 and channels[9:].min() > 0.98
    assert (channels[5:7] - 1 / 3).abs().max() < 0.03
    larger = encoded(stages, "vace", num_frames=9, width=192, height=128, compat="released", **files)
    assert (larger.sound.width, larger.sound.height, larger.sound.num_frames) == (96, 64, 5)
    ours = encoded(stages, "vace", num_frames=5, width=96, height=64, **files)
    assert set(ours.tensors["vace_context"][32:].unique().tolist()) == {0, 1}


def test_what_is_kept_and_what_is_generated_reach_the_model_apart(stages, tmp_path):
    """Another picture under the mask changes nothing of what the model gets, one beside it does."""
    video, mask = numbered(5), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[:, 48:] = 255
    under, beside = video.copy(), video.copy()
    under[:, :, 48:], beside[:, :, :48] = 255 - under[:, :, 48:], 255 - beside[:, :, :48]
    write_png(tmp_path / "m.png", mask)
    contexts = [
        encoded(
            stages,
            "vace",
            num_frames=5,
            width=96,
            height=64,
            vace={"mode": "inpaint"},
            control_video=write_folder(tmp_path / name, frames),
            mask_video=str(tmp_path / "m.png"),
        ).tensors["vace_context"]
        for name, frames in (("a", video), ("b", under), ("c", beside))
    ]
    assert torch.equal(contexts[0], contexts[1])
    assert not torch.equal(contexts[0][:16], contexts[2][:16])
    assert torch.equal(contexts[0][16:], contexts[2][16:])
    columns = contexts[0][32:].mean(dim=(0, 1, 2))
    assert columns.tolist() == [0] * 6 + [1] * 6


def test_the_item_says_where_its_frames_come_from_and_at_which_rate(stages, tmp_path):
    video = write_mp4(tmp_path / "a.mp4", numbered(24), 12)
    item = encoded(stages, "vace", num_frames=5, control_video=video, vace={"mode": "outpaint"})
    assert item.sound.fps == 12
    assert item.inputs["frame_indices"] == [0, 1, 2, 3, 4]
    assert item.inputs["kept_window"] == {"left": 8, "top": 5, "width": 32, "height": 21}  # 48 / 1.5 and 32 / 1.5
    back = Item.from_row(item.to_row())
    assert back.inputs == item.inputs and asdict(back.sound) == asdict(item.sound)
