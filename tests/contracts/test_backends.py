"""Every backend runs an ONNX stage program as the `Backend` protocol says."""

import numpy as np
import onnx
import pytest

from isthmus.errors import RunError
from isthmus.run.backends import BACKENDS, load_program
from tests.run.bundles import far_program, logits, merge, near_program, samples


@pytest.fixture
def path(tmp_path):
    onnx.save(merge(near_program(), far_program()), tmp_path / "program.onnx")
    return tmp_path / "program.onnx"


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
        assert program([x])[0].tobytes() == program([x])[0].tobytes()
        np.testing.assert_array_equal(x, before)

    def test_a_file_that_is_no_program_is_one_line(self, name, tmp_path):
        (tmp_path / "program.onnx").write_bytes(b"not a program")
        with pytest.raises(RunError, match=r"program\.onnx") as error:
            load_program(tmp_path / "program.onnx", backend=name)
        assert "\n" not in str(error.value)

    def test_inputs_of_another_number_or_kind_are_one_line(self, name, path):
        program = load_program(path, backend=name)
        for inputs in ([], [samples(1)] * 2, [samples(1).astype(np.int64)], [samples(1)[:, :3]]):
            with pytest.raises(RunError, match=r"program\.onnx") as error:
                program(inputs)
            assert "\n" not in str(error.value)


def test_an_unknown_backend_names_those_there_are(path):
    with pytest.raises(RunError, match="no backend 'abacus'; there are onnxruntime"):
        load_program(path, backend="abacus")


def test_a_backend_of_ones_own_is_any_callable(path):
    program = load_program(path, backend=lambda path, *, threads: lambda arrays: tuple(arrays))
    assert program([samples(1)])[0].shape == (1, 8)
