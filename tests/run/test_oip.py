"""Bodies of the Open Inference Protocol: what a client writes is what the stages receive."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.backends import TensorSpec
from isthmus.bundle import Bundle
from isthmus.errors import RequestError
from isthmus.run import border
from isthmus.run.early import Result
from isthmus.run.oip import (
    DATATYPES,
    MAX_BATCH,
    body_limit,
    json_limit,
    read_question,
    write_answer,
)


def results(payloads):
    return [Result(payload=payload) for payload in payloads]


def bundle_of(*tensors: TensorSpec) -> Bundle:
    return Bundle(
        version="0.1.0", devices=(), crossings=(), inputs=tensors, outputs=tensors, files={}
    )


def ask(arrays, *, binary=(), **more):
    """Return a body as a client writes it, and the length of its JSON."""
    inputs, tail = [], b""
    for name, array in arrays.items():
        one = {"name": name, "shape": array.shape, "datatype": DATATYPES[array.dtype.name]}
        if name in binary:
            inputs.append(one | {"parameters": {"binary_data_size": array.nbytes}})
            tail += array.tobytes()
        else:
            inputs.append(one | {"data": array.tolist()})
    head = json.dumps({"inputs": inputs} | more).encode()
    return head + tail, len(head) if tail else None


@st.composite
def batches(draw):
    """Draw arrays by name, with a common batch, and the names of those that go as bytes."""
    size = draw(st.integers(1, 4))
    arrays = {}
    for name in draw(st.lists(st.text(max_size=9), min_size=1, max_size=3, unique=True)):
        dtype = np.dtype(draw(st.sampled_from(sorted(DATATYPES))))
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        data = draw(st.binary(min_size=64, max_size=64)) * 64
        array = np.frombuffer(data, np.uint8)[: size * math.prod(shape) * dtype.itemsize]
        array = (array % 2).astype(bool) if dtype.kind == "b" else array.view(dtype)
        array = np.nan_to_num(array) if dtype.kind == "f" else array
        arrays[name] = array.reshape(size, *shape)
    return arrays, set(draw(st.lists(st.sampled_from(sorted(arrays)))))


@settings(deadline=None, max_examples=200)
@given(batches())
def test_every_sample_of_every_dtype_arrives_and_returns_by_json_and_by_bytes(drawn):
    arrays, binary = drawn
    bundle = bundle_of(
        *(
            TensorSpec(name=name, shape=array.shape[1:], dtype=array.dtype.name)
            for name, array in arrays.items()
        )
    )
    outputs = [{"name": each, "parameters": {"binary_data": each in binary}} for each in arrays]
    body, head_bytes = ask(arrays, binary=binary, outputs=outputs)
    assert len(body) <= body_limit(bundle.inputs)
    question = read_question(body, head_bytes, bundle)
    samples = list(zip(*arrays.values(), strict=True))
    assert list(question.payloads) == [border.to_bytes(each, bundle.inputs) for each in samples]

    answer, head_bytes = write_answer(question, results(question.payloads), bundle, "main")
    head = json.loads(answer[:head_bytes])
    start = len(answer) if head_bytes is None else head_bytes
    for found in head["outputs"]:
        expected = arrays[found["name"]]
        if "data" in found:
            array = np.array(found["data"], expected.dtype)
        else:
            size = found["parameters"]["binary_data_size"]
            array = np.frombuffer(answer[start : start + size], expected.dtype)
            start += size
        assert np.array_equal(array.reshape(found["shape"]), expected)
    assert start == len(answer)


FLAT = bundle_of(TensorSpec(name="x", shape=(2,), dtype="int8"))
X = {"name": "x", "shape": [1, 2], "datatype": "INT8"}


def test_what_goes_with_a_request_is_read():
    body = json.dumps(
        {
            "id": "seven",
            "inputs": [X | {"data": [[1, 2]]}],
            "parameters": {
                "priority": 3,
                "timeout": 1_500_000,
                "binary_data_output": True,
                "a": 1,
            },
        }
    ).encode()
    question = read_question(body, None, FLAT)
    assert (question.id, question.priority, question.timeout_s) == ("seven", 3, 1.5)
    assert question.outputs == ((0, True),)
    plain = read_question(json.dumps({"inputs": [X | {"data": [1, 2]}]}).encode(), None, FLAT)
    assert (plain.id, plain.priority, plain.timeout_s) == (None, 0, None)
    assert plain.outputs == ((0, False),)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shape": [2]}, r"found shape \[2\], expected \[n, 2\] with n from 1 to"),
        ({"shape": []}, "found shape"),
        ({"shape": [0, 2], "data": []}, "found shape"),
        ({"shape": [MAX_BATCH + 1, 2]}, "found shape"),
        ({"shape": [10**400, 2]}, "found shape .*[.]{3}, expected"),
        ({"shape": [1, -2]}, "found shape"),
        ({"shape": "12"}, "inputs.0.shape"),
        ({"datatype": "FP32"}, "found 'FP32', expected INT8"),
        ({"name": "y"}, r"found inputs \['y'\], expected \['x'\]"),
        ({"data": [1]}, "found 1 numbers, expected 2"),
        ({"data": [1, 1.5]}, "found float in data of INT8"),
        ({"data": [1, True]}, "found bool"),
        ({"data": ["1", None]}, "found NoneType, str"),
        ({"data": [[1], 2]}, "found list"),
        ({"data": [1, 128]}, "a number is too large for int8"),
        ({"data": [1, -(10**400)]}, "too large"),
        ({"data": {"0": 1}}, "neither a list"),
        ({"data": None}, "neither a list"),
        ({"parameters": {"binary_data_size": 2}}, "found 0 bytes and a binary_data_size of 2"),
        ({"parameters": {"binary_data_size": -2}}, "binary_data_size of -2, expected 2"),
        ({"parameters": {"binary_data_size": "2"}}, "size: found '2', expected a valid int"),
    ],
)
def test_an_input_that_is_wrong_is_refused_in_one_line(changed, said):
    body = json.dumps({"inputs": [{**X, "data": [1, 2]} | changed]}).encode()
    with pytest.raises(RequestError, match=said) as error:
        read_question(body, None, FLAT)
    assert error.value.reason == "refused"
    assert "\n" not in str(error.value)


def test_json_has_a_limit_within_which_one_sample_always_fits():
    assert json_limit(FLAT.inputs) < 17 << 20
    large = TensorSpec(name="x", shape=(3, 1024, 1024), dtype="float32")
    assert json_limit([large]) > 3 * 1024 * 1024 * len("-1.2345678901234567e-308, ")
    with pytest.raises(
        RequestError, match=r"of JSON, expected at most \d+; send tensors as bytes"
    ):
        read_question(b" " * (17 << 20), None, FLAT)


@pytest.mark.parametrize(
    ("body", "head_bytes"),
    [
        (b"", None),
        (b"", 0),
        (b"[]", None),
        (b"{}", None),
        (b"{}", 3),
        (b'{"inputs": []}', None),
        (b'{"inputs": ' + b"[" * 100_000, None),
        (b'{"inputs": [' + b"1" * 10_000 + b"]}", None),
        (b"\xff\xfe{}", None),
        (json.dumps({"inputs": [X | {"data": [1, 2]}]}).encode() + b"more", 91),
        (json.dumps({"id": 7, "inputs": [X | {"data": [1, 2]}]}).encode(), None),
        (json.dumps({"inputs": [X | {"data": [1, 2]}] * 2}).encode(), None),
        (
            json.dumps({"inputs": [X | {"data": [1, 2]}], "outputs": [{"name": "z"}]}).encode(),
            None,
        ),
        (
            json.dumps({"inputs": [X | {"data": [1, 2]}], "parameters": {"timeout": -1}}).encode(),
            None,
        ),
    ],
)
def test_a_body_that_is_wrong_is_refused_in_one_line(body, head_bytes):
    with pytest.raises(RequestError) as error:
        read_question(body, head_bytes, FLAT)
    assert error.value.reason == "refused"
    assert "\n" not in str(error.value)


def test_an_answer_says_what_width_each_sample_was_given():
    bundle = bundle_of(TensorSpec(name="x", shape=(1,), dtype="float32"))
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 1],
                                   "data": [1, 2]}]}).encode()  # fmt: skip
    question = read_question(body, None, bundle)
    results = [
        Result(payload=payload, width=width)
        for payload, width in zip(
            question.payloads, ("ratio=1,bits=8", "ratio=2,bits=8"), strict=True
        )
    ]
    answer, _ = write_answer(question, results, bundle, "main")
    assert json.loads(answer)["parameters"] == {"width": "ratio=1,bits=8; ratio=2,bits=8"}
    plain = [Result(payload=payload) for payload in question.payloads]
    answer, _ = write_answer(question, plain, bundle, "main")
    assert "parameters" not in json.loads(answer)


def test_an_output_that_json_cannot_say_is_an_error_and_goes_as_bytes():
    bundle = bundle_of(TensorSpec(name="x", shape=(2,), dtype="float32"))
    values = np.array([[1, np.nan]], np.float32)
    body, _ = ask({"x": np.zeros((1, 2), np.float32)})
    with pytest.raises(RequestError, match="output x: holds NaN or infinity") as error:
        write_answer(
            read_question(body, None, bundle), results([values.tobytes()]), bundle, "main"
        )
    assert error.value.reason == "failed"
    body, _ = ask({"x": np.zeros((1, 2), np.float32)}, parameters={"binary_data_output": True})
    answer, head_bytes = write_answer(
        read_question(body, None, bundle), results([values.tobytes()]), bundle, "main"
    )
    assert answer[head_bytes:] == values.tobytes()
