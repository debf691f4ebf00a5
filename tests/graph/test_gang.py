"""A gang without a model: how it starts, fails and is built anew. Its ranks here only wait, raise and answer."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

import pytest
import ray
from ray import cloudpickle

from wan_ray.degrees import Degrees
from wan_ray.errors import CheckpointError, ClipStoppedError, GangError
from wan_ray.graph.gang import Beat, Gang, Place
from wan_ray.graph.placement import Resources

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class PlainRank:
    """Takes ten steps a second, as many as it is told, and stops when asked; told "bad", rank 1 raises."""

    def __init__(self, rank: int, *, weights: str) -> None:
        self.rank = rank
        self.weights = weights
        self.step = 0
        self.why: str | None = None

    def place(self) -> Place:
        return Place(node=ray.get_runtime_context().get_node_id(), host="here", pid=os.getpid())

    def reserve(self) -> str:
        return "here"

    def load(self, address: str, former: Sequence[Place]) -> None:
        if self.weights == "wrong":
            raise CheckpointError("dim 1536 instead of 5120")
        if self.weights == "slow":
            time.sleep(60)

    def run(self, row: str | int, resume: bytes | None) -> list[object]:
        if row == "large":
            if self.rank == 1 and self.weights != "on the host":
                # Imported here: the other tests' ranks are to start fast.
                import torch

                from wan_ray.stages.memory import memory_for

                with memory_for("the clip", fix="take more ranks"):
                    torch.empty(1 << 46, dtype=torch.uint8)
            return [self.rank, self.weights]
        if row == "bad" and self.rank == 1:
            raise ValueError("no such row")
        self.step, self.why = len(resume or b""), None
        while row == "bad" or self.step < int(row):
            time.sleep(0.1)
            self.step += 1
            if self.why:
                raise ClipStoppedError(self.why)
        return [self.rank, self.step]

    def beat(self) -> Beat:
        return Beat(step=self.step, num_steps=100)

    def saved(self) -> bytes | None:
        return b"s" * self.step

    def stop(self, why: str) -> None:
        self.why = why


def no_wait() -> None:
    """Nobody else is on the cluster."""


@pytest.fixture
def gang(request: pytest.FixtureRequest) -> Iterator[Gang]:
    """Two ranks, silent for 4 s at most."""
    made = Gang(
        PlainRank,
        {"weights": getattr(request, "param", "right")},
        name=f"wan-gang-test-{time.time_ns()}",
        degrees=Degrees(ulysses=2),
        resources=Resources(cpus=0.1, gpus=0.0),
        timeout_s=4.0,
    )
    made.build(no_wait)
    yield made
    made.close()


def test_rank_zero_s_result_comes_back_and_beats_meanwhile(gang: Gang) -> None:
    beats: list[int] = []
    gang.ready()
    assert gang.run(15, b"12345", watch=lambda seen: beats.extend(beat.step for beat in seen.values())) == [0, 15]
    assert beats and all(5 <= step <= 15 for step in beats)


def test_ranks_that_stop_as_asked_stay(gang: Gang) -> None:
    """Only rank 0 is asked; a real rank has the others stop with it, here they are few steps from their end."""
    gang.ready()
    places = gang.places
    with pytest.raises(ClipStoppedError, match="enough"):
        gang.run(20, None, watch=lambda _: gang.stop("enough"))
    assert 0 < len(gang.saved() or b"") < 20
    gang.ready()
    assert gang.places == places


def test_an_error_of_one_rank_ends_all_and_names_it(gang: Gang) -> None:
    gang.ready()
    pids = [place.pid for place in gang.places]
    started = time.monotonic()
    with pytest.raises(GangError, match=rf"rank 1 at here:{pids[1]} raised ValueError: no such row"):
        gang.run("bad", None, watch=lambda _: None)
    assert time.monotonic() - started < 15
    gang.build(no_wait)
    gang.ready()
    assert gang.epoch == 2
    assert gang.run(1, None, watch=lambda _: None) == [0, 1]
    assert not {place.pid for place in gang.places} & set(pids)


def test_a_gang_after_one_that_lacked_memory_is_made_to_need_less() -> None:
    gang = Gang(
        PlainRank,
        {"weights": "right"},
        name=f"wan-gang-test-{time.time_ns()}",
        degrees=Degrees(ulysses=2),
        resources=Resources(cpus=0.1, gpus=0.0),
        timeout_s=30.0,
        leaner={"weights": "on the host"},
    )
    try:
        gang.build(no_wait)
        gang.ready()
        with pytest.raises(GangError, match=r"rank 1 .*out of memory for the clip; take more ranks"):
            gang.run("large", None, watch=lambda _: None)
        gang.build(no_wait)
        gang.ready()
        assert gang.run("large", None, watch=lambda _: None) == [0, "on the host"]
    finally:
        gang.close()


def test_a_rank_that_is_silent_is_found_and_killed(gang: Gang) -> None:
    gang.ready()
    pid = gang.places[1].pid
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(GangError, match=rf"rank 1 at here:{pid} did not finish to step in 4 s, and does not answer"):
        gang.run(100, None, watch=lambda _: None)
    assert time.monotonic() - started < 15


def test_a_rank_that_died_while_idle_is_noticed_before_the_next_clip(gang: Gang) -> None:
    gang.ready()
    os.kill(gang.places[0].pid, signal.SIGKILL)
    time.sleep(1)
    with pytest.raises(GangError, match=r"rank 0 at here:\d+ died: .*, while idle"):
        gang.ready()


@pytest.mark.parametrize("gang", ["slow"], indirect=True)
def test_ranks_that_do_not_load_in_time_are_killed(gang: Gang) -> None:
    with pytest.raises(GangError, match="did not finish to load in 4 s"):
        gang.ready()


@pytest.mark.parametrize("gang", ["wrong"], indirect=True)
def test_weights_that_are_wrong_are_no_matter_of_trying_again(gang: Gang) -> None:
    with pytest.raises(CheckpointError, match="dim 1536 instead of 5120"):
        gang.ready()
