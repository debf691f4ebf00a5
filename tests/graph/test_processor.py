"""build_processor: the path as a function from dataset to dataset."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wan_ray.config import RenderConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(300)]


def test_results_carry_clips_the_users_columns_and_failures(
    debug_config: RenderConfig, tmp_path: Path, eventually: Callable[..., bool]
) -> None:
    import ray.data

    from wan_ray import build_processor
    from wan_ray.media.video import read_frames

    config = debug_config.model_copy(update={"output": None, "manifest": None})
    process = build_processor(
        config,
        preprocess=lambda row: {**row, "prompt": f"A {row['colour']} car" if row["colour"] else ""},
        postprocess=lambda row: {k: row[k] for k in ("id", "status", "error_message", "clip_bytes", "colour", "seed")},
    )
    rows = [{"id": "r", "colour": "red"}, {"id": "b", "colour": "blue"}, {"id": "none", "colour": ""}]
    results = {row["id"]: row for row in process(ray.data.from_items(rows)).take_all()}
    assert {name: row["status"] for name, row in results.items()} == {"r": "ok", "b": "ok", "none": "failed"}
    assert "no text" in results["none"]["error_message"]
    assert results["r"]["colour"] == "red"
    assert read_frames(results["b"]["clip_bytes"]).shape == (5, 48, 64, 3)
    groups = ray.util.placement_group_table
    assert eventually(lambda: all(group["state"] == "REMOVED" for group in groups().values())), groups()


def test_with_an_output_results_name_stored_clips(debug_config: RenderConfig, tmp_path: Path) -> None:
    import ray.data

    from wan_ray import build_processor

    dataset = ray.data.from_items([{"id": "one", "prompt": "A road", "labels": {"weather": "fog"}}])
    (row,) = build_processor(debug_config)(dataset).take_all()
    assert (tmp_path / "output" / row["clip"]).stat().st_size == row["size_bytes"]
    assert row["clip_bytes"] is None
    assert row["labels"] == {"weather": "fog"}
    assert (tmp_path / "output" / "records" / "one.json").exists()
