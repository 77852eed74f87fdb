"""What ideas of hardware would save on a network: counted, not measured, one sample a time.

Layers are convolutions of any number of dimensions and linear layers, each of these a convolution
of one place. Padding counts as zeros that are read.

Shapes: M channels made and C read, g groups; a kernel of K places (S in its last dimension), O
places made (F in a row), P places read with padding (W in a row); N rows, I inner, J columns.

References:
    Lee et al., ACM Computing Surveys 2023 (which ideas there are).
    Chetlur et al., "cuDNN", 2014, https://arxiv.org/abs/1410.0759 (im2col).
    Mathieu, Henaff, LeCun, ICLR 2014, https://arxiv.org/abs/1312.5851 (FFT).
    Lavin, Gray, CVPR 2016, https://arxiv.org/abs/1509.09308 (Winograd).
    Strassen, Numerische Mathematik 13, 1969; Cong, Xiao, ICANN 2014 (on convolutions).
    Albericio et al., "Cnvlutin", ISCA 2016; Parashar et al., "SCNN", ISCA 2017,
    https://arxiv.org/abs/1708.04485 (zeros).
    Hegde et al., "UCNN", ISCA 2018, https://arxiv.org/abs/1804.06508 (repeated weights).
    Chen, Emer, Sze, "Eyeriss", ISCA 2016 (dataflows).
    Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, log2, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.compress.technique import watch
from isthmus.errors import InputError
from isthmus.models.layers import WEIGHTED, Integer, round_to_int8

_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a layer and of what passes it, for one sample.

    Attributes:
        made: M.
        read: C.
        groups: g.
        kernel: Places of the kernel, by dimension.
        stride: By dimension.
        dilation: By dimension.
        out: Places made, by dimension.
    """

    made: int
    read: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, ...]:
        """Places read, by dimension: from the first to the last, those of padding too."""
        each = zip(self.out, self.stride, self.kernel, self.dilation, strict=True)
        return tuple((o - 1) * s + (k - 1) * d + 1 for o, s, k, d in each)

    @property
    def macs(self) -> int:
        """M C/g K O."""
        return self.made * self.read // self.groups * prod(self.kernel) * prod(self.out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accesses:
    """To the buffer beyond an arithmetic unit's own registers, in elements.

    Attributes:
        weights: Read.
        inputs: Read.
        sums: Partial sums written and, but for the first of each, read.
    """

    weights: int
    inputs: int
    sums: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.inputs + self.sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What one call of a layer would take, for one sample.

    Attributes:
        path: Of the layer.
        macs: Multiplications of the sum as it is written; im2col, which makes it one product of
            matrices, takes as many.
        inputs: Elements read, without padding.
        im2col: Elements of the matrix that im2col makes of them.
        fft: Multiplications by Fourier transforms; None for a kernel of one place.
        winograd_2: By Winograd's F(2, r); None but for kernels of one size over 1 at stride 1.
        winograd_4: By F(4, r).
        strassen: Of the matrices of im2col, halved as often as that saves.
        repeated: Where each channel multiplies once by each of its different weights but 0.
        nonzero_inputs: MACs whose input is not 0, the mean of the samples; None without data.
        nonzero: MACs of which neither is 0.
        accesses: By dataflow: the least with one arithmetic unit that holds what is stationary.
        num_bytes: Of inputs, weights and outputs, each once.
    """

    path: str
    macs: int
    inputs: int
    im2col: int
    fft: int | None
    winograd_2: int | None
    winograd_4: int | None
    strassen: int
    repeated: int
    nonzero_inputs: float | None
    nonzero: float | None
    accesses: Mapping[str, Accesses]
    num_bytes: int

    @property
    def macs_per_byte(self) -> float:
        """The roofline's intensity: a device of more MAC/s for each byte/s waits for memory."""
        return self.macs / self.num_bytes


def fft(shape: Shape) -> int | None:
    r"""Count real multiplications by Fourier transforms of radix 2, weights transformed before.

    .. math:: 3 \left( (C + M) \frac{n \log_2 n}{4} + \frac{M C}{g} \left(\frac{n}{L} \right)
              \left(\frac{L}{2} + 1\right) \right)

    n is the product of the padded sizes, each rounded up to a power of two, L the last of them; a
    complex product takes three real ones, and of real data half the transform is enough.
    """
    if prod(shape.kernel) == 1:
        return None
    sizes = [2 ** ceil(log2(size)) for size in shape.padded]
    n, last = prod(sizes), sizes[-1]
    transforms = (shape.read + shape.made) * n * int(log2(n)) // 4
    products = shape.made * shape.read // shape.groups * (n // last) * (last // 2 + 1)
    return 3 * (transforms + products)


def winograd(shape: Shape, tile: int) -> int | None:
    r"""Count multiplications of F(m, r): :math:`M C/g \; tiles \; (m + r - 1)^d`.

    Those by the constants of the transforms are not counted, as in the paper.
    """
    sizes = set(shape.kernel)
    if len(sizes) > 1 or sizes == {1} or set(shape.stride) | set(shape.dilation) != {1}:
        return None
    tiles = prod(-(-size // tile) for size in shape.out)
    each = (tile + shape.kernel[0] - 1) ** len(shape.kernel)
    return shape.made * shape.read // shape.groups * tiles * each


@cache
def strassen(rows: int, inner: int, columns: int) -> int:
    """Count multiplications of a product of matrices (N, I) and (I, J), seven for eight.

    Odd sizes are made even; it halves as long as that saves.

    Example:
        >>> strassen(2, 2, 2), strassen(4, 4, 4), strassen(3, 1, 5)
        (7, 49, 15)
    """
    plain = rows * inner * columns
    if min(rows, inner, columns) < 2:
        return plain
    return min(plain, 7 * strassen(-(-rows // 2), -(-inner // 2), -(-columns // 2)))


def accesses(shape: Shape) -> dict[str, Accesses]:
    """Count accesses for each dataflow, with one arithmetic unit.

    Its registers hold one weight, one partial sum or one input; for ``row`` a row of the kernel,
    as many inputs, and one partial sum, while it makes a row of the output; for ``none`` nothing.
    Whatever is not held is read at each MAC, and a partial sum is read and written.
    """
    macs, outputs = shape.macs, shape.made * prod(shape.out)
    weights = shape.made * shape.read // shape.groups * prod(shape.kernel)
    inputs = shape.read * prod(_touched(shape, dim) for dim in range(len(shape.out)))
    rows = macs // (shape.kernel[-1] * shape.out[-1])  # pairs of a kernel's row and an output's
    sums = 2 * macs - outputs
    row = Accesses(
        weights=weights,
        inputs=rows * _touched(shape, -1),
        sums=2 * macs // shape.kernel[-1] - outputs,
    )
    return {
        "none": Accesses(weights=macs, inputs=macs, sums=sums),
        "weight": Accesses(weights=weights, inputs=macs, sums=sums),
        "output": Accesses(weights=macs, inputs=macs, sums=outputs),
        "input": Accesses(weights=macs, inputs=inputs, sums=sums),
        "row": row,
    }


def _touched(shape: Shape, dim: int) -> int:
    """Return how many places of a dimension some window covers."""
    kernel, stride = shape.kernel[dim], shape.stride[dim]
    steps, places = range(shape.out[dim]), range(kernel)
    return len({o * stride + k * shape.dilation[dim] for o in steps for k in places})


def repeated(weight: Tensor, shape: Shape) -> int:
    """Count multiplications where inputs of equal weights (M, ...) are summed first."""
    rows = weight.detach().flatten(1)
    different = sum(int(torch.count_nonzero(row.unique())) for row in rows)
    return different * prod(shape.out)


def count_savings(
    model: nn.Module, example: tuple[Tensor, ...], inputs: tuple[Tensor, ...] = ()
) -> tuple[Savings, ...]:
    """Count for each layer with weights, in the order of its calls.

    Args:
        model: Run in evaluation.
        example: Inputs of one sample or more.
        inputs: Real samples (N, ...), of which zeros are counted; empty for none.

    Raises:
        InputError: The model has no such layer.
    """
    called: list[tuple[str, Any, Shape, int, int]] = []
    zeros: list[tuple[float, float]] = []
    kinds = (*WEIGHTED, Integer)
    named = {module: path for path, module in model.named_modules() if type(module) in kinds}

    def look(module: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        x = arguments[0]
        elements = x.numel()  # of one sample, wherever its batch lies
        moved = (elements + made.numel()) * x.element_size()
        if isinstance(module, Integer) and module.inputs:  # what reads its output rounds that
            moved = ceil((elements * module.input_bits + made.numel() * module.output_bits) / 8)
        called.append((named[module], module, _shape(module, made), elements, moved))

    def measure(module: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        zeros.append(_nonzero(module, arguments[0]))

    watch(model, dict.fromkeys(named, look), [x[:1] for x in example])
    if not called:
        raise InputError("--savings: found no convolution and no linear layer in the model")
    sums = [(0.0, 0.0)] * len(called)
    for start in range(0, len(inputs[0]) if inputs else 0, _BATCH):
        zeros.clear()
        watch(model, dict.fromkeys(named, measure), [x[start : start + _BATCH] for x in inputs])
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, zeros, strict=True)]
    num = len(inputs[0]) if inputs else 0
    return tuple(
        Savings(
            path=path,
            macs=shape.macs,
            inputs=elements,
            im2col=shape.read * prod(shape.kernel) * prod(shape.out),
            fft=fft(shape),
            winograd_2=winograd(shape, 2),
            winograd_4=winograd(shape, 4),
            strassen=shape.groups * strassen(
                shape.made // shape.groups,
                shape.read // shape.groups * prod(shape.kernel),
                prod(shape.out),
            ),
            repeated=repeated(module.weight, shape),
            nonzero_inputs=of_inputs / num if num else None,
            nonzero=of_both / num if num else None,
            accesses=accesses(shape),
            num_bytes=moved + _weight_bytes(module),
        )
        for (path, module, shape, elements, moved), (of_inputs, of_both) in zip(
            called, sums, strict=True
        )
    )  # fmt: skip


def _weight_bytes(module: Any) -> int:
    bits = module.bits if isinstance(module, Integer) else 8 * module.weight.element_size()
    return ceil(module.weight.numel() * bits / 8)


def _shape(module: nn.Module, made: Tensor) -> Shape:
    layer: Any = module.layer if isinstance(module, Integer) else module
    if isinstance(layer, nn.Linear):
        places = made.numel() // layer.out_features
        one = (1,)
        return Shape(
            made=layer.out_features, read=layer.in_features, groups=1, kernel=one, stride=one,
            dilation=one, out=(places,),
        )  # fmt: skip
    return Shape(
        made=layer.out_channels, read=layer.in_channels, groups=layer.groups,
        kernel=layer.kernel_size, stride=layer.stride, dilation=layer.dilation,
        out=tuple(made.shape[2:]),
    )  # fmt: skip


def _nonzero(module: Any, x: Tensor) -> tuple[float, float]:
    """Return how many MACs of a batch have an input that is not 0, and how many no 0 at all."""
    layer = module
    if isinstance(module, Integer):
        layer = module.layer
        if module.inputs:
            x = round_to_int8(x, module.input_scale, module.input_zero, module.input_bits)
    used, weight = (x != 0).float(), module.weight
    ones = (torch.ones_like(weight, dtype=torch.float32), (weight != 0).float())
    if isinstance(layer, nn.Linear):
        made = [F.linear(used, mask) for mask in ones]
    else:
        made = [layer._conv_forward(used, mask, None) for mask in ones]
    of_inputs, of_both = (float(y.double().sum()) for y in made)
    return of_inputs, of_both
