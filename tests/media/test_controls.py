import numpy as np
import pytest

from wan_ray.errors import RequestError
from wan_ray.media.controls import (
    box_layout,
    depth_control_from_disparity,
    depth_control_from_metres,
    gray_control,
    scribble_control,
)

HEIGHT, WIDTH = 32, 48


def ramp(nearest, farthest, num_frames=2):
    """Distances that grow from left to right."""
    return np.broadcast_to(np.linspace(nearest, farthest, WIDTH), (num_frames, HEIGHT, WIDTH))


def test_near_is_255_and_far_is_0_from_metres():
    control = depth_control_from_metres(ramp(2.0, 80.0))
    assert control.dtype == np.uint8
    assert control.shape == (2, HEIGHT, WIDTH, 3)
    assert (control[:, :, 0] == 255).all()
    assert (control[:, :, -1] == 0).all()
    assert (np.diff(control[0, 0, :, 0].astype(int)) <= 0).all()
    assert (control == control[..., :1]).all()


def test_metres_become_inverse_depth():
    control = depth_control_from_metres(np.array([[[1.0, 2.0, 4.0, np.inf]]]))
    assert control[0, 0, :, 0].tolist() == [255, 127, 63, 0]


def test_the_unit_of_distances_does_not_matter():
    metres = ramp(2.0, 80.0)
    difference = depth_control_from_metres(metres).astype(int) - depth_control_from_metres(metres * 1000)
    assert np.abs(difference).max() <= 1


def test_near_is_255_from_disparity_too():
    control = depth_control_from_disparity(np.array([[[3.0, 2.0, 1.0]]]))
    assert control[0, 0, :, 0].tolist() == [255, 127, 0]


def test_each_frame_has_its_own_range_and_a_flat_one_is_0():
    disparity = np.stack([np.linspace(0, 1, 6).reshape(2, 3), np.linspace(5, 9, 6).reshape(2, 3), np.ones((2, 3))])
    control = depth_control_from_disparity(disparity)
    assert control[0].max() == control[1].max() == 255
    assert control[0].min() == control[1].min() == 0
    assert (control[2] == 0).all()


@pytest.mark.parametrize("hole", [0.0, -1.0, np.nan])
def test_holes_in_depth_are_refused(hole):
    depth = np.ones((1, 2, 4))
    depth[0, 0, 0] = hole
    with pytest.raises(RequestError, match=r"12\.5% of the depth values are 0, negative or NaN; fill the holes"):
        depth_control_from_metres(depth)


@pytest.mark.parametrize("hole", [np.inf, np.nan])
def test_holes_in_disparity_are_refused(hole):
    with pytest.raises(RequestError, match="some disparities are NaN or infinite"):
        depth_control_from_disparity(np.full((1, 2, 4), hole))


def test_a_scribble_is_black_on_white():
    lines = np.zeros((2, HEIGHT, WIDTH), bool)
    lines[:, 10] = True
    for given in (lines, lines.astype(np.uint8) * 255):
        control = scribble_control(given)
        assert (control[:, 10] == 0).all()
        assert (np.delete(control, 10, axis=1) == 255).all()


def test_gray_is_what_the_released_annotator_makes_of_rgb():
    # cv2.COLOR_BGR2GRAY of frames that are RGB: 0.114 R + 0.587 G + 0.299 B.
    primaries = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 200, 30]]]], np.uint8)
    control = gray_control(primaries)
    assert control[0, 0, :, 0].tolist() == [29, 150, 76, 255, 128]
    assert (control == control[..., :1]).all()


def outline(frame):
    """Left, top, right, bottom of what is not white."""
    rows, columns = np.nonzero((frame != 255).any(axis=-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_box_moves_from_start_to_end_and_reaches_it():
    frames = box_layout([[(2, 4, 12, 14), (30, 10, 44, 28)]], num_frames=9, width=WIDTH, height=HEIGHT)
    assert frames.shape == (9, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert outline(frames[0]) == (2, 4, 12, 14)
    assert outline(frames[4]) == (16, 7, 28, 21)
    assert outline(frames[8]) == (30, 10, 44, 28)


def test_an_outline_is_two_black_pixels_on_white():
    frame = box_layout([[(5, 6, 25, 20)]], num_frames=1, width=WIDTH, height=HEIGHT)[0]
    wanted = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    wanted[6:21, 5:26] = 0
    wanted[8:19, 7:24] = 255
    np.testing.assert_array_equal(frame, wanted)


def test_boxes_may_stand_move_by_frame_have_colors_and_leave_the_picture():
    by_frame = [(i, i, i + 10.0, i + 10.0) for i in range(5)]
    leaving = [(40, 20, 60, 40), (100, 100, 120, 120)]
    frames = box_layout(
        [by_frame, leaving], num_frames=5, width=WIDTH, height=HEIGHT, colors=[(255, 0, 0), (0, 0, 255)]
    )
    for i in range(5):
        np.testing.assert_array_equal(frames[i, i, i], (255, 0, 0))
    np.testing.assert_array_equal(frames[0, 20, 40], (0, 0, 255))
    assert outline(frames[4]) == (4, 4, 14, 14)
    assert (box_layout([], num_frames=2, width=WIDTH, height=HEIGHT) == 255).all()


@pytest.mark.parametrize("path", [[], [(10, 0, 5, 5)], [(0, 0, 5, 5), (0, np.nan, 5, 5)]])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(RequestError, match="is no path of boxes"):
        box_layout([path], num_frames=5, width=WIDTH, height=HEIGHT)
