"""Ranks for tests: forked from a script that has imported everything, so that a world starts at once.

Imported by the scripts beside it, ranks_*.py, which tests run as processes of their own.
"""

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

import torch

from wan_ray.parallel.process_group import reserve_address

torch.set_num_threads(1)  # before any fork: a pool of threads does not survive one
_CONTEXT = multiprocessing.get_context("fork")

Program = Callable[[int, str], object]


def run(world_size: int, program: Program, *, timeout_s: float) -> list:
    """What program(rank, address) returned on each rank; kills all and raises when one fails or time is up."""
    reservation = reserve_address("127.0.0.1", timeout_s=timeout_s)
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
    ranks = [
        _CONTEXT.Process(target=_serve, args=(program, rank, reservation.address, pipes[rank][1]), daemon=True)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    try:
        return _gathered([receiver for receiver, _ in pipes], ranks, timeout_s)
    finally:
        for process in ranks:
            process.kill()
            process.join()
        reservation.close()


def _gathered(receivers: list[Connection], ranks: list[ForkProcess], timeout_s: float) -> list:
    results: dict[int, object] = {}
    deadline = time.monotonic() + timeout_s
    while len(results) < len(ranks):
        missing = [rank for rank in range(len(ranks)) if rank not in results]
        sources = [source for rank in missing for source in (receivers[rank], ranks[rank].sentinel)]
        if not wait(sources, timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"ranks {missing} of {len(ranks)} said nothing for {timeout_s} s")
        for rank in missing:
            ended = ranks[rank].exitcode  # before the pipe: what it sent, it sent before it ended
            if receivers[rank].poll():
                results[rank] = receivers[rank].recv()
            elif ended == 0:
                results[rank] = None
            elif ended is not None:
                raise RuntimeError(f"rank {rank} of {len(ranks)} ended with {ended}; what it raised is above")
    return [results[rank] for rank in range(len(ranks))]


def vanish() -> NoReturn:
    """End this rank where it is, as if its process had been killed; its result is None."""
    os._exit(0)


def _serve(program: Program, rank: int, address: str, sender: Connection) -> None:
    try:
        sender.send(program(rank, address))
    except BaseException:  # noqa: BLE001  (whatever it was, the other ranks wait for this one)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sender.close()
    os._exit(0)  # what a library does at exit is not what is tested


def report(results: object) -> None:
    """Write what the test reads."""
    Path(sys.argv[1]).write_text(json.dumps(results))
