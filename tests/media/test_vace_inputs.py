import numpy as np
import pytest

from wan_ray.errors import RequestError
from wan_ray.media.vace_inputs import (
    control,
    cut_out,
    extend,
    inpaint,
    outpaint,
    outpaint_inner,
    outpaint_source_size,
    references_only,
    with_references,
)

FRAMES, HEIGHT, WIDTH = 5, 32, 48


def clip(num_frames=FRAMES, height=HEIGHT, width=WIDTH, seed=0):
    """Noise without 127 and 128, so that no pixel of it looks like one to be generated."""
    pixels = np.random.default_rng(seed).integers(0, 254, (num_frames, height, width, 3), np.uint8)
    return pixels + 2 * (pixels >= 127).astype(np.uint8)


def check(inputs, source):
    """Kept pixels are the source's, the others gray, and the mask is hard and of the frames' shape."""
    assert inputs.frames.dtype == np.uint8
    assert inputs.mask.dtype == np.float32
    assert inputs.mask.shape == inputs.frames.shape[:3]
    assert set(np.unique(inputs.mask)) == {0.0, 1.0}
    kept = inputs.mask == 0
    np.testing.assert_array_equal(inputs.frames[kept], source[kept])
    return inputs.frames[~kept]


def test_a_control_video_is_given_as_it_is_and_all_is_generated():
    source = clip()
    inputs = control(source)
    np.testing.assert_array_equal(inputs.frames, source)
    assert (inputs.mask == 1).all()
    assert inputs.mask.shape == (FRAMES, HEIGHT, WIDTH)
    assert inputs.references == ()


def test_a_static_mask_is_gray_128_in_every_frame_and_the_rest_survives():
    source, mask = clip(), np.zeros((HEIGHT, WIDTH), np.float32)
    mask[8:16, 10:30] = 1
    inputs = inpaint(source, mask)
    assert (check(inputs, source) == 128).all()
    np.testing.assert_array_equal(inputs.mask, np.repeat(mask[None], FRAMES, axis=0))
    np.testing.assert_array_equal(source, clip())  # arguments stay as they are


def test_a_mask_per_frame_is_followed_frame_by_frame():
    source, mask = clip(), np.zeros((FRAMES, HEIGHT, WIDTH), np.float32)
    for i in range(FRAMES):
        mask[i, i : i + 10, 2 * i : 2 * i + 10] = 1
    inputs = inpaint(source, mask)
    assert (check(inputs, source) == 128).all()
    np.testing.assert_array_equal(inputs.mask, mask)


def test_a_soft_mask_is_decided_at_half():
    mask = np.full((HEIGHT, WIDTH), 0.49, np.float32)
    mask[:, 20:] = 0.5
    inputs = inpaint(clip(), mask)
    assert (inputs.mask[:, :, :20] == 0).all()
    assert (inputs.mask[:, :, 20:] == 1).all()


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH - 1), (FRAMES - 1, HEIGHT, WIDTH), (1, HEIGHT, WIDTH)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(RequestError, match=r"the mask is \[.*\], the frames \[5, 32, 48\]"):
        inpaint(clip(), np.ones(shape, np.float32))


# Upstream's rule: int(ratio * size) on each side named; here 0.25 * 48 = 12 and 0.25 * 32 = 8.
@pytest.mark.parametrize(
    ("directions", "size", "place"),
    [
        (["left", "right"], (80, 32), (16, 0)),  # 48 + 12 + 12 = 72, and 8 more, 4 on each side
        (["right"], (64, 32), (0, 0)),
        (["left"], (64, 32), (16, 0)),
        (["up", "down"], (48, 48), (0, 8)),
        (["up"], (48, 48), (0, 16)),
        (["down"], (48, 48), (0, 0)),
        (["left", "right", "up", "down"], (80, 48), (16, 8)),
    ],
)
def test_outpainting_grows_the_sides_named_and_keeps_the_picture(directions, size, place):
    source, (x, y) = clip(), place
    inputs = outpaint(source, directions=directions, ratio=0.25)
    assert inputs.frames.shape[1:3] == size[::-1]
    np.testing.assert_array_equal(inputs.frames[:, y : y + HEIGHT, x : x + WIDTH], source)
    wanted = np.ones((FRAMES, *size[::-1]), np.float32)
    wanted[:, y : y + HEIGHT, x : x + WIDTH] = 0
    np.testing.assert_array_equal(inputs.mask, wanted)
    assert (inputs.frames[wanted == 1] == 128).all()


@pytest.mark.parametrize("size", [(832, 480), (480, 832), (1280, 720), (96, 64)])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 1 / 3, 1.0, 3.7])
@pytest.mark.parametrize(
    "directions", [("left",), ("up", "down"), ("left", "right"), ("left", "right", "up", "down"), ("right", "down")]
)
def test_outpainting_a_source_of_the_size_told_gives_the_size_asked(size, ratio, directions):
    width, height = outpaint_source_size(*size, directions=directions, ratio=ratio)
    source = np.zeros((1, height, width, 3), np.uint8)
    assert outpaint(source, directions=directions, ratio=ratio).mask.shape == (1, *size[::-1])


def test_inner_outpainting_keeps_the_size_and_renews_the_border():
    source = clip()
    inputs = outpaint_inner(source, directions=["left", "up"], ratio=0.25)
    assert (check(inputs, source) == 128).all()
    wanted = np.ones((FRAMES, HEIGHT, WIDTH), np.float32)
    wanted[:, 8:, 12:] = 0
    np.testing.assert_array_equal(inputs.mask, wanted)
    both = outpaint_inner(source, directions=["left", "right", "up", "down"], ratio=0.25)
    assert (both.mask[:, 8:24, 12:36] == 0).all()
    assert both.mask.sum() == FRAMES * (HEIGHT * WIDTH - 16 * 24)


@pytest.mark.parametrize("ask", [outpaint, outpaint_inner])
@pytest.mark.parametrize(
    ("directions", "ratio", "reason"),
    [
        ([], 0.25, r"directions=\[\]: name some of left"),
        (["top"], 0.25, r"directions=\['top'\]: name some"),
        (["left"], 0, "ratio=0 is not above 0"),
        (["left"], float("nan"), "ratio=nan is not above 0"),
        (["left"], 5, "at most 4"),
    ],
)
def test_outpainting_nowhere_or_without_a_ratio_is_refused(ask, directions, ratio, reason):
    with pytest.raises(RequestError, match=reason):
        ask(clip(), directions=directions, ratio=ratio)


def test_outpainting_that_leaves_nothing_or_cannot_reach_a_size_is_refused():
    with pytest.raises(RequestError, match="leaves nothing of the picture"):
        outpaint_inner(clip(), directions=["left", "right"], ratio=0.5)
    with pytest.raises(
        RequestError, match="30 pixels are no multiple of 16, and the picture grows neither up nor down"
    ):
        outpaint(clip(height=30), directions=["left"], ratio=0.25)


@pytest.mark.parametrize(("num_first", "num_last"), [(1, 0), (0, 1), (1, 1), (5, 0), (0, 5), (5, 4)])
def test_an_extension_keeps_first_and_last_frames_and_generates_between_them(num_first, num_last):
    source = clip(17)
    first = source[:num_first] if num_first else None
    last = source[17 - num_last :] if num_last else None
    inputs = extend(num_frames=17, first=first, last=last)
    assert (check(inputs, source) == 127).all()  # 127.5 cut to a byte
    kept = [i < num_first or i >= 17 - num_last for i in range(17)]
    np.testing.assert_array_equal(inputs.mask, np.where(kept, 0, 1)[:, None, None] * np.ones((17, HEIGHT, WIDTH)))


def test_an_extension_of_nothing_of_all_or_of_two_sizes_is_refused():
    with pytest.raises(RequestError, match="nothing to extend"):
        extend(num_frames=17)
    with pytest.raises(RequestError, match="nothing to extend"):
        extend(num_frames=17, first=clip(0))
    with pytest.raises(RequestError, match="9 first and 8 last frames leave none of num_frames=17"):
        extend(num_frames=17, first=clip(9), last=clip(8))
    with pytest.raises(RequestError, match="first is 48x32, last 32x32"):
        extend(num_frames=17, first=clip(1), last=clip(1, width=32))


def test_references_alone_leave_the_frames_open_and_generate_all():
    references = [clip(1)[0], clip(1, 20, 10)[0]]
    inputs = references_only(references, num_frames=9, width=64, height=32)
    assert inputs.frames is None
    assert inputs.mask.shape == (9, 32, 64)
    assert (inputs.mask == 1).all()
    assert inputs.references == tuple(references)


def test_references_go_with_any_mode_and_change_nothing_else():
    source, reference = clip(), clip(1, 20, 10)[0]
    alone = outpaint(source, directions=["left"], ratio=0.25)
    inputs = with_references(alone, [reference])
    np.testing.assert_array_equal(inputs.references[0], reference)
    assert inputs.frames is alone.frames
    assert inputs.mask is alone.mask


def test_a_cut_out_is_the_masked_thing_on_white():
    image, mask = clip(1)[0], np.zeros((HEIGHT, WIDTH), np.float32)
    mask[8:16, 10:30], mask[8, 10] = 1, 0
    found = cut_out(image, mask)
    assert found.shape == (8, 20, 3)
    assert (found[0, 0] == 255).all()
    np.testing.assert_array_equal(found[1:], image[9:16, 10:30])
    with pytest.raises(RequestError, match="marks nothing"):
        cut_out(image, 0 * mask)
    with pytest.raises(RequestError, match=r"the mask is \[31, 48\], the image \[32, 48\]"):
        cut_out(image, mask[1:])
