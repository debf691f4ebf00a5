"""Every exception wan_ray raises on purpose.

    WanRayError
      ConfigError            the run cannot start: config, manifest or checkpoint is wrong; nothing was rendered
        CheckpointError      a weight file is missing, or a tensor is missing, extra or misshaped
        MissingExtraError    an optional package is needed; the message names the extra to install
      RequestError           the row's own fault: recorded, never retried
      StageError             a stage failed on a sound row: recorded with its stage; may be retried
      StorageError           the output or input store refused or failed
      RunStoppedError        a run ended before its last row; what has a record stays, the same call goes on

Each takes one message, so that it survives pickling between processes.
"""


class WanRayError(Exception):
    """Any error of this package."""


class ConfigError(WanRayError):
    """The run cannot start; nothing was rendered."""


class CheckpointError(ConfigError):
    """The checkpoint cannot be loaded as the model that was asked for."""


class MissingExtraError(ConfigError):
    """An optional package is not installed."""


class RequestError(WanRayError):
    """The row breaks a rule; the message gives the value, the rule and what to change."""


class StageError(WanRayError):
    """A stage failed on a row that looked sound."""


class StorageError(WanRayError):
    """Reading or writing files failed."""


class RunStoppedError(WanRayError):
    """A run ended before its last row; the same call goes on from there."""
