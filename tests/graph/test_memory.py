"""Peak memory of activations beside what torch allocates, run without holding on to anything."""

import weakref

import pytest
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isthmus.graph import live_bytes
from isthmus.split import split
from tests.nets import NETS, captured
from tests.split.plans import plan_at

BATCH = 16


class Meter(TorchDispatchMode):
    """Counts the bytes of every storage from its first appearance until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[int] = set()
        self.now = self.peak = 0

    def hold(self, tensor: Tensor, *, free: bool = False) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.held:
            self.held.add(storage._cdata)
            self.now += 0 if free else storage.nbytes()
            self.peak = max(self.peak, self.now)
            if not free:
                weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())

    def drop(self, key: int, num_bytes: int) -> None:
        self.held.remove(key)
        self.now -= num_bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return result


def measured_bytes(name: str) -> float:
    (stage,) = split(NETS[name].make().eval(), plan_at(captured(name)), eval_form=True).stages
    assert isinstance(stage, fx.GraphModule)
    meter, inputs = Meter(), list(NETS[name].inputs(BATCH))
    for weight in (*stage.parameters(), *stage.buffers()):
        meter.hold(weight, free=True)
    for tensor in inputs:
        meter.hold(tensor)
    del tensor
    with torch.no_grad(), meter:
        fx.Interpreter(stage).boxed_run(inputs)
    return meter.peak / BATCH


@pytest.mark.parametrize(
    "name", ["chain", "residual", "dense", "inverted residual", "branches", "u-net", "video"]
)
def test_the_peak_of_live_bytes_is_what_torch_allocates(name):
    assert max(live_bytes(captured(name))) == measured_bytes(name)


@pytest.mark.parametrize("name", ["attention", "sensors"])
def test_where_there_are_views_it_is_what_a_runtime_needs_that_copies_them(name):
    assert measured_bytes(name) <= max(live_bytes(captured(name))) <= 1.5 * measured_bytes(name)
