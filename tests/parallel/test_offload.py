"""Weights that wait in host memory: the same bits, and two blocks at most where they are used."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.memory import denoise_memory
from wan_ray.degrees import Degrees
from wan_ray.model.debug import DebugSizes
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.parallel.offload import BlockOffload, ModelOffload, Weights
from wan_ray.variants import get_variant

CPU = torch.device("cpu")


class Residence:
    """Which blocks' weights are not where they wait, as each module of a block is called."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        """Called when all wait."""
        self._blocks = blocks
        self._waiting = {p.data_ptr() for block in blocks for p in block.parameters()}
        self.seen: list[tuple[int, set[int]]] = []
        for index, block in enumerate(blocks):
            for module in block.modules():
                module.register_forward_pre_hook(self._look(index))

    @property
    def most_bytes(self) -> int:
        """Of weights that were away at a time."""
        sizes = [sum(p.nbytes for p in block.parameters()) for block in self._blocks]
        return max(sum(sizes[index] for index in away) for _, away in self.seen)

    def _look(self, called: int) -> Callable[..., None]:
        return lambda *_: self.seen.append(
            (called, {n for n, block in enumerate(self._blocks) if self._is_away(block)})
        )

    def _is_away(self, block: nn.Module) -> bool:
        waits = {p.data_ptr() in self._waiting for p in block.parameters()}
        assert len(waits) == 1, "a block is in two places"
        return not waits.pop()


def unequal_blocks() -> list[nn.Sequential]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(8, n), nn.GELU(), nn.Linear(n, 8)).requires_grad_(False) for n in (5, 40, 7, 16, 9)]


def random_dit(kind: str) -> DiT:
    torch.manual_seed(1)
    model = DiT(replace(DebugSizes.of(kind).dit, text_dim=32)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model.eval()


@torch.inference_mode()
def velocity(model: DiT) -> Tensor:
    torch.manual_seed(2)
    control = torch.randn(96, 2, 4, 6) if model.architecture.vace_layers else None
    context = model.encode_context(torch.randn(5, 32), vace_context=control)
    for timestep in (900, 500):
        found = model(torch.randn(1, 16, 2, 4, 6), timestep, context)
    return found


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4] * 3, [4, 3, 2, 1, 0], [2, 2, 0, 4, 0, 1, 3, 1]])
@torch.inference_mode()
def test_blocks_compute_the_same_in_any_order_and_at_most_two_are_there(order: list[int]) -> None:
    blocks, x = unequal_blocks(), torch.randn(3, 8)
    wanted = [blocks[index](x) for index in order]
    BlockOffload(nn.ModuleList(blocks), blocks, CPU)
    residence = Residence(blocks)
    for index, out in zip(order, wanted, strict=True):
        assert torch.equal(blocks[index](x), out)
    for called, away in residence.seen:
        assert called in away
        assert len(away) <= 2


@torch.inference_mode()
def test_the_next_block_is_fetched_while_one_is_in_use() -> None:
    blocks, x = unequal_blocks(), torch.randn(3, 8)
    BlockOffload(nn.ModuleList(blocks), blocks, CPU)
    residence = Residence(blocks)
    for block in blocks:
        block(x)
    assert {(called, *sorted(away)) for called, away in residence.seen} == {
        (0, 0, 1),
        (1, 1, 2),
        (2, 2, 3),
        (3, 3, 4),
        (4, 0, 4),
    }


@torch.inference_mode()
def test_a_part_of_a_block_that_is_called_by_itself_has_its_weights() -> None:
    blocks, x = unequal_blocks(), torch.randn(3, 8)
    wanted = [block[0](x) for block in blocks]
    BlockOffload(nn.ModuleList(blocks), blocks, CPU)
    residence = Residence(blocks)
    assert all(torch.equal(block[0](x), out) for block, out in zip(blocks, wanted, strict=True))
    assert [called in away for called, away in residence.seen] == [True] * 5


@torch.inference_mode()
def test_one_block_alone_can_be_offloaded() -> None:
    (block, *_), x = unequal_blocks(), torch.randn(3, 8)
    wanted = block(x)
    BlockOffload(block, [block], CPU)
    assert torch.equal(block(x), wanted)
    assert torch.equal(block(x), wanted)


@pytest.mark.parametrize("kind", ["t2v", "vace"])
def test_a_denoiser_keeps_two_blocks_and_what_is_outside_blocks_where_it_computes(kind: str) -> None:
    model = random_dit(kind)
    wanted = velocity(model)
    blocks = model.blocks_in_order()
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = {name: p.data_ptr() for name, p in model.named_parameters() if id(p) not in inside}
    largest = max(sum(p.nbytes for p in block.parameters()) for block in blocks)
    most_parameters = max(len(list(block.parameters())) for block in blocks)

    offload = BlockOffload(model, blocks, CPU)
    residence = Residence(blocks)
    assert torch.equal(velocity(model), wanted)
    assert all(called in away for called, away in residence.seen)
    assert residence.most_bytes <= 2 * largest
    assert offload.resident_bytes <= 2 * (largest + 256 * most_parameters)
    assert {name: p.data_ptr() for name, p in model.named_parameters() if name in rest} == rest


@pytest.mark.parametrize("variant", ["t2v-1.3B", "vace-1.3B"])
def test_an_offloaded_denoiser_of_released_width_holds_as_many_bytes_as_predicted(variant: str) -> None:
    released = get_variant(variant).architecture
    assert released is not None
    sizes = replace(released, num_layers=3, vace_layers=released.vace_layers and (0, 2))
    with torch.device("meta"):
        model = DiT(sizes).requires_grad_(False)
    model.to_empty(device=CPU)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, torch.bfloat16))
    outside = sum(parameter.nbytes for name, parameter in model.named_parameters() if "blocks." not in name)
    held = outside + BlockOffload(model, model.blocks_in_order(), CPU).resident_bytes
    bucket = Bucket(variant, "", 832, 480, 81, 50)
    predicted = denoise_memory(sizes, bucket, degrees=Degrees(), offload_blocks=True).weights
    assert predicted == pytest.approx(held, rel=0.05)


def test_a_whole_model_is_where_it_computes_only_while_it_is_entered() -> None:
    model = random_dit("t2v")
    wanted = velocity(model)
    waiting = {name: p.data_ptr() for name, p in model.named_parameters()}
    elsewhere = ModelOffload(model, torch.device("meta"))
    with pytest.raises(RuntimeError), elsewhere:
        assert all(p.is_meta for p in model.parameters())
        raise RuntimeError
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == waiting
    with ModelOffload(model, CPU):
        assert torch.equal(velocity(model), wanted)


def test_where_weights_wait_may_change_between_uses_and_the_bits_do_not() -> None:
    model = random_dit("t2v")
    wanted = velocity(model)
    weights = Weights(model, model.blocks_in_order(), CPU)
    num_hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    for offload in ("blocks", "none", "model", "blocks", "model", "none"):
        weights.keep(offload)
        with weights:
            assert torch.equal(velocity(model), wanted)
        assert weights.offload == offload
    assert [len(module._forward_pre_hooks) for module in model.modules()] == num_hooks


def test_weights_that_were_moved_during_inference_are_sound_afterwards() -> None:
    model = random_dit("t2v")
    weights = Weights(model, model.blocks_in_order(), CPU)
    with torch.inference_mode():
        weights.keep("blocks")
        weights.keep("none")
    assert not any(parameter.is_inference() or parameter.data.is_inference() for parameter in model.parameters())
