"""Trains text encoder and DiT together, by flow matching on the latents of drawn frames and clips."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from wan_ray.demo.batched import BlockForward, FirstFrames, Model, block_forward
from wan_ray.demo.captions import NUM_TEMPLATES, caption
from wan_ray.demo.checkpoint import random_image_embedding
from wan_ray.demo.progress import Run, Schedule, half_precision, train_
from wan_ray.demo.scenes import Scene
from wan_ray.model.dit import DiT
from wan_ray.model.text_encoder import TextEncoderArchitecture, token_ids
from wan_ray.variants import NEGATIVE_PROMPT, DiTArchitecture

TEXT_DIM = 128
ARCHITECTURE = DiTArchitecture(dim=192, ffn_dim=768, num_heads=3, num_layers=6, text_dim=TEXT_DIM, frequency_dim=128)
I2V_ARCHITECTURE = replace(
    ARCHITECTURE, dim=96, ffn_dim=384, num_heads=2, num_layers=5, in_channels=36, image_tokens=257
)
_DROPPED = 0.14  # part of the captions that give way to no text, or in every third step to the released negative prompt
_SHIFT = 3.0  # as in sampling: most steps near noise, where a clip's content is decided
_VEHICLE_WEIGHT = 3.0
_EMA = 0.998


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is trained on: latents [num, C, T, H, W], where their vehicle is [num, 1, T, H, W], the scenes they show.

    For I2V also what their first frames are to it: condition [num, 20, T, H, W] and image_features [num, 257, 1280].
    """

    latents: Tensor
    vehicle: Tensor
    scenes: list[Scene]
    condition: Tensor | None = None
    image_features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DitPlan:
    """How long is trained: num_frame_steps on first frames, then num_clip_steps on clips; and how.

    compiled: the blocks go through torch.compile, which takes minutes once and halves a step.
    """

    num_frame_steps: int
    num_clip_steps: int
    peak: float = 2e-3
    hold: float = 0.4
    frames_per_step: int = 32
    clips_per_step: int = 8
    seed: int = 0
    compiled: bool = False


class Trainer:
    """Owns the model, its moving average and its optimizers.

    Examples with first frames train an I2V model, under a text encoder that stays as it is given.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        frames: Examples,
        clips: Examples,
        *,
        plan: DitPlan,
        architecture: DiTArchitecture = ARCHITECTURE,
        text_encoder: nn.Module | None = None,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.frames = frames
        self.clips = clips
        text = TextEncoderArchitecture(
            vocab_size=tokenizer.get_vocab_size(),
            dim=architecture.text_dim,
            num_layers=2,
            num_heads=4,
            head_dim=32,
            ffn_dim=256,
        )
        device = clips.latents.device
        self.model = Model(text, architecture)
        apply_initial_weights(self.model.dit)
        if text_encoder is not None:
            self.model.text_encoder.load_state_dict(text_encoder.state_dict())
            self.model.text_encoder.requires_grad_(False)
        self.model.to(device)
        self.first_frames = self._first_frames()
        self.average = deepcopy(self.model).requires_grad_(False)
        self.ids = cache(lambda text: token_ids(tokenizer, text))
        self.block: BlockForward = torch.compile(block_forward, dynamic=False) if plan.compiled else block_forward

    def train(self, file: Path, *, on_save: Callable[[], None] = lambda: None, save_every_s: float = 240) -> None:
        """Take the steps of the plan that the file does not have yet."""
        run = Run(file=file, parts={"model": self.model, "average": self.average}, optimizers=self.optimizers())
        run.load_()
        schedule = Schedule(
            num_steps=self.plan.num_frame_steps + self.plan.num_clip_steps, peak=self.plan.peak, hold=self.plan.hold
        )
        train_(run, schedule, self.loss_of, after_step=self.average_, on_save=on_save, save_every_s=save_every_s)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Muon (of torch 2.9 or newer) for the matrices inside blocks, AdamW for all else."""
        matrices, others = [], []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            inside = ".block" in name and parameter.ndim == 2 and "relative_attention_bias" not in name
            (matrices if inside else others).append(parameter)
        muon = torch.optim.Muon(
            [{"params": matrices, "scale": 1.0}], lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW([{"params": others, "scale": 1.0}], lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        return {"muon": muon, "adam": adam}

    def loss_of(self, step: int) -> Tensor:
        """Of a batch that depends on the step's number alone; where the vehicle is counts more."""
        random = np.random.RandomState([self.plan.seed, step])
        on_frames = step < self.plan.num_frame_steps
        examples = self.frames if on_frames else self.clips
        size = self.plan.frames_per_step if on_frames else self.plan.clips_per_step
        indices = random.randint(len(examples.latents), size=size)
        clean = examples.latents[indices]
        weight = 1 + _VEHICLE_WEIGHT * examples.vehicle[indices]
        dropped_for = NEGATIVE_PROMPT if step % 3 == 0 else ""
        texts = [
            dropped_for if random.rand() < _DROPPED else caption(examples.scenes[index], random.randint(NUM_TEMPLATES))
            for index in indices
        ]
        level = 1 / (1 + np.exp(-random.standard_normal(size)))
        level = _SHIFT * level / (1 + (_SHIFT - 1) * level)
        sigma = torch.from_numpy(level.astype(np.float32)).view(-1, 1, 1, 1, 1).to(clean.device)
        noise = torch.from_numpy(random.standard_normal(clean.shape).astype(np.float32)).to(clean.device)
        with half_precision(clean.device):
            found = self.model(
                (1 - sigma) * clean + sigma * noise,
                torch.from_numpy((level * 1000).astype(np.int64)),
                [self.ids(text) for text in texts],
                first=self.first_frames and self.first_frames.at(indices),
                block=self.block,
            )
        return (weight * (found - (noise - clean)).square()).mean() / weight.mean()

    @torch.no_grad()
    def _first_frames(self) -> FirstFrames | None:
        """Of all clips; embedded once, since what embeds them is not trained."""
        condition, features = self.clips.condition, self.clips.image_features
        if condition is None or features is None:
            return None
        tokens = [self.model.dit.img_emb(some.float()) for some in features.split(8)]
        return FirstFrames(condition=condition, image=torch.cat(tokens))

    @torch.no_grad()
    def average_(self, step: int) -> None:
        """Move the average towards the model: fast at first, since its start is far."""
        keep = min(_EMA, (step + 1) / (step + 10))
        for kept, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(now, 1 - keep)


@torch.no_grad()
def apply_initial_weights(dit: DiT) -> None:
    """Small modulations and a silent last layer, as the release begins; what embeds CLIP's features stays random."""
    for name, parameter in dit.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(parameter, std=dit.architecture.dim**-0.5)
    if dit.architecture.image_tokens:
        dit.load_state_dict(random_image_embedding(dit.architecture), strict=False)
        dit.img_emb.requires_grad_(False)
    nn.init.zeros_(dit.head.head.weight)
    nn.init.zeros_(dit.head.head.bias)
