"""What a rewrite must keep true, and whether it does: words looked for in text, no model asked."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wan_ray.extend_section import ExtendWords

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_FENCE = re.compile(r"\A```[a-z]*\n(.*)\n```\Z", re.DOTALL)
_QUOTES = ('""', "“”", "「」", "''")
_LATIN = "0-9A-Za-z_\u00c0-\u024f"  # the scripts that set spaces between words
_NOT = r"(?:\b(?:no|not|without|never)\s+(?:(?:any|a|an|the)\s+)?|\bnon-|没有|不是|并非|毫无|无)"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A label and the words that show whether text keeps to it: one of any_of, if any, and none of none_of."""

    label: str
    value: str
    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()

    @property
    def is_checked(self) -> bool:
        """Whether there are words to look for."""
        return bool(self.any_of or self.none_of)

    def holds_in(self, text: str) -> bool:
        """A word of any_of behind a "no" does not count; one of none_of counts wherever it stands."""
        kept = not self.any_of or any(_found(word, text, unless=_NOT) for word in self.any_of)
        return kept and not any(_found(word, text) for word in self.none_of)


def truths_of(
    prompt: str, labels: Mapping[str, str], words: Mapping[str, ExtendWords], *, same_language: bool
) -> list[Truth]:
    """One for each label. words go by "label=value".

    A label without words whose value the prompt itself names must be named in the rewrite too, in the same language.
    """
    truths = []
    for label, value in sorted(labels.items()):
        given = words.get(f"{label}={value}")
        if given is not None:
            any_of, none_of = given.must_contain_any, given.must_not_contain
        else:
            any_of, none_of = ((value,) if same_language and value.strip() and _found(value, prompt) else ()), ()
        truths.append(Truth(label=label, value=value, any_of=any_of, none_of=none_of))
    return truths


def broken(text: str, truths: Sequence[Truth]) -> list[Truth]:
    """Those that do not hold in the text."""
    return [truth for truth in truths if not truth.holds_in(text)]


def cleaned(text: str) -> str:
    """The rewrite alone, in one line: without a model's thoughts, a fence, or quotation marks around the whole."""
    text = _THINKING.sub("", _CONTROL.sub("", text)).strip()
    if fenced := _FENCE.match(text):
        text = fenced.group(1)
    text = " ".join(text.split())
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == first and text[-1] == last and first not in inner and last not in inner:
            return inner.strip()
    return text


def _found(word: str, text: str, *, unless: str | None = None) -> bool:
    pattern = r"\s+".join(re.escape(part) for part in _folded(word).split())
    latin = re.compile(f"[{_LATIN}]")
    before = f"(?<![{_LATIN}])" if latin.match(_folded(word)[:1]) else ""
    after = f"(?![{_LATIN}])" if latin.match(_folded(word)[-1:]) else ""
    folded = _folded(text)
    for match in re.finditer(f"{before}{pattern}{after}", folded):
        if unless is None or not re.search(f"{unless}$", folded[: match.start()]):
            return True
    return False


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
