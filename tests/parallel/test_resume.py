"""A clip that is stopped at a step and gone on with, on the same or another layout of ranks."""

import pytest

LAYOUTS = [
    "cfg1 x ulysses1 x ring1",
    "cfg1 x ulysses2 x ring1",
    "cfg1 x ulysses1 x ring2",
    "cfg2 x ulysses1 x ring1",
    "cfg2 x ulysses2 x ring1",
]
SOLVERS = ["unipc", "dpm++", "euler"]


@pytest.fixture(scope="module")
def report(launch) -> dict:
    return launch("resume")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_all_ranks_stop_before_the_step_where_rank_0_is_told_to_and_no_other_rank_decides(report, layout, solver):
    first, *others = [rank[solver] for rank in report["stopped"][layout]]
    assert first == {"steps": [1, 2, 3], "stopped": "stopped after 3 of 6 steps: preempted", "saved": 1}
    for other in others:
        assert other == {"steps": [1, 2, 3], "stopped": "stopped after 3 of 6 steps: as rank 0 was told", "saved": 0}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_clip_goes_on_where_it_was_on_any_layout_and_ends_as_if_never_stopped(report, solver):
    assert len(report["moves"]) == 7
    for move in report["moves"]:
        for rank in move["ranks"]:
            assert rank[solver]["steps"] == [4, 5, 6]
            assert rank[solver]["off"] < 1e-5
        exact = "ring2" not in move["before"] + move["after"]
        bits = {rank[solver]["digest"] for rank in move["ranks"]}
        assert len(bits) == 1
        assert not exact or bits == {report["wanted"][solver]}, move["before"] + " to " + move["after"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_on_the_same_ring_too_a_stop_changes_no_bit(report, solver):
    (same,) = [move for move in report["moves"] if "ring2" in move["before"] and move["before"] == move["after"]]
    (whole, *_) = report["ring"]
    assert whole[solver]["steps"] == [1, 2, 3, 4, 5, 6]
    assert {rank[solver]["digest"] for rank in same["ranks"]} == {whole[solver]["digest"]}


@pytest.mark.parametrize(("cause", "why"), [("deadline", "late"), ("cancel", "cancelled")])
def test_a_deadline_or_a_cancel_in_the_middle_of_a_step_stops_all_ranks_at_the_same_one(report, cause, why):
    ends = [rank[cause] for rank in report["at any time"]]
    assert len(ends) == 4
    assert len({tuple(end["steps"]) for end in ends}) == 1
    done = len(ends[0]["steps"])
    assert done < 500
    assert ends[0]["stopped"] == f"stopped after {done} of 500 steps: {why}"
    assert {end["stopped"] for end in ends[1:]} == {f"stopped after {done} of 500 steps: as rank 0 was told"}


def test_no_rank_takes_up_what_was_saved_of_another_clip(report):
    assert len(report["of another"]) == 2
    for said in report["of another"]:
        assert said.startswith("what was saved is another clip's: seed '12' instead of '11'")
