"""Trains a small VAE on drawn clips. B: clips, C: channels, F: frames, T: latent frames, H, W: rows and columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from wan_ray.demo.captions import scenes
from wan_ray.demo.progress import Run, Schedule, half_precision, train_
from wan_ray.demo.scenes import HEIGHT, NUM_FRAMES, WIDTH, draw
from wan_ray.model.vae import LATENTS_MEAN, LATENTS_STD, VAEArchitecture, WanVAE
from wan_ray.model.vae_layers import AttentionBlock, CausalConv3d, Downsample, FeatureCache, ResidualBlock, Upsample

ARCHITECTURE = VAEArchitecture(base_dim=16, num_res_blocks=1, dim_mult=(1, 1, 3, 6))
# Of latents whose deviation is 1, so that decoding forgives what a denoiser leaves; and of the decoder alone.
_LATENT_NOISE, _LAST_NOISE = 0.12, 0.08
_CROP = (48, 80)  # nothing here sees a whole frame at once, so that parts of frames train it as well
# (frames, clips) of a batch. Single frames first: they are cheap, and what they teach serves every frame, since all
# weights of earlier frames start at nothing. Then short clips for motion, and whole ones, so that the end of a clip is
# as sharp as its start.
_FRAMES = (1, 8)
_CLIPS = ((9, 4), (9, 4), (17, 2), (9, 4), (9, 4), (33, 1))
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class VaePlan:
    """How many steps are taken on single frames, on clips, and on clips with the decoder alone.

    num_scale_clips: how many clips the scale of latents is measured on.
    """

    num_frame_steps: int
    num_clip_steps: int
    num_decoder_steps: int
    peak: float = 2e-3
    num_scale_clips: int = 64
    seed: int = 0


def draw_corpus(file: Path, *, num_clips: int, seed: int) -> np.ndarray:
    """Clips of scenes that are not held out, uint8 [num_clips, F, H, W, 3], drawn once and mapped from the file."""
    shape = (num_clips, NUM_FRAMES, HEIGHT, WIDTH, 3)
    if not file.exists():
        partial = file.with_suffix(".partial")
        corpus = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for index, scene in enumerate(scenes(num_clips, held_out=False, seed=seed)):
            corpus[index] = draw(scene)
        corpus.flush()
        partial.replace(file)
    return np.load(file, mmap_mode="r")


def as_video(frames: np.ndarray) -> Tensor:
    """uint8 [..., F, H, W, 3] as float32 [..., 3, F, H, W] in [-1, 1]."""
    return torch.from_numpy(np.moveaxis(frames, -1, -4).astype(np.float32)) / 127.5 - 1


def encode(vae: WanVAE, video_BCFHW: Tensor) -> Tensor:
    """WanVAE.encode with gradients and in two chunks, the first frame and all others: the same latents, sooner."""
    mean, std = _statistics(video_BCFHW)
    cache: FeatureCache = {}
    chunks = (video_BCFHW[:, :, :1], video_BCFHW[:, :, 1:]) if video_BCFHW.shape[2] > 1 else (video_BCFHW,)
    moments = [vae.conv1(vae.encoder(_channels_last(chunk), cache), cache) for chunk in chunks]
    return (torch.cat(moments, dim=2)[:, : len(LATENTS_MEAN)].float() - mean) / std


def decode(vae: WanVAE, latents_BCTHW: Tensor) -> Tensor:
    """WanVAE.decode with gradients and in two chunks, not clipped to [-1, 1]."""
    mean, std = _statistics(latents_BCTHW)
    cache: FeatureCache = {}
    latents_BCTHW = latents_BCTHW * std + mean
    chunks = (latents_BCTHW[:, :, :1], latents_BCTHW[:, :, 1:]) if latents_BCTHW.shape[2] > 1 else (latents_BCTHW,)
    return torch.cat([vae.decoder(vae.conv2(_channels_last(c), cache), cache) for c in chunks], dim=2).float()


class VaeTrainer:
    """Trains a VAE in two runs: the whole of it, then, with the encoder as it is, the decoder alone.

    After the first run latents do not change any more, so the DiT's training may begin beside the second.
    """

    def __init__(
        self,
        corpus: np.ndarray,
        *,
        plan: VaePlan,
        architecture: VAEArchitecture = ARCHITECTURE,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(plan.seed)
        self.corpus = corpus
        self.plan = plan
        self.device = device
        self.vae = WanVAE(architecture)
        apply_initial_weights(self.vae)
        self.vae.to(device)

    def train(self, file: Path, *, on_save: Callable[[], None] = lambda: None) -> None:
        """The steps on single frames and then on clips that the file does not have yet; latents get deviation 1."""
        num_steps = self.plan.num_frame_steps + self.plan.num_clip_steps
        run = self._run(file, [p for p in self.vae.parameters() if p.requires_grad])
        train_(run, Schedule(num_steps=num_steps, peak=self.plan.peak, hold=0.5), self.loss_of, on_save=on_save)
        with torch.no_grad():
            batches = (
                self._batch(np.random.RandomState([self.plan.seed, i]), NUM_FRAMES, 1)
                for i in range(self.plan.num_scale_clips)
            )
            apply_latent_scale(self.vae, (encode(self.vae, video_BCFHW) for video_BCFHW in batches))

    def train_decoder(self, file: Path, *, on_save: Callable[[], None] = lambda: None) -> None:
        """The steps on clips that the file does not have yet, after train()."""
        self.vae.requires_grad_(False)
        decoder = [p for m in (self.vae.decoder, self.vae.conv2) for p in m.parameters()]
        attention = {id(p) for p in cast(nn.ModuleList, self.vae.decoder.middle)[1].parameters()}
        trained = [p.requires_grad_(True) for p in decoder if id(p) not in attention]
        run = self._run(file, trained)
        first = self.plan.num_frame_steps + self.plan.num_clip_steps
        # At half the peak, held, held-out clips lost 0.5 dB in 570 steps: only a falling rate is of use here.
        schedule = Schedule(num_steps=self.plan.num_decoder_steps, peak=self.plan.peak / 4)
        train_(run, schedule, lambda step: self.decoder_loss_of(first + step), on_save=on_save)

    def loss_of(self, step: int) -> Tensor:
        """Of a batch that depends on the step's number alone."""
        video_BCFHW, random = self._batch_of(step)
        return reconstruction_loss(self.vae, video_BCFHW, random)

    def decoder_loss_of(self, step: int) -> Tensor:
        """Of the same batch, by what PSNR measures."""
        video_BCFHW, random = self._batch_of(step)
        return squared_error(self.vae, video_BCFHW, random)

    def _batch_of(self, step: int) -> tuple[Tensor, np.random.RandomState]:
        random = np.random.RandomState([self.plan.seed, step])
        size = _FRAMES if step < self.plan.num_frame_steps else _CLIPS[step % len(_CLIPS)]
        return self._batch(random, *size), random

    def _run(self, file: Path, trained: Sequence[Tensor]) -> Run:
        optimizer = torch.optim.AdamW(
            [{"params": trained, "scale": 1.0}], lr=0.0, betas=(0.9, 0.97), weight_decay=0.0, fused=True
        )
        run = Run(file=file, parts={"vae": self.vae}, optimizers={"adam": optimizer})
        run.load_()
        return run

    def _batch(self, random: np.random.RandomState, num_frames: int, num_clips: int) -> Tensor:
        """Parts of clips, cut at random frames, rows and columns; the rows and columns are multiples of a latent's."""
        parts = []
        for _ in range(num_clips):
            clip, first = random.randint(len(self.corpus)), random.randint(NUM_FRAMES - num_frames + 1)
            top = 8 * random.randint((HEIGHT - _CROP[0]) // 8 + 1)
            left = 8 * random.randint((WIDTH - _CROP[1]) // 8 + 1)
            parts.append(self.corpus[clip, first : first + num_frames, top : top + _CROP[0], left : left + _CROP[1]])
        return as_video(np.stack(parts)).to(self.device)


def reconstruction_loss(vae: WanVAE, video_BCFHW: Tensor, random: np.random.RandomState) -> Tensor:
    """How far the decoded frames are, what moves and the first frame counting more.

    Latents are kept near mean 0 and below deviation 1.
    """
    latents_BCTHW, decoded_BCFHW = _there_and_back(vae, video_BCFHW, random, _LATENT_NOISE)
    difference = (decoded_BCFHW - video_BCFHW).abs()
    weight = 1 + 4 * _moving(video_BCFHW)
    weight[:, :, 0] *= 2
    variance = latents_BCTHW.square().mean((0, 2, 3, 4))
    drift = (variance - 1).clamp_min(0).mean() + latents_BCTHW.mean((0, 2, 3, 4)).square().mean()
    return (weight * (difference + difference.square())).mean() + 0.02 * drift


def squared_error(vae: WanVAE, video_BCFHW: Tensor, random: np.random.RandomState) -> Tensor:
    """How far the decoded frames are, every pixel alike: falling snow that a latent cannot hold becomes its mean."""
    _, decoded_BCFHW = _there_and_back(vae, video_BCFHW, random, _LAST_NOISE)
    return (decoded_BCFHW - video_BCFHW).square().mean()


def _there_and_back(
    vae: WanVAE, video_BCFHW: Tensor, random: np.random.RandomState, noise: float
) -> tuple[Tensor, Tensor]:
    """Latents, and what they are decoded to after so much noise came to them."""
    with half_precision(video_BCFHW.device):
        latents_BCTHW = encode(vae, video_BCFHW)
        normal = torch.from_numpy(random.standard_normal(latents_BCTHW.shape).astype(np.float32))
        return latents_BCTHW, decode(vae, latents_BCTHW + noise * normal.to(latents_BCTHW.device))


def _moving(video_BCFHW: Tensor) -> Tensor:
    """1 where a pixel is unlike itself in most frames of its clip, else 0."""
    usual = video_BCFHW.median(dim=2, keepdim=True).values
    return ((video_BCFHW - usual).abs().amax(1, keepdim=True) > 0.15).float()


@torch.no_grad()
def apply_initial_weights(vae: WanVAE) -> None:
    """Weights from which training goes fast: every block starts as its shortcut, frames pass through unchanged in time.

    The attention of the middle stays switched off and untrained, so that parts of frames stand for whole ones.
    """
    vae.requires_grad_(True)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.xavier_normal_(module.weight[:, :, -1:] if module.weight.ndim == 5 else module.weight)
            nn.init.zeros_(_bias(module))
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(cast(CausalConv3d, module.residual["6"]).weight)
            if module.shortcut is not None:
                nn.init.orthogonal_(module.shortcut.weight.flatten(1))
        elif isinstance(module, Downsample) and module.time_conv is not None:
            _pass_through_(module.time_conv, (0.0, 0.5, 0.5))
        elif isinstance(module, Upsample) and module.time_conv is not None:
            _pass_through_(module.time_conv, (0.0, 0.0, 1.0))
    for middle in (vae.encoder.middle, vae.decoder.middle):
        attention = cast(AttentionBlock, middle[1])
        attention.requires_grad_(False)
        nn.init.zeros_(attention.proj.weight)


def _pass_through_(conv: CausalConv3d, taps: tuple[float, ...]) -> None:
    """Each output channel its own input channel, weighed over the frames; twice as many outputs repeat them."""
    nn.init.zeros_(conv.weight)
    for output in range(conv.out_channels):
        conv.weight[output, output % conv.in_channels, :, 0, 0] = torch.tensor(taps)


@torch.no_grad()
def apply_latent_scale(vae: WanVAE, latents: Iterator[Tensor]) -> None:
    """Give these latents mean 0 and deviation 1 by changing only the 1x1 convolutions at the bottleneck.

    One scale for all channels: their relative sizes say how much each matters.
    """
    stacked = torch.cat([z_BCTHW.transpose(0, 1).flatten(1) for z_BCTHW in latents], dim=1)
    shift, scale = stacked.mean(1), stacked.var(1).mean().sqrt()
    mean, std = (statistic.flatten() for statistic in _statistics(stacked))
    num = len(mean)
    # Before: z = (conv1(x) - mean) / std. After: (z - shift) / scale, and conv2 gets back what it had.
    outer, inner = vae.conv1, vae.conv2
    outer.weight[:num] /= scale
    _bias(outer)[:num] = (_bias(outer)[:num] - mean - shift * std) / scale + mean
    _bias(inner).add_(inner.weight.flatten(1) @ (mean + shift * std - scale * mean))
    inner.weight *= scale


def _bias(module: nn.Conv3d | nn.Conv2d) -> Tensor:
    return cast(Tensor, module.bias)


def _statistics(like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (like.new_tensor(values).view(-1, 1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    return mean, std


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
