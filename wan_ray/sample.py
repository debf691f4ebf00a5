"""A folder to try everything with: a tiny checkpoint, a manifest of a few rows, and a config."""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from wan_ray.demo.captions import caption, scene_at
from wan_ray.demo.checkpoint import unpack
from wan_ray.demo.scenes import NUM_FRAMES, draw
from wan_ray.media.image import encode_png
from wan_ray.model.debug import write_debug_checkpoint

_TRAINED = "# Everything runs on one machine without a GPU; the weights know drawn road scenes, as their CARD.md says."
_RANDOM = "# Everything runs on one machine without a GPU; the weights are random, so the clips show noise."
_CONFIG = """\
model:
  variant: {variant}
  checkpoint: checkpoint
manifest: manifest.parquet
output: output
defaults:
  num_inference_steps: {num_inference_steps}
stages:
  encode: {{num_cpus: 0.2}}
  denoise: {{num_cpus: 1}}
  decode: {{num_cpus: 0.5}}
  publish: {{num_cpus: 0.1}}
ray_address: local
"""

# Scenes that the demo model's training never saw.
ROWS = (
    ("yellow-truck", "t2v", "A yellow truck comes closer on a straight road through fields, foggy day", 33, "fog"),
    ("red-car", "t2v", "A snowy night: on a straight road through fields, a red car drives away", 33, "snow"),
    ("yellow-truck-zh", "t2v", "下雪的白天，沙漠，一辆黄色卡车在笔直的公路上向左行驶", 33, "snow"),
    ("blue-truck", "t2v", "A blue truck moves left on a curved road in the city, rainy evening", 33, "rain"),
    ("green-truck-zh", "t2v", "晴朗的傍晚，城市，一辆绿色卡车在蜿蜒的公路上驶向远方", 33, "clear"),
    ("blue-car", "t2v", "A blue car comes closer on a curved road in the city, foggy night", 33, "fog"),
    ("poster", "t2i", "A snowy day: on a winding road through the desert, a green truck moves left", 1, "snow"),
    ("poster-zh", "t2i", "晴朗的夜晚，沙漠，一辆绿色轿车在笔直的公路上向右行驶", 1, "clear"),
)


# Such scenes too: their captions are the prompts, and their first frames, as they are drawn, the images.
SCENES = tuple(scene_at(index, variation=index) for index in (1085, 366, 2309, 3118))


def write_sample(folder: Path, *, task: Literal["t2v", "i2v"] = "t2v", random: bool = False) -> Path:
    """Write the three into the folder, created if need be, and return the config's path.

    The checkpoint is the packaged demo model; with random, one of random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if random:
        write_debug_checkpoint(folder / "checkpoint", kind=task)
    else:
        with as_file(files("wan_ray") / "demo" / "weights") as weights:
            unpack(weights, folder / "checkpoint", i2v=task == "i2v")
    pq.write_table(_prompts() if task == "t2v" else _first_frames(), folder / "manifest.parquet")
    config = folder / "config.yaml"
    variant = "debug" if task == "t2v" else "debug-i2v"
    settings = _CONFIG.format(variant=variant, num_inference_steps=8 if random else 25)
    config.write_text(f"{_RANDOM if random else _TRAINED}\n{settings}", encoding="utf-8")
    return config


def _prompts() -> pa.Table:
    names = ("id", "task", "prompt", "num_frames")
    columns = {name: [row[i] for row in ROWS] for i, name in enumerate(names)}
    return pa.table({**columns, "labels": _labels([row[4] for row in ROWS])})


def _first_frames() -> pa.Table:
    """The rows of SCENES, each with its image."""
    rows = [
        {
            "id": f"{scene.colour}-{scene.vehicle}-{scene.motion}",
            "task": "i2v",
            "prompt": caption(scene),
            "image": encode_png(draw(scene, num_frames=1)[0]),
            "num_frames": NUM_FRAMES,
        }
        for scene in SCENES
    ]
    return pa.Table.from_pylist(rows).append_column("labels", _labels([scene.weather for scene in SCENES]))


def _labels(weathers: Sequence[str]) -> pa.Array:
    return pa.array([[("weather", weather)] for weather in weathers], pa.map_(pa.string(), pa.string()))
