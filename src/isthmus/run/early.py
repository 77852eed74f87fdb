"""The early exit: an answer of the first device, where the others are silent or it is sure."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from isthmus.backends import Array, Program, load_program
from isthmus.bundle import Bundle, confidence
from isthmus.errors import RunError
from isthmus.run import border

_LEAST_S = 0.02
_SHARE = 0.1  # of a deadline, at least
_TIMES = 4  # as long as it took when it was loaded, as other work may be beside it


class Outputs(tuple[Array, ...]):
    """A model's outputs, one array each.

    Attributes:
        early_exit: The device whose early exit answered; empty where the whole network did.
        width: What the request was given of nested crossings, such as ``ratio=8,bits=4``; empty
            where the service does not choose that.
    """

    early_exit: str = ""
    width: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a request that has a result.

    Attributes:
        payload: The outputs, as `isthmus.run.border.to_bytes` joins them.
        early_exit: The device whose early exit answered; empty where the whole network did.
        width: What it was given of nested crossings; empty where nothing was chosen.
    """

    payload: bytes
    early_exit: str = ""
    width: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExit:
    """A program that answers without the other devices, less well than they would.

    Attributes:
        bundle: Says what passes its border.
        program: From the model's inputs to its outputs.
        reserve_s: What it takes, with room for other work beside it.
    """

    bundle: Bundle
    program: Program
    reserve_s: float

    def begin_s(self, limit_s: float) -> float:
        """Return how long before the deadline of a request that may take so long it begins."""
        return min(max(self.reserve_s, _SHARE * limit_s), limit_s / 2)

    def answer(self, payload: bytes) -> Result:
        """Return what it makes of a request's inputs.

        Raises:
            RunError: The program failed, or its outputs are not the model's.
        """
        inputs = border.from_bytes(payload, self.bundle.inputs)
        outputs = self.program([array[np.newaxis] for array in inputs])
        if any(array.shape[:1] != (1,) for array in outputs):
            raise RunError("the early exit makes no batch of 1")
        return Result(
            payload=border.to_bytes([array[0] for array in outputs], self.bundle.outputs),
            early_exit=self.bundle.devices[0].name,
        )

    def answer_if_sure(self, payload: bytes) -> Result | None:
        """Return what it makes of a request's inputs; None where the whole network is to answer.

        Raises:
            RunError: As `answer` does.
        """
        least = self.bundle.exit_confidence
        if least is None:
            return None
        result = self.answer(payload)
        scores = border.from_bytes(result.payload, self.bundle.outputs)[0]
        return result if confidence(scores) >= least else None


def load_exit(path: Path, bundle: Bundle) -> EarlyExit | None:
    """Load a bundle's early exit and see how long it takes; None where it has none.

    Raises:
        RunError: The program cannot be loaded, fails, or does not return the model's outputs.
    """
    if bundle.early_exit is None:
        return None
    first = bundle.devices[0]
    program = load_program(path / bundle.early_exit, backend=first.backend, threads=first.threads)
    early_exit = EarlyExit(bundle=bundle, program=program, reserve_s=_LEAST_S)
    zeros = [np.zeros(tensor.shape, tensor.dtype) for tensor in bundle.inputs]
    for _ in range(2):  # the first time, more is made ready
        start_s = time.perf_counter()
        early_exit.answer(border.to_bytes(zeros, bundle.inputs))
        took_s = time.perf_counter() - start_s
    return replace(early_exit, reserve_s=_LEAST_S + _TIMES * took_s)
