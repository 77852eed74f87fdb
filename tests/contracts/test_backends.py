"""Every backend runs a stage program as the `Backend` protocol says."""

import json
import subprocess
import sys

import numpy as np
import pytest

from isthmus.backends import BACKENDS, load_program, program_file
from isthmus.errors import RunError
from tests.run.bundles import logits, samples, write_program


@pytest.fixture
def path(name, tmp_path):
    pytest.importorskip(name, exc_type=ImportError)
    write_program(tmp_path / program_file(name), "near", "far")
    return tmp_path / program_file(name)


@pytest.mark.parametrize("name", sorted(BACKENDS))
class TestEveryBackend:
    def test_outputs_are_those_of_the_program(self, name, path):
        program = load_program(path, backend=name)
        for x in samples(5):
            (found,) = program([x[np.newaxis]])
            np.testing.assert_array_equal(found, logits(x[np.newaxis]))

    def test_same_input_gives_same_bits_and_is_left_alone(self, name, path):
        program = load_program(path, backend=name, threads=2)
        x = samples(1)
        x.setflags(write=False)
        before = x.copy()
        first = program([x])[0]
        assert first.tobytes() == program([x])[0].tobytes()
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(first, logits(before))  # not written over by the second

    def test_a_file_that_is_no_program_is_one_line(self, name, path):
        for data in (b"not a program", b"", path.read_bytes()[:-40]):
            path.write_bytes(data)
            with pytest.raises(RunError, match=rf"{path.name}: {name} cannot load it") as error:
                load_program(path, backend=name)
            assert "\n" not in str(error.value)

    def test_inputs_of_another_number_or_kind_are_one_line(self, name, path):
        program = load_program(path, backend=name)
        for inputs in ([], [samples(1)] * 2, [samples(1).astype(np.int64)], [samples(1)[:, :3]]):
            with pytest.raises(RunError, match=path.name) as error:
                program(inputs)
            assert "\n" not in str(error.value)
        np.testing.assert_array_equal(program([samples(1)])[0], logits(samples(1)))

    def test_no_other_library_is_loaded_for_it(self, name, path):
        code = (
            "import json, sys; from pathlib import Path; from isthmus.backends import *; "
            "load_program(Path(sys.argv[1]), backend=sys.argv[2]); "
            "print(json.dumps([*sys.modules]))"
        )
        done = subprocess.run([sys.executable, "-c", code, path, name], capture_output=True)
        loaded = set(json.loads(done.stdout)) & {"onnxruntime", "openvino", "torch", "onnx"}
        assert loaded == {name}

    def test_without_its_library_it_says_what_to_install(self, name, tmp_path):
        code = (
            "import sys; from pathlib import Path; from isthmus.backends import *; "
            "sys.modules[sys.argv[1]] = None; load_program(Path(), backend=sys.argv[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, cwd=tmp_path
        )
        said = f'RunError: backend {name}: needs {name}, which is not here; pip install "isthmus'
        assert said in done.stderr.splitlines()[-1]


def test_an_unknown_backend_names_those_there_are(tmp_path):
    with pytest.raises(RunError, match="no backend 'abacus'; there are onnxruntime, openvino"):
        load_program(tmp_path, backend="abacus")


def test_a_backend_of_ones_own_is_any_callable(tmp_path):
    program = load_program(tmp_path, backend=lambda path, *, threads: lambda arrays: tuple(arrays))
    assert program([samples(1)])[0].shape == (1, 8)
