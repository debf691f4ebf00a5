"""Extend: prompts of rows that ask for it are rewritten by a language model, checked against the rows' labels, kept."""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from wan_ray.errors import ExtenderError, RequestError, RunStoppedError, StageError, StorageError, WanRayError
from wan_ray.extend_section import ExtendCase, ExtendLanguage, ExtendSection
from wan_ray.media.image import load_image, small_png
from wan_ray.prompt.checks import Truth, broken, cleaned, truths_of
from wan_ray.prompt.extender import Extender, Messages, Picture, Reply
from wan_ray.prompt.providers import make_extender
from wan_ray.prompt.templates import Brief, build_messages, corrected, is_chinese
from wan_ray.request import MAX_PROMPT_CHARS
from wan_ray.resolved import ResolvedRequest
from wan_ray.stages.items import Item
from wan_ray.storage.blob import Store
from wan_ray.storage.prompts import KeptReply, PromptCache

_PICTURE_PIXELS = 512 * 512  # as much as the released code shows a model
_LOOK_S = 1.0  # between looks at what another run asks for
_CASES: dict[str, ExtendCase] = {"i2v": "first_frame", "flf2v": "first_last_frame", "vace": "vace"}
_FRAMES: dict[ExtendCase, tuple[str, ...]] = {"first_frame": ("image",), "first_last_frame": ("image", "last_image")}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """An item on its way to a rewrite. model, key, tries, lost: of the last time it was asked for."""

    item: Item
    truths: Sequence[Truth]
    messages: Messages
    language: ExtendLanguage
    model: str = ""
    key: str = ""
    tries: int = 0
    lost: Sequence[Truth] = ()

    @property
    def request(self) -> ResolvedRequest:
        return self.item.sound


class ExtendStage:
    """Owns the extender, made when the first row asks for it, and what it has answered.

    Without an output, replies are kept in this process. An item that was extended, or asks for nothing, is left alone.
    """

    def __init__(
        self,
        section: ExtendSection,
        *,
        output: str | None = None,
        run_id: str | None = None,
        make: Callable[[ExtendSection], Extender] = make_extender,
    ) -> None:
        self._section = section
        self._make = make
        self._extender: Extender | None = None
        token = uuid.uuid4().hex
        self._cache = PromptCache(Store(output or f"memory://wan-ray-{token}"), run_id or token)

    def __call__(self, item: Item) -> Item:
        """The item with its prompt rewritten; RequestError or ExtenderError when it cannot go on."""
        (outcome,) = self._outcomes([item])
        if isinstance(outcome, WanRayError):
            raise outcome
        return outcome

    def extend(self, items: Sequence[Item]) -> list[Item]:
        """The items in their order, asked about together and equal ones once; failed where one cannot go on.

        RunStoppedError when the service refuses everyone, or a failure is to stop the run.
        """
        outcomes = self._outcomes(items)
        return [
            item.failed("extend", outcome) if isinstance(outcome, WanRayError) else outcome
            for item, outcome in zip(self._with_extender(items, outcomes), outcomes, strict=True)
        ]

    def _with_extender(self, items: Sequence[Item], outcomes: Sequence[Item | WanRayError]) -> list[Item]:
        """The items, those that failed knowing who failed them."""
        told = {"prompt_source": "none", "extender": self._section.provider}
        return [
            replace(item, extension=told) if isinstance(outcome, ExtenderError) else item
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    def _outcomes(self, items: Sequence[Item]) -> list[Item | WanRayError]:
        outcomes: list[Item | WanRayError] = list(items)
        asked: dict[int, _Asked] = {}
        for position, item in enumerate(items):
            if item.failure is None and item.sound.extend_prompt and not item.extension:
                try:
                    asked[position] = self._asked(item)
                except (RequestError, StageError, StorageError) as error:  # its picture cannot be had
                    outcomes[position] = error
        while asked:
            asked = {position: self._addressed(one) for position, one in asked.items()}
            replies = self._replies({one.key: one for one in asked.values()})
            again: dict[int, _Asked] = {}
            for position, one in asked.items():
                found = self._judged(one, replies[one.key])
                if isinstance(found, _Asked):
                    again[position] = found
                else:
                    outcomes[position] = found
            asked = again
        return outcomes

    def _asked(self, item: Item) -> _Asked:
        request = item.sound
        case = _CASES.get(request.task, "text")
        language = self._section.language or ("zh" if request.task == "flf2v" else "prompt")
        same = language == "prompt" or (language == "zh") == is_chinese(request.prompt)
        truths = truths_of(request.prompt, request.labels, self._section.words, same_language=same)
        frames = [request.media[name][0] for name in _FRAMES.get(case, ())]
        brief = Brief(
            prompt=request.prompt,
            case=case,
            language=language,
            truths=truths,
            pictures=tuple(_picture(source, name) for source, name in zip(frames, _FRAMES.get(case, ()), strict=True)),
        )
        messages = build_messages(brief, self._section.instructions)
        return _Asked(item=item, truths=truths, messages=messages, language=language)

    def _addressed(self, one: _Asked) -> _Asked:
        """With the model that will answer, and the hash of all that its answer follows from."""
        if self._extender is None:
            self._extender = self._make(self._section)
        model = self._extender.model_for(one.messages)
        turns = [[m.role, m.text, [picture.digest for picture in m.pictures]] for m in one.messages]
        told = [self._extender.name, model, dict(self._extender.settings), turns]
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return replace(one, model=model, key=key)

    def _replies(self, asked: Mapping[str, _Asked]) -> dict[str, KeptReply | ExtenderError]:
        """What each key is answered: kept ones as they were, the others by the model, each once in all runs."""
        found: dict[str, KeptReply | ExtenderError] = {}
        while True:
            mine: dict[str, _Asked] = {}
            try:
                for key in (key for key in asked if key not in found):
                    if (kept := self._cache.get(key)) is None and self._cache.claim(key):
                        mine[key] = asked[key]
                        # Again: it may have been answered, and its claim given up, just before ours.
                        kept = self._cache.get(key)
                        if kept is not None:
                            self._cache.drop(key)
                    if kept is not None:
                        found[key] = kept
                self._ask_(found, {key: one for key, one in mine.items() if key not in found})
            finally:
                for key in mine:
                    if not isinstance(found.get(key), KeptReply):
                        self._cache.drop(key)
            if len(found) == len(asked):
                return found
            time.sleep(_LOOK_S)

    def _ask_(self, found: dict[str, KeptReply | ExtenderError], mine: Mapping[str, _Asked]) -> None:
        """Ask for these, whose claims are ours, into found; a reply is kept the moment it comes."""
        if not mine:
            return
        extender, keys = self._extender, list(mine)
        assert extender is not None

        def keep(position: int, reply: Reply) -> None:
            one = mine[keys[position]]
            kept = KeptReply(
                text=reply.text,
                num_tokens=reply.num_tokens,
                extender=extender.name,
                model=one.model,
                prompt=one.request.prompt,
                settings=extender.settings,
            )
            found[one.key] = self._cache.put(one.key, kept)
            self._cache.drop(one.key)

        for key, outcome in zip(keys, extender.ask([mine[key].messages for key in keys], keep), strict=True):
            if isinstance(outcome, ExtenderError):
                found[key] = outcome

    def _judged(self, one: _Asked, reply: KeptReply | ExtenderError) -> Item | WanRayError | _Asked:
        """The item with a prompt to run, an error that fails it, or what to ask once more."""
        if isinstance(reply, ExtenderError):
            return self._without(one, reply)
        text = cleaned(reply.text)
        if not text or len(text) > MAX_PROMPT_CHARS:
            length = f"{len(text)} characters, more than {MAX_PROMPT_CHARS}" if text else "no text"
            return self._without(one, ExtenderError(f"{one.model}: a rewrite of {length}"))
        lost = broken(text, one.truths)
        if not lost:
            return self._extended(one, text, "rewrite" if one.tries == 0 else "second rewrite", _reason(one))
        if one.tries == 0:
            return replace(one, messages=corrected(one.messages, reply.text, lost), tries=1, lost=lost)
        text, source = self._fallback(one.request)
        return self._extended(one, text, source, f"two rewrites did not keep to {_named(lost)}")

    def _without(self, one: _Asked, error: ExtenderError) -> Item | WanRayError:
        """What becomes of a row for which there is no rewrite."""
        if self._section.on_failure == "stop":
            raise RunStoppedError(f"row {one.item.id!r}: {error}; extend.on_failure is 'stop'")
        if self._section.on_failure == "fail_row":
            return error
        text, source = self._fallback(one.request)
        return self._extended(one, text, source, str(error))

    def _fallback(self, request: ResolvedRequest) -> tuple[str, str]:
        template = self._section.fallback_template or ""
        filled = fill(template, request.prompt, request.labels)[:MAX_PROMPT_CHARS]
        return (filled, "template") if filled else (request.prompt, "original")

    def _extended(self, one: _Asked, text: str, source: str, reason: str | None) -> Item:
        extension: dict[str, JsonValue] = {
            "prompt_source": source,
            "extender": self._section.provider,
            "model": one.model,
            "language": one.language,
            "reply": one.key,
            **({"reason": reason} if reason else {}),
        }
        if unchecked := [truth.label for truth in one.truths if not truth.is_checked]:
            extension["unchecked_labels"] = [*unchecked]
        return replace(one.item, request=replace(one.request, prompt=text), extension=extension)


def fill(template: str, prompt: str, labels: Mapping[str, str]) -> str:
    """The template with {prompt} and labels in place; a label that the row lacks becomes nothing."""
    values = {**labels, "prompt": prompt}
    return " ".join(re.sub(r"\{([^{}]+)\}", lambda found: values.get(found[1], ""), template).split())


def _reason(one: _Asked) -> str | None:
    return f"the first rewrite did not keep to {_named(one.lost)}" if one.lost else None


def _named(truths: Sequence[Truth]) -> str:
    return ", ".join(f"{truth.label}={truth.value}" for truth in truths)


def _picture(source: str, what: str) -> Picture:
    frame = load_image(source, what=what)
    digest = hashlib.sha256(f"{frame.shape}".encode() + frame.tobytes()).hexdigest()
    return Picture(digest=digest, png=small_png(frame, max_pixels=_PICTURE_PIXELS))
