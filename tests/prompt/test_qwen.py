"""Qwen in this process: tiny random models in the released layout, made on the spot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wan_ray.errors import ConfigError, ExtenderError
from wan_ray.extend_section import ExtendSection
from wan_ray.media.image import small_png
from wan_ray.prompt.extender import Message, Messages, Picture, Reply
from wan_ray.prompt.qwen import QwenExtender
from wan_ray.stages.extend import ExtendStage

PROMPTS = [
    "A road",
    "雨夜的街道，霓虹灯倒影",
    "A red car drives along a sunny highway " * 4,
    "fog",
    "A <|im_end|> sign",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    from tiny_qwen import write_tiny_qwen

    folder = tmp_path_factory.mktemp("qwen")
    return {
        "model": str(write_tiny_qwen(folder / "text", sees=False)),
        "image_model": str(write_tiny_qwen(folder / "sees", sees=True)),
    }


def picture(seed: int, width: int) -> Picture:
    frame = np.random.default_rng(seed).integers(0, 255, (60, width, 3), dtype=np.uint8)
    return Picture(digest=str(seed), png=small_png(frame, max_pixels=512 * 512))


def asked(prompt: str, *pictures: Picture) -> Messages:
    return (Message(role="system", text="Rewrite."), Message(role="user", text=prompt, pictures=pictures))


def answers(models: dict[str, str], rows: list[Messages], rows_at_once: int) -> list[str]:
    section = ExtendSection(provider="qwen", rows_at_once=rows_at_once, device="cpu", **models)  # type: ignore[arg-type]
    kept: dict[int, Reply] = {}
    outcomes = QwenExtender(section, max_new_tokens=40).ask(rows, kept.__setitem__)
    assert kept == {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, Reply)}
    return [outcome.text if isinstance(outcome, Reply) else str(outcome) for outcome in outcomes]


def test_texts_in_a_batch_are_answered_as_one_by_one(models: dict[str, str]) -> None:
    rows = [asked(prompt) for prompt in PROMPTS]
    together, alone = answers(models, rows, 8), answers(models, rows, 1)
    assert together == alone
    assert len({text for text in alone if "did not come to an end" not in text}) >= 3


def test_pictures_in_a_batch_are_answered_as_one_by_one_and_matter(models: dict[str, str]) -> None:
    first, second, wide = picture(1, 60), picture(2, 60), picture(3, 180)
    rows = [asked(PROMPTS[0], first), asked(PROMPTS[0], second), asked(PROMPTS[1], first, wide), asked(PROMPTS[2])]
    together, alone = answers(models, rows, 8), answers(models, rows, 1)
    assert together == alone
    assert alone[0] != alone[1]


def test_the_pictures_stand_where_the_released_processor_puts_them(models: dict[str, str]) -> None:
    """The processor itself wants torchvision; its two parts, and the model, which counts places, do not."""
    section = ExtendSection(provider="qwen", device="cpu", **models)  # type: ignore[arg-type]
    qwen = QwenExtender(section)._qwen(models["image_model"], sees=True)
    inputs = qwen._inputs([asked("A <|image_pad|> road", picture(1, 60), picture(3, 180))])
    shown = qwen._tokenizer.decode(inputs["input_ids"][0])
    places = [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
    pads = ["<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in places]
    assert shown.endswith(
        f"<|im_start|>user\n{pads[0]}{pads[1]}A < |image_pad|> road<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_without_an_end_is_no_rewrite(models: dict[str, str]) -> None:
    section = ExtendSection(provider="qwen", device="cpu", **models)  # type: ignore[arg-type]
    qwen = QwenExtender(section, max_new_tokens=3)._qwen(models["model"], sees=False)
    assert isinstance(qwen._outcome([65, 66, 67], 5), ExtenderError)
    assert qwen._outcome([65, 66, 12], 5) == Reply(text=qwen._tokenizer.decode([65, 66]), num_tokens=8)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    section = ExtendSection(provider="qwen", model=str(tmp_path / "none"), device="cpu")
    with pytest.raises(ConfigError, match=r"extend.model='.*none' cannot be loaded"):
        QwenExtender(section).ask([asked("A road")], lambda *_: None)


def test_the_released_names_are_those_on_the_hub() -> None:
    extender = QwenExtender(ExtendSection(provider="qwen", model="Qwen2.5_3B"))
    assert extender.model_for(asked("A road")) == "Qwen/Qwen2.5-3B-Instruct"
    assert extender.model_for(asked("A road", picture(1, 60))) == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_rows_of_texts_and_pictures_go_through_the_stage(models: dict[str, str], item_of: Any, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "a.png")
    items = [item_of(prompt, id=f"{n}") for n, prompt in enumerate(PROMPTS)]
    items.append(item_of("A car", variant="debug-i2v", task="i2v", image=str(tmp_path / "a.png")))
    section = ExtendSection(provider="qwen", device="cpu", **models)  # type: ignore[arg-type]
    ended = ExtendStage(section, make=lambda section: QwenExtender(section, max_new_tokens=40)).extend(items)
    assert [item.failure for item in ended] == [None] * len(items)
    assert ended[-1].extension["model"] == models["image_model"]
