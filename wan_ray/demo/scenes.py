"""Road scenes drawn as clips: a camera that stands still, one vehicle that moves, weather, time of day and a place.

x, y: pixels from the top left, of frames HEIGHT by WIDTH. Colours are 0..1, red green blue.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from wan_ray.demo.palette import (
    BODY,
    FOG,
    GROUND,
    LIGHT,
    ROAD,
    SKY,
    Colour,
    Motion,
    Place,
    Road,
    Time,
    Vehicle,
    Weather,
    rgb,
)

HEIGHT, WIDTH, NUM_FRAMES = 96, 160, 33
_HORIZON = 38
_PERIOD = 4  # frames after which falling rain and snow look the same again: one latent frame
_ROWS, _COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip shows; variation draws what the caption does not say."""

    colour: Colour
    vehicle: Vehicle
    motion: Motion
    time: Time
    weather: Weather
    road: Road
    place: Place
    variation: int = 0


def draw(scene: Scene, *, num_frames: int = NUM_FRAMES, with_vehicle: bool = True) -> np.ndarray:
    """The first frames of a clip of NUM_FRAMES, uint8 [num_frames, HEIGHT, WIDTH, 3]."""
    random = np.random.RandomState(scene.variation)
    background = _background(scene, random)
    jitter = random.uniform(-1, 1, 3)
    falling = _falling(scene)
    frames = np.empty((num_frames, HEIGHT, WIDTH, 3), np.uint8)
    for index in range(num_frames):
        frame = background.copy()
        if with_vehicle:
            _draw_vehicle_(frame, scene, index / (NUM_FRAMES - 1), jitter)
        if falling is not None:
            frame += falling[index % _PERIOD]
        frames[index] = np.clip(frame * 255 + 0.5, 0, 255)
    return frames


def _background(scene: Scene, random: np.random.RandomState) -> np.ndarray:
    light = LIGHT[scene.time]
    top, bottom = (np.array(c, np.float32) for c in SKY[scene.time, scene.weather])
    down = np.clip(_ROWS / _HORIZON, 0, 1)[..., None]
    frame = top * (1 - down) + bottom * down
    if scene.weather == "clear":
        _draw_lights_in_sky_(frame, scene.time)
    _draw_skyline_(frame, scene, random)
    ground = np.array(GROUND["snow" if scene.weather == "snow" else scene.place], np.float32) * light
    asphalt = np.array(ROAD[scene.weather], np.float32) * light
    paint = rgb(0.95, 0.95, 0.9) * max(light.max(), 0.5)
    near = np.clip((_ROWS - _HORIZON) / (HEIGHT - _HORIZON), 0, 1)
    _blend_(frame, (_ROWS >= _HORIZON).astype(np.float32), ground * np.float32(1.08))
    _blend_(frame, near * 0.35, ground * np.float32(0.7))
    aside = np.abs(_COLUMNS - _road_middle(scene.road, near)) - _half_road(near)
    on_road = _soft(-aside) * (_ROWS >= _HORIZON)
    _blend_(frame, on_road, asphalt)
    _blend_(frame, _soft(1.0 + 2.2 * near - np.abs(aside + 3 * near)) * on_road * 0.9, paint)
    middle = np.abs(_COLUMNS - _road_middle(scene.road, near))
    dashes = np.mod(6.5 * np.log(near + 0.08), 2) < 1.2
    _blend_(frame, _soft(0.4 + 1.8 * near - middle) * on_road * dashes * 0.9, paint)
    if scene.motion in ("left", "right"):
        _blend_(frame, _soft(13 - np.abs(_ROWS - 77)), asphalt)
        _blend_(frame, _soft(0.8 - np.abs(_ROWS - 65.5)) + _soft(0.8 - np.abs(_ROWS - 88.5)), paint)
    if scene.weather == "fog":
        veil = np.clip(0.88 - 0.75 * near, 0, 0.88)
        _blend_(frame, veil, np.array(FOG[scene.time], np.float32))
    return frame


def _draw_lights_in_sky_(frame: np.ndarray, time: Time) -> None:
    """Sun, setting sun, or moon and stars."""
    match time:
        case "day":
            _blend_(frame, _soft(7 - np.hypot(_COLUMNS - 132, _ROWS - 13)), rgb(1, 0.97, 0.7))
        case "evening":
            _blend_(frame, _soft(9 - np.hypot(_COLUMNS - 40, _ROWS - 34)), rgb(1, 0.85, 0.45))
        case "night":
            _blend_(frame, _soft(6 - np.hypot(_COLUMNS - 132, _ROWS - 13)), rgb(0.9, 0.9, 0.8))
            for x, y in ((14, 8), (38, 18), (57, 6), (80, 15), (101, 9), (150, 26), (112, 22)):
                _blend_(frame, _soft(1.2 - np.hypot(_COLUMNS - x, _ROWS - y)), rgb(0.9, 0.9, 0.9))


def _draw_skyline_(frame: np.ndarray, scene: Scene, random: np.random.RandomState) -> None:
    """Trees, table mountains or buildings on the horizon, in one of three arrangements."""
    light = LIGHT[scene.time]
    arrangement = int(random.randint(3))
    for x in (6, 26, 48, 112, 134, 154):
        step = (x // 2 + arrangement * 5) % 3
        match scene.place:
            case "fields":
                green = rgb(0.16, 0.36, 0.18) if scene.weather != "snow" else rgb(0.6, 0.68, 0.68)
                radius = 7 + 2 * step
                _blend_(frame, _soft(radius - np.hypot(_COLUMNS - x, _ROWS - _HORIZON + 4)), green * light)
            case "desert":
                width, height = 12 + 2 * step, 7 + 4 * step
                side = np.abs(_COLUMNS - x) - width + (_HORIZON - _ROWS) * 0.4
                rock = _soft(-side) * _soft(_ROWS - _HORIZON + height)
                _blend_(frame, rock, rgb(0.62, 0.36, 0.24) * light)
            case "city":
                height = 16 + 6 * step
                wall = _box(x - 8, x + 8, _HORIZON - height, _HORIZON + 1)
                _blend_(frame, wall, rgb(0.46, 0.46, 0.52) * light)
                lit = rgb(1, 0.85, 0.4) if scene.time != "day" else rgb(0.7, 0.8, 0.9)
                for row, column in itertools.product(range(height // 7), (-4, 4)):
                    y = _HORIZON - height + 3 + 7 * row
                    _blend_(frame, _box(x + column - 2, x + column + 2, y, y + 3.5) * 0.85, lit)


def _falling(scene: Scene) -> np.ndarray | None:
    """What rain or snow adds to each frame of a period, [_PERIOD, HEIGHT, WIDTH, 1]; None in other weather."""
    if scene.weather not in ("rain", "snow"):
        return None
    tile_height, tile_width = 24, 32
    tile = np.zeros((tile_height, tile_width), np.float32)
    if scene.weather == "rain":
        for x, y in ((3, 2), (11, 14), (19, 6), (27, 18)):
            for step in range(8):
                tile[(y + step) % tile_height, (x - step // 3) % tile_width] += 0.16
    else:
        for x, y in ((4, 3), (13, 16), (21, 8), (29, 20), (9, 9), (25, 1)):
            for down, right in itertools.product(range(2), range(2)):
                tile[(y + down) % tile_height, (x + right) % tile_width] += 0.30
    whole = np.tile(tile, (HEIGHT // tile_height, WIDTH // tile_width))
    phases = [np.roll(whole, tile_height // _PERIOD * phase, axis=0) for phase in range(_PERIOD)]
    return np.stack(phases)[..., None]


def _draw_vehicle_(frame: np.ndarray, scene: Scene, progress: float, jitter: np.ndarray) -> None:
    light = float(LIGHT[scene.time].mean())
    body = np.array(BODY[scene.colour], np.float32) * (0.45 + 0.55 * light)
    if scene.weather == "fog":
        body = body * 0.85 + 0.15 * np.array(FOG[scene.time], np.float32)
    tall = scene.vehicle == "truck"
    if scene.motion in ("left", "right"):
        along = progress if scene.motion == "right" else 1 - progress
        x = 34 + 92 * along + 4 * jitter[0]
        _draw_side_(frame, x, 82 + 1.5 * jitter[1], tall=tall, forward=1 if scene.motion == "right" else -1, body=body)
        return
    near = 0.28 + 0.6 * (progress if scene.motion == "closer" else 1 - progress) + 0.03 * jitter[0]
    half = _half_road(near)
    x = _road_middle(scene.road, near) + half * (0.46 if scene.motion == "away" else -0.46)
    y = _HORIZON + near * (HEIGHT - _HORIZON)
    _draw_end_(frame, float(x), y, width=0.74 * float(half), tall=tall, front=scene.motion == "closer", body=body)


def _draw_side_(frame: np.ndarray, x: float, y: float, *, tall: bool, forward: int, body: np.ndarray) -> None:
    dark, glass = rgb(0.06, 0.06, 0.07), rgb(0.16, 0.2, 0.26)
    _blend_(frame, _box(x - 27, x + 27, y + 3, y + 6) * 0.5, dark)
    if tall:
        _blend_(frame, _box(x - 27, x + 27, y - 34, y + 1), body)
        _blend_(frame, _box(*_ordered(x + forward * 14, x + forward * 24), y - 30, y - 19), glass)
    else:
        _blend_(frame, _box(x - 27, x + 27, y - 15, y + 1), body)
        _blend_(frame, _box(x - 16, x + 14, y - 25, y - 13), body)
        _blend_(frame, _box(x - 13, x + 11, y - 22, y - 15), glass)
    lamp, tail = rgb(1, 0.97, 0.75), rgb(1, 0.25, 0.2)
    _blend_(frame, _box(*_ordered(x + forward * 23, x + forward * 28), y - 11, y - 6), lamp)
    _blend_(frame, _box(*_ordered(x - forward * 24, x - forward * 28), y - 11, y - 6), tail)
    for wheel in (x - 16, x + 16):
        _blend_(frame, _soft(6 - np.hypot(_COLUMNS - wheel, _ROWS - y)), dark)


def _draw_end_(
    frame: np.ndarray, x: float, y: float, *, width: float, tall: bool, front: bool, body: np.ndarray
) -> None:
    """The back of a vehicle, or its front; y is where its wheels stand."""
    dark, glass = rgb(0.06, 0.06, 0.07), rgb(0.16, 0.2, 0.26)
    half, height = width / 2, width * (1.15 if tall else 0.8)
    _blend_(frame, _box(x - half, x + half, y - 0.02 * width, y + 0.1 * width) * 0.6, dark)
    for side in (-1, 1):
        _blend_(frame, _box(*_ordered(x + side * 0.5 * half, x + side * 0.95 * half), y - 0.2 * width, y), dark)
    _blend_(frame, _box(x - half, x + half, y - 0.55 * height, y - 0.12 * width), body)
    roof = half * (1.0 if tall else 0.8)
    _blend_(frame, _box(x - roof, x + roof, y - height, y - 0.5 * height), body)
    _blend_(frame, _box(x - 0.8 * roof, x + 0.8 * roof, y - 0.9 * height, y - 0.6 * height), glass)
    lamp = rgb(1, 0.97, 0.75) if front else rgb(1, 0.25, 0.2)
    for side in (-1, 1):
        across = _ordered(x + side * 0.55 * half, x + side * 0.92 * half)
        _blend_(frame, _box(*across, y - 0.36 * width, y - 0.22 * width), lamp)


def _road_middle(road: Road, near: np.ndarray | float) -> np.ndarray | float:
    far = 1 - near
    match road:
        case "straight":
            return 80 + 0 * far
        case "curved":
            return 80 + 40 * far**2
        case "winding":
            return 80 - 26 * np.sin(math.pi * 1.7 * far) * far


def _half_road(near: np.ndarray | float) -> np.ndarray | float:
    return 5 + 57 * near


def _ordered(a: float, b: float) -> tuple[float, float]:
    return (a, b) if a < b else (b, a)


def _soft(inside: np.ndarray) -> np.ndarray:
    """Coverage of pixels by a shape, from the distance inside its edge: an edge is one pixel wide."""
    return np.clip(inside + 0.5, 0, 1)


def _box(x0: float, x1: float, y0: float, y1: float) -> np.ndarray:
    """Coverage of an upright box."""
    across = np.clip(_COLUMNS[0] + 1 - x0, 0, 1) * np.clip(x1 - _COLUMNS[0], 0, 1)
    down = np.clip(_ROWS[:, 0] + 1 - y0, 0, 1) * np.clip(y1 - _ROWS[:, 0], 0, 1)
    return down[:, None] * across


def _blend_(frame: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> None:
    """Paint colour over the frame where coverage is not 0; touches only the rows and columns that it must."""
    rows, columns = np.flatnonzero(coverage.any(1)), np.flatnonzero(coverage.any(0))
    if not len(rows):
        return
    where = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    frame[where] += coverage[where][..., None] * (colour - frame[where])
