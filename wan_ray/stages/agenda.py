"""Agenda: which rows a run renders, and as which attempt, by what is on record and what is to be rendered again."""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from wan_ray.errors import ConfigError
from wan_ray.stages.planning import Plan
from wan_ray.storage.index import Indexed

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Again:
    """Which rows with a record are rendered again, as another attempt; the records before it stay as history.

    failed: those whose last attempt failed, of the error types if there are any. changed: those whose row asks for
    something else than it did.
    """

    failed: bool = False
    error_types: frozenset[str] = frozenset()
    changed: bool = False

    @classmethod
    def from_options(cls, retry: str | None, changed: str) -> Self:
        """Of "failed" or "failed:GangError,StageError", and of "refuse" or "rerender"; ConfigError for others."""
        kind, colon, types = (retry or "").partition(":")
        error_types = frozenset(filter(None, types.split(",")))
        if retry is not None and (kind != "failed" or bool(colon) != bool(error_types)):
            raise ConfigError(f"--retry {retry!r} is not known; use failed, or failed:GangError,StageError")
        return cls(failed=retry is not None, error_types=error_types, changed=changed == "rerender")


def attempts_due(plan: Plan, known: Mapping[str, Indexed], again: Again) -> "array[int]":
    """By row number, the attempt to render; 0 for a row that is to be left alone.

    ConfigError when a row has changed and is not to be rendered again, or when an error type is nowhere on record.
    """
    due, changed, types = array("I"), [], Counter[str]()
    for name, content, bucket in zip(plan.names, plan.contents, plan.bucket_of_row, strict=True):
        before = known.get(name)
        if bucket == 0:
            due.append(0 if before else 1)
        elif before is None:
            due.append(1)
        elif content is not None and before.content is not None and before.content != content:
            changed.append(name)
            due.append(before.attempt + 1)
        elif before.status == "failed":
            types[before.error_type or ""] += 1
            wanted = again.failed and (not again.error_types or before.error_type in again.error_types)
            due.append(before.attempt + 1 if wanted else 0)
        else:
            due.append(0)
    if changed and not again.changed:
        raise ConfigError(_changed_rows(changed))
    if unknown := sorted(again.error_types - types.keys()):
        there = ", ".join(f"{kind} ({count})" for kind, count in types.most_common()) or "none failed"
        raise ConfigError(f"--retry failed:{','.join(unknown)}: no row failed with it; on record are {there}")
    return due


def _changed_rows(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"{len(names)} rows have a record and now ask for something else: {shown}; give them other ids, undo the "
        "change (the config's defaults count as well), use another output, or --changed rerender to replace their clips"
    )
