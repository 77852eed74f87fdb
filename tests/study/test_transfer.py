import pytest
import torch

from isthmus.errors import InputError
from isthmus.models import resnet
from isthmus.study.transfer import METERS, claims, layers_of, measure_transfer


@pytest.fixture(scope="module")
def readings():
    return measure_transfer(("memory", "shape"), ratios=(1, 8), repeats=3, pixels=32, width=16)


def find(readings, **wanted):
    return [
        reading
        for reading in readings
        if all(getattr(reading, name) == value for name, value in wanted.items())
    ]


def test_the_layers_together_are_the_network():
    network = resnet(18, width=16, stem="imagenet", ratio=4, placement="cut", narrow_after="block")
    network.eval()
    layers = layers_of(network)
    assert list(layers)[:3] == ["stem", "layer1.0", "layer1.1"]
    assert len(layers) == 10
    x = torch.rand(2, 3, 32, 32)
    y = x
    for layer in layers.values():
        y = layer(y)
    assert torch.equal(y, network(x))


@pytest.mark.long
@pytest.mark.parametrize("placement", [pytest.param("block", marks=pytest.mark.slow), "cut"])
def test_bytes_on_the_wire_are_the_tensors_and_a_header(readings, placement):
    wire = measure_transfer(
        ("wire",), placements=(placement,), ratios=(8,), repeats=2, pixels=32, width=16
    )
    shape = find(readings, placement=placement, ratio=8, meter="shape")
    assert len(wire) == 9
    for counted, sent in zip(shape, wire, strict=False):
        assert counted.layer == sent.layer
        assert sent.median_bytes == counted.median_bytes + 14


def test_only_the_cut_placement_narrows_what_passes_between_layers(readings):
    found = {(claim.placement, claim.meter): claim.saved for claim in claims(readings)}
    assert found["block", "shape"] == 0
    assert found["block", "shape inside"] == pytest.approx(7 / 8)
    assert found["cut", "shape"] == pytest.approx(7 / 8)


def test_every_meter_reads_every_layer_and_the_papers_is_there(readings):
    memory = find(readings, placement="block", ratio=1, meter="memory")
    assert len(memory) == 10
    assert all(reading.repeats == 3 for reading in memory)
    assert all(0 <= reading.not_positive <= 1 for reading in memory)
    assert set(METERS) == {"memory", "shape", "wire"}


def test_an_unknown_meter_lists_what_there_is():
    with pytest.raises(InputError, match="there are memory, shape, wire"):
        measure_transfer(("volts",))
