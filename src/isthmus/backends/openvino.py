"""ONNX programs by OpenVINO, on the processor, in fp32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
from openvino.frontend import FrontEndManager

from isthmus.backends import Array, Program
from isthmus.errors import RunError


def load(path: Path, *, threads: int) -> Program:
    """Load a program; see `isthmus.backends.Backend`.

    The file is read as ONNX and nothing else, without OpenVINO's guess at its kind. Its reader
    refuses external data outside of the program's folder.
    """
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16, where the processor has it
        "ENABLE_CPU_PINNING": False,  # two workers would be pinned to the same core
    }
    try:
        reader = FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(str(path)))
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
    except Exception as error:  # OpenVINO's exceptions have no common base of their own
        raise RunError(f"{path}: openvino cannot load it ({_last_line(error)})") from error
    if not compiled.outputs:  # as in an empty file, which it takes for an empty network
        raise RunError(f"{path}: openvino cannot load it (it has no outputs)")
    dtypes = [entry.element_type.to_dtype() for entry in compiled.inputs]
    shapes = [entry.partial_shape for entry in compiled.inputs]

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        found = [array.dtype for array in arrays]
        if found != dtypes:  # it would convert them without a word
            raise RunError(f"{path}: found inputs of {_names(found)}, expected {_names(dtypes)}")
        for array, shape in zip(arrays, shapes, strict=True):
            # Nor does it look at this.
            if not shape.compatible(openvino.PartialShape(array.shape)):
                raise RunError(
                    f"{path}: found an input of shape {list(array.shape)}, expected {shape}"
                )
        try:
            outputs = request.infer(list(arrays), share_inputs=False)
        except Exception as error:
            raise RunError(f"{path}: openvino failed ({_last_line(error)})") from error
        return tuple(np.array(outputs[entry]) for entry in compiled.outputs)

    return run


def _names(dtypes: Sequence[np.dtype]) -> str:
    return ", ".join(dtype.name for dtype in dtypes) or "nothing"


def _last_line(error: Exception) -> str:
    """Return what went wrong; where in OpenVINO's source it did stands before it."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
