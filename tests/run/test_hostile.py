"""Bundles that somebody made to do harm: nothing in them runs, and each is refused in one line."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from isthmus.backends import BACKENDS, load_program, program_file
from isthmus.bundle import read_bundle
from isthmus.errors import BundleError, IsthmusError, RunError
from isthmus.run import start_workers
from isthmus.run.stage import load_stage
from tests.run.bundles import FAST, call, merge, near_program, samples, write_chain


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def harmful(kind: str, mark: Path) -> bytes:
    """Return a pickle, or a .pt2 or a .pt whose pickles are replaced by it."""
    plain = pickle.dumps(Harm(mark))
    if kind == "pickle":
        return plain
    data = io.BytesIO()
    if kind == "pt":
        torch.save({"weight": torch.zeros(2)}, data)
    else:
        torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), data)
    changed = io.BytesIO()
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            is_pickle = content[:1] == b"\x80" or content[:2] == b"PK"
            new.writestr(entry, plain if is_pickle else content)
    return changed.getvalue()


LOADERS: dict[str, Callable[[io.BytesIO], object]] = {
    "pickle": pickle.load,
    "pt": lambda file: torch.load(file, weights_only=False),
    "pt2": torch.export.load,
}


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def put_into(folder, name, data, *, listed=True):
    """Put a file into a bundle, with its right checksum if it is to be listed."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    if listed:
        index = json.loads((folder / "bundle.json").read_text())
        index["files"][name] = hashlib.sha256(data).hexdigest()
        (folder / "bundle.json").write_text(json.dumps(index))


def load_all(folder):
    bundle = read_bundle(folder)
    return [load_stage(folder, bundle, index) for index in range(len(bundle.devices))]


@pytest.mark.parametrize("kind", sorted(LOADERS))
def test_what_does_harm_here_does_harm_where_it_is_unpickled(mark, kind):
    with suppress(Exception):
        LOADERS[kind](io.BytesIO(harmful(kind, mark)))
    assert mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "pt", "pt2"])
@pytest.mark.parametrize(
    "name",
    [
        "near/program.pt2", "near/weights.pt", "near/weights.pkl", "near/__init__.py", "model.pt2",
        "sitecustomize.py", "near/program.onnx.data", "conftest.py",
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [True, False])
def test_a_file_that_is_none_of_a_bundle_is_refused_listed_or_not(
    tmp_path, mark, kind, name, listed
):
    write_chain(tmp_path / "bundle", FAST)
    put_into(tmp_path / "bundle", name, harmful(kind, mark), listed=listed)
    with pytest.raises(BundleError, match=r"is no file of a bundle|does not belong") as error:
        load_all(tmp_path / "bundle")
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["pickle", "pt", "pt2"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_in_the_place_of_a_program_it_is_not_run(tmp_path, mark, kind, backend):
    pytest.importorskip(backend)
    write_chain(tmp_path / "bundle", FAST, backend=backend)
    put_into(tmp_path / "bundle", f"near/{program_file(backend)}", harmful(kind, mark))
    with pytest.raises(RunError, match=f"{backend} cannot load it") as error:
        load_all(tmp_path / "bundle")
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["platform.yaml", "plan.json", "crossing0.tables"])
def test_in_the_place_of_another_file_it_is_not_run(tmp_path, mark, name):
    tables = {"tables": name} if name.endswith("tables") else {}
    write_chain(tmp_path / "plain", FAST)
    harm = harmful("pickle", mark)
    if name == "platform.yaml":
        harm = f"!!python/object/apply:os.system ['touch {mark}']".encode()
    put_into(tmp_path / "plain", name, harm)
    index = json.loads((tmp_path / "plain" / "bundle.json").read_text())
    index["crossings"][0] |= tables | ({"codec": "uniform:bits=4+entropy"} if tables else {})
    (tmp_path / "plain" / "bundle.json").write_text(json.dumps(index))
    if name == "plan.json":  # which nobody reads who runs a bundle
        assert load_all(tmp_path / "plain")
    else:
        with pytest.raises(IsthmusError) as error, start_workers(tmp_path / "plain"):
            pass
        assert "\n" not in str(error.value)
    assert not mark.exists()


def test_the_command_refuses_it_in_one_line(tmp_path, mark):
    write_chain(tmp_path / "bundle", FAST)
    put_into(tmp_path / "bundle", "near/program.onnx", harmful("pt2", mark))
    np.savez(tmp_path / "data.npz", x_train=samples(4), y_train=np.zeros(4, np.int64),
             x_test=samples(4), y_test=np.zeros(4, np.int64))  # fmt: skip
    command = [sys.executable, "-m", "isthmus"]
    for more in (
        ["run", "bundle", "--data", "npz:data.npz"],
        ["serve", "bundle", "--device", "near"],
    ):
        done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1
        assert "program.onnx: onnxruntime cannot load it" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not mark.exists()


ONNX_BACKENDS = [name for name in sorted(BACKENDS) if program_file(name).endswith(".onnx")]
PLACES = (
    "../../etc/passwd",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "../secret",
    "/dev/zero",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_a_program_reads_no_file_outside_its_folder(tmp_path, backend, place):
    pytest.importorskip(backend)
    (tmp_path / "secret").write_bytes(np.ones((8, 5), np.float32).tobytes())
    graph = near_program()
    tensor = graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    tensor.external_data.add(key="length", value="160")
    (tmp_path / "near").mkdir()
    path = tmp_path / "near" / "program.onnx"
    path.write_bytes(merge(graph).SerializeToString())
    with pytest.raises(RunError, match=f"{backend} cannot load it") as error:
        load_program(path, backend=backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", ONNX_BACKENDS)
def test_a_tensor_that_is_said_to_be_huge_is_one_line(tmp_path, backend):
    pytest.importorskip(backend)
    declared = near_program()
    declared.initializer[0].dims[:] = [1 << 20, 1 << 20]
    made = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["sizes"], ["huge"]),
            helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=0),
            helper.make_node("Add", ["x", "most"], ["y"]),
        ],
        "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(np.array([1 << 21, 1 << 21]), "sizes")],
    )
    for graph in (declared, made):
        onnx.save(merge(graph), tmp_path / "program.onnx")
        with pytest.raises(RunError, match=backend) as error:
            load_program(tmp_path / "program.onnx", backend=backend)([samples(1)])
        assert "\n" not in str(error.value)


GOOD = call("aten.relu.default", "y", "x")
DEEP = [[[[[[1]]]]]]


@pytest.mark.parametrize(
    "bad",
    [
        call("aten.from_file.default", "y", {"constant": "cpu"}),
        call("aten.relu_.default", "y", "x"),
        call("aten.rand.default", "y", [2]),
        call("aten.__class__.mro", "y"),
        call("os.system", "y"),
        call("eval", "y"),
        call("prims.add.default", "y", "x", "x"),
        {"operator": "aten.relu.default", "arguments": [{"value": "later"}], "result": "y"},
        {"operator": "aten.relu.default", "arguments": [{"constant": "os"}], "result": "y"},
        {"operator": "aten.relu.default", "arguments": [{"value": ["x"]}], "result": "y"},
        {"operator": "aten.relu.default", "arguments": [{}], "result": "y"},
        {"operator": "aten.view.default", "arguments": [DEEP], "result": "y"},
        {"operator": "aten.relu.default", "arguments": [{"value": "x"}], "result": "x"},
        {"operator": "aten.relu.default", "arguments": 3, "result": "y"},
        {"operator": "aten.relu.default", "arguments": [{"value": "x"}], "result": "z"},
    ],
    ids=lambda bad: str(bad)[:60],
)
def test_a_call_that_is_not_allowed_is_refused_before_any_is_made(tmp_path, bad):
    path = write_calls(tmp_path, [bad])
    with pytest.raises(RunError, match="torch cannot load it") as error:
        load_program(path, backend="torch")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        call("aten.full.default", "y", [1 << 40], 1.0),
        call("aten.full.default", "y", [10**30], 1.0),
        call("aten.repeat.default", "y", "x", [1 << 20, 1 << 20]),
        call("mul", "y", 1 << 62, 4),
        call("mul", "y", [0], 1 << 62),
        call("floordiv", "y", 1, 0),
        call("getitem", "y", "x", 3),
        call("aten.mm.default", "y", "x", "x"),
        call("aten.relu.default", "y", "x", "x", "x"),
        call("aten.relu.default", "y", "x", inplace=True),
        call("aten.view.default", "y", "x", [-7]),
    ],
    ids=lambda bad: str(bad)[:60],
)
def test_a_call_that_fails_is_one_line(tmp_path, bad):
    program = load_program(write_calls(tmp_path, [bad]), backend="torch")
    with pytest.raises(RunError, match="torch failed") as error:
        program([samples(1)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", '{"schema": "isthmus.calls/1"}'])
def test_a_list_of_calls_that_is_none_is_refused(tmp_path, text):
    save_file({}, tmp_path / "program.safetensors", {"isthmus": text})
    with pytest.raises(RunError, match="torch cannot load it") as error:
        load_program(tmp_path / "program.safetensors", backend="torch")
    assert "\n" not in str(error.value)


def test_the_calls_of_these_tests_are_good_but_for_what_is_wrong(tmp_path):
    program = load_program(write_calls(tmp_path, [GOOD]), backend="torch")
    np.testing.assert_array_equal(program([samples(1)])[0], np.maximum(samples(1), 0))


def write_calls(folder, calls):
    found = {
        "schema": "isthmus.calls/1",
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 8]}],
        "calls": calls,
        "outputs": ["y"],
    }
    path = folder / "program.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path, {"isthmus": json.dumps(found)})
    return path
