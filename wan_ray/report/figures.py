"""Figures as people read them: counts, durations, times."""

from datetime import UTC, datetime


def duration(seconds: float) -> str:
    """ "41 s", "12 min", "2 h 10 min", "7 d 9 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return _two(minutes, 60, "h", "min")
    return _two(hours, 24, "d", "h")


def moment(time_s: float) -> str:
    """The Unix time as "2026-11-20 18:00 UTC"."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def figure(value: float | None) -> str:
    """Three digits or all whole ones, "-" for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _two(number: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(number, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"
