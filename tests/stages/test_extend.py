"""The extend stage against a server: labels stay true, records say what happened, nothing is asked twice."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_server import LlmServer
from PIL import Image

from wan_ray.errors import ExtenderError, RequestError
from wan_ray.extend_section import ExtendSection
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.extend import ExtendStage, fill
from wan_ray.stages.items import Item
from wan_ray.stages.publish import make_record
from wan_ray.variants import get_variant

WORDS = {"weather=fog": {"must_contain_any": ["fog", "foggy", "mist"], "must_not_contain": ["sunny"]}}


def test_a_reply_that_drops_fog_is_asked_for_again_and_then_the_prompt_runs_as_it_was(
    server: LlmServer, section_of: Any, item_of: Any
) -> None:
    server.write = lambda prompt, body: "A sunny road, wide and empty."
    item = item_of("A road in fog", labels={"weather": "fog"})
    ended = ExtendStage(section_of("dashscope", words=WORDS))(item)
    record = make_record(ended, run_id="r")
    assert (record.prompt, record.prompt_as_run) == ("A road in fog", "A road in fog")
    assert record.extension["prompt_source"] == "original"
    assert record.extension["reason"] == "two rewrites did not keep to weather=fog"
    assert (record.extension["extender"], record.extension["model"]) == ("dashscope", "qwen-plus")
    first, second = server.bodies
    assert len(second["input"]["messages"]) == 4
    assert second["input"]["messages"][2] == {"role": "assistant", "content": "A sunny road, wide and empty."}
    assert (
        'weather: fog. Use at least one of: "fog", "foggy", "mist". Never use: "sunny".'
        in (second["input"]["messages"][3]["content"])
    )
    assert first["input"]["messages"] == second["input"]["messages"][:2]


def test_fog_is_kept_without_any_words_where_the_prompt_names_it(
    server: LlmServer, section_of: Any, item_of: Any
) -> None:
    server.write = lambda prompt, body: "A road, wide and empty."
    ended = ExtendStage(section_of("openai"))(item_of("A road in fog", labels={"weather": "fog", "road": "rural"}))
    assert ended.extension["prompt_source"] == "original"
    assert ended.extension["unchecked_labels"] == ["road"]


def test_a_second_rewrite_that_keeps_to_the_label_is_taken(server: LlmServer, section_of: Any, item_of: Any) -> None:
    server.write = lambda prompt, body: "A road." if len(body["messages"]) == 2 else "A road in mist."
    ended = ExtendStage(section_of("openai", words=WORDS))(item_of("A road in fog", labels={"weather": "fog"}))
    assert ended.sound.prompt == "A road in mist."
    assert ended.extension["prompt_source"] == "second rewrite"
    assert ended.extension["reason"] == "the first rewrite did not keep to weather=fog"


def test_a_template_takes_the_place_where_the_config_has_one(server: LlmServer, section_of: Any, item_of: Any) -> None:
    server.write = lambda prompt, body: "A road."
    section = section_of("openai", words=WORDS, fallback_template="{prompt}, filmed from a car. Weather: {weather}.")
    ended = ExtendStage(section)(item_of("A {weather} road", labels={"weather": "fog"}))
    assert ended.sound.prompt == "A {weather} road, filmed from a car. Weather: fog."
    assert ended.extension["prompt_source"] == "template"


def test_a_template_leaves_out_labels_that_a_row_lacks() -> None:
    assert fill("{prompt} in {weather} at {time of day}", "A {b}", {"time of day": "dawn"}) == "A {b} in at dawn"


def test_equal_prompts_are_asked_once_and_a_later_run_asks_nothing(
    server: LlmServer, section_of: Any, item_of: Any, tmp_path: Path
) -> None:
    items = [item_of("A road", id="a"), item_of("A road", id="b"), item_of("A lane", id="c")]
    for _ in range(2):
        ended = ExtendStage(section_of("openai"), output=str(tmp_path)).extend(items)
        assert len({item.sound.prompt for item in ended}) == 2
    assert sum(server.asked.values()) == 2
    for change in ({"seed": 1}, {"model": "qwen-max"}, {"language": "zh"}, {"instructions": {"text": "Short."}}):
        ExtendStage(section_of("openai", **change), output=str(tmp_path)).extend(items[:1])
    assert sum(server.asked.values()) == 6


def test_rows_that_ask_for_nothing_or_failed_or_were_extended_are_left_alone(
    server: LlmServer, section_of: Any, item_of: Any
) -> None:
    stage = ExtendStage(section_of("openai"))
    plain = item_of("A road", extend_prompt=False)
    failed = item_of("A lane").failed("read", RequestError("no"))
    assert stage.extend([plain, failed]) == [plain, failed]
    once = stage(item_of("A street"))
    assert stage(once) == once
    assert len(server.asked) == 1


def frame(path: Path, seed: int) -> str:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (900, 1600, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.mark.parametrize("provider", ["dashscope", "openai"])
def test_first_and_last_frames_are_shown_small_to_the_model_that_sees(
    provider: str, server: LlmServer, section_of: Any, item_of: Any, tmp_path: Path
) -> None:
    media = {"image": frame(tmp_path / "a.png", 1), "last_image": frame(tmp_path / "b.png", 2)}
    section = section_of(provider, image_model="qwen-vl-max")
    items = [
        item_of("一辆车", variant="debug-flf2v", task="flf2v", **media),
        item_of("A car", variant="debug-i2v", task="i2v", image=media["image"]),
    ]
    flf2v, i2v = ExtendStage(section).extend(items)
    assert (flf2v.extension["language"], i2v.extension["language"]) == ("zh", "prompt")
    assert {item.extension["model"] for item in (flf2v, i2v)} == {"qwen-vl-max"}
    urls = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", repr(server.bodies))
    assert len(urls) == 3
    import base64
    import io

    sizes = {Image.open(io.BytesIO(base64.b64decode(url))).size for url in urls}
    assert sizes == {(682, 384)}


def test_flf2v_is_asked_for_in_chinese_unless_the_config_says(
    server: LlmServer, section_of: Any, item_of: Any, tmp_path: Path
) -> None:
    media = {"image": frame(tmp_path / "a.png", 1), "last_image": frame(tmp_path / "b.png", 2)}
    item = item_of("A car", variant="debug-flf2v", task="flf2v", **media)
    ExtendStage(section_of("openai")).extend([item])
    ExtendStage(section_of("openai", language="en")).extend([item])
    last = [body["messages"][-1]["content"][-1]["text"] for body in server.bodies]
    assert [text.rpartition("\n")[2] for text in last] == ["请用中文作答。", "Answer in English."]


def test_a_row_whose_picture_is_missing_fails_alone(
    server: LlmServer, section_of: Any, item_of: Any, tmp_path: Path
) -> None:
    lost = item_of("A car", variant="debug-i2v", task="i2v", image=str(tmp_path / "none.png"))
    failed, sound = ExtendStage(section_of("openai")).extend([lost, item_of("A van")])
    assert failed.failure is not None
    assert (failed.failure.stage, failed.failure.type) == ("extend", "RequestError")
    assert sound.extension["prompt_source"] == "rewrite"


def test_a_rewrite_too_long_to_render_is_none(server: LlmServer, section_of: Any, item_of: Any) -> None:
    server.write = lambda prompt, body: "word " * 1200
    with pytest.raises(ExtenderError, match="5999 characters, more than 5000"):
        ExtendStage(section_of("openai", on_failure="fail_row"))(item_of("A car"))


def test_an_extended_item_crosses_processes_whole(server: LlmServer, section_of: Any, item_of: Any) -> None:
    item = ExtendStage(section_of("openai"))(item_of("A car", labels={"a": "b"}))
    assert Item.from_row(item.to_row()) == item


def test_a_row_may_ask_for_a_rewrite_only_where_there_is_an_extender() -> None:
    request = RenderRequest(prompt="A car", extend_prompt=True)
    assert resolve(request, get_variant("debug"), extends=True).extend_prompt
    with pytest.raises(RequestError, match="add `extend` to the config"):
        resolve(request, get_variant("debug"))


def test_words_of_a_config_are_named_by_label_and_value() -> None:
    with pytest.raises(ValueError, match="'fog' is not of the form label=value"):
        ExtendSection(provider="dashscope", words={"fog": {}})
