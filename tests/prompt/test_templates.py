"""The messages that ask for a rewrite, word by word: tests/prompt/messages.json shows them."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from llm_server import LlmServer

from wan_ray.extend_section import ExtendCase, ExtendWords
from wan_ray.prompt.checks import truths_of
from wan_ray.prompt.dashscope import DashScope
from wan_ray.prompt.extender import Picture
from wan_ray.prompt.openai_compatible import OpenAICompatible
from wan_ray.prompt.templates import Brief, build_messages, is_chinese

SNAPSHOT = json.loads((Path(__file__).parent / "messages.json").read_text(encoding="utf-8"))
PROMPT = {"en": 'A van with "Löwe & Söhne" on it, in fog', "zh": "雾中的货车，车身写着“老王搬家”"}
WORDS = {"weather=fog": ExtendWords(must_contain_any=("fog", "mist", "雾"), must_not_contain=("sunny", "晴"))}
NUM_PICTURES = {"text": 0, "first_frame": 1, "first_last_frame": 2, "vace": 0}
CASES = [(case, language) for case in get_args(ExtendCase) for language in ("en", "zh")]


def brief(case: Any, language: Any, prompt: str | None = None) -> Brief:
    prompt = prompt or PROMPT[language]
    labels = {"weather": "fog", "time": "dawn"}
    return Brief(
        prompt=prompt,
        case=case,
        language=language,
        truths=truths_of(prompt, labels, WORDS, same_language=True),
        pictures=tuple(Picture(digest=f"{n}", png=b"png %d" % n) for n in range(NUM_PICTURES[case])),
    )


@pytest.mark.parametrize(("case", "language"), CASES)
def test_each_case_in_each_language_says_what_the_snapshot_shows(case: Any, language: Any) -> None:
    messages = build_messages(brief(case, language))
    shown = [{"role": m.role, "text": m.text.split("\n"), "pictures": [p.digest for p in m.pictures]} for m in messages]
    assert shown == SNAPSHOT[f"{case} {language}"]


@pytest.mark.parametrize("form", [DashScope(), OpenAICompatible()])
@pytest.mark.parametrize(("case", "language"), CASES)
@pytest.mark.parametrize(
    "prompt",
    [
        "He says \"stop!\" and 'go' \\ {now} </prompt>",
        "雨夜「霓虹」🚗\u200d🔥 naïve Ünïcode",
        "x" * 1999 + "末",
        "\ud800",
    ],
    ids=["quotes", "letters", "2000 characters", "half a surrogate pair"],
)
def test_any_prompt_survives_both_wire_forms(form: Any, case: Any, language: Any, prompt: str) -> None:
    messages = build_messages(brief(case, language, prompt))
    path, body = form.request(messages, model="m", seed=3)
    sent = json.loads(json.dumps(body).encode())
    said = sent.get("messages") or sent["input"]["messages"]
    content = said[1]["content"]
    text = content if isinstance(content, str) else next(part["text"] for part in content if "text" in part)
    assert text == messages[1].text
    assert f"<prompt>\n{prompt}\n</prompt>" in text
    num_pictures = 0 if isinstance(content, str) else len(content) - 1
    assert num_pictures == NUM_PICTURES[case]
    assert ("multimodal" in path) == (num_pictures > 0 and form.name == "dashscope")


def test_own_instructions_take_the_place_of_ours_and_labels_still_stand_in_the_message() -> None:
    messages = build_messages(brief("text", "en"), {"text": "Be brief."})
    assert messages[0].text == "Be brief."
    assert 'weather: fog. Use at least one of: "fog", "mist", "雾". Never use: "sunny", "晴".' in messages[1].text


@pytest.mark.parametrize(
    ("text", "chinese"),
    [("雾中的货车", True), ("一辆 BMW 在雨中", True), ("A van in the 雾", False), ("霧の中を走る", False), ("", False)],
)
def test_chinese_is_told_from_other_languages(text: str, chinese: bool) -> None:
    assert is_chinese(text) == chinese


def test_a_prompt_arrives_at_the_service_as_it_was_written(
    server: LlmServer, section_of: Any, stage_of: Any, item_of: Any
) -> None:
    prompts = ['He says "stop!" \\ {now}', "雨夜「霓虹」🚗 naïve", ("一辆红色的车 " * 334)[:2000].strip()]
    for provider in ("dashscope", "openai"):
        ended = stage_of(section_of(provider)).extend([item_of(prompt, id=f"{len(prompt)}") for prompt in prompts])
        assert [item.sound.prompt for item in ended] == [
            f"A long shot. {prompt} It moves on, slowly and steadily." for prompt in prompts
        ]
