"""Process groups of a gang: how its ranks meet, and which of them share what. One gang per process at a time."""

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self, cast

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from wan_ray.degrees import Degrees
from wan_ray.errors import GangError

logger = logging.getLogger(__name__)

_CLOSE_S = 10.0  # for the libraries to let go of their sockets and threads; beyond it the process should end


class Reservation:
    """A meeting place for the ranks, held by rank 0 from before the others hear of it until the gang is closed."""

    def __init__(self, host: str, *, timeout_s: float) -> None:
        try:
            # The socket listens before its number is known to anyone: no port is picked, lost and missed.
            listener = socket.create_server((host, 0))
        except OSError as error:
            raise GangError(f"rank 0 cannot listen at {host!r}: {error}; give an address of its own machine") from None
        port = listener.getsockname()[1]
        self.address = f"{host}:{port}"
        self._store: dist.TCPStore | None = dist.TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )

    def close(self) -> None:
        """Stop listening. Ranks that have met do not need it any more, but for ones that are still to open groups."""
        self._store = None


def reserve_address(host: str, *, timeout_s: float) -> Reservation:
    """Where the ranks of one gang will meet: call it on rank 0, tell the others its address, close it with the gang.

    host is how the other ranks reach this machine. GangError when this machine does not have that address.
    """
    return Reservation(host, timeout_s=timeout_s)


@dataclass(kw_only=True)
class Groups:
    """Who this rank shares its work with; close() it before others are opened in this process.

    A group of one rank is None. sequence: the ranks that divide one pass's tokens. ulysses, ring: rows and columns of
    those. cfg: the same part of the other pass. control: all ranks, on CPUs, for decisions.
    """

    degrees: Degrees
    rank: int
    device: torch.device
    timeout_s: float
    world: ProcessGroup
    control: ProcessGroup
    sequence: ProcessGroup | None
    ulysses: ProcessGroup | None
    ring: ProcessGroup | None
    cfg: ProcessGroup | None
    on_close: list[Callable[[], None]] = field(default_factory=list)  # what was built on them, oldest first

    @property
    def sequence_rank(self) -> int:
        """Which part of the tokens is this rank's."""
        return self.rank % self.degrees.sequence

    @property
    def ulysses_rank(self) -> int:
        """Which part of the heads is this rank's inside attention."""
        return self.rank % self.degrees.ulysses

    @property
    def ring_rank(self) -> int:
        """Which block of the keys starts at this rank."""
        return self.sequence_rank // self.degrees.ulysses

    @property
    def cfg_rank(self) -> int:
        """Which of the two passes is this rank's: 0 the conditional one."""
        return self.rank // self.degrees.sequence

    def from_leader(self, value: int) -> int:
        """Rank 0's value, on every rank; all must call it at the same point of their work."""
        told = torch.tensor([value])
        dist.broadcast(told, src=0, group=self.control)
        return int(told)

    def close(self) -> None:
        """Leave all groups, within seconds even when other ranks are gone. Closed groups stay closed."""
        if not dist.is_initialized() or dist.group.WORLD is not self.world:
            return
        # Libraries may wait here for a peer that died: not in this thread.
        leaving = threading.Thread(target=self._leave, name="leave-gang", daemon=True)
        leaving.start()
        leaving.join(_CLOSE_S)
        if leaving.is_alive():
            logger.warning("left a gang uncleanly: rank=%d seconds=%.0f; end this process", self.rank, _CLOSE_S)

    def _leave(self) -> None:
        while self.on_close:
            self.on_close.pop()()
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_groups(degrees: Degrees, *, rank: int, address: str, timeout_s: float, device: torch.device) -> Groups:
    """This rank's groups, once all ranks of the gang have called it: gloo on CPUs, NCCL on GPUs.

    timeout_s bounds the meeting and, on every group, each exchange. GangError names the rank and the address when
    the ranks do not all come in time, or when this process is still in another gang.
    """
    if dist.is_initialized():
        raise GangError(f"rank {rank} at {address}: this process is still in another gang; close its groups first")
    timeout = timedelta(seconds=timeout_s)
    try:
        _meet(degrees.world_size, rank=rank, address=address, timeout=timeout, device=device)
        return _divide(degrees, rank=rank, timeout=timeout, device=device)
    except (RuntimeError, ValueError) as error:  # gloo and the store raise plain RuntimeErrors
        with suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group()
        reason = str(error).partition("\n")[0]
        raise GangError(
            f"rank {rank} of {degrees.world_size} did not meet the others at {address} within {timeout_s:g} s: {reason}"
        ) from error


def _meet(world_size: int, *, rank: int, address: str, timeout: timedelta, device: torch.device) -> None:
    host, _, port = address.rpartition(":")
    store = dist.TCPStore(host, int(port), is_master=False, timeout=timeout)
    # Groups opened twice from one address, one after the other, must not read each other's keys.
    opened = store.add(f"opened/{rank}", 1)
    dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"gang/{opened}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def _divide(degrees: Degrees, *, rank: int, timeout: timedelta, device: torch.device) -> Groups:
    """The smaller groups; every rank makes all of them, in one order."""
    size, ulysses, sequence = degrees.world_size, degrees.ulysses, degrees.sequence
    world = dist.group.WORLD
    assert world is not None
    whole = [list(range(first, first + sequence)) for first in range(0, size, sequence)]

    def mine(families: list[list[int]]) -> ProcessGroup | None:
        if len(families[0]) == 1:
            return None
        if len(families[0]) == size:
            return world
        made = [(ranks, _new_group(ranks, timeout)) for ranks in families]
        return next(group for ranks, group in made if rank in ranks)

    return Groups(
        degrees=degrees,
        rank=rank,
        device=device,
        timeout_s=timeout.total_seconds(),
        world=world,
        control=_new_group(None, timeout, backend="gloo") if device.type == "cuda" else world,
        sequence=mine(whole),
        ulysses=mine([ranks[i : i + ulysses] for ranks in whole for i in range(0, sequence, ulysses)]),
        ring=mine([ranks[i::ulysses] for ranks in whole for i in range(ulysses)]),
        cfg=mine([[i, i + sequence] for i in range(sequence)] if degrees.cfg == 2 else [[0]]),
    )


def _new_group(ranks: list[int] | None, timeout: timedelta, *, backend: str | None = None) -> ProcessGroup:
    """A group, which on the ranks outside it is a mere token; torch's type says so, and None besides."""
    return cast(ProcessGroup, dist.new_group(ranks, timeout=timeout, backend=backend))
