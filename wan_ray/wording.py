"""What messages share: pydantic's errors in this package's words, values cut to a line, passwords masked."""

import re
from typing import Any

_NOT_WHOLE = "is not a whole number; give one"
_NOT_A_NUMBER = "is not a number; give one"
_NOT_TRUE_OR_FALSE = "is neither true nor false; give one of them"
_WORDS = {
    "int_type": _NOT_WHOLE,
    "int_parsing": _NOT_WHOLE,
    "int_parsing_size": _NOT_WHOLE,
    "int_from_float": _NOT_WHOLE,
    "float_type": _NOT_A_NUMBER,
    "float_parsing": _NOT_A_NUMBER,
    "finite_number": "is not a finite number; give one",
    "bool_type": _NOT_TRUE_OR_FALSE,
    "bool_parsing": _NOT_TRUE_OR_FALSE,
    "string_type": "is not text; write it as a string",
    "string_unicode": "is not UTF-8 text; write it as a string",
    "dict_type": "is not a map of names to values; write it as one",
    "model_type": "is not a section of settings; write them as name: value",
    "list_type": "is not a list; write it as one, also for a single value",
    "literal_error": "is not known; use {expected}",
    "greater_than_equal": "is less than {ge}; use {ge} or more",
    "greater_than": "is not above {gt}; use more than {gt}",
    "less_than_equal": "is more than {le}; use {le} or less",
}


def in_words(error: Any) -> str:
    """One of ValidationError.errors() as "field: value, rule, fix"."""
    kind, place = error["type"], ".".join(map(str, error["loc"]))
    if kind == "value_error":
        said = str(error["ctx"]["error"])
    elif kind == "missing":
        said = "missing, and there is no default; give one"
    elif kind in _WORDS:
        said = f"{shown(error['input'])} {_WORDS[kind].format(**error.get('ctx', {}))}"
    else:
        said = f"{shown(error['input'])} is not accepted: {error['msg']}"
    return f"{place}: {said}" if place else said


def shown(value: object) -> str:
    """repr, cut to what fits a line."""
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else text[:77] + "..."


_PASSWORD = re.compile(r"(//[^/@:\s]*):[^/@\s]*@")
_SECRET_PARAMETER = re.compile(
    r"""([?&;][^=&;\s'"]*(?:key|token|secret|sig|signature|password|credential)[^=&;\s'"]*=)[^&;\s'"]+""", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """The text with passwords in URLs (scheme://user:password@host) and keys in their queries (?token=...) masked."""
    return _SECRET_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def masked(value: object) -> object:
    """JSON data with without_secrets() applied to every text in it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [masked(one) for one in value]
    return {name: masked(one) for name, one in value.items()} if isinstance(value, dict) else value
