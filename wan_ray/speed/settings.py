"""What is to be measured: the command's flags. No torch, so that the command line can be read without it."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TextIO, get_args

from wan_ray.errors import ConfigError
from wan_ray.variants import Quantization, Variant, get_variant

Part = Literal["dit", "vae", "text"]
PARTS: tuple[Part, ...] = get_args(Part)
Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """device and dtype are None where the machine decides; num_layers is None for all of the released ones."""

    variant: Variant
    width: int
    height: int
    num_frames: int = 81
    device: Literal["cuda", "cpu"] | None = None
    dtype: Dtype | None = None
    num_layers: int | None = None
    quantization: Quantization = "none"
    parts: tuple[Part, ...] = PARTS

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """ConfigError when a flag's value cannot be measured."""
        variant = get_variant(options.variant)
        width, height = size_of(options.size) if options.size else variant.sizes[0]
        if options.frames < 1 or options.frames % 4 != 1:
            raise ConfigError(f"--frames {options.frames} is no clip's length; use 4n+1, e.g. 81")
        most = variant.architecture.num_layers if variant.architecture else None
        if options.layers is not None and (options.layers < 1 or (most and options.layers > most)):
            raise ConfigError(f"--layers {options.layers} of {variant.name!r}; use 1 to {most or 'any number'}")
        parts = tuple(options.parts.split(",")) if options.parts else PARTS
        if unknown := [part for part in parts if part not in PARTS]:
            raise ConfigError(f"--parts has {unknown[0]!r}; use some of {','.join(PARTS)}")
        return cls(
            variant=variant,
            width=width,
            height=height,
            num_frames=options.frames,
            device=options.device,
            dtype=options.dtype,
            num_layers=options.layers,
            quantization=options.quantization or "none",
            parts=parts,
        )


def add_engine_arguments(parser: argparse._ActionsContainer) -> None:
    """The flags that Settings are made of, and where the figures go."""
    parser.add_argument("--variant", default="debug", help="whose sizes: t2v-1.3B, t2v-14B, ... (default debug)")
    parser.add_argument("--size", metavar="WxH", help="pixels, e.g. 832x480 (default: the variant's first)")
    parser.add_argument("--frames", type=int, default=81, help="4n+1 (default 81)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="of the DiT's blocks (default none)")
    parser.add_argument("--layers", type=int, metavar="N", help="only so many layers of the released width")
    parser.add_argument("--parts", metavar="PART,...", help=f"only some of {','.join(PARTS)}")


def engine_command(options: argparse.Namespace) -> str:
    """The command that measures the same again."""
    named = ("variant", "size", "frames", "device", "dtype", "quantization", "layers", "parts")
    flags = [f"--{name} {value}" for name in named if (value := getattr(options, name)) is not None]
    return " ".join(["wan-ray bench --engine", *flags])


def with_folder(file: Path | None) -> Path | None:
    """Where figures go, with its folder made."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    return file


def write_out(stream: TextIO, text: str) -> None:
    """A line, at once."""
    stream.write(f"{text}\n")
    stream.flush()


def size_of(text: str) -> tuple[int, int]:
    """Width and height of "832x480"; ConfigError when they are none, or fall into no tokens."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ConfigError(f"--size {text!r} is not a width and a height; write e.g. 832x480")
    width, height = int(found[1]), int(found[2])
    if not width or not height or width % 16 or height % 16:
        raise ConfigError(f"--size {text!r} does not fall into tokens of 16x16 pixels; use multiples of 16")
    return width, height
