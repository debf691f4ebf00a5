"""Plots as inline SVG: figures in, markup out. Colors and fonts come from the page's style; nothing else is needed."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from wan_ray.report.figures import figure

_WIDTH = 920
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 26
_PLOT = _WIDTH - _LEFT - _RIGHT
_HEIGHT = 170
_BAR, _BAR_PITCH = 12, 36
_BOX_PITCH = 34
_MAX_TEXT = 120  # letters of a bar's text; a wide one, such as a Chinese one, counts twice
_TIME_STEPS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of two parts under its text."""

    text: str
    ok: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Times of a plot's horizontal axis: num_steps of step_s, from start_s (Unix time)."""

    start_s: float
    step_s: float
    num_steps: int


def columns(name: str, title: str, axis: Axis, ok: Sequence[float], failed: Sequence[float]) -> str:
    """Columns over time, failures on top of clips."""
    top = _round_up(max((a + b for a, b in zip(ok, failed, strict=True)), default=0.0) or 1.0)
    pitch = _PLOT / axis.num_steps
    width = pitch - (2 if pitch > 6 else 0.5)
    drawn = [_y_grid(top), _x_times(axis)]
    for number, (good, bad) in enumerate(zip(ok, failed, strict=True)):
        x, good_height, bad_height = _LEFT + number * pitch, good / top * _HEIGHT, bad / top * _HEIGHT
        y = _TOP + _HEIGHT - good_height
        drawn.append(_rect("ok", x, y, width, good_height) if good else "")
        drawn.append(_rect("failed", x, y - bad_height, width, bad_height) if bad else "")
    told = f"{sum(ok):.0f} clips and {sum(failed):.0f} failures, at most {max(ok, default=0):.0f} clips in one step."
    return _svg(name, title, told, _TOP + _HEIGHT + _BOTTOM, drawn)


def line(name: str, title: str, axis: Axis, values: Sequence[float]) -> str:
    """One value for each step of time; a gap where it is NaN."""
    known = [value for value in values if math.isfinite(value)]
    top = _round_up(max(known, default=0.0) or 1.0)
    pitch = _PLOT / axis.num_steps
    points, path = [], ""
    for number, value in enumerate(values):
        if not math.isfinite(value):
            points.append(None)
            continue
        x, y = _LEFT + (number + 0.5) * pitch, _TOP + _HEIGHT * (1 - value / top)
        path += f"{'L' if points and points[-1] else 'M'}{x:.1f} {y:.1f}"
        points.append((x, y))
    dots = [f'<circle class="ok" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="2.5"/>' for p in points if p]
    told = f"Between {figure(min(known))} and {figure(max(known))}." if known else "No clip yet."
    drawn = [_y_grid(top), _x_times(axis), f'<path class="line" d="{path}"/>', *dots]
    return _svg(name, title, told, _TOP + _HEIGHT + _BOTTOM, drawn)


def boxes(name: str, title: str, quantiles: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A box per text on one logarithmic axis: its quantiles 5, 25, 50, 75 and 95 %, all above 0."""
    first = math.floor(math.log10(min(q[0] for _, q in quantiles)))
    last = max(math.ceil(math.log10(max(q[-1] for _, q in quantiles))), first + 1)
    bottom = _TOP + len(quantiles) * _BOX_PITCH

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - first) / (last - first) * _PLOT

    drawn = []
    for decade in range(first, last + 1):
        at = x(10.0**decade)
        drawn.append(_line("grid", at, _TOP, at, bottom))
        drawn.append(_text(f"{10.0**decade:,g} s", at, bottom + 18, "end" if decade == last else "middle"))
    for number, (text, (p5, p25, p50, p75, p95)) in enumerate(quantiles):
        y = _TOP + (number + 0.5) * _BOX_PITCH
        drawn.append(_text(text, _LEFT - 8, y + 4, "end"))
        drawn.append(_line("line", x(p5), y, x(p95), y))
        drawn.append(_rect("ok", x(p25), y - 9, max(x(p75) - x(p25), 2), 18))
        drawn.append(_line("median", x(p50), y - 9, x(p50), y + 9))
    told = "; ".join(f"{text}: median {figure(q[2])} s, 95 % below {figure(q[4])} s" for text, q in quantiles) + "."
    return _svg(name, title, told, bottom + _BOTTOM, drawn)


def bars(name: str, title: str, items: Sequence[Bar]) -> str:
    """Horizontal bars, each under its text and before its number."""
    most = max((item.ok + item.failed for item in items), default=0) or 1
    room = _WIDTH - 150
    drawn = []
    for number, item in enumerate(items):
        y = 14 + number * _BAR_PITCH
        ok, failed = item.ok / most * room, item.failed / most * room
        drawn.append(_text(_cut(item.text), 0, y, "start", "name"))
        drawn.append(_rect("ok", 0, y + 6, ok, _BAR) if item.ok else "")
        drawn.append(_rect("failed", ok, y + 6, max(failed, 1.5), _BAR) if item.failed else "")
        counted = f"{item.ok + item.failed:,}" + (f", {item.failed:,} failed" if item.ok and item.failed else "")
        drawn.append(_text(counted, max(ok + failed, 1.5) + 8, y + 16, "start"))
    told = "; ".join(f"{_cut(item.text)}: {item.ok} ok, {item.failed} failed" for item in items) + "."
    return _svg(name, title, told, 8 + len(items) * _BAR_PITCH, drawn)


def _svg(name: str, title: str, description: str, height: float, drawn: Sequence[str]) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height:.0f}" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(drawn)}</svg>"
    )


def _y_grid(top: float) -> str:
    drawn = ""
    for part in (0, 0.5, 1):
        y = _TOP + _HEIGHT * (1 - part)
        drawn += _line("grid", _LEFT, y, _WIDTH - _RIGHT, y) + _text(f"{top * part:,g}", _LEFT - 8, y + 4, "end")
    return drawn


def _x_times(axis: Axis) -> str:
    """Some six times, at round ones."""
    span = axis.step_s * axis.num_steps
    step = next(
        (s for s in _TIME_STEPS_S if span / s <= 7), _TIME_STEPS_S[-1] * math.ceil(span / _TIME_STEPS_S[-1] / 7)
    )
    form = "%H:%M:%S" if step < 60 else "%H:%M" if span <= 86400 else "%m-%d %H:%M" if step < 86400 else "%m-%d"
    drawn, at = "", math.ceil(axis.start_s / step) * step
    while at <= axis.start_s + span:
        x = _LEFT + (at - axis.start_s) / span * _PLOT
        anchor = "start" if x < _LEFT + 20 else "end" if x > _WIDTH - _RIGHT - 20 else "middle"
        drawn += _line("grid", x, _TOP + _HEIGHT, x, _TOP + _HEIGHT + 4)
        drawn += _text(f"{datetime.fromtimestamp(at, UTC):{form}}", x, _TOP + _HEIGHT + 18, anchor)
        at += step
    return drawn


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 10, 20 ...: halves of it are round too, mostly."""
    power = 10 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 5, 10, 20) if power * step >= value)


def _cut(text: str) -> str:
    """As much of the text as has room, on one line."""
    width = 0
    for position, letter in enumerate(text):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > _MAX_TEXT:
            return text[: position - 3] + "..."
    return text


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(text: str, x: float, y: float, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
