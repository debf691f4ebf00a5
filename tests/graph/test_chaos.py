"""A running manifest on two gangs whose ranks and leaders are killed, stopped, broken and told to go."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from observers import Nobody
from ray import cloudpickle

from wan_ray.config import RenderConfig
from wan_ray.graph.board import GangState, Snapshot
from wan_ray.graph.leader import Denoise
from wan_ray.graph.operator import without_tensors
from wan_ray.graph.rank import Rank
from wan_ray.stages.items import Row
from wan_ray.stages.planning import plan_manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(590)]

TIMEOUT_S = 25.0
LONG_STEPS = 120
MAX_TRIES = 2
VICTIMS = ("hang", "kill-rank", "kill-gang", "raise", "notice", "leader-notice", "leader-kill", "poison")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class RaisingRank(Rank):
    """Rank 1 raises in the row that asks for it, once: the file that the row names is made then."""

    def run(self, row: Row, resume: bytes | None) -> Row | None:
        marker = without_tensors(row).extra.get("marker")
        if marker and self._rank == 1 and not Path(str(marker)).exists():
            Path(str(marker)).touch()
            raise OSError("the disk is on fire")
        return super().run(row, resume)


class RaisingDenoise(Denoise):
    """The stage with that rank."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments, rank_class=RaisingRank)


class Saboteur(Nobody):
    """Watches a run, and does to a gang what the row that it works on is named after."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, GangState]] = []
        self.done: dict[str, list[tuple[float, GangState]]] = {}
        self.left: set[str] = set()

    def tick(self, snapshot: Snapshot) -> None:
        for gang in snapshot.gangs:
            self.seen.append((time.monotonic(), gang))
            deeds = self.done.setdefault(gang.id or "", [])
            fresh = not deeds or (gang.id == "poison" and gang.epoch > deeds[-1][1].epoch)
            if gang.id in VICTIMS and gang.id != "raise" and fresh and 2 < gang.step < gang.num_steps:
                self.act(gang)
                deeds.append((time.monotonic(), gang))

    def act(self, gang: GangState) -> None:
        pids = [int(rank.rpartition(":")[2]) for rank in gang.ranks]
        assert len(pids) == 2
        if gang.id in ("kill-rank", "poison"):
            os.kill(pids[1], signal.SIGKILL)
        elif gang.id == "kill-gang":
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        elif gang.id == "hang":
            os.kill(pids[1], signal.SIGSTOP)
        elif gang.id == "notice":
            os.kill(pids[1], signal.SIGTERM)
        else:
            (leader,) = [actor["Pid"] for actor in living_actors() if actor["ActorID"] == gang.worker]
            os.kill(leader, signal.SIGTERM if gang.id == "leader-notice" else signal.SIGKILL)

    def back_after(self, name: str, nth: int = 0) -> float:
        """Seconds from the deed until the same leader's gang takes steps again."""
        at, before = self.done[name][nth]
        return next(
            then - at
            for then, gang in self.seen
            if then > at and gang.worker == before.worker and gang.ranks != before.ranks and gang.step > 0
        )

    def steps_of(self, name: str) -> list[int]:
        """Steps of the clip that were seen, in their order."""
        return [gang.step for _, gang in self.seen if gang.id == name and gang.step]


def living_actors() -> list[dict]:
    from ray._private import state

    # Detached ones are Ray Data's own, and live as long as the cluster.
    return [actor for actor in state.actors().values() if actor["State"] != "DEAD" and not actor["IsDetached"]]


def living_groups() -> list[dict]:
    import ray

    return [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def index_of(output: str) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(Path(output) / "index").to_pylist()}


@pytest.fixture(scope="module")
def rendered(
    cluster: None, debug_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, write_manifest
) -> Iterator[tuple[Saboteur, dict[str, dict], RenderConfig]]:
    """24 rows on two gangs of two ranks, eight of them with a fate; what was seen, the index, and the config."""
    from wan_ray.graph import offline
    from wan_ray.graph.run import render

    folder = tmp_path_factory.mktemp("chaos")
    rows = [{"id": name, "num_inference_steps": LONG_STEPS} for name in VICTIMS]
    rows += [{"id": f"clip-{n:02d}", "num_inference_steps": 2} for n in range(24 - len(rows))]
    marked = {"raise": str(folder / "raised")}
    write_manifest(
        folder / "manifest.parquet",
        [{"prompt": "A road", **row, "marker": marked.get(str(row["id"]))} for row in rows],
    )
    stage = {"num_cpus": 0.2}
    config = RenderConfig.model_validate(
        {
            "model": {
                "variant": "debug",
                "checkpoint": str(debug_checkpoint),
                "device": "cpu",
                "gang": {"ulysses_degree": 2, "timeout_s": TIMEOUT_S, "max_tries": MAX_TRIES, "save_every_s": 0.5},
            },
            "manifest": str(folder / "manifest.parquet"),
            "output": str(folder / "output"),
            "defaults": {"width": 64, "height": 48, "num_frames": 5},
            "stages": {
                **{name: stage for name in ("encode", "decode", "publish")},
                "denoise": {"num_cpus": 0.2, "replicas": 2},
            },
            "video": {"threads": 1},
            "no_progress_timeout_s": 300,
        }
    )
    saboteur = Saboteur()
    before = {actor["ActorID"] for actor in living_actors()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "Denoise", RaisingDenoise)
        render(config, plan_manifest(config), observer=saboteur)
    saboteur.left = {actor["ActorID"] for actor in living_actors()} - before
    yield saboteur, index_of(config.output), config


def test_every_row_ends_once_whatever_was_done_to_its_gang(rendered) -> None:
    saboteur, index, config = rendered
    assert len(index) == 24
    assert {name for name, row in index.items() if row["status"] == "failed"} == {"poison"}
    assert set(saboteur.done) >= set(VICTIMS) - {"raise"}
    assert len(list(Path(config.output).glob("clips/*"))) == 23
    assert not list(Path(config.output).glob("progress/*"))


def test_a_gang_is_back_within_its_timeout_and_twenty_seconds(rendered) -> None:
    saboteur, _, _ = rendered
    for name in ("kill-rank", "kill-gang", "hang", "notice", "leader-notice", "leader-kill"):
        assert saboteur.back_after(name) < TIMEOUT_S + 20, name


def test_a_row_that_kills_its_gang_each_time_is_recorded_as_failed(rendered) -> None:
    saboteur, index, _ = rendered
    assert len(saboteur.done["poison"]) == MAX_TRIES
    row = index["poison"]
    assert (row["error_stage"], row["error_type"]) == ("denoise", "GangError")
    assert row["error_message"].startswith(f"killed its gang {MAX_TRIES} times: rank ")


def test_the_rank_that_raised_and_the_one_that_hung_are_named(rendered) -> None:
    saboteur, _, _ = rendered
    reasons = {gang.why for _, gang in saboteur.seen if gang.why}
    assert any("rank 1" in why and why.endswith("raised OSError: the disk is on fire") for why in reasons), reasons
    assert any("rank 1" in why and "does not answer" in why for why in reasons), reasons


def test_a_clip_goes_on_where_it_was_when_its_gang_had_to_go(rendered) -> None:
    saboteur, _, _ = rendered
    for name in ("notice", "leader-notice"):
        _, before = saboteur.done[name][0]
        steps = saboteur.steps_of(name)
        assert min(steps[steps.index(before.step) :]) >= before.step, steps


def test_nothing_of_a_run_is_left_on_the_cluster(rendered, eventually: Callable[..., bool]) -> None:
    saboteur, _, _ = rendered
    assert eventually(lambda: living_groups() == []), living_groups()
    assert eventually(lambda: not saboteur.left & {actor["ActorID"] for actor in living_actors()}), living_actors()


def test_clips_of_gangs_are_byte_for_byte_those_of_one_process(
    rendered, debug_checkpoint: Path, tmp_path: Path
) -> None:
    """Also of clips that went on from what was saved, on a gang that was built anew."""
    from wan_ray import Renderer, RenderRequest
    from wan_ray.media.video import encode_mp4

    _, index, config = rendered
    renderer = Renderer.from_checkpoint(debug_checkpoint, device="cpu")
    for name in ("kill-rank", "hang", "notice", "leader-notice", "clip-00"):
        row = {"id": name, "prompt": "A road", "num_inference_steps": index[name]["num_inference_steps"]}
        clip = renderer(RenderRequest(**config.defaults, **row))
        by_hand = tmp_path / f"{name}.mp4"
        encode_mp4([clip.frames], path=by_hand, width=64, height=48, fps=16, crf=10, preset="medium", threads=1)
        assert (Path(config.output) / index[name]["clip"]).read_bytes() == by_hand.read_bytes(), name
