import math
import xml.etree.ElementTree as ET

import pytest

from wan_ray.report.plots import Axis, Bar, bars, boxes, columns, line

AXIS = Axis(start_s=1772820000.0, step_s=3600.0, num_steps=4)  # 2026-03-06 18:00 UTC
NAN = math.nan


def parsed(svg):
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    by_id = {element.get("id"): element for element in root.iter()}
    title, description = (by_id[name] for name in root.get("aria-labelledby").split())
    assert (title.tag, description.tag) == ("title", "desc")
    _, _, width, height = map(float, root.get("viewBox").split())
    for element in root.iter("rect"):
        x, y, w, h = (float(element.get(name)) for name in ("x", "y", "width", "height"))
        assert min(x, y, w, h) >= 0
        assert x + w <= width
        assert y + h <= height
    return root, description.text


def rects(root, kind):
    return [float(r.get("height")) for r in root.iter("rect") if r.get("class") == kind]


def texts(root):
    return [element.text for element in root.iter("text")]


def test_columns_are_as_high_as_their_numbers_with_failures_on_top():
    root, told = parsed(columns("a", "Clips", AXIS, [10, 20, 0, 5], [0, 20, 0, 0]))
    ok, failed = rects(root, "ok"), rects(root, "failed")
    assert [round(height / ok[0], 2) for height in ok] == [1, 2, 0.5]
    assert failed == [ok[1]]
    assert told == "35 clips and 20 failures, at most 20 clips in one step."
    assert [text for text in texts(root) if ":00" in text][::2] == ["18:00", "20:00", "22:00"]
    assert "40" in texts(root)


def test_a_line_leaves_a_gap_where_there_is_nothing():
    root, told = parsed(line("a", "Cost", AXIS, [10, NAN, 30, 20]))
    (path,) = root.iter("path")
    assert path.get("d").count("M") == 2
    assert path.get("d").count("L") == 1
    assert told == "Between 10 and 30."


@pytest.mark.parametrize(
    "draw", [lambda: columns("a", "t", AXIS, [0] * 4, [0] * 4), lambda: line("a", "t", AXIS, [NAN] * 4)]
)
def test_nothing_is_drawn_as_an_empty_plot(draw):
    root, _ = parsed(draw())
    assert not [*root.iter("rect"), *root.iter("circle")]


def test_boxes_lie_on_one_logarithmic_axis():
    root, told = parsed(boxes("a", "Stages", [("encode", [0.1, 1, 1, 10, 10]), ("denoise", [1, 10, 10, 100, 100])]))
    first, second = root.iter("rect")
    assert first.get("width") == second.get("width")
    decade = float(first.get("width"))
    assert float(second.get("x")) - float(first.get("x")) == pytest.approx(decade, abs=0.2)
    assert {"0.1 s", "1 s", "10 s", "100 s", "encode", "denoise"} == set(texts(root))
    assert "denoise: median 10 s, 95 % below 100 s" in told


@pytest.mark.parametrize("value", [1.0, 0.001, 1e6])
def test_a_box_of_one_value_is_still_seen(value):
    root, _ = parsed(boxes("a", "t", [("s", [value] * 5)]))
    assert float(next(root.iter("rect")).get("width")) > 0


def test_bars_hold_any_text_cut_to_their_width():
    items = [
        Bar(text="<script>alert('&')</script>", ok=3, failed=1),
        Bar(text="雪" * 200, ok=1, failed=0),
        Bar(text="x" * 200, ok=0, failed=4),
    ]
    root, told = parsed(bars("a", "By <label>", items))
    names = [text.text for text in root.iter("text") if text.get("class") == "name"]
    assert names[0] == "<script>alert('&')</script>"
    assert 2 * len(names[1]) < 130 > len(names[2])
    assert "4, 1 failed" in texts(root)
    assert "<script>alert('&')</script>: 3 ok, 1 failed" in told


def test_a_rare_failure_is_still_seen_beside_many_clips():
    root, _ = parsed(bars("a", "t", [Bar(text="x", ok=10**6, failed=1)]))
    assert [float(r.get("width")) >= 1 for r in root.iter("rect")] == [True, True]


@pytest.mark.parametrize("step", [1, 60, 3600, 86400, 3 * 604800])
def test_times_are_few_enough_to_be_read(step):
    axis = Axis(start_s=AXIS.start_s, step_s=step, num_steps=72)
    root, _ = parsed(columns("a", "t", axis, [1] * 72, [0] * 72))
    assert 2 <= sum(":" in text or "-" in text for text in texts(root)) <= 9
