"""A run of numbered steps: its schedule, and that stopping changes nothing."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wan_ray.demo.progress import Run, Schedule, Stopped, train_


def run_of(file: Path) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    adam = torch.optim.AdamW([{"params": list(model.parameters()), "scale": 1.0}], lr=0.0)
    run = Run(file=file, parts={"model": model}, optimizers={"adam": adam})
    run.load_()
    return run


def loss_of(run: Run, step: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (run.parts["model"](x) - x.flip(1)).square().mean()


SCHEDULE = Schedule(num_steps=12, peak=0.1, warm_up=3, hold=0.5)


def test_the_rate_warms_up_holds_and_falls_to_nothing() -> None:
    rates = [SCHEDULE.rate(step) for step in range(13)]
    assert rates[:7] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert rates[9] == pytest.approx(0.05)
    assert rates[12] == pytest.approx(0)


def test_a_run_that_is_stopped_and_goes_on_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole.pt")
    train_(whole, SCHEDULE, lambda step: loss_of(whole, step))

    first = run_of(tmp_path / "parts.pt")

    def stop_in_step_five(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train_(first, SCHEDULE, lambda step: loss_of(first, step), after_step=stop_in_step_five)
    assert first.steps_done == 6
    then = run_of(tmp_path / "parts.pt")
    assert then.steps_done == 6
    train_(then, SCHEDULE, lambda step: loss_of(then, step))

    assert torch.equal(then.parts["model"].weight, whole.parts["model"].weight)
    assert not torch.equal(then.parts["model"].weight, first.parts["model"].weight)


def test_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run.pt")
    train_(run, SCHEDULE, lambda step: loss_of(run, step))
    again = run_of(tmp_path / "run.pt")
    train_(again, SCHEDULE, lambda step: pytest.fail("a step is taken"))
    assert torch.equal(again.parts["model"].weight, run.parts["model"].weight)
