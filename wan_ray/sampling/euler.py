"""Euler steps: what adapters distilled to a few steps were trained for."""

from collections.abc import Sequence

from torch import Tensor

from wan_ray.sampling.state import SolverState


def euler_step(
    sigmas: Sequence[float], state: SolverState, velocity: Tensor, latents: Tensor
) -> tuple[Tensor, SolverState]:
    """Latents at sigmas[state.step + 1] and the new state; velocity is the model's output at sigmas[state.step]."""
    here, there = sigmas[state.step], sigmas[state.step + 1]
    return latents + (there - here) * velocity, SolverState(step=state.step + 1)
