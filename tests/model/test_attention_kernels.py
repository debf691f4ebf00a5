"""The choice among attention kernels, on a CPU: one of torch's works there, the others refuse."""

import logging

import pytest
import torch
from torch import Tensor

from wan_ray.model import attention_kernels
from wan_ray.model.attention_kernels import attend_by_best, chosen_kernels, measured_kernels, torch_attention


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "_chosen", {})


def inputs(num_queries: int, num_keys: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(num_keys)
    return [torch.randn(1, n, 3, 16, generator=random) for n in (num_queries, num_keys, num_keys)]


def test_kernels_that_refuse_are_left_out_and_say_why() -> None:
    milliseconds, refused = measured_kernels(*inputs(40, 70))
    assert list(milliseconds) == ["flash"]
    assert milliseconds["flash"] > 0
    assert set(refused) == {"cudnn", "efficient"}
    assert all(refused.values())


def test_the_best_kernel_attends_and_the_log_names_it_once_per_kind_of_call(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = inputs(40, 70)
    with caplog.at_level(logging.INFO, logger=attention_kernels.__name__):
        torch.testing.assert_close(attend_by_best(q, k, v), torch_attention(q, k, v))
        attend_by_best(q[:, :33], k[:, :65], v[:, :65])  # rounded up to the same lengths
        assert len(caplog.records) == 1
        attend_by_best(q[:, :32], k, v)
    assert len(caplog.records) == 2
    assert "kernel=flash head_dim=16 dtype=torch.float32 queries=64 keys=128" in caplog.text
    assert chosen_kernels() == "flash"


def test_a_kernel_that_gives_something_else_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = attention_kernels.attention_kernels()["flash"]
    wrong = {"hasty": lambda q, k, v: 1.05 * flash(q, k, v), "nan": lambda q, k, v: q * torch.nan, "flash": flash}
    monkeypatch.setattr(attention_kernels, "attention_kernels", lambda: wrong)
    milliseconds, refused = measured_kernels(*inputs(40, 70))
    assert list(milliseconds) == ["flash"]
    assert refused["hasty"].startswith("it differs by 5.0e-02")
    assert refused["nan"] == "it differs by nan"


@pytest.mark.parametrize(("ms", "chosen"), [((1.04, 1.0), "first"), ((1.2, 1.0), "second"), ((1.0, 2.0), "first")])
def test_the_preferred_kernel_is_left_only_for_one_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, ms: tuple[float, float], chosen: str
) -> None:
    times = dict(zip(("first", "second"), ms, strict=True))
    monkeypatch.setattr(attention_kernels, "measured_kernels", lambda *_: (times, {}))
    monkeypatch.setattr(attention_kernels, "attention_kernels", lambda: dict.fromkeys(times, torch_attention))
    attend_by_best(*inputs(40, 70))
    assert chosen_kernels() == chosen


def test_out_of_memory_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attention_kernels, "attention_kernels", lambda: {"greedy": greedy, "torch": torch_attention})
    with pytest.raises(torch.OutOfMemoryError):
        measured_kernels(*inputs(40, 70))
