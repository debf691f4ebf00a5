"""The released Wan2.1 models, one line each, and what every task does when a row does not say. Plain data, no torch."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from wan_ray.errors import ConfigError

Task = Literal["t2v", "t2i", "i2v", "flf2v", "vace"]
Solver = Literal["unipc", "dpm++", "euler"]
TASKS: tuple[Task, ...] = get_args(Task)

# Wan2.1 wan/configs/shared_config.py:19 and wan_i2v_14B.py:11 (9737cba): the models were tuned against these words.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """What a row of this task gets where it says nothing."""

    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    flow_shift: float = 5.0
    fps: float = 16.0
    solver: Solver = "unipc"
    negative_prompt: str = NEGATIVE_PROMPT


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What rows get where they say nothing, in place of the task's, because the weights were distilled for it."""

    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    solver: Solver


# The public 4-step adapters for Wan2.1 (lightx2v): no guidance, noise levels 1, 0.9375, 0.8333 and 0.625.
PRESETS = {"lightx2v-4-step": Preset(num_inference_steps=4, guidance_scale=1.0, flow_shift=5.0, solver="euler")}

TASK_DEFAULTS: dict[Task, TaskDefaults] = {
    "t2v": TaskDefaults(),
    "t2i": TaskDefaults(num_frames=1),
    "i2v": TaskDefaults(num_inference_steps=40, negative_prompt="镜头晃动，" + NEGATIVE_PROMPT),
    "flf2v": TaskDefaults(flow_shift=16.0, negative_prompt="镜头切换，镜头晃动，" + NEGATIVE_PROMPT),
    "vace": TaskDefaults(flow_shift=16.0),
}


Quantization = Literal["none", "int8", "float8"]
Quality = Literal["lossless", "high", "draft"]


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What is not computed of a clip, to save time: see the columns of these names in request.py."""

    step_cache: float = 0.0
    guidance_start: float = 0.0
    guidance_stop: float = 1.0


QUALITIES: dict[Quality, Shortcuts] = {
    "lossless": Shortcuts(),
    "high": Shortcuts(step_cache=0.05),
    "draft": Shortcuts(step_cache=0.12, guidance_stop=0.6),
}


@dataclass(frozen=True, kw_only=True)
class DiTArchitecture:
    """Sizes of a denoiser; head width is dim / num_heads.

    image_tokens: 0 without, 257 with one (I2V), 514 with two (FLF2V) images. vace_layers: the blocks that take a hint.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    frequency_dim: int = 256
    image_tokens: int = 0
    vace_layers: tuple[int, ...] = ()
    vace_in_channels: int = 0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One released model: the tasks it renders, the sizes (width, height) it was trained at, default first.

    max_pixels bounds width x height of a row. architecture is None where any will do. flow_shift is the model's own
    default, where it has one.
    """

    name: str
    tasks: tuple[Task, ...]
    sizes: tuple[tuple[int, int], ...]
    max_pixels: int
    architecture: DiTArchitecture | None
    flow_shift: float | None = None


_SMALL = DiTArchitecture(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
_LARGE = DiTArchitecture(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_I2V = replace(_LARGE, in_channels=36, image_tokens=257)
_FLF2V = replace(_LARGE, in_channels=36, image_tokens=514)
_VACE_SMALL = replace(_SMALL, vace_layers=tuple(range(0, 30, 2)), vace_in_channels=96)
_VACE_LARGE = replace(_LARGE, vace_layers=tuple(range(0, 40, 5)), vace_in_channels=96)
_TEXT: tuple[Task, ...] = ("t2v", "t2i")
_480P = ((832, 480), (480, 832))
_720P = ((1280, 720), (720, 1280))
_HD, _FULL_HD = 1280 * 720, 1920 * 1088

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant(name="t2v-1.3B", tasks=_TEXT, sizes=_480P, max_pixels=_HD, architecture=_SMALL),
        Variant(
            name="t2v-14B",
            tasks=_TEXT,
            sizes=(*_720P, *_480P, (1024, 1024)),
            max_pixels=_FULL_HD,
            architecture=_LARGE,
        ),
        # One architecture, two trainings: the checkpoint's name tells them apart, its tensors do not.
        Variant(name="i2v-14B-480P", tasks=("i2v",), sizes=_480P, max_pixels=_HD, architecture=_I2V, flow_shift=3.0),
        Variant(name="i2v-14B-720P", tasks=("i2v",), sizes=_720P, max_pixels=_FULL_HD, architecture=_I2V),
        Variant(name="flf2v-14B", tasks=("flf2v",), sizes=_720P, max_pixels=_FULL_HD, architecture=_FLF2V),
        Variant(name="vace-1.3B", tasks=("vace",), sizes=_480P, max_pixels=_HD, architecture=_VACE_SMALL),
        Variant(
            name="vace-14B", tasks=("vace",), sizes=(*_720P, *_480P), max_pixels=_FULL_HD, architecture=_VACE_LARGE
        ),
        # Any sizes and any architecture: tiny random models for demos and tests.
        Variant(name="debug", tasks=_TEXT, sizes=((160, 96),), max_pixels=_FULL_HD, architecture=None),
        Variant(name="debug-i2v", tasks=("i2v",), sizes=((160, 96),), max_pixels=_FULL_HD, architecture=None),
        Variant(name="debug-flf2v", tasks=("flf2v",), sizes=((160, 96),), max_pixels=_FULL_HD, architecture=None),
        Variant(name="debug-vace", tasks=("vace",), sizes=((160, 96),), max_pixels=_FULL_HD, architecture=None),
    )
}


def get_variant(name: str) -> Variant:
    """The variant of that name; ConfigError lists the names there are."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise ConfigError(f"model.variant={name!r} is not known; use one of {', '.join(VARIANTS)}") from None
