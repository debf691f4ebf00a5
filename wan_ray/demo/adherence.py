"""Whether a clip shows what its caption asks for, judged from its pixels alone.

Frames are uint8 [F, H, W, 3] from a camera that stands still. What moves is what differs from the clip's median frame.
"""

from dataclasses import dataclass

import numpy as np

from wan_ray.demo.palette import Colour, Motion, Time
from wan_ray.demo.scenes import Scene

_CHANGED = 0.12  # of full brightness: how far a pixel is from its median to count as moving
_LEAST = 20  # pixels of a vehicle in a frame, below which there is none
# Hues of the four colours in degrees, as drawn and lit.
_HUES: dict[Colour, float] = {"red": 0.0, "yellow": 48.0, "green": 145.0, "blue": 228.0}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a clip shows; None where no vehicle is found."""

    colour: Colour | None
    motion: Motion | None
    time: Time


def look(frames: np.ndarray) -> Seen:
    """Colour and motion of what moves, and the time of day by the sky."""
    pixels = frames.astype(np.float32) / 255
    vehicle = _moving(pixels)
    return Seen(colour=_colour(pixels, vehicle), motion=_motion(vehicle), time=_time(pixels))


def agreement(seen: Seen, scene: Scene) -> dict[str, bool]:
    """For colour, motion and time: whether the clip shows what was asked for."""
    return {name: getattr(seen, name) == getattr(scene, name) for name in ("colour", "motion", "time")}


def _moving(pixels: np.ndarray) -> np.ndarray:
    """Of each pixel whether it is part of something large that moves, bool [F, H, W].

    Rain and snow are too thin to stay when every pixel needs most of its 5 x 5 neighbours.
    """
    change = np.abs(pixels - np.median(pixels, axis=0)).max(-1) > _CHANGED
    padded = np.pad(change, ((0, 0), (2, 2), (2, 2))).astype(np.float32)
    sums = padded.cumsum(1).cumsum(2)
    sums = np.pad(sums, ((0, 0), (1, 0), (1, 0)))
    neighbours = sums[:, 5:, 5:] - sums[:, :-5, 5:] - sums[:, 5:, :-5] + sums[:, :-5, :-5]
    return change & (neighbours >= 15)


def _colour(pixels: np.ndarray, vehicle: np.ndarray) -> Colour | None:
    """The colour nearest to most of the vehicle's vivid pixels."""
    body = pixels[vehicle]
    highest, lowest = body.max(-1, initial=0), body.min(-1, initial=1)
    chroma = highest - lowest
    vivid = (chroma > 0.55 * highest) & (highest > 0.2)
    if vivid.sum() < _LEAST:
        return None
    hue = _hue(body[vivid], chroma[vivid])
    names = tuple(_HUES)
    distance = np.stack([np.abs((hue - _HUES[name] + 180) % 360 - 180) for name in names])
    votes = np.bincount(distance.argmin(0), weights=chroma[vivid], minlength=len(names))
    return names[int(votes.argmax())]


def _hue(rgb: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees on the colour wheel."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    highest = rgb.argmax(-1)
    turns = np.select(
        [highest == 0, highest == 1],
        [(green - blue) / chroma % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    return turns * 60


def _motion(vehicle: np.ndarray) -> Motion | None:
    """Where the middle of the vehicle goes from the first third of the clip to its last."""
    rows, columns = np.mgrid[0 : vehicle.shape[1], 0 : vehicle.shape[2]]
    areas = vehicle.sum((1, 2))
    middles = np.full((len(vehicle), 2), np.nan)
    found = areas >= _LEAST
    middles[found, 0] = (vehicle * rows).sum((1, 2))[found] / areas[found]
    middles[found, 1] = (vehicle * columns).sum((1, 2))[found] / areas[found]
    third = max(1, len(vehicle) // 3)
    if not found[:third].any() or not found[-third:].any():
        return None
    down, right = np.nanmedian(middles[-third:], axis=0) - np.nanmedian(middles[:third], axis=0)
    if max(abs(down), abs(right)) < 4:
        return None
    if abs(right) > 2.5 * abs(down):
        return "right" if right > 0 else "left"
    return "closer" if down > 0 else "away"


def _time(pixels: np.ndarray) -> Time:
    """By the sky between the horizon and the top: dark, reddish, or neither."""
    sky = np.median(pixels[:, : pixels.shape[1] // 3], axis=0).reshape(-1, 3)
    red, _, blue = sky.mean(0)
    if sky.mean() < 0.3:
        return "night"
    return "evening" if red > blue else "day"
