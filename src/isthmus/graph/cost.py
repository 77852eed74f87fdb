"""Multiply-accumulates of one operation, from the shapes that the trace holds.

One MAC is one multiplication with its addition: half of what counters of floating point
operations report. Element-wise work, normalization, pooling and movement of data count as none.
An operation without a rule counts as unknown, never as none.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import fx

from isthmus.graph.trace import arguments, op_name, size_at

Shape = tuple[int, ...]
Rule = Callable[[dict[str, Any], Callable[[Any], Shape], Shape], int | None]


def macs(node: fx.Node, batch: torch.SymInt) -> int | None:
    """Count the multiply-accumulates of a node for a batch of one.

    Args:
        node: An operation of a `Trace`.
        batch: The batch size, a symbol.

    Returns:
        The count, or None where no rule is known.
    """

    def shape(value: Any) -> Shape:
        """Return the shape of an argument, or of the result of the node itself."""
        return tuple(size_at(size, batch) for size in value.meta["val"].shape)

    name = op_name(node).rstrip("_")
    if name in _FREE:
        return 0
    if name in _REGIONS:
        return _region_macs(node, batch)
    rule = _RULES.get(name)
    if rule is None:
        return None
    value = node.meta["val"]
    made = shape(node) if isinstance(value, torch.Tensor) else ()
    return rule(arguments(node), shape, made)


def _region_macs(node: fx.Node, batch: torch.SymInt) -> int | None:
    """Sum over a block of operations under ``torch.no_grad`` or ``torch.autocast``."""
    block = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
    owner = node.graph.owning_module
    assert owner is not None
    inner = getattr(owner, str(block.target)).graph.nodes
    counts = [macs(n, batch) for n in inner if n.op == "call_function"]
    return None if None in counts else sum(count or 0 for count in counts)


def _convolution(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int:
    weight = shape(args["weight"])
    return prod(made) * prod(weight[1:])


def _transposed_convolution(
    args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape
) -> int:
    weight = shape(args["weight"])
    return prod(shape(args["input"])) * prod(weight[1:])


def _product(left: str) -> Rule:
    """Return the rule of a product that sums over the last dimension of ``left``."""

    def rule(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int:
        return prod(made) * shape(args[left])[-1]

    return rule


def _batch_summed_product(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int:
    return prod(shape(args["batch1"])) * shape(args["batch2"])[-1]


def _einsum(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int | None:
    """Count a product of two operands: one MAC for each choice of all indices that meet."""
    left, _, right = args["equation"].replace(" ", "").partition("->")
    operands, terms = args["tensors"], left.split(",")
    if len(operands) == 1:
        return 0
    if len(operands) != 2 or "." in left or not right:
        return None
    sizes = {
        index: size
        for term, operand in zip(terms, operands, strict=True)
        for index, size in zip(term, shape(operand), strict=True)
    }
    meeting = set(right) | (set(terms[0]) & set(terms[1]))
    return prod(sizes[index] for index in meeting)


def _attention(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int:
    query, key, value = (shape(args[name]) for name in ("query", "key", "value"))
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int:
    """Count every matrix once for each step of each sequence."""
    given = args.get("input", args.get("data"))
    steps = prod(shape(given)[:-1])
    matrices = (shape(weight) for weight in args["params"])
    return steps * sum(prod(matrix) for matrix in matrices if len(matrix) == 2)


def _cell(args: dict[str, Any], shape: Callable[[Any], Shape], made: Shape) -> int:
    rows = prod(shape(args["input"])[:-1])
    return rows * (prod(shape(args["w_ih"])) + prod(shape(args["w_hh"])))


_REGIONS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})

_RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution
    ),
    "linear": _product("input"),
    "matmul": _product("self"),
    "mm": _product("self"),
    "mv": _product("self"),
    "bmm": _product("self"),
    "dot": _product("self"),
    "vdot": _product("self"),
    "addmm": _product("mat1"),
    "addmv": _product("mat"),
    "baddbmm": _product("batch1"),
    "addbmm": _batch_summed_product,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
}

_ELEMENTWISE = """
    abs acos acosh add addcdiv addcmul alpha_dropout angle asin asinh atan atan2 atanh
    bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min
    clip clone copysign cos cosh deg2rad detach div divide dropout elu eq erf erfc erfinv exp
    exp2 expm1 exponential feature_alpha_dropout feature_dropout fill floor floor_divide fmod
    frac ge gelu glu greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh hypot
    isfinite isinf isnan ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
    log_sigmoid logaddexp logical_and logical_not logical_or logical_xor logit lt masked_fill
    maximum minimum mish mul multiply nan_to_num native_dropout ne neg negative normal not_equal
    ones_like outer polar positive pow prelu rad2deg rand rand_like randint randn randn_like
    random reciprocal relu relu6 remainder round rrelu rrelu_with_noise rsqrt rsub selu sgn
    sigmoid sign silu sin sinc sinh softplus softshrink sqrt square sub subtract tan tanh
    threshold true_divide trunc uniform where xlogy zero zeros_like
"""
_NORMALIZATION = """
    all amax amin any argmax argmin batch_norm channel_shuffle cosine_similarity count_nonzero
    cummax cumprod cumsum frobenius_norm group_norm instance_norm layer_norm linalg_norm
    linalg_vector_norm log_softmax logcumsumexp logsumexp max mean median min
    nansum norm prod rms_norm softmax std std_mean sum var var_mean
    _weight_norm
"""
_POOLING = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices grid_sampler upsample_bicubic2d upsample_bilinear2d upsample_linear1d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
"""
_MOVEMENT = """
    _shape_as_tensor _to_copy _unsafe_view alias arange argsort as_strided atleast_1d atleast_2d
    atleast_3d broadcast_tensors broadcast_to cat chunk column_stack concat concatenate
    constant_pad_nd contiguous copy diag diag_embed diagonal dsplit dstack embedding empty
    empty_like expand expand_as eye fill_diagonal flatten flip fliplr flipud full full_like
    gather getitem hsplit hstack im2col index index_add index_copy index_fill index_put
    index_select lift_fresh_copy linspace masked_scatter masked_select meshgrid movedim moveaxis
    narrow native_channel_shuffle new_empty new_full new_ones new_zeros one_hot ones pad permute
    pixel_shuffle pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    resolve_conj resolve_neg roll rot90 scalar_tensor scatter scatter_add scatter_reduce select
    select_scatter slice slice_scatter sort split split_with_sizes squeeze stack sum_to_size
    swapaxes swapdims sym_size t take take_along_dim tensor_split tile to topk transpose tril
    tril_indices triu triu_indices type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsqueeze view view_as view_as_complex view_as_real vsplit vstack zeros _assert_tensor_metadata
"""
_FREE = frozenset((_ELEMENTWISE + _NORMALIZATION + _POOLING + _MOVEMENT).split())
