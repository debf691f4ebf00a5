import io
from dataclasses import replace

import pytest
from PIL import Image

from wan_ray.config import ModelSection, RenderConfig, VideoSection
from wan_ray.errors import StageError, StorageError
from wan_ray.report import status, write_contact_sheet
from wan_ray.stages.loader import StageLoader
from wan_ray.stages.publish import PublishStage
from wan_ray.stages.read import read_row
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter
from wan_ray.storage.records import RecordStore
from wan_ray.storage.runs import write_run

SMALL = {"width": 64, "height": 32, "num_inference_steps": 1}
ROWS = (
    {"id": "car", "prompt": "A red car", "num_frames": 5, **SMALL},
    {"id": "bad", "prompt": "A red car", "num_frames": 80, **SMALL},
    {"id": "雪", "prompt": "雪夜的街道", "task": "t2i", **SMALL},
    {"id": "worse", "prompt": "A red car", "num_frames": 80, **SMALL},
    {"id": "nan", "prompt": "A red car", "num_frames": 5, **SMALL},
)


@pytest.fixture(scope="module")
def rendered(debug_checkpoint, tmp_path_factory):
    """An output folder that the stages wrote in this process: two clips, three failures, one row not reached."""
    output = str(tmp_path_factory.mktemp("out"))
    model = ModelSection(variant="debug", checkpoint=str(debug_checkpoint), device="cpu")
    loader = StageLoader(model=model, video=VideoSection(preset="ultrafast", threads=1))
    encode, denoise, decode = loader.encode(), loader.denoise(), loader.decode()
    publish = PublishStage(output, run_id="r1")
    store = Store(output)
    write_run(store, {"run_id": "r1", "num_rows": len(ROWS) + 1, "status": "finished", "started_at": "now"})
    with IndexWriter(store, "r1", {}) as index:
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


def test_status_counts_rows_and_groups_failures_by_cause(rendered):
    found = status(rendered)
    assert (found.num_rows, found.num_records, found.ok, found.failed) == (6, 5, 2, 3)
    rule = "num_frames: 80 is not 4n+1, the VAE's step in time; use 77 or 81"
    (common, count), (rare, once) = found.failures.most_common()
    assert (common, count) == (("read", "RequestError", rule), 2)
    assert (rare[:2], once) == (("decode", "StageError"), 1)
    assert found.last_run["run_id"] == "r1"


def test_status_of_a_folder_that_no_run_wrote_to_is_an_error(tmp_path):
    with pytest.raises(StorageError, match=r"holds no run\.json"):
        status(str(tmp_path))


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


def test_without_any_clip_there_is_no_sheet(tmp_path):
    write_contact_sheet(str(tmp_path))
    assert not (tmp_path / "contact-sheet.png").exists()


def test_an_image_row_is_stored_as_png_and_a_clip_as_mp4(rendered):
    records = {r.id: r for r in RecordStore(Store(rendered)).read_all(RecordStore(Store(rendered)).names())}
    assert records["雪"].clip is not None and records["雪"].clip.endswith(".png")
    assert records["car"].clip is not None and records["car"].clip.endswith(".mp4")
    assert records["nan"].clip is None
