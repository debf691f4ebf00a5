"""UniPC of order 2 (bh2, predicting clean latents): each step is corrected once the next velocity is known."""

import math
from collections.abc import Sequence

from torch import Tensor

from wan_ray.sampling.sigmas import log_snr
from wan_ray.sampling.state import SolverState


def unipc_step(
    sigmas: Sequence[float], state: SolverState, velocity: Tensor, latents: Tensor
) -> tuple[Tensor, SolverState]:
    """Latents at sigmas[state.step + 1] and the new state; velocity is the model's output at sigmas[state.step].

    Steps are counted, not looked up by timestep: colliding integer timesteps (many steps at a large flow_shift)
    stopped the released code. Zhao et al. 2023, arXiv 2302.04867; Wan2.1 fm_solvers_unipc.py (9737cba).
    """
    step = state.step
    clean = latents - sigmas[step] * velocity
    if state.start is not None:
        latents = _correct(sigmas, state, clean)
    history = (clean, *state.clean[:1])
    order = min(2, len(sigmas) - 1 - step, len(history))
    moved = _predict(sigmas, step, history[:order], latents)
    return moved, SolverState(step=step + 1, clean=history, start=latents, order=order)


def _predict(sigmas: Sequence[float], step: int, clean: tuple[Tensor, ...], latents: Tensor) -> Tensor:
    here, there = sigmas[step], sigmas[step + 1]
    h = log_snr(there) - log_snr(here)
    decay = math.expm1(-h)
    moved = (there / here) * latents - ((1 - there) * decay) * clean[0]
    if len(clean) == 1:
        return moved
    ratio = (log_snr(sigmas[step - 1]) - log_snr(here)) / h
    return moved - ((1 - there) * decay * 0.5 / ratio) * (clean[1] - clean[0])


def _correct(sigmas: Sequence[float], state: SolverState, clean: Tensor) -> Tensor:
    """Redo the last step, from state.start to sigmas[state.step], with the estimate made at its end."""
    here, there = sigmas[state.step - 1], sigmas[state.step]
    h = log_snr(there) - log_snr(here)
    decay = math.expm1(-h)
    assert state.start is not None
    moved = (there / here) * state.start - ((1 - there) * decay) * state.clean[0]
    scale = (1 - there) * decay
    if state.order == 1:
        return moved - (scale * 0.5) * (clean - state.clean[0])
    ratio = (log_snr(sigmas[state.step - 2]) - log_snr(here)) / h
    # The 2 x 2 system [[1, 1], [ratio, 1]] @ weights = moments, solved by hand.
    phi_2 = decay / -h - 1
    first, second = phi_2 / decay, 2 * (phi_2 / -h - 0.5) / decay
    old = (first - second) / (1 - ratio)
    new = first - old
    change = (old / ratio) * (state.clean[1] - state.clean[0]) + new * (clean - state.clean[0])
    return moved - scale * change
