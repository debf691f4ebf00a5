"""Connecting to Ray: the cluster this process belongs to, the one that is running, or one of its own."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from wan_ray.errors import ConfigError

_LOCAL_CPUS = 2  # what the sample config reserves, also on a machine with one core


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Ray while the block runs. "auto" takes a running cluster or starts a local one, "local" always starts one.

    A connection that was there before stays. ConfigError when no cluster answers at an explicit address.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {}
    if address == "local":
        # What workers have to say reaches the driver through the board; their logs lie in Ray's session folder.
        options = {"num_cpus": max(_LOCAL_CPUS, os.cpu_count() or 1), "log_to_driver": False}
    try:
        with _own_sigterm():
            ray.init(
                address=None if address == "auto" else address,
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
                **options,
            )
    except ConnectionError as error:
        raise ConfigError(f"ray_address={address!r}: no cluster answers ({error}); start one or use 'local'") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does while Ray starts, which would have it end the process with exit code 15."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and callable(before):
        signal.signal(signal.SIGTERM, before)
