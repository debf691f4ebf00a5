"""A run that is told to end keeps what its clips have reached, for a gang of any layout."""

import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from observers import Nobody

from wan_ray.config import RenderConfig
from wan_ray.graph.board import Snapshot

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(300)]

NUM_STEPS = 1000  # some ten seconds of work: a gang hears within two that it is to stop


class Watcher(Nobody):
    """Keeps the steps it sees of the clip, and presses Ctrl-C once it has come to `interrupt_at`."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.steps: list[int] = []
        self._interrupt_at = interrupt_at

    def tick(self, snapshot: Snapshot) -> None:
        self.steps += [gang.step for gang in snapshot.gangs if gang.step]
        if self._interrupt_at is not None and self.steps and self.steps[-1] >= self._interrupt_at:
            self._interrupt_at = None
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_clip_goes_on_where_it_was_on_a_gang_of_another_layout(
    debug_config: RenderConfig, debug_checkpoint: Path, tmp_path: Path, write_manifest
) -> None:
    from wan_ray import Renderer, RenderRequest
    from wan_ray.graph.run import render
    from wan_ray.media.video import encode_mp4
    from wan_ray.stages.planning import plan_manifest

    row = {"id": "long", "prompt": "A road", "num_inference_steps": NUM_STEPS, "num_frames": 13}
    write_manifest(tmp_path / "manifest.parquet", [row])

    def with_gang(**gang: object) -> RenderConfig:
        return RenderConfig.model_validate(
            {**debug_config.model_dump(), "model": {**debug_config.model.model_dump(), "gang": gang}}
        )

    before = with_gang(ulysses_degree=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        render(before, plan_manifest(before), observer=Watcher(interrupt_at=10))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(tmp_path.glob("output/records/*"))
    (saved,) = tmp_path.glob("output/progress/*")
    assert saved.name == "long.safetensors"

    after, watcher = with_gang(cfg_degree=2), Watcher()
    assert render(after, plan_manifest(after), observer=watcher).ok == 1
    assert watcher.steps[0] > 10
    assert not list(tmp_path.glob("output/progress/*"))

    (entry,) = pq.read_table(tmp_path / "output" / "index").to_pylist()
    renderer = Renderer.from_checkpoint(debug_checkpoint, device="cpu")
    rendered = renderer(RenderRequest(**{"width": 64, "height": 48, "num_frames": 5, **row}))
    by_hand = tmp_path / "by-hand.mp4"
    encode_mp4([rendered.frames], path=by_hand, width=64, height=48, fps=16, crf=10, preset="medium", threads=1)
    assert (tmp_path / "output" / entry["clip"]).read_bytes() == by_hand.read_bytes()
