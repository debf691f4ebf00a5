"""Column names: which of them are ours, misspelt or in another tool's words. What stands in them is not here."""

import re
from difflib import SequenceMatcher
from functools import lru_cache

# What other Wan2.1 tools call our columns, letters only.
_FOREIGN_NAMES = {
    "framenum": "num_frames",
    "samplesteps": "num_inference_steps",
    "samplingsteps": "num_inference_steps",
    "steps": "num_inference_steps",
    "sampleshift": "flow_shift",
    "shift": "flow_shift",
    "sampleguidescale": "guidance_scale",
    "guidescale": "guidance_scale",
    "nprompt": "negative_prompt",
    "baseseed": "seed",
    "samplesolver": "solver",
    "srcvideo": "control_video",
    "srcmask": "mask_video",
    "srcrefimages": "reference_images",
    "size": "width and height",
}
_MIN_LETTERS = 5  # a shorter name is one slip from too many words, as seed from speed
_MIN_RATIO = 0.88  # two slips in a name of nine letters or more


@lru_cache(maxsize=64)
def misspelt(columns: tuple[str, ...], fields: tuple[str, ...]) -> tuple[str, str] | None:
    """The first column that looks like a misspelt field, and the field it means.

    A column beside the very field that it resembles is another thing.
    """
    for column in columns:
        if column not in fields and (meant := _meant_by(column, fields)) and meant not in columns:
            return column, meant
    return None


def _meant_by(column: str, fields: tuple[str, ...]) -> str | None:
    words = _words(column)
    letters = "".join(words)
    if letters in _FOREIGN_NAMES:
        return _FOREIGN_NAMES[letters]
    for field in fields:
        of_field = field.split("_")
        wanted = "".join(of_field)
        if letters == wanted:
            return field
        derived = set(of_field) < set(words)  # prompt_zh, image_id, seed2
        if not derived and letters[:1] == wanted[0] and _alike(letters, wanted):
            return field
    return None


def _alike(letters: str, wanted: str) -> bool:
    if len(wanted) < _MIN_LETTERS:
        return sorted(letters) == sorted(wanted)
    return _one_slip_apart(letters, wanted) or SequenceMatcher(None, letters, wanted).ratio() >= _MIN_RATIO


def _words(name: str) -> list[str]:
    """Lower-case words and numbers of a name in snake_case, camelCase or with blanks."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]


def _one_slip_apart(a: str, b: str) -> bool:
    """Whether one letter was dropped, added, mistaken or swapped with the next."""
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return max(len(a), len(b)) <= 1 or (len(a) == 2 and a == b[::-1])
