"""compat: released for VACE: what Wan2.1 (9737cba) makes of a source, by hand from its rules and as it was seen to run.

A clip of 96x64 has 24 cells of 16x16, the trained 21 latent frames make 504 of them: as 3600 and 75600 at 1280x720.
"""

import numpy as np
import pytest
from small_clips import HEIGHT, WIDTH, covered, decoded, numbered, numbers, vace_row, write_mp4, write_png

from wan_ray.errors import RequestError


def released(**fields):
    return vace_row(compat="released", **fields)


def test_ten_seconds_at_30_become_81_frames_at_16_whatever_is_asked(tmp_path):
    """300 frames were seen to give 0, 3, 7 ... 299: times from 0 to the last frame's middle, both ends included."""
    video = write_mp4(tmp_path / "a.mp4", numbered(300), 30)
    row = released(control_video=video, num_frames=5)
    wanted = [int(i * 299.5 / 80) for i in range(81)]
    assert (wanted[:3], wanted[-1]) == ([0, 3, 7], 299)
    assert row.places["frame_indices"] == numbers(row.inputs.frames) == wanted
    assert (row.request.num_frames, row.request.fps) == (81, 16)
    assert row.places["source_fps"] == pytest.approx(30, abs=0.01)
    assert (row.inputs.mask == 1).all()
    ours = vace_row(control_video=video, num_frames=81)
    assert ours.places["frame_indices"][:4] == [0, 2, 4, 6]  # at the clip's rate: 1.875, 3.75, 5.625


def test_80_frames_become_77_of_which_none_is_left_out_evenly(tmp_path):
    row = released(control_video=write_mp4(tmp_path / "a.mp4", numbered(80)), num_frames=81, fps=24)
    assert row.request.num_frames == len(row.inputs.frames) == 77
    assert row.places["frame_indices"] == [int(i * 79.5 / 76) for i in range(77)]
    assert row.request.fps == 24  # of the file alone: no frame is taken by it


@pytest.mark.parametrize(("size", "num_frames"), [((48, 32), 149), ((96, 64), 81), ((64, 48), 149)])
def test_a_small_source_stays_small_and_may_give_more_than_81_frames(tmp_path, size, num_frames):
    """150 frames of 6 or 12 cells: 38 latent frames, within the 504 // 6 and 504 // 12 that there is room for."""
    frames = numbered(150)[:, : size[1], : size[0]]
    if size == (96, 64):
        frames = np.repeat(np.repeat(frames, 2, axis=1), 2, axis=2)  # 192x128: 96 cells, cut to the 24 asked for
    row = released(control_video=write_mp4(tmp_path / "a.mp4", frames))
    assert (row.request.width, row.request.height) == size
    assert row.request.num_frames == len(row.inputs.frames) == num_frames
    assert row.inputs.mask.shape == (num_frames, size[1], size[0])


@pytest.mark.parametrize(
    ("source", "size"),
    [
        # 24 cells at the source's aspect: round(sqrt(24)) rows of int(24 / 5) columns.
        ((200, 200), (64, 80)),
        ((100, 200), (48, 112)),  # round(sqrt(48)) = 7, int(24 / 7) = 3
        ((200, 100), (128, 48)),  # round(sqrt(12)) = 3, 8
    ],
)
def test_the_size_has_the_source_s_aspect_at_the_area_asked_and_the_rest_is_cropped(tmp_path, source, size):
    y, x = np.mgrid[: source[1], : source[0]]
    frames = np.repeat(np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)[None], 5, axis=0)
    video = write_mp4(tmp_path / "a.mp4", frames)
    row = released(control_video=video)
    assert (row.request.width, row.request.height) == size
    wanted = covered(decoded(video, width=source[0], height=source[1]), *size)
    assert np.abs(row.inputs.frames.astype(int) - wanted).max() <= 3
    fit = row.places["fit"]
    assert (fit["source_width"], fit["source_height"], fit["width"], fit["height"]) == (*source, *size)


@pytest.fixture
def masked(tmp_path):
    """20 numbered frames, and 13 mask frames: black, a third of the way to white, and white, in upright thirds."""
    mask = np.zeros((13, HEIGHT, WIDTH, 3), np.uint8)
    mask[:, :, 32:64], mask[:, :, 64:] = 85, 255
    video, masks = write_mp4(tmp_path / "a.mp4", numbered(20)), write_mp4(tmp_path / "m.mp4", mask)
    return {"control_video": video, "mask_video": masks}


def test_a_mask_stays_soft_and_the_shorter_of_the_two_decides_the_length(masked):
    row = released(**masked)
    assert row.request.num_frames == 13
    assert row.places["frame_indices"] == numbers(row.inputs.frames) == [int(i * 12.5 / 12) for i in range(13)]
    for columns, level in ((np.s_[:28], 0), (np.s_[36:60], 1 / 3), (np.s_[68:], 1)):
        assert np.abs(row.inputs.mask[:, :, columns] - level).max() < 0.03
    # Nothing is hidden in the frames: the model's side cuts the mask.
    assert np.abs(row.inputs.frames.astype(int) - decoded(masked["control_video"])[:13]).max() <= 2
    ours = vace_row({"mode": "inpaint"}, **masked)
    assert set(np.unique(ours.inputs.mask)) == {0, 1}


def test_a_lone_mask_is_dropped(tmp_path):
    for references in ([], [write_png(tmp_path / "r.png", numbered(1)[0])]):
        row = released(mask_video=str(tmp_path / "none.mp4"), reference_images=references)
        assert row.inputs.frames is None and (row.inputs.mask == 1).all()
        assert len(row.inputs.references) == len(references)
        assert (row.request.num_frames, row.places) == (5, {})


def test_a_source_of_less_than_16_pixels_is_refused(tmp_path):
    video = write_mp4(tmp_path / "a.mp4", np.zeros((5, 12, 96, 3), np.uint8))
    with pytest.raises(RequestError, match="a video of 96x12 has a side of less than 16 pixels; give a larger one"):
        released(control_video=video)
