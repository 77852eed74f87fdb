"""Stages together compute what the model computes, at every cut that can be used."""

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import CaptureError, InputError
from isthmus.export.operators import read_once
from isthmus.graph import capture, cuts, find_cut
from isthmus.progress import quiet
from isthmus.split import SplitModel, split
from tests.nets import NETS, Attention, MultiHead, Tied, captured, chain, images, residual
from tests.split.plans import plan_at

# Of several nodes a stage: these. Of one, in training and evaluation: all, in test_training.
QUICK = ("residual", "branches", "attention", "decoder", "sensors", "tied")


def usable_cuts(model: nn.Module, x: Tensor) -> list[int]:
    return [cut.index for cut in cuts(capture(model, (x,))) if not cut.obstacle]


def split_at(model: nn.Module, *indices: int, codecs: list[nn.Module] | None = None) -> SplitModel:
    return split(model, plan_at(capture(model, (images(),)), *indices), codecs)


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in NETS],
)
def test_stages_of_several_nodes_leave_the_outputs_alone(name):
    torch.manual_seed(0)
    model, x = NETS[name].make().eval(), NETS[name].inputs(3)
    usable = [cut.index for cut in cuts(captured(name)) if not cut.obstacle]
    assert len(usable) > 6
    indices = usable[1:-1:3]
    divided = split(model, plan_at(captured(name), *indices))
    torch.testing.assert_close(divided(*x), model(*x), rtol=0, atol=1e-5)
    assert len(divided.stages) == len(indices) + 1


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_stages_take_any_batch_size(batch):
    model = Attention().eval()
    indices = usable_cuts(model, images())
    x = images(batch)
    torch.testing.assert_close(split_at(model, *indices[3:-1:4])(x), model(x), rtol=0, atol=1e-5)


def test_a_stage_takes_and_returns_the_tensors_of_its_crossings():
    model = residual().eval()
    graph = capture(model, (images(),))
    inside = find_cut(graph, "2.conv1")
    first, second = split(model, plan_at(graph, inside.index)).stages
    crossing = first(images())
    assert [tuple(t.shape[1:]) for t in crossing] == [t.shape for t in inside.tensors]
    torch.testing.assert_close(second(*crossing)[0], model(images()))


def test_stages_hold_the_models_own_weights_under_its_names():
    model = residual()
    divided = split_at(model, 4, 9)
    theirs = model.state_dict(keep_vars=True)
    found: dict[str, Tensor] = {}
    for stage in divided.stages:
        for name, tensor in stage.state_dict(keep_vars=True).items():
            assert tensor is theirs[name]
            found[name] = tensor
    assert found.keys() == theirs.keys()
    for first, second in pairwise(divided.stages):
        assert not set(first.state_dict()) & set(second.state_dict())


def test_tied_weights_and_shared_statistics_stay_one_across_cuts():
    model = Tied()
    divided = split_at(model, *usable_cuts(model, images()))
    assert len(list(divided.parameters())) == len(list(model.parameters()))
    holders = [
        stage.get_submodule("block.1")
        for stage in divided.stages
        if "block.1.running_mean" in stage.state_dict()
    ]
    assert len(holders) == 2
    divided.double()
    assert holders[0].running_mean is holders[1].running_mean
    assert holders[0].running_mean.dtype == torch.float64


def test_constants_are_no_part_of_the_state():
    class Shifted(nn.Module):
        offset: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offset", torch.ones(4), persistent=False)
            self.scale = torch.full((4,), 3.0)

        def forward(self, x: Tensor) -> Tensor:
            step = torch.tensor([1.0, 2.0, 3.0, 4.0])
            step[1] = 7
            return x * self.scale + self.offset + step

    model, x = Shifted(), torch.rand(2, 4)
    divided = split(model, plan_at(capture(model, (x,)), 1, 2))
    for net in (divided, divided, copy.deepcopy(divided)):
        torch.testing.assert_close(net(x), model(x))
        assert not net.state_dict()


class InPlace(nn.Module):
    """A sum in place behind a cut, or the same sum as a new tensor."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.third, self.in_place = nn.Conv2d(4, 2, 1), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        z = self.second(y)
        if self.in_place:
            z += y
            z = F.relu(F.dropout(z, p=0.0, training=self.training), inplace=True)
        else:
            z = (z + y).relu()
        return self.third(z).mean((2, 3))


def test_a_stage_that_computes_in_place_leaves_what_arrives_as_it_is():
    found = []
    for in_place in (True, False):
        model = InPlace(in_place=in_place)
        graph = capture(model, (images(),))
        parts = split(model, plan_at(graph, find_cut(graph, "second").index)).train()
        arriving = tuple(x.clone() for x in parts.stages[0](images(4)))
        kept = [x.clone() for x in arriving]
        output = parts.stages[1](*arriving)[0]
        assert all(torch.equal(x, k) for x, k in zip(arriving, kept, strict=True))
        output.square().sum().backward()
        found.append((output.detach(), model.third.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_copy_shares_nothing_and_trains_like_the_original():
    model = Attention()
    divided = split_at(model, *usable_cuts(model, images())[4:-1:5])
    copied = copy.deepcopy(divided)
    assert copied.state_dict().keys() == divided.state_dict().keys()
    assert not {*map(id, copied.parameters())} & {*map(id, divided.parameters())}
    torch.manual_seed(0)
    expected = divided(images())
    torch.manual_seed(0)
    assert torch.equal(copied(images()), expected)
    assert torch.equal(copied.eval()(images()), divided.eval()(images()))


def test_masks_and_sizes_are_made_anew_in_every_stage_that_needs_them():
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(x.shape[1], x.shape[1])
            mask[0] = 1
            early = mask @ x
            mask.fill_diagonal_(2)
            late = mask @ early.reshape(x.shape[0] * 2, 2, 4).reshape(x.shape[0], 4, 4)
            rows = torch.arange(x.shape[0]).view(-1, 1, 1)
            return late + rows + torch.ones(x.shape[0], 1, 4)

    model, x = Masked(), torch.rand(3, 4, 4)
    graph = capture(model, (x,))
    indices = [cut.index for cut in cuts(graph) if not cut.obstacle]
    divided = split(model, plan_at(graph, *indices))
    torch.testing.assert_close(divided(x), model(x))
    assert divided.to("meta")(x.to("meta")).is_meta  # they follow the stage's inputs


def test_random_numbers_cross_as_they_were_drawn():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn(x.shape[0], 4)
            return F.dropout(x, 0.5, training=True) * noise + noise

    model, x = Noise(), torch.rand(3, 4)
    divided = split(model, plan_at(capture(model, (x,)), 1, 2, 3))
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(divided(x), expected)


def test_what_the_model_returns_keeps_its_form():
    class Several(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
            a, b = (x * y).chunk(2, 1)
            return b, [a.relu(), x]

    model, inputs = Several(), (torch.rand(2, 4), torch.rand(2, 4))
    graph = capture(model, inputs)
    for index in range(len(graph.nodes) + 1):
        found = split(model, plan_at(graph, index))(*inputs)
        torch.testing.assert_close(found, model(*inputs))
        assert isinstance(found, tuple)
        assert isinstance(found[1], list)


class Doubling(nn.Module):
    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(2 * tensor for tensor in tensors)


def test_codecs_stand_on_the_crossings():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.rand(2, 4)
    divided = split(model, plan_at(capture(model, (x,)), 1), [Doubling()])
    torch.testing.assert_close(divided(x), model[1](2 * model[0](x)))


def test_a_device_that_relays_does_not_code_again():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.rand(2, 4)
    divided = split(model, plan_at(capture(model, (x,)), 1, 1), [Doubling(), Doubling()])
    torch.testing.assert_close(divided(x), model[1](2 * model[0](x)))


def test_all_or_nothing_may_run_on_either_device():
    model, x = chain().eval(), images()
    for index in (0, 8):
        torch.testing.assert_close(split_at(model, index)(x), model(x))


def test_the_split_model_starts_in_the_models_mode():
    assert split_at(chain().eval(), 2).training is False
    assert split_at(chain().train(), 2).training is True


def test_splitting_leaves_modes_and_random_numbers_alone():
    model = residual()
    model.get_submodule("1").eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    split_at(model, 3)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_a_plan_for_another_model_is_refused():
    plan = plan_at(capture(chain(), (images(),)), 2)
    with pytest.raises(InputError, match="not for this model"):
        split(residual(), plan)
    crossing = plan.crossings[0]
    wider = tuple((2 * channels, *rest) for channels, *rest in crossing.shapes)
    plan = replace(plan, crossings=(replace(crossing, shapes=wider),))
    with pytest.raises(InputError, match=r"the plan sends samples of .* the model makes .* anew"):
        split(chain(), plan)


def test_a_stage_on_a_device_that_the_platform_lacks_is_refused():
    plan = plan_at(capture(chain(), (images(),)), 2)
    stages = (replace(plan.stages[0], device="elsewhere"), *plan.stages[1:])
    with pytest.raises(InputError, match="no device 'elsewhere'"):
        split(chain(), replace(plan, stages=stages))


def test_the_number_of_codecs_must_fit():
    with pytest.raises(InputError, match="2 codecs for 1 crossings"):
        split_at(chain(), 2, codecs=[nn.Identity(), nn.Identity()])


def test_a_crossing_whose_batch_is_elsewhere_is_refused():
    model = MultiHead()
    plan = plan_at(graph := capture(model, (images(),)), find_cut(graph, "transpose_1").index)
    with pytest.raises(CaptureError, match="dimension 0 of 'transpose_1' is not the batch"):
        split(model, plan)


def test_a_name_that_torch_fx_needs_is_refused():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.graph(x)

    model = Named()
    plan = plan_at(capture(model, (torch.zeros(2, 4),)), 0)
    with pytest.raises(CaptureError, match="'graph' in the model"):
        split(model, plan)


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_every_stage_exports_to_onnx(name):
    torch.manual_seed(0)
    model = NETS[name].make().eval()
    indices = usable_cuts(model, images())
    tensors: tuple[Tensor, ...] = (images(1),)
    for stage in split_at(model, indices[len(indices) // 2]).stages:
        with quiet("torch.onnx"), read_once():
            program = torch.onnx.export(stage, tensors, dynamo=True, verbose=False)
        assert program is not None
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        names = [value.name for value in session.get_inputs()]
        feed = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        with torch.no_grad():
            tensors = stage(*tensors)
        for found, expected in zip(session.run(None, feed), tensors, strict=True):
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)
