import io

import numpy as np
from PIL import Image

from wan_ray.media.contact_sheet import SheetEntry, contact_sheet, frame_strip


def picture(entries):
    return np.asarray(Image.open(io.BytesIO(contact_sheet(entries))))


def plain(num_frames, width, height, levels):
    return [np.full((height, width, 3), level, np.uint8) for level in list(levels)[:num_frames]]


def has(image, color):
    return bool((image == color).all(axis=-1).any())


def test_a_clip_shows_its_first_its_last_and_two_frames_between():
    image = picture([SheetEntry(title="a", lines=["caption"], frames=plain(7, 96, 64, range(70, 250, 20)))])
    shown = [level for level in range(70, 210, 20) if has(image, [level] * 3)]
    assert shown == [70, 110, 150, 190]


def test_a_still_shows_its_one_picture_and_a_failed_row_its_words():
    still = SheetEntry(title="still", lines=[], frames=plain(1, 64, 64, [131]))
    failed = SheetEntry(title="failed", lines=["width=50 is not a multiple of 16"], frames=[])
    assert has(picture([still, failed]), [131] * 3)
    assert picture([failed]).shape[0] < picture([still]).shape[0]


def test_frames_of_any_size_share_one_height_within_the_page():
    wide = SheetEntry(title="w", lines=["x" * 2000], frames=plain(4, 1600, 100, [131] * 4))
    tall = SheetEntry(title="t", lines=[], frames=plain(4, 30, 80, [132] * 4))
    assert picture([wide, tall]).shape[1] <= 1408
    rows = (picture([tall]) == 132).all(axis=-1).any(axis=1)
    assert rows.sum() == 180


def test_a_long_caption_is_wrapped_and_cut_so_the_sheet_stays_small():
    long = SheetEntry(title="a", lines=["a long tale " * 500], frames=plain(1, 64, 64, [131]))
    four = SheetEntry(title="a", lines=["1", "2", "3", "4"], frames=plain(1, 64, 64, [131]))
    assert picture([long]).shape == picture([four]).shape


def test_text_that_no_font_draws_is_replaced_by_a_note_not_boxes():
    nothing = SheetEntry(title="id-1", lines=["\U0010fffe\U0010ffff" * 9], frames=plain(1, 64, 64, [131]))
    note = SheetEntry(
        title="id-1", lines=["(text in a script that no font here draws)"], frames=plain(1, 64, 64, [131])
    )
    assert contact_sheet([nothing]) == contact_sheet([note])


def test_a_single_character_that_no_font_draws_is_left_out():
    with_it = SheetEntry(title="a", lines=["night\U0010ffff street"], frames=[])
    without = SheetEntry(title="a", lines=["night street"], frames=[])
    assert contact_sheet([with_it]) == contact_sheet([without])


def test_clips_stand_side_by_side_while_they_fit():
    small = SheetEntry(title="a", lines=[], frames=plain(1, 64, 64, [131]))
    one, two = picture([small]), picture([small, small])
    assert two.shape[0] == one.shape[0]
    assert two.shape[1] > one.shape[1]
    assert picture([small] * 9).shape[0] > one.shape[0]


def test_a_strip_is_a_jpeg_of_its_frames_within_its_bounds():
    frames = plain(5, 640, 360, range(40, 240, 40))
    strip = frame_strip(frames, height=90, max_bytes=20_000)
    image = Image.open(io.BytesIO(strip))
    assert (image.format, image.height, image.width) == ("JPEG", 90, 4 * 160 + 3 * 4)
    shown = [int(np.asarray(image)[45, 80 + number * 164, 0]) for number in range(4)]
    assert np.allclose(shown, [40, 80, 160, 200], atol=3)


def test_a_strip_of_noise_is_made_coarser_and_smaller_until_it_fits():
    noise = list(np.random.default_rng(0).integers(0, 256, (4, 180, 320, 3), np.uint8))
    for max_bytes in (60_000, 10_000, 2_000):
        strip = frame_strip(noise, height=120, max_bytes=max_bytes)
        assert len(strip) <= max_bytes
    assert Image.open(io.BytesIO(strip)).height < 120
