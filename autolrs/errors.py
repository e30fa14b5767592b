"""Every error that autolrs raises on purpose.

Each is an `AutoLRSError` and also the builtin that fits it, so that `except ValueError` keeps working:

    AutoLRSError
    ├── SettingError (ValueError)             an argument, a `--set` value or a YAML key is wrong
    ├── UnknownNameError (LookupError)        no space, strategy, model, ... of that name
    ├── SessionError (RuntimeError)           the session was used out of order
    │   ├── RateOverriddenError               something else wrote the optimizer's learning rate
    │   └── UnfinishedError                   `train` returned before the run was done
    ├── UntrackableError (TypeError)          an object that cannot be restored exactly
    ├── LoaderError (ValueError)              a loader that yields nothing, or that cannot be replayed
    ├── DivergedError (ArithmeticError)       no rate trains, or the kept run diverged too often
    ├── StudyNotFoundError (FileNotFoundError)
    ├── IdentityError (ValueError)            a resumed study was made with other settings
    ├── StudyLockedError (RuntimeError)       another process owns the study
    ├── CheckpointError (OSError)             a checkpoint cannot be written, or is damaged
    ├── StoppedError (RuntimeError)           asked to stop; everything is saved and resumable
    ├── WorkerError (RuntimeError)            what a worker raised, where that itself cannot be sent
    └── UnsupportedError (NotImplementedError)
"""

from __future__ import annotations

from collections.abc import Iterable


class AutoLRSError(Exception):
    """Base of every error raised by autolrs itself."""


class SettingError(AutoLRSError, ValueError):
    """A setting breaks its rule; the message holds the rule and the value."""


class UnknownNameError(AutoLRSError, LookupError):
    """Nothing of that name exists; the message lists what does."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
        return cls(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")


class SessionError(AutoLRSError, RuntimeError):
    """The session was used out of order."""


class RateOverriddenError(SessionError):
    """An optimizer's learning rate is no longer the one that the session set."""


class UnfinishedError(SessionError):
    """The train function returned before the planned steps were done."""


class UntrackableError(AutoLRSError, TypeError):
    """An object given to `track` has no state that could be restored exactly."""


class LoaderError(AutoLRSError, ValueError):
    """A loader yields nothing, or cannot be brought back to an earlier position."""


class DivergedError(AutoLRSError, ArithmeticError):
    """Training diverges at every rate tried, or went on diverging after roll-backs."""


class StudyNotFoundError(AutoLRSError, FileNotFoundError):
    """No study of that name in the storage."""


class IdentityError(AutoLRSError, ValueError):
    """A study cannot be continued with these settings."""


class StudyLockedError(AutoLRSError, RuntimeError):
    """Another process owns the study."""


class CheckpointError(AutoLRSError, OSError):
    """A checkpoint could not be written, or is damaged."""


class StoppedError(AutoLRSError, RuntimeError):
    """The run was asked to stop; everything is saved and the same command continues it."""


class WorkerError(AutoLRSError, RuntimeError):
    """A worker raised an error that cannot be sent to the driver; the message has its name and text."""


class UnsupportedError(AutoLRSError, NotImplementedError):
    """A use that autolrs refuses rather than gets wrong."""
