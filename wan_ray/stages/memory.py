"""Out of memory: what it looks like, and the ladder of ways a stage tries then, each leaner than the last."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

from wan_ray.costs.bucket import Bucket
from wan_ray.errors import OutOfMemoryError

logger = logging.getLogger(__name__)

Rung = TypeVar("Rung")
Result = TypeVar("Result")

# Of the CPU's allocator and of pinned host memory, for which torch has no class of their own.
_WORDS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_CUDA_WORDS = "CUDA error: out of memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, on a GPU or on the host; the process is sound then."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in (*_WORDS, _CUDA_WORDS))


@contextmanager
def memory_for(what: str, *, fix: str) -> Iterator[None]:
    """OutOfMemoryError, with the fix, in place of what torch raises when there is no memory for that."""
    told = None
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        told = _told(error)
    if told is not None:
        raise OutOfMemoryError(f"out of memory for {what}; {fix} ({told})")


class Ladder(Generic[Rung]):
    """One stage's ways of doing its work. Each bucket of rows stays on the rung it has come to in this process."""

    def __init__(self, stage: str, rungs: Sequence[Rung]) -> None:
        """rungs: the fastest first."""
        self._stage = stage
        self._rungs = rungs
        self._reached: dict[Bucket, int] = {}

    def climb(self, bucket: Bucket, work: Callable[[Rung], Result], *, fix: str) -> Result:
        """What the work gives on the bucket's rung, or on the first leaner one that has the memory.

        OutOfMemoryError, with the fix, when the leanest has not.
        """
        while True:
            index = self._reached.get(bucket, 0)
            try:
                return work(self._rungs[index])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                told = _told(error)
            # Only here, where the error is gone, are the tensors of the frames it came through.
            free()
            if index + 1 == len(self._rungs):
                raise OutOfMemoryError(f"out of memory for {bucket} in any way this stage has; {fix} ({told})")
            self._reached[bucket] = index + 1
            logger.warning(
                "out of memory, trying a leaner way: stage=%s bucket=%s from=%s to=%s error=%s",
                self._stage,
                bucket,
                self._rungs[index],
                self._rungs[index + 1],
                told,
            )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
