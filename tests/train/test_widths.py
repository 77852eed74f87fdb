"""A fit of a nested link gives every width, and says what each is worth."""

import numpy as np
import pytest
import torch

from isthmus.train import FitConfig, accuracy, fit_crossings, measure_widths, split_with_codecs
from isthmus.wire.nested import widths
from tests.train.test_crossings import plan_of, trained

CODECS = ("bottleneck:ratio=1,bits=8,nested=1", "bottleneck:ratio=1,bits=8,nested=1+entropy")


def fitted(codec):
    data, model = trained()
    split_model = split_with_codecs(model, plan_of(model, codec))
    fit_crossings(split_model, data, FitConfig(epochs=8, batch_size=16))
    return data, split_model


def receiver_of(split_model):
    return split_model.codecs[0].receiver.halves[0]


@pytest.mark.long
@pytest.mark.parametrize("codec", CODECS)
def test_every_width_is_worth_what_its_payloads_are_on_the_far_side(codec):
    data, split_model = fitted(codec)
    results = measure_widths(split_model, data.x_test, data.y_test)
    (link,) = split_model.codecs
    assert {result.width for result in results} < set(widths(link.spec))
    with torch.no_grad():
        tensors = split_model.stages[0](*map(torch.from_numpy, data.x_test))
        for result in results:
            payloads = link.compress(tensors, width=result.width)
            (scores,) = split_model.stages[1](*link.decompress(payloads))
            right = (scores.argmax(dim=1).numpy() == data.y_test).mean()
            assert result.accuracy == pytest.approx(right)
            assert result.payload_bytes == pytest.approx(np.mean([len(p) for p in payloads]))
    assert results[0].accuracy == accuracy(split_model, data.x_test, data.y_test)
    sizes = [r.payload_bytes for r in results if r.width.bits == 8]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.long
def test_training_for_all_widths_is_worth_more_at_the_narrow_ones_than_cutting_afterwards():
    data, nested = fitted(CODECS[0])
    _, cut = trained()
    plain = split_with_codecs(cut, plan_of(cut, CODECS[0].replace(",nested=1", "")))
    fit_crossings(plain, data, FitConfig(epochs=8, batch_size=16))
    cut_off = split_with_codecs(cut, plan_of(cut, CODECS[0]))
    ours, theirs = (receiver_of(m) for m in (cut_off, plain))
    ours.kept, ours.widen = (), theirs.widen  # the same weights for every ratio
    cut_off.load_state_dict(plain.state_dict())
    wanted, found = (
        np.mean([r.accuracy for r in measure_widths(m.eval(), data.x_test, data.y_test)])
        for m in (nested, cut_off)
    )
    assert wanted > found + 0.01


def test_other_codecs_have_no_widths():
    data, model = trained()
    split_model = split_with_codecs(model, plan_of(model)).eval()
    assert measure_widths(split_model, data.x_test, data.y_test) == ()
