"""The card beside the weights: what they were trained on, how long, and what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from wan_ray.demo.captions import NUM_SCENES, is_held_out
from wan_ray.demo.scenes import HEIGHT, NUM_FRAMES, WIDTH
from wan_ray.speed.clock import device_name


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What judging measured; shares are of prompts, psnr in dB over clips drawn for the occasion.

    i2v_still_psnr: of a clip that stands still on its first frame.
    """

    num_prompts: int
    adherence: dict[str, float]
    adherence_by_chance: dict[str, float]
    i2v_adherence: dict[str, float]
    i2v_adherence_by_chance: dict[str, float]
    i2v_psnr: float
    i2v_still_psnr: float
    num_clips: int
    psnr: float
    psnr_per_frame: list[float]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What training took: parameters per part, steps and hours per run, seed and machine."""

    parameters: Mapping[str, int]
    steps: Mapping[str, int]
    seconds: Mapping[str, float]
    seed: int
    machine: str


def card(figures: Figures, effort: Effort) -> str:
    """Markdown."""
    num_held_out = sum(is_held_out(index) for index in range(NUM_SCENES))
    first, last = figures.psnr_per_frame[0], figures.psnr_per_frame[-1]
    columns = (
        figures.adherence,
        figures.adherence_by_chance,
        figures.i2v_adherence,
        figures.i2v_adherence_by_chance,
    )
    shares = [" | ".join([f"| {name}", *(f"{column[name]:.0%}" for column in columns)]) + " |" for name in columns[0]]
    runs = [f"| {name} | {effort.steps[name]} | {effort.seconds[name] / 3600:.2f} |" for name in effort.steps]
    parts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in effort.parameters.items())
    return "\n".join(
        [
            "# The demo model",
            "",
            "A very small Wan2.1 in the layout of the release, trained by `jobs/train_demo.py`: text to video here,",
            "image to video in `i2v`, whose CLIP is random and written by `wan-ray init-debug --task i2v`.",
            "",
            f"- Data: road scenes drawn by `wan_ray/demo/scenes.py`, {NUM_FRAMES} frames of {WIDTH}x{HEIGHT}, with",
            f"  captions in English and Chinese. Of {NUM_SCENES} combinations of colour, vehicle, motion, time of day,",
            f"  weather, road and place, {num_held_out} are held out: training saw none of them.",
            f"- Parameters: {parts}.",
            f"- Seed {effort.seed}, on {effort.machine}.",
            "",
            "| run | steps | hours |",
            "| --- | --- | --- |",
            *runs,
            "",
            f"VAE, {figures.num_clips} held-out clips of {NUM_FRAMES} frames there and back: {figures.psnr:.1f} dB,",
            f"the first frame {first:.1f}, the last {last:.1f}.",
            "",
            f"Prompt adherence, {figures.num_prompts} held-out prompts at default settings, judged by pixels",
            "(`wan_ray/demo/adherence.py`); chance is the same clips against another's prompt:",
            "",
            "| | T2V right | by chance | I2V right | by chance |",
            "| --- | --- | --- | --- | --- |",
            *shares,
            "",
            f"I2V's clips are {figures.i2v_psnr:.1f} dB from the drawn ones whose first frames they were given;",
            f"a clip that stands still on that frame is {figures.i2v_still_psnr:.1f} dB from them.",
            "",
            "Limits: it knows these scenes alone, at this size and length, in the words of these captions. Rain and",
            "snow are thinner than a latent and come out faint.",
            "",
        ]
    )


def effort_of(folder: Path, parameters: Mapping[str, int], *, seed: int, device: torch.device) -> Effort:
    """Read off the states of a run's folder."""
    states = {
        name: torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu")
        for name in ("vae", "decoder", "dit", "i2v")
    }
    return Effort(
        parameters=parameters,
        steps={name: state["steps_done"] for name, state in states.items()},
        seconds={name: state["seconds"] for name, state in states.items()},
        seed=seed,
        machine=device_name(device) + ("" if device.type == "cuda" else f", {torch.get_num_threads()} thread(s)"),
    )
