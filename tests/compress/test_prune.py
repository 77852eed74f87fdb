"""Structured pruning on cases worked out by hand."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isthmus.compress import Samples, Training, apply, parse_chain, settle
from isthmus.compress.netadapt import resource, within
from isthmus.compress.prune import with_channels
from isthmus.errors import InputError
from isthmus.graph import capture, find_cut
from isthmus.models.compressed import changes, load_changes
from isthmus.plan import partition
from isthmus.plan.estimate import estimate, make_site, stage_loads
from isthmus.platform import Device, load_platform
from tests.nets import NETS

pytest.importorskip("torch_pruning")

FIRST = nn.Conv2d(2, 8, 1)
HEAD = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def net(groups=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 1, bias=False, groups=groups), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


def samples(num=32):
    x = torch.rand(num, 2, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    return Samples(example=(x[:2],), inputs=(x,), labels=torch.arange(num) % 3)


def pruned(model, text):
    (step,) = parse_chain([text])
    return apply(copy.deepcopy(model), step, samples())


def test_l1_keeps_the_channels_of_the_largest_weights_and_what_reads_them():
    model = net()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([5.0, 1, 4, 2]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1))
        model[3].weight.copy_(torch.arange(32.0).reshape(8, 4, 1, 1) / 1000)
        model[1].running_mean.copy_(torch.arange(4.0))
    made = pruned(model, "prune:l1,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [5.0, 4.0]
    assert made[1].running_mean.tolist() == [0.0, 2.0]
    assert torch.equal(made[3].weight, model[3].weight[:, [0, 2]])
    assert made[3].out_channels == 8


def test_a_forward_that_insists_on_channel_counts_without_a_word_is_named():
    class Four(nn.Identity):
        def forward(self, x):
            if x.shape[1] != 4:
                raise ValueError
            return x

    model = net()
    model[2] = Four()
    with pytest.raises(InputError, match=r"does not run \(ValueError\)"):
        pruned(model, "prune:l1,keep=0.5,only=0")


def test_weights_that_two_modules_hold_do_not_part_by_what_is_pruned_before_one_of_them():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.far, self.near = nn.Embedding(9, 8), nn.Linear(8, 6), nn.Linear(6, 8)
            self.answer = nn.Linear(8, 9, bias=False)
            self.answer.weight = self.embed.weight

        def forward(self, x):
            return self.answer(self.near(self.far(self.embed(x).mean(1))))

    given = Samples(example=(torch.zeros(2, 5, dtype=torch.long),))
    (step,) = parse_chain(["prune:l1,keep=0.5,skip=embed+answer"])
    with pytest.raises(
        InputError, match=r"hold one weight would part; add skip=embed\+answer\+near"
    ):
        apply(Tied(), step, given)
    (step,) = parse_chain(["prune:l1,keep=0.5,skip=embed+answer+near"])
    made: Any = apply(Tied(), step, given)
    assert made.answer.weight is made.embed.weight
    assert made.far.out_features == 3


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_left_as_they_are(kind):
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.recur = nn.Linear(4, 8), kind(8, 6, batch_first=True)
            self.leave = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x):
            return self.leave(self.recur(self.enter(x))[0][:, -1])

    (step,) = parse_chain(["prune:l1,keep=0.5,skip=enter"])
    model: Any = Series()
    given = Samples(example=(torch.rand(2, 5, 4),))
    made: Any = apply(copy.deepcopy(model), step, given)
    assert made.leave[0].out_features == 4
    assert torch.equal(made.recur.weight_hh_l0, model.recur.weight_hh_l0)


def test_slimming_keeps_what_batch_norm_scales_most():
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 3.0, 0.2, 2.0]))
    made = pruned(model, "prune:slimming,keep=0.5,only=0")
    assert made[1].weight.tolist() == [3.0, 2.0]


def test_fpgm_removes_the_channel_that_lies_amid_the_others():
    model = net()
    with torch.no_grad():  # three far apart, one at their centre
        rows = [[9.0, 0.0], [0.0, 9.0], [3.0, 3.0], [0.1, 0.1]]
        model[0].weight.copy_(torch.tensor(rows).reshape(4, 2, 1, 1))
        model[3].weight.fill_(1.0)
    made = pruned(model, "prune:fpgm,keep=0.75,only=0")
    assert torch.equal(made[0].weight, model[0].weight[[0, 1, 3]])


def test_fpgm_tells_a_channel_from_its_negative():
    convolution = nn.Conv2d(1, 3, 1, bias=False)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    with torch.no_grad():  # distances to the others add up to 2.9, 3.1 and 2
        convolution.weight.copy_(torch.tensor([1.0, -1.0, 0.1]).reshape(3, 1, 1, 1))
    (step,) = parse_chain(["prune:fpgm,keep=0.7,only=0"])
    made: Any = apply(model, step, Samples(example=(torch.rand(2, 1, 4, 4),)))
    assert made[0].weight.flatten().tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(4, 8, 3), nn.Conv2d(4, 8, 3)],
    ids=["grouped", "transposed", "plain"],
)
def test_fpgm_follows_groups_and_transposed_convolutions(convolution):
    model = nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():  # the second channel of each half makes the mean of the others
        rows = torch.randn(8, 18 * (2 // convolution.groups), generator=torch.Generator())
        rows[[1, 5]] = rows[[0, 2, 3, 4, 6, 7]].mean(0)
        weight = convolution.weight
        if isinstance(convolution, nn.ConvTranspose2d):
            weight.copy_(rows.reshape(8, 4, 3, 3).transpose(0, 1))
        else:
            weight.copy_(rows.reshape(weight.shape))
    (step,) = parse_chain(["prune:fpgm,keep=0.75,only=0"])
    made = apply(copy.deepcopy(model), step, Samples(example=(torch.rand(2, 4, 8, 8),)))
    bias = convolution.get_parameter("bias")[[0, 2, 3, 4, 6, 7]]
    assert torch.equal(made.get_parameter("0.bias"), bias)


def test_apoz_removes_the_channels_that_are_zero_most_often():
    model = net()
    with torch.no_grad():  # inputs are positive: channels 1 and 3 are never active
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
        model[0].weight.copy_(signs * torch.tensor([1.0, 9.0, 2.0, 8.0]).reshape(4, 1, 1, 1))
    made = pruned(model, "prune:apoz,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [1.0, 2.0]


def test_apoz_behind_a_mean_removes_the_channels_of_the_smallest_means():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 1, bias=False)
    mean = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(conv, mean, nn.Linear(4, 3)).eval()
    with torch.no_grad():  # all are active everywhere
        conv.weight.copy_(
            torch.tensor([0.1, 9.0, 0.2, 8.0]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1)
        )
    made = pruned(model, "prune:apoz,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [9.0, 8.0]


def test_taylor_removes_the_channels_without_influence_on_the_loss():
    model = net()
    with torch.no_grad():  # nothing reads channels 0 and 2
        model[3].weight[:, [0, 2]] = 0
        model[0].weight.copy_(torch.tensor([9.0, 1, 9, 1]).reshape(4, 1, 1, 1).expand(4, 2, 1, 1))
    made = pruned(model, "prune:taylor,keep=0.5,only=0")
    assert made[0].weight[:, 0].flatten().tolist() == [1.0, 1.0]
    assert all(parameter.grad is None for parameter in made.parameters())


def test_channels_are_rounded_and_the_classes_stay():
    made = pruned(net(), "prune:l2,keep=0.7,round_to=4")
    assert [made[k].out_channels for k in (0, 3)] == [4, 4]
    assert made[7].out_features == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prune:l1,keep=0.1",
            r"of 4 channels would remove a layer whole, 0; expected keep=0\.25 or more, or skip=0",
        ),
        ("prune:l1,keep=0.5,only=7", "every layer makes the model's outputs"),
        ("prune:l1,keep=0.9,round_to=1,only=0", None),
        ("prune:l1,keep=1.5", "found keep=1.5, expected keep=0.001 to 1"),
        ("prune:l1,keep=half", "found keep=half"),
        ("prune:l1,only=1", "found no layer for it"),
        ("prune:netadapt,round_to=8", r"macs is at 1 of what .* expected keep=1 or more, or a"),
        ("prune:netadapt,platform=", "expected platform=a preset or a file"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(text, message):
    if message is None:
        assert pruned(net(), text)[0].out_channels == 3
        return
    with pytest.raises(InputError, match=message):
        pruned(net(), text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("resource=crossing", "add cut=MODULE"),
        ("resource=latency", "needs a device; add platform="),
        ("resource=energy,platform=no-such", "no-such"),
        ("resource=latency,platform=camera-hub,device=oven", "no device 'oven'; known: camera"),
    ],
)
def test_a_resource_that_has_no_measure_is_refused_when_it_is_read(options, message):
    with pytest.raises(InputError, match=message):
        parse_chain([f"prune:netadapt,{options}"])


def test_data_are_asked_for():
    (step,) = parse_chain(["prune:taylor"])
    with pytest.raises(InputError, match=r"found 0 training samples, expected 16 .* --data"):
        apply(net(), step, Samples(example=samples().example))


def two_layers():
    """Return a network that says class 0, by all channels but 0 to 4 of the first layer."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(2, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3, bias=False),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            nn.init.uniform_(layer.weight, 0.1, 0.2)
        model[0].weight[:5] *= 0.01
        model[2].weight[:, :5] = 0
        model[6].weight.copy_(torch.eye(3)[0][:, None].expand(3, 8))
    return model


def test_netadapt_takes_from_the_layer_whose_loss_costs_least_until_the_budget_is_held():
    # MACs at 4 x 4 places: 2 * 8 * 16 + 8 * 8 * 16 + 8 * 3 = 1304, to become 652. A channel of the
    # first layer is worth 32 + 128. Step 1 saves 326: 3 of them. Step 2 may have 652: 2 of them.
    (step,) = parse_chain(["prune:netadapt,keep=0.5,step=0.25"])
    made: Any = apply(two_layers(), step, replace(samples(), labels=torch.zeros(32).long()))
    assert [made[k].out_channels for k in (0, 2)] == [3, 8]
    x = samples().inputs[0]
    assert torch.allclose(made(x), two_layers()(x), atol=1e-5)


def test_netadapt_halves_the_bytes_of_a_crossing_in_whole_groups_of_channels():
    made = pruned(two_layers(), "prune:netadapt,resource=crossing,cut=0,keep=0.5,round_to=3")
    assert [made[k].out_channels for k in (0, 2)] == [3, 8]


@pytest.mark.long
def test_netadapt_takes_no_channel_more_than_it_has_to():
    near = Device(name="a", macs_per_s={"fp32": 1e9}, efficiency=((1e3, 0.05), (2e4, 1.0)))

    def seconds(model):
        graph = capture(model, samples().example)
        loads = stage_loads(graph, ())
        return estimate(loads, (), (make_site(graph, near),), ()).prediction.latency_s

    model = two_layers()
    whole = seconds(model)
    made = [with_channels("x", model, "0", kept, 8, samples()) for kept in range(1, 8)]
    taken = [seconds(one) for one in made]
    for limit in taken:
        found = within(model, "0", 8, {"round_to": 1}, samples(), seconds, (whole, limit))
        assert found is not None
        assert found[1] == limit
        assert found[0].get_submodule("0").out_channels == 1 + taken.index(limit)


def test_netadapt_goes_on_from_the_choices_of_an_earlier_sitting():
    tried = []

    def short(model, num):
        tried.append((model[0].out_channels, model[2].out_channels, num))

    def kept(name, find):
        return "2" if name == "step 1" else find()

    (step,) = parse_chain(["prune:netadapt,keep=0.7,step=0.15,decay=1,short=5"])
    training = Training(whole=lambda model, name: None, short=short, kept=kept)
    apply(two_layers(), step, replace(samples(), training=training))
    # 196 less are 2 channels of the second, at 131 each. From these 1042 to 913 it is one more of
    # them, or 2 of the first, at 32 + 96 each.
    assert tried[0] == (8, 6, 5)
    assert sorted(tried[1:]) == [(6, 6, 5), (8, 5, 5)]


@pytest.mark.parametrize(
    ("what", "place"), [("latency", ""), ("energy", ",device=gateway"), ("latency", ",cut=0")]
)
def test_what_netadapt_reckons_with_is_what_a_plan_predicts(what, place):
    text = f"prune:netadapt,resource={what},platform=two-mcu-spi{place}"
    place = place.replace("gateway", load_platform("two-mcu-spi").output)
    (step,) = parse_chain([text.replace("gateway", load_platform("two-mcu-spi").output)])
    found = resource(step.options, samples())(net())
    graph, platform = capture(net(), samples().example), load_platform("two-mcu-spi")
    field = "latency_s" if what == "latency" else "energy_j"
    if "cut" in place:
        plan = partition(graph, platform, cut=find_cut(graph, "0").index, codec="raw")
        assert found == getattr(plan.predicted, field)
    else:
        device = platform.device(platform.output if "device" in place else platform.input)
        latency_s = graph.macs / device.macs_per_s["fp32"]
        assert found > 0
        if what == "energy":
            assert found > device.j_per_mac["fp32"] * graph.macs
        else:
            assert found > latency_s


def test_netadapt_reckons_with_what_does_not_fit_yet():
    def wide(hidden):  # of 1000 the first 132 kB of weights are more than a board has
        return nn.Sequential(nn.Flatten(), nn.Linear(32, hidden), nn.Linear(hidden, 3)).eval()

    (step,) = parse_chain(["prune:netadapt,resource=latency,platform=two-mcu-spi,cut=1"])
    latency_s = resource(step.options, samples())
    assert latency_s(wide(1000)) == pytest.approx(2 * latency_s(wide(500)), rel=0.1)


class Reshaping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 1), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).reshape(-1, 4, 4, 4).mean(3).reshape(-1, 16))


def test_a_forward_that_holds_channel_counts_is_refused():
    with pytest.raises(InputError, match=r"prune:l1: .*skip="):
        pruned(Reshaping(), "prune:l1")


class Attending(nn.Module):
    """Maps (B, 2, 4, 4) as 4 tokens of 8 channels, with attention of two heads beside a skip."""

    def __init__(self, own):
        super().__init__()
        self.embed, self.own = nn.Linear(8, 8), own
        self.mix = nn.Linear(8, 24) if own else nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide, self.back, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x.reshape(-1, 4, 8))
        if self.own:
            q, k, v = self.mix(x).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
            mixed = ((q @ k.mT).softmax(-1) @ v).permute(0, 2, 1, 3).reshape(-1, 4, 8)
        else:
            mixed = self.mix(x, x, x, need_weights=False)[0]
        x = x + mixed
        return self.head((x + self.back(self.wide(x).relu())).mean(1))


@pytest.mark.long
@pytest.mark.parametrize(("own", "mixes"), [(True, {"mix"}), (False, set())])
def test_layers_whose_channels_an_attention_holds_are_named_and_left_by_netadapt(own, mixes):
    torch.manual_seed(0)
    model = Attending(own).eval()
    with pytest.raises(InputError, match=r"^[^\n]*; add skip=[a-z+]*$") as refused:
        pruned(model, "prune:l1,keep=0.5")
    skip = str(refused.value).rpartition("skip=")[2]
    assert {*skip.split("+")} == {"embed", "back"} | mixes
    for text in (f"prune:l1,keep=0.5,skip={skip}", "prune:netadapt,keep=0.9,step=0.5"):
        made: Any = pruned(model, text)
        assert made.wide.out_features < 16
        assert made.embed.out_features == made.back.out_features == 8
        assert made(samples().inputs[0]).shape == (32, 3)
    with_norm = nn.Sequential(nn.BatchNorm2d(2), model).eval()
    with pytest.raises(InputError, match=r"^[^\n]*; add skip=[a-z+.1]*$"):
        pruned(with_norm, "prune:slimmable,widths=0.5")
    training = Training(
        whole=lambda *_: pytest.fail("trained first"), short=lambda *_: None,
        kept=lambda _, find: find(),
    )  # fmt: skip
    (step,) = parse_chain(["prune:group-lasso,keep=0.5"])
    with pytest.raises(InputError, match="add skip="):
        apply(copy.deepcopy(model), step, replace(samples(), training=training))


def test_a_layer_of_one_channel_is_named_and_left_by_netadapt():
    layers = (nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(16, 3))
    model = nn.Sequential(*layers).eval()
    with pytest.raises(InputError, match=r"a layer whole, 2; expected keep=1 or more, or skip=2$"):
        pruned(model, "prune:l1,keep=0.5")
    for text in ("prune:l1,keep=0.5,skip=2", "prune:netadapt,keep=0.7,step=0.5"):
        made: Any = pruned(model, text)
        assert made[0].out_channels < 8
        assert made[2].out_channels == 1


def test_group_lasso_trains_with_the_norms_of_all_that_leaves_together():
    model: Any = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():  # channel 0: 3 makes it, 4 reads it; channel 1: 0 and 2
        model[0].weight.copy_(torch.tensor([[3.0], [0.0]]))
        model[2].weight.copy_(torch.tensor([[4.0, 2.0]]))
    told = []

    def whole(model, name, penalty):
        told.append((name, penalty().item()))
        model[0].weight.data[1], model[2].weight.data[0, 1] = 5.0, 5.0

    training = Training(whole=whole, short=lambda *_: None, kept=lambda _, find: find())
    (step,) = parse_chain(["prune:group-lasso,keep=0.5,strength=0.1"])
    made: Any = apply(model, step, Samples(example=(torch.ones(2, 1),), training=training))
    assert told == [("lasso", pytest.approx(0.1 * (5 + 2)))]
    assert made[0].weight.tolist() == [[5.0]]
    with pytest.raises(InputError, match="trains before it prunes; add --data, --epochs"):
        apply(net(), step, samples())


def test_slimming_trains_with_the_scales_of_norms_where_a_strength_is_given():
    model, told = net(), []

    def whole(model, name, penalty):
        told.append((name, penalty().item()))
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([0.1, 2.0, 0.2, 3.0]))

    training = Training(whole=whole, short=lambda *_: None, kept=lambda _, find: find())
    (step,) = parse_chain(["prune:slimming,keep=0.5,only=0,strength=0.5"])
    kept = model[0].weight[[1, 3]].clone()
    norms = [m for m in model if isinstance(m, nn.BatchNorm2d)]
    scales = sum(norm.weight.detach().abs().sum().item() for norm in norms)
    made: Any = apply(model, step, replace(samples(), training=training))
    assert told == [("lasso", pytest.approx(0.5 * scales))]
    assert torch.equal(made[0].weight, kept)
    with pytest.raises(InputError, match="trains before it prunes; add --data, --epochs"):
        apply(net(), step, samples())
    plain = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(), nn.LazyLinear(1))
    with pytest.raises(InputError, match="found no batch norm; expected one, or prune:l2"):
        apply(plain, step, replace(samples(), training=training))


def test_least_squares_makes_the_next_layer_do_what_it_did_where_that_can_be():
    # of the channels a, b, a + b and 0 any two of the first three are enough
    model = net()
    with torch.no_grad():
        rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]
        model[0].weight.copy_(torch.tensor(rows).reshape(4, 2, 1, 1))
    made = pruned(model, "prune:least-squares,keep=0.5,only=0")
    assert made[0].out_channels == 2
    (x,) = samples().inputs
    assert torch.allclose(made(x), model(x), atol=1e-3)
    plain = pruned(model, "prune:l1,keep=0.5,only=0")
    assert not torch.allclose(plain(x), model(x), atol=1e-2)
    with pytest.raises(InputError, match="found no channels that only linear layers and 2d conv"):
        pruned(net(groups=2), "prune:least-squares,keep=0.5,only=0")


class Around(nn.Module):
    """A sum of what a layer reads and makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        return self.head((h + self.second(h).relu()).mean((2, 3)))


def test_least_squares_removes_channels_that_one_layer_reads_and_makes():
    torch.manual_seed(0)
    model = Around().eval()
    least, by_size = (pruned(model, f"prune:{x},keep=0.5") for x in ("least-squares", "l2"))
    assert least.second.weight.shape == (4, 4, 3, 3)
    (x,) = samples().inputs
    errors = [(made(x) - model(x)).square().mean().item() for made in (least, by_size)]
    assert errors[0] < errors[1]


def test_least_squares_loses_less_than_any_choice_by_size_also_through_sums():
    torch.manual_seed(0)
    model, inputs = NETS["residual"].make().eval(), NETS["residual"].inputs(32)
    given = Samples(example=(inputs[0][:2],), inputs=inputs, labels=torch.arange(32) % 10)
    errors = []
    for text in ("prune:least-squares,keep=0.5", "prune:l2,keep=0.5"):
        (step,) = parse_chain([text])
        made = apply(copy.deepcopy(model), step, given)
        with torch.no_grad():
            errors.append((made(*inputs) - model(*inputs)).square().mean().item())
    assert errors[0] < errors[1] / 10


@pytest.mark.parametrize(
    ("channels", "keep", "kept"), [(10, 0.2, 2), (10, 0.1, 1), (100, 0.29, 29)]
)
def test_a_share_of_the_channels_is_rounded_down_and_no_further(channels, keep, kept):
    first = (nn.Conv2d(2, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
    model = nn.Sequential(*first, nn.Conv2d(channels, 4, 1), nn.Flatten(), nn.Linear(64, 3)).eval()
    for technique in ("l1", "least-squares"):
        made: Any = pruned(model, f"prune:{technique},keep={keep},only=0")
        assert made[0].out_channels == kept
    slimmable = pruned(model, f"prune:slimmable,widths={keep},only=0")
    narrow: Any = pruned(settle(slimmable), f"prune:width,width={keep},only=0")
    assert narrow[0].out_channels == kept


def test_apoz_is_a_share_whether_a_channel_is_read_once_or_as_several_features():
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1)
    model = nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)
    ).eval()
    with torch.no_grad():
        assert first.bias is not None
        assert second.bias is not None
        first.bias.fill_(10.0)  # never 0 behind it, and half of the time behind the second
        made_NCHW = second(first(samples().inputs[0]).relu())
        second.bias -= made_NCHW.transpose(0, 1).flatten(1).median(dim=1).values
    made: Any = pruned(model, "prune:apoz,keep=0.75,scope=model")
    assert (made[0].out_channels, made[2].out_channels) == (8, 4)


def test_least_squares_prunes_a_transposed_convolution():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 12, 2, stride=2), nn.ReLU(), nn.Conv2d(12, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    made: Any = pruned(model, "prune:least-squares,keep=0.5,only=1")
    assert made[1].weight.shape[:2] == (4, 6)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


class _Windows(nn.Module):
    """A recurrent layer reads the rows of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1)
        self.rows = nn.GRU(16, 6, batch_first=True)
        self.answer = nn.Linear(6, 3)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu().transpose(1, 2).flatten(2)
        return self.answer(self.rows(x)[0][:, -1])


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (nn.Sequential(FIRST, nn.LayerNorm([8, 4, 4]), nn.Conv2d(8, 8, 1), HEAD), "0"),
        (nn.Sequential(FIRST, nn.PixelShuffle(2), nn.Conv2d(2, 8, 1), HEAD), "0"),
        (_Windows(), "second"),
    ],
    ids=["norm of places", "pixel shuffle", "recurrent"],
)
def test_a_layer_whose_channels_cannot_be_followed_is_named(model, path):
    with pytest.raises(InputError, match=rf"which channels .*; leave .* out with skip={path}$"):
        pruned(model.eval(), "prune:l2,keep=0.5")
    kept = pruned(model.eval(), f"prune:l2,keep=0.5,skip={path}")
    assert num_parameters(kept) < num_parameters(model)
    assert kept.get_submodule(path).out_channels == model.get_submodule(path).out_channels


@pytest.mark.parametrize("mode", ["circular", "reflect"])
def test_how_a_map_is_padded_does_not_matter_to_what_is_pruned(mode):
    torch.manual_seed(0)
    plain = nn.Sequential(FIRST, nn.Conv2d(8, 8, 3, padding=1), HEAD).eval()
    padded = copy.deepcopy(plain)
    padded[1].padding_mode = mode
    found, wanted = (pruned(model, "prune:l2,keep=0.5") for model in (padded, plain))
    assert found[1].padding_mode == mode
    torch.testing.assert_close(found.state_dict(), wanted.state_dict())


def test_layers_of_a_users_own_kind_lose_nothing():
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(FIRST, nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model.append(Mine(8, 3))
    with pytest.raises(InputError, match=r"Mine was changed, .*; add skip=1$"):
        pruned(model, "prune:l1,keep=0.5")
    kept = pruned(model, "prune:l1,keep=0.5,skip=1")
    assert (kept[0].out_channels, kept[1].out_channels, kept[4].out_features) == (4, 8, 3)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_a_norm_is_written_down_with_the_weights_that_it_has(options):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(32, 16), nn.LayerNorm(16, **options), nn.Linear(16, 3)
    ).eval()
    made = pruned(model, "prune:l1,keep=0.5")
    again = load_changes(copy.deepcopy(model), Path(), changes(model, made))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in made.state_dict().items()
    }
