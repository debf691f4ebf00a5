"""Patience with a store: which of its failures pass by themselves, and how long to wait for that."""

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from wan_ray.errors import ChecksumError, StorageError, WanRayError
from wan_ray.wording import without_secrets

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What asking again cannot change. FileNotFoundError and its kin are answers; a bug of ours is no outage either.
_LASTING = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
)
_LASTING_NUMBERS = frozenset({errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV, errno.EFBIG})
# botocore's errors share no base with the ones above.
_LASTING_NAMES = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "ProfileNotFound",
        "InvalidEndpointURLError",
    }
)
_CHECKSUM_NAME = "FlexibleChecksumError"  # botocore's


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Waits of first_s, doubled up to longest_s, each cut by chance to between half and all of it; total_s in all."""

    first_s: float = 0.5
    longest_s: float = 60.0
    total_s: float = 900.0


def passes(error: BaseException) -> bool:
    """Whether a later try may succeed: throttling, a reset connection, a full disk; not a missing right."""
    if isinstance(error, (WanRayError, *_LASTING)) or type(error).__name__ in _LASTING_NAMES:
        return False
    return not (isinstance(error, OSError) and error.errno in _LASTING_NUMBERS)


def patiently(what: str, operation: Callable[[], T], patience: Patience) -> T:
    """The operation's result, tried until it succeeds; StorageError says `what` and the cause when it does not.

    ChecksumError at once when the store finds that it reads something else than was written. This catches every
    Exception: storage drivers raise types of their own (botocore's are no OSError).
    """
    ends_at, wait_s = time.monotonic() + patience.total_s, patience.first_s
    while True:
        try:
            return operation()
        except WanRayError:
            raise
        except Exception as error:
            cause = without_secrets(f"{what}: {type(error).__name__}: {error}".removesuffix(": "))
            pause_s = wait_s * random.uniform(0.5, 1)
            if type(error).__name__ == _CHECKSUM_NAME:
                raise ChecksumError(cause) from error
            if not passes(error):
                raise StorageError(cause) from error
            if time.monotonic() + pause_s > ends_at:
                raise StorageError(f"{cause} (tried for {patience.total_s:g} s)") from error
            logger.warning("%s; trying again in %.1f s", cause, pause_s)
        time.sleep(pause_s)
        wait_s = min(2 * wait_s, patience.longest_s)
