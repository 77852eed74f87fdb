"""The bodies of the Open Inference Protocol v2: JSON, and tensors as bytes behind it.

A request's tensors have a batch as their first axis; each sample of it is a request of its own to
the service. A tensor stands in the JSON (``data``), or little-endian behind the JSON in the order
of the tensors (``binary_data_size``), as Triton's clients send it unless told otherwise.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import numpy as np
from pydantic import FailFast, Field, TypeAdapter, ValidationError

from isthmus.backends import Array, TensorSpec
from isthmus.bundle import Bundle
from isthmus.errors import RequestError
from isthmus.files import first_problem
from isthmus.run import border
from isthmus.run.early import Result

VERSION = "1"  # of the model; a service has one
MAX_BATCH = 32
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}

_ROOM_BYTES = 64 << 10  # for all of the JSON that is no number
_JSON_BYTES = 16 << 20  # are read in a fifth of a second
_NUMBER_BYTES = 32  # of a number in JSON, with what is around it
_NUMBERS: dict[str, set[type]] = {
    "b": {bool},
    "f": {int, float},
}  # what JSON may hold for a kind of dtype; else int
_US = 1_000_000
_SHORT = (FailFast(), Field(max_length=1024))  # a list with a million faults has one


@dataclass(frozen=True, slots=True, kw_only=True)
class _InputOptions:
    binary_data_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    name: str
    shape: Annotated[tuple[int, ...], *_SHORT]
    datatype: str
    parameters: _InputOptions = _InputOptions()
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _OutputOptions:
    binary_data: bool | None = None
    classification: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    name: str
    parameters: _OutputOptions = _OutputOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] = 0
    timeout: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    binary_data_output: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The JSON of a request; what is not known is passed over."""

    inputs: Annotated[tuple[_Input, ...], *_SHORT]
    outputs: Annotated[tuple[_Output, ...], *_SHORT] = ()
    id: str | None = None
    parameters: _Options = _Options()


_HEAD = TypeAdapter(_Head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a body asks for.

    Attributes:
        payloads: One for each sample of the batch, as `isthmus.run.border.to_bytes` joins them.
        outputs: Indices of the outputs that are wanted, and whether as bytes.
        id: What the client calls it; None if nothing.
        timeout_s: How long it may take, in seconds; None where it does not say.
        priority: Higher goes first.
    """

    payloads: tuple[bytes, ...]
    outputs: tuple[tuple[int, bool], ...]
    id: str | None
    timeout_s: float | None
    priority: int


def describe(bundle: Bundle, name: str) -> dict[str, object]:
    """Return the metadata of a bundle's model under a name; -1 is the batch."""

    def tensors(entries: Sequence[TensorSpec]) -> list[dict[str, object]]:
        return [
            {"name": each.name, "datatype": DATATYPES[each.dtype], "shape": [-1, *each.shape]}
            for each in entries
        ]

    return {
        "name": name,
        "versions": [VERSION],
        "platform": "isthmus",
        "inputs": tensors(bundle.inputs),
        "outputs": tensors(bundle.outputs),
    }


def body_limit(inputs: Sequence[TensorSpec]) -> int:
    """Return the longest body of a request, in bytes: a full batch, its numbers written out."""
    return _ROOM_BYTES + MAX_BATCH * _NUMBER_BYTES * sum(math.prod(each.shape) for each in inputs)


def json_limit(inputs: Sequence[TensorSpec]) -> int:
    """Return the longest JSON of a request, in bytes: 16 MiB, or one sample if that is longer.

    While it is read, nothing else is: the reader holds the interpreter's lock.
    """
    one = _NUMBER_BYTES * sum(math.prod(each.shape) for each in inputs)
    return _ROOM_BYTES + max(_JSON_BYTES, one)


def read_question(body: bytes, head_bytes: int | None, bundle: Bundle) -> Question:
    """Read the body of a request.

    Args:
        body: All of it.
        head_bytes: Length of its JSON; None if it is all JSON.
        bundle: Says what the model takes and returns.

    Raises:
        RequestError: It is not what the model takes, or nothing that one can read.
    """
    found, limit = len(body) if head_bytes is None else head_bytes, json_limit(bundle.inputs)
    if found > len(body):
        raise _refusal(f"found {len(body)} bytes, expected a JSON header of {found}")
    if found > limit:
        raise _refusal(
            f"found {found} bytes of JSON, expected at most {limit}; send tensors as bytes "
            "(binary_data_size), or fewer samples at a time"
        )
    try:
        head = _HEAD.validate_json(body[:found], strict=True)
    except ValidationError as error:
        raise _refusal(first_problem(error)) from error
    return Question(
        payloads=_payloads(head.inputs, body[found:], bundle),
        outputs=_outputs(head, bundle),
        id=head.id,
        timeout_s=head.parameters.timeout / _US or None,
        priority=head.parameters.priority,
    )


def write_answer(
    question: Question, results: Sequence[Result], bundle: Bundle, name: str
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes follow it.

    Args:
        question: What is answered.
        results: That of each sample.
        bundle: Says what the model returns.
        name: Of the model.

    Raises:
        RequestError: NaN or infinity is among the outputs, which JSON cannot say.
    """
    samples = [border.from_bytes(result.payload, bundle.outputs) for result in results]
    outputs, tail = [], []
    for index, binary in question.outputs:
        tensor = bundle.outputs[index]
        array = np.stack([sample[index] for sample in samples])
        output: dict[str, object] = {
            "name": tensor.name,
            "datatype": DATATYPES[tensor.dtype],
            "shape": array.shape,
        }
        if binary:
            data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        elif not np.isfinite(array).all():
            raise RequestError(
                f"output {tensor.name}: holds NaN or infinity, which JSON cannot say; ask for it "
                "with binary_data",
                reason="failed",
            )
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    head: dict[str, object] = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    if question.id is not None:
        head["id"] = question.id
    early = [result.early_exit for result in results if result.early_exit]
    widths = [result.width for result in results if result.width]
    more: dict[str, object] = {}
    if early:
        more |= {"early_exit": early[0], "early_exit_samples": len(early)}
    if widths:
        more["width"] = "; ".join(widths)
    if more:
        head["parameters"] = more
    text = json.dumps(head).encode()
    return b"".join((text, *tail)), len(text) if tail else None


def _refusal(message: str) -> RequestError:
    return RequestError(f"request: {message}", reason="refused")


def _payloads(found: Sequence[_Input], tail: bytes, bundle: Bundle) -> tuple[bytes, ...]:
    """Return each sample's payload; ``tail`` is what follows the JSON."""
    names, expected = [each.name for each in found], [each.name for each in bundle.inputs]
    if sorted(names) != sorted(expected):
        raise _refusal(f"found inputs {_short(names)}, expected {expected}")
    arrays, start = {}, 0
    for each in found:
        tensor = bundle.inputs[expected.index(each.name)]
        _check_shape(each, tensor)
        size = each.parameters.binary_data_size
        if size is None:
            arrays[each.name] = _from_json(each, tensor)
        else:
            arrays[each.name] = _from_bytes(each, tensor, tail[start : start + max(size, 0)])
            start += size
    if start != len(tail):
        raise _refusal(f"found {len(tail)} bytes behind the JSON, expected {start}")
    if len({len(array) for array in arrays.values()}) > 1:
        raise _refusal("the batches of the inputs are of different sizes")
    batch = zip(*(arrays[name] for name in expected), strict=True)
    return tuple(border.to_bytes(sample, bundle.inputs) for sample in batch)


def _check_shape(found: _Input, tensor: TensorSpec) -> None:
    datatype = DATATYPES[tensor.dtype]
    if found.datatype != datatype:
        raise _refusal(f"input {tensor.name}: found {_short(found.datatype)}, expected {datatype}")
    batch, *shape = found.shape or (0,)
    if not (1 <= batch <= MAX_BATCH and tuple(shape) == tensor.shape):
        expected = ", ".join(map(str, ("n", *tensor.shape)))
        raise _refusal(
            f"input {tensor.name}: found shape {_short(list(found.shape))}, expected [{expected}] "
            f"with n from 1 to {MAX_BATCH}"
        )


def _from_json(found: _Input, tensor: TensorSpec) -> Array:
    """Return the numbers of a list, or of lists of lists, in the shape that was said."""
    dtype = np.dtype(tensor.dtype)
    values = found.data
    if not isinstance(values, list):
        raise _refusal(f"input {tensor.name}: has neither a list as data nor binary_data_size")
    while (kinds := set(map(type, values))) == {list}:
        values = list(chain.from_iterable(values))
    wrong = kinds - _NUMBERS.get(dtype.kind, {int})
    if wrong:
        names = ", ".join(sorted(kind.__name__ for kind in wrong))
        raise _refusal(f"input {tensor.name}: found {names} in data of {found.datatype}")
    if len(values) != math.prod(found.shape):
        raise _refusal(
            f"input {tensor.name}: found {len(values)} numbers, expected {math.prod(found.shape)}"
        )
    try:
        with np.errstate(over="ignore"):  # infinity is refused later
            return np.array(values, dtype).reshape(found.shape)
    except OverflowError as error:
        raise _refusal(f"input {tensor.name}: a number is too large for {dtype}") from error


def _from_bytes(found: _Input, tensor: TensorSpec, data: bytes) -> Array:
    dtype = np.dtype(tensor.dtype)
    expected = math.prod(found.shape) * dtype.itemsize
    if not found.parameters.binary_data_size == len(data) == expected:
        raise _refusal(
            f"input {tensor.name}: found {len(data)} bytes and a binary_data_size of "
            f"{_short(found.parameters.binary_data_size)}, expected {expected}"
        )
    if dtype.kind == "b" and max(data) > 1:
        raise _refusal(f"input {tensor.name}: found bytes over 1 in data of BOOL")
    flat = np.frombuffer(data, dtype.newbyteorder("<"))
    return flat.astype(dtype, copy=False).reshape(found.shape)


def _outputs(head: _Head, bundle: Bundle) -> tuple[tuple[int, bool], ...]:
    """Return which outputs are wanted, and whether as bytes; all where none is named."""
    names = [each.name for each in bundle.outputs]
    wanted = head.outputs or tuple(_Output(name=name) for name in names)
    found = [each.name for each in wanted]
    if not set(found) <= set(names) or len(set(found)) < len(found):
        raise _refusal(f"asks for outputs {_short(found)}, expected some of {names}, each once")
    if any(each.parameters.classification for each in wanted):
        raise _refusal("asks for a classification, which is not offered; ask for the tensor")
    default = head.parameters.binary_data_output
    binary = [each.parameters.binary_data for each in wanted]
    return tuple(
        (names.index(name), default if each is None else each)
        for name, each in zip(found, binary, strict=True)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
