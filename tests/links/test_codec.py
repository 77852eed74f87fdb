from copy import deepcopy

import pytest
import torch

from isthmus.errors import InputError
from isthmus.links import make_codec
from isthmus.links.density import Density
from isthmus.wire import parse_codec


def make(text, *shapes, dtype="float32"):
    torch.manual_seed(0)
    return make_codec(parse_codec(text, shapes=shapes, dtypes=[dtype] * len(shapes)))


def feature_map(*, channels=16, rank=16, size=9, batch=8):
    """Return activations (B, C, H, W) that span ``rank`` of their channels, as a relu's do."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(batch, rank, size, size, generator=generator)
    strength = 0.8 ** torch.arange(rank)
    mixing = torch.randn(channels, rank, generator=generator)
    return torch.einsum("cr,brhw->bchw", mixing * strength, factors) + 2


def relative_error(codec, x):
    """Return the share of the variance that is lost on the way."""
    with torch.no_grad():
        (restored,) = codec.eval()((x,))
    return float((restored - x).square().mean() / x.var())


@pytest.mark.parametrize("shape", [(5, 3, 7), (7, 9), (11,), (), (2, 3, 4, 5)])
def test_a_calibrated_uniform_codec_is_within_half_a_step(shape):
    codec = make("uniform:bits=8", shape)
    x = 100 * torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    codec.calibrate((x,))
    (restored,) = codec.eval()((x,))
    half_step = codec.sender.halves[0].affine.step / 2
    assert ((restored - x).abs() <= 1.001 * half_step).all()


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_symmetric_grid_restores_0_exactly_and_clips_both_ends_alike(bits, per):
    codec = make(f"uniform:bits={bits},per={per},symmetric=1", (3, 4, 4))
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.3
    codec.calibrate((x,))
    codec.eval()
    (zeros,) = codec((torch.zeros(1, 3, 4, 4),))
    assert torch.equal(zeros, torch.zeros(1, 3, 4, 4))
    (above,), (below,) = (
        codec((100 * torch.ones(1, 3, 4, 4),)),
        codec((-100 * torch.ones(1, 3, 4, 4),)),
    )
    torch.testing.assert_close(above, -below)
    assert float(above.max()) == pytest.approx(float(x.abs().max()))


def test_one_range_for_the_tensor_covers_its_widest_channel():
    codec = make("uniform:bits=8,per=tensor", (2, 3, 3))
    x = torch.rand(4, 2, 3, 3) * torch.tensor([1.0, 1000.0])[:, None, None]
    codec.calibrate((x,))
    assert codec.sender.halves[0].affine.low.shape == (1, 1, 1)
    assert float(codec.sender.halves[0].affine.step) == pytest.approx(
        float(x.max() - x.min()) / 255
    )


def test_a_clipped_range_restores_more_of_what_has_outliers():
    # symmetric, for most values lie by 0: octav reckons with a level there
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, 8, 8, generator=generator) ** 3
    errors = {}
    for way in ("minmax", "mse", "octav"):
        codec = make(f"uniform:bits=3,range={way},symmetric=1", (4, 8, 8))
        codec.calibrate((x,))
        errors[way] = relative_error(codec, x)
    assert max(errors["mse"], errors["octav"]) < errors["minmax"] / 2


def test_each_channel_has_its_own_range():
    codec = make("uniform:bits=8", (2, 3, 3))
    x = torch.rand(4, 2, 3, 3) * torch.tensor([1.0, 1000.0])[:, None, None]
    codec.calibrate((x,))
    (restored,) = codec.eval()((x,))
    assert (restored - x)[:, 0].abs().max() < 0.003


def test_a_channel_that_never_changes_is_restored():
    codec = make("uniform:bits=2", (3, 2, 2))
    x = torch.full((4, 3, 2, 2), 7.5)
    codec.calibrate((x,))
    assert torch.equal(codec.eval()((x,))[0], x)


def test_half_precision_survives_large_values():
    x = torch.tensor([[1e9, -1e9, 0.1]])
    assert make("raw:bits=16", (3,)).eval()((x,))[0].isfinite().all()


def test_one_bit_gives_a_channel_that_is_always_0_back():
    codec = make("uniform:bits=1,symmetric=1", (2, 3, 3))
    x = torch.randn(4, 2, 3, 3) * torch.tensor([0.0, 1.0])[:, None, None]
    codec.calibrate((x,))
    assert codec.eval()((x,))[0][:, 0].abs().max() < 1e-6


def test_raw_carries_a_mask_of_infinities_and_refuses_what_is_no_number():
    codec, mask = make("raw", (3,)).eval(), torch.tensor([[0.0, -torch.inf, 1.0]])
    codec.calibrate((mask,))
    assert torch.equal(codec.decompress(codec.compress((mask,)))[0], mask)
    with pytest.raises(InputError, match="NaN"):
        codec.calibrate((mask * 0,))


def test_before_an_entropy_code_a_faint_channel_is_one_symbol():
    codec = make("bottleneck:ratio=1,bits=8+entropy", (16, 9, 9))
    x = feature_map(rank=4, batch=16)
    codec.calibrate((x + 0.01 * torch.randn(x.shape),))
    with torch.no_grad():
        (symbols,) = codec.eval().sender((x,))
    assert sum(len(symbol_BHW.unique()) == 1 for symbol_BHW in symbols.unbind(1)) == 12


def test_calibration_bears_outliers_on_both_sides():
    codec, x = make("bottleneck:ratio=1,bits=4+entropy", (4, 3, 3)), torch.randn(512, 4, 3, 3)
    x[0, 0, 0, :2] = torch.tensor([1e12, -1e12])
    codec.calibrate((x,))
    assert codec.eval()((x,))[0].isfinite().all()


def test_all_channels_at_8_bits_lose_next_to_nothing():
    codec, x = make("bottleneck:ratio=1,bits=8", (16, 9, 9)), feature_map()
    codec.calibrate((x,))
    assert relative_error(codec, x) < 1e-3


def test_a_map_of_few_independent_channels_fits_through_as_few():
    codec, x = make("bottleneck:ratio=4,bits=8", (16, 9, 9)), feature_map(rank=4)
    codec.calibrate((x,))
    assert relative_error(codec, x) < 1e-3


def test_a_calibrated_bottleneck_beats_a_random_one_by_far():
    codec, x = make("bottleneck:ratio=4,bits=8", (16, 9, 9)), feature_map()
    before = relative_error(codec, x)
    codec.calibrate((x,))
    assert relative_error(codec, x) < before / 4


@pytest.mark.parametrize(
    "x",
    [feature_map(), feature_map().flatten(2).mT, feature_map(batch=512, size=1)[..., 0, 0]],
    ids=["map", "tokens", "vector"],
)
def test_every_bit_brings_the_restored_tensor_closer(x):
    errors = []
    for bits in (2, 3, 4, 6, 8):
        codec = make(f"bottleneck:ratio=2,bits={bits}", tuple(x.shape[1:]))
        codec.calibrate((x,))
        errors.append(relative_error(codec, x))
    assert errors == sorted(errors, reverse=True)


def test_training_narrows_the_loss_of_a_calibrated_bottleneck():
    codec, x = make("bottleneck:ratio=4,bits=2", (16, 9, 9)), feature_map()
    codec.calibrate((x,))
    before = relative_error(codec, x)
    optimizer = torch.optim.Adam(codec.train().parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (codec((x,))[0] - x).square().mean().backward()
        optimizer.step()
    assert relative_error(codec, x) < 0.95 * before


def test_calibration_bears_dead_channels_and_a_single_sample():
    codec = make("bottleneck:ratio=2,bits=4", (4,), (4, 3, 3))
    tensors = (torch.full((1, 4), 3.0), torch.zeros(1, 4, 3, 3))
    codec.calibrate(tensors)
    for restored, x in zip(codec.eval()(tensors), tensors, strict=True):
        torch.testing.assert_close(restored, x, atol=1e-4, rtol=0)


def test_calibration_refuses_what_is_not_finite():
    with pytest.raises(InputError, match="look for NaN"):
        make("uniform", (2,)).calibrate((torch.tensor([[1.0, torch.nan]]),))


@pytest.mark.parametrize("text", ["uniform:range=mse", "bottleneck:ratio=2"])
def test_calibration_refuses_what_is_too_large_to_square(text):
    codec = make_codec(parse_codec(text, shapes=[(4, 2, 2)], dtypes=["float32"]))
    with pytest.raises(InputError, match=r"found activations up to 1e\+19, expected .* at most"):
        codec.calibrate((torch.full((2, 4, 2, 2), 1e19),))


def test_raw_carries_64_bits_as_they_are():
    x = torch.tensor([[1e9 + 0.125, -1 / 3]], dtype=torch.float64)
    codec = make("raw", (2,), dtype="float64").eval()
    payloads = codec.compress((x,))
    assert [len(payload) for payload in payloads] == [16]
    assert torch.equal(codec.decompress(payloads)[0], x)


def test_a_codec_in_training_does_not_compress():
    with pytest.raises(InputError, match=r"call eval\(\) first"):
        make("uniform", (2,)).compress((torch.zeros(1, 2),))


@pytest.mark.parametrize("text", ["uniform:bits=5", "bottleneck:ratio=2,bits=5"])
def test_a_copy_is_calibrated_by_itself_and_in_both_halves(text):
    codec = make(text, (4, 3, 3))
    x = torch.randn(8, 4, 3, 3)
    before = codec.eval()((x,))[0]
    copy = deepcopy(codec)
    copy.calibrate((x,))
    assert torch.equal(codec((x,))[0], before)
    assert relative_error(copy, x) < relative_error(codec, x)


@pytest.mark.parametrize("text", ["uniform:bits=5", "bottleneck:ratio=2,bits=5"])
def test_half_precision_models_get_half_precision_back(text):
    codec = make(text, (4, 3, 3), dtype="float16")
    x = torch.randn(8, 4, 3, 3).half()
    codec.calibrate((x,))
    assert codec.eval()((x,))[0].dtype == torch.float16


def test_a_bottleneck_trains_under_autocast():
    codec, x = make("bottleneck:ratio=2,bits=8", (4, 3, 3)), torch.randn(8, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (restored,) = codec.train()((x,))
    restored.square().mean().backward()
    assert restored.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in codec.parameters())


def test_an_image_through_pixels_is_within_half_a_level():
    codec, x = make("pixels", (3, 5, 5)), torch.rand(2, 3, 5, 5)
    assert ((codec.eval()((x,))[0] - x).abs() <= 0.5001 / 255).all()


def test_an_image_is_carried_as_ever_whatever_was_calibrated():
    x = torch.rand(4, 3, 5, 5) * 0.5 + 0.2
    codec = make("pixels", (3, 5, 5)).eval()
    codec.calibrate((x * 9,))
    codec.calibrate((x,))
    assert torch.equal(codec.sender((x,))[0], (255 * x).round().to(torch.uint8))
    assert torch.equal(codec((x,))[0], (255 * x).round() / 255)


@pytest.mark.parametrize("text", ["pixels", "png"])
def test_floats_outside_an_image_come_back_within_half_a_step_of_their_range(text):
    x = torch.rand(16, 3, 5, 5) * torch.tensor([3.0, 0.5, 100.0])[:, None, None]
    x[:, 2] -= 1000
    codec = make(text, (3, 5, 5))
    codec.calibrate((x,))
    codec.eval()
    (restored,) = codec.decompress(codec.compress((x,)))
    step_C = (x.amax(dim=(0, 2, 3)) - x.amin(dim=(0, 2, 3))) / 255
    assert ((restored - x).abs() <= 0.501 * step_C[:, None, None]).all()


def test_a_channel_that_never_changes_is_restored_through_pixels():
    x = torch.full((4, 1, 2, 2), -1e9)
    codec = make("pixels", (1, 2, 2))
    codec.calibrate((x,))
    assert torch.equal(codec.eval()((x,))[0], x)


def test_a_png_restores_the_pixels():
    x = (torch.rand(2, 1, 5, 5),)
    assert torch.equal(make("png", (1, 5, 5)).eval()(x)[0], make("pixels", (1, 5, 5)).eval()(x)[0])


def test_a_label_keeps_the_choice_and_nothing_else():
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    (restored,) = make("label", (300,)).eval()((scores,))
    assert torch.equal(restored.argmax(dim=1), scores.argmax(dim=1))
    assert restored.unique().tolist() == [0, 1]


def test_a_stride_sends_principal_axes_of_patches_and_restores_what_they_span():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(8, 3, 4, 5, generator=generator)  # each 2x2 patch: 3 factors
    mixing = torch.randn(12, 3, generator=generator)
    x = torch.nn.functional.pixel_shuffle(torch.einsum("dk,bkhw->bdhw", mixing, patches), 2)
    codec = make("bottleneck:ratio=1,stride=2,bits=8", (3, 8, 10))
    codec.calibrate((x,))
    assert codec.spec.wire_tensors[0].shape == (3, 4, 5)
    assert relative_error(codec, x) < 1e-3


def test_a_refinement_is_faint_until_it_is_trained():
    x = feature_map()
    plain, *refined = (
        make(f"bottleneck:ratio=4,stride=2,{hidden}bits=8", (16, 9, 9))
        for hidden in ("", "hidden=8,", "sender_hidden=8,")
    )
    for codec in (plain, *refined):
        codec.calibrate((x,))
    for codec in refined:
        assert abs(relative_error(codec, x) - relative_error(plain, x)) > 0
        assert relative_error(codec, x) < 1.05 * relative_error(plain, x) + 0.01


def test_a_strided_bottleneck_costs_what_its_convolutions_cost():
    spec = parse_codec(
        "bottleneck:ratio=4,stride=2,hidden=8,bits=4", shapes=[(16, 9, 9)], dtypes=["float32"]
    )
    symbols = 4 * 5 * 5
    assert spec.payload_bytes == symbols / 2
    assert spec.encoder_macs == symbols + 25 * (9 * 16 * 4)  # scaling, 3x3 from 16 to 4
    refined = 9 * 4 * 8 + 9 * 8 * 8 + 8 * 64
    assert spec.decoder_macs == symbols + 25 * (4 * 64 + refined)


def test_a_separable_sender_costs_what_its_convolutions_cost():
    text = "bottleneck:ratio=4,stride=2,sender=separable,bits=4"
    spec = parse_codec(text, shapes=[(16, 9, 9)], dtypes=["float32"])
    dense = parse_codec(
        "bottleneck:ratio=4,stride=2,bits=4", shapes=[(16, 9, 9)], dtypes=["float32"]
    )
    assert spec.payload_bytes == dense.payload_bytes
    assert spec.decoder_macs == dense.decoder_macs
    assert spec.encoder_macs == 4 * 25 + 25 * (9 * 16 + 16 * 4)  # scaling, 3x3 alone, 1x1
    assert spec.encoder_buffer_bytes == dense.encoder_buffer_bytes + 4 * 25 * 16


@pytest.mark.parametrize("sender", ["dense", "separable"])
@pytest.mark.parametrize(("shape", "window", "places"), [((16, 9, 9), 9, 25), ((6, 16), 1, 6)])
def test_a_refined_sender_costs_what_its_layers_cost(sender, shape, window, places):
    how = f"stride=2,sender={sender}," if len(shape) == 3 else ""
    plain, refined = (
        parse_codec(f"bottleneck:ratio=4,{how}{hidden}bits=4", shapes=[shape], dtypes=["float32"])
        for hidden in ("", "sender_hidden=8,")
    )
    layers = window * 16 * 8 + window * 8 * 8 + 8 * 4
    assert refined.encoder_macs == plain.encoder_macs + places * layers
    weights = sum(p.numel() for p in make_codec(refined).sender.parameters())
    assert refined.encoder_weight_bytes == 4 * weights
    assert refined.encoder_buffer_bytes == plain.encoder_buffer_bytes + 4 * places * 2 * 8
    assert refined.decoder_macs == plain.decoder_macs


def test_a_refined_sender_learns_what_no_linear_one_can():
    angle = torch.linspace(-3, 3, 256)[:, None] * torch.arange(1, 4)
    x = torch.cat([angle.cos(), angle.sin()], dim=1)  # one number says all six
    errors = []
    for hidden in ("", "sender_hidden=32,"):
        codec = make(f"bottleneck:ratio=6,{hidden}hidden=32,bits=8", (6,))
        codec.calibrate((x,))
        optimizer = torch.optim.Adam(codec.parameters(), 5e-3)
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(codec((x,))[0], x).backward()
            optimizer.step()
        errors.append(relative_error(codec.eval(), x))
    assert errors[1] < 0.7 * errors[0], errors


def test_a_separable_sender_restores_what_each_channel_weighs_alike_in_every_patch():
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(8, 3, 4, 5, generator=generator)
    mixing = torch.randn(6, 3, generator=generator)
    weights_CS = torch.randn(6, 4, generator=generator)  # of a channel's 2x2 patch
    patches = torch.einsum("cs,ck,bkhw->bcshw", weights_CS, mixing, factors).flatten(1, 2)
    x = torch.nn.functional.pixel_shuffle(patches, 2) + 1
    codec = make("bottleneck:ratio=2,stride=2,sender=separable,bits=8", (6, 8, 10))
    codec.calibrate((x,))
    assert relative_error(codec, x) < 1e-3


def test_a_separable_sender_loses_little_more_than_a_dense_one_where_maps_are_smooth():
    x = torch.nn.functional.avg_pool2d(feature_map(size=20), 3, 1)
    errors = []
    for sender in ("dense", "separable"):
        codec = make(f"bottleneck:ratio=4,stride=2,sender={sender},bits=8", (16, 18, 18))
        codec.calibrate((x,))
        errors.append(relative_error(codec, x))
    assert errors[0] < errors[1] < 1.2 * errors[0]
    torch.manual_seed(0)
    random = make("bottleneck:ratio=4,stride=2,sender=separable,bits=8", (16, 18, 18))
    assert errors[1] < relative_error(random, x) / 2


def test_a_stride_where_there_are_no_rows_is_refused():
    with pytest.raises(InputError, match=r"stride=2.*expected \(C, H, W\); use stride=1"):
        make("bottleneck:ratio=2,stride=2,bits=4", (7, 9))


# Worked out by hand: the channel reaches 15 * 7 = 105, so its step is 1. The first vector's
# largest value, 105, takes steps of 15, the second's, 8, of 2, and the third's, 0, of none.
def test_each_vector_has_the_smallest_step_that_reaches_its_largest_value():
    codec = make("uniform:bits=3,per=vector", (1, 1, 40))
    x = torch.zeros(1, 1, 1, 40)
    some = [0, 1, 2, 16, 17]
    x[..., some] = torch.tensor([105.0, 20.0, 0.0, 8.0, 3.0])
    codec.calibrate((x,))
    symbols, scales = codec.eval().sender((x,))
    assert scales.tolist() == [[15, 2, 0]]
    assert symbols.flatten()[some].tolist() == [7, 1, 0, 4, 2]
    assert codec((x,))[0].flatten()[some].tolist() == [105, 15, 0, 8, 4]


def test_a_symmetric_vector_counts_from_zero():
    codec = make("uniform:bits=3,per=vector,symmetric=1", (1, 1, 32))
    x = torch.zeros(1, 1, 1, 32)
    x[..., [0, 1, 16]] = torch.tensor([-45.0, 15.0, 6.0])  # 15 steps of 3 levels each way
    codec.calibrate((x,))
    symbols, scales = codec.eval().sender((x,))
    assert scales.tolist() == [[15, 2]]
    assert symbols.flatten()[[0, 1, 2, 16]].tolist() == [0, 4, 3, 6]
    assert torch.equal(codec((x,))[0], x)


@pytest.mark.parametrize("symmetric", [0, 1])
def test_a_scale_for_each_vector_pays_where_values_lie_far_apart(symmetric):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 16, 16, generator=generator)
    x = x * torch.rand(8, 4, 16, 1, generator=generator) ** 4
    x = x if symmetric else x.relu()
    errors = []
    for per in ("channel", "vector"):
        codec = make(f"uniform:bits=4,symmetric={symmetric},per={per}", (4, 16, 16))
        codec.calibrate((x,))
        errors.append(relative_error(codec, x))
    assert errors[1] < errors[0] / 2


def test_a_separable_sender_bears_a_single_patch():
    text = "bottleneck:ratio=2,stride=2,sender=separable,bits=4"
    codec = make_codec(parse_codec(text, shapes=[(4, 2, 2)], dtypes=["float32"]))
    codec.calibrate((torch.rand(1, 4, 2, 2),))
    assert all(p.isfinite().all() for p in codec.parameters())


def test_a_density_of_one_sample_is_finite():
    density = Density((4,), bits=8)
    symbols = torch.tensor([[0.0, 17.0, 128.0, 255.0]])
    density.calibrate(symbols)
    assert 0 < density(symbols).item() < 4 * 8
