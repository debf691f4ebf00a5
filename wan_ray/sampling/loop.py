"""The denoising loop: it takes the velocity as a function and knows no model, device, file or rank."""

from collections.abc import Callable

from torch import Tensor

from wan_ray.sampling.dpmpp import dpmpp_step
from wan_ray.sampling.euler import euler_step
from wan_ray.sampling.sigmas import schedule
from wan_ray.sampling.state import SolverState
from wan_ray.sampling.unipc import unipc_step
from wan_ray.variants import Solver

Velocity = Callable[[Tensor, int], Tensor]
OnStep = Callable[[int, int], None]

_STEPS = {"unipc": unipc_step, "dpm++": dpmpp_step, "euler": euler_step}


def denoise(
    velocity: Velocity,
    noise: Tensor,
    *,
    solver: Solver,
    num_inference_steps: int,
    flow_shift: float,
    on_step: OnStep | None = None,
) -> Tensor:
    """Clean latents, float32, of the noise's shape; velocity(latents, timestep) is the model's (guided) output.

    on_step(done, total) is called after each step; what it raises ends the loop.
    """
    plan = schedule(solver, num_inference_steps, flow_shift)
    latents, state = noise, SolverState()
    for timestep in plan.timesteps:
        latents, state = _STEPS[solver](plan.sigmas, state, velocity(latents, timestep), latents)
        if on_step is not None:
            on_step(state.step, num_inference_steps)
    return latents


def guided(conditional: Velocity, unconditional: Velocity, guidance_scale: float) -> Velocity:
    """Classifier-free guidance, u + scale * (c - u); a scale of 1 is the conditional alone, run once."""
    if guidance_scale == 1:
        return conditional

    def velocity(latents: Tensor, timestep: int) -> Tensor:
        without = unconditional(latents, timestep)
        return without + guidance_scale * (conditional(latents, timestep) - without)

    return velocity
