"""Offload: weights wait in host memory, and are on the device when they are used."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

Offload = Literal["none", "model", "blocks"]

_ALIGNMENT = 256  # bytes, of each tensor in a buffer


class Weights:
    """Where a model's weights are, which may be changed between its uses. Entered while the model is in use."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, offload: Offload = "none"
    ) -> None:
        """blocks: as BlockOffload takes them; none for a model that is not divided."""
        self._model = model
        self._blocks = blocks
        self._device = device
        self._whole: ModelOffload | None = None
        self._parts: BlockOffload | None = None
        self.offload: Offload | None = None
        self.keep(offload)

    def keep(self, offload: Offload) -> None:
        """Have them there from now on. When memory runs out on the way, call it again with a leaner way."""
        if offload == self.offload:
            return
        self.offload, self._whole = None, None
        with torch.inference_mode(mode=False):  # they are for other uses as well as the one that this is called in
            if self._parts is not None:
                self._parts.end()
                self._parts = None
            if offload == "blocks":
                self._parts = BlockOffload(self._model, self._blocks, self._device)
            elif offload == "model":
                self._whole = ModelOffload(self._model, self._device)
            else:
                for parameter in self._model.parameters():
                    parameter.data = parameter.data.to(self._device)
        self.offload = offload

    def __enter__(self) -> None:
        if self._whole is not None:
            self._whole.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._whole is not None:
            self._whole.__exit__(kind, error, trace)


class BlockOffload:
    """Keeps the weights of a model's blocks in host memory, and at most two blocks' on the device.

    Those are the one in use and, fetched on a side stream meanwhile, the next in order. All other weights of the model
    stay on the device. The model is changed by hooks, which refer to this object until it is ended.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """blocks: in the order in which they are run; any other order is right too, but waits for each copy."""
        offloaded = {id(parameter) for block in blocks for parameter in block.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in offloaded:
                parameter.data = parameter.data.to(device)
        self._blocks = [_Block(block, pinned=device.type == "cuda") for block in blocks]
        size_bytes = max(block.host.nbytes for block in self._blocks)
        self._slots = [_Slot(size_bytes, device) for _ in range(2)]
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_use: int | None = None
        # Every module of a block, for parts of it are called by themselves, e.g. for keys and values.
        self._hooks = [
            module.register_forward_pre_hook(self._hook(index))
            for index, block in enumerate(blocks)
            for module in block.modules()
        ]

    def end(self) -> None:
        """Leave all blocks in host memory, and the model as one without hooks."""
        for hook in self._hooks:
            hook.remove()
        for block in self._blocks:
            block.point_to(block.host)

    @property
    def resident_bytes(self) -> int:
        """Device memory the blocks share."""
        return sum(slot.buffer.nbytes for slot in self._slots)

    def _hook(self, index: int) -> Callable[[nn.Module, object], None]:
        return lambda module, inputs: self._use(index)

    def _use(self, index: int) -> None:
        """Have a block on the device, and the next one on its way."""
        if index == self._in_use:
            return
        self._in_use = index
        slot = next((slot for slot in self._slots if slot.held == index), self._slots[0])
        if slot.held != index:
            self._fetch(index, slot)
        slot.wait()
        following = (index + 1) % len(self._blocks)
        other = self._slots[1 - self._slots.index(slot)]
        if other.held != following != index:
            self._fetch(following, other)

    def _fetch(self, index: int, slot: "_Slot") -> None:
        if slot.held is not None:
            self._blocks[slot.held].point_to(self._blocks[slot.held].host)
        slot.fill(index, self._blocks[index].host, self._side)
        self._blocks[index].point_to(slot.buffer)


class ModelOffload:
    """Keeps a model's weights in host memory but for the time it is entered, when they are on the device."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._weights: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in model.parameters():
            host = parameter.data.cpu()
            parameter.data = host.pin_memory() if device.type == "cuda" else host
            self._weights.append((parameter, parameter.data))

    def __enter__(self) -> None:
        try:
            for parameter, host in self._weights:
                parameter.data = host.to(self._device, non_blocking=True)
        except BaseException:  # out of memory, most likely
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for parameter, host in self._weights:
            parameter.data = host


class _Block:
    """One block's parameters, as one buffer in host memory, so that they travel in one copy."""

    def __init__(self, block: nn.Module, *, pinned: bool) -> None:
        self._parameters = list(block.parameters())
        sizes = [-(-p.nbytes // _ALIGNMENT) * _ALIGNMENT for p in self._parameters]
        *self._offsets, size_bytes = accumulate(sizes, initial=0)
        self.host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
        for parameter, view in zip(self._parameters, self._views(self.host), strict=True):
            view.copy_(parameter.data)
        self.point_to(self.host)

    def point_to(self, buffer: Tensor) -> None:
        """Take the parameters' values from a buffer."""
        for parameter, view in zip(self._parameters, self._views(buffer), strict=True):
            parameter.data = view

    def _views(self, buffer: Tensor) -> list[Tensor]:
        return [
            buffer[offset : offset + p.nbytes].view(p.dtype).view(p.shape)
            for offset, p in zip(self._offsets, self._parameters, strict=True)
        ]


class _Slot:
    """Room for one block on the device. held: whose weights are in it or on their way."""

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self.buffer = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.held: int | None = None
        self._arrived: torch.Event | None = None

    def fill(self, index: int, host: Tensor, side: torch.cuda.Stream | None) -> None:
        """Copy a block in, on the side stream, once what was computed from the one before it is done."""
        self.held = index
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(side.device))
        with _on(side):
            self.buffer[: host.nbytes].copy_(host, non_blocking=True)
            self._arrived = None if side is None else side.record_event()

    def wait(self) -> None:
        """Let what is computed from now on wait until the block has arrived."""
        if self._arrived is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self._arrived)


def _on(side: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if side is None else torch.cuda.stream(side)
