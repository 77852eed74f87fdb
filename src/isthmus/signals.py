"""End a process when it is asked to, even where the asking would be lost."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_AGAIN_S = 0.01


def raise_at(number: signal.Signals, error: Callable[[], BaseException]) -> None:
    """Let the main thread raise an error at the first signal of a kind, and ignore the later ones.

    A signal may come while a callback runs that cannot raise, such as a destructor or a library's
    C code: Python then only reports the error and goes on. Here the signal is sent again.

    Args:
        number: The signal.
        error: Makes what is raised.
    """
    raised: BaseException | None = None

    def handle(*_: object) -> None:
        nonlocal raised
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows clears up
        raised = error()
        raise raised

    def report(unraisable: Any) -> None:
        if raised is not None and unraisable.exc_value is raised:
            signal.signal(number, handle)
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report
    signal.signal(number, handle)
