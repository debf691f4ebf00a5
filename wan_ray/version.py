"""The package's version, here because a job that runs from its sources has no installed metadata."""

VERSION = "0.1.0"
