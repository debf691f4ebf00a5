"""What is saved of a clip: the same bits back, and nothing taken that is another clip's or damaged."""

import struct

import pytest
import torch

from wan_ray.errors import ProgressError
from wan_ray.sampling.loop import denoise
from wan_ray.sampling.state import Progress, SolverState

RECIPE = {"solver": "unipc", "seed": "7", "transformer": "abc"}
SETTINGS = {"num_inference_steps": 9, "flow_shift": 5.0}
NOISE = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))


def velocity(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    return (latents * 0.7 + timestep / 1000).sin()


def progress() -> Progress:
    clean = (torch.full((1, 2), 0.25), torch.full((1, 2), -0.5))
    state = SolverState(step=4, clean=clean, start=torch.zeros(1, 2), order=2)
    return Progress(latents=torch.tensor([[1.5, float("inf")]]), state=state)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_a_clip_that_is_saved_before_any_step_ends_with_the_bits_of_one_that_runs_through(solver):
    saved: list[bytes] = []
    wanted = denoise(
        velocity, NOISE, solver=solver, between_steps=lambda p: saved.append(p.to_bytes(RECIPE)), **SETTINGS
    )
    assert len(saved) == 9
    for step, data in enumerate(saved):
        steps: list[int] = []
        again = denoise(
            velocity,
            NOISE,
            solver=solver,
            resume=Progress.from_bytes(data, RECIPE),
            on_step=lambda done, total, steps=steps: steps.append(done),
            **SETTINGS,
        )
        assert torch.equal(again, wanted)
        assert steps == list(range(step + 1, 10))


def test_all_that_a_solver_remembers_comes_back():
    found = Progress.from_bytes(progress().to_bytes(RECIPE), RECIPE)
    assert torch.equal(found.latents, progress().latents)
    assert (found.state.step, found.state.order) == (4, 2)
    assert [x.flatten().tolist() for x in found.state.clean] == [[0.25, 0.25], [-0.5, -0.5]]
    assert found.state.start is not None
    assert found.state.start.tolist() == [[0, 0]]


def test_tensors_that_share_memory_are_saved_each():
    whole = torch.arange(6.0).reshape(2, 3)
    shared = Progress(latents=whole, state=SolverState(step=1, clean=(whole, whole.T), start=whole[:1], order=1))
    found = Progress.from_bytes(shared.to_bytes(RECIPE), RECIPE)
    assert torch.equal(found.state.clean[1], whole.T)
    assert torch.equal(found.latents, whole)


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({**RECIPE, "seed": "8"}, "seed '7' instead of '8'"),
        ({**RECIPE, "solver": "dpm++"}, "solver 'unipc' instead of 'dpm++'"),
        ({**RECIPE, "transformer": "abd"}, "transformer 'abc' instead of 'abd'"),
        ({"solver": "unipc", "seed": "7"}, "transformer 'abc' instead of None"),
        ({**RECIPE, "size": "64x64x5"}, "size None instead of '64x64x5'"),
    ],
)
def test_what_is_another_clip_s_is_refused_and_told_in_what_it_differs(recipe, named):
    with pytest.raises(ProgressError, match="what was saved is another clip's") as refused:
        Progress.from_bytes(progress().to_bytes(RECIPE), recipe)
    assert named in str(refused.value)
    assert "start this one at step 0" in str(refused.value)


def damaged() -> dict[str, bytes]:
    sound = progress().to_bytes(RECIPE)
    head = struct.unpack("<Q", sound[:8])[0]
    return {
        "nothing": b"",
        "a few bytes": b"abc",
        "another file": b"\x89PNG" + bytes(200),
        "cut in its values": sound[:-5],
        "cut in its head": sound[: 8 + head // 2],
        "a length beyond its end": struct.pack("<Q", 2**62) + sound[8:],
        "without the solver": sound.replace(b"latents", b"patents"),
        "without a step": sound.replace(b'\\"step\\"', b'\\"stop\\"'),
    }


@pytest.mark.parametrize("how", damaged())
def test_what_is_damaged_is_refused(how):
    assert damaged()[how] != progress().to_bytes(RECIPE)
    with pytest.raises(ProgressError, match=r"cannot be read.*start it at step 0"):
        Progress.from_bytes(damaged()[how], RECIPE)
