"""Sparsity, shared values, integers and number formats on cases worked out by hand."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from isthmus.compress import Samples, Training, apply, check_chain, figures, parse_chain, settle
from isthmus.compress.factor import affordable, svd_linear, tucker_conv
from isthmus.compress.integer import Signs, Steps, value_steps, weight_steps
from isthmus.compress.scores import SCORES
from isthmus.compress.share import cluster
from isthmus.compress.sparse import largest, mask
from isthmus.errors import InputError
from isthmus.files import sha256
from isthmus.graph import capture
from isthmus.models.compressed import changes, load_changes, pack_weights, unpack_weights
from isthmus.models.layers import Integer
from isthmus.models.load import check_weights, load_weights


def linear(rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return nn.Sequential(layer).eval()


def made(model, *texts, inputs=()) -> Any:
    example = (torch.ones(2, model[0].in_features),)
    model = copy.deepcopy(model)
    for step in parse_chain(texts):
        model = settle(apply(model, step, Samples(example=example, inputs=inputs)))
    return model


def begun(model, text, example=()) -> Any:
    """Return a model that can still be trained."""
    (step,) = parse_chain([text])
    return apply(copy.deepcopy(model), step, Samples(example=example))


def test_magnitude_keeps_the_largest_of_the_layer():
    model = made(linear([[1.0, -4.0], [3.0, -2.0]]), "sparse:magnitude,keep=0.5,scope=layer")
    assert model[0].weight.tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert largest(torch.tensor([0.1, 0.2]), 0.001).tolist() == [False, True]


def test_magnitude_over_the_model_may_not_remove_a_layer():
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(0.1)
    with pytest.raises(InputError, match="would remove 1 whole; keep more, or use scope"):
        made(model, "sparse:magnitude,keep=0.5")


def test_two_of_four_are_kept_in_every_group():
    model = made(linear([[1.0, 2.0, 3.0, 4.0, -8.0, 7.0, 6.0, 5.0]]), "sparse:nm,n=2,m=4")
    assert model[0].weight.tolist() == [[0.0, 0.0, 3.0, 4.0, -8.0, 7.0, 0.0, 0.0]]
    with pytest.raises(InputError, match="found n=4, expected at most m=2"):
        parse_chain(["sparse:nm,n=4,m=2"])


def test_convolutions_of_groups_alone_are_refused_by_tucker():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    (step,) = parse_chain(["lowrank:tucker"])
    with pytest.raises(InputError, match="found only convolutions of groups"):
        apply(model, step, Samples(example=(torch.ones(2, 4, 5, 5),)))


def test_the_groups_of_a_convolution_lie_along_its_input_channels():
    model: Any = nn.Sequential(nn.Conv2d(2, 1, (1, 2), bias=False))
    with torch.no_grad():  # (channel, place): at place 0 stand 1 and 2, at place 1 stand 4 and 3
        model[0].weight.copy_(torch.tensor([[1.0, 4.0], [2.0, 3.0]]).reshape(1, 2, 1, 2))
    kept: Any = settle(begun(model, "sparse:nm,n=1,m=2"))
    assert kept[0].weight.flatten().tolist() == [0.0, 4.0, 2.0, 0.0]
    inputs = torch.tensor([9.0, 1.0]).reshape(1, 2, 1, 1).expand(4, 2, 1, 2)  # by channel
    (step,) = parse_chain(["sparse:nm,n=1,m=2,score=wanda"])
    samples = Samples(example=(inputs[:2],), inputs=(inputs,))
    kept = settle(apply(copy.deepcopy(model), step, samples))
    assert kept[0].weight.flatten().tolist() == [1.0, 4.0, 0.0, 0.0]


def test_blocks_of_a_number_format_end_with_the_weights_of_a_channel():
    rows = [[0.5] * 40, [1e4] * 40]  # of blocks of 32 over both, one would hold 0.5 beside 1e4
    model = made(linear(rows), "format,name=mxfp4-e2m1")
    assert model[0].weight[0].tolist() == rows[0]


def test_wanda_weighs_by_the_norm_of_the_input():
    inputs = (torch.tensor([[10.0, 1.0]] * 4),)
    model = made(linear([[1.0, 5.0]]), "sparse:wanda,keep=0.5", inputs=inputs)
    assert model[0].weight.tolist() == [[1.0, 0.0]]  # 1 * 20 against 5 * 2


def two_classes(rows, inputs):
    """Return a linear layer, and samples that are all of class 0."""
    x = torch.tensor(inputs)
    labels = torch.zeros(len(x), dtype=torch.int64)
    return linear(rows), Samples(example=(x[:1].expand(2, -1),), inputs=(x,), labels=labels)


def test_snip_and_optimal_brain_damage_weigh_by_the_gradients_of_the_samples():
    # z = W x = (5, 1) for (1, 2) and (1, 3) for (1, 0); with p of class 1 the gradient of row 0
    # is -p x, that of row 1 is p x
    model, samples = two_classes([[1.0, 2.0], [3.0, -1.0]], [[1.0, 2.0], [1.0, 0.0]])
    p, q = (torch.tensor(-d).sigmoid().item() for d in (4.0, -2.0))
    first = [[p + q, 2 * p], [p + q, 2 * p]]
    second = [[p * p + q * q, 4 * p * p], [p * p + q * q, 4 * p * p]]
    weight = model[0].weight.detach()
    for name, expected in (
        ("snip", (weight * torch.tensor(first)).abs()),
        ("obd", weight**2 * torch.tensor(second) / 2),
    ):
        found = SCORES[name](model, {"0": model[0]}, {"0": weight}, samples)["0"]
        assert torch.allclose(found, expected, rtol=1e-4), name


def test_the_gradient_of_a_weight_that_is_zero_counts_too():
    model, samples = two_classes([[1.0, 2.0], [3.0, -1.0]], [[1.0, 2.0]])
    mask(model[0], torch.tensor([[True, False], [True, True]]))
    values = {"0": torch.tensor([[1.0, 2.0], [3.0, -1.0]])}
    score = SCORES["snip"](model, {"0": model[0]}, values, samples)["0"]
    p = torch.tensor(1.0 - 1.0).sigmoid().item()  # z = (1, 1)
    assert torch.allclose(score, p * torch.tensor([[1.0, 4.0], [3.0, 2.0]]))


class Scripted:
    """Trains by setting the weights of a layer, held ones too, to what a script says."""

    def __init__(self, *rows):
        self.rows, self.rounds = list(rows), []

    def whole(self, model, name):
        self.rounds.append((name, model[0].weight.detach().flatten().tolist()))
        with torch.no_grad():
            original = model[0].parametrizations.weight.original
            original.copy_(torch.tensor([self.rows.pop(0)]))

    def run(self, text, row):
        (step,) = parse_chain([text])
        training = Training(whole=self.whole, short=lambda *_: None, kept=lambda _, find: find())
        samples = Samples(example=(torch.ones(2, len(row)),), training=training)
        settled: Any = settle(apply(linear([row]), step, samples))
        return settled[0].weight.flatten().tolist()


@pytest.mark.parametrize(
    ("schedule", "trained", "between", "after"),
    [
        # a weight that is 0 grows to 9 meanwhile: it comes back only where it may
        ("iterative", [[9.0, 5.0, 2.0, 3.0]], [[0.0, 2.0, 3.0, 4.0]], [0.0, 5.0, 0.0, 3.0]),
        ("gradual", [[9.0, 5.0, 2.0, 3.0]], [[0.0, 0.0, 3.0, 4.0]], [0.0, 0.0, 2.0, 3.0]),
        ("splicing", [[9.0, 5.0, 2.0, 3.0]], [[0.0, 0.0, 3.0, 4.0]], [9.0, 5.0, 0.0, 0.0]),
        ("splicing", [[3.5, 0.0, 3.0, 4.0]], [[0.0, 0.0, 3.0, 4.0]], [0.0, 0.0, 3.0, 4.0]),
        ("cyclical", [[9.0, 5.0, 2.0, 3.0]], [[0.0, 0.0, 3.0, 4.0]], [9.0, 5.0, 0.0, 0.0]),
        (
            "lottery",
            [[9.0, 5.0, 2.0, 1.0], [7.0, 6.0, 8.0, 9.0]],
            [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 0.0]],
            [1.0, 0.0, 3.0, 0.0],
        ),
    ],
)
def test_a_schedule_prunes_in_rounds(schedule, trained, between, after):
    # of 4 weights 0.5 are kept; after the first of two rounds 4 * 0.5 ** 0.5 = 3, or
    # 4 * (0.5 + 0.5 / 8) = 2, or in a cycle of its own 2
    script = Scripted(*trained)
    text = f"sparse:magnitude,keep=0.5,schedule={schedule},rounds=2"
    assert script.run(text, [1.0, 2.0, 3.0, 4.0]) == after
    assert script.rounds == [(f"round {k}", row) for k, row in enumerate(between, start=1)]


def test_in_splicing_what_is_zero_learns_as_if_it_were_there():
    held = mask(linear([[1.0, 2.0]])[0], torch.tensor([[True, False]]))
    for splicing, expected in ((False, [[1.0, 0.0]]), (True, [[1.0, 1.0]])):
        held.splicing = splicing
        weight = torch.tensor([[1.0, 2.0]], requires_grad=True)
        held(weight).sum().backward()
        assert held(weight).tolist() == [[1.0, 0.0]]
        assert weight.grad is not None
        assert weight.grad.tolist() == expected


def test_a_schedule_without_training_is_refused():
    with pytest.raises(InputError, match="schedule=gradual trains between its rounds; add --data"):
        made(linear([[1.0, 2.0]]), "sparse:magnitude,schedule=gradual")


def test_k_means_finds_the_two_values_and_leaves_zeros():
    centroids, found = cluster(torch.tensor([1.0, 1.2, 5.0, 5.2, 0.0]), 2)
    assert centroids.tolist() == pytest.approx([1.1, 5.1])
    assert found.tolist() == [0, 0, 1, 1, 2]


def test_shared_values_move_by_the_sum_of_their_gradients():
    model = begun(linear([[1.0, 1.0, 3.0]]), "share:kmeans,bits=1")
    model(torch.tensor([[1.0, 2.0, 4.0]])).sum().backward()
    assert model[0].parametrizations.weight[0].centroids.grad.tolist() == [3.0, 4.0]


def test_trained_ternary_learns_its_two_values_by_the_sums_of_gradients():
    # the largest is 4, so what is beyond 0.25 * 4: 2 and 4 become 3, -1.5 and -2.5 become -2
    row = [2.0, 4.0, -1.5, -2.5, 0.5, 0.0]
    model = begun(linear([row]), "share:ternary,threshold=0.25")
    model(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])).sum().backward()
    values = model[0].parametrizations.weight[0]
    assert model[0].weight.tolist() == [[3.0, 3.0, -2.0, -2.0, 0.0, 0.0]]
    assert (values.positive.grad.item(), values.negative.grad.item()) == (1 + 2, -(3 + 4))
    gradient = model[0].parametrizations.weight.original.grad
    assert gradient.tolist() == [[3.0, 6.0, 6.0, 8.0, 5.0, 0.0]]


def test_integers_of_a_weight_have_a_step_for_each_channel():
    weight = torch.tensor([[0.5, -1.27], [0.02, 0.0]])
    integers, scale_C = weight_steps(weight, bits=8, choice="minmax", per="channel").integers(
        weight
    )
    assert integers.tolist() == [[50, -127], [127, 0]]
    assert scale_C.tolist() == pytest.approx([0.01, 0.02 / 127])
    four, _ = weight_steps(weight, bits=4, choice="minmax", per="tensor").integers(weight)
    assert four.tolist() == [[3, -7], [0, 0]]


def test_zero_is_an_integer_of_every_input_range():
    steps = value_steps(torch.tensor([0.0, 2.55]), choice="minmax")
    assert (steps.low, steps.high, round(steps.size().item(), 6)) == (0, 255, 0.01)
    steps = value_steps(torch.tensor([3.0, 5.0]), choice="minmax")  # widened down to 0
    assert (steps.low, steps.high) == (0, 255)
    steps = value_steps(torch.tensor([-1.0, 1.0]), choice="minmax")
    assert steps(torch.zeros(3)).tolist() == [0.0] * 3
    assert (steps.low, steps.high) == (-128, 127)


def test_step_sizes_learn_what_the_paper_says():
    # equation 3 of Esser et al.: the gradient of s is -x/s + round(x/s) inside, -n or p outside
    steps: Any = Steps(torch.tensor(0.5), low=-2, high=1)
    x = torch.tensor([0.3, 9.0, -9.0], requires_grad=True)
    steps(x).sum().backward()
    assert x.grad is not None
    assert steps.log_scale.grad.item() == pytest.approx(0.5 * ((-0.6 + 1) + 1 - 2))
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


def test_three_values_and_two():
    weight = torch.tensor([[1.0, -2.0, 0.1, 0.9]])
    # mean 1.0, threshold 0.7: 0.1 falls; alpha is the mean of 1, 2 and 0.9
    signs, scale_C = Signs(0.7).integers(weight)
    assert (signs.tolist(), scale_C.tolist()) == ([[1, -1, 0, 1]], [pytest.approx(1.3)])
    signs, scale_C = Signs(-1.0).integers(weight)
    assert (signs.tolist(), scale_C.tolist()) == ([[1, -1, 1, 1]], [1.0])


def test_integer_layers_compute_what_their_integers_say():
    inputs = (torch.linspace(-1, 1, 32).reshape(16, 2),)
    model = made(
        linear([[0.5, -1.27]]), "quantize:int8,range=minmax,weights=minmax", inputs=inputs
    )
    layer = model[0]
    assert isinstance(layer, Integer)
    assert layer.weight.tolist() == [[50, -127]]
    scale, zero = layer.input_scale.item(), layer.input_zero.item()
    x = torch.tensor([[0.25, 5.0]])
    levels = [max(-128, min(127, round(v / scale) + zero)) - zero for v in x[0].tolist()]
    expected = scale * layer.scale.item() * (50 * levels[0] - 127 * levels[1])
    assert model(x).item() == pytest.approx(expected, rel=1e-5)


def test_a_weight_of_zero_stays_zero_while_integers_are_trained():
    model = made(linear([[1.0, -4.0, 0.5, 2.0]]), "sparse:magnitude,keep=0.5,scope=layer")
    model = begun(model, "quantize:weights,bits=4", (torch.ones(2, 4),)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    settled: Any = settle(model.eval())
    assert (settled[0].weight != 0).tolist() == [[False, True, False, True]]


def test_low_rank_is_exact_where_the_rank_is_low():
    torch.manual_seed(0)
    layer = nn.Linear(8, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 2) @ torch.randn(2, 8))
    pair = svd_linear(layer, 1.0)
    assert pair[0].out_features == 2
    x = torch.randn(3, 8)
    assert torch.allclose(pair(x), layer(x), atol=1e-5)

    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    with torch.no_grad():
        core = torch.randn(2, 3, 3, 3)
        kernel = torch.einsum("rshw,or,is->oihw", core, torch.randn(8, 2), torch.randn(6, 3))
        conv.weight.copy_(kernel)
    three: Any = tucker_conv(conv, 1.0)
    assert [part.weight.shape[:2] for part in three] == [(3, 6), (2, 3), (8, 2)]
    x = torch.randn(2, 6, 7, 7)
    assert torch.allclose(three(x), conv(x), atol=1e-3)
    point = nn.Conv2d(6, 8, 1, stride=2)
    assert torch.allclose(tucker_conv(point, 1.0)(x), point(x), atol=1e-4)


def test_ranks_are_the_highest_that_a_budget_allows():
    # 6 x 8 of singular values 3, 2, 1: rank 1 takes 14 of 48, rank 2 takes 28, rank 3 takes 42
    first, second = torch.linalg.qr(torch.randn(6, 3))[0], torch.linalg.qr(torch.randn(8, 3))[0]
    model: Any = nn.Sequential(nn.Linear(8, 6, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(first @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ second.T)
    for keep, rank in ((0.3, 1), (0.6, 2), (0.9, 3)):
        assert made(model, f"lowrank:svd,energy=1,keep={keep}")[0][0].out_features == rank
    assert made(model, "lowrank:svd,energy=0.5,keep=0.9")[0][0].out_features == 1
    with pytest.raises(InputError, match=r"keep=0\.1 .* less than rank 1 takes; keep more"):
        made(model, "lowrank:svd,keep=0.1")
    conv = nn.Conv2d(6, 8, 3)
    for energy in (0.3, 0.8):
        three = tucker_conv(conv, energy)
        expected = sum(parameter.numel() for parameter in three.parameters())
        share = (expected + 0.5) / sum(parameter.numel() for parameter in conv.parameters())
        again = tucker_conv(conv, affordable([conv], share, 1.0))
        assert sum(parameter.numel() for parameter in again.parameters()) == expected


def test_folding_changes_nothing_but_the_norms():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    nn.init.uniform_(model[1].running_mean)
    nn.init.uniform_(model[1].weight, 0.5, 2)
    x = torch.randn(2, 2, 5, 5)
    folded = begun(model, "fold", (x,))
    assert isinstance(folded[1], nn.Identity)
    assert torch.allclose(folded(x), model(x), atol=1e-5)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.second(torch.relu(self.first(x))))


def test_a_layer_that_stands_in_two_places_stays_one(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    source = Twice().eval()
    for text in ("quantize:int8", "lowrank:svd,energy=0.1"):
        (step,) = parse_chain([text])
        samples = Samples(example=(x[:2],), inputs=(x,))
        model: Any = settle(apply(copy.deepcopy(source), step, samples))
        assert model.first is model.second
        found = changes(source, model)
        assert [change.same_as for change in found if change.path == "second"] == ["first"]
        again: Any = load_changes(Twice(), Path("made"), found)
        assert again.first is again.second
        file = tmp_path / "weights.safetensors"
        file.write_bytes(pack_weights(model))
        weights = unpack_weights(file, digest=sha256(file))
        check_weights(again, weights, where="here")
        again.to_empty(device="cpu")
        load_weights(again, weights, where="here")
        assert torch.equal(again(x), model(x))
        assert capture(model, (x,)).outputs


@pytest.mark.parametrize("second", ["sparse:magnitude,keep=0.7", "sparse:nm,n=3"])
def test_a_weight_that_one_step_set_to_0_stays_0_in_the_next(second):
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    model: Any = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    samples = Samples(example=(x[:2],), inputs=(x,), labels=torch.arange(8) % 4)
    for text in ("sparse:nm", second):
        (step,) = parse_chain([text])
        model = settle(apply(model, step, samples))
        assert ((model[0].weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all()


def test_layers_of_integers_are_none_for_other_techniques():
    x = torch.randn(16, 4)
    samples = Samples(example=(x[:2],), inputs=(x,))
    steps = [step for text in ("quantize:int8", "share:kmeans") for step in parse_chain([text])]
    model = settle(apply(nn.Sequential(nn.Linear(4, 4)).eval(), steps[0], samples))
    with pytest.raises(InputError, match=r"found no layer for it.*but for layers of integers"):
        apply(model, steps[1], samples)


def test_parameters_that_are_zero_do_not_count():
    model = made(linear([[1.0, -4.0], [3.0, -2.0]]), "sparse:magnitude,keep=0.5,scope=layer")
    assert figures(model, (torch.ones(2, 2),)).parameters == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["prune:l3"], "no technique 'prune:l3'; there are prune:l1, prune:l2"),
        (["quantize:weights,bits=9"], "found bits=9, expected bits=2 to 8"),
        (["quantize:int8,range=all"], "expected range=minmax or average"),
        (["share:kmeans", "quantize:binary"], "both choose the values of weights; leave one out"),
        (
            ["quantize:int8", "prune:l1"],
            "l1 after quantize:int8: may undo it; put prune:l1",
        ),
        (["prune:l1,keep=0.5,keep=0.6"], "found keep= twice, expected it once"),
        (["sparse:nm", "quantize:binary"], "has no value for a weight of 0.*quantize:ternary"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(texts, message):
    with pytest.raises(InputError, match=message):
        parse_chain(texts)


def test_low_rank_that_makes_nothing_smaller_is_refused():
    with pytest.raises(InputError, match="no layer gets smaller; give less energy"):
        made(nn.Sequential(nn.Linear(4, 4)), "lowrank:svd,energy=1")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        x = self.conv1(x)
        x = x + self.conv3(torch.relu(self.conv2(x)))
        return self.head(x.mean((2, 3)))


def test_outputs_are_integers_where_no_layer_of_integers_reads_them():
    torch.manual_seed(0)
    x = torch.rand(16, 2, 4, 4)
    (step,) = parse_chain(["quantize:int8"])
    model = settle(apply(Residual().eval(), step, Samples(example=(x[:2],), inputs=(x,))))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Integer)}
    # the sum reads conv1 and conv3; conv2 is read by conv3 behind a ReLU; head is the answer
    assert {name: layer.outputs for name, layer in layers.items()} == {
        "conv1": True, "conv2": False, "conv3": True, "head": False,
    }  # fmt: skip


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.mix(self.embed(tokens).mean(dim=1)))


def test_a_weight_that_two_modules_hold_is_not_changed_in_one_of_them():
    samples = Samples(example=(torch.zeros(2, 4, dtype=torch.int64),))
    with pytest.raises(InputError, match=r"embed and head hold one weight.*skip=embed\+head"):
        check_chain(Tied().eval(), parse_chain(["sparse:magnitude"]), samples)
    check_chain(Tied().eval(), parse_chain(["sparse:magnitude,skip=embed+head"]), samples)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "^0: .*remove_parametrizations"),
        (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "^0: .*remove_weight_norm"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "^0: .*remove_spectral_norm"),
        (
            lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
            r"^0: .*prune\.remove",
        ),
        (nn.Linear(4, 4).half(), r"^0\.weight: found weights of float16, expected float32"),
    ],
    ids=["parametrization", "weight norm", "spectral norm", "mask", "float16"],
)
def test_weights_that_are_no_plain_float32_are_refused(layer, said):
    model = nn.Sequential(layer if isinstance(layer, nn.Module) else layer())
    samples = Samples(example=(torch.zeros(2, 4),))
    with pytest.raises(InputError, match=said):
        check_chain(model.eval(), parse_chain(["quantize:int8"]), samples)
    plain = nn.Sequential(nn.Linear(4, 4)).eval()
    check_chain(plain, parse_chain(["quantize:int8"]), samples)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sparse:magnitude,rounds=8", "found rounds=, of no use with schedule=once; leave it out"),
        ("prune:netadapt,platform=camera-hub", "found platform=, of no use with resource=macs"),
        ("prune:netadapt,device=camera", "found device=, of no use with resource=macs"),
        ("prune:netadapt,cut=layer1", "found cut=, of no use with resource=macs"),
        ("exits,share=0.9,agreement=0.99", "found share=, of no use with agreement=0.99"),
        ("exits,drop=1,share=0.9", "found share=, of no use with drop=1"),
        ("format,seed=4", "found seed=, of no use with round=nearest"),
    ],
)
def test_options_that_nothing_would_read_are_refused(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse_chain([text])
    for useful in ("format,seed=4,round=chance", "exits,share=0.9"):
        parse_chain([useful])


def test_what_a_user_froze_stays_frozen_and_is_judged_like_the_rest():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    free = copy.deepcopy(model)
    model[0].requires_grad_(requires_grad=False)
    x = torch.rand(48, 1, 6, 6)
    samples = Samples(example=(x[:2],), inputs=(x,), labels=torch.arange(48) % 3)
    for text in ("prune:l1", "prune:taylor", "prune:least-squares", "sparse:snip", "sparse:obd"):
        made, other = (
            apply(copy.deepcopy(each).eval(), parse_chain([text])[0], samples)
            for each in (model, free)
        )
        (first, *_) = made.children()
        assert [p.requires_grad for p in first.parameters()] == [False, False]
        weights = [settle(each).state_dict() for each in (made, other)]
        assert {k: v.shape for k, v in weights[0].items()} == {
            k: v.shape for k, v in weights[1].items()
        }
        torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    "step", ["quantize:int8", "sparse:magnitude", "share:kmeans,bits=2", "lowrank:tucker,keep=0.8"]
)
def test_what_replaced_convolutions_can_be_changed_again(step):
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(40, 3, 6, 6)
    samples = Samples(example=(x[:2],), inputs=(x,), labels=torch.zeros(40, dtype=torch.int64))
    for text in ("replace:octave", step):
        model = settle(apply(model.eval(), parse_chain([text])[0], samples))
    assert model(x).shape == (40, 16, 6, 6)


def test_pruning_after_adders_is_refused():
    model: Any = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
    )
    samples = Samples(example=(torch.zeros(2, 3, 6, 6),))
    model = apply(model.eval(), parse_chain(["replace:adder,only=1"])[0], samples)
    with pytest.raises(InputError, match="prune first, then replace:adder"):
        apply(model, parse_chain(["prune:l1"])[0], samples)


@pytest.mark.parametrize("step", ["quantize:int8", "lowrank:svd,keep=0.9"])
def test_transformer_layers_can_be_changed_and_loaded_again(step):
    def make():
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.TransformerEncoder(layer, 2).eval()

    torch.manual_seed(0)
    source, x = make(), torch.randn(32, 5, 8)
    padding = torch.arange(5) >= torch.full((32, 1), 4)
    samples = Samples(example=(x[:2],), inputs=(x,), labels=torch.zeros(32, dtype=torch.int64))
    changed = settle(apply(copy.deepcopy(source), parse_chain([step])[0], samples)).eval()
    again = load_changes(make(), Path("made"), changes(source, changed))
    again.to_empty(device="cpu").load_state_dict(changed.state_dict())
    with torch.no_grad():
        for options in ({}, {"src_key_padding_mask": padding}):
            torch.testing.assert_close(again.eval()(x, **options), changed(x, **options))
        error = (changed(x) - source(x)).square().mean()
    assert error < 0.05  # outputs are normed: their mean square is 1
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_sign_of_one_bit_is_never_zero():
    signs, _ = Signs(-1.0).integers(torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    assert signs.tolist() == [[1, 1], [1, -1]]


def test_folding_leaves_norms_without_statistics():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval()
    made = apply(model, parse_chain(["fold"])[0], Samples(example=(torch.randn(2, 3, 6, 6),)))
    assert norm in list(made.modules())
