"""Residual networks: counts, the two placements, and what really passes between blocks."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from isthmus.errors import InputError
from isthmus.graph import capture, cuts, find_cut
from isthmus.models.resnet import BLOCKS, RATIOS, resnet, wires

PLACES: dict[str, dict[str, Any]] = {
    "block": {},
    "cut": {"placement": "cut"},
    "cut after every block": {"placement": "cut", "narrow_after": "block"},
}
DEPTHS = [18, 50, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (34, 101, 152))]


def counts(depth: int, **options) -> tuple[int, int]:
    """Return parameters and MACs at 32 px, without memory for a weight."""
    with torch.device("meta"):
        model, x = resnet(depth, **options), torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model.eval()(x).shape == (1, 100)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def between_blocks_bytes(**options) -> int:
    """Return the bytes of ResNet-18 at 224 px that its blocks take in and give out."""
    graph = capture(resnet(18, stem="imagenet", **options), (torch.zeros(1, 3, 224, 224),))
    places = ["stem", *(wire.after for wire in wires(18, **options)), "layer4"]
    return sum(find_cut(graph, after).num_bytes for after in places)


@pytest.mark.parametrize(
    ("depth", "parameters", "macs"),
    [
        (18, 11_220_132, 555_468_800),
        (34, 21_328_292, 1_159_448_576),
        (50, 23_705_252, 1_298_014_208),
        (101, 42_697_380, 2_510_168_064),
        (152, 58_341_028, 3_722_321_920),
    ],
)
def test_at_ratio_1_every_depth_has_the_published_counts(depth, parameters, macs):
    for placement in ("block", "cut"):
        assert counts(depth, ratio=1, placement=placement) == (parameters, macs)


@pytest.mark.parametrize("depth", [18, 50])
def test_at_ratio_1_it_computes_what_he_et_al_wrote(depth):
    torch.manual_seed(0)
    model = resnet(depth, width=4, num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            for name in ("weight", "bias", "running_mean"):
                nn.init.uniform_(getattr(module, name), 0.5, 1.5)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(model.state_dict(), x, depth=depth))


def plain(weights: dict[str, Tensor], x: Tensor, *, depth: int) -> Tensor:
    """Compute the standard network from its weights alone, one convolution after the other."""

    def norm(name: str, y: Tensor) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(name: str, bn: str, y: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return norm(bn, F.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2))

    x = conv("stem.0", "stem.1", x).relu()
    for stage, num_blocks in enumerate(BLOCKS[depth], 1):
        for block in (f"layer{stage}.{index}" for index in range(num_blocks)):
            stride = 2 if stage > 1 and block.endswith(".0") else 1
            strides = {"1": stride, "2": 1} if depth < 50 else {"1": 1, "2": stride, "3": 1}
            y = x
            for number, step in strides.items():
                y = conv(f"{block}.conv{number}", f"{block}.bn{number}", y, step)
                y = y if number == max(strides) else y.relu()
            if f"{block}.shortcut.0.weight" in weights:
                x = conv(f"{block}.shortcut.0", f"{block}.shortcut.1", x, stride)
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("depth", DEPTHS)
def test_at_placement_block_macs_and_weights_fall_with_the_ratio(depth):
    found = [counts(depth, ratio=ratio) for ratio in RATIOS]
    for (parameters, macs), (fewer_parameters, fewer_macs) in pairwise(found):
        assert fewer_parameters < parameters
        assert fewer_macs < macs


def test_a_narrowed_basic_block_goes_down_and_up_and_strides_first():
    block: Any = resnet(18, width=16, ratio=4).get_submodule("layer2.0")
    assert block.conv1.weight.shape == (8, 16, 3, 3)
    assert block.conv2.weight.shape == (32, 8, 3, 3)
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert block.shortcut[0].weight.shape == (32, 16, 1, 1)


def test_a_narrowed_bottleneck_block_works_on_the_reduced_middle():
    block: Any = resnet(50, width=16, ratio=4).get_submodule("layer2.0")
    assert block.conv1.weight.shape == (8, 64, 1, 1)
    assert block.conv2.weight.shape == (8, 8, 3, 3)
    assert block.conv3.weight.shape == (128, 8, 1, 1)
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]


def test_the_papers_placement_does_not_reduce_what_passes_between_blocks():
    assert between_blocks_bytes(ratio=1) == 3724 * 1024
    assert between_blocks_bytes(ratio=8) == 3724 * 1024


def test_a_narrow_layer_on_the_cut_reduces_what_passes_there_by_the_ratio():
    # By stage 784, 392, 196 and 98 KiB; each has two blocks, and the stem gives out 784 KiB.
    ends, within, between_stages = 784 + 98, 784 + 392 + 196 + 98, 784 + 392 + 196
    after_stages = between_blocks_bytes(ratio=8, placement="cut")
    assert after_stages == (ends + within + between_stages / 8) * 1024
    after_blocks = between_blocks_bytes(ratio=8, placement="cut", narrow_after="block")
    assert after_blocks == (ends + (within + between_stages) / 8) * 1024


@pytest.mark.long
@pytest.mark.parametrize(
    ("depth", "place"), [*((18, place) for place in PLACES), (50, "cut after every block")]
)
def test_the_wires_are_what_the_graph_says_crosses(depth, place):
    options: dict[str, Any] = {"width": 16, "ratio": 8, **PLACES[place]}
    graph = capture(resnet(depth, **options), (torch.zeros(1, 3, 16, 16),))
    found = wires(depth, **options)
    assert len(found) == sum(BLOCKS[depth]) - 1
    for wire in found:
        (tensor,) = find_cut(graph, wire.after).tensors
        assert tensor.shape[0] == wire.wire_channels
        narrow = place != "block" and (wire.between_stages or "every" in place)
        assert wire.wire_channels == (wire.channels // 8 if narrow else wire.channels)
    stages = [wire.after for wire in found if wire.between_stages]
    assert stages == ["layer1", "layer2", "layer3"]
    assert set(stages) <= {cut.after for cut in cuts(graph)}


def test_a_narrow_layer_has_a_name_of_its_own():
    options: dict[str, Any] = {"width": 16, "ratio": 4, "placement": "cut"}
    graph = capture(resnet(18, **options), (torch.zeros(1, 3, 16, 16),))
    assert find_cut(graph, "layer2.narrow") == find_cut(graph, "layer2")
    assert find_cut(graph, "layer2.1").num_bytes == 4 * find_cut(graph, "layer2.narrow").num_bytes
    graph = capture(resnet(18, narrow_after="block", **options), (torch.zeros(1, 3, 16, 16),))
    assert find_cut(graph, "layer2.narrow0").tensors[0].shape == (8, 8, 8)
    assert find_cut(graph, "layer2.widen1").tensors[0].shape == (32, 8, 8)


def test_every_network_shares_the_names_of_the_standard_weights():
    def shapes(**options):
        return {
            key: value.shape for key, value in resnet(18, width=8, **options).state_dict().items()
        }

    standard = shapes()
    assert shapes(ratio=2).keys() == standard.keys()
    for place in ("cut", "cut after every block"):
        narrowed = shapes(ratio=2, **PLACES[place])
        assert {key: narrowed[key] for key in standard} == standard
        assert all("narrow" in key or "widen" in key for key in narrowed.keys() - standard.keys())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("depth", [18, 50])
def test_a_step_moves_every_weight_and_a_few_lower_the_loss(depth, place):
    torch.manual_seed(0)
    model = resnet(depth, width=8, num_classes=4, ratio=4, **PLACES[place]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses: list[float] = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not losses:
            moved = [
                not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
            ]
            assert all(moved)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_ratio_builds_or_names_the_layer_without_a_channel(depth, width, place):
    for ratio in RATIOS:
        options = {"width": width, "ratio": ratio, **PLACES[place]}
        channels = width * (4 if depth >= 50 and place != "block" else 1)
        if ratio <= channels:
            with torch.device("meta"):
                resnet(depth, **options)
            continue
        with pytest.raises(InputError) as caught:
            resnet(depth, **options)
        assert f"none of {channels} channels; expected a ratio of at most" in str(caught.value)
        assert "layer1." in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "middle"}, "no placement 'middle'; there are block, cut"),
        ({"narrow_after": "layer"}, "expected stage or block"),
        ({"ratio": 0}, "ratio 0; expected at least 1"),
        ({"width": 0}, "width 0, ratio 1; expected at least 1"),
        ({"stem": "mnist"}, "there are cifar, imagenet"),
        ({"width": 16, "ratio": 32}, "leaves layer1.0.conv1 none of 16 channels"),
        ({"width": 16, "ratio": 32, "placement": "cut"}, "leaves layer1.narrow none of 16"),
    ],
)
def test_what_cannot_be_made_says_why(options, message):
    with pytest.raises(InputError, match=message):
        resnet(18, **options)
