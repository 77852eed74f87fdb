"""Weights as integers, and inputs too: batch norms folded, ranges chosen, step sizes learned.

While it can still be trained a layer keeps its float weight and rounds it on the way
(`Rounded`); settled, it holds integers (`isthmus.models.layers.Integer`), which ONNX Runtime
computes with.

Shapes: C channels that a layer makes, K weights of each, M values.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isthmus.compress.sums import find_sums, read_elsewhere
from isthmus.compress.technique import (
    ENDS,
    Apply,
    Options,
    Samples,
    Technique,
    layers,
    needs_data,
    number,
    observed,
    without_ends,
    word,
)
from isthmus.graph import capture
from isthmus.links.ranges import RANGES
from isthmus.models.compressed import replaced
from isthmus.models.layers import (
    BITS,
    OUTPUT_GRID,
    WEIGHTED,
    Integer,
    OutputGrid,
    levels,
    round_output,
)

_KINDS = tuple(WEIGHTED)
_LEAST_SAMPLES = 16
_MOST_OBSERVED = 1 << 16
_TINY = 1e-12


def fold(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    r"""Let each convolution do what the batch norm behind it does.

    .. math:: w' = w \; \gamma / \sigma, \quad b' = (b - \mu) \; \gamma / \sigma + \beta

    Only where nothing else reads the convolution, and both are used once.
    """
    model.eval()
    convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    chosen = layers(model, (*convs, nn.Linear), options, technique="fold")
    graph = capture(model, samples.example)
    readers = graph.readers()
    uses = [node.module for node in graph.nodes if node.macs or node.op == "batch_norm"]
    for node in graph.nodes:
        following = [graph.nodes[k] for k in readers.get(node.outputs[0].name, [])]
        if type(chosen.get(node.module)) not in convs or node.outputs[0].name in graph.outputs:
            continue
        if len(following) != 1 or following[0].op != "batch_norm":
            continue
        norm = model.get_submodule(following[0].module)
        alone = uses.count(node.module) == uses.count(following[0].module) == 1
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not alone:
            continue
        if norm.running_mean is None:  # its statistics are each batch's own
            continue
        conv: Any = chosen[node.module]
        fused = fuse_conv_bn_eval(conv, norm)
        model = replaced(model, node.module, fused, where="fold")
        model = replaced(model, following[0].module, nn.Identity(), where="fold")
    return model


class Steps(nn.Module):
    r"""A symmetric grid whose step sizes are learned.

    .. math:: \hat{x} = s \; round(clamp(x / s, -n, p))

    Rounding passes gradients as 1. What is learned is the logarithm of s: an optimizer that moves
    every weight by about its learning rate would else jump over most steps.

    Args:
        scale: s, of any shape that spreads over x.
        low: -n.
        high: p.

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", ICLR 2020,
        https://arxiv.org/abs/1902.08153 (the gradient of s).
        Jain, Gural, Wu, Dick, "Trained Quantization Thresholds", MLSys 2020,
        https://arxiv.org/abs/1903.08066 (its logarithm).
    """

    def __init__(self, scale: Tensor, *, low: int, high: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(scale.detach().clamp_min(_TINY).log())
        self.low, self.high = low, high

    @property
    def bits(self) -> int:
        """How many its integers take."""
        return (self.high - self.low).bit_length()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the grid holds of x."""
        scale = self.log_scale.exp()
        level = (x / scale).clamp(self.low, self.high)
        return (level + (level.round() - level).detach()) * scale

    def size(self) -> Tensor:
        """Return the step sizes as they are."""
        return self.log_scale.detach().exp()

    def integers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels of x as int8, and the step sizes, flat."""
        scale = self.size()
        level = (x / scale).round().clamp(self.low, self.high)
        return level.to(torch.int8), scale.reshape(-1)


class Signs(nn.Module):
    r"""Weights -1 and 1, or -1, 0 and 1, times a scale for each channel.

    .. math:: t = \begin{cases} sign(w) & |w| > \theta \; mean|w| \\ 0 & else \end{cases},
              \quad \alpha = mean_{t \ne 0} |w|

    :math:`\theta` is 0.7 for three values, and -1 for two: then every weight has a sign, that of 0
    being 1. The gradient passes to w as 1.

    Args:
        threshold: :math:`\theta`.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    @property
    def bits(self) -> int:
        """How many a sign takes."""
        return 1 if self.threshold < 0 else 2

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the weight (C, ...) becomes."""
        sign, scale_C = self.integers(weight.detach())
        scale = scale_C.reshape(-1, *[1] * (weight.ndim - 1))
        return weight + (sign * scale - weight).detach()

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signs as int8, and the scales (C,)."""
        size_CK = weight.abs().flatten(1)
        used_CK = size_CK > self.threshold * size_CK.mean(dim=1, keepdim=True)
        used_CK = used_CK | (self.threshold < 0)  # a sign of one bit is never 0
        scale_C = (size_CK * used_CK).sum(dim=1) / used_CK.sum(dim=1).clamp_min(1)
        sign = torch.where(weight < 0, -1, 1) * used_CK.reshape(weight.shape)
        return sign.to(torch.int8), scale_C.clamp_min(_TINY)


class Rounded(nn.Module):
    """A layer whose weight, and perhaps its input and output, is rounded while it is trained.

    Args:
        layer: With its float weight.
        grid: Of the weight.

    Attributes:
        inputs: Grid of the input; None leaves it as it is.
        outputs: Grid of the output; None leaves it as it is.
        read: What rounded the input before, where it is a sum of integers; in a tuple, as it is no
            part of the layer.
    """

    read: "tuple[RoundedOutput, ...]" = ()

    def __init__(self, layer: nn.Module, grid: Steps | Signs) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid
        self.inputs: Steps | None = None
        self.outputs: Steps | None = None
        self.computed = WEIGHTED[type(layer)]
        kept = layer.get_parameter("weight").detach() != 0
        if not kept.all():  # what was set to 0 before stays 0
            layer.get_parameter("weight").register_hook(lambda gradient: gradient * kept)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of a batch (B, ...)."""
        if self.inputs is not None:
            x = self.inputs(x)
        weight = self.grid(self.layer.get_parameter("weight"))
        y = self.computed(self.layer, x, weight, self.bias())
        return y if self.outputs is None else self.outputs(y)

    def bias(self) -> Tensor | None:
        """Return the bias, where integers arrive in steps of the sums that these make."""
        bias: Any = self.layer.bias
        arriving = self.read[0].inputs if self.read else self.inputs
        if bias is None or arriving is None:
            return bias
        step_C = arriving.size() * self.grid.integers(self.layer.get_parameter("weight"))[1]
        return bias + ((bias / step_C).round() * step_C - bias).detach()

    @torch.no_grad()
    def settled(self) -> Integer:
        """Return the layer with its integers."""
        weight = self.layer.get_parameter("weight").detach()
        made = Integer(
            copy.deepcopy(self.layer),
            inputs=self.inputs is not None,
            outputs=self.outputs is not None,
            bits=self.grid.bits,
            input_bits=self.inputs.bits if self.inputs is not None else BITS,
            output_bits=self.outputs.bits if self.outputs is not None else BITS,
        )
        integers, scale_C = self.grid.integers(weight)
        made.weight.copy_(integers)
        made.scale.copy_(scale_C)
        if self.inputs is not None:
            made.input_scale.copy_(self.inputs.size())
            made.input_zero.fill_(levels(self.inputs.bits)[0] - self.inputs.low)
        if self.outputs is not None:
            made.output_scale.copy_(self.outputs.size())
            made.output_zero.fill_(levels(self.outputs.bits)[0] - self.outputs.low)
        bias: Any = made.layer.bias
        if bias is not None:
            bias.copy_(self.bias())
        return made.train(self.training)


class RoundedOutput(nn.Module):
    """What rounds the output of a module while it is trained.

    Attributes:
        inputs: The grid.
    """

    inputs: Steps

    def forward(self, x: Tensor) -> Tensor:
        """Return what the grid holds of x."""
        rounded: Tensor = self.inputs(x)
        return rounded

    def settled(self) -> OutputGrid:
        """Return what rounds to its integers."""
        made = OutputGrid(self.inputs.bits)
        made.scale.copy_(self.inputs.size())
        made.zero.fill_(levels(self.inputs.bits)[0] - self.inputs.low)
        return made


def weight_steps(weight: Tensor, *, bits: int, choice: str, per: str) -> Steps:
    """Return the grid of a weight (C, ...), with steps for each channel or one for all."""
    rows = weight.detach().flatten(1)
    x_MC = rows.T if per == "channel" else rows.reshape(-1, 1)
    _, high_C = RANGES[choice](x_MC.float(), bits=bits, symmetric=True)
    top = 2 ** (bits - 1) - 1
    scale_C = (high_C / top).expand(len(weight)).clone()
    scale_C = torch.where(scale_C > 0, scale_C, 1.0)  # a channel of zeros
    return Steps(scale_C.reshape(-1, *[1] * (weight.ndim - 1)), low=-top, high=top)


def value_steps(values: Tensor, *, choice: str, bits: int = BITS) -> Steps:
    """Return the grid of values (M,): 2**bits levels, 0 among them."""
    low, high = (end.item() for end in RANGES[choice](values[:, None], bits=bits, symmetric=False))
    low, high = min(low, 0.0), max(high, 0.0)  # so that padding with 0 is exact
    least, most = levels(bits)
    scale = (high - low) / (most - least) or 1.0
    zero = max(least, min(most, round(least - low / scale)))
    return Steps(torch.tensor(scale), low=least - zero, high=most - zero)


def int8(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Fold batch norms, then round weights and inputs of every layer to 8 bits."""
    return rounded_to_8(model, options, samples, technique="quantize:int8")[0]


Regrid = Callable[[str, int], None]


def rounded_to_8(
    model: nn.Module, options: Options, samples: Samples, *, technique: str
) -> tuple[nn.Module, dict[str, Rounded], dict[str, Regrid]]:
    """Fold batch norms, round weights and inputs of layers to 8 bits; say how to change that.

    Returns:
        The model; its rounded layers, by path; and what gives the ``"grid"``, the ``"inputs"`` or
        the ``"outputs"`` of a layer as many bits as one wants.
    """
    needs_data(samples, technique=technique, least=_LEAST_SAMPLES)
    model = fold(model, options, samples)
    chosen = layers(model, _KINDS, options, technique=technique)
    graph = capture(model, samples.example)
    sums = find_sums(model, graph, chosen, options, samples)
    seen = {**chosen, **{path: model.get_submodule(path) for path in sums}}
    arriving, leaving = observed(model, seen, samples.inputs, most=_MOST_OBSERVED)
    arriving |= {f"{path}.{OUTPUT_GRID}": leaving[path] for path in sums}
    inside = [node for node in graph.nodes if node.module in chosen]
    elsewhere = {node.module for node in filter(read_elsewhere(graph, chosen), inside)}
    reads = {
        path: frozenset(node.inputs[0] for node in inside if node.module == path)
        for path in chosen
    }
    shared: dict[tuple[Any, int], Steps] = {}
    made: dict[str, Rounded] = {}
    grids = {f"{path}.{OUTPUT_GRID}": RoundedOutput() for path in sums}
    by_tensor = {tensor: grids[f"{path}.{OUTPUT_GRID}"] for path, tensor in sums.items()}

    def grid(layer: nn.Module, bits: int) -> Steps:
        weight, choice = layer.get_parameter("weight"), options["weights"]
        return weight_steps(weight, bits=bits, choice=choice, per=options["per"])

    def weight_bits(path: str, bits: int) -> None:
        made[path].grid = grid(made[path].layer, bits)

    def input_bits(path: str, bits: int) -> None:
        key = reads.get(path, path), bits  # who reads one tensor rounds it alike, trained too
        if key not in shared:
            shared[key] = value_steps(arriving[path], choice=options["range"], bits=bits)
        (grids[path] if path in grids else made[path]).inputs = shared[key]

    def output_bits(path: str, bits: int) -> None:
        made[path].outputs = value_steps(leaving[path], choice=options["range"], bits=bits)

    def rounded(path: str, layer: nn.Module) -> Rounded:
        made[path] = Rounded(layer, grid(layer, BITS))
        made[path].read = tuple(by_tensor[x] for x in reads[path] if x in by_tensor)
        if len(made[path].read) < len(reads[path]):
            made[path].read = ()
            input_bits(path, BITS)
        if path in elsewhere:
            output_bits(path, BITS)
        return made[path]

    for path in sums:
        input_bits(f"{path}.{OUTPUT_GRID}", BITS)
        round_output(seen[path], grids[f"{path}.{OUTPUT_GRID}"])
    used = {path: layer for path, layer in chosen.items() if path in arriving}
    model = _with(model, used, rounded)
    return model, made, {"grid": weight_bits, "inputs": input_bits, "outputs": output_bits}


def weights(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Fold batch norms, then round every weight to few bits."""
    name = "quantize:weights"
    model = fold(model, options, samples)

    def rounded(path: str, layer: nn.Module) -> Rounded:
        del path
        weight = layer.get_parameter("weight")
        choice, per = options["weights"], options["per"]
        return Rounded(layer, weight_steps(weight, bits=options["bits"], choice=choice, per=per))

    return _with(model, layers(model, _KINDS, options, technique=name), rounded)


def _signs(name: str, threshold: float) -> Apply:
    def apply(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
        model = fold(model, options, samples)
        chosen = without_ends(layers(model, _KINDS, options, technique=name), options)
        return _with(model, chosen, lambda path, layer: Rounded(layer, Signs(threshold)))

    return apply


def settled(model: nn.Module) -> nn.Module:
    """Put the integers of each rounded layer in its place; return the model."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Rounded | RoundedOutput):
            model = replaced(model, path, module.settled(), where="settle")
    return model


def _with(
    model: nn.Module,
    chosen: dict[str, nn.Module],
    rounded: Callable[[str, nn.Module], Rounded],
) -> nn.Module:
    for path, layer in chosen.items():
        model = replaced(model, path, rounded(path, layer), where="quantize")
    return model


SMALLER = ("weight bytes", "stored bytes")
GRID = {
    "weights": word(tuple(RANGES), default="mse"),
    "per": word(("channel", "tensor"), default="channel"),
}
RANGE = word(tuple(RANGES), default="mse")

INTEGERS = (
    Technique(
        name="fold",
        does="lets convolutions do what the batch norms behind them do",
        paper="Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877",
        level="implementation",
        improves=("parameters", "time"),
        stage="structure",
        apply=fold,
    ),
    Technique(
        name="quantize:int8",
        does="weights and inputs of layers as 8-bit integers, batch norms folded",
        paper="Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877; "
        "Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153 (while training)",
        level="arithmetic",
        needs="data",
        improves=(*SMALLER, "time", "energy"),
        stage="values",
        apply=int8,
        options={"range": RANGE, **GRID},
    ),
    Technique(
        name="quantize:weights",
        does="weights as integers of 2 to 8 bits, batch norms folded",
        paper="Nagel et al., 2021, https://arxiv.org/abs/2106.08295; "
        "Esser et al., ICLR 2020, https://arxiv.org/abs/1902.08153 (while training)",
        level="arithmetic",
        improves=SMALLER,
        stage="values",
        apply=weights,
        options={"bits": number(low=2, high=8, default=4, whole=True), **GRID},
    ),
    Technique(
        name="quantize:ternary",
        does="weights -1, 0 or 1 times a scale for each channel",
        paper="Li, Zhang, Liu, 2016, https://arxiv.org/abs/1605.04711",
        level="arithmetic",
        needs="training",
        improves=SMALLER,
        stage="values",
        apply=_signs("quantize:ternary", 0.7),
        options=ENDS,
    ),
    Technique(
        name="quantize:binary",
        does="weights -1 or 1 times a scale for each channel",
        paper="Rastegari, Ordonez, Redmon, Farhadi, ECCV 2016, https://arxiv.org/abs/1603.05279",
        level="arithmetic",
        needs="training",
        improves=SMALLER,
        stage="values",
        apply=_signs("quantize:binary", -1.0),
        options=ENDS,
    ),
)
