import json
import subprocess
import sys
import time
from array import array

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.config import ModelSection, RenderConfig
from wan_ray.errors import ConfigError
from wan_ray.stages.planning import plan_manifest
from wan_ray.stages.read import open_manifest, read_pending, read_row
from wan_ray.storage.manifest import Manifest

NUM_SPEED_ROWS = 20_000


@pytest.fixture
def config_of(tmp_path):
    """Writes rows as a manifest and returns a config for it."""

    def write(rows, defaults=None, **columns):
        file = tmp_path / "manifest.parquet"
        if rows is not None:  # a column that a row lacks is null there
            columns = {name: [row.get(name) for row in rows] for name in {name for row in rows for name in row}}
        table = pa.table(columns)
        pq.write_table(table, file)
        model = ModelSection(variant="debug", checkpoint="nowhere")
        return RenderConfig(model=model, manifest=str(file), defaults=defaults or {})

    return write


def issue_rows():
    """The issue's manifest: 40 rows, six of them bad."""
    rows = [
        {"id": f"row-{i}", "task": "t2v", "prompt": f"Car {i}", "width": 64, "height": 32, "num_frames": 5}
        for i in range(40)
    ]
    rows[3]["id"] = "row-1"
    rows[8]["num_frames"] = 80
    rows[13]["width"] = 50
    rows[21]["prompt"] = ""
    rows[29]["task"] = "v2v"
    rows[39]["prompt"] = "x" * 10_000
    return rows


def why(item):
    assert item.failure is not None
    return item.failure.message


def test_the_plan_names_each_bad_row_with_its_rule(config_of):
    plan = plan_manifest(config_of(issue_rows()))
    assert {item.row: why(item) for item in plan.refused} == {
        3: "id: 'row-1' is row 1's already; give every row another id",
        8: "num_frames: 80 is not 4n+1, the VAE's step in time; use 77 or 81",
        13: "width: 50 is not a multiple of 16; use 48 or 64",
        21: "prompt: '' has no text; describe the clip in words",
        29: "task: 'v2v' is not known; use 't2v', 't2i', 'i2v', 'flf2v' or 'vace'",
        39: "prompt: 10000 characters are more than 5000; the text encoder reads 512 tokens, "
        "about 2000 characters of English: shorten it",
    }
    assert {(item.failure and (item.failure.stage, item.failure.type)) for item in plan.refused} == {
        ("read", "RequestError")
    }
    assert [item.id for item in plan.refused] == ["row-1", "row-8", "row-13", "row-21", "row-29", "row-39"]
    assert plan.buckets == {("debug", "t2v", 64, 32, 5, 50, 0, 0): 34}


def test_every_row_has_a_record_name_of_its_own_that_does_not_change(config_of):
    config = config_of(issue_rows())
    plan = plan_manifest(config)
    assert len(set(plan.names)) == 40
    assert plan_manifest(config).names == plan.names
    assert plan.names[1] == "row-1" and plan.names[3].startswith("refused-00000003-")


def test_a_mended_row_is_another_record_and_leaves_the_others_alone(config_of):
    before = plan_manifest(config_of(issue_rows())).names
    rows = issue_rows()
    rows[8]["num_frames"] = 81
    after = plan_manifest(config_of(rows)).names
    assert [i for i in range(40) if before[i] != after[i]] == [8]
    rows[13]["width"] = 51
    assert plan_manifest(config_of(rows)).names[13] not in before


def test_rows_without_ids_repeat_when_their_content_does(config_of):
    rows = [{"prompt": p, "seed": s, "note": n} for p, s, n in [("a", 1, "x"), ("a", 2, "x"), ("a", 1, "x")]]
    plan = plan_manifest(config_of(rows))
    (item,) = plan.refused
    assert (item.row, len(item.id)) == (2, 16)
    assert why(item) == "id: none, and the content is row 0's; drop one of them, or give each an id"
    assert plan_manifest(config_of([*rows[:2], {**rows[0], "note": "y"}])).refused == []


def test_a_repeated_id_is_told_of_the_first_sound_row_that_has_it(config_of):
    rows = [{"id": "a", "prompt": ""}, {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}]
    messages = [why(item) for item in plan_manifest(config_of(rows)).refused]
    assert messages[1:] == ["id: 'a' is row 1's already; give every row another id"]


def test_ids_may_be_a_column_of_numbers(config_of):
    plan = plan_manifest(config_of([{"id": 7, "prompt": "a"}, {"id": 8, "prompt": "b"}, {"id": 7, "prompt": "c"}]))
    assert plan.names[:2] == ["7", "8"]
    assert [item.id for item in plan.refused] == ["7"]


def test_the_limit_counts_rows_of_any_kind(config_of):
    plan = plan_manifest(config_of(issue_rows()), limit=9)
    assert (len(plan.names), [item.row for item in plan.refused]) == (9, [3, 8])
    assert plan_manifest(config_of(issue_rows()), limit=0).names == []


def test_a_manifest_without_rows_is_an_empty_plan(config_of):
    plan = plan_manifest(config_of(None, prompt=pa.array([], pa.string())))
    assert (plan.names, plan.refused, plan.buckets) == ([], [], {})


def test_buckets_count_equal_work_and_warnings_unusual_rows(config_of):
    rows = [
        {"prompt": "a", "num_frames": 33},
        {"prompt": "b", "num_frames": 33},
        {"prompt": "c", "num_frames": 161},
        {"prompt": "d", "task": "t2i"},
    ]
    plan = plan_manifest(config_of(rows, defaults={"num_inference_steps": 8, "num_frames": 17}))
    assert plan.refused == []
    assert plan.buckets == {
        ("debug", "t2v", 160, 96, 33, 8, 0, 0): 2,
        ("debug", "t2v", 160, 96, 161, 8, 0, 0): 1,
        ("debug", "t2i", 160, 96, 1, 8, 0, 0): 1,
    }
    assert list(plan.bucket_of_row) == [1, 1, 2, 3]
    assert plan.warnings == {"num_frames 161 is more than the 81 that Wan2.1 was trained on": 1}


def test_other_columns_travel_with_their_rows_and_their_types(config_of):
    columns = {
        "prompt": ["a"],
        "score": [0.5],
        "count": [3],
        "night": [True],
        "city": ["東京"],
        "boxes": [[1, 2]],
        "camera": [{"fov": 90}],
        "day": pa.array([0], pa.date32()),
        "tags": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
    }
    config = config_of(None, **columns)
    kinds = {"score": "float", "count": "int", "night": "bool", "city": "str", "boxes": "str", "camera": "str"}
    assert plan_manifest(config).extra_columns == {**kinds, "day": "str", "tags": "str"}
    (item,) = read_pending(Manifest(config.manifest), config, array("I", [1]))
    values = {"score": 0.5, "count": 3, "night": True, "city": "東京", "boxes": [1, 2], "camera": {"fov": 90}}
    assert item.extra == {**values, "day": "1970-01-01", "tags": {"a": "b"}}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt": ["a"]}, "column 'promt' is not known; did you mean 'prompt'? Rename it"),
        ({"prompt": ["a"], "frame_num": [81]}, "column 'frame_num' is not known; did you mean 'num_frames'? Rename it"),
        ({"text": ["a"]}, "has no column 'prompt'; it has ['text']"),
    ],
)
def test_a_column_that_is_wrong_for_all_rows_is_told_once(config_of, columns, message):
    config = config_of(None, **columns)
    with pytest.raises(ConfigError) as caught:
        plan_manifest(config)
    assert str(caught.value).endswith(message) and config.manifest in str(caught.value)


def test_a_config_without_a_manifest_is_told():
    with pytest.raises(ConfigError, match="no manifest: set manifest in the config or give --manifest"):
        open_manifest(RenderConfig(model=ModelSection(variant="debug", checkpoint="x")))


def test_only_pending_rows_are_read_and_they_are_what_the_plan_saw(config_of):
    config = config_of(issue_rows())
    plan = plan_manifest(config)
    pending = array("I", (bucket if n % 2 == 0 else 0 for n, bucket in enumerate(plan.bucket_of_row)))
    items = list(read_pending(open_manifest(config), config, pending))
    assert [item.name for item in items] == [name for name, wanted in zip(plan.names, pending, strict=True) if wanted]
    assert all(item.failure is None and item.sound.num_frames == 5 for item in items)
    limited = read_pending(open_manifest(config), config, array("I", [0, 1]))
    assert [item.row for item in limited] == [1]


def test_rows_of_one_shape_follow_each_other(config_of):
    config = config_of([{"prompt": f"p{n}", "num_frames": (17, 33, 5)[n % 3]} for n in range(7)])
    items = read_pending(open_manifest(config), config, plan_manifest(config).bucket_of_row)
    assert [item.row for item in items] == [0, 3, 6, 1, 4, 2, 5]


def test_rows_go_to_the_model_that_renders_their_task_and_was_trained_at_their_size(config_of):
    rows = [
        {"prompt": "a", "width": 832, "height": 480},
        {"prompt": "b", "width": 1280, "height": 720},
        {"prompt": "c"},
        {"prompt": "d", "task": "i2v", "image": "a.png"},
        {"prompt": "e", "task": "vace"},
    ]
    names = ("t2v-14B", "t2v-1.3B", "i2v-14B-480P")
    models = tuple(ModelSection(variant=name, checkpoint="nowhere") for name in names)
    config = config_of(rows).model_copy(update={"model": None, "models": models})
    plan = plan_manifest(config)
    chosen = [item.request.variant for item in read_pending(open_manifest(config), config, plan.bucket_of_row)]
    assert sorted(chosen) == ["i2v-14B-480P", "t2v-14B", "t2v-14B", "t2v-14B"]
    assert [item.row for item in plan.refused] == [4]
    assert "no model of this run renders 'vace'" in plan.refused[0].failure.message


def test_a_row_of_a_dataset_needs_no_number():
    config = RenderConfig(model=ModelSection(variant="debug", checkpoint="x"))
    sound, bad = read_row({"prompt": "a", "id": "夜"}, config), read_row({"prompt": None, "id": 5.0, "x": 1}, config)
    assert (sound.row, sound.id, sound.failure) == (None, "夜", None)
    assert (bad.row, bad.id, bad.prompt, bad.extra, bad.request) == (None, "5", None, {"x": 1}, None)
    assert bad.name.startswith("refused-")


def test_twenty_thousand_rows_are_planned_within_seconds(config_of, record_property):
    n = NUM_SPEED_ROWS
    columns = {
        "id": [f"row-{i}" for i in range(n)],
        "prompt": [f"A car number {i} drives along a road, camera following from behind" for i in range(n)],
        "num_frames": [81] * n,
        "seed": list(range(n)),
        "labels": pa.array([[("weather", "rain")]] * n, pa.map_(pa.string(), pa.string())),
        "source": ["x"] * n,
        "score": [0.5] * n,
    }
    config = config_of(None, **columns)
    started = time.process_time()
    plan = plan_manifest(config)
    rows_per_second = n / (time.process_time() - started)
    print(f"planned {rows_per_second:.0f} rows/s")  # noqa: T201
    assert (len(plan.names), plan.refused) == (n, [])
    assert rows_per_second > 5000  # 20,000 to 30,000 on one idle core


def test_planning_loads_neither_torch_nor_ray(config_of):
    config = config_of(issue_rows())
    code = (
        "import sys, json, wan_ray\n"
        "from wan_ray.config import RenderConfig\n"
        "from wan_ray.stages.planning import plan_manifest\n"
        "plan = plan_manifest(RenderConfig.model_validate_json(sys.argv[1]))\n"
        "loaded = {'torch', 'ray', 'transformers', 'tokenizers', 'safetensors'} & set(sys.modules)\n"
        "print(json.dumps([len(plan.refused), sorted(loaded)]))"
    )
    said = subprocess.run([sys.executable, "-c", code, config.model_dump_json()], capture_output=True, check=True)
    assert json.loads(said.stdout) == [6, []]


def test_a_preset_fills_what_neither_the_row_nor_the_run_says(config_of):
    config = config_of([{"prompt": "a", "flow_shift": None}, {"prompt": "b", "flow_shift": 7.0}])
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"preset": "lightx2v-4-step"}), "defaults": {"solver": "unipc"}}
    )
    items = list(read_pending(open_manifest(config), config, plan_manifest(config).bucket_of_row))
    settings = [
        (i.sound.num_inference_steps, i.sound.guidance_scale, i.sound.flow_shift, i.sound.solver) for i in items
    ]
    assert settings == [(4, 1.0, 5.0, "unipc"), (4, 1.0, 7.0, "unipc")]
