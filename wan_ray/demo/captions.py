"""Captions of scenes, in English and Chinese, and which scenes training never sees."""

import itertools
import zlib

import numpy as np

from wan_ray.demo.palette import COLOURS, MOTIONS, PLACES, ROADS, TIMES, VEHICLES, WEATHERS
from wan_ray.demo.scenes import Scene

_ENGLISH = {
    "away": "drives away",
    "closer": "comes closer",
    "left": "moves left",
    "right": "moves right",
    "clear": "clear",
    "rain": "rainy",
    "fog": "foggy",
    "snow": "snowy",
    "fields": "through fields",
    "desert": "through the desert",
    "city": "in the city",
}
_CHINESE = {
    **{"red": "红色", "blue": "蓝色", "yellow": "黄色", "green": "绿色", "car": "轿车", "truck": "卡车"},
    **{"away": "驶向远方", "closer": "迎面驶来", "left": "向左行驶", "right": "向右行驶"},
    **{"clear": "晴朗的", "rain": "下雨的", "fog": "有雾的", "snow": "下雪的"},
    **{"day": "白天", "evening": "傍晚", "night": "夜晚"},
    **{"straight": "笔直的", "curved": "弯曲的", "winding": "蜿蜒的"},
    **{"fields": "田野", "desert": "沙漠", "city": "城市"},
}
# A caption names all that its scene varies in. The third is Chinese.
NUM_TEMPLATES = 3


def caption(scene: Scene, template: int = 0) -> str:
    """One of NUM_TEMPLATES sentences that say what the scene shows."""
    if template == 2:
        place, time, weather, road, colour, vehicle, motion = (
            _CHINESE[value]
            for value in (
                scene.place,
                scene.time,
                scene.weather,
                scene.road,
                scene.colour,
                scene.vehicle,
                scene.motion,
            )
        )
        return f"{weather}{time}，{place}，一辆{colour}{vehicle}在{road}公路上{motion}"
    motion, weather, place = _ENGLISH[scene.motion], _ENGLISH[scene.weather], _ENGLISH[scene.place]
    thing = f"{scene.colour} {scene.vehicle}"
    if template == 1:
        return f"A {weather} {scene.time}: on a {scene.road} road {place}, a {thing} {motion}"
    return f"A {thing} {motion} on a {scene.road} road {place}, {weather} {scene.time}"


def words() -> tuple[str, ...]:
    """What captions are made of, each once, as the tokenizer's whole words; Chinese ones without a blank before."""
    scenes = (scene_at(index, 0) for index in range(NUM_SCENES))
    english = {
        word for scene in scenes for template in (0, 1) for word in caption(scene, template).replace(",", "").split()
    }
    plain = {word.rstrip(":") for word in english} | {"a"}
    return (*sorted("\N{LOWER ONE EIGHTH BLOCK}" + word for word in plain), *_CHINESE.values(), "公路上", "一辆", "在")


_COMBINATIONS = tuple(itertools.product(COLOURS, VEHICLES, MOTIONS, TIMES, WEATHERS, ROADS, PLACES))
NUM_SCENES = len(_COMBINATIONS)


def scene_at(index: int, variation: int) -> Scene:
    """The scene of one of the NUM_SCENES combinations."""
    colour, vehicle, motion, time, weather, road, place = _COMBINATIONS[index]
    return Scene(
        colour=colour,
        vehicle=vehicle,
        motion=motion,
        time=time,
        weather=weather,
        road=road,
        place=place,
        variation=variation,
    )


def is_held_out(index: int) -> bool:
    """Whether training never sees this combination: one in ten, by a hash."""
    return zlib.crc32(f"scene {index}".encode()) % 10 == 0


def scenes(num: int, *, held_out: bool, seed: int) -> list[Scene]:
    """So many scenes drawn at random from one side of the split."""
    random = np.random.RandomState(seed)
    indices = [index for index in range(NUM_SCENES) if is_held_out(index) == held_out]
    return [scene_at(indices[random.randint(len(indices))], variation=int(random.randint(1 << 31))) for _ in range(num)]
