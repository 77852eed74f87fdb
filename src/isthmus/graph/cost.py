"""What one operation costs, from the shapes that the trace holds, for one sample.

One MAC is one multiplication with its addition: half of what counters of floating point
operations report. All other arithmetic counts as ops:

* 1 for a sum, product, comparison, choice, rounding or bit operation; a bias is a sum for each
  element, a clamp two comparisons;
* 4 for what hardware takes from a table, a polynomial or a few steps of iteration (a quotient, a
  root, exp, log, erf, tanh, sigmoid, a random number), 8 for an activation built around one (gelu,
  silu) and for each gate of a recurrent unit;
* for each element 2 of a batch norm in evaluation, 7 of the norms that take their statistics from
  their input, 4 of an RMS norm, 8 of a softmax, 9 of attention (a scaled softmax of each score);
* a reduction 1 for each element that it reads, a pooling its window for each that it makes.

Bytes are those of every tensor and weight that is read, once, and of every tensor that is made. A
view costs nothing and moves nothing; a look-up reads only the rows that it returns. An operation
without a rule counts as unknown, never as none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil, log2, prod
from typing import Any

import torch
from torch import fx

from isthmus.graph.trace import DROPOUTS, arguments, op_name, size_at, tensors_of, written

Shape = tuple[int, ...]
Args = dict[str, Any]
ShapeOf = Callable[[Any], Shape]
Counts = tuple[int, int]  # MACs and other operations
Rule = Callable[[Args, ShapeOf, Shape], Counts | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one operation or of several, for one sample.

    Attributes:
        macs: Multiply-accumulates, where a rule is known.
        ops: Other arithmetic operations, where a rule is known.
        read_bytes: Of the tensors and weights read.
        written_bytes: Of the tensors made.
        unknown: Names of the operations without a rule.
    """

    macs: int = 0
    ops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    unknown: tuple[str, ...] = ()


def cost(node: fx.Node, batch: torch.SymInt) -> Cost:
    """Count what a node does for a batch of one.

    Args:
        node: An operation of a `Trace`.
        batch: The batch size, a symbol.

    Returns:
        Its cost.
    """

    def shape(value: fx.Node | torch.Tensor) -> Shape:
        """Return the shape of an argument, or of a result."""
        tensor = value.meta["val"] if isinstance(value, fx.Node) else value
        return tuple(size_at(size, batch) for size in tensor.shape)

    def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
        return sum(prod(shape(tensor)) * tensor.dtype.itemsize for tensor in tensors)

    name = op_name(node).strip("_")
    if name in _REGIONS:
        return total(cost(inner, batch) for inner in _region(node))
    made = tensors_of(node)
    if _moves_nothing(node, name, made):
        return Cost()
    rule = _RULES.get(name)
    counts = rule(arguments(node), shape, shape(made[0]) if made else ()) if rule else None
    macs, ops = counts or (0, 0)
    made_bytes = num_bytes(made)
    reads = [num_bytes(tensors_of(argument)) for argument in node.all_input_nodes]
    if name in _LOOK_UPS:
        reads[0] = min(reads[0], made_bytes)
    return Cost(
        macs=macs,
        ops=ops,
        read_bytes=sum(reads),
        written_bytes=made_bytes,
        unknown=() if counts else (op_name(node),),
    )


def total(costs: Iterable[Cost]) -> Cost:
    """Add costs, and list what is unknown once."""
    every = tuple(costs)
    return Cost(
        macs=sum(cost.macs for cost in every),
        ops=sum(cost.ops for cost in every),
        read_bytes=sum(cost.read_bytes for cost in every),
        written_bytes=sum(cost.written_bytes for cost in every),
        unknown=tuple(dict.fromkeys(name for cost in every for name in cost.unknown)),
    )


def _region(node: fx.Node) -> list[fx.Node]:
    """Return a block of operations under ``torch.no_grad`` or ``torch.autocast``."""
    block = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
    owner = node.graph.owning_module
    assert owner is not None
    inner = getattr(owner, str(block.target)).graph.nodes
    return [n for n in inner if n.op == "call_function"]


def _moves_nothing(node: fx.Node, name: str, made: list[torch.Tensor]) -> bool:
    """Return whether a node only shows in another way what is there: a view."""
    if name == "getitem" or (name in DROPOUTS and not arguments(node)["train"]):
        return True
    if written(node):
        return False
    read = [tensor for argument in node.all_input_nodes for tensor in tensors_of(argument)]
    memory = {tensor.untyped_storage()._cdata for tensor in read}
    return all(tensor.untyped_storage()._cdata in memory for tensor in made)


def _convolution(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    return prod(made) * prod(shape(args["weight"])[1:]), _bias(args, made)


def _transposed_convolution(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    return prod(shape(args["input"])) * prod(shape(args["weight"])[1:]), _bias(args, made)


def _linear(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    return prod(made) * shape(args["input"])[-1], _bias(args, made)


def _differences(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    """Count a difference and a sum where a product of matrices has a MAC."""
    return 0, 2 * prod(made) * shape(args["x"])[-1]


def _bias(args: Args, made: Shape) -> int:
    return 0 if args["bias"] is None else prod(made)


def _product(left: str, args: Args, shape: ShapeOf, made: Shape, *, adds: bool = False) -> Counts:
    """Count a product that sums over the last dimension of ``left``."""
    return prod(made) * shape(args[left])[-1], adds * prod(made)


def _batch_summed_product(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    return prod(shape(args["batch1"])) * shape(args["batch2"])[-1], prod(made)


def _einsum(args: Args, shape: ShapeOf, made: Shape) -> Counts | None:
    """Count a product of two operands: one MAC for each choice of all indices that meet."""
    left, _, right = args["equation"].replace(" ", "").partition("->")
    operands, terms = args["tensors"], left.split(",")
    if len(operands) == 1:
        return 0, prod(shape(operands[0]))
    if len(operands) != 2 or "." in left or not right:
        return None
    sizes = {
        index: size
        for term, operand in zip(terms, operands, strict=True)
        for index, size in zip(term, shape(operand), strict=True)
    }
    meeting = set(right) | (set(terms[0]) & set(terms[1]))
    return prod(sizes[index] for index in meeting), 0


def _attention(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    query, key, value = (shape(args[name]) for name in ("query", "key", "value"))
    scores = prod(query[:-1]) * key[-2]
    masked = args["attn_mask"] is not None or args["is_causal"]
    return scores * (query[-1] + value[-1]), scores * (9 + masked)


def _recurrent(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    """Count every matrix once for each step of each sequence."""
    steps = prod(shape(args.get("input", args.get("data")))[:-1])
    matrices = [size for size in map(shape, args["params"]) if len(size) == 2]
    layers = args["num_layers"] * (1 + args["bidirectional"])
    gates = sum(size[0] for size in matrices[:: len(matrices) // layers])
    return steps * sum(map(prod, matrices)), steps * 8 * gates


def _cell(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    rows, w_ih, w_hh = prod(shape(args["input"])[:-1]), shape(args["w_ih"]), shape(args["w_hh"])
    return rows * (prod(w_ih) + prod(w_hh)), rows * 8 * w_ih[0]


def _normalization(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    """Count a norm; one with statistics of its own is a scale and a shift."""
    own = not args.get("training", args.get("use_input_stats", True))
    return 0, (2 if own else 7) * prod(made)


def _pooling(dims: int, args: Args, shape: ShapeOf, made: Shape) -> Counts:
    window = args["kernel_size"]
    return 0, prod(made) * prod(window * dims if len(window) == 1 else window)


def _antialiased(ops: int, args: Args, shape: ShapeOf, made: Shape) -> Counts:
    """Count a resizing whose window grows with the factor by which it shrinks."""
    before = shape(args["input"] if "input" in args else args["self"])
    shrinks = prod(max(b / a, 1) for b, a in zip(before[-2:], made[-2:], strict=True))
    return 0, ceil(ops * prod(made) * shrinks)


def _sorting(args: Args, shape: ShapeOf, made: Shape) -> Counts:
    size, dim = shape(args["self"]), args.get("dim")
    along = prod(size) if dim is None else size[dim]
    return 0, prod(size) * ceil(log2(max(along, 2)))


def _made(ops: int, args: Args, shape: ShapeOf, made: Shape) -> Counts:
    """Count so many operations for each element of the result."""
    return 0, ops * prod(made)


def has_rule(op: str) -> bool:
    """Return whether it is known what an operation costs."""
    return op in _RULES


def _read(ops: int, name: str, args: Args, shape: ShapeOf, made: Shape) -> Counts:
    """Count so many operations for each element of the argument of that name, or ``input``."""
    return 0, ops * prod(shape(args[name] if name in args else args["input"]))


_REGIONS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})
_LOOK_UPS = frozenset(
    {"embedding", "gather", "index", "index_select", "masked_select", "take", "unsafe_index"}
)

_MADE = {
    1: """abs add and angle bitwise_and bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor bucketize ceil clamp_max clamp_min copysign cummax cumprod
        cumsum deg2rad diff eq floor frac ge greater greater_equal gt hardshrink isfinite isinf
        isnan ldexp le less less_equal logical_and logical_not logical_or logical_xor lt
        masked_fill maximum minimum mul multiply nan_to_num ne neg negative not_equal or outer
        positive rad2deg relu round rsub sgn sign softshrink square sub subtract threshold tril
        triu trunc where xor""",
    2: "addcmul clamp clip hardtanh leaky_relu prelu relu6 rrelu rrelu_with_noise",
    3: "lerp upsample_linear1d",
    4: """acos acosh alpha_dropout asin asinh atan atan2 atanh bernoulli cos cosh div divide
        dropout erf erfc erfinv exp exp2 expm1 exponential feature_alpha_dropout feature_dropout
        floor_divide fmod hardsigmoid hardswish hypot lgamma log log10 log1p log2 native_dropout
        normal pow rand rand_like randint randn randn_like random reciprocal remainder rms_norm
        rsqrt sigmoid sin sinc sinh sqrt tan tanh true_divide uniform""",
    5: "addcdiv",
    8: """celu elu gelu glu log_sigmoid log_softmax logaddexp logcumsumexp logit mish polar
        safe_softmax selu silu softmax softplus xlogy""",
    9: "upsample_bilinear2d",
    15: "grid_sampler",
    21: "upsample_trilinear3d",
    35: "upsample_bicubic2d",
}
_READ = {
    1: """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d all amax amin any argmax argmin col2im
        count_nonzero max mean min nansum prod sum""",
    2: "frobenius_norm linalg_norm linalg_vector_norm norm",
    4: "std std_mean var var_mean",
    7: "logsumexp",
}
_MOVED = """
    alias arange as_strided assert_tensor_metadata atleast_1d atleast_2d atleast_3d
    broadcast_tensors broadcast_to cat channel_shuffle chunk clone column_stack concat concatenate
    constant_pad_nd contiguous copy detach diag diag_embed diagonal dsplit dstack embedding empty
    empty_like expand expand_as eye fill fill_diagonal flatten flip fliplr flipud full full_like
    gather hsplit hstack im2col index index_copy index_fill index_put index_select lift_fresh_copy
    linspace masked_scatter masked_select meshgrid moveaxis movedim narrow native_channel_shuffle
    new_empty new_full new_ones new_zeros one_hot ones ones_like pad permute pixel_shuffle
    pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as
    resolve_conj resolve_neg roll rot90 scalar_tensor scatter select select_scatter
    shape_as_tensor slice slice_scatter split split_with_sizes squeeze stack sum_to_size swapaxes
    swapdims sym_size t take take_along_dim tensor_split tile to to_copy transpose tril_indices
    triu_indices type_as unbind unflatten unfold unsafe_chunk unsafe_index unsafe_split
    unsafe_view unsqueeze upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d view view_as
    view_as_complex view_as_real vsplit vstack zero zeros zeros_like
"""
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVED.split(), partial(_made, 0)),
    **{name: partial(_made, ops) for ops, names in _MADE.items() for name in names.split()},
    **{
        name: partial(_read, ops, "self") for ops, names in _READ.items() for name in names.split()
    },
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution
    ),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "mv", "bmm", "dot", "vdot"), partial(_product, "self")),
    "addmm": partial(_product, "mat1", adds=True),
    "addmv": partial(_product, "mat", adds=True),
    "baddbmm": partial(_product, "batch1", adds=True),
    "addbmm": _batch_summed_product,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("gru", "lstm", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("gru_cell", "lstm_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm"), _normalization),
    **{
        f"{kind}_pool{dims}d{suffix}": partial(_pooling, dims)
        for kind in ("avg", "max")
        for dims in (1, 2, 3)
        for suffix in ("", "_with_indices")
    },
    "upsample_bilinear2d_aa": partial(_antialiased, 9),
    "upsample_bicubic2d_aa": partial(_antialiased, 35),
    **dict.fromkeys(("argsort", "median", "sort", "topk"), _sorting),
    "isthmus.l1_distances": _differences,
    "isthmus.from_int8": partial(_made, 1),
    **dict.fromkeys(("isthmus.round_to_int8", "isthmus.round_to_format"), partial(_made, 10)),
    "cosine_similarity": partial(_read, 6, "x1"),
    "weight_norm": partial(_read, 4, "v"),
    "index_add": partial(_read, 1, "source"),
    **dict.fromkeys(("scatter_add", "scatter_reduce"), partial(_read, 1, "src")),
}
