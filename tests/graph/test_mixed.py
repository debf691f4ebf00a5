"""One manifest of all tasks over four models: each row goes to its model, broken inputs fail alone."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wan_ray.cli import SOME_FAILED, main
from wan_ray.media.video import encode_mp4, probe

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(590)]

TASKS = ("t2v", "t2i", "i2v", "flf2v", "vace")
SHAPES = ((64, 48, 5), (96, 64, 9), (48, 64, 5))
BROKEN = {
    "bad-missing": ("read", "image", "does not exist"),
    "bad-broken": ("read", "image", "no image that can be read"),
    "bad-type": ("read", "control_video", "no sound video"),
    "bad-short": ("encode", "control_video", "num_frames to 17 or less"),
    "bad-last": ("read", "last_image", "gone.jpg"),
}


def write_inputs(folder: Path) -> None:
    """A picture 128x72, the same turned over, 20 frames of 96x64 and their mask, and two broken files."""
    y, x = np.mgrid[0:72, 0:128]
    picture = np.stack([x * 2, y * 3, (x + y) % 256], -1).astype(np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    Image.fromarray(picture[::-1, ::-1]).save(folder / "b.jpg")
    mask = np.zeros((20, 64, 96, 3), np.uint8)
    mask[:, 16:48, 32:64] = 255
    clip = np.stack([np.roll(picture, 4 * i, axis=1)[:64, :96] for i in range(20)])
    for name, frames in (("v.mp4", clip), ("m.mp4", mask)):
        encode_mp4([frames], path=folder / name, width=96, height=64, fps=16, crf=10, preset="fast", threads=1)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "text.mp4").write_text("hello")


def mixed_rows(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for n in range(20):
        (width, height, num_frames), task = SHAPES[n % 3], TASKS[n // 4]
        row: dict[str, object] = {"id": f"{task}-{n}", "task": task, "width": width, "height": height}
        row |= {"num_frames": 1 if task == "t2i" else num_frames}
        if task in ("i2v", "flf2v"):
            row |= {"image": str(folder / "a.png")}
        if task == "flf2v":
            row |= {"last_image": str(folder / "b.jpg")}
        if task == "i2v" and n % 2:
            row |= {"width": None, "height": None}
        if task == "vace" and n % 4:
            row |= {"control_video": str(folder / "v.mp4")}
        if task == "vace" and n % 4 == 2:
            row |= {"mask_video": str(folder / "m.mp4")}
        if task == "vace" and n % 4 in (0, 3):
            row |= {"reference_images": [str(folder / "a.png")]}
        rows.append(row)
    size = {"width": 64, "height": 48, "num_frames": 5}
    rows += [
        {"id": "bad-missing", "task": "i2v", "image": str(folder / "none.png"), "num_frames": 5},
        {"id": "bad-broken", "task": "i2v", "image": str(folder / "broken.png"), "num_frames": 5},
        {"id": "bad-type", "task": "vace", "control_video": str(folder / "text.mp4"), **size},
        {"id": "bad-short", "task": "vace", "control_video": str(folder / "v.mp4"), **size, "num_frames": 81},
        {"id": "bad-last", "task": "flf2v", "image": str(folder / "a.png"), "last_image": str(folder / "gone.jpg")},
    ]
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{"prompt": "A road", **{column: row.get(column) for column in columns}} for row in rows]


def test_a_mixed_manifest_renders_all_but_its_broken_rows(tmp_path: Path, write_manifest) -> None:
    from wan_ray.model.debug import write_debug_checkpoint

    variants = {"t2v": "debug", "i2v": "debug-i2v", "flf2v": "debug-flf2v", "vace": "debug-vace"}
    for kind in variants:
        write_debug_checkpoint(tmp_path / kind, kind=kind)
    write_inputs(tmp_path)
    write_manifest(tmp_path / "manifest.parquet", mixed_rows(tmp_path))
    config = {
        "models": [{"variant": v, "checkpoint": kind, "device": "cpu"} for kind, v in variants.items()],
        "manifest": "manifest.parquet",
        "output": "output",
        "defaults": {"num_inference_steps": 2, "num_frames": 5},
        "stages": {name: {"num_cpus": 0.2} for name in ("encode", "denoise", "decode", "publish")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["render", str(tmp_path / "config.yaml")]) == SOME_FAILED
    index = {row["id"]: row for row in pq.read_table(tmp_path / "output" / "index").to_pylist()}
    assert Counter(row["status"] for row in index.values()) == {"ok": 20, "failed": 5}
    for name, (stage, *words) in BROKEN.items():
        assert (index[name]["error_stage"], index[name]["error_type"]) == (stage, "RequestError")
        assert all(word in index[name]["error_message"] for word in words), index[name]["error_message"]
    for n in range(20):
        row = index[f"{TASKS[n // 4]}-{n}"]
        assert row["variant"] == variants.get(row["task"], "debug")
        by_image = row["task"] == "i2v" and n % 2
        # 128x72 at the area of 160x96: sqrt(15360 * 72 / 128) = 92.9 and sqrt(15360 * 128 / 72) = 165.2, cut to 16ths.
        assert (row["width"], row["height"]) == ((160, 80) if by_image else SHAPES[n % 3][:2])
        if row["task"] != "t2i":
            info = probe(tmp_path / "output" / row["clip"])
            assert (info.width, info.height, info.num_frames) == (row["width"], row["height"], SHAPES[n % 3][2])
    moved = json.loads(index["vace-17"]["inputs"])
    assert moved["frame_indices"] == [0, 1, 2, 3, 4]
    assert moved["fit"]["source_width"] == 96
