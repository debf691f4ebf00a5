"""The page: one HTML file on an output folder that needs no server and no network. Every text in it is escaped."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from wan_ray.errors import StorageError
from wan_ray.report.clips import ClipStrip, clip_strips
from wan_ray.report.counts import MAX_LABEL_VALUES, Cause, LabelCounts
from wan_ray.report.figures import duration, figure, moment
from wan_ray.report.pace import timeline
from wan_ray.report.plots import Axis, Bar, bars, boxes, columns, line
from wan_ray.report.rows import STAGES
from wan_ray.report.status import Status, paces, progress, read_status
from wan_ray.report.style import STYLE
from wan_ray.storage.blob import Store, failing_as
from wan_ray.storage.paths import REPORT
from wan_ray.storage.runs import RunEntry
from wan_ray.wording import without_secrets

MAX_CLIPS = 24
_MAX_STEPS = 72
_MAX_BARS = 12
_MAX_LABELS = 12
_MAX_CAUSES = 100
_MAX_RUNS = 30
_MAX_TEXT = 1000
_MAX_CONFIG = 20_000
# Whatever a prompt smuggles past the escaping finds nothing to run and nowhere to call.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_NOT_IN_HTML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def write_report(output: str, file: Path | None = None) -> str:
    """Write the page into the output folder, or to a local file, and return where it lies.

    Also while a run goes on. StorageError when no run ever wrote there, or the file cannot be written.
    """
    store = Store(output)
    status = read_status(output)
    strips = clip_strips(store, status.rows, MAX_CLIPS)
    page = "\n".join(_page(status, strips, linked=file is None)).encode()
    if file is None:
        store.put(REPORT, page)
        return store.location(REPORT)
    with failing_as(StorageError, f"cannot write {str(file)!r}"):
        file.write_bytes(page)
    return str(file)


def _page(status: Status, strips: Sequence[ClipStrip], *, linked: bool) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{_text(status.output)} - wan-ray report</title><style>{STYLE}</style></head><body>"
    yield from _summary(status)
    yield from _work(status)
    yield from _labels(status)
    yield from _failures(status)
    yield from _clips(status, strips, linked=linked)
    yield from _runs(status)
    yield f'<p class="dim">Written by wan-ray, {moment(status.at_s)}.</p></body></html>\n'


def _summary(status: Status) -> Iterator[str]:
    yield f'<h1 dir="auto">{_text(status.output)}</h1><p>{_text(progress(status))}</p><ul class="tiles">'
    tiles = [
        ("records", f"{len(status.rows.table):,}"),
        ("ok", f"{status.num_ok:,}"),
        ("failed", f"{status.num_failed:,}"),
        ("rows in the last run's manifest", f"{status.runs[-1]['num_rows']:,}"),
    ]
    if status.gpu_hours:
        tiles.append(("GPU-hours of work", figure(status.gpu_hours)))
    for name, number in tiles:
        yield f'<li><b>{_text(number)}</b><span class="key">{name}</span></li>'
    yield "</ul>"
    heads = ("", "clips per hour", "seconds per clip", "GPU-seconds per clip")
    rows = [
        [name, *map(figure, (of.clips_per_hour, of.seconds_per_clip, of.gpu_seconds_per_clip))]
        for name, of in paces(status)
    ]
    yield _card(_table(heads, [[_text(cell) for cell in row] for row in rows], numbers=3))
    yield (
        '<p class="dim">Seconds of work in the stages. GPU-seconds count the GPUs of the worker that was at it, not '
        "the time that it waited; - where none holds a GPU.</p>"
    )


def _work(status: Status) -> Iterator[str]:
    table = status.rows.table
    if not (~table["refused"]).any():
        return
    steps = timeline(table, max_steps=_MAX_STEPS)
    axis = Axis(start_s=steps.start_s, step_s=steps.step_s, num_steps=len(steps.clips))
    title = f"Clips and failures in each {_step(steps.step_s)} (UTC)"
    yield "<h2>Throughput</h2>"
    yield _card(
        f"<h3>{title} {_LEGEND}</h3>"
        + columns("throughput", title, axis, steps.clips.tolist(), steps.failures.tolist())
    )
    on_gpus = bool(np.isfinite(steps.gpu_seconds_per_clip).any() and np.nansum(steps.gpu_seconds_per_clip))
    title = "GPU-seconds per clip over time (UTC)" if on_gpus else "Seconds of work per clip over time (UTC)"
    values = steps.gpu_seconds_per_clip if on_gpus else steps.seconds_per_clip
    yield _card(f"<h3>{title}</h3>" + line("cost", title, axis, values.tolist()))
    yield from _stages(table)
    if (found := status.at_work) is not None:
        shares = [[stage.stage, f"{stage.workers}", f"{stage.share:.0%}"] for stage in found.stages]
        title = (
            f"Workers at work in the last run, {duration(found.over_s)} after {duration(found.start_up_s)} of start-up"
        )
        heads = ("stage", "workers", "share of their time")
        yield _card(f"<h3>{title}</h3>" + _table(heads, shares, numbers=2) + f"<p>{_text(found.verdict)}</p>")


def _stages(table: np.ndarray) -> Iterator[str]:
    found, rows = [], []
    total = float(np.nansum(table["seconds"]))
    for number, stage in enumerate(STAGES):
        seconds = table["seconds"][:, number]
        seconds = seconds[seconds > 0]  # NaN is not
        if len(seconds):
            quantiles = np.quantile(seconds, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
            found.append((stage, quantiles))
            told = (*map(figure, (quantiles[2], quantiles[4], float(seconds.max()))), f"{seconds.sum() / total:.0%}")
            rows.append([stage, *told])
    if found:
        title = "Seconds per clip in each stage: the middle half of the clips, its median, and 5 to 95 %"
        heads = ("stage", "median s", "95 % below", "longest", "share of all work")
        yield "<h2>Stages</h2>"
        yield _card(f"<h3>{title}</h3>" + boxes("stages", title, found) + _table(heads, rows, numbers=4))


def _labels(status: Status) -> Iterator[str]:
    labels = list(status.counts.labels.items())
    if labels:
        yield f"<h2>Labels {_LEGEND}</h2>"
    for number, (key, values) in enumerate(labels[:_MAX_LABELS]):
        yield _card(f'<h3 dir="auto">{_text(key)}</h3>' + _label(f"label{number}", key, values))
    if len(labels) > _MAX_LABELS:
        yield f'<p class="dim">and {len(labels) - _MAX_LABELS} more labels</p>'


def _label(name: str, key: str, values: LabelCounts) -> str:
    if values.is_open:
        return f'<p class="dim">more than {MAX_LABEL_VALUES} values</p>'
    told = values.most_common()
    shown = [Bar(text=_plain(value) or '""', ok=ok, failed=failed) for value, ok, failed in told[:_MAX_BARS]]
    more = f'<p class="dim">and {len(told) - _MAX_BARS} more values</p>' if len(told) > _MAX_BARS else ""
    return bars(name, f"Records by {_plain(key)}", shown) + more


def _failures(status: Status) -> Iterator[str]:
    causes = status.counts.causes
    if not causes:
        return
    shown = [
        Bar(text=_plain(f"{cause.stage}: {cause.type}: {cause.text}"), ok=0, failed=cause.count)
        for cause in causes[:_MAX_BARS]
    ]
    yield "<h2>Failures by cause</h2>"
    yield _card(bars("causes", "Failed records by cause", shown))
    heads = ("rows", "stage", "type", "what", "one of them")
    yield _card(_table(heads, [_cause(cause) for cause in causes[:_MAX_CAUSES]], numbers=0, first=True))
    if len(causes) > _MAX_CAUSES:
        yield f'<p class="dim">and {len(causes) - _MAX_CAUSES} more causes</p>'


def _cause(cause: Cause) -> list[str]:
    place = "" if cause.row is None else f"row {cause.row}, "
    example = f"{place}id <bdi>{_text(cause.id)}</bdi>"
    if cause.varies:
        example += f'<div class="dim" dir="auto">{_text(cause.message)}</div>'
    text = f'<div dir="auto">{_text(cause.text)}</div>'
    return [f"{cause.count:,}", _text(cause.stage), _text(cause.type), text, example]


def _clips(status: Status, strips: Sequence[ClipStrip], *, linked: bool) -> Iterator[str]:
    if not strips:
        return
    yield f'<h2>Clips</h2><p class="dim">{len(strips)} of {status.num_ok:,}, evenly spread over the manifest</p>'
    yield '<div class="clips">'
    for clip in strips:
        name = f"<bdi>{_text(clip.id)}</bdi>"
        title = f'<a href="{_text(clip.key)}">{name}</a>' if linked else name
        picture = f'<p class="dim">{_text(clip.key)} cannot be read</p>'
        if clip.strip is not None:
            data = b64encode(clip.strip).decode()
            picture = f'<img alt="frames of {_text(clip.id)}" src="data:image/jpeg;base64,{data}">'
        yield f'<figure>{picture}<b>{title}</b><p dir="auto">{_text(clip.prompt)}</p>'
        yield f"<figcaption>{_text(clip.shape)}</figcaption></figure>"
    yield "</div>"


def _runs(status: Status) -> Iterator[str]:
    runs = status.runs[::-1]
    heads = ("run", "started", "ended", "how", "rows", "rendered", "versions")
    yield "<h2>Runs</h2>"
    yield _card(_table(heads, [_run(run) for run in runs[:_MAX_RUNS]], numbers=0))
    if len(runs) > _MAX_RUNS:
        yield f'<p class="dim">and {len(runs) - _MAX_RUNS} before them</p>'
    for run in runs[:_MAX_RUNS]:
        config = json.dumps(run.get("config"), indent=1, ensure_ascii=False)
        yield f"<details><summary>Config of {_text(run['run_id'])}</summary><pre>{_text(config, _MAX_CONFIG)}</pre>"
        yield "</details>"


def _run(run: RunEntry) -> list[str]:
    counts, versions = run.get("counts"), run.get("versions")
    rendered = counts.get("rendered", "") if isinstance(counts, dict) else ""
    told = ", ".join(f"{name} {number}" for name, number in versions.items()) if isinstance(versions, dict) else ""
    cells = (run["run_id"], run["started_at"], run.get("ended_at", ""), run["status"], run["num_rows"], rendered, told)
    return [_text(cell) for cell in cells]


_LEGEND = '<span class="key"><i class="swatch"></i>ok <i class="swatch for-failed"></i>failed</span>'


def _step(step_s: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if step_s >= unit:
            number = step_s / unit
            return name if number == 1 else f"{number:g} {name}s"
    return "second" if step_s == 1 else f"{step_s:g} seconds"


def _card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int, first: bool = False) -> str:
    """A table of ready markup; the last `numbers` columns, or the first one, are set as numbers."""
    from_column = len(heads) - numbers
    kinds = [' class="number"' if n >= from_column or (first and n == 0) else "" for n in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{text}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: object, max_chars: int = _MAX_TEXT) -> str:
    """Any value as markup that shows it, without secrets, and cut."""
    text = _plain(str(value))
    return escape(text if len(text) <= max_chars else text[:max_chars] + " ...")


def _plain(text: str) -> str:
    return without_secrets(_NOT_IN_HTML.sub(" ", text))
