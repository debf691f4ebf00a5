"""The column `vace`: what a cell may hold, the rules of each mode, and the way of its options to the encode stage."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.errors import RequestError
from wan_ray.request import RenderRequest, parse_row
from wan_ray.resolved import ResolvedRequest, content_of, resolve
from wan_ray.stages.items import Item
from wan_ray.vace_request import (
    BoxesMode,
    ControlMode,
    ExtendMode,
    InpaintMode,
    OutpaintMode,
    ReferencesMode,
    options_of,
    parse_vace,
)
from wan_ray.variants import get_variant

SIZE = {"width": 64, "height": 48, "num_frames": 17}


def row(vace: object, **fields: object) -> dict[str, object]:
    return {"prompt": "a road", "task": "vace", "vace": vace, **fields}


def resolved(vace: object, **fields: object) -> ResolvedRequest:
    return resolve(parse_row(row(vace, **{**SIZE, **fields})).request, get_variant("debug-vace"))


def reason(vace: object, **fields: object) -> str:
    with pytest.raises(RequestError) as caught:
        resolved(vace, **fields)
    return str(caught.value)


OUTPAINT = {"mode": "outpaint", "directions": ["left", "up"], "ratio": 0.5}
STRUCT = pa.struct(
    {
        "mode": pa.string(),
        "box": pa.list_(pa.float64()),  # of other rows
        "directions": pa.list_(pa.string()),
        "ratio": pa.float32(),
        "inner": pa.bool_(),
        "num_first": pa.int64(),
    }
)


@pytest.mark.parametrize(
    "cell",
    [
        OUTPAINT,
        {**OUTPAINT, "inner": None, "box": None},
        list(OUTPAINT.items()),
        [["mode", "outpaint"], ["directions", ("left", "up")], ["ratio", np.float32(0.5)]],
        json.dumps(OUTPAINT),
        pa.scalar(OUTPAINT, STRUCT),
        pa.scalar(OUTPAINT, STRUCT).as_py(),
        {"mode": np.str_("outpaint"), "directions": np.array(["left", "up"]), "ratio": 0.5, "inner": float("nan")},
        {"mode": "outpaint", "directions": ["left", "up"], "ratio": "0.5", "inner": pd.NA},
        OutpaintMode(mode="outpaint", directions=["left", "up"], ratio=0.5),
    ],
    ids=["object", "nulls", "pairs", "lists", "JSON", "Arrow", "struct", "numpy", "text", "made in Python"],
)
def test_a_mode_comes_as_an_object_a_struct_with_nulls_pairs_or_json_text(cell: object) -> None:
    mode = parse_row(row(cell, control_video="a.mp4")).request.vace
    assert mode == OutpaintMode(mode="outpaint", directions=["left", "up"], ratio=0.5, inner=False)


@pytest.mark.parametrize(
    "cell",
    [None, float("nan"), {}, [], "", " ", "null", "{}", {"mode": None, "ratio": None}, pa.scalar(None, STRUCT), pd.NA],
    ids=repr,
)
def test_an_empty_cell_leaves_the_mode_to_what_else_the_row_has(cell: object) -> None:
    assert parse_row(row(cell)).request.vace is None
    assert resolved(cell, control_video="a.mp4").vace["mode"] == "control"
    assert resolved(cell, reference_images=["a.png"]).vace["mode"] == "references"
    assert resolve(parse_row({"prompt": "a", "vace": cell}).request, get_variant("debug")).vace == {}


def test_a_cell_that_is_empty_does_not_change_what_the_row_is() -> None:
    plain = {"prompt": "a road", "task": "vace", "control_video": "a.mp4"}
    assert (
        len({parse_row({**plain, **more}).request.id for more in ({}, {"vace": None}, {"vace": {"mode": None}})}) == 1
    )
    assert parse_row({**plain, "vace": OUTPAINT}).request.id != parse_row(plain).request.id


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (7, 'vace: 7 is no object; write one such as {"mode": "outpaint", "ratio": 0.25}'),
        ("outpaint", "vace: 'outpaint' is not JSON: "),
        ("[1]", "vace: [1] is not a map of strings; "),
        ([1, 2], "vace: [1, 2] is not a map of strings; "),
        (b"x", "vace: b'x' is no object; write one such as {\"mode\""),
        (
            {"ratio": 0.5},
            "vace: mode: missing beside ratio; use one of 'control', 'inpaint', 'outpaint', 'extend', 'boxes', "
            "'references'",
        ),
        ({"mode": "outpainting"}, "vace: mode: 'outpainting' is not known; use one of 'control', "),
        ({"mode": ["control"]}, "vace: mode: ['control'] is not known; use one of "),
        ({"mode": "outpaint", "ration": 1}, "vace: 'ration' is no option of mode 'outpaint'; did you mean 'ratio'?"),
        (
            {"mode": "control", "num_first": 3},
            "vace: 'num_first' is no option of mode 'control'; use some of reference_masks, mode, process",
        ),
        ({"mode": "references", "box": [1, 2, 3, 4]}, "vace: 'box' is no option of mode 'references'; use some of "),
    ],
)
def test_what_is_no_mode_is_refused_with_what_one_looks_like(cell: object, says: str) -> None:
    assert reason(cell, control_video="a.mp4").startswith(says)


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ({"mode": "control", "process": "canny"}, "process: 'canny' is not known; use 'gray', 'scribble', 'depth_near"),
        ({"mode": "inpaint", "shape": "circle"}, "shape: 'circle' is not known; use 'mask', 'hull' or 'box'"),
        ({"mode": "inpaint", "box": [1, 2, 3]}, "box: [1, 2, 3] is no box; give left, top, right, bottom in pixels"),
        ({"mode": "inpaint", "box": "1,2,3,4"}, "box: '1,2,3,4' is no box; give left, top, right, bottom"),
        ({"mode": "inpaint", "box": [1, 2, "x", 4]}, "box.2: 'x' is not a number; give one"),
        ({"mode": "inpaint", "box": [9, 2, 9, 4]}, "box: [9.0, 2.0, 9.0, 4.0] has no inside; give left, top, right, b"),
        ({"mode": "inpaint", "box": [1, 5, 9, 4]}, "box: [1.0, 5.0, 9.0, 4.0] has no inside; give left, top, right, b"),
        ({"mode": "inpaint", "box": [1, 2, 3, float("inf")]}, "box.3: inf is not a finite number; give one"),
        ({"mode": "inpaint", "expand": 0}, "expand: 0 is not above 0; use more than 0"),
        ({"mode": "outpaint", "ratio": -0.5}, "ratio: -0.5 is not above 0; use more than 0"),
        ({"mode": "outpaint", "ratio": 5}, "ratio: 5 is more than 4; use 4 or less"),
        ({"mode": "outpaint", "ratio": True}, "ratio: True is not a number; give one"),
        ({"mode": "outpaint", "directions": "left"}, "directions: 'left' is not a list; write it as one"),
        ({"mode": "outpaint", "directions": []}, "directions: an empty list asks for nothing; put something in it or"),
        ({"mode": "outpaint", "directions": ["top"]}, "directions.0: 'top' is not known; use 'left', 'right', 'up' o"),
        ({"mode": "outpaint", "inner": "maybe"}, "inner: 'maybe' is neither true nor false; give one of them"),
        ({"mode": "extend", "first": 5}, "first: 5 is neither text (a path or URL) nor bytes; give one of them"),
        ({"mode": "extend", "first": "a.mp4", "num_first": 0}, "num_first: 0 is less than 1; use 1 or more"),
        ({"mode": "boxes", "paths": [[]]}, "paths.0: an empty list asks for nothing; put something in it or leave"),
        ({"mode": "boxes", "paths": [[[0, 0, 5]]]}, "paths.0.0: [0, 0, 5] is no box; give left, top, right, bottom"),
        ({"mode": "boxes", "paths": [[0, 0, 5, 5]]}, "paths.0.0: 0 is no box; give left, top, right, bottom in pixels"),
        (
            {"mode": "boxes", "paths": [[[0, 0, 5, 5]]], "colors": ["red"]},
            "colors.0: 'red' is no colour; give red, green, blue from 0 to 255",
        ),
        (
            {"mode": "boxes", "paths": [[[0, 0, 5, 5]]], "colors": [[0, 0, 256]]},
            "colors.0.2: 256 is more than 255; use 255 or less",
        ),
        ({"mode": "boxes"}, "paths: missing, and there is no default; give one"),
    ],
)
def test_an_option_that_breaks_a_rule_is_named_with_its_place(cell: object, says: str) -> None:
    assert reason(cell).startswith(f"vace: {says}")


def test_every_broken_option_is_told_at_once() -> None:
    found = reason({"mode": "outpaint", "ratio": 5, "directions": ["top"]}, control_video="a.mp4")
    assert "ratio: 5 is more than" in found and "directions.0: 'top' is not known" in found


BOX, PATH = [8, 8, 24, 24], [[[0, 0, 8, 8]]]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"vace": {"mode": "inpaint"}, "control_video": "a.mp4"},
            "vace: mode 'inpaint' needs either a mask_video or a box of what to generate anew; give one of them",
        ),
        (
            {"vace": {"mode": "inpaint", "box": BOX}, "control_video": "a.mp4", "mask_video": "m.mp4"},
            "vace: mode 'inpaint' needs either a mask_video or a box of what to generate anew; give one of them",
        ),
        ({"vace": {"mode": "inpaint", "box": BOX}}, "control_video: mode 'inpaint' needs one"),
        ({"vace": {"mode": "control"}}, "control_video: mode 'control' needs one"),
        ({"vace": {"mode": "outpaint"}}, "control_video: mode 'outpaint' needs one"),
        ({"vace": {"mode": "references"}}, "reference_images: mode 'references' needs one"),
        (
            {"vace": {"mode": "outpaint"}, "control_video": "a.mp4", "mask_video": "m.mp4"},
            "mask_video: mode 'outpaint' takes none; leave it empty or change the mode",
        ),
        (
            {"vace": {"mode": "extend", "first": "a.png"}, "control_video": "a.mp4"},
            "control_video: mode 'extend' takes none; leave it empty or change the mode",
        ),
        (
            {"vace": {"mode": "boxes", "paths": PATH}, "image": "a.png"},
            "image: mode 'boxes' takes none; leave it empty or change the mode",
        ),
        (
            {"vace": {"mode": "outpaint", "inner": True, "ratio": 0.5}, "control_video": "a.mp4"},
            "vace: ratio 0.5 of an inner border on left, right, up, down leaves nothing of the video; use less than ",
        ),
        (
            {"vace": {"mode": "outpaint", "inner": True, "ratio": 1, "directions": ["up"]}, "control_video": "a.mp4"},
            "vace: ratio 1 of an inner border on up leaves nothing of the video; use less than 1",
        ),
        (
            {"vace": {"mode": "outpaint", "inner": True, "ratio": 0.02, "directions": ["up"]}, "control_video": "a"},
            "vace: ratio 0.02 of an inner border is less than a pixel of a clip of 64x48 toward up, so that nothing is",
        ),
        ({"vace": {"mode": "extend"}}, "vace: mode 'extend' needs first, last or both, each an image or a video; give"),
        (
            {"vace": {"mode": "extend", "num_last": 4}},
            "vace: mode 'extend' needs first, last or both, each an image or a video; give one",
        ),
        (
            {"vace": {"mode": "extend", "first": "a.mp4", "num_last": 4}},
            "vace: num_last is 4, but there is no last; give one or leave num_last empty",
        ),
        (
            {"vace": {"mode": "extend", "first": "a.mp4", "last": "b.mp4", "num_first": 9, "num_last": 8}},
            "vace: 9 first and 8 last frames kept leave none of num_frames=17 to generate; keep fewer or set",
        ),
        (
            {"vace": {"mode": "extend", "first": "a.mp4", "last": "b.png", "num_first": 16}},
            "vace: 16 first and 1 last frames kept leave none of num_frames=17 to generate; keep fewer or set",
        ),
        (
            {"vace": {"mode": "boxes", "paths": PATH, "colors": [[0, 0, 0], [1, 1, 1]]}},
            "vace: 2 colors for 1 paths; give one for each, or none",
        ),
        (
            {"vace": {"mode": "references", "reference_masks": ["m.png"]}, "reference_images": ["a.png", "b.png"]},
            "vace: 1 reference_masks for 2 reference_images; give one for each, or none",
        ),
        (
            {"vace": {"mode": "boxes", "paths": PATH, "reference_masks": ["m.png"]}},
            "vace: 1 reference_masks for 0 reference_images; give one for each, or none",
        ),
        (
            {"vace": {"mode": "inpaint", "box": [64, 0, 80, 40]}, "control_video": "a.mp4"},
            "vace: box [64.0, 0.0, 80.0, 40.0] (left, top, right, bottom) marks no pixel of a clip of 64x48; move it",
        ),
        ({"vace": {"mode": "boxes", "paths": PATH}, "task": "t2v"}, "vace: only task 'vace' has one, not 't2v'; leave"),
        (
            {"vace": {"mode": "outpaint"}, "control_video": "a.mp4", "compat": "released"},
            "vace: the released code knows no modes; leave either vace or compat empty",
        ),
        ({"compat": "released2"}, "compat: 'released2' is not known; use 'released'"),
        ({"mask_video": "m.mp4"}, "mask_video: without a control_video there is nothing to keep; give both or neither"),
    ],
)
def test_a_mode_that_does_not_go_with_the_row_is_refused_with_the_way_out(fields: dict, says: str) -> None:
    assert reason(fields.pop("vace", None), **fields).startswith(says)


@pytest.mark.parametrize(
    "fields",
    [
        {"vace": {"mode": "extend", "first": "a.mp4", "last": "b.mp4", "num_first": 8, "num_last": 8}},
        {"vace": {"mode": "outpaint", "inner": True, "ratio": 0.49}, "control_video": "a.mp4"},
        {"vace": {"mode": "outpaint", "inner": True, "ratio": 0.9, "directions": ["up", "left"]}, "control_video": "v"},
        {"vace": {"mode": "outpaint", "ratio": 4}, "control_video": "a.mp4"},
        {"vace": {"mode": "outpaint", "inner": True, "ratio": 0.02}, "control_video": "a.mp4"},
        {"vace": {"mode": "inpaint", "box": [-9, -9, 1, 1]}, "control_video": "a.mp4"},
        {"vace": {"mode": "boxes", "paths": PATH, "colors": [], "reference_masks": []}},
        {"vace": {"mode": "references", "reference_masks": []}, "reference_images": ["a.png"]},
        {"mask_video": "m.mp4", "compat": "released"},
    ],
)
def test_what_is_just_within_the_rules_passes(fields: dict) -> None:
    assert resolved(fields.pop("vace", None), **fields).task == "vace"


MODES = [
    (ControlMode(mode="control", process="depth_near_dark"), {"control_video": "a.mp4", "mask_video": b"mask"}),
    (InpaintMode(mode="inpaint", box=(1, 2, 30, 40.5), shape="hull", expand=0.1), {"control_video": "a.mp4"}),
    (OutpaintMode(mode="outpaint", directions=["down"], ratio=1.5, inner=False), {"control_video": "a.mp4"}),
    (ExtendMode(mode="extend", first="a.mp4", last=b"png", num_first=3), {"reference_images": ["r.png"]}),
    (BoxesMode(mode="boxes", paths=[[(0, 0, 8, 8), (8.5, 8, 16, 16)]], colors=[(255, 0, 0)]), {}),
    (ReferencesMode(mode="references", reference_masks=["m.png"]), {"reference_images": ["r.png"]}),
]


@pytest.mark.parametrize(("mode", "media"), MODES, ids=[mode.mode for mode, _ in MODES])
def test_options_travel_to_the_encode_stage_and_sources_beside_them(mode, media) -> None:
    request = resolve(RenderRequest(prompt="a", task="vace", vace=mode, **SIZE, **media), get_variant("debug-vace"))
    item = Item(name="a", id="a", row=0, request=request, prompt="a")
    back = Item.from_row(item.to_row()).sound
    assert back == request
    assert content_of(back) == content_of(request)
    own = {name: None for name in ("first", "last", "reference_masks") if getattr(mode, name, None)}
    assert parse_vace(back.vace) == mode.model_copy(update=own)
    assert options_of(parse_vace(back.vace)) == back.vace
    assert not set(own) & set(back.vace)
    assert set(own) | set(media) == set(back.media)
    assert json.loads(json.dumps(back.vace, allow_nan=False)) == back.vace


def test_sources_in_the_options_are_media_and_bytes_of_them_data_urls() -> None:
    vace = {"mode": "extend", "first": "s3://bucket/a.mp4", "last": b"png", "reference_masks": [b"png"]}
    assert resolved(vace, reference_images=["r.png"]).media == {
        "reference_images": ["r.png"],
        "first": ["s3://bucket/a.mp4"],
        "last": ["data:application/octet-stream;base64,cG5n"],
        "reference_masks": ["data:application/octet-stream;base64,cG5n"],
    }


@pytest.mark.parametrize(("width", "ratio"), [(96, 0.011), (1280, 0.001), (832, 0.002), (112, 0.009)])
def test_the_least_inner_border_that_is_told_is_one(width: int, ratio: float) -> None:
    vace = {"mode": "outpaint", "inner": True, "directions": ["left"]}
    found = reason({**vace, "ratio": 0.0005}, control_video="a.mp4", width=width)
    assert found.endswith(f"use {ratio:g} or more")
    resolved({**vace, "ratio": ratio}, control_video="a.mp4", width=width)


def test_an_end_that_is_empty_is_none() -> None:
    assert resolved({"mode": "extend", "first": "a.mp4", "last": ""}).media == {"first": ["a.mp4"]}
    assert "needs first, last or both" in reason({"mode": "extend", "first": "", "last": ""})


def test_a_mode_that_reads_a_video_leaves_the_rate_to_it_and_others_take_the_usual() -> None:
    follows = [resolved(mode, **media).fps for mode, media in MODES]
    assert follows == [0, 0, 0, 0, 16, 16]
    assert resolved(MODES[0][0], **MODES[0][1], fps=12).fps == 12
    assert resolved(None, control_video="a.mp4", compat="released").fps == 16


def test_each_option_that_is_changed_changes_the_row_s_content() -> None:
    cells = [
        {"mode": "outpaint"},
        {"mode": "outpaint", "ratio": 0.5},
        {"mode": "outpaint", "ratio": 0.5, "inner": False, "directions": ["left"]},
        {"mode": "control"},
        {"mode": "control", "process": "gray"},
    ]
    contents = [content_of(resolved(cell, control_video="a.mp4", id="a", seed=1)) for cell in cells]
    assert all(a != b for a, b in pairwise(contents)) and len(set(contents)) == len(cells)
    spelt_out = {"mode": "outpaint", "ratio": 0.25, "directions": ["left", "right", "up", "down"], "inner": False}
    assert content_of(resolved(spelt_out, control_video="a.mp4", id="a", seed=1)) == contents[0]


def test_rows_of_several_modes_stand_in_one_parquet_file(tmp_path) -> None:
    """Arrow gives each row's struct the keys of all, with nulls."""
    png = b"\x89PNG and so on"
    rows = [
        row({"mode": "outpaint", "ratio": 0.5, "directions": ["left", "right"]}, control_video="a.mp4"),
        row({"mode": "extend", "first": png, "num_first": 1}),
        row({"mode": "boxes", "paths": [[[0, 0, 8, 8], [8, 8, 16, 16]]], "colors": [[255, 0, 0]]}),
        row(None, control_video="a.mp4"),
    ]
    for one in rows:
        one.setdefault("control_video", None)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert pa.types.is_struct(table.schema.field("vace").type)
    wanted = [
        OutpaintMode(mode="outpaint", ratio=0.5, directions=["left", "right"]),
        ExtendMode(mode="extend", first=png, num_first=1),
        BoxesMode(mode="boxes", paths=[[(0, 0, 8, 8), (8, 8, 16, 16)]], colors=[(255, 0, 0)]),
        None,
    ]
    assert [parse_row(one).request.vace for one in table.to_pylist()] == wanted
    assert [
        parse_row(dict(one)).request.vace for one in pd.read_parquet(tmp_path / "m.parquet").to_dict("records")
    ] == (wanted)
    ids = [parse_row(one).request.id for one in table.to_pylist()]
    assert ids == [parse_row(one).request.id for one in rows]


def test_the_readme_s_row_is_one_and_its_table_names_every_mode_and_option() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = re.split(r"\n##+ ", text.partition("### VACE modes")[2])[0]
    example = json.loads(re.search(r"```json\n(.*?)```", section, re.DOTALL)[1])
    assert parse_row(example).request.vace.mode == "outpaint"
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    kinds = {mode.mode: type(mode) for mode, _ in MODES}
    assert [cells[0].strip(" `") for cells in rows] == list(kinds)
    for (name, kind), cells in zip(kinds.items(), rows, strict=True):
        told = set(re.findall(r"`(\w+)`", cells[1] + cells[2]))
        own = set(kind.model_fields) - {"mode", "reference_masks"}
        assert own <= told, name
        assert set(kind.needs) <= told, name
