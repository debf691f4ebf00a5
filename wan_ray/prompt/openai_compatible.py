"""OpenAI's chat completions, as vLLM, SGLang, DashScope's compatible mode and many others speak them."""

from typing import Any

from pydantic import JsonValue

from wan_ray.prompt.dashscope import data_url
from wan_ray.prompt.extender import Message, Messages, Reply

BASE_URL = "https://api.openai.com/v1"


class OpenAICompatible:
    """One path for texts and pictures."""

    name = "openai"
    key_name = "OPENAI_API_KEY"

    def request(self, messages: Messages, *, model: str, seed: int) -> tuple[str, dict[str, JsonValue]]:
        """Path below the base URL, and body."""
        said: list[JsonValue] = [{"role": message.role, "content": _content(message)} for message in messages]
        return "chat/completions", {"model": model, "messages": said, "seed": seed}

    def reply(self, answer: Any) -> Reply:
        """The first choice's text."""
        choice = answer["choices"][0]
        if choice.get("finish_reason") == "length":
            raise ValueError("cut at the longest answer the model gives")
        text = choice["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}, not text")
        return Reply(text=text, num_tokens=int((answer.get("usage") or {}).get("total_tokens", 0)))


def _content(message: Message) -> JsonValue:
    if not message.pictures:
        return message.text
    pictures: list[JsonValue] = [
        {"type": "image_url", "image_url": {"url": data_url(picture.png)}} for picture in message.pictures
    ]
    return [*pictures, {"type": "text", "text": message.text}]
