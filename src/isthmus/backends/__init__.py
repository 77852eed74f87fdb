"""What runs a stage's program: one file for each backend, loaded when it is asked for.

.. code-block:: none

    onnxruntime   <device>/program.onnx
    openvino      <device>/program.onnx
    torch         <device>/program.safetensors   weights, and a list of operations as data
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from isthmus.errors import RunError

MAX_THREADS = 1024
MAX_BATCH = 1024

Array = npt.NDArray[Any]
Program = Callable[[Sequence[Array]], tuple[Array, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A named tensor that a model takes or returns, one sample."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Backend(Protocol):
    """Loads a stage's program; the result maps input arrays to output arrays, by order.

    A program is deterministic, keeps no state between calls, and does not alter its inputs. It
    lets go of the interpreter's lock while it computes, so that its worker can still answer. What
    it loads is data from outside: nothing in it is run as code, and it reads no other file.
    """

    def __call__(self, path: Path, *, threads: int) -> Program:
        """Return the program, ready to run.

        Args:
            path: A file of the kind that `program_file` names.
            threads: Intra-op threads.

        Raises:
            RunError: The file is no program that this backend can run; one line.
        """


def _load(name: str, package: str, path: Path, *, threads: int) -> Program:
    """Load a program by a backend whose file is imported only then.

    Args:
        name: Of its module here.
        package: What pip installs for it.
        path: As for `Backend`.
        threads: As for `Backend`.
    """
    try:
        backend: Backend = import_module(f"{__name__}.{name}").load
    except ModuleNotFoundError as error:
        raise RunError(
            f'backend {name}: needs {error.name}, which is not here; pip install "{package}"'
        ) from error
    return backend(path, threads=threads)


BACKENDS: dict[str, Backend] = {
    "onnxruntime": partial(_load, "onnxruntime", "isthmus"),
    "openvino": partial(_load, "openvino", "isthmus[openvino]"),
    "torch": partial(_load, "torch", "isthmus[torch]"),
}


def program_file(backend: str) -> str:
    """Return the name of the file that holds a program of a backend."""
    return "program.safetensors" if backend == "torch" else "program.onnx"


def load_program(path: Path, *, backend: str | Backend, threads: int = 1) -> Program:
    """Load a stage's program.

    Args:
        path: A file of the kind that `program_file` names.
        backend: A key of ``BACKENDS``, or your own.
        threads: Intra-op threads.

    Raises:
        RunError: There is no such backend, its library is not here, or it cannot run the program.
    """
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise RunError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
        backend = BACKENDS[backend]
    return backend(path, threads=threads)
