"""What stands in a row's cells: values of any library as Python's own, as JSON, as a hash; and the types of fields."""

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, JsonValue

from wan_ray.wording import shown

_PLAIN_TYPES = frozenset({type(None), str, int, bool, bytes, list, dict})
_JSON_TYPES = frozenset({type(None), str, int, bool})


def plain(value: Any) -> Any:
    """A value of numpy, pandas or Arrow as Python's own; NaN and their nulls as None. What it holds stays as it is."""
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "as_py"):
        return plain(value.as_py())
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def plain_throughout(value: Any) -> Any:
    """As plain, with all that lists and maps hold, and without nulls in maps: Arrow gives a struct all rows' keys."""
    value = plain(value)
    if isinstance(value, Mapping):
        held = {k: plain_throughout(v) for k, v in value.items()}
        return {k: v for k, v in held.items() if v is not None}
    return [plain_throughout(v) for v in value] if isinstance(value, list | tuple) else value


def jsonable(value: Any) -> JsonValue:
    """The value as JSON: bytes by their hash, times in ISO 8601, what JSON does not know as text."""
    value = plain(value)
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def content_id(row: Mapping[str, object]) -> str:
    """16 hex digits that depend on the row's content alone, not on how a table held it.

    Nulls count as absent and 81.0 as 81: a column becomes float, a struct gets a key, because of other rows.
    """
    canonical = json.dumps(_canonical(jsonable(row)), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def text_of_number(value: object) -> object:
    """Ids are often numbers, and whole floats where pandas met a null in the column."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def map_of_pairs(value: object) -> object:
    """Arrow hands a map over as pairs and a struct with null for keys that other rows have."""
    if isinstance(value, list | tuple):
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value):
            raise ValueError(f"{shown(value)} is not a map of strings; give a map, a struct or pairs of key and value")
        value = dict(value)
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number; give one")
    return value


def _text_or_bytes(value: object) -> object:
    if not isinstance(value, str | bytes):
        raise ValueError(f"{shown(value)} is neither text (a path or URL) nor bytes; give one of them")
    return value


def _canonical(value: Any) -> JsonValue:
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_canonical(v) for v in value]
    return int(value) if value.is_integer() else value


Media = Annotated[str | bytes, BeforeValidator(_text_or_bytes)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
