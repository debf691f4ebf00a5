"""The same clip on any layout of ranks: cfg x ulysses x ring of them, against one process."""

import math

import pytest

LAYOUTS = ["1 2 1", "1 1 2", "2 1 1", "1 4 1", "1 2 2", "2 2 1", "2 1 2"]
TASKS = {"t2v", "t2i", "i2v", "flf2v", "vace"}
FEW_ROWS = "t2i one token"  # so few that one process's own products round otherwise than those of 16 rows


@pytest.fixture(scope="module")
def report(launch) -> dict:
    return launch("layouts")


def test_every_task_is_among_the_clips(report):
    assert {name.split()[0] for name in report["one process"]} == TASKS
    assert set(LAYOUTS) < set(report)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.endswith("1")])
def test_ulysses_and_cfg_give_the_bits_of_one_process(report, layout):
    (first, *_) = report[layout]
    differing = [name for name, bits in report["one process"].items() if first["cases"][name]["digest"] != bits]
    assert set(differing) <= {FEW_ROWS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_within_1e_5_of_one_process(report, layout):
    off = {name: case["off"] for rank in report[layout] for name, case in rank["cases"].items()}
    assert len(off) == len(report["one process"])
    assert max(off.values()) < 1e-5, off


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_hold_the_same_bits(report, layout):
    ranks = report[layout]
    assert len(ranks) == math.prod(map(int, layout.split()))
    for name in report["one process"]:
        assert len({rank["cases"][name]["digest"] for rank in ranks}) == 1, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_the_same_steps(report, layout):
    wanted = report["steps computed"]
    assert {wanted["t2v shortcuts"], wanted["vace shortcuts"]} <= {f"{n} of 6" for n in range(2, 6)}
    for rank in report[layout]:
        assert {name: case["computed"] for name, case in rank["cases"].items()} == wanted


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "2 1 1"])
def test_no_token_sees_the_pad_be_it_zero_large_or_not_a_number(report, layout):
    for rank in report[layout]:
        assert rank["pads"]["pad tokens"] > 0
        assert len(rank["pads"]["digests"]) == 3
        assert len(set(rank["pads"]["digests"])) == 1
        assert rank["pads"]["off"] < 1e-5
