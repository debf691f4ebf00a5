"""RenderConfig: everything about a run that is not in its manifest; one YAML file and key=value overrides."""

import difflib
import os
import re
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wan_ray.degrees import Degrees
from wan_ray.errors import ConfigError, RequestError
from wan_ray.extend_section import ExtendSection
from wan_ray.request import FIELDS, check_columns, parse_row
from wan_ray.variants import PRESETS, VARIANTS, Quantization
from wan_ray.wording import in_words

DType = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AdapterSection(_Section):
    """A LoRA .safetensors file, by path or fsspec URL, and its strength; merged into the weights as they load."""

    path: str
    scale: float = 1.0


class GangSection(_Section):
    """The ranks that render one clip together: cfg_degree x ulysses_degree x ring_degree of them, one GPU each.

    fsdp shards the DiT's weights over the ranks. strategy "xfuser" uses its attention on CUDA; "auto" chooses.
    timeout_s is how long a rank may be silent inside a step, and how long a gang may take to start, before it is
    killed and built anew. max_tries is how many gangs a row may cost before it is recorded as failed. save_every_s is
    how much of a clip's work a lost gang may cost: so often the clip's state is put beside the output.
    """

    cfg_degree: Literal[1, 2] = 1
    ulysses_degree: int = Field(1, ge=1, le=64)
    ring_degree: int = Field(1, ge=1, le=64)
    strategy: Literal["auto", "torch", "xfuser"] = "auto"
    fsdp: bool = False
    timeout_s: float = Field(600.0, gt=0)
    max_tries: int = Field(3, ge=1)
    save_every_s: float = Field(60.0, gt=0)

    @property
    def degrees(self) -> Degrees:
        """The same as numbers without settings."""
        return Degrees(cfg=self.cfg_degree, ulysses=self.ulysses_degree, ring=self.ring_degree)


class ModelSection(_Section):
    """Which weights. A bare DiT .safetensors brings no text encoder and no VAE: name the folder that has them.

    checkpoint and companions are a local path or any fsspec URL, staged once per node under cache_dir.
    preset names the sampler settings that distilled adapters need; a row and the run's defaults may override them.
    dtype "auto" is bfloat16 on a GPU and float32 on a CPU; the VAE always computes in float32.
    gang says which GPUs render one clip; "auto" chooses by what the shapes need; without one, a clip takes one worker.
    offload "blocks" keeps the DiT's blocks in host memory and fetches them in time; "model" moves the whole DiT out of
    the GPU between its uses. quantization keeps the weights of the blocks' linear layers in 8 bits (torchao); clips are
    others then, and the weights of each rank whole and on its GPU. vae_tile has the VAE decode at most so many pixels
    each way at a time, for a GPU that stages share; the frames are the same.
    """

    variant: str
    checkpoint: str
    companions: str | None = None
    adapters: tuple[AdapterSection, ...] = ()
    preset: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Device = "auto"
    gang: GangSection | Literal["auto"] | None = None
    offload: Literal["none", "model", "blocks"] = "none"
    quantization: Quantization = "none"
    vae_tile: int | None = Field(None, ge=64, multiple_of=8)
    cache_dir: str = "~/.cache/wan_ray"

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"{value!r} is not known; use one of {', '.join(PRESETS)}")
        return value

    @field_validator("variant")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in VARIANTS:
            raise ValueError(f"{value!r} is not known; use one of {', '.join(VARIANTS)}")
        return value

    @model_validator(mode="after")
    def _quantized_stay_whole(self) -> "ModelSection":
        sharded = isinstance(self.gang, GangSection) and self.gang.fsdp
        other = f"offload={self.offload!r}" if self.offload != "none" else "gang.fsdp=true" if sharded else None
        if self.quantization != "none" and other is not None:
            raise ValueError(
                f"quantization={self.quantization!r} does not go with {other}: weights of 8 bits are neither moved nor "
                "divided; leave one of the two out"
            )
        return self

    @property
    def leaner(self) -> "ModelSection | None":
        """The same with the DiT's blocks in host memory; None where they are there already, or cannot be."""
        if self.offload == "blocks" or self.quantization != "none":
            return None
        return self.model_copy(update={"offload": "blocks"})


class Replicas(_Section):
    """How many workers: min are always there, more up to max while there is work for them and room on the cluster."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Replicas":
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}; swap them")
        return self


class StageSection(_Section):
    """Workers of one stage: how many, and what each reserves of the cluster. A GPU may be shared by fractions.

    replicas may be written as a number. In the denoise stage a worker is a gang, and num_cpus and num_gpus are one
    rank's.
    """

    replicas: Replicas = Replicas(min=1, max=1)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)

    @field_validator("replicas", mode="before")
    @classmethod
    def _number_or_range(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if not isinstance(value, dict | Replicas):
            raise ValueError(f"{value!r} is neither a number of workers nor a range like {{min: 1, max: 4}}")
        return value

    @field_validator("num_gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"{value} is neither a part of one GPU nor a whole number of them; use 1 or less, or 2")
        return value


class StagesSection(_Section):
    extend: StageSection = StageSection(num_cpus=0.1)
    encode: StageSection = StageSection()
    denoise: StageSection = StageSection()
    decode: StageSection = StageSection()
    publish: StageSection = StageSection(num_cpus=0.1)


class HardwareSection(_Section):
    """What `plan` reckons with: the GPU type, how many the run may use, and what an hour of one costs."""

    gpu: Literal["A10G-24GB", "A100-40GB", "L40S-48GB", "A100-80GB", "H100-80GB", "H200-141GB"] = "H100-80GB"
    num_gpus: int = Field(1, ge=1)
    gpus_per_node: int = Field(8, ge=1)
    price_per_gpu_hour: float | None = Field(None, ge=0)


class LimitsSection(_Section):
    """What ends a run early, by its own records: how many may fail, the GPU-hours of work and what those cost.

    max_cost is in the unit of hardware.price_per_gpu_hour. deadline is a date and time with its zone. The same command
    goes on from there, with the limits counted anew.
    """

    max_failures: int | None = Field(None, ge=0)
    max_gpu_hours: float | None = Field(None, gt=0)
    max_cost: float | None = Field(None, gt=0)
    deadline: AwareDatetime | None = None


class VideoSection(_Section):
    """H.264 settings; crf 10 and medium are what the released code writes. threads is part of the bytes."""

    crf: int = Field(10, ge=0, le=51)
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"] = (
        "medium"
    )
    threads: int = Field(4, ge=1, le=64)


class ServeSection(_Section):
    """HTTP: where it listens, and what one client may ask. Jobs and results are kept under the config's output.

    scale_to_zero gives a gang's GPUs back when no job has come for a while; the next one waits for it to load.
    keys_file has a line "name:sha256 of the key" for each API key; without keys, only a loopback host is allowed.
    max_queued bounds the jobs that wait, max_queued_per_key those of one key; requests_per_minute is per key and
    ingress replica. Media by URL is fetched from allowed_media_hosts alone: names, whose addresses must be public, and
    addresses or networks, which may be private. Jobs are deleted keep_days after they came.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    ingress_replicas: int = Field(1, ge=1)
    keys_file: str | None = None
    scale_to_zero: bool = False
    max_queued: int = Field(200, ge=1)
    max_queued_per_key: int = Field(50, ge=1)
    requests_per_minute: int = Field(1200, ge=1)
    max_body_bytes: int = Field(64 * 2**20, ge=2**10)
    max_frames: int = Field(161, ge=1)
    max_inference_steps: int = Field(100, ge=1)
    allowed_media_hosts: tuple[str, ...] = ()
    keep_days: float = Field(7.0, gt=0)

    @field_validator("allowed_media_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            try:
                ip_network(entry, strict=False)
            except ValueError:
                if not _HOST_NAME.fullmatch(entry):
                    raise ValueError(
                        f"{entry!r} is no host; use a name such as cdn.example.com, an address, or a network such as "
                        "10.0.0.0/8"
                    ) from None
        return tuple(map(str.lower, value))


class RenderConfig(_Section):
    """A run. manifest and output are a local path or any fsspec URL; defaults fill what a row leaves empty.

    A row goes to the first of the models that renders its task and was trained at its size, else to the first that
    renders its task. A default that means nothing to a row's task, such as num_frames to t2i, is not applied to it.
    no_progress_timeout_s ends a run in which nothing finished for so long: set it above one clip's time.
    ray_address is "auto" for the running cluster, "local" for one of this process's own.
    """

    model: ModelSection | None = None
    models: tuple[ModelSection, ...] = ()
    manifest: str | None = None
    output: str | None = None
    defaults: dict[str, object] = {}
    extend: ExtendSection | None = None
    stages: StagesSection = StagesSection()
    video: VideoSection = VideoSection()
    hardware: HardwareSection | None = None
    limits: LimitsSection = LimitsSection()
    serve: ServeSection = ServeSection()
    no_progress_timeout_s: float = Field(6 * 3600.0, gt=0)
    ray_address: str = "auto"

    @field_validator("defaults")
    @classmethod
    def _valid_defaults(cls, value: dict[str, object]) -> dict[str, object]:
        known = [name for name in FIELDS if name not in ("id", "prompt", "vace")]
        try:
            check_columns(list(value))
            for name in value:
                if name not in known:
                    raise ValueError(f"{name!r} is not a column that can have a default; use one of {', '.join(known)}")
            parse_row({"prompt": "any", **value})
        except RequestError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _names_its_models(self) -> "RenderConfig":
        names = [section.variant for section in self.all_models]
        if (self.model is None) == (not self.models):
            raise ValueError("give either model, for one, or models, for a list of them")
        if len(set(names)) < len(names):
            raise ValueError(f"models: {', '.join(names)} names a variant twice; rows could not tell them apart")
        if self.limits.max_cost is not None and (self.hardware is None or self.hardware.price_per_gpu_hour is None):
            raise ValueError("limits.max_cost: without a price there is no cost; give hardware.price_per_gpu_hour")
        if self.extend is not None and self.extend.provider != "qwen" and self.stages.extend.replicas.max > 1:
            raise ValueError(
                f"stages.extend.replicas: {self.stages.extend.replicas.max} workers would each keep the limits of "
                f"{self.extend.provider!r} for themselves; use 1, and more extend.rows_at_once"
            )
        return self

    @property
    def all_models(self) -> tuple[ModelSection, ...]:
        """The models in the order of the config."""
        return self.models or tuple(filter(None, (self.model,)))


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
    _anchor_paths_(data, file.absolute().parent)
    return _overridden(data, overrides, what=f"config {str(path)!r}")


def override_config(config: RenderConfig, overrides: Sequence[str]) -> RenderConfig:
    """The config changed by overrides, as load_config takes them."""
    return _overridden(config.model_dump(mode="json"), overrides, what="config")


def _overridden(data: dict[str, object], overrides: Sequence[str], *, what: str) -> RenderConfig:
    for override in overrides:
        _apply_override_(data, override)
    try:
        return RenderConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{what}: " + "; ".join(map(_problem, error.errors()))) from None


def _problem(error: Any) -> str:
    if error["type"] != "extra_forbidden":
        return in_words(error)
    *parents, name = error["loc"]
    section: Any = RenderConfig
    for parent in parents:
        if isinstance(parent, str) and parent in section.model_fields:  # no position in models, no key of a map
            annotation = section.model_fields[parent].annotation
            section = next((t for t in get_args(annotation) if hasattr(t, "model_fields")), annotation)
    known = list(section.model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
    return f"{'.'.join(map(str, error['loc']))} is no setting; {meant}"


def _anchor_paths_(data: dict[str, object], folder: Path) -> None:
    listed = data.get("models")
    models = [data.get("model"), *(listed if isinstance(listed, list) else [])]
    adapters = [adapter for model in models if isinstance(model, dict) for adapter in model.get("adapters") or ()]
    places = [(data, ("manifest", "output")), *((model, ("checkpoint", "companions")) for model in models)]
    for section, keys in (*places, *((adapter, ("path",)) for adapter in adapters)):
        if isinstance(section, dict):
            for key in keys:
                value = section.get(key)
                if isinstance(value, str) and "://" not in value and not Path(value).expanduser().is_absolute():
                    section[key] = os.path.normpath(folder / value)


def _apply_override_(data: dict[str, object], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, leaf = key.split(".")
    if not equals or not all((*parents, leaf)):
        raise ConfigError(f"override {override!r} is not of the form key=value, e.g. video.crf=18")
    try:
        change: dict[str, object] = {leaf: yaml.safe_load(text)}
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    for name in reversed(parents):
        change = {name: change}
    _anchor_paths_(change, Path.cwd())
    section: Any = data
    value: Any = change
    for depth, name in enumerate(parents):
        section[name] = section.get(name) or {}
        section, value = section[name], value[name]
        if not isinstance(section, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[: depth + 1])!r} is a value, not a section")
    section[leaf] = value[leaf]
