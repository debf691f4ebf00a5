"""Whether a rewrite keeps to its labels, by words; and what is cut off of a reply."""

import pytest

from wan_ray.extend_section import ExtendWords
from wan_ray.prompt.checks import Truth, broken, cleaned, truths_of

FOG = Truth(label="weather", value="fog", any_of=("fog", "foggy", "dense mist", "雾"), none_of=("sunny", "clear sky"))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("A car in fog.", True),
        ("A FOGGY road", True),
        ("A road in dense\n mist", True),
        ("浓雾中的公路", True),
        ("A car in ｆｏｇ", True),
        ("A car on a road.", False),
        ("A fogbound road", False),
        ("There is no fog.", False),
        ("A road without any fog at all", False),
        ("路上没有雾", False),
        ("No fog at first, then fog rolls in", True),
        ("Fog on a sunny morning", False),
        ("Fog under a Clear  Sky", False),
        ("Fog on the sunnyside road", True),
    ],
)
def test_a_label_is_kept_by_its_words(text: str, holds: bool) -> None:
    assert FOG.holds_in(text) == holds
    assert broken(text, [FOG]) == ([] if holds else [FOG])


def test_a_label_without_words_must_stay_where_the_prompt_names_it() -> None:
    labels = {"weather": "fog", "road": "highway", "empty": " "}
    words = {"road=tunnel": ExtendWords(must_contain_any=("tunnel",))}
    truths = truths_of("A car in Fog", labels, words, same_language=True)
    assert [(truth.label, truth.any_of, truth.is_checked) for truth in truths] == [
        ("empty", (), False),
        ("road", (), False),
        ("weather", ("fog",), True),
    ]
    assert not any(truth.is_checked for truth in truths_of("A car in Fog", labels, words, same_language=False))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("  A car.\n\nIt moves.  ", "A car. It moves."),
        ("<think>\nwell\n</think>\nA car.", "A car."),
        ("```text\nA car.\n```", "A car."),
        ('"A car."', "A car."),
        ('"Go", he says, "now"', '"Go", he says, "now"'),
        ("“一辆车”", "一辆车"),
        ("A\x00 car\x1b", "A car"),
        ("", ""),
    ],
)
def test_a_reply_is_cut_down_to_the_rewrite(reply: str, text: str) -> None:
    assert cleaned(reply) == text
