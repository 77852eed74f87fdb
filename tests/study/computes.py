"""What the tests let cells compute, and the grids of such cells; workers import it."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from isthmus.files import write_bytes
from isthmus.study.grid import Cell, Grid

STEPS = 6
STALL = 3


def grid(num_cells: int = 4, **changes) -> Grid:
    plain = Cell(depth=18, width=16, placement="cut", ratio=1, data="digits", epochs=STEPS)
    cells = tuple(replace(plain, ratio=2**power) for power in range(num_cells))
    return Grid(**{"name": "tiny", "cells": cells, "config": {"rate": 0.1}, **changes})


def figures(cell: Cell, **more) -> dict[str, object]:
    return {"accuracy": 1 / cell.ratio, "bytes": 64 // cell.ratio, **more}


def count(cell, folder, report):
    """Note every computation in a file beside the folders of the cells."""
    with (folder.parent / "computed.txt").open("a") as file:
        file.write(f"{cell.key}\n")
    report("counted", 1, 1)
    return figures(cell)


def counted(folder: Path) -> list[str]:
    path = folder / "computed.txt"
    return sorted(path.read_text().split()) if path.exists() else []


def steps(cell, folder, report, *, at_stall=lambda: None):
    """Leave a checkpoint after each step; the first time, do something at the stall."""
    path = folder / "steps" / "checkpoint.json"
    begun = json.loads(path.read_text())["step"] if path.exists() else 0
    for step in range(begun, STEPS):
        if step == STALL and begun == 0 and cell.ratio == 2:
            at_stall()
        write_bytes(path, json.dumps({"step": step + 1}).encode())
        report("steps", step + 1, STEPS)
    return figures(cell, resumed_from=begun)


def stall(cell, folder, report):
    """Take steps, but hang in the middle of ratio 2, the first time."""
    return steps(cell, folder, report, at_stall=lambda: time.sleep(60))


def die(cell, folder, report):
    """Take steps, but die in the middle of ratio 2, the first time."""
    return steps(cell, folder, report, at_stall=lambda: os.kill(os.getpid(), signal.SIGKILL))


def wait_for_stop(cell, folder, report):
    """Say that it has begun, then report until it is stopped."""
    write_bytes(folder / "begun", b"")
    for _ in range(600):
        report("wait", 0, 1)
        time.sleep(0.1)
    raise AssertionError("was not stopped")


def never(cell, folder, report):
    raise AssertionError("nothing was left to compute")


def refuse_ratio_2(cell, folder, report):
    if cell.ratio == 2:
        raise ValueError("ratio 2\nis refused")
    return figures(cell)
