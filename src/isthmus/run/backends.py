"""What runs a stage's program."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from isthmus.errors import RunError

Array = npt.NDArray[Any]
Program = Callable[[Sequence[Array]], tuple[Array, ...]]


class Backend(Protocol):
    """Loads a stage's ONNX file; the result maps input arrays to output arrays, by order.

    A program is deterministic, keeps no state between calls, and does not alter its inputs. It
    lets go of the interpreter's lock while it computes, so that its worker can still answer.
    """

    def __call__(self, path: Path, *, threads: int) -> Program:
        """Return the program, ready to run.

        Args:
            path: An ONNX file.
            threads: Intra-op threads.

        Raises:
            RunError: The file is no program that this backend can run; one line.
        """


def load_onnxruntime(path: Path, *, threads: int) -> Program:
    """Load a program for onnxruntime on the processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise RunError(f"{path}: onnxruntime cannot load it ({_first_line(error)})") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        if len(arrays) != len(names):
            raise RunError(f"{path}: found {len(arrays)} inputs, expected {len(names)}")
        feed = dict(zip(names, arrays, strict=True))
        try:
            outputs = session.run(None, feed)
        except Exception as error:
            raise RunError(f"{path}: onnxruntime failed ({_first_line(error)})") from error
        return tuple(np.asarray(output) for output in outputs)

    return run


BACKENDS: dict[str, Backend] = {"onnxruntime": load_onnxruntime}


def load_program(path: Path, *, backend: str | Backend, threads: int = 1) -> Program:
    """Load a stage's program.

    Args:
        path: An ONNX file.
        backend: A key of ``BACKENDS``, or your own.
        threads: Intra-op threads.

    Raises:
        RunError: There is no such backend, or it cannot run the program.
    """
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise RunError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
        backend = BACKENDS[backend]
    return backend(path, threads=threads)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
