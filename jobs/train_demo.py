"""Train the demo model on drawn road scenes, write it in released layout and judge it; goes on where it stopped."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from wan_ray.demo.dit_training import DitPlan
from wan_ray.demo.pipeline import DemoPlan, Training, stages
from wan_ray.demo.vae_training import VaePlan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="states, sheets and the checkpoint of the run")
    parser.add_argument("--stage", choices=["vae", "latents", "decoder", "dit", "i2v", "judge"], default="judge")
    parser.add_argument("--vae-frame-steps", type=int, default=1500)
    parser.add_argument("--vae-clip-steps", type=int, default=3000)
    parser.add_argument("--vae-decoder-steps", type=int, default=1000)
    parser.add_argument("--vae-peak", type=float, default=2e-3, help="highest rate of learning of the VAE")
    parser.add_argument("--dit-peak", type=float, default=2e-3, help="highest rate of learning of the DiT")
    parser.add_argument("--dit-frame-steps", type=int, default=1000)
    parser.add_argument("--dit-clip-steps", type=int, default=2000)
    parser.add_argument("--i2v-steps", type=int, default=2200)
    parser.add_argument("--frames-per-step", type=int, default=32, help="of the DiT")
    parser.add_argument("--clips-per-step", type=int, default=8, help="of the DiT")
    parser.add_argument("--i2v-clips-per-step", type=int, default=4)
    parser.add_argument("--drawn", type=int, default=800, help="clips that the VAE is trained on")
    parser.add_argument("--frame-latents", type=int, default=3000)
    parser.add_argument("--clip-latents", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the DiT's blocks: half the time, on a CPU too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    dit = DitPlan(
        num_frame_steps=options.dit_frame_steps,
        num_clip_steps=options.dit_clip_steps,
        peak=options.dit_peak,
        frames_per_step=options.frames_per_step,
        clips_per_step=options.clips_per_step,
        seed=options.seed,
        compiled=options.compile,
    )
    plan = DemoPlan(
        vae=VaePlan(
            num_frame_steps=options.vae_frame_steps,
            num_clip_steps=options.vae_clip_steps,
            num_decoder_steps=options.vae_decoder_steps,
            peak=options.vae_peak,
            seed=options.seed,
        ),
        dit=dit,
        i2v=replace(
            dit, num_frame_steps=0, num_clip_steps=options.i2v_steps, clips_per_step=options.i2v_clips_per_step
        ),
        num_drawn=options.drawn,
        num_frame_latents=options.frame_latents,
        num_clip_latents=options.clip_latents,
    )
    training = Training(options.folder, plan, device=torch.device(options.device))
    result = stages(training)[options.stage]()
    if options.stage == "judge":
        print(result)


if __name__ == "__main__":
    main()
