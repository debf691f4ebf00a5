"""DPM-Solver++ 2M (midpoint), first order at both ends."""

import math
from collections.abc import Sequence

from torch import Tensor

from wan_ray.sampling.sigmas import log_snr
from wan_ray.sampling.state import SolverState


def dpmpp_step(
    sigmas: Sequence[float], state: SolverState, velocity: Tensor, latents: Tensor
) -> tuple[Tensor, SolverState]:
    """Latents at sigmas[state.step + 1] and the new state; velocity is the model's output at sigmas[state.step].

    Lu et al. 2022, arXiv 2211.01095; Wan2.1 fm_solvers.py (9737cba).
    """
    step = state.step
    here, there = sigmas[step], sigmas[step + 1]
    clean = latents - here * velocity
    h = log_snr(there) - log_snr(here)
    scale = (1 - there) * math.expm1(-h)
    moved = (there / here) * latents - scale * clean
    if state.clean and there > 0:
        ratio = (log_snr(here) - log_snr(sigmas[step - 1])) / h
        moved = moved - (scale * 0.5 / ratio) * (clean - state.clean[0])
    return moved, SolverState(step=step + 1, clean=(clean,))
