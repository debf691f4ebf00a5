"""A folder to try everything with: a tiny random checkpoint, a manifest of eight rows, and a config."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from wan_ray.model.debug import write_debug_checkpoint

_CONFIG = """\
# Everything runs on one machine without a GPU; the weights are random, so the clips show noise.
model:
  variant: debug
  checkpoint: checkpoint
manifest: manifest.parquet
output: output
defaults:
  num_inference_steps: 8
stages:
  encode: {num_cpus: 0.2}
  denoise: {num_cpus: 1}
  decode: {num_cpus: 0.5}
  publish: {num_cpus: 0.1}
ray_address: local
"""

_ROWS = (
    ("sunny-highway", "t2v", "A red car drives along a sunny highway, camera following from behind", 33, "sunny"),
    ("rainy-night", "t2v", "Wet asphalt mirrors neon signs while a taxi waits at a crossing, rainy night", 33, "rain"),
    ("fog-zh", "t2v", "浓雾中的乡间公路，一辆白色货车缓缓驶来，车灯微亮", 33, "fog"),
    ("snow-zh", "t2v", "雪后的城市街道，行人撑伞走过斑马线，镜头缓缓推进", 17, "snow"),
    ("tunnel", "t2v", "Driving into a long tunnel, lamps pass overhead in a steady rhythm", 17, "clear"),
    ("poster", "t2i", "A minimalist poster of a winding mountain road at dawn", 1, "clear"),
    ("lantern-zh", "t2i", "夜色里的红灯笼，古镇石桥，水面倒影", 1, "clear"),
    ("dashboard", "t2i", "Close-up of a car dashboard, warm evening light", 1, "clear"),
)


def write_sample(folder: Path) -> Path:
    """Write the three into the folder, created if need be, and return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_debug_checkpoint(folder / "checkpoint")
    names = ("id", "task", "prompt", "num_frames")
    columns = {name: [row[i] for row in _ROWS] for i, name in enumerate(names)}
    labels = pa.array([[("weather", row[4])] for row in _ROWS], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({**columns, "labels": labels}), folder / "manifest.parquet")
    config = folder / "config.yaml"
    config.write_text(_CONFIG, encoding="utf-8")
    return config
