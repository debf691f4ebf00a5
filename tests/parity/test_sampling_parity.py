"""Schedules, solvers and the whole loop against what the released code computed, and against diffusers' solvers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest
from wan_ray.sampling.loop import denoise, guided
from wan_ray.sampling.sigmas import schedule
from wan_ray.variants import PRESETS, Solver

Golden = Callable[[str], tuple[dict[str, Tensor], dict[str, object]]]
RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def renderer(debug_checkpoint: Path) -> Renderer:
    return Renderer.from_checkpoint(debug_checkpoint, dtype="float32", device="cpu")


@pytest.mark.parametrize("solver, golden_name", [("unipc", "unipc"), ("dpm++", "dpm")])
def test_all_schedules_are_the_released_ones_exactly(
    golden_json: Callable[[str], dict], solver: Solver, golden_name: str
) -> None:
    released = golden_json("schedules")
    assert len(released) == 66
    for key, wanted in released.items():
        num_inference_steps, flow_shift = key.split("/")
        found = schedule(solver, int(num_inference_steps), float(flow_shift))
        assert list(found.timesteps) == wanted[f"{golden_name}_t"], key
        assert list(found.sigmas) == wanted[f"{golden_name}_sigmas"], key


def toy_velocity(latents: Tensor, timestep: int) -> Tensor:
    """Nonlinear in the latents and in time, so that a solver's every coefficient shows."""
    return torch.sin(3 * latents) + latents * (timestep / 1000) ** 2 - 0.3


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize("num_inference_steps, flow_shift", [(20, 3.0), (20, 12.0), (50, 5.0), (50, 16.0)])
def test_solvers_agree_with_diffusers_on_the_released_schedule(
    golden_json: Callable[[str], dict],
    relative_error: RelativeError,
    solver: Solver,
    num_inference_steps: int,
    flow_shift: float,
) -> None:
    diffusers = pytest.importorskip("diffusers")
    kind, name = {
        "unipc": (diffusers.UniPCMultistepScheduler, "unipc"),
        "dpm++": (diffusers.DPMSolverMultistepScheduler, "dpm"),
    }[solver]
    released = golden_json("schedules")[f"{num_inference_steps}/{flow_shift}"]
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)
    scheduler.set_timesteps(num_inference_steps)
    scheduler.sigmas = torch.tensor(released[f"{name}_sigmas"])
    scheduler.timesteps = torch.tensor(released[f"{name}_t"])
    scheduler.set_begin_index(0)
    noise = torch.randn(1, 4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    wanted = noise
    for timestep in released[f"{name}_t"]:
        wanted = scheduler.step(toy_velocity(wanted, timestep), torch.tensor(timestep), wanted, return_dict=False)[0]
    found = denoise(toy_velocity, noise, solver=solver, num_inference_steps=num_inference_steps, flow_shift=flow_shift)
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["t2v", "t2v-dpm", "t2i"])
def test_the_released_velocities_lead_through_the_released_latents(
    golden: Golden, relative_error: RelativeError, kind: str
) -> None:
    tensors, request = golden(kind)
    seen = []

    def recorded(name: str) -> Callable[[Tensor, int], Tensor]:
        steps = iter(range(request["num_inference_steps"]))

        def velocity(latents: Tensor, timestep: int) -> Tensor:
            step = next(steps)
            assert timestep == tensors["timesteps"][step]
            seen.append((latents, tensors["noise" if step == 0 else f"step{step}.x"]))
            return tensors[f"step{step}.{name}"]

        return velocity

    latents = denoise(
        guided(recorded("cond"), recorded("uncond"), request["guidance_scale"]),
        tensors["noise"],
        solver=request["solver"],
        num_inference_steps=request["num_inference_steps"],
        flow_shift=request["flow_shift"],
    )
    assert len(seen) == 2 * request["num_inference_steps"]
    for found, wanted in [*seen, (latents, tensors["latents"])]:
        assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["t2v", "t2v-dpm", "t2i"])
def test_a_rendered_request_gives_the_released_latents_and_video(
    renderer: Renderer, golden: Golden, relative_error: RelativeError, kind: str
) -> None:
    tensors, request = golden(kind)
    rendered = renderer(RenderRequest.model_validate(request))
    assert relative_error(rendered.latents, tensors["latents"]) < 1e-5
    video = renderer.decode.vae.decode(rendered.latents[None])[0]
    # The golden is stored as float16, where a last bit is 5e-4: some values fall on the other side of a rounding.
    assert relative_error(video.half(), tensors["video"]) < 1e-4
    levels = ((tensors["video"].float() + 1) * 127.5).round().permute(1, 2, 3, 0)
    assert (torch.from_numpy(rendered.frames) - levels).abs().max() <= 1


def test_unipc_runs_where_its_integer_timesteps_collide(renderer: Renderer) -> None:
    plan = schedule("unipc", 100, 16.0)
    assert len(set(plan.timesteps)) < 100
    request = RenderRequest(
        task="t2i", prompt="A road", width=32, height=32, num_inference_steps=100, flow_shift=16.0, solver="unipc"
    )
    assert torch.isfinite(renderer(request).latents).all()


@torch.inference_mode()
def test_euler_agrees_with_diffusers_on_the_four_levels_of_the_distilled_adapters(
    relative_error: Callable[[Tensor, Tensor], float],
) -> None:
    pytest.importorskip("diffusers")
    from diffusers import FlowMatchEulerDiscreteScheduler

    preset = PRESETS["lightx2v-4-step"]
    # ModelTC/LightX2V f8aee98, configs/distill/wan21/*_lora_4step_cfg.json: steps 1000, 750, 500, 250 and shift 5.
    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = schedule(preset.solver, preset.num_inference_steps, preset.flow_shift)
    assert ours.sigmas == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    assert ours.timesteps == (1000, 937, 833, 625)
    noise = torch.randn(16, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    wanted = noise
    for timestep, ours_timestep in zip(theirs.timesteps, ours.timesteps, strict=True):
        wanted = theirs.step(toy_velocity(wanted, ours_timestep), timestep, wanted).prev_sample
    settings = {"solver": "euler", "num_inference_steps": 4, "flow_shift": 5.0}
    assert relative_error(denoise(toy_velocity, noise, **settings), wanted) < 1e-5
