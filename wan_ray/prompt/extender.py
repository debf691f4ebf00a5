"""What goes to a language model and what comes back. Who carries it there is in the modules beside this one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import JsonValue

from wan_ray.errors import ExtenderError


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small PNG for a model to look at; digest is of the pixels it was made from."""

    digest: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat; its pictures come before its text."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()


Messages = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model wrote; num_tokens counts what was read and written, as far as it is known."""

    text: str
    num_tokens: int


OnReply = Callable[[int, Reply], None]


class Extender(Protocol):
    """Carries messages to a model. settings: what else a reply follows from, such as the seed; no secrets."""

    name: str
    settings: Mapping[str, JsonValue]

    def model_for(self, messages: Messages) -> str:
        """The model that will answer."""
        ...

    def ask(self, asked: Sequence[Messages], on_reply: OnReply) -> list[Reply | ExtenderError]:
        """The outcome of each. RunStoppedError when no other row could fare better.

        Each reply is handed to on_reply the moment it is there, by any thread, also while this is being interrupted.
        """
        ...


def has_pictures(messages: Messages) -> bool:
    """Whether a model must be able to see to answer."""
    return any(message.pictures for message in messages)
