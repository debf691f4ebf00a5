"""StageLoader: from a config to loaded stages, the same in one process and in a cluster's workers."""

import dataclasses
from dataclasses import dataclass

import torch

from wan_ray.config import GangSection, ModelSection, VideoSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.layout import roomier_layout
from wan_ray.errors import CheckpointError, ConfigError
from wan_ray.model.checkpoint import Checkpoint, find_checkpoint
from wan_ray.model.lora import Adapter
from wan_ray.model.quantize import quantized_fingerprint
from wan_ray.parallel.process_group import Groups
from wan_ray.stages.condition import Conditioner, ImageConditioner, VaceConditioner
from wan_ray.stages.decode import DecodeStage
from wan_ray.stages.denoise import DenoiseStage
from wan_ray.stages.encode import EncodeStage
from wan_ray.stages.memory import memory_for
from wan_ray.storage.staging import stage_checkpoint
from wan_ray.variants import VARIANTS, DiTArchitecture, get_variant


@dataclass(frozen=True, kw_only=True)
class StageLoader:
    """A recipe small enough to travel; each method loads one stage where it is called."""

    model: ModelSection
    video: VideoSection = VideoSection()

    @property
    def device(self) -> torch.device:
        """ConfigError when a GPU is asked for and there is none."""
        wanted = self.model.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ConfigError("model.device='cuda', but no GPU is visible here; use 'auto' or reserve num_gpus")
        return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on a GPU and float32 on a CPU, where bfloat16 is ten times slower, unless the config says."""
        if self.model.dtype == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return getattr(torch, self.model.dtype)

    def checkpoint(self) -> Checkpoint:
        """The checkpoint on this node; CheckpointError says what it lacks."""
        section = self.model
        companions = section.companions and stage_checkpoint(section.companions, section.cache_dir)
        return find_checkpoint(stage_checkpoint(section.checkpoint, section.cache_dir), companions)

    def adapters(self) -> list[Adapter]:
        """The adapters on this node."""
        cache = self.model.cache_dir
        return [Adapter(path=stage_checkpoint(a.path, cache), scale=a.scale) for a in self.model.adapters]

    def check(self) -> str:
        """The DiT's fingerprint, adapters and quantization included; loads no weights.

        CheckpointError when the weights lack a tensor or are another's.
        """
        checkpoint, adapters = self.checkpoint(), self.adapters()
        check_variant(self.model.variant, checkpoint.check(adapters))
        fingerprint = checkpoint.empty_dit(device=torch.device("cpu"), adapters=adapters)[1].fingerprint
        return quantized_fingerprint(fingerprint, self.model.quantization)

    def encode(self) -> EncodeStage:
        """The text encoder's stage."""
        checkpoint, tasks = self.checkpoint(), get_variant(self.model.variant).tasks
        conditioner: Conditioner | None = None
        if "vace" in tasks:
            conditioner = VaceConditioner.load(checkpoint, device=self.device)
        elif "t2v" not in tasks:
            conditioner = ImageConditioner.load(checkpoint, device=self.device, variant=get_variant(self.model.variant))
        return EncodeStage.load(checkpoint, dtype=self.dtype, device=self.device, conditioner=conditioner)

    def denoise(self, groups: Groups | None = None) -> DenoiseStage:
        """The DiT's stage, or with groups a rank's part of it: then every rank of the gang calls this.

        CheckpointError when the weights are another model's than the config says.
        """
        gang = self.model.gang if isinstance(self.model.gang, GangSection) else GangSection()
        quantized = self.model.quantization != "none"
        fix = "set model.offload=blocks, or take a gang with fsdp: true" + quantized * ", and drop model.quantization"
        with memory_for("the DiT's weights", fix=fix):
            stage = DenoiseStage.load(
                self.checkpoint(),
                dtype=self.dtype,
                device=self.device,
                adapters=self.adapters(),
                offload=self.model.offload,
                quantization=self.model.quantization,
                groups=groups,
                strategy=gang.strategy,
                fsdp=gang.fsdp,
                fix=self._denoise_fix,
            )
        check_variant(self.model.variant, stage.model.architecture)
        return stage

    def _denoise_fix(self, bucket: Bucket) -> str:
        layout = roomier_layout(self.model, bucket)
        larger = "" if layout is None else f"take {layout}, or "
        return f"{larger}render fewer pixels or frames"

    def decode(self) -> DecodeStage:
        """The VAE's stage."""
        return DecodeStage.load(self.checkpoint(), device=self.device, video=self.video, tile=self.model.vae_tile)


def check_variant(name: str, found: DiTArchitecture) -> None:
    """Raise CheckpointError when a DiT of these sizes is not the variant of that name."""
    wanted = get_variant(name).architecture
    if wanted is None or wanted == found:
        return
    looks_like = variant_of(found)
    hint = "" if get_variant(looks_like).architecture is None else f"; it looks like {looks_like!r}"
    differing = ", ".join(differing_sizes(found, wanted))
    raise CheckpointError(f"the checkpoint is not model.variant={name!r}: {differing}{hint}")


def differing_sizes(found: DiTArchitecture, wanted: DiTArchitecture) -> list[str]:
    """Each size that is not the wanted one, in words."""
    return [
        f"{f.name} {getattr(found, f.name)} instead of {getattr(wanted, f.name)}"
        for f in dataclasses.fields(found)
        if getattr(found, f.name) != getattr(wanted, f.name)
    ]


def variant_of(architecture: DiTArchitecture) -> str:
    """Name of the released model of these sizes, the first of two; else of the debug one that renders its tasks."""
    images = {257: "debug-i2v", 514: "debug-flf2v"}.get(architecture.image_tokens, "debug")
    debug = "debug-vace" if architecture.vace_layers else images
    return next((v.name for v in VARIANTS.values() if v.architecture == architecture), debug)
