"""The denoising loop: it takes the velocity as a function and knows no model, device, file or rank."""

from collections.abc import Callable

from torch import Tensor

from wan_ray.sampling.dpmpp import dpmpp_step
from wan_ray.sampling.euler import euler_step
from wan_ray.sampling.sigmas import schedule
from wan_ray.sampling.state import Progress, SolverState
from wan_ray.sampling.unipc import unipc_step
from wan_ray.variants import Solver

Velocity = Callable[[Tensor, int], Tensor]
OnStep = Callable[[int, int], None]
BetweenSteps = Callable[[Progress], None]

_STEPS = {"unipc": unipc_step, "dpm++": dpmpp_step, "euler": euler_step}


def denoise(
    velocity: Velocity,
    noise: Tensor,
    *,
    solver: Solver,
    num_inference_steps: int,
    flow_shift: float,
    on_step: OnStep | None = None,
    between_steps: BetweenSteps | None = None,
    resume: Progress | None = None,
) -> Tensor:
    """Clean latents, float32, of the noise's shape; velocity(latents, timestep) is the model's (guided) output.

    on_step(done, total) is called after each step, between_steps(progress) before each; what they raise ends the loop.
    resume goes on from a progress of the same noise and settings, to the same bits.
    """
    plan = schedule(solver, num_inference_steps, flow_shift)
    progress = resume.to(noise.device) if resume else Progress(latents=noise, state=SolverState())
    for timestep in plan.timesteps[progress.state.step :]:
        if between_steps is not None:
            between_steps(progress)
        latents = progress.latents
        latents, state = _STEPS[solver](plan.sigmas, progress.state, velocity(latents, timestep), latents)
        progress = Progress(latents=latents, state=state)
        if on_step is not None:
            on_step(state.step, num_inference_steps)
    return progress.latents


def guided(conditional: Velocity, unconditional: Velocity, guidance_scale: float) -> Velocity:
    """Both passes, the conditional one first, and their guided sum."""

    def velocity(latents: Tensor, timestep: int) -> Tensor:
        found = conditional(latents, timestep)
        return guide(found, unconditional(latents, timestep), guidance_scale)

    return velocity


def guide(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance: u + scale * (c - u)."""
    return unconditional + guidance_scale * (conditional - unconditional)
