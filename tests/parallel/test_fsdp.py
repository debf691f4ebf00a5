"""Weights in shares (FSDP2): the same clip, and no rank that ever holds all of them."""

import pytest

LAYOUTS = ["1 2 1", "1 1 2", "2 2 1"]
KINDS = ["t2v", "flf2v", "vace"]


@pytest.fixture(scope="module")
def report(launch) -> dict:
    return launch("fsdp")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.endswith("1")])
def test_shared_weights_give_the_bits_of_one_process(report, layout):
    for rank in report[layout]:
        assert set(rank["kinds"]) == set(KINDS)
        assert [kind for kind, found in rank["kinds"].items() if found["digest"] != found["wanted"]] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_weights_are_within_1e_5_of_one_process_and_the_same_on_all_ranks(report, layout):
    for kind in KINDS:
        assert max(rank["kinds"][kind]["off"] for rank in report[layout]) < 1e-5
        assert len({rank["kinds"][kind]["digest"] for rank in report[layout]}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_encoder_in_shares_embeds_to_the_bits_of_a_whole_one(report, layout):
    assert all(rank["text"]["equal"] for rank in report[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ranks_shares_are_even_and_make_one_whole(report, layout):
    ranks = report[layout]
    parts = [[rank["text"]["share"] for rank in ranks]]
    parts += [[rank["kinds"][kind]["share"] for rank in ranks] for kind in KINDS]
    for shares in parts:
        assert sum(shares) == pytest.approx(1)
    # FLF2V's debug model is mostly one tensor whose first dimension is 1, which cannot be divided.
    for shares in (shares for kind, shares in zip(["text", *KINDS], parts, strict=True) if kind != "flf2v"):
        assert max(shares) == pytest.approx(1 / len(ranks), rel=0.02)


def test_no_rank_ever_holds_all_weights_neither_loading_nor_running(report):
    for rank in report["memory"]:
        one_block = rank["whole"] / 12
        assert rank["held"] == pytest.approx(rank["whole"] / 2, rel=0.01)
        assert rank["loading"] < rank["held"] + one_block
        assert rank["held"] < rank["peak"] < rank["whole"]
        assert rank["blocks"] == 1


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_weights_in_host_memory_give_the_same_bits(report, offload):
    assert report["offload"][offload] == dict.fromkeys(KINDS, True)
