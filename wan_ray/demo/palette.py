"""What a road scene may show, and the colours it is drawn in (0..1, red green blue)."""

from typing import Literal, get_args

import numpy as np

Colour = Literal["red", "blue", "yellow", "green"]
Vehicle = Literal["car", "truck"]
Motion = Literal["away", "closer", "left", "right"]
Time = Literal["day", "evening", "night"]
Weather = Literal["clear", "rain", "fog", "snow"]
Road = Literal["straight", "curved", "winding"]
Place = Literal["fields", "desert", "city"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
VEHICLES: tuple[Vehicle, ...] = get_args(Vehicle)
MOTIONS: tuple[Motion, ...] = get_args(Motion)
TIMES: tuple[Time, ...] = get_args(Time)
WEATHERS: tuple[Weather, ...] = get_args(Weather)
ROADS: tuple[Road, ...] = get_args(Road)
PLACES: tuple[Place, ...] = get_args(Place)

RGB = tuple[float, float, float]


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """One colour, float32 [3]."""
    return np.array((red, green, blue), np.float32)


BODY: dict[Colour, RGB] = {
    "red": (0.90, 0.08, 0.08),
    "blue": (0.08, 0.22, 0.92),
    "yellow": (0.98, 0.82, 0.05),
    "green": (0.05, 0.75, 0.28),
}
GROUND: dict[str, RGB] = {
    "fields": (0.52, 0.60, 0.36),
    "desert": (0.84, 0.70, 0.48),
    "city": (0.60, 0.59, 0.58),
    "snow": (0.90, 0.93, 0.96),
}
ROAD: dict[Weather, RGB] = {
    "clear": (0.36, 0.36, 0.38),
    "rain": (0.24, 0.27, 0.33),
    "fog": (0.38, 0.38, 0.40),
    "snow": (0.55, 0.57, 0.61),
}
# What the time of day does to everything that does not shine of itself.
LIGHT: dict[Time, np.ndarray] = {
    "day": rgb(1.0, 1.0, 1.0),
    "evening": rgb(0.80, 0.62, 0.52),
    "night": rgb(0.26, 0.28, 0.38),
}
FOG: dict[Time, RGB] = {"day": (0.80, 0.82, 0.84), "evening": (0.82, 0.62, 0.50), "night": (0.17, 0.18, 0.24)}
# Of the sky: at the top and at the horizon.
SKY: dict[tuple[Time, Weather], tuple[RGB, RGB]] = {
    ("day", "clear"): ((0.25, 0.53, 0.92), (0.72, 0.86, 0.98)),
    ("day", "rain"): ((0.42, 0.47, 0.54), (0.62, 0.66, 0.70)),
    ("day", "fog"): ((0.74, 0.77, 0.80), (0.80, 0.82, 0.84)),
    ("day", "snow"): ((0.66, 0.72, 0.80), (0.84, 0.88, 0.92)),
    ("evening", "clear"): ((0.46, 0.22, 0.46), (1.00, 0.58, 0.24)),
    ("evening", "rain"): ((0.42, 0.27, 0.34), (0.72, 0.45, 0.34)),
    ("evening", "fog"): ((0.74, 0.50, 0.42), (0.82, 0.62, 0.50)),
    ("evening", "snow"): ((0.56, 0.36, 0.48), (0.86, 0.58, 0.50)),
    ("night", "clear"): ((0.02, 0.03, 0.12), (0.08, 0.10, 0.26)),
    ("night", "rain"): ((0.05, 0.06, 0.09), (0.12, 0.13, 0.18)),
    ("night", "fog"): ((0.14, 0.15, 0.20), (0.17, 0.18, 0.24)),
    ("night", "snow"): ((0.08, 0.09, 0.16), (0.20, 0.21, 0.29)),
}
