import numpy as np
import pytest
from PIL import Image, ImageDraw

from wan_ray.errors import RequestError
from wan_ray.media.masks import bounding_box_mask, box_mask, expand_mask, hull_mask

HEIGHT, WIDTH = 60, 80


def drawn(*shapes):
    canvas = Image.new("1", (WIDTH, HEIGHT))
    for shape in shapes:
        ImageDraw.Draw(canvas).polygon(shape, fill=1)
    return np.asarray(canvas).astype(np.float32)


L_SHAPE = drawn([(20, 10), (25, 10), (25, 40), (50, 40), (50, 45), (20, 45)])


def extent(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_box_is_marked_up_to_its_right_and_bottom_edge_and_cut_at_the_picture():
    mask = box_mask((10, 5, 30, 25), width=WIDTH, height=HEIGHT)
    assert mask.dtype == np.float32
    assert extent(mask) == (10, 5, 29, 24)
    assert mask.sum() == 20 * 20
    assert extent(box_mask((-10, -5, 500, 25.7), width=WIDTH, height=HEIGHT)) == (0, 0, 79, 24)
    with pytest.raises(RequestError, match="marks nothing of 80x60 pixels"):
        box_mask((90, 5, 100, 25), width=WIDTH, height=HEIGHT)


def test_a_bounding_box_is_the_smallest_around_all():
    box = bounding_box_mask(L_SHAPE)
    assert extent(box) == extent(L_SHAPE)
    assert box.sum() == 31 * 36


def test_a_hull_holds_the_mask_and_no_more_than_is_convex():
    hull = hull_mask(L_SHAPE)
    assert (hull >= L_SHAPE).all()
    assert hull[30, 30] == 1  # within the bend, left of the line from (25, 10) to (50, 40)
    assert hull[15, 45] == 0
    assert extent(hull) == extent(L_SHAPE)
    triangle = drawn([(25, 10), (50, 40), (25, 40)])
    assert np.mean(hull != np.maximum(L_SHAPE, triangle)) < 0.01
    np.testing.assert_array_equal(hull_mask(hull), hull)


def test_a_hull_goes_around_several_parts_and_points():
    two = drawn([(10, 10), (14, 10), (14, 14), (10, 14)], [(60, 40), (64, 40), (64, 44), (60, 44)])
    assert hull_mask(two)[27, 37] == 1
    point = np.zeros((HEIGHT, WIDTH), np.float32)
    point[7, 9] = 1
    np.testing.assert_array_equal(hull_mask(point), point)
    line = np.zeros((HEIGHT, WIDTH), np.float32)
    line[7, [9, 30]] = 1
    assert hull_mask(line)[7, 9:31].all()
    assert hull_mask(line).sum() == 22


def test_an_expansion_grows_each_side_by_the_share_of_the_size():
    box = box_mask((30, 20, 50, 30), width=WIDTH, height=HEIGHT)
    assert extent(expand_mask(box, ratio=0.2)) == (26, 18, 53, 31)  # 4 of 20 columns, 2 of 10 rows
    grown = expand_mask(L_SHAPE, ratio=0.1)
    assert (grown >= L_SHAPE).all()
    assert grown[25, 40] == 0  # it keeps its shape
    assert extent(grown) == (17, 7, 53, 48)


def test_an_expansion_goes_at_most_half_the_way_to_the_edge():
    box = box_mask((10, 20, 60, 50), width=WIDTH, height=HEIGHT)
    left, top, right, bottom = extent(expand_mask(box, ratio=4))
    assert (left, top) == (5, 10)
    assert (right, bottom) == (59 + 10, 49 + 5)
    full = np.ones((HEIGHT, WIDTH), np.float32)
    np.testing.assert_array_equal(expand_mask(full, ratio=1), full)


@pytest.mark.parametrize("shape", [bounding_box_mask, hull_mask, lambda mask: expand_mask(mask, ratio=0.3)])
def test_frames_are_shaped_one_by_one_the_same_each_time_and_empty_ones_stay(shape):
    masks = np.stack([L_SHAPE, np.zeros_like(L_SHAPE), L_SHAPE.T[:60, :60].repeat(2, 1)[:, :WIDTH]])
    before = masks.copy()
    shaped = shape(masks)
    assert shaped.dtype == np.float32
    assert set(np.unique(shaped)) == {0.0, 1.0}
    assert not shaped[1].any()
    np.testing.assert_array_equal(shaped[0], shape(L_SHAPE))
    np.testing.assert_array_equal(shaped, shape(masks))
    np.testing.assert_array_equal(masks, before)


@pytest.mark.parametrize("ratio", [0, -1, 5, float("nan")])
def test_an_expansion_by_nothing_is_refused(ratio):
    with pytest.raises(RequestError, match="ratio="):
        expand_mask(L_SHAPE, ratio=ratio)
