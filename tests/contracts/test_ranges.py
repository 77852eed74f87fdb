"""What every way to choose a range promises, over the whole table."""

import pytest
import torch

from isthmus.errors import InputError
from isthmus.links.ranges import RANGES, num_steps
from isthmus.wire import parse_codec

SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
EVERY = pytest.mark.parametrize("name", RANGES)
NUM = 20_000


def exponential(generator):
    return -torch.log1p(-torch.rand(NUM, generator=generator, dtype=torch.float64))


def samples():
    """Return values (M, C): Gauss, Laplace, after a ReLU, far from 0, small, below 0."""
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(NUM, generator=generator, dtype=torch.float64)
    laplace = exponential(generator) - exponential(generator)
    columns = [gauss, laplace, gauss.relu(), gauss + 50, laplace * 1e-6, -exponential(generator)]
    return torch.stack(columns, dim=1).float()


def squared_errors(x_MC, low_C, high_C, *, bits, symmetric):
    """Quantize as the definition says and return the mean squared error of each channel."""
    x_MC, low_C, high_C = x_MC.double(), low_C.double(), high_C.double()
    step_C = (high_C - low_C) / num_steps(bits, symmetric=symmetric)
    level_MC = ((torch.clamp(x_MC, low_C, high_C) - low_C) / step_C).round()
    return (level_MC * step_C + low_C - x_MC).square().mean(dim=0)


def column(*values):
    return torch.tensor(values)[:, None]


def test_a_codec_can_be_told_every_range():
    for name in RANGES:
        spec = parse_codec(f"uniform:range={name}", shapes=[(3,)], dtypes=["float32"])
        assert spec.range == name
    with pytest.raises(InputError, match=f"expected {' or '.join(RANGES)}$"):
        parse_codec("uniform:range=none", shapes=[(3,)], dtypes=["float32"])


def ends(name, x_MC, *, bits, symmetric):
    low_C, high_C = RANGES[name](x_MC, bits=bits, symmetric=symmetric)
    return low_C.item(), high_C.item()


@EVERY
@SYMMETRIC
class TestEveryRange:
    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_a_range_lies_within_the_values_and_has_a_width(self, name, symmetric, bits):
        x_MC = samples()
        low_C, high_C = RANGES[name](x_MC, bits=bits, symmetric=symmetric)
        assert low_C.shape == high_C.shape == (x_MC.shape[1],)
        assert low_C.dtype == high_C.dtype == torch.float32
        assert low_C.isfinite().all()
        assert (low_C < high_C).all()
        slack_C = 1e-5 * x_MC.abs().amax(dim=0)
        if symmetric:
            assert torch.equal(low_C, -high_C)
            assert (high_C <= x_MC.abs().amax(dim=0) + slack_C).all()
        else:
            assert (low_C >= x_MC.amin(dim=0) - slack_C).all()
            assert (high_C <= x_MC.amax(dim=0) + slack_C).all()

    def test_a_channel_that_never_changes_is_covered(self, name, symmetric):
        x_MC = torch.tensor([[7.5, -2.0, 0.0]]).expand(1000, 3)
        low_C, high_C = RANGES[name](x_MC, bits=4, symmetric=symmetric)
        reach_C = x_MC[0].abs()
        torch.testing.assert_close(high_C, reach_C if symmetric else x_MC[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(low_C, -reach_C if symmetric else x_MC[0], rtol=1e-6, atol=0)

    def test_one_value_is_enough(self, name, symmetric):
        low_C, high_C = RANGES[name](torch.tensor([[3.0]]), bits=4, symmetric=symmetric)
        assert (low_C.item(), high_C.item()) == (-3.0 if symmetric else 3.0, 3.0)

    def test_the_range_grows_with_the_values(self, name, symmetric):
        x_MC = samples()[:, :3]
        low_C, high_C = RANGES[name](x_MC, bits=4, symmetric=symmetric)
        twice = RANGES[name](2 * x_MC, bits=4, symmetric=symmetric)
        torch.testing.assert_close(twice, (2 * low_C, 2 * high_C))

    def test_a_channel_is_chosen_for_by_itself(self, name, symmetric):
        x_MC = samples()
        low_C, high_C = RANGES[name](x_MC, bits=4, symmetric=symmetric)
        alone = RANGES[name](x_MC[:, 1:2], bits=4, symmetric=symmetric)
        torch.testing.assert_close(alone, (low_C[1:2], high_C[1:2]), rtol=0.02, atol=0)


@SYMMETRIC
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("name", ["mse", "octav"])
def test_what_minimizes_the_error_errs_no_more_than_minmax_does(name, bits, symmetric):
    x_MC = samples()[:, :2]
    errors_C, most_C = (
        squared_errors(
            x_MC,
            *RANGES[which](x_MC, bits=bits, symmetric=symmetric),
            bits=bits,
            symmetric=symmetric,
        )
        for which in (name, "minmax")
    )
    # octav minimizes a model of the error, which takes a grid for one level wider than it is
    assert (errors_C <= most_C * (1.01 if name == "octav" else 1)).all()
    assert bits > 4 or (errors_C < 0.8 * most_C).all()


@pytest.mark.parametrize("name", ["mse", "octav"])
def test_a_search_through_many_values_looks_at_those_of_every_channel(name):
    x_MC = torch.zeros(1 << 19, 4)
    x_MC[:, 3] = torch.linspace(-1, 1, 1 << 19)
    low, high = ends(name, x_MC.reshape(-1, 1), bits=8, symmetric=False)
    assert low == pytest.approx(-1, abs=0.02)
    assert high == pytest.approx(1, abs=0.02)


def test_minmax_covers_all():
    assert ends("minmax", column(-1.0, 3.0, 0.5), bits=4, symmetric=False) == (-1.0, 3.0)
    assert ends("minmax", column(-1.0, 3.0, 0.5), bits=4, symmetric=True) == (-3.0, 3.0)


def test_average_moves_a_tenth_of_the_way_with_every_run():
    x_MC = torch.zeros(3 * 256, 1)
    x_MC[10], x_MC[256 + 10], x_MC[512 + 10] = 1.0, 2.0, -1.0
    low_C, high_C = RANGES["average"](x_MC, bits=4, symmetric=False)
    assert high_C.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2))
    assert low_C.item() == pytest.approx(-0.1)


def test_percentile_leaves_out_one_of_ten_thousand_at_each_end():
    x_MC = torch.arange(20_000.0)[:, None] - 10_000
    low_C, high_C = RANGES["percentile"](x_MC, bits=4, symmetric=False)
    assert (low_C.item(), high_C.item()) == (-9_998, 9_997)


def test_mse_gives_up_one_outlier_for_what_many_gain():
    x_MC = torch.cat([torch.linspace(-1, 1, 10_001), torch.tensor([5.0])])[:, None]
    low_C, high_C = RANGES["mse"](x_MC, bits=3, symmetric=False)
    assert low_C.item() == pytest.approx(-1, abs=0.11)
    assert high_C.item() == pytest.approx(1, abs=0.11)


def test_mse_keeps_the_ends_of_a_grid_that_fits():
    x_MC = torch.arange(-3.0, 5.0)[:, None]
    assert ends("mse", x_MC, bits=3, symmetric=False) == (-3.0, 4.0)


def test_kl_keeps_all_of_a_flat_distribution():
    x_MC = torch.linspace(-1, 1, 20_480 * 2 + 1)[:, None]
    _, high_C = RANGES["kl"](x_MC, bits=8, symmetric=True)
    assert high_C.item() == pytest.approx(1, abs=0.01)


def test_kl_gives_up_a_far_outlier_down_to_a_bin_for_each_level():
    x_MC = torch.cat([torch.linspace(-1, 1, 20_001), torch.tensor([20.0])])[:, None]
    _, high_C = RANGES["kl"](x_MC, bits=8, symmetric=True)
    assert high_C.item() == pytest.approx(20 * 128 / 2048)


# The factors that the authors' code lists (github.com/submission2019/cnn-quantization).
@pytest.mark.parametrize(("bits", "factor"), [(2, 2.83), (3, 3.89), (4, 5.03)])
def test_aciq_clips_a_laplace_distribution_where_the_paper_does(bits, factor):
    x_MC = torch.cat(
        [torch.full((1000,), 0.5), torch.full((1000,), -0.5), column(9.0, -9.0)[:, 0]]
    )
    scale = float(x_MC.abs().mean())
    low_C, high_C = RANGES["aciq-laplace"](x_MC[:, None], bits=bits, symmetric=False)
    assert high_C.item() / scale == pytest.approx(factor, abs=0.01)
    assert low_C.item() == pytest.approx(-high_C.item(), rel=1e-5)


@pytest.mark.parametrize(("bits", "factor"), [(2, 1.71), (3, 2.15), (4, 2.55)])
def test_aciq_clips_a_gaussian_where_the_paper_does(bits, factor):
    x_MC = torch.cat(
        [torch.full((1000,), 0.5), torch.full((1000,), -0.5), column(9.0, -9.0)[:, 0]]
    )
    deviation = float(x_MC.square().mean().sqrt())
    low_C, high_C = RANGES["aciq-gauss"](x_MC[:, None], bits=bits, symmetric=False)
    assert high_C.item() / deviation == pytest.approx(factor, abs=0.01)
    assert low_C.item() == pytest.approx(-high_C.item(), rel=1e-5)


@pytest.mark.parametrize(("bits", "sides"), [(3, 3), (4, 3)])
def test_octav_ends_where_its_equation_holds(bits, sides):
    x_M = samples()[:, 1]
    _, (high,) = RANGES["octav"](x_M[:, None], bits=bits, symmetric=True)
    size_M = x_M.abs()
    beyond_M = size_M >= high
    below = float((size_M < high).sum())
    balance = float(size_M[beyond_M].sum()) / (4.0**-bits / sides * below + int(beyond_M.sum()))
    assert float(high) == pytest.approx(balance, rel=1e-4)


@pytest.mark.parametrize(("bits", "most"), [(1, 4), (2, 1.4), (3, 1.06), (4, 1.06)])
@SYMMETRIC
def test_octav_errs_as_little_as_mse_from_3_bits_on(bits, most, symmetric):
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(NUM, generator=generator)
    laplace = (exponential(generator) - exponential(generator)).float()
    x_MC = torch.stack([gauss, laplace, gauss.relu(), laplace.relu()], dim=1)
    error_C = {
        name: squared_errors(
            x_MC,
            *RANGES[name](x_MC, bits=bits, symmetric=symmetric),
            bits=bits,
            symmetric=symmetric,
        )
        for name in ("mse", "octav")
    }
    assert (error_C["octav"] <= most * error_C["mse"]).all()


def test_octav_counts_the_zeros_of_a_relu_in_no_distribution():
    x_M = samples()[:, 2]
    found = RANGES["octav"](x_M[:, None], bits=4, symmetric=False)
    positive = RANGES["octav"](
        torch.cat([x_M[x_M > 0], torch.zeros(1)])[:, None], bits=4, symmetric=False
    )
    torch.testing.assert_close(found, positive)


def test_a_symmetric_grid_has_0_among_its_levels_from_2_bits_on():
    assert [num_steps(bits, symmetric=True) for bits in (1, 2, 3, 8)] == [1, 2, 6, 254]
    assert [num_steps(bits, symmetric=False) for bits in (1, 2, 3, 8)] == [1, 3, 7, 255]
