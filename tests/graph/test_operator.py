"""What operators do for each row, whatever their stage."""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest
import ray
import torch
from ray import cloudpickle
from ray.util.placement_group import placement_group

from wan_ray.config import GangSection, ModelSection, RenderConfig, StagesSection
from wan_ray.errors import RunStoppedError
from wan_ray.graph.board import Board, BoardHandle
from wan_ray.graph.leader import Denoise
from wan_ray.graph.operator import Stage, Worker, attempted
from wan_ray.graph.placement import group_name, sweep_groups
from wan_ray.stages.items import Item, Row
from wan_ray.stages.loader import StageLoader
from wan_ray.stages.read import read_row

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class Fragile:
    """An operator that the row "poison" kills."""

    def __init__(self, board: BoardHandle) -> None:
        self.stage = Stage(self.run, Worker("decode", board))

    def __call__(self, row: Row) -> Row:
        return self.stage(row)

    def run(self, row: Row) -> Row:
        if Item.from_row(row).id == "poison":
            os._exit(1)
        return row


def test_a_row_that_kills_its_worker_again_and_again_fails_and_others_go_on() -> None:
    board = ray.remote(num_cpus=0)(Board).remote()
    # As Ray Data makes its actors, which try a dead one's rows again for ever.
    worker = ray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=-1)(Fragile).remote(board)
    rows = [Item(name=name, id=name, row=n, request=None, prompt=None) for n, name in enumerate(["a", "poison", "b"])]
    done = ray.get([worker.__call__.remote(row.to_row()) for row in rows], timeout=100)
    failures = {item.id: item.failure for item in map(Item.from_row, done)}
    assert failures["a"] is None and failures["b"] is None
    assert (failures["poison"].stage, failures["poison"].type) == ("decode", "StageError")
    assert failures["poison"].message.startswith("killed its worker 3 times")
    snapshot = ray.get(board.fetch.remote())
    assert [event.id for event in snapshot.events if event.died] == ["poison"] * 3
    assert snapshot.inside == {"decode": 0}


class Led:
    """The denoise operator, alone on its worker."""

    def __init__(self, model: ModelSection, board: BoardHandle) -> None:
        stages = StagesSection.model_validate({"denoise": {"num_cpus": 0.2, "replicas": {"min": 1, "max": 2}}})
        self.denoise = Denoise(model=model, stages=stages, output=None, board=board, run_id="alone", idle_s=3.0)

    def __call__(self, row: Row) -> Row:
        return self.denoise(row)


def test_a_gang_that_cannot_start_ends_the_run_instead_of_the_row(debug_config: RenderConfig) -> None:
    board = ray.remote(num_cpus=0)(Board).remote()
    hasty = debug_config.model.model_copy(update={"gang": GangSection(timeout_s=0.1, max_tries=2)})
    leader = ray.remote(num_cpus=0.05)(Led).remote(hasty, board)
    row = Item(name="a", id="a", row=0, request=None, prompt=None).to_row()
    with pytest.raises(RunStoppedError, match=r"no gang could be started in 2 tries: rank 0 .*did not finish to load"):
        ray.get(leader.__call__.remote(row), timeout=60)
    ray.kill(leader)
    sweep_groups("alone")


def test_a_gang_beyond_the_least_number_lets_the_other_stages_go_first(
    debug_config: RenderConfig, eventually: Callable[..., bool]
) -> None:
    """It takes its place after theirs, and gives it back when it is idle and they may have lost theirs."""
    board = ray.remote(num_cpus=0)(Board).remote()
    ray.get(board.join.remote("denoise", "the first gang"))
    leader = ray.remote(num_cpus=0.05, max_restarts=-1)(Led).remote(debug_config.model, board)
    group = group_name("alone", leader._actor_id.hex())
    assert not eventually(lambda: state_of(group) == "CREATED", within_s=4)
    for stage in ("encode", "decode", "publish"):
        ray.get(board.join.remote(stage, stage))
    assert eventually(lambda: state_of(group) == "CREATED")
    waiting = placement_group([{"CPU": ray.available_resources()["CPU"] + 0.15}])
    assert not waiting.wait(0.5)
    assert waiting.wait(30)
    ray.util.remove_placement_group(waiting)
    ray.kill(leader)
    sweep_groups("alone")


def state_of(group: str) -> str:
    states = [entry["state"] for entry in ray.util.placement_group_table().values() if entry["name"] == group]
    return "CREATED" if "CREATED" in states else "NONE"


def test_what_fails_once_through_no_fault_of_the_row_is_tried_again_and_no_more(
    debug_config: RenderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is a program that ends with an error as often as there are files in a folder, and takes one each."""
    real, folder = imageio_ffmpeg.get_ffmpeg_exe(), tmp_path / "failures"
    folder.mkdir()
    program = tmp_path / "ffmpeg"
    program.write_text(
        f'#!/bin/sh\nf=$(ls {folder} | head -1)\n[ -z "$f" ] && exec {real} "$@"\nrm {folder}/$f; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    decode = StageLoader(model=debug_config.model).decode()
    item = read_row({"id": "a", "prompt": "A road"}, debug_config)
    item = dataclasses.replace(item, tensors={"latents": torch.zeros(16, 2, 6, 8)})

    def after(num_failures: int) -> Item:
        for number in range(num_failures):
            (folder / str(number)).touch()
        return Item.from_row(attempted("decode", item, lambda: decode(item).to_row()))

    assert after(1).failure is None
    failed = after(3)
    assert failed.failure is not None and failed.failure.type == "StageError"
    assert len(list(folder.iterdir())) == 1
