"""Process groups: who is in which, that no wait on any is longer than configured, and that gangs come and go."""

import errno
import socket
import time

import pytest
import torch

from wan_ray.degrees import Degrees
from wan_ray.errors import GangError
from wan_ray.parallel.process_group import open_groups, reserve_address

# By hand: Ulysses ranks are adjacent, then ring, then cfg.
GROUPS = {
    "1 4 1": {"sequence": [[0, 1, 2, 3]], "ulysses": [[0, 1, 2, 3]]},
    "1 1 4": {"sequence": [[0, 1, 2, 3]], "ring": [[0, 1, 2, 3]]},
    "1 2 2": {"sequence": [[0, 1, 2, 3]], "ulysses": [[0, 1], [2, 3]], "ring": [[0, 2], [1, 3]]},
    "2 2 1": {"sequence": [[0, 1], [2, 3]], "ulysses": [[0, 1], [2, 3]], "cfg": [[0, 2], [1, 3]]},
    "2 1 2": {"sequence": [[0, 1], [2, 3]], "ring": [[0, 1], [2, 3]], "cfg": [[0, 2], [1, 3]]},
    "1 2 1": {"sequence": [[0, 1]], "ulysses": [[0, 1]]},
    "2 1 1": {"cfg": [[0, 1]]},
    "1 1 1": {},
}
# Of each rank: which part of the tokens, which of the heads, which block of the keys, which pass.
PLACES = {
    "1 2 2": [[0, 0, 0, 0], [1, 1, 0, 0], [2, 0, 1, 0], [3, 1, 1, 0]],
    "2 2 1": [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1]],
    "2 1 2": [[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [1, 0, 1, 1]],
}
TIMEOUT_S = 2.0  # of the script
SLACK_S = 4.0  # for a busy machine


@pytest.fixture(scope="module")
def report(launch) -> dict:
    return launch("groups")


@pytest.mark.parametrize("layout", GROUPS)
def test_each_axis_joins_the_ranks_it_should(report, layout):
    everyone = list(range(len(report[layout])))
    for rank, found in enumerate(report[layout]):
        shared = {axis: next(r for r in families if rank in r) for axis, families in GROUPS[layout].items()}
        assert found["ranks"] == {"world": everyone, "control": everyone, **shared}


@pytest.mark.parametrize("layout", PLACES)
def test_each_rank_knows_its_part_on_every_axis(report, layout):
    assert [found["places"] for found in report[layout]] == PLACES[layout]


@pytest.mark.parametrize("layout", GROUPS)
def test_every_group_has_the_configured_timeout(report, layout):
    assert {seconds for found in report[layout] for seconds in found["timeouts"].values()} == {30.0}


@pytest.mark.parametrize("layout", GROUPS)
def test_the_leader_s_word_reaches_all(report, layout):
    assert {found["told"] for found in report[layout]} == {40}


@pytest.mark.parametrize("axes", ["world, ring, ulysses", "control, cfg, sequence"])
def test_a_silent_rank_is_waited_for_no_longer_than_the_timeout_on_any_axis(report, axes):
    *waiting, silent = report["silent"][axes]
    assert silent is None
    assert len(waiting) == 3
    for found in waiting:
        assert found["waited"]["type"] == "RuntimeError"
        assert TIMEOUT_S - 0.5 < found["waited"]["seconds"] < TIMEOUT_S + SLACK_S
        assert found["left"]["type"] is None
        assert found["left"]["seconds"] < SLACK_S
        assert found["closed"]


def test_a_rank_that_dies_is_noticed_at_once_and_the_other_can_leave(report):
    found, dead = report["dies"]
    assert dead is None
    assert found["waited"]["type"] == "RuntimeError"
    assert found["waited"]["seconds"] < SLACK_S
    assert found["left"]["seconds"] < 10 + SLACK_S
    assert found["closed"]


def test_a_rank_that_never_comes_is_a_gang_error_in_time_that_says_who_waited_where(report):
    *came, absent = report["never comes"]
    assert absent is None
    for rank, found in enumerate(came):
        assert found["missed"]["type"] == "GangError"
        assert TIMEOUT_S - 0.5 < found["missed"]["seconds"] < TIMEOUT_S + SLACK_S
        assert f"rank {rank} of 3 did not meet the others at 127.0.0.1:" in found["missed"]["message"]
        assert "within 2 s" in found["missed"]["message"]
        assert not found["open"]


def test_gangs_follow_one_another_in_one_process_but_never_two_at_a_time(report):
    for found in report["gang after gang"]:
        assert found["sums"] == [3, 3, 3]
        assert found["refused"]["type"] == "GangError"
        assert "still in another gang" in found["refused"]["message"]
        assert not found["open"]


def test_a_reserved_port_is_held_before_anyone_hears_of_it_and_free_once_closed():
    reservations = [reserve_address("127.0.0.1", timeout_s=5) for _ in range(30)]
    assert len({reservation.address for reservation in reservations}) == 30
    host, _, port = reservations[0].address.rpartition(":")
    with socket.socket() as thief:
        with pytest.raises(OSError) as refused:
            thief.bind((host, int(port)))
        assert refused.value.errno == errno.EADDRINUSE
    for reservation in reservations:
        reservation.close()
    with socket.create_server((host, int(port))):
        pass


def test_an_address_of_another_machine_cannot_be_reserved():
    with pytest.raises(GangError, match=r"rank 0 cannot listen at '192\.0\.2\.1'.*its own machine"):
        reserve_address("192.0.2.1", timeout_s=1)


def test_an_address_where_nobody_listens_is_a_gang_error_in_time():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(GangError, match=r"rank 1 of 2 did not meet the others at .* within 1\.5 s"):
        open_groups(Degrees(ulysses=2), rank=1, address=address, timeout_s=1.5, device=torch.device("cpu"))
    assert time.monotonic() - start < 1.5 + SLACK_S
