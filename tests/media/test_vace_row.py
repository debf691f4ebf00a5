"""Each VACE mode of a row, looked at: what is kept, what is to be generated, and what is hidden."""

import numpy as np
import pytest
from PIL import Image
from small_clips import (
    HEIGHT,
    WIDTH,
    covered,
    decoded,
    numbered,
    numbers,
    vace_row,
    write_folder,
    write_mp4,
    write_png,
)

from wan_ray.errors import RequestError

LOSS = 14  # levels by which a gray pixel of these small MP4 files may be off; what is generated is farther off


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.mp4 and its frames in a/, 20 of 96x64 at 16 per second; a square mask of them as video, folder and picture."""
    out = tmp_path_factory.mktemp("sources")
    write_mp4(out / "a.mp4", numbered(20))
    write_folder(out / "a", numbered(20))
    square = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    square[40:56, 16:48] = 255
    write_png(out / "square.png", square)
    moving = np.stack([np.roll(square, 2 * n, axis=1) for n in range(20)])
    write_mp4(out / "moving.mp4", moving)
    write_folder(out / "moving", moving)
    return out


@pytest.fixture(scope="module", params=["a.mp4", "a", "bytes"])
def source(request, folder):
    """The numbered clip as a file, a folder or in the row itself, and its frames."""
    truth = numbered(20) if request.param == "a" else decoded(folder / "a.mp4")
    assert np.abs(truth.astype(int) - numbered(20)).mean() < 2
    return (folder / "a.mp4").read_bytes() if request.param == "bytes" else str(folder / request.param), truth


def assert_close(found, wanted, levels):
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max(initial=0) <= levels


def check(row, truth, *, hidden):
    """The mask is hard; where it is black the frames are the truth, where it is white all of this one gray."""
    frames, mask = row.inputs.frames, row.inputs.mask
    assert frames.dtype == np.uint8 and mask.dtype == np.float32
    assert mask.shape == frames.shape[:3] == (row.request.num_frames, row.request.height, row.request.width)
    assert set(np.unique(mask)) == {0, 1}
    assert_close(frames[mask == 0], truth[mask == 0], 2)
    assert (frames[mask == 1] == hidden).all()
    assert np.abs(truth[mask == 1].astype(int) - hidden).max(initial=0) > 3 * LOSS  # else nothing was hidden


# Control: the frames are what to follow.


def test_a_control_video_is_shown_as_it_is_and_all_is_generated(source):
    video, truth = source
    row = vace_row(control_video=video)
    assert (row.inputs.mask == 1).all()
    assert_close(row.inputs.frames, truth[:5], 2)
    assert numbers(row.inputs.frames) == row.places["frame_indices"] == [0, 1, 2, 3, 4]


def test_where_a_mask_is_black_the_video_is_kept_and_where_it_is_white_its_control_is_followed(folder):
    row = vace_row(
        {"mode": "control", "process": "gray"}, control_video=str(folder / "a"), mask_video=str(folder / "square.png")
    )
    marked = np.zeros((5, HEIGHT, WIDTH), bool)
    marked[:, 40:56, 16:48] = True
    np.testing.assert_array_equal(row.inputs.mask == 1, marked)
    np.testing.assert_array_equal(row.inputs.frames[~marked], numbered(5)[~marked])
    inside = row.inputs.frames[marked]
    assert (inside == inside[:, :1]).all() and not (numbered(5)[marked] == numbered(5)[marked][:, :1]).all()


def flat(path, *colors):
    """A folder of five frames, each of these colors in equal upright stripes."""
    stripes = np.array(colors, np.uint8).repeat(WIDTH // len(colors), axis=0)
    return write_folder(path, np.broadcast_to(stripes, (5, HEIGHT, WIDTH, 3)))


def test_gray_has_the_weights_of_red_and_blue_exchanged_as_in_training(tmp_path):
    # cv2.COLOR_BGR2GRAY of RGB data: 0.114 R + 0.587 G + 0.299 B.
    video = flat(tmp_path / "a", (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    row = vace_row({"mode": "control", "process": "gray"}, control_video=video)
    assert row.inputs.frames[0, 0, ::24].tolist() == [[29] * 3, [150] * 3, [76] * 3, [255] * 3]
    assert (row.inputs.mask == 1).all()


def test_a_scribble_is_black_lines_on_white(tmp_path):
    lines = np.zeros((5, HEIGHT, WIDTH, 3), np.uint8)
    lines[:, 30:32] = 255
    for video, levels in (
        (write_folder(tmp_path / "a", lines), 0),
        (write_mp4(tmp_path / "a.mp4", lines), LOSS),
    ):
        row = vace_row({"mode": "control", "process": "scribble"}, control_video=video)
        assert_close(row.inputs.frames, 255 - lines, levels)
        assert row.inputs.frames[:, 10].min() > 240 and row.inputs.frames[:, 30:32].max() < 20
        assert (row.inputs.mask == 1).all()
    ready = write_folder(tmp_path / "ready", 255 - lines)
    with pytest.raises(RequestError, match="takes light lines on black, and most of these frames is light"):
        vace_row({"mode": "control", "process": "scribble"}, control_video=ready)
    np.testing.assert_array_equal(vace_row(control_video=ready).inputs.frames, 255 - lines)


@pytest.mark.parametrize(("process", "near", "far"), [("depth_near_light", 200, 40), ("depth_near_dark", 40, 200)])
@pytest.mark.parametrize("kind", ["mp4", "folder"])
def test_in_depth_the_nearest_is_255_and_the_farthest_0_whatever_way_it_was_drawn(tmp_path, process, near, far, kind):
    drawn = np.full((5, HEIGHT, WIDTH, 3), far, np.uint8)
    drawn[:, 16:48, 16:48] = near
    drawn[:, 16:48, 48:80] = (near + far) // 2
    video = write_mp4(tmp_path / "d.mp4", drawn) if kind == "mp4" else write_folder(tmp_path / "d", drawn)
    frames = vace_row({"mode": "control", "process": process}, control_video=video).inputs.frames
    levels = LOSS if kind == "mp4" else 0
    for wanted, window in ((255, np.s_[:, 20:44, 20:44]), (0, np.s_[:, :12]), (127, np.s_[:, 20:44, 52:76])):
        assert np.abs(frames[window].astype(int) - wanted).max() <= levels
    assert (frames == frames[..., :1]).all()


# Inpaint: what is marked is hidden, the rest survives.


@pytest.mark.parametrize("mask", ["square.png", "bytes"])
def test_a_still_mask_hides_its_white_in_every_frame(folder, source, mask):
    video, truth = source
    marks = (folder / "square.png").read_bytes() if mask == "bytes" else str(folder / mask)
    row = vace_row({"mode": "inpaint"}, control_video=video, mask_video=marks)
    check(row, truth[:5], hidden=128)
    wanted = np.zeros((5, HEIGHT, WIDTH))
    wanted[:, 40:56, 16:48] = 1
    np.testing.assert_array_equal(row.inputs.mask, wanted)


@pytest.mark.parametrize("mask", ["moving.mp4", "moving"])
def test_a_mask_goes_with_the_source_frames_that_are_shown(folder, mask):
    row = vace_row({"mode": "inpaint"}, control_video=str(folder / "a.mp4"), mask_video=str(folder / mask), fps=8)
    assert row.places["frame_indices"] == [0, 2, 4, 6, 8]
    check(row, decoded(folder / "a.mp4")[[0, 2, 4, 6, 8]], hidden=128)
    for i, marked in enumerate(row.inputs.mask):
        wanted = np.zeros((HEIGHT, WIDTH))
        wanted[40:56, 16 + 4 * i : 48 + 4 * i] = 1  # 2 pixels for each of the source's frames
        np.testing.assert_array_equal(marked, wanted)


def test_a_box_hides_its_inside_up_to_its_right_and_bottom_edge(source):
    video, truth = source
    row = vace_row({"mode": "inpaint", "box": [8, 4, 40, 60]}, control_video=video)
    check(row, truth[:5], hidden=128)
    wanted = np.zeros((5, HEIGHT, WIDTH))
    wanted[:, 4:60, 8:40] = 1
    np.testing.assert_array_equal(row.inputs.mask, wanted)


def test_a_mask_is_made_its_hull_its_box_or_larger(folder, tmp_path):
    corner = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # two arms of 4 pixels, 40 wide and 20 high
    corner[20:40, 20:24] = corner[36:40, 20:60] = 255
    options = {"control_video": str(folder / "a"), "mask_video": write_png(tmp_path / "l.png", corner)}

    def marked(**more):
        row = vace_row({"mode": "inpaint", **more}, **options)
        check(row, numbered(5), hidden=128)
        return row.inputs.mask[2]

    assert marked().sum() == 20 * 4 + 40 * 4 - 4 * 4
    box = marked(shape="box")
    assert box.sum() == box[20:40, 20:60].sum() == 20 * 40
    hull = marked(shape="hull")
    assert hull[34, 30] == 1 and hull[22, 50] == 0
    assert marked().sum() < hull.sum() < box.sum()
    wide = marked(shape="box", expand=0.25)  # 10 of 40 columns: 10 to the left and right; 5 of 20 rows up and down
    assert wide.sum() == wide[15:45, 10:70].sum() == 30 * 60


def test_a_mask_that_marks_nothing_is_refused(folder, tmp_path):
    dim = write_png(tmp_path / "dim.png", np.full((HEIGHT, WIDTH, 3), 1, np.uint8))
    with pytest.raises(RequestError, match=r"marks nothing.*make white what is to be generated"):
        vace_row({"mode": "inpaint"}, control_video=str(folder / "a"), mask_video=dim)


# Outpaint: a smaller source in a larger picture.


@pytest.mark.parametrize(
    ("directions", "kept"),  # of 96x64, an axis is divided by 1.25 for a side that grows, by 1.5 for both
    [
        (["left", "right", "up", "down"], (16, 11, 64, 42)),
        (["left"], (20, 0, 76, 64)),
        (["right"], (0, 0, 76, 64)),
        (["up"], (0, 13, 96, 51)),
        (["down"], (0, 0, 96, 51)),
        (["right", "up"], (0, 13, 76, 51)),
    ],
)
def test_outpainting_puts_the_source_where_the_record_says_and_generates_around_it(source, directions, kept):
    video, truth = source
    row = vace_row({"mode": "outpaint", "directions": directions, "ratio": 0.25}, control_video=video)
    left, top, width, height = kept
    assert row.places["kept_window"] == {"left": left, "top": top, "width": width, "height": height}
    window = np.s_[:, top : top + height, left : left + width]
    wanted = np.full((5, HEIGHT, WIDTH, 3), 255, np.uint8)
    wanted[window] = covered(truth[:5], width, height)
    assert (row.inputs.mask[window] == 0).all() and (row.inputs.mask == 0).sum() == 5 * width * height
    check(row, wanted, hidden=128)


def test_inner_outpainting_keeps_the_middle_where_it_was(source):
    video, truth = source
    row = vace_row({"mode": "outpaint", "inner": True, "directions": ["left", "down"]}, control_video=video)
    assert row.places["kept_window"] == {"left": 24, "top": 0, "width": 72, "height": 48}  # a quarter of each side
    assert (row.inputs.mask[:, :48, 24:] == 0).all() and row.inputs.mask.sum() == 5 * (96 * 64 - 72 * 48)
    check(row, truth[:5], hidden=128)
    assert (row.places["fit"]["left"], row.places["fit"]["top"]) == (0, 0)


# Extend: frames of the clip are given.


def check_extended(row, given):
    """given: the pictures of some frames of the clip, by number; all other frames are gray and generated."""
    wanted = np.zeros((row.request.num_frames, HEIGHT, WIDTH, 3), np.uint8)
    for i, picture in given.items():
        wanted[i] = picture
    check(row, wanted, hidden=127)
    assert [i for i, mask in enumerate(row.inputs.mask) if (mask == 0).all()] == list(given)
    assert [i for i, mask in enumerate(row.inputs.mask) if (mask == 1).all()] == [
        i for i in range(len(wanted)) if i not in given
    ]


def test_a_clip_goes_on_from_a_video_s_last_frames(source):
    video, truth = source
    row = vace_row({"mode": "extend", "first": video, "num_first": 4}, num_frames=9)
    check_extended(row, {0: truth[16], 1: truth[17], 2: truth[18], 3: truth[19]})
    clips = row.places["kept_clips"]
    assert set(clips) == {"first"}
    assert (clips["first"]["at_frame"], clips["first"]["frame_indices"]) == (0, [16, 17, 18, 19])


def test_a_clip_leads_to_a_video_s_first_frames(source):
    video, truth = source
    row = vace_row({"mode": "extend", "last": video, "num_last": 3}, num_frames=9)
    check_extended(row, {6: truth[0], 7: truth[1], 8: truth[2]})
    clips = row.places["kept_clips"]
    assert set(clips) == {"last"}
    assert (clips["last"]["at_frame"], clips["last"]["frame_indices"]) == (6, [0, 1, 2])


def test_a_clip_goes_from_an_image_to_a_whole_video(source, folder):
    video, truth = source
    vace = {"mode": "extend", "first": str(folder / "a" / "frame_7.png"), "last": video}
    row = vace_row(vace, num_frames=33)
    check_extended(row, {0: numbered(8)[7], **{13 + i: truth[i] for i in range(20)}})
    clips = row.places["kept_clips"]
    assert {end: clip["at_frame"] for end, clip in clips.items()} == {"first": 0, "last": 13}
    assert clips["first"]["frame_indices"] == [0]
    assert clips["last"]["frame_indices"] == list(range(20))
    with pytest.raises(RequestError, match="1 first and 20 last frames leave none of num_frames=21 to generate"):
        vace_row(vace, num_frames=21)
    with pytest.raises(RequestError, match=r"vace\.last: .* has more than 16 frames at fps=16"):
        vace_row(vace, num_frames=17)


# Boxes and references.


def test_boxes_stand_at_their_places_in_the_first_middle_and_last_frame():
    paths = [[[8, 8, 24, 24], [56, 8, 88, 40]], [[4, 48, 20, 60]]]
    row = vace_row({"mode": "boxes", "paths": paths, "colors": [[255, 0, 0], [0, 0, 255]]}, num_frames=9)
    assert (row.inputs.mask == 1).all()
    moved = {0: (8, 8, 24, 24), 4: (32, 8, 56, 32), 8: (56, 8, 88, 40)}
    for i, (left, top, right, bottom) in moved.items():
        frame = row.inputs.frames[i]
        rows, columns = np.nonzero((frame == (255, 0, 0)).all(axis=-1))
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (left, top, right, bottom)
        assert (frame[(top + bottom) // 2, (left + right) // 2] == 255).all()  # outlined, not filled
        rows, columns = np.nonzero((frame == (0, 0, 255)).all(axis=-1))
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (4, 48, 20, 60)
        assert (frame[0] == 255).all()
    black = vace_row({"mode": "boxes", "paths": paths}).inputs.frames
    assert set(np.unique(black)) == {0, 255}


def test_references_alone_generate_everything_of_what_they_show(folder):
    pictures = [str(folder / "square.png"), (folder / "a" / "frame_3.png").read_bytes()]
    for vace in (None, {"mode": "references"}):
        row = vace_row(vace, reference_images=pictures)
        assert row.inputs.frames is None and (row.inputs.mask == 1).all()
        assert row.inputs.mask.shape == (5, HEIGHT, WIDTH)
        np.testing.assert_array_equal(row.inputs.references[0], np.asarray(Image.open(folder / "square.png")))
        np.testing.assert_array_equal(row.inputs.references[1], numbered(4)[3])


@pytest.mark.parametrize("mode", ["references", "control", "inpaint", "outpaint", "extend", "boxes"])
def test_with_a_mask_a_reference_is_cut_out_onto_white_in_every_mode(folder, tmp_path, mode):
    picture, mask = numbered(1)[0], np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:50, 20:80] = 255
    mask[10:20, 20:30] = 0  # the thing is no box
    row = vace_row(
        {
            "mode": mode,
            "reference_masks": [write_png(tmp_path / "m.png", mask)],
            **{"boxes": {"paths": [[[0, 0, 9, 9]]]}, "extend": {"first": str(folder / "square.png")}}.get(mode, {}),
        },
        reference_images=[write_png(tmp_path / "r.png", picture)],
        control_video=str(folder / "a") if mode in ("control", "inpaint", "outpaint") else None,
        mask_video=str(folder / "square.png") if mode == "inpaint" else None,
    )
    (reference,) = row.inputs.references
    wanted = picture[10:50, 20:80].copy()
    wanted[:10, :10] = 255
    np.testing.assert_array_equal(reference, wanted)
