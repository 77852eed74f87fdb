"""Everything this package raises on purpose.

* IsthmusError
  + InputError         a file or an argument is wrong; also a ValueError
    - UnitError        a quantity without a unit, or with the wrong one
    - StorageError     a study's database cannot be reached or not be used
    - StateError       the state of training cannot be written or read
  + CaptureError       the model could not be traced, or not be divided
  + InfeasibleError    no plan satisfies the platform; carries the violations
  + BundleError        an exported bundle is damaged or of another version
  + RunError           a worker died or a link timed out; carries the device's name
    - RequestError     a service has no result for a request; carries the reason

A message is one line: where, what was found, what was expected, what to do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal


def one_line(error: BaseException) -> str:
    """Return the first line of what a library says, or what kind of error says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def few(names: Sequence[str], *, most: int = 3, apart: str = ", ") -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return apart.join(names[:most]) + more


def raise_interruption(error: Exception) -> None:
    """Raise the interruption in whose place torch, clearing up after it, raised an error."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        cause = cause.__context__
    if isinstance(cause, KeyboardInterrupt | SystemExit):
        raise cause from None


class IsthmusError(Exception):
    """Base class: ``except IsthmusError`` catches whatever a user can mend."""


class InputError(IsthmusError, ValueError):
    """A file or an argument is wrong."""


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Let an `InputError` say first where it comes from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


class UnitError(InputError):
    """A quantity has no unit, or one of the wrong kind."""


class StorageError(InputError):
    """A study's database cannot be reached or not be used."""


class StateError(InputError):
    """The state of training cannot be written or read; what there is of it stands."""


class CaptureError(IsthmusError):
    """The model could not be traced, or not be divided."""


class InfeasibleError(IsthmusError):
    """No plan satisfies the platform.

    Args:
        violations: Every limit that the nearest plan breaks; objects whose ``str`` is one line.
        nearest: That plan.
    """

    def __init__(self, violations: Sequence[object], *, nearest: Any = None) -> None:
        super().__init__("no plan fits: " + "; ".join(str(violation) for violation in violations))
        self.violations = tuple(violations)
        self.nearest = nearest


class BundleError(IsthmusError):
    """An exported bundle is damaged, or of another version."""


class RunError(IsthmusError):
    """A worker died, refused the bundle, or did not answer in time.

    Args:
        message: One line.
        device: The name of the device whose worker is at fault; empty where no single one is.
    """

    def __init__(self, message: str, *, device: str = "") -> None:
        super().__init__(message)
        self.device = device


Reason = Literal["busy", "deadline", "failed", "refused"]


class RequestError(RunError):
    """A service has no result for one request; it stays up.

    Args:
        message: One line.
        reason: ``"busy"``: as many requests wait as may, or it is being stopped, so ask later;
            ``"deadline"``: the time was up; ``"failed"``: a device could not compute it;
            ``"refused"``: the input is wrong.
        device: The device that is at fault, where one is.
    """

    def __init__(self, message: str, *, reason: Reason, device: str = "") -> None:
        super().__init__(message, device=device)
        self.reason = reason
