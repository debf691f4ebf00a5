"""RenderConfig: everything about a run that is not in its manifest; one YAML file and key=value overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wan_ray.errors import ConfigError, RequestError
from wan_ray.request import FIELDS, parse_row
from wan_ray.variants import VARIANTS, Variant, get_variant

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """Which weights. A bare DiT .safetensors brings no text encoder and no VAE: name the folder that has them.

    checkpoint and companions are a local path or any fsspec URL, staged once per node under cache_dir.
    dtype "auto" is bfloat16 on a GPU and float32 on a CPU; the VAE always computes in float32.
    """

    variant: str
    checkpoint: str
    companions: str | None = None
    dtype: DType | Literal["auto"] = "auto"
    device: Device = "auto"
    cache_dir: str = "~/.cache/wan_ray"

    @field_validator("variant")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in VARIANTS:
            raise ValueError(f"{value!r} is not known; use one of {', '.join(VARIANTS)}")
        return value


class StageSection(_Section):
    """Workers of one stage: how many, and what each reserves of the cluster. A GPU may be shared by fractions."""

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)


class StagesSection(_Section):
    encode: StageSection = StageSection()
    denoise: StageSection = StageSection()
    decode: StageSection = StageSection()
    publish: StageSection = StageSection(num_cpus=0.1)


class VideoSection(_Section):
    """H.264 settings; crf 10 and medium are what the released code writes. threads is part of the bytes."""

    crf: int = Field(10, ge=0, le=51)
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "medium"
    )
    threads: int = Field(4, ge=1, le=64)


class RenderConfig(_Section):
    """A run. manifest and output are a local path or any fsspec URL; defaults fill what a row leaves empty (num_frames not for t2i).

    no_progress_timeout_s ends a run in which nothing finished for so long: set it above one clip's time.
    ray_address is "auto" for the running cluster, "local" for one of this process's own.
    """

    model: ModelSection
    manifest: str | None = None
    output: str | None = None
    defaults: dict[str, object] = {}
    stages: StagesSection = StagesSection()
    video: VideoSection = VideoSection()
    no_progress_timeout_s: float = Field(6 * 3600.0, gt=0)
    ray_address: str = "auto"

    @field_validator("defaults")
    @classmethod
    def _valid_defaults(cls, value: dict[str, object]) -> dict[str, object]:
        for name in value:
            if name not in FIELDS or name in ("id", "prompt"):
                raise ValueError(f"{name!r} is not a column that can have a default; known: {', '.join(FIELDS)}")
        try:
            parse_row({"prompt": "any", **value})
        except RequestError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def variant(self) -> Variant:
        return get_variant(self.model.variant)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RenderConfig:
    """The config in a YAML file, changed by overrides such as "video.crf=18"; ConfigError names what is wrong.

    Relative paths in the file are relative to its folder; in overrides, to the working directory.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {str(path)!r} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config {str(path)!r} holds {type(data).__name__}, not a mapping of settings")
    _anchor_paths(data, file.parent)
    for override in overrides:
        _apply_override_(data, override)
    try:
        return RenderConfig.model_validate(data)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"config {str(path)!r}: " + "; ".join(lines)) from None


def _anchor_paths(data: dict[str, object], folder: Path) -> None:
    model = data.get("model")
    for section, keys in ((data, ("manifest", "output")), (model, ("checkpoint", "companions"))):
        if isinstance(section, dict):
            for key in keys:
                value = section.get(key)
                if isinstance(value, str) and "://" not in value and not Path(value).expanduser().is_absolute():
                    section[key] = str(folder / value)


def _apply_override_(data: dict[str, object], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value, e.g. video.crf=18")
    *parents, leaf = key.split(".")
    section: object = data
    for name in parents:
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {name!r} is inside a value, not a section")
        section = section.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"override {override!r}: {'.'.join(parents)!r} is a value, not a section")
    section[leaf] = yaml.safe_load(text)
