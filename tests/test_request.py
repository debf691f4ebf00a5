import datetime
import decimal
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError

from wan_ray.errors import RequestError
from wan_ray.request import FIELDS, RenderRequest, check_columns, content_id, id_of, parse_row
from wan_ray.resolved import resolve, seed_from_id, warnings_for
from wan_ray.variants import TASK_DEFAULTS, get_variant

GOLDENS = Path(__file__).parent / "goldens" / "a"


def parse(**columns):
    return parse_row({"prompt": "A red car", **columns})


def refusal(**columns):
    with pytest.raises(RequestError) as caught:
        parse(**columns)
    return str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"num_frames": 80}, "num_frames: 80 is not 4n+1, the VAE's step in time; use 77 or 81"),
        ({"num_frames": 4}, "num_frames: 4 is not 4n+1, the VAE's step in time; use 1 or 5"),
        ({"num_frames": 0}, "num_frames: 0 is less than 1; use 1 or more"),
        ({"num_frames": 4097}, "num_frames: 4097 is more than 4093; use 4093 or less"),
        ({"width": 50, "height": 96}, "width: 50 is not a multiple of 16; use 48 or 64"),
        ({"width": 96, "height": 1081}, "height: 1081 is not a multiple of 16; use 1072 or 1088"),
        ({"width": 8, "height": 16}, "width: 8 is less than 16; use 16 or more"),
        ({"width": 832}, "width=832, height=None: give both or neither"),
        ({"height": 480}, "width=None, height=480: give both or neither"),
        ({"prompt": ""}, "prompt: '' has no text; describe the clip in words"),
        ({"prompt": " \n\u3000"}, "prompt: ' \\n\\u3000' has no text; describe the clip in words"),
        ({"prompt": None}, "prompt: missing, and there is no default; give one"),
        ({"prompt": 7}, "prompt: 7 is not text; write it as a string"),
        ({"task": "v2v"}, "task: 'v2v' is not known; use 't2v', 't2i', 'i2v', 'flf2v' or 'vace'"),
        ({"solver": "ddim"}, "solver: 'ddim' is not known; use 'unipc', 'dpm++' or 'euler'"),
        (
            {"task": "t2i", "num_frames": 81},
            "num_frames: 81 for task 't2i', which renders 1; use task 't2v' for a clip",
        ),
        ({"num_frames": 1}, "num_frames: 1 for task 't2v'; use task 't2i' for an image, or 5 or more"),
        ({"image": "a.png"}, "image: task 't2v' takes none; leave it empty or change the task"),
        ({"task": "i2v"}, "image: task 'i2v' needs one"),
        ({"task": "flf2v", "image": "a.png"}, "last_image: task 'flf2v' needs one"),
        ({"image": 5}, "image: 5 is neither text (a path or URL) nor bytes; give one of them"),
        (
            {"task": "vace", "reference_images": "a.png,b.png"},
            "reference_images: 'a.png,b.png' is not a list; write it as one, also for a single value",
        ),
        ({"context_scale": 1.0}, "context_scale: only task 'vace' has one, not 't2v'; leave it empty"),
        ({"seed": -1}, "seed: -1 is less than 0; use 0 or more"),
        (
            {"seed": 2**63},
            "seed: 9223372036854775808 is more than 9223372036854775807; use 9223372036854775807 or less",
        ),
        ({"fps": 0}, "fps: 0 is not above 0; use more than 0"),
        ({"fps": float("inf")}, "fps: inf is not a finite number; give one"),
        ({"num_frames": float("-inf")}, "num_frames: -inf is not a finite number; give one"),
        ({"guidance_scale": "high"}, "guidance_scale: 'high' is not a number; give one"),
        ({"num_frames": 81.5}, "num_frames: 81.5 is not a whole number; give one"),
        ({"num_frames": "many"}, "num_frames: 'many' is not a whole number; give one"),
        ({"num_frames": True}, "num_frames: True is not a number; give one"),
        ({"guidance_scale": np.True_}, "guidance_scale: True is not a number; give one"),
        ({"extend_prompt": "perhaps"}, "extend_prompt: 'perhaps' is neither true nor false; give one of them"),
        ({"id": " "}, "id: ' ' must be 1 to 500 characters without control characters"),
        ({"id": "a\nb"}, "id: 'a\\nb' must be 1 to 500 characters without control characters"),
        ({"labels": {"lane": 3}}, "labels.lane: 3 is not text; write it as a string"),
        ({"labels": "rain"}, "labels: 'rain' is not a map of names to values; write it as one"),
        (
            {"labels": ["rain", "night"]},
            "labels: ['rain', 'night'] is not a map of strings; give a map, a struct or pairs of key and value",
        ),
    ],
)
def test_a_broken_rule_is_told_as_value_rule_and_fix(columns, message):
    assert refusal(**columns) == message


def test_a_prompt_of_ten_thousand_characters_is_too_long_and_the_message_does_not_repeat_it():
    message = refusal(prompt="长" * 10_000)
    assert message.startswith("prompt: 10000 characters are more than 5000")
    assert "shorten it" in message and len(message) < 200
    assert refusal(negative_prompt="x" * 5001).startswith("negative_prompt: 5001 characters are more than 5000")
    assert parse(prompt="长" * 5000).request.prompt == "长" * 5000


def test_every_broken_field_of_a_row_is_named_at_once():
    message = refusal(prompt="", num_frames=80, task="v2v", width=50, height=50, seed=-1)
    assert [part.partition(":")[0] for part in message.split("; ") if ": " in part] == [
        "task",
        "prompt",
        "width",
        "height",
        "num_frames",
        "seed",
    ]


def test_long_values_are_cut_in_messages():
    assert len(refusal(task="t2v" * 5000)) < 200
    assert len(refusal(seed=b"\xff" * 10**6)) < 200


@pytest.mark.parametrize(
    "value",
    [81, 81.0, "81", np.int64(81), np.uint8(81), np.float32(81), np.float64(81), np.array(81), pa.scalar(81)],
    ids=repr,
)
def test_a_whole_number_is_accepted_as_any_library_holds_it(value):
    num_frames = parse(num_frames=value).request.num_frames
    assert (type(num_frames), num_frames) == (int, 81)


@pytest.mark.parametrize("null", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, pa.scalar(None)], ids=repr)
def test_a_null_of_any_library_means_that_the_row_does_not_say(null):
    assert parse(num_frames=null, fps=null, negative_prompt=null, labels=null, id=null) == parse()


def test_a_pandas_frame_with_gaps_reads_like_the_rows_it_was_made_of():
    rows = [{"prompt": "a", "id": 7, "num_frames": 33, "labels": {"x": "1"}}, {"prompt": "b", "seed": 5}]
    frame = pd.DataFrame(rows)
    first, second = (
        parse_row({str(name): value for name, value in row.items()}).request for row in frame.to_dict("records")
    )
    assert (first.id, first.num_frames, first.seed, first.labels) == ("7", 33, None, {"x": "1"})
    assert (second.num_frames, second.seed, second.labels) == (None, 5, {})


def test_the_model_itself_refuses_nan_and_bool_too():
    for wrong in ({"fps": float("nan")}, {"seed": True}, {"frame_num": 81}):
        with pytest.raises(ValidationError):
            RenderRequest.model_validate({"prompt": "a", **wrong})


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("promt", "prompt"),
        ("prmopt", "prompt"),
        ("prompts", "prompt"),
        ("Prompt", "prompt"),
        ("widht", "width"),
        ("with", "width"),
        ("heigth", "height"),
        ("taks", "task"),
        ("sede", "seed"),
        ("lables", "labels"),
        ("negative_promt", "negative_prompt"),
        ("negativ_promt", "negative_prompt"),
        ("negativePrompt", "negative_prompt"),
        ("negative prompt", "negative_prompt"),
        ("num_frame", "num_frames"),
        ("numFrames", "num_frames"),
        ("guidence_scale", "guidance_scale"),
        ("num_inference_step", "num_inference_steps"),
        ("reference_image", "reference_images"),
        ("frame_num", "num_frames"),
        ("sampling_steps", "num_inference_steps"),
        ("sample_steps", "num_inference_steps"),
        ("sample_guide_scale", "guidance_scale"),
        ("guide_scale", "guidance_scale"),
        ("sample_shift", "flow_shift"),
        ("sample_solver", "solver"),
        ("n_prompt", "negative_prompt"),
        ("base_seed", "seed"),
        ("src_ref_images", "reference_images"),
        ("size", "width and height"),
        ("ID", "id"),
    ],
)
def test_a_misspelt_column_or_one_in_the_release_s_words_is_refused_with_the_name_it_means(column, meant):
    with pytest.raises(RequestError) as caught:
        check_columns([column, "source"])
    assert str(caught.value) == f"column {column!r} is not known; did you mean {meant!r}? Rename it"


@pytest.mark.parametrize(
    "column",
    [
        *("weight", "image_id", "label_source", "labels_source", "prompts_source", "prompt_zh", "prompt_en", "prompt2"),
        *(
            "prompt_id",
            "seed2",
            "speed",
            "idx",
            "uid",
            "task_id",
            "image_url",
            "images_dir",
            "video",
            "caption",
            "tank",
        ),
        *("caption", "source", "score", "frames", "duration_s", "fps_in", "file_size", "width_mm", "提示词"),
        *(
            "negative_prompt_zh",
            "__index_level_0__",
            "first_frame",
            "city",
            "scene",
            "lighting",
            "weather",
            "split",
            "promote",
            "landmark",
        ),
    ],
)
def test_an_innocent_column_travels_on(column):
    assert parse(**{column: "x"}).extra == {column: "x"}


def test_a_look_alike_beside_the_column_that_it_resembles_is_innocent():
    assert parse(prompts="x", labels={"a": "b"}, label=3).extra == {"prompts": "x", "label": 3}


def test_no_field_is_taken_for_another_field_misspelt():
    check_columns(list(FIELDS))


def test_null_takes_the_task_s_negative_prompt_and_the_empty_text_stays_empty():
    variant = get_variant("debug")
    released = json.loads((GOLDENS / "t2v.json").read_text(encoding="utf-8"))["negative_prompt"]
    assert resolve(parse(negative_prompt=None).request, variant).negative_prompt == released
    assert resolve(parse(negative_prompt="").request, variant).negative_prompt == ""


def test_defaults_of_each_task_are_the_release_s():
    # Wan2.1 generate.py:64-98 and wan/configs (9737cba); texts by sha256 of what its pipelines were given.
    expected = {
        "t2v": (81, 50, 5.0, 5.0, 16.0, "unipc", "ce96e0324e4b54ce"),
        "t2i": (1, 50, 5.0, 5.0, 16.0, "unipc", "ce96e0324e4b54ce"),
        "i2v": (81, 40, 5.0, 5.0, 16.0, "unipc", "412753d092bcf370"),
        "flf2v": (81, 50, 5.0, 16.0, 16.0, "unipc", "43885bed372496a7"),
        "vace": (81, 50, 5.0, 16.0, 16.0, "unipc", "ce96e0324e4b54ce"),
    }
    for task, d in TASK_DEFAULTS.items():
        text = hashlib.sha256(d.negative_prompt.encode()).hexdigest()[:16]
        found = (d.num_frames, d.num_inference_steps, d.guidance_scale, d.flow_shift, d.fps, d.solver, text)
        assert found == expected[task], task


def test_a_row_without_id_gets_one_from_its_content_and_its_seed_from_the_id():
    # sha256 of the canonical JSON, and its first 8 bytes shifted to 53 bits, computed with hashlib alone.
    parsed = parse()
    assert parsed.request.id == "f550d2ad2912189c"
    assert parse_row({"source": "x", "prompt": "雪夜", "num_frames": 33}).request.id == "9285ba991c2952ea"
    assert seed_from_id("row-1") == 543379463555153
    assert seed_from_id("夜晚") == 6456144749459206
    resolved = resolve(parsed.request, get_variant("debug"))
    assert resolved.seed == int.from_bytes(hashlib.sha256(b"f550d2ad2912189c").digest()[:8], "big") >> 11


def test_the_content_id_ignores_how_a_table_holds_the_row():
    same = [
        {"prompt": "a", "num_frames": 33, "labels": {"x": "1"}, "score": 2},
        {"score": 2.0, "labels": [("x", "1")], "num_frames": 33.0, "prompt": "a", "seed": None},
        {"prompt": "a", "num_frames": np.int32(33), "labels": {"x": "1", "y": None}, "score": np.float64(2)},
        {"prompt": "a", "num_frames": "33", "labels": {"x": "1"}, "score": 2, "task": "t2v", "extend_prompt": False},
        {"prompt": "a", "num_frames": 33, "labels": {"x": "1"}, "score": 2, "other": float("nan"), "more": None},
    ]
    assert len({parse_row(row).request.id for row in same}) == 1
    other = {"prompt": "a", "num_frames": 33, "labels": {"x": "1"}, "score": 3}
    assert parse_row(other).request.id != parse_row(same[0]).request.id


def test_config_defaults_are_no_part_of_the_content_id():
    assert parse_row({"prompt": "a"}, {"num_frames": 33}).request.id == parse_row({"prompt": "a"}).request.id


def test_a_request_made_in_python_has_the_id_and_seed_of_the_same_manifest_row():
    row = {"prompt": "a", "num_frames": 33, "task": "t2v", "negative_prompt": None, "labels": {}}
    variant = get_variant("debug")
    in_python = resolve(RenderRequest(prompt="a", num_frames=33), variant)
    assert in_python == resolve(parse_row(row).request, variant)


def test_ids_and_seeds_are_the_same_in_every_process():
    code = (
        "from wan_ray.request import parse_row;"
        "from wan_ray.resolved import seed_from_id;"
        "i = parse_row({'prompt': '雪夜', 'labels': {'b': '1', 'a': '2'}, 'z': {'k': [1.5, None]}}).request.id;"
        "print(i, seed_from_id(i))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("0", "1")
    }
    assert len(printed) == 1


@pytest.mark.parametrize(
    "labels",
    [
        {"weather": "rain", "time": None},
        [("weather", "rain")],
        [["weather", "rain"]],
        np.array([["weather", "rain"]], dtype=object),
        pa.array([[("weather", "rain")]], pa.map_(pa.string(), pa.string()))[0],
        pa.scalar({"weather": "rain", "time": None}, pa.struct({"weather": pa.string(), "time": pa.string()})),
    ],
    ids=["struct", "pairs", "lists", "numpy", "arrow map", "arrow struct"],
)
def test_labels_come_from_a_map_a_struct_or_pairs(labels):
    assert parse(labels=labels).request.labels == {"weather": "rain"}


@pytest.mark.parametrize(
    ("given", "text"), [(7, "7"), (7.0, "7"), (np.int64(7), "7"), ("7", "7"), (b"7", "7"), ("夜/晚 é", "夜/晚 é")]
)
def test_an_id_may_be_a_number_or_any_text(given, text):
    assert parse(id=given).request.id == text
    assert id_of({"id": given}) in (text, str(given))


def test_other_columns_survive_as_json_values():
    extra = parse(
        day=datetime.date(2024, 2, 29),
        at=pd.Timestamp("2024-02-29T12:00:00Z"),
        blob=b"abc",
        price=decimal.Decimal("1.50"),
        vector=np.array([1.5, float("nan")]),
        count=np.int64(3),
        ratio=np.float32(0.5),
        flag=np.True_,
        endless=float("inf"),
        nested={"a": [1, {"b": None, "日": np.str_("本")}], "t": (1, 2)},
        nothing=pd.NaT,
    ).extra
    assert extra == {
        "day": "2024-02-29",
        "at": "2024-02-29T12:00:00+00:00",
        "blob": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "price": "1.50",
        "vector": [1.5, None],
        "count": 3,
        "ratio": 0.5,
        "flag": True,
        "endless": "inf",
        "nested": {"a": [1, {"b": None, "日": "本"}], "t": [1, 2]},
        "nothing": None,
    }
    assert json.loads(json.dumps(extra, allow_nan=False)) == extra
    assert type(extra["flag"]) is bool


def test_the_content_id_of_a_row_that_breaks_every_rule_is_still_defined():
    assert len(content_id({"prompt": None, "labels": [1, {2: b"x"}], "seed": float("inf"), "z": object})) == 16


def test_defaults_fill_nulls_and_nothing_else():
    parsed = parse_row({"prompt": "a", "num_frames": None, "fps": 8}, {"num_frames": 33, "fps": 24.0, "seed": 7})
    assert (parsed.request.num_frames, parsed.request.fps, parsed.request.seed) == (33, 8.0, 7)


def test_a_default_that_means_nothing_to_the_row_s_task_is_left_out():
    defaults = {"num_frames": 33, "context_scale": 1.5, "image": "a.png"}
    assert parse_row({"prompt": "a", "task": "t2i"}, defaults).request.num_frames is None
    assert parse_row({"prompt": "a"}, {"task": "t2i", "num_frames": 1}).request.num_frames == 1
    assert parse_row({"prompt": "a", "task": "t2v"}, {"task": "t2i", "num_frames": 1}).request.num_frames is None
    assert parse_row({"prompt": "a", "task": "vace"}, defaults).request.context_scale == 1.5
    assert parse_row({"prompt": "a", "task": "i2v"}, defaults).request.image == "a.png"
    with pytest.raises(RequestError, match=r"^task: \['t2v'\] is not known"):
        parse_row({"prompt": "a", "task": ["t2v"]}, defaults)


@pytest.mark.parametrize(
    ("variant", "size"), [("t2v-1.3B", (832, 480)), ("t2v-14B", (1280, 720)), ("debug", (160, 96))]
)
def test_each_variant_gives_a_row_its_own_size(variant, size):
    resolved = resolve(parse().request, get_variant(variant))
    assert (resolved.width, resolved.height) == size
    assert warnings_for(resolved, get_variant(variant)) == []


def test_a_variant_refuses_tasks_that_are_not_its_own_and_names_its_own():
    request = parse(task="i2v", image="a.png").request
    with pytest.raises(RequestError, match=r"no model of this run renders 'i2v': t2v-1.3B renders t2v, t2i;"):
        resolve(request, get_variant("t2v-1.3B"))


def test_a_size_beyond_the_variant_is_refused_with_sizes_that_fit():
    request = parse(width=1920, height=1088).request
    assert resolve(request, get_variant("t2v-14B")).width == 1920
    with pytest.raises(RequestError) as caught:
        resolve(request, get_variant("t2v-1.3B"))
    assert str(caught.value) == (
        "width=1920, height=1088: 2088960 pixels are more than t2v-1.3B's 921600; "
        "make it smaller, e.g. 832x480, 480x832"
    )


def test_extending_a_prompt_without_an_extender_is_refused_rather_than_ignored():
    with pytest.raises(RequestError, match="no prompt extender is configured"):
        resolve(parse(extend_prompt=True).request, get_variant("debug"))


def test_what_the_model_was_not_trained_for_is_a_warning():
    variant = get_variant("t2v-1.3B")
    found = warnings_for(resolve(parse(width=640, height=368, num_frames=161).request, variant), variant)
    assert found == [
        "size 640x368 is outside t2v-1.3B's trained 832x480, 480x832",
        "num_frames 161 is more than the 81 that Wan2.1 was trained on",
    ]
