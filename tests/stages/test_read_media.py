"""What becomes of rows whose images and videos cannot be used: at the read stage, and when they are decoded."""

import io
from array import array

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from wan_ray.config import ModelSection, RenderConfig
from wan_ray.errors import RequestError
from wan_ray.media.check import MediaCheck
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.stages.planning import plan_manifest
from wan_ray.stages.publish import make_record
from wan_ray.stages.read import open_manifest, read_pending, read_row, with_media_checked
from wan_ray.variants import get_variant


def png(width=64, height=48):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def config_of(rows, folder):
    columns = dict.fromkeys(key for row in rows for key in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    pq.write_table(table, folder / "manifest.parquet")
    model = ModelSection(variant="debug-i2v", checkpoint="nowhere")
    return RenderConfig(model=model, manifest=str(folder / "manifest.parquet"))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "sound.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(b"hello")
    names = ("sound", "broken", "missing", "broken")
    rows = [{"task": "i2v", "prompt": f"p{n}", "image": f"{tmp_path}/{name}.png"} for n, name in enumerate(names)]
    rows[0]["id"], rows[2]["id"] = "a", "夜"
    return config_of(rows, tmp_path)


def test_a_row_with_a_broken_input_fails_at_read_and_the_others_go_on(config):
    plan = plan_manifest(config)
    assert plan.refused == []
    items = list(read_pending(open_manifest(config), config, plan.bucket_of_row))
    assert [item.failure and (item.failure.stage, item.failure.type) for item in items] == [
        None,
        *[("read", "RequestError")] * 3,
    ]
    assert "broken.png' is no image that can be read" in items[1].failure.message
    assert "missing.png' does not exist" in items[2].failure.message
    record = make_record(items[1], run_id="r")
    assert (record.status, record.task, record.error_stage) == ("failed", "i2v", "read")
    assert record.inputs == {"image": [config.manifest.replace("manifest.parquet", "broken.png")]}


def test_a_row_keeps_its_record_s_name_whether_its_input_is_sound_broken_or_mended(config, tmp_path):
    plan = plan_manifest(config)

    def names():
        return [item.name for item in read_pending(open_manifest(config), config, plan.bucket_of_row)]

    assert names() == plan.names
    (tmp_path / "broken.png").write_bytes(png())
    assert names() == plan.names


def test_planning_opens_no_media(config, tmp_path):
    (tmp_path / "sound.png").unlink()
    assert plan_manifest(config).refused == []


def test_bytes_in_a_row_are_checked_too(tmp_path):
    rows = [{"task": "i2v", "prompt": "a", "image": data} for data in (png(), png()[:30])]
    config = config_of(rows, tmp_path)
    sound, broken = read_pending(open_manifest(config), config, array("I", [1, 1]))
    assert sound.failure is None
    assert "no image that can be read (it begins like a PNG image)" in broken.failure.message


def test_a_store_that_is_down_leaves_the_row_to_the_encode_stage(tmp_path):
    row = {"task": "i2v", "prompt": "a", "image": "http://127.0.0.1:9/a.png"}
    item = with_media_checked(read_row(row, config_of([row], tmp_path)), MediaCheck())
    assert item.failure is None


def test_a_mask_that_is_dropped_is_not_looked_at(tmp_path):
    row = {"task": "vace", "prompt": "a", "mask_video": f"{tmp_path}/none.mp4", "compat": "released"}
    config = config_of([row], tmp_path).model_copy(
        update={"model": ModelSection(variant="debug-vace", checkpoint="nowhere")}
    )
    assert with_media_checked(read_row(row, config), MediaCheck()).failure is None


def test_a_row_that_broke_a_rule_stays_as_it_failed(tmp_path):
    row = {"task": "i2v", "prompt": "", "image": f"{tmp_path}/none.png"}
    item = with_media_checked(read_row(row, config_of([row], tmp_path)), MediaCheck())
    assert item.failure.message.startswith("prompt: ")


DAMAGED = {
    "i2v": {"image": png()[:5000]},
    "flf2v": {"image": png(), "last_image": png()[:5000]},
    "vace": {"reference_images": [png(), png()[:5000]]},
}


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    folder, loaders = tmp_path_factory.mktemp("kinds"), {}
    for kind in DAMAGED:
        write_debug_checkpoint(folder / kind, kind=kind)
        section = ModelSection(variant=f"debug-{kind}", checkpoint=str(folder / kind), device="cpu")
        loaders[kind] = StageLoader(model=section)
    return loaders


@pytest.mark.parametrize("task", DAMAGED)
def test_damage_behind_a_sound_header_is_found_before_any_model_runs(loaders, task):
    request = resolve(
        RenderRequest(task=task, prompt="a", num_frames=5, width=64, height=48, **DAMAGED[task]),
        get_variant(f"debug-{task}"),
    )
    MediaCheck()(request.media)  # the headers are sound
    encode, called = loaders[task].encode(), []
    watching = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: called.append(module))
    try:
        with pytest.raises(RequestError, match="damaged PNG image"):
            encode(Item(name="a", id="a", row=0, request=request, prompt="a"))
        assert called == []
        sound = resolve(
            RenderRequest(task="i2v", prompt="a", num_frames=5, width=64, height=48, image=png()),
            get_variant("debug-i2v"),
        )
        loaders["i2v"].encode()(Item(name="a", id="a", row=0, request=sound, prompt="a"))
        assert called  # so the hook would have told
    finally:
        watching.remove()
