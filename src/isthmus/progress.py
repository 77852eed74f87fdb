"""How long work reports: the step in words, how much of it is done, and of how much.

And how it keeps a library from talking in between.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

Report = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def shown() -> Iterator[Report]:
    """Yield a report that draws bars on a terminal and prints plain lines elsewhere, to stderr.

    What follows a comma in the step is a note that may change: ``"whole, loss 0.12"``.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_line
        return
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=console) as bars:
        tasks = {}

        def draw(step: str, done: int, total: int) -> None:
            name = step.partition(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(step, total=total)
            bars.update(tasks[name], description=step, completed=done, total=total)

        yield draw


@contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """Keep a library's notes on its own internals, and its warnings, from the user."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _print_line(step: str, done: int, total: int) -> None:
    """Print at most ten lines per step, and its end."""
    if total <= 1 or done * 10 // total != (done - 1) * 10 // total:
        count = f" {done}/{total}" if total > 1 else ""
        print(f"{step}{count}", file=sys.stderr, flush=True)
