"""What can only be counted by its words: failures by cause, and labels. Bounded, however many words there are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from wan_ray.report.rows import Rows, batches, over_parts, pc
from wan_ray.storage.blob import Store
from wan_ray.wording import without_secrets

MAX_LABEL_VALUES = 1000
MAX_CAUSES = 500
_MAX_MESSAGE_CHARS = 300
_COLUMNS = ("status", "row", "id", "error_stage", "error_type", "error_message", "labels")
# In RE2's words. Quotes count as such after a blank or a bracket only: "the VAE's" opens none.
_VARYING = (
    (r"\s+", " "),
    (r"""(^|[\s(\[{=:,])b?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", r"\1'...'"),
    (r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s'",;)]*[^\s'",;:).]""", "..."),
    (r"(?:/[\w.%@=+-]+){2,}/?", "..."),
    (r"[\w-]*\d(?:[\w.-]*\w)?", "#"),
)


@dataclass(kw_only=True)
class Cause:
    """Failures alike but for numbers, ids, paths and quoted values; message, id and row are those of one of them."""

    count: int
    stage: str
    type: str
    shared: str
    message: str
    id: str
    row: int | None
    varies: bool = False

    @property
    def text(self) -> str:
        """The message, or what the messages share where they vary."""
        return self.shared if self.varies else self.message


@dataclass(kw_only=True)
class LabelCounts:
    """Of one label key: records by outcome of each value; is_open when it has more values than are counted."""

    ok: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    is_open: bool = False

    def most_common(self) -> list[tuple[str, int, int]]:
        """Value, ok and failed, the largest first."""
        both = self.ok + self.failed
        return [(value, self.ok[value], self.failed[value]) for value, _ in both.most_common()]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Causes, the most common first, and labels by key."""

    causes: Sequence[Cause]
    labels: Mapping[str, LabelCounts]


_Key = tuple[str, str, str]  # stage, type, what messages share
_Label = tuple[str, str, bool]  # key, value, ok


def count(store: Store, rows: Rows) -> Counts:
    """Causes and labels of these rows."""
    kept = np.zeros(rows.part_starts[-1], bool)
    kept[rows.table["place"]] = True
    kept_of = {part: kept[rows.part_starts[i] : rows.part_starts[i + 1]] for i, part in enumerate(rows.parts)}
    causes: dict[_Key, Cause] = {}
    labels: dict[str, LabelCounts] = {}
    for its_causes, its_labels in over_parts(lambda part: _count_part(store, part, kept_of[part]), rows.parts):
        for key, cause in its_causes.items():
            _add_cause_(causes, key, cause)
        for label, number in its_labels.items():
            _add_label_(labels, label, number)
    shown = [replace(c, shared=_as_shown(c.shared), message=_as_shown(c.message)) for c in causes.values()]
    return Counts(causes=sorted(shown, key=lambda cause: -cause.count), labels=dict(sorted(labels.items())))


def shared_text(messages: pa.Array) -> pa.Array:
    """The messages, cut to a line, with # for words that hold digits and '...' for quoted values, paths and URLs."""
    for pattern, replacement in _VARYING:
        messages = pc.replace_substring_regex(messages, pattern, replacement)
    return messages


def _count_part(store: Store, part: str, kept: np.ndarray) -> tuple[dict[_Key, Cause], Counter[_Label]]:
    causes: dict[_Key, Cause] = {}
    labels: Counter[_Label] = Counter()
    start = 0
    for batch in batches(store, part, _COLUMNS):
        rows = batch.filter(pa.array(kept[start : start + len(batch)]))
        start += len(batch)
        ok = pc.equal(rows["status"], "ok")
        labels.update(_labels(rows["labels"], ok.to_numpy(zero_copy_only=False)))
        failed = rows.filter(pc.invert(ok))
        for key, cause in _causes(failed):
            _add_cause_(causes, key, cause)
    return causes, labels


def _causes(failed: pa.RecordBatch) -> Iterator[tuple[_Key, Cause]]:
    stages, types, ids, rows = (failed[name].to_pylist() for name in ("error_stage", "error_type", "id", "row"))
    cut = pc.utf8_slice_codeunits(pc.fill_null(failed["error_message"], ""), 0, _MAX_MESSAGE_CHARS)
    messages, shared = cut.to_pylist(), shared_text(cut).to_pylist()
    for stage, kind, id, row, message, text in zip(stages, types, ids, rows, messages, shared, strict=True):
        cause = Cause(count=1, stage=stage, type=kind, shared=text, message=message, id=id, row=row)
        yield (stage, kind, text), cause


def _labels(maps: pa.MapArray, ok: np.ndarray) -> Counter[_Label]:
    offsets = maps.offsets.to_numpy()
    first, length = int(offsets[0]), int(offsets[-1] - offsets[0])
    keys, values = (child.slice(first, length).to_pylist() for child in (maps.keys, maps.items))
    return Counter(zip(keys, values, np.repeat(ok, np.diff(offsets)).tolist(), strict=True))


def _as_shown(message: str) -> str:
    """The message without secrets; one that was cut ends before its last word, which may be half of one."""
    whole = len(message) < _MAX_MESSAGE_CHARS
    return without_secrets(message if whole else message.rpartition(" ")[0] + " ...")


def _add_cause_(causes: dict[_Key, Cause], key: _Key, cause: Cause) -> None:
    if key not in causes and len(causes) >= MAX_CAUSES:
        key = (cause.stage, cause.type, "")
    known = causes.get(key)
    if known is None:
        causes[key] = replace(cause, shared=key[2] or "(other messages)")
    else:
        known.count += cause.count
        known.varies |= cause.varies or cause.message != known.message


def _add_label_(labels: dict[str, LabelCounts], label: _Label, number: int) -> None:
    key, value, ok = label
    counts = labels.setdefault(key, LabelCounts())
    values = counts.ok if ok else counts.failed
    if (
        value not in counts.ok
        and value not in counts.failed
        and len(counts.ok) + len(counts.failed) >= MAX_LABEL_VALUES
    ):
        counts.is_open = True
    else:
        values[value] += number
