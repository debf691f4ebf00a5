import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

import fsspec
import pytest

from wan_ray.errors import StageError, StorageError
from wan_ray.stages.items import Clip, Item
from wan_ray.stages.publish import PublishStage, make_record
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter, read_index
from wan_ray.storage.records import RecordStore

CLIP = Clip(data=b"an mp4", suffix=".mp4", num_frames=5)
SHA256 = hashlib.sha256(b"an mp4").hexdigest()


@pytest.fixture(params=["folder", "memory"])
def output(request, tmp_path):
    return str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}"


def publish_stage(output, run_id="r1"):
    return PublishStage(output, run_id=run_id)


def ended(item, **fields):
    return replace(item, clip=CLIP, seconds={"denoise": 1.5}, weights={"vae": "ab"}, extra={"source": "x"}, **fields)


def test_a_clip_is_stored_under_its_content_and_its_record_says_all_about_it(output, make_item):
    item = ended(make_item(id="夜", prompt="雪夜", labels={"w": "snow"}, seed=9))
    record = publish_stage(output)(item)
    store = Store(output)
    assert record.clip is not None and store.get(record.clip) == b"an mp4"
    assert record == RecordStore(store).read(item.name)
    assert (record.status, record.sha256, record.size_bytes, record.num_frames) == ("ok", SHA256, 6, 5)
    assert record.clip.startswith("clips/") and record.clip.endswith(f".{SHA256[:12]}.mp4")
    assert (record.id, record.row, record.prompt, record.prompt_as_run) == ("夜", 0, "雪夜", "雪夜")
    assert (record.width, record.height, record.seed, record.solver) == (64, 32, 9, "unipc")
    assert (record.labels, record.extra, record.weights) == ({"w": "snow"}, {"source": "x"}, {"vae": "ab"})
    assert record.seconds["denoise"] == 1.5 and record.seconds["publish"] >= 0
    assert (record.run_id, record.variant, record.versions["torch"]) == ("r1", "debug", version("torch"))
    assert abs((datetime.now(UTC) - datetime.fromisoformat(record.created_at)).total_seconds()) < 60


def test_the_first_record_of_an_item_stands_and_the_second_publisher_gets_it(output, make_item):
    first = publish_stage(output)(ended(make_item()))
    other = replace(ended(make_item()), clip=Clip(data=b"other", suffix=".mp4", num_frames=5))
    assert publish_stage(output, run_id="r2")(other) == first
    store = Store(output)
    assert RecordStore(store).read(first.name) == first
    assert first.clip is not None and store.get(first.clip) == b"an mp4"


def test_a_failure_does_not_replace_a_success(output, make_item):
    first = publish_stage(output)(ended(make_item()))
    assert publish_stage(output)(make_item().failed("denoise", StageError("late"))) == first


def test_a_failed_item_gets_a_record_and_no_clip(output, make_item):
    record = publish_stage(output)(ended(make_item()).failed("decode", StageError("no ffmpeg")))
    assert (record.status, record.error_stage, record.error_type) == ("failed", "decode", "StageError")
    assert (record.error_message, record.clip, record.sha256, record.size_bytes) == ("no ffmpeg", None, None, None)
    assert (record.prompt, record.seed, record.seconds) == ("A red car", record.seed, {"denoise": 1.5})
    assert Store(output).names("clips") == []


def test_a_row_that_was_never_understood_gets_a_record_of_what_is_known(output):
    item = Item(name="refused-1", id="1", row=3, request=None, prompt=None, extra={"source": "x"})
    record = publish_stage(output)(item.failed("read", StageError("what")))
    assert (record.row, record.prompt, record.task, record.prompt_as_run) == (3, None, None, None)


def test_the_clip_is_there_before_its_record(tmp_path, make_item):
    (tmp_path / "records").write_text("a file where the folder of records should be")
    with pytest.raises(StorageError, match="records"):
        publish_stage(str(tmp_path))(ended(make_item()))
    assert [file.read_bytes() for file in (tmp_path / "clips").iterdir()] == [b"an mp4"]


def test_without_its_clip_there_is_no_record(tmp_path, make_item):
    (tmp_path / "clips").write_text("a file where the folder of clips should be")
    with pytest.raises(StorageError, match="clips"):
        publish_stage(str(tmp_path))(ended(make_item()))
    assert not (tmp_path / "records").exists()


def test_a_record_becomes_an_index_row(output, make_item):
    record = publish_stage(output)(ended(make_item(labels={"w": "snow"})))
    store = Store(output)
    with IndexWriter(store, "r1", {"source": "str"}) as index:
        index.append(record)
    (row,) = read_index(store).to_pylist()
    assert (row["record"], row["status"], row["clip"], row["sha256"]) == (record.name, "ok", record.clip, SHA256)
    assert (row["labels"], row["seconds_denoise"], row["source"]) == ([("w", "snow")], 1.5, "x")


def test_an_unpublished_clip_is_described_without_a_place(make_item):
    record = make_record(ended(make_item()), run_id="r1")
    assert (record.clip, record.sha256, record.size_bytes, record.num_frames) == (None, None, 6, 5)


def test_no_half_written_file_is_ever_listed(tmp_path, make_item):
    publish_stage(str(tmp_path))(ended(make_item()))
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert len(names) == 2 and not [name for name in names if name.startswith(".")]
    assert fsspec.filesystem("file").exists(str(tmp_path / "records"))


def test_a_clip_that_was_changed_on_its_way_is_stored_again(s3, make_item):
    publish = publish_stage("s3://bucket/out")
    s3.faults = ("flip",)
    for n in range(8):
        s3.share = 0.5
        record = publish(ended(make_item(id=f"clip{n}")))
        s3.share = 0
        assert record.clip is not None and publish.store.get(record.clip) == b"an mp4"
    assert s3.counts["flip"] > 0


def test_a_store_that_keeps_changing_clips_is_told(s3, make_item):
    s3.share, s3.faults = 1.0, ("flip",)
    with pytest.raises(StorageError, match=r"clips/.* does not hold what was written 3 times"):
        publish_stage("s3://bucket/out")(ended(make_item()))
