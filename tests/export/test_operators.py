import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from isthmus.export.operators import read_once
from isthmus.progress import quiet


def written():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.LayerNorm(3)).eval()
    with quiet("torch.onnx"):
        program = torch.onnx.export(model, (torch.zeros(2, 4),), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def test_a_program_is_the_same_and_torch_is_left_as_it_was():
    plain = written()
    before = ONNXRegistry.from_torchlib
    for _ in range(2):
        with read_once():
            assert written() == plain
    assert ONNXRegistry.from_torchlib == before


def test_the_operators_are_read_once_and_what_is_added_to_them_is_forgotten(monkeypatch):
    reads = []
    read = ONNXRegistry.from_torchlib

    def counted(**options):
        reads.append(options)
        return read(**options)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counted)
    with read_once():
        first = ONNXRegistry.from_torchlib(opset_version=18)
        name = next(iter(first.functions))
        first.functions[name].clear()
        first.functions["isthmus::more"] = []
    with read_once():
        second = ONNXRegistry.from_torchlib(opset_version=18)
    assert second.functions[name]
    assert "isthmus::more" not in second.functions
    assert reads == [{"opset_version": 18}]


def test_where_torch_keeps_them_elsewhere_they_are_read_as_ever(monkeypatch):
    monkeypatch.delattr(ONNXRegistry, "from_torchlib")
    with read_once():
        assert not hasattr(ONNXRegistry, "from_torchlib")
