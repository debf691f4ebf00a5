"""Every exception wan_ray raises on purpose.

    WanRayError
      ConfigError            the run cannot start: config, manifest or checkpoint is wrong; nothing was rendered
        CheckpointError      a weight file is missing, or a tensor is missing, extra or misshaped
        MissingExtraError    an optional package is needed; the message names the extra to install
      RequestError           the row's own fault: recorded, never retried
      StageError             a stage failed on a sound row: recorded with its stage; may be retried
        GangError            ranks did not meet or lost each other: the gang is built anew and the row tried again
        ExtenderError        a prompt could not be rewritten: the config says whether the row goes on without
        OutOfMemoryError     memory did not suffice in any way the stage knows; the message says what would
        ProgressError        what was saved of a clip is not this row's, or is damaged: start it at step 0
      ClipStoppedError       a clip was stopped at a step boundary, as asked; it can go on from what was saved
      CancelledError         over HTTP: a job was ended because its owner asked
      DeadlineError          over HTTP: a job was ended because it was late
      JobNotFoundError       over HTTP: this key has no such job; it never had, or the job was deleted or expired
      QueueFullError         over HTTP: no room for another job now; nothing was accepted
      QueueDownError         over HTTP: the queue cannot be asked now; no accepted job is lost
      StorageError           the output or input store refused or failed
        ChecksumError        what was read is not what was written: write it again
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


class GangError(StageError):
    """The ranks of a gang did not meet, or lost each other."""


class ExtenderError(StageError):
    """A prompt could not be rewritten."""


class OutOfMemoryError(StageError):
    """A stage had not enough memory, also in its leanest way."""


class ProgressError(StageError):
    """What was saved of a clip cannot be gone on from."""


class ClipStoppedError(WanRayError):
    """A clip was stopped between two steps because someone asked; not a failure."""


class CancelledError(WanRayError):
    """A job's owner ended it."""


class DeadlineError(WanRayError):
    """A job did not end before its deadline."""


class JobNotFoundError(WanRayError):
    """This API key has no such job."""


class QueueFullError(WanRayError):
    """There is no room for another job now."""


class QueueDownError(WanRayError):
    """The queue's process cannot be asked now."""


class StorageError(WanRayError):
    """Reading or writing files failed."""


class ChecksumError(StorageError):
    """A file does not hold what was written to it, as the store's own checksum shows."""


class RunStoppedError(WanRayError):
    """A run ended before its last row; the same call goes on from there."""
