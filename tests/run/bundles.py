"""Small bundles whose right answers are known in numpy: x (8) -> 4-bit codes (5) -> logits (3)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from isthmus.backends import TensorSpec, program_file
from isthmus.bundle import Bundle, CrossingEntry, DeviceEntry, write_bundle
from isthmus.platform import Device, Link, Platform, dump_platform

FAST = Link(between=("near", "far"), bytes_per_s=1e9)
NARROW = np.arange(40).reshape(8, 5).astype(np.float32) % 7 - 3
HEAD = np.arange(15).reshape(5, 3).astype(np.float32) % 4 - 1
LOW, MIDDLE, HIGH = (np.array(value, np.float32) for value in (0, 8, 15))
PAYLOAD_BYTES = 3  # five codes of four bits


def samples(num_samples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(-3, 4, (num_samples, 8)).astype(np.float32)


def logits(x: np.ndarray) -> np.ndarray:
    codes = np.clip(x @ NARROW + MIDDLE, LOW, HIGH).astype(np.uint8)
    return codes.astype(np.float32) @ HEAD


def early_logits(x: np.ndarray) -> np.ndarray:
    return x @ NARROW[:, :3]


def write_chain(
    folder: Path,
    *links: Link,
    backend: str | tuple[str, ...] = "onnxruntime",
    input_dtype: str = "float32",
    early_exit: bool = False,
    exit_confidence: float | None = None,
    **changed: object,
) -> Bundle:
    """Write a bundle with a relay between any two links; without links, of one device.

    One backend is that of all devices, else there is one for each.
    """
    names = [*(link.between[0] for link in links), links[-1].between[1] if links else "only"]
    backends = (backend,) * len(names) if isinstance(backend, str) else backend
    parts: dict[str, list[str]] = {names[0]: [], names[-1]: []}
    parts[names[0]].append("near")
    parts[names[-1]].append("far")
    programs = {}
    for name, its_backend in zip(names, backends, strict=True):
        if name in parts:
            programs[name] = f"{name}/{program_file(its_backend)}"
            (folder / name).mkdir(parents=True)
            write_program(folder / programs[name], *parts[name])
    if early_exit:
        onnx.save(merge(exit_program()), folder / names[0] / "exit.onnx")
    platform = Platform(
        name="test",
        devices=tuple(Device(name=name, macs_per_s={"fp32": 1e9}) for name in names),
        links=links,
        input=names[0],
        output=names[-1],
    )
    (folder / "platform.yaml").write_text(dump_platform(platform))
    (folder / "plan.json").write_text("{}\n")
    crossing: dict[str, Any] = {
        "after": "narrow", "codec": "uniform:bits=4", "shapes": ((5,),), "dtypes": ("float32",),
        "payload_bytes": PAYLOAD_BYTES, "fixed_rate": True, **changed,
    }  # fmt: skip
    bundle = Bundle(
        version="0.1.0",
        devices=tuple(
            DeviceEntry(name=name, program=programs.get(name), backend=its_backend)
            for name, its_backend in zip(names, backends, strict=True)
        ),
        crossings=tuple(
            CrossingEntry(source=link.between[0], target=link.between[1], **crossing)
            for link in links
        ),
        inputs=(TensorSpec(name="x", shape=(8,), dtype=input_dtype),),
        outputs=(TensorSpec(name="logits", shape=(3,), dtype="float32"),),
        files={},
        early_exit=f"{names[0]}/exit.onnx" if early_exit else None,
        exit_confidence=exit_confidence,
    )
    return write_bundle(folder, bundle)


def write_program(path: Path, *parts: str) -> None:
    """Write "near", "far" or both as one program, of the kind that the file's name says."""
    if path.suffix == ".onnx":
        graphs = {"near": near_program, "far": far_program}
        onnx.save(merge(*(graphs[part]() for part in parts)), path)
        return
    reads, makes = ("x", "codes") if parts[0] == "near" else ("codes", "logits")
    dtype, sizes = ("float32", [1, 8]) if reads == "x" else ("uint8", [1, 5])
    calls = {
        "schema": "isthmus.calls/1",
        "inputs": [{"name": reads, "dtype": dtype, "shape": sizes}],
        "calls": [call for part in parts for call in CALLS[part]],
        "outputs": [makes if len(parts) == 1 else "logits"],
    }
    weights = {"near": {"narrow": NARROW, "middle": MIDDLE}, "far": {"head": HEAD}}
    held = {name: value for part in parts for name, value in weights[part].items()}
    save_file(held, path, {"isthmus": json.dumps(calls)})


def call(operator: str, result: str, *arguments: object, **named: object) -> dict[str, Any]:
    """Return a call of the backend torch; a text stands for a value."""
    found = [{"value": each} if isinstance(each, str) else each for each in arguments]
    return {"operator": operator, "arguments": found, "named": named, "result": result}


CALLS = {
    "near": [
        call("aten.mm.default", "wide", "x", "narrow"),
        call("aten.add.Tensor", "shifted", "wide", "middle"),
        call("aten.clamp.default", "clipped", "shifted", 0.0, 15.0),
        call("aten._to_copy.default", "codes", "clipped", dtype={"constant": "uint8"}),
    ],
    "far": [
        call("aten._to_copy.default", "levels", "codes", dtype={"constant": "float32"}),
        call("aten.mm.default", "logits", "levels", "head"),
    ],
}


def near_program() -> onnx.GraphProto:
    nodes = [
        helper.make_node("MatMul", ["x", "narrow"], ["wide"]),
        helper.make_node("Add", ["wide", "middle"], ["shifted"]),
        helper.make_node("Clip", ["shifted", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["codes"], to=TensorProto.UINT8),
    ]
    constants = {"narrow": NARROW, "middle": MIDDLE, "low": LOW, "high": HIGH}
    return helper.make_graph(
        nodes,
        "near",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def far_program() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Cast", ["codes"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["levels", "head"], ["logits"]),
    ]
    return helper.make_graph(
        nodes,
        "far",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, ["batch", 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(HEAD, "head")],
    )


def exit_program() -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", "few"], ["logits"])],
        "exit",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(NARROW[:, :3], "few")],
    )


def busy_program(program: onnx.GraphProto) -> onnx.GraphProto:
    """Return the program with about 2 s of work before it, which changes nothing."""
    square = numpy_helper.from_array(np.full((1024, 1024), 2**-10, np.float32), "square")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "square"], ["after"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1024, 1024]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1024, 1024]),
        ],
    )
    constants = {"turns": np.array(60), "start": np.array(True), "zero": np.array(0, np.uint8)}
    nodes = [
        helper.make_node("Loop", ["turns", "start", "square"], ["work"], body=body),
        helper.make_node("ReduceMax", ["work"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["one"], to=TensorProto.UINT8),
        helper.make_node("Mul", ["one", "zero"], ["nothing"]),
        helper.make_node("Add", ["codes", "nothing"], ["worked"]),
    ]
    first, *rest = program.node
    first.input[0] = "worked"
    return helper.make_graph(
        [*nodes, first, *rest],
        "busy",
        program.input,
        program.output,
        [
            *program.initializer,
            square,
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
        ],
    )


def merge(*graphs: onnx.GraphProto) -> onnx.ModelProto:
    """Join graphs of which each takes what the one before makes."""
    whole = helper.make_graph(
        [node for graph in graphs for node in graph.node],
        "program",
        graphs[0].input,
        graphs[-1].output,
        [tensor for graph in graphs for tensor in graph.initializer],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(whole, opset_imports=[opset], ir_version=9)
