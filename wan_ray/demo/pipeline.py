"""The demo model's training from drawing to figures, in stages that each go on where they stopped.

All that a run makes lies in one folder: states (*.pt), the drawn corpus, latents, sheets (*.png), the checkpoint in
released layout, and figures.json.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer

from wan_ray.demo.card import Figures, card, effort_of
from wan_ray.demo.checkpoint import unpack, write_checkpoint, write_i2v
from wan_ray.demo.dit_training import ARCHITECTURE as DIT_ARCHITECTURE
from wan_ray.demo.dit_training import I2V_ARCHITECTURE, DitPlan, Trainer
from wan_ray.demo.examples import encoded
from wan_ray.demo.judging import adherence, reconstruction, write_sheet
from wan_ray.demo.scenes import NUM_FRAMES
from wan_ray.demo.tokens import write_tokenizer
from wan_ray.demo.vae_training import ARCHITECTURE as VAE_ARCHITECTURE
from wan_ray.demo.vae_training import VaePlan, VaeTrainer, draw_corpus
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.text_encoder import load_tokenizer
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.variants import DiTArchitecture

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """The numbers of a whole training: steps, and how much is drawn for the VAE and as latents."""

    vae: VaePlan
    dit: DitPlan
    i2v: DitPlan
    num_drawn: int
    num_frame_latents: int
    num_clip_latents: int
    vae_architecture: VAEArchitecture = VAE_ARCHITECTURE
    dit_architecture: DiTArchitecture = DIT_ARCHITECTURE
    i2v_architecture: DiTArchitecture = I2V_ARCHITECTURE


class Training:
    """One folder's training; every stage trains what is missing before it, so any may be asked for first."""

    def __init__(self, folder: Path, plan: DemoPlan, *, device: torch.device, sheet_every_s: float = 480) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.plan = plan
        self.device = device
        self.sheet_every_s = sheet_every_s

    def train_vae(self) -> None:
        """The VAE, after which latents stay as they are."""
        _ = self._vae_trainer

    def train_decoder(self) -> WanVAE:
        """The VAE's decoder on, and the VAE with it."""
        trainer = self._vae_trainer
        trainer.train_decoder(self.folder / "decoder.pt", on_save=lambda: self._look_at(trainer.vae))
        return trainer.vae

    def encode_latents(self) -> None:
        """What the DiT is trained on; may run beside train_decoder()."""
        _ = self._dit_trainer

    def train_dit(self) -> Trainer:
        """Text encoder and DiT; may run beside train_decoder(), whose latest state its sheets are decoded with."""
        trainer = self._dit_trainer
        trainer.train(self.folder / "dit.pt", on_save=lambda: self._sheet(trainer), save_every_s=self.sheet_every_s)
        return trainer

    def train_i2v(self) -> Trainer:
        """The DiT that goes on from a first frame, under the text encoder of train_dit()."""
        trainer = self._i2v_trainer
        trainer.train(self.folder / "i2v.pt", save_every_s=self.sheet_every_s)
        return trainer

    def write(self, out: Path) -> None:
        """The checkpoint of what is trained, all of it trained first."""
        write_checkpoint(out, self.train_dit().average, self.train_decoder())
        write_i2v(out, self.train_i2v().average.dit)

    def judge(self, *, num_prompts: int = 40, num_clips: int = 16, num_inference_steps: int | None = None) -> Figures:
        """Figures of the written checkpoint, which its CARD.md and figures.json have too, and sheets of all judged."""
        checkpoint, i2v = self.folder / "checkpoint", self.folder / "checkpoint-i2v"
        self.write(checkpoint)
        unpack(checkpoint, i2v, i2v=True)
        vae, _ = find_checkpoint(checkpoint).load_vae(device=self.device)
        rebuilt = reconstruction(vae, num_clips=num_clips, device=self.device)
        settings = {"num_inference_steps": num_inference_steps}
        shown, continued = (
            adherence(folder, num_prompts=num_prompts, settings=settings, device=self.device.type)
            for folder in (checkpoint, i2v)
        )
        write_sheet(self.folder / "reconstruction.png", rebuilt.entries)
        write_sheet(self.folder / "adherence.png", shown.entries)
        write_sheet(self.folder / "i2v.png", continued.entries)
        figures = Figures(
            num_prompts=num_prompts,
            adherence=shown.own,
            adherence_by_chance=shown.chance,
            i2v_adherence=continued.own,
            i2v_adherence_by_chance=continued.chance,
            i2v_psnr=continued.psnr,
            i2v_still_psnr=continued.still_psnr,
            num_clips=num_clips,
            psnr=rebuilt.psnr,
            psnr_per_frame=rebuilt.psnr_per_frame,
        )
        (self.folder / "figures.json").write_text(json.dumps(asdict(figures), indent=2), encoding="utf-8")
        model = self._dit_trainer.average
        i2v_dit = self._i2v_trainer.average.dit
        parts = {"DiT": model.dit, "I2V's DiT": i2v_dit, "text encoder": model.text_encoder, "VAE": vae}
        parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        effort = effort_of(self.folder, parameters, seed=self.plan.dit.seed, device=self.device)
        (checkpoint / "CARD.md").write_text(card(figures, effort), encoding="utf-8")
        return figures

    @cached_property
    def _vae_trainer(self) -> VaeTrainer:
        plan = self.plan
        corpus = draw_corpus(self.folder / "clips.npy", num_clips=plan.num_drawn, seed=plan.vae.seed)
        trainer = VaeTrainer(corpus, plan=plan.vae, architecture=plan.vae_architecture, device=self.device)
        trainer.train(self.folder / "vae.pt", on_save=lambda: self._look_at(trainer.vae))
        return trainer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(write_tokenizer(self.folder / "tokenizer"))

    @cached_property
    def _dit_trainer(self) -> Trainer:
        plan = self.plan
        vae, seed = self._vae_trainer.vae, plan.dit.seed
        frames = encoded(
            self.folder / "frames.pt", vae, num=plan.num_frame_latents, num_frames=1, seed=seed + 1, device=self.device
        )
        clips = encoded(
            self.folder / "latents.pt",
            vae,
            num=plan.num_clip_latents,
            num_frames=NUM_FRAMES,
            seed=seed + 2,
            device=self.device,
        )
        return Trainer(self._tokenizer, frames, clips, plan=plan.dit, architecture=plan.dit_architecture)

    @cached_property
    def _i2v_trainer(self) -> Trainer:
        plan = self.plan
        # CLIP is random, as in a debug checkpoint: a trained one would be larger than all else.
        write_debug_checkpoint(self.folder / "random", kind="i2v")
        image_encoder, _ = find_checkpoint(self.folder / "random").load_image_encoder(
            dtype=torch.float32, device=self.device
        )
        clips = encoded(
            self.folder / "i2v_latents.pt",
            self._vae_trainer.vae,
            num=plan.num_clip_latents,
            num_frames=NUM_FRAMES,
            seed=plan.dit.seed + 3,
            image_encoder=image_encoder,
            device=self.device,
        )
        text_encoder = self.train_dit().average.text_encoder
        return Trainer(
            self._tokenizer, clips, clips, plan=plan.i2v, architecture=plan.i2v_architecture, text_encoder=text_encoder
        )

    def _look_at(self, vae: WanVAE) -> None:
        """Log how well held-out clips come back, and draw them."""
        rebuilt = reconstruction(vae, num_clips=3, device=self.device)
        first, last = rebuilt.psnr_per_frame[0], rebuilt.psnr_per_frame[-1]
        logger.info("reconstruction psnr=%.2f first_frame=%.2f last_frame=%.2f", rebuilt.psnr, first, last)
        write_sheet(self.folder / "vae.png", rebuilt.entries)

    def _sheet(self, trainer: Trainer) -> None:
        """Render a few held-out prompts in few steps with what there is."""
        decoder, vae = self.folder / "decoder.pt", self._vae_trainer.vae
        if decoder.exists():
            vae.load_state_dict(torch.load(decoder, weights_only=True, map_location=self.device)["parts"]["vae"])
        write_checkpoint(self.folder / "sketch", trainer.average, vae)
        shown = adherence(
            self.folder / "sketch", num_prompts=4, settings={"num_inference_steps": 12}, device=self.device.type
        )
        logger.info("adherence over 4 prompts %s", shown.own)
        write_sheet(self.folder / "dit.png", shown.entries)


def stages(training: Training) -> dict[str, Callable[[], object]]:
    """By name, in order; the last does all that is left."""
    return {
        "vae": training.train_vae,
        "latents": training.encode_latents,
        "decoder": training.train_decoder,
        "dit": training.train_dit,
        "i2v": training.train_i2v,
        "judge": training.judge,
    }
