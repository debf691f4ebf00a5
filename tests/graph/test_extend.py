"""Prompts extended inside a run: records say what ran, and a replay asks nobody."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from llm_server import llm_server

from wan_ray.cli import SOME_FAILED, main
from wan_ray.config import RenderConfig
from wan_ray.errors import RunStoppedError
from wan_ray.graph.operator import extended
from wan_ray.replay import replay
from wan_ray.stages.items import Item
from wan_ray.storage.blob import Store
from wan_ray.storage.records import RecordStore

KEY_IS_WRONG = "the service refused the key"


def test_a_row_that_breaks_the_model_fails_alone_and_what_stops_everybody_stops() -> None:
    items = [Item(name=name, id=name, row=n, request=None, prompt=None) for n, name in enumerate(["a", "bad", "b"])]

    def extend(asked: Sequence[Item]) -> list[Item]:
        if any(item.id == "bad" for item in asked):
            raise RuntimeError("CUDA out of memory")
        return list(asked)

    ended = extended(extend, items)
    assert [item.failure and item.failure.message for item in ended] == [None, "CUDA out of memory", None]

    def stop(asked: Sequence[Item]) -> list[Item]:
        raise RunStoppedError(KEY_IS_WRONG)

    with pytest.raises(RunStoppedError, match=KEY_IS_WRONG):
        extended(stop, items)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(290)
def test_a_run_extends_the_rows_that_ask_for_it_and_their_records_replay_to_the_same_bytes(
    debug_config: RenderConfig, tmp_path: Path, write_manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    rows = [
        {"id": "fog", "prompt": "A road in fog", "labels": {"weather": "fog"}},
        {"id": "car", "prompt": "A red car", "labels": {}},
        {"id": "same", "prompt": "A red car", "labels": {}},
        {"id": "lost", "prompt": "A lost prompt", "labels": {}},
        {"id": "plain", "prompt": "A plain lane", "extend_prompt": False, "labels": {}},
    ]
    write_manifest(tmp_path / "manifest.parquet", [{"extend_prompt": True, **row} for row in rows])
    with llm_server(key=None) as server:
        server.write = lambda prompt, _: "A sunny road." if "fog" in prompt else f"A long shot. {prompt}."
        server.fault = lambda text, times: "400" if "lost" in text else None
        extend = {"provider": "openai", "model": "m", "base_url": server.openai_url, "on_failure": "fail_row"}
        data = debug_config.model_dump(mode="json", exclude_none=True)
        config = RenderConfig.model_validate({**data, "ray_address": "auto", "extend": {**extend, "rows_at_once": 3}})
        (tmp_path / "config.json").write_text(config.model_dump_json(exclude_none=True))
        assert main(["render", str(tmp_path / "config.json")]) == SOME_FAILED
        assert sum(server.asked.values()) == 4  # fog twice, the two cars once, the lost one once
        records = RecordStore(Store(tmp_path / "output"))
        fog, car, same, lost, plain = (records.read(row["id"]) for row in rows)
        assert (fog.prompt_as_run, fog.extension["prompt_source"]) == ("A road in fog", "original")
        assert car.prompt_as_run == same.prompt_as_run == "A long shot. A red car."
        assert (car.prompt, car.extension["model"]) == ("A red car", "m")
        assert (lost.status, lost.error_stage, lost.error_type) == ("failed", "extend", "ExtenderError")
        assert (plain.prompt_as_run, plain.extension) == ("A plain lane", {})
        assert car.seconds.keys() == {"extend", "encode", "denoise", "decode", "publish"}
        index = {row["id"]: row for row in pq.read_table(tmp_path / "output/index").to_pylist()}
        assert '"prompt_source": "original"' in index["fog"]["extension"]
        assert index["plain"]["extension"] is None
    assert replay(str(tmp_path / "output/records/car.json")).same_bytes  # the server is gone
