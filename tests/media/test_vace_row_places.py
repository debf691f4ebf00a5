"""Which source frames a VACE clip shows and where their pixels lie, in each mode that reads a video, as recorded."""

from itertools import pairwise

import numpy as np
import pytest
from small_clips import HEIGHT, WIDTH, all_nearest, nearest, numbered, numbers, vace_row, write_folder, write_mp4

RATES = (10, 12, 24, 30, 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seconds of numbered frames at each of the rates that driving data come in."""
    out = tmp_path_factory.mktemp("sources")
    for fps in RATES:
        write_mp4(out / f"{fps}.mp4", numbered(2 * fps), fps)
    return out


@pytest.mark.parametrize(("ends", "fps"), [((30, 60), 16), ((12, 30), 12), ((60, 10), 10)])
def test_two_videos_are_taken_at_one_rate_that_of_the_slower(folder, ends, fps):
    first, last = ends
    vace = {"mode": "extend", "first": str(folder / f"{first}.mp4"), "last": str(folder / f"{last}.mp4")}
    row = vace_row({**vace, "num_first": 5, "num_last": 6}, num_frames=17)
    assert row.request.fps == fps
    at_first = all_nearest(2 * first, first, fps)[-5:]
    clips = row.places["kept_clips"]
    assert numbers(row.inputs.frames[:5]) == clips["first"]["frame_indices"] == at_first
    assert (
        numbers(row.inputs.frames[-6:]) == clips["last"]["frame_indices"] == [nearest(i, last, fps) for i in range(6)]
    )
    assert (clips["first"]["source_fps"], clips["last"]["source_fps"]) == ends


@pytest.mark.parametrize("source_fps", RATES)
@pytest.mark.parametrize("vace", [{"mode": "control"}, {"mode": "inpaint", "box": [0, 0, 96, 8]}, {"mode": "outpaint"}])
def test_frame_i_is_the_source_frame_nearest_to_i_over_fps_and_the_record_says_which(folder, source_fps, vace):
    usual = min(source_fps, 16)
    for fps, asked in ((usual, None), (source_fps, source_fps), (8, 8)):
        row = vace_row(vace, control_video=str(folder / f"{source_fps}.mp4"), num_frames=13, fps=asked)
        indices = row.places["frame_indices"]
        assert indices == [nearest(i, source_fps, fps) for i in range(13)]
        assert all(a < b for a, b in pairwise(indices))
        assert (row.request.fps, row.places["source_fps"]) == (fps, source_fps)
        window = row.places.get("kept_window", {"left": 0, "top": 0, "width": WIDTH, "height": HEIGHT})
        rows, columns = (np.s_[window[a] : window[a] + window[b]] for a, b in (("top", "height"), ("left", "width")))
        assert numbers(row.inputs.frames[:, rows, columns]) == indices


@pytest.mark.parametrize("source_fps", RATES)
@pytest.mark.parametrize("end", ["first", "last"])
def test_an_end_of_any_rate_is_recorded_frame_by_frame(folder, source_fps, end):
    row = vace_row({"mode": "extend", end: str(folder / f"{source_fps}.mp4"), f"num_{end}": 6}, num_frames=13)
    fps = min(source_fps, 16)
    assert row.request.fps == fps
    all_indices = all_nearest(2 * source_fps, source_fps, fps)
    clip = row.places["kept_clips"][end]
    assert clip["frame_indices"] == (all_indices[-6:] if end == "first" else all_indices[:6])
    assert all(a < b for a, b in pairwise(clip["frame_indices"]))
    at = clip["at_frame"]
    assert at == {"first": 0, "last": 7}[end]
    assert numbers(row.inputs.frames[at : at + 6]) == clip["frame_indices"]


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (160, 96), (48, 96)])
@pytest.mark.parametrize(
    "vace",
    [
        {"mode": "control"},
        {"mode": "outpaint", "ratio": 0.5},
        {"mode": "outpaint", "directions": ["left", "down"], "ratio": 1},
        {"mode": "outpaint", "inner": True, "ratio": 0.1},
        {"mode": "extend"},
    ],
    ids=["control", "outpaint", "outpaint two sides", "inner", "extend"],
)
def test_a_point_of_the_source_lies_in_the_clip_where_the_record_says(tmp_path, vace, size):
    source = np.full((5, 120, 200, 3), 30, np.uint8)
    source[:, 56:72, 100:120] = 255  # around (110, 64)
    video = write_mp4(tmp_path / "a.mp4", source)
    if vace["mode"] == "extend":
        row = vace_row({**vace, "last": video, "num_last": 3}, width=size[0], height=size[1])
        fit = row.places["kept_clips"]["last"]["fit"]
    else:
        row = vace_row(vace, control_video=video, width=size[0], height=size[1])
        fit = row.places["fit"]
    assert (fit["source_width"], fit["source_height"]) == (200, 120)
    lit = row.inputs.frames[-1].mean(axis=-1) > 170
    assert lit.any()
    rows, columns = np.nonzero(lit)
    for x, side, found in ((110, "width", columns), (64, "height", rows)):
        start = {"width": "left", "height": "top"}[side]
        told = x * fit[f"resized_{side}"] / fit[f"source_{side}"] - fit[f"crop_{start}"] + fit[start]
        assert abs(found.mean() + 0.5 - told) < 0.75


def test_a_mask_of_a_larger_source_is_cropped_with_it(tmp_path):
    source = np.full((5, 120, 200, 3), 30, np.uint8)
    source[:, 40:72, 100:132] = 255
    mask = np.where(source == 255, np.uint8(255), np.uint8(0))
    mask[:, 36:76, 96:136] = 255
    row = vace_row(
        {"mode": "inpaint"},
        control_video=write_folder(tmp_path / "v", source),
        mask_video=write_folder(tmp_path / "m", mask),
        width=64,
        height=64,
    )
    assert 0 < row.inputs.mask.mean() < 0.3
    assert (row.inputs.frames[row.inputs.mask == 0] == 30).all()  # nothing of the square is left
