"""Qwen2.5 and Qwen2.5-VL in this process, through transformers: greedy, in batches. Torch is loaded with the model."""

import inspect
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from wan_ray.errors import ConfigError, ExtenderError
from wan_ray.extend_section import ExtendSection
from wan_ray.prompt.extender import Message, Messages, OnReply, Picture, Reply, has_pictures

if TYPE_CHECKING:
    import torch

MAX_NEW_TOKENS = 512
_NAMES = {  # as the released code calls them
    "Qwen2.5_3B": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen2.5_7B": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen2.5_14B": "Qwen/Qwen2.5-14B-Instruct",
    "QwenVL2.5_3B": "Qwen/Qwen2.5-VL-3B-Instruct",
    "QwenVL2.5_7B": "Qwen/Qwen2.5-VL-7B-Instruct",
}
_MODEL, _IMAGE_MODEL = "Qwen2.5_14B", "QwenVL2.5_7B"
_PICTURE = "<|image_pad|>"


class QwenExtender:
    """Holds the models that were needed so far: one for texts, one for pictures."""

    def __init__(self, section: ExtendSection, *, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.name = "qwen"
        self._model, self._image_model = section.model or _MODEL, section.image_model or _IMAGE_MODEL
        self._rows_at_once = section.rows_at_once
        self._dtype, self._device = section.dtype, section.device
        self._max_new_tokens = max_new_tokens
        self._loaded: dict[str, _Qwen] = {}
        self.settings: Mapping[str, JsonValue] = {"max_new_tokens": max_new_tokens, "dtype": section.dtype}

    def model_for(self, messages: Messages) -> str:
        """The one that sees, where there are pictures; a folder, or a name on the hub."""
        name = self._image_model if has_pictures(messages) else self._model
        return _NAMES.get(name, name)

    def ask(self, asked: Sequence[Messages], on_reply: OnReply) -> list[Reply | ExtenderError]:
        """Those of one model together, rows_at_once at a time. ConfigError when a model cannot be loaded."""
        outcomes: dict[int, Reply | ExtenderError] = {}
        by_model: dict[str, list[int]] = {}
        for position, messages in enumerate(asked):
            by_model.setdefault(self.model_for(messages), []).append(position)
        for name, positions in by_model.items():
            model = self._qwen(name, sees=has_pictures(asked[positions[0]]))
            # Of one length or nearly: the shorter ones of a batch are padded.
            positions.sort(key=lambda position: sum(len(message.text) for message in asked[position]))
            for first in range(0, len(positions), self._rows_at_once):
                batch = positions[first : first + self._rows_at_once]
                for position, outcome in zip(batch, model.answer([asked[one] for one in batch]), strict=True):
                    outcomes[position] = outcome
                    if isinstance(outcome, Reply):
                        on_reply(position, outcome)
        return [outcomes[position] for position in range(len(asked))]

    def _qwen(self, name: str, *, sees: bool) -> "_Qwen":
        if name not in self._loaded:
            try:
                self._loaded[name] = _Qwen(
                    name, sees=sees, dtype=self._dtype, device=self._device, max_new_tokens=self._max_new_tokens
                )
            except (OSError, ValueError) as error:
                setting = "image_model" if sees else "model"
                raise ConfigError(f"extend.{setting}={name!r} cannot be loaded: {str(error)[:500]}") from error
        return self._loaded[name]


class _Qwen:
    """One model with its tokenizer, on one device."""

    def __init__(self, name: str, *, sees: bool, dtype: str, device: str, max_new_tokens: int) -> None:
        import torch
        import transformers

        on_gpu = device != "cpu" and torch.cuda.is_available()
        if device == "cuda" and not on_gpu:
            raise ConfigError("extend.device='cuda', but no GPU is visible here; use 'auto' or give stages.extend GPUs")
        chosen = ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._max_new_tokens = max_new_tokens
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, padding_side="left")
        kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        model: Any = kind.from_pretrained(name, torch_dtype=getattr(torch, chosen))
        self._model = model.to(self._device).eval()
        # The processor of the two would want torchvision, for videos.
        self._pictures: Any = transformers.AutoImageProcessor.from_pretrained(name) if sees else None
        self._tokenizer = tokenizer
        self._picture_id: int = tokenizer.convert_tokens_to_ids(_PICTURE)
        self._wants_token_types = "mm_token_type_ids" in inspect.signature(model.forward).parameters
        stops = model.generation_config.eos_token_id
        self._stops = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id}

    def answer(self, asked: Sequence[Messages]) -> list[Reply | ExtenderError]:
        """One batch: greedy, so the same words whenever it is asked the same; up to rounding, in any company."""
        import torch

        inputs = self._inputs(asked)
        with torch.inference_mode():
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        num_read = inputs["attention_mask"].sum(1).tolist()
        written = tokens[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._outcome(ids, int(count)) for ids, count in zip(written, num_read, strict=True)]

    def _outcome(self, ids: list[int], num_read: int) -> Reply | ExtenderError:
        end = next((i for i, token in enumerate(ids) if token in self._stops), None)
        if end is None:
            return ExtenderError(f"qwen did not come to an end within {self._max_new_tokens} tokens")
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Reply(text=text, num_tokens=num_read + end + 1)

    def _inputs(self, asked: Sequence[Messages]) -> "dict[str, torch.Tensor]":
        pictures = [picture for messages in asked for message in messages for picture in message.pictures]
        seen = (
            self._pictures(images=[_opened(picture) for picture in pictures], return_tensors="pt") if pictures else {}
        )
        counts = iter(self._num_places(seen) if pictures else [])
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": m.role, "content": _content(m, counts)} for m in messages],
                tokenize=False,
                add_generation_prompt=True,
            )
            for messages in asked
        ]
        inputs = dict(self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False))
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")} | dict(seen)
        if pictures and self._wants_token_types:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._picture_id).int()
        return {name: value.to(self._device) for name, value in inputs.items()}

    def _num_places(self, seen: Mapping[str, Any]) -> list[int]:
        """How many tokens stand for each picture."""
        merged = self._pictures.merge_size**2
        return [int(grid.prod()) // merged for grid in seen["image_grid_thw"]]


def _content(message: Message, counts: Any) -> str:
    pictures = "".join(f"<|vision_start|>{_PICTURE * next(counts)}<|vision_end|>" for _ in message.pictures)
    return pictures + message.text.replace("<|", "< |")  # no prompt ends a turn, or shows a picture


def _opened(picture: Picture) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(picture.png)).convert("RGB")
