import io
from dataclasses import replace

import pytest
from PIL import Image

from wan_ray.config import ModelSection, RenderConfig, VideoSection
from wan_ray.errors import StageError
from wan_ray.report.clips import clip_strips, write_contact_sheet
from wan_ray.report.rows import read_rows, while_parts_stay
from wan_ray.stages.loader import StageLoader
from wan_ray.stages.publish import PublishStage
from wan_ray.stages.read import read_row
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter

SMALL = {"width": 64, "height": 32, "num_inference_steps": 1}
ROWS = (
    {"id": "car", "prompt": "A red car", "num_frames": 5, **SMALL},
    {"id": "bad", "prompt": "A red car", "num_frames": 80, **SMALL},
    {"id": "雪", "prompt": "雪夜的街道", "task": "t2i", **SMALL},
    {"id": "nan", "prompt": "A red car", "num_frames": 5, **SMALL},
)


@pytest.fixture(scope="module")
def rendered(debug_checkpoint, tmp_path_factory):
    """An output folder that the stages wrote in this process: a clip, an image, two failures."""
    output = str(tmp_path_factory.mktemp("out"))
    model = ModelSection(variant="debug", checkpoint=str(debug_checkpoint), device="cpu")
    loader = StageLoader(model=model, video=VideoSection(preset="ultrafast", threads=1))
    encode, denoise, decode = loader.encode(), loader.denoise(), loader.decode()
    publish = PublishStage(output, run_id="r1")
    with IndexWriter(Store(output), "r1", {}) as index:
        for number, row in reversed(list(enumerate(ROWS))):
            item = read_row(row, RenderConfig(model=model), number=number)
            if item.failure is None:
                item = denoise(encode(item))
                if item.id == "nan":
                    item = replace(item, tensors={"latents": item.tensors["latents"] * float("nan")})
                try:
                    item = decode(item)
                except StageError as error:
                    item = item.failed("decode", error)
            index.append(publish(item))
    return output


def strips(output, max_clips):
    store = Store(output)
    return clip_strips(store, while_parts_stay(store, lambda parts: read_rows(store, parts, {})), max_clips)


def test_the_contact_sheet_shows_clips_and_images(rendered):
    write_contact_sheet(rendered)
    sheet = Image.open(io.BytesIO(Store(rendered).get("contact-sheet.png")))
    assert sheet.format == "PNG"
    assert sheet.width > 64 and sheet.height > 2 * 32
    colors = sheet.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colors is not None and len(colors) > 1000  # noise of random weights, not a blank page


def test_drawing_the_sheet_again_gives_the_same_bytes(rendered):
    write_contact_sheet(rendered)
    first = Store(rendered).get("contact-sheet.png")
    write_contact_sheet(rendered)
    assert Store(rendered).get("contact-sheet.png") == first


def test_the_sheet_needs_the_index_and_the_clips_only(rendered, tmp_path):
    for name in ("index", "clips"):
        (tmp_path / name).symlink_to(f"{rendered}/{name}")
    write_contact_sheet(str(tmp_path))
    write_contact_sheet(rendered)
    assert (tmp_path / "contact-sheet.png").read_bytes() == Store(rendered).get("contact-sheet.png")


def test_without_any_clip_there_is_no_sheet(tmp_path):
    write_contact_sheet(str(tmp_path))
    assert not (tmp_path / "contact-sheet.png").exists()


def test_strips_come_in_manifest_order_with_what_they_show(rendered):
    car, snow = strips(rendered, 24)
    assert (car.id, car.prompt, car.shape.partition("  seed")[0]) == ("car", "A red car", "t2v  64x32  5 frames")
    assert (snow.id, snow.prompt, snow.key[-4:]) == ("雪", "雪夜的街道", ".png")
    assert [Image.open(io.BytesIO(strip.strip or b"")).height for strip in (car, snow)] == [120, 120]


def test_no_more_clips_are_read_than_asked_for(rendered):
    assert [strip.id for strip in strips(rendered, 1)] == ["car"]
