"""The package's version, here because a job that runs from its sources has no installed metadata; and others'."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

VERSION = "0.1.0"


def installed(*packages: str) -> dict[str, str]:
    """Versions of this package and of those of these that are installed."""
    found = {"wan-ray": VERSION}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
