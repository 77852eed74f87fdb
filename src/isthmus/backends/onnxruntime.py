"""ONNX programs by onnxruntime, on the processor."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from isthmus.backends import Array, Program
from isthmus.errors import RunError, one_line


def load(path: Path, *, threads: int) -> Program:
    """Load a program; see `isthmus.backends.Backend`.

    Its own loader refuses external data outside of the program's folder.
    """
    options = session_options(threads=threads)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise RunError(f"{path}: onnxruntime cannot load it ({one_line(error)})") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        if len(arrays) != len(names):
            raise RunError(f"{path}: found {len(arrays)} inputs, expected {len(names)}")
        feed = dict(zip(names, arrays, strict=True))
        try:
            outputs = session.run(None, feed)
        except Exception as error:
            raise RunError(f"{path}: onnxruntime failed ({one_line(error)})") from error
        return tuple(np.asarray(output) for output in outputs)

    return run


def session_options(*, threads: int) -> onnxruntime.SessionOptions:
    """Return how programs are run.

    Where the processor has no instruction for sums of bytes (VNNI), two products of int8 weights
    may overflow the 16 bits in which it adds them; it is told to compute these by another, which
    is slower and right. Only there: it would do so, too, where the processor has matrices of bytes
    (AMX).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not _sums_bytes():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@cache
def _sums_bytes() -> bool:
    """Return whether the processor is known to have VNNI."""
    flags = Path("/proc/cpuinfo")
    words = flags.read_text().split() if flags.is_file() else []
    return "avx512_vnni" in words or "avx_vnni" in words
