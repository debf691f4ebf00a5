"""DashScope's own wire form: Qwen by Alibaba Cloud Model Studio, texts and pictures by different paths."""

import base64
from typing import Any

from pydantic import JsonValue

from wan_ray.prompt.extender import Message, Messages, Reply, has_pictures

BASE_URL = "https://dashscope.aliyuncs.com/api/v1"
MODEL, IMAGE_MODEL = "qwen-plus", "qwen-vl-max"


class DashScope:
    """Picture data travels in the body, as a data URL: nothing is uploaded beforehand."""

    name = "dashscope"
    key_name = "DASH_API_KEY"

    def request(self, messages: Messages, *, model: str, seed: int) -> tuple[str, dict[str, JsonValue]]:
        """Path below the base URL, and body."""
        with_pictures = has_pictures(messages)
        said: list[JsonValue] = [
            _with_parts(m) if with_pictures else {"role": m.role, "content": m.text} for m in messages
        ]
        kind = "multimodal" if with_pictures else "text"
        return f"services/aigc/{kind}-generation/generation", {
            "model": model,
            "input": {"messages": said},
            "parameters": {"seed": seed, "result_format": "message"},
        }

    def reply(self, answer: Any) -> Reply:
        """The first choice's text, which of a model that sees comes in parts."""
        choice = answer["output"]["choices"][0]
        if choice.get("finish_reason") == "length":
            raise ValueError("cut at the longest answer the model gives")
        content = choice["message"]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        usage = answer.get("usage") or {}
        total = usage.get("total_tokens") or usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
        return Reply(text=text, num_tokens=int(total))


def _with_parts(message: Message) -> JsonValue:
    pictures: list[JsonValue] = [{"image": data_url(picture.png)} for picture in message.pictures]
    return {"role": message.role, "content": [*pictures, {"text": message.text}]}


def data_url(png: bytes) -> str:
    """The PNG as a URL that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
