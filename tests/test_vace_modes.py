"""Every VACE mode rendered from files to frames, and what a record then says of its sources."""

import json

import numpy as np
import pytest
from small_clips import HEIGHT, WIDTH, numbered, write_folder, write_mp4, write_png

from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest, parse_row
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.stages.publish import make_record

WHOLE = {"left": 0, "top": 0, "width": 96, "height": 64}
FIRST_FIVE = {"frame_indices": [0, 1, 2, 3, 4], "source_fps": 12.0}
# mode -> its options, the media that it takes, and what the record says of them, but for the fit.
MODES = {
    "control": ({"process": "gray"}, ("control_video",), FIRST_FIVE),
    "inpaint": ({"shape": "box", "expand": 0.5}, ("control_video", "mask_video"), FIRST_FIVE),
    "outpaint": (
        {"ratio": 0.5, "directions": ["right"]},  # 96 / 1.5
        ("control_video",),
        {**FIRST_FIVE, "kept_window": {**WHOLE, "width": 64}},
    ),
    "extend": (
        {"num_last": 2},
        ("first", "last"),
        {
            "kept_clips": {
                "first": {"at_frame": 0, "frame_indices": [0], "source_fps": None},
                "last": {"at_frame": 3, "frame_indices": [0, 1], "source_fps": 12.0},
            }
        },
    ),
    "boxes": ({"paths": [[[0, 0, 32, 32], [40, 20, 90, 60]]], "colors": [[255, 0, 0]]}, (), {}),
    "references": ({}, ("reference_images", "reference_masks"), {}),
}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vace")
    write_debug_checkpoint(folder, kind="vace")
    return Renderer.from_checkpoint(folder, device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A file for each of a row's sources."""
    out = tmp_path_factory.mktemp("sources")
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[16:40, 24:72] = 255
    return {
        "control_video": write_mp4(out / "a.mp4", numbered(12), 12),
        "mask_video": write_folder(out / "m", np.stack([mask] * 12)),
        "first": write_png(out / "f.png", numbered(1)[0]),
        "last": write_mp4(out / "l.mp4", numbered(6), 12),
        "reference_images": [write_png(out / "r.png", numbered(2)[1])],
        "reference_masks": [write_png(out / "rm.png", mask)],
    }


def request_of(mode, media):
    options, names, _ = MODES[mode]
    inside = {name: media[name] for name in names if name in ("first", "last", "reference_masks")}
    row = {name: media[name] for name in names if name not in inside}
    row |= {"id": mode, "task": "vace", "prompt": "a road", "width": WIDTH, "height": HEIGHT, "num_frames": 5}
    row |= {"seed": 1, "num_inference_steps": 1, "guidance_scale": 1, "vace": {"mode": mode, **options, **inside}}
    return parse_row(row).request


@pytest.fixture(scope="module")
def clips(renderer, media):
    """One of each mode, of the same noise."""
    return {mode: renderer(request_of(mode, media)) for mode in MODES}


def without_fits(told):
    """The fits are looked at in tests/media."""
    if not isinstance(told, dict):
        return told
    return {name: without_fits(value) for name, value in told.items() if name != "fit"}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_renders_and_says_which_frames_of_its_sources_the_clip_shows(clips, mode):
    rendered = clips[mode]
    assert rendered.frames.shape == (5, HEIGHT, WIDTH, 3)
    assert np.isfinite(rendered.latents.numpy()).all()
    _, names, told = MODES[mode]
    assert without_fits(rendered.inputs) == told
    assert ("fit" in rendered.inputs) == ("frame_indices" in told)
    assert rendered.request.fps == (12 if {"control_video", "last"} & set(names) else 16)


@pytest.mark.parametrize("mode", MODES)
def test_the_record_of_each_mode_holds_its_options_its_sources_and_their_maps(renderer, media, mode):
    request = resolve(request_of(mode, media), renderer.variant)
    item = renderer.encode(Item(name=mode, id=mode, row=0, request=request, prompt="a road"))
    record = make_record(Item.from_row(item.to_row()), run_id="r")
    options, names, told = MODES[mode]
    assert record.vace["mode"] == mode and options.items() <= record.vace.items()
    sources = {name: media[name] if isinstance(media[name], list) else [media[name]] for name in names}
    assert without_fits(record.inputs) == {**sources, **told}
    clips = record.inputs.get("kept_clips", {"": record.inputs} if "frame_indices" in told else {})
    for clip in clips.values():
        assert {"source_width": 96, "source_height": 64}.items() <= clip["fit"].items()
    assert json.loads(record.model_dump_json())["inputs"] == record.inputs


def test_each_mode_renders_another_clip_than_the_others(clips):
    latents = [clip.latents.numpy() for clip in clips.values()]
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(latents) for b in latents[:i])


def test_a_released_clip_has_the_source_s_length_and_size_and_the_rate_16(renderer, media):
    row = {
        "task": "vace",
        "prompt": "a",
        "num_frames": 17,
        "compat": "released",
        "num_inference_steps": 1,
        "guidance_scale": 1,
    }
    rendered = renderer(RenderRequest(**row, control_video=media["control_video"], width=192, height=128))
    # 12 frames are (12 - 1) // 4 + 1 = 3 latent frames; a source is never enlarged.
    assert rendered.frames.shape == (9, 64, 96, 3)
    assert (rendered.request.width, rendered.request.height, rendered.request.num_frames) == (96, 64, 9)
    assert rendered.request.fps == 16
    assert rendered.inputs["frame_indices"] == [int(i * 11.5 / 8) for i in range(9)]
