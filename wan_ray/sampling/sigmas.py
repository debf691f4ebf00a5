"""Noise levels and timesteps of the released schedules."""

import math
from dataclasses import dataclass

import numpy as np

from wan_ray.variants import Solver


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """sigmas: noise levels, num_inference_steps + 1 of them, the last 0. timesteps: what the model is told, one a step.

    Timesteps are 1000 * sigma cut to integers, as the model was sampled upstream; sigmas keep their fractions.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[int, ...]


def schedule(solver: Solver, num_inference_steps: int, flow_shift: float) -> Schedule:
    """The released schedule of a solver; a larger flow_shift spends more steps near noise.

    UniPC starts just below pure noise, DPM++ at it: Wan2.1 fm_solvers_unipc.py:148 and fm_solvers.py:24 (9737cba).
    Euler, which the release does not have, starts at it too: LightX2V's 4-step configs (f8aee98).
    """
    first = float(np.float32(0.999)) if solver == "unipc" else 1.0
    levels = np.linspace(first, 0, num_inference_steps + 1)[:-1]
    shifted = flow_shift * levels / (1 + (flow_shift - 1) * levels)
    timesteps = tuple(int(t) for t in shifted * 1000)
    return Schedule(sigmas=(*(float(s) for s in shifted.astype(np.float32)), 0.0), timesteps=timesteps)


def log_snr(sigma: float) -> float:
    """Half log signal-to-noise ratio at a noise level: log((1 - sigma) / sigma); infinite at 0, minus infinite at 1."""
    if sigma == 0:
        return math.inf
    return -math.inf if sigma == 1 else math.log1p(-sigma) - math.log(sigma)
