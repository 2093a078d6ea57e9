"""Every error that headstart raises on purpose.

    Error                 the user's mistake: shown as one message, exit code 2
    ├── ConfigError       an option or a configuration file
    ├── DataError         images, tables, labels
    ├── ModelError        a model spec, weights, a head, a freeze rule
    ├── RunError          the run itself failed, exit code 1
    │   ├── NonFiniteError    a loss, gradient, weight or rate is NaN or infinite
    │   ├── Interrupted       Ctrl-C (exit code 130), SIGTERM (143) or SIGHUP (129), after saving
    │   └── OthersFailed      another process of the run has failed, and says why itself; nothing is shown
    └── StorageError      the disk: full, read-only, damaged; exit code 4

A message says where, what was found, what is accepted and what to type next. headstart's own mistakes are ``assert``.
"""

from __future__ import annotations

from collections.abc import Sequence

from headstart.wording import switch

_SHOWN = 8  # files, groups or tensors that a message names


class Error(Exception):
    """An error that the user can mend: its message says where, what was found and what is accepted.

    Every error that headstart raises on purpose is one; headstart's own mistakes are ``AssertionError``.

    Attributes:
        ``exit_code``: The exit code of the command: 2, or 1 where a run failed after it had started, 4 for the disk,
            and 128 and the signal's number after an interruption.

    Example:
        >>> import headstart as hs
        >>> try:
        ...     hs.open_model("timm/resnet18000")
        ... except hs.Error as error:
        ...     print(type(error).__name__, error.exit_code)
        ModelError 2
    """

    exit_code = 2


class ConfigError(Error):
    """An option or a configuration file is wrong."""


class DataError(Error):
    """Images, tables or labels are wrong."""


class ModelError(Error):
    """A model spec, weights, a head or a freeze rule is wrong."""


class RunError(Error):
    """The run failed after it had started."""

    exit_code = 1


class NonFiniteError(RunError):
    """A loss, gradient, weight or rate became NaN or infinite."""


class Interrupted(RunError):
    """The run was asked to stop, and has saved its state; ``what`` says when, without how to go on."""

    def __init__(self, what: str, *, signal_number: int) -> None:
        super().__init__(f"{what}; go on with {switch('resume')}")
        self.what = what
        self.exit_code = 128 + signal_number


class OthersFailed(RunError):
    """Another process of the run has failed and says so itself; this one ends without a word."""

    def __init__(self, message: str = "", *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StorageError(Error):
    """The disk is full, read-only or damaged; earlier checkpoints are intact."""

    exit_code = 4


def name_some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are: for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
