"""A folder to try everything with: a tiny checkpoint, a manifest of eight rows, and a config."""

from importlib.resources import as_file, files
from pathlib import Path
from shutil import copytree

import pyarrow as pa
import pyarrow.parquet as pq

from wan_ray.model.debug import write_debug_checkpoint

_TRAINED = "# Everything runs on one machine without a GPU; the weights know drawn road scenes, as their CARD.md says."
_RANDOM = "# Everything runs on one machine without a GPU; the weights are random, so the clips show noise."
_CONFIG = """\
model:
  variant: debug
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


def write_sample(folder: Path, *, random: bool = False) -> Path:
    """Write the three into the folder, created if need be, and return the config's path.

    The checkpoint is the packaged demo model; with random, one of random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if random:
        write_debug_checkpoint(folder / "checkpoint")
    else:
        with as_file(files("wan_ray") / "demo" / "weights") as weights:
            copytree(weights, folder / "checkpoint", dirs_exist_ok=True)
    names = ("id", "task", "prompt", "num_frames")
    columns = {name: [row[i] for row in ROWS] for i, name in enumerate(names)}
    labels = pa.array([[("weather", row[4])] for row in ROWS], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({**columns, "labels": labels}), folder / "manifest.parquet")
    config = folder / "config.yaml"
    text = f"{_RANDOM if random else _TRAINED}\n{_CONFIG.format(num_inference_steps=8 if random else 25)}"
    config.write_text(text, encoding="utf-8")
    return config
