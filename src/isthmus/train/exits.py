"""An early exit: a linear head on what the first device computes, for when the others are silent.

.. code-block:: none

    inputs --> stage 0 --> mean over positions --> linear --> outputs

The head is fitted to the model's own outputs, without labels: matching them is distillation at a
high temperature (Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, 2015,
section 2.1), and one linear layer has one best fit, so nothing is trained in epochs. How much
such a head can know is up to the layers before it: `isthmus compress --with exits` trains them.

It may also answer where the others are not silent but its answer is sure enough: where the largest
softmax is at least a threshold, which is calibrated on samples that the head was not fitted to
(Teerapittayanon, McDanel, Kung, "BranchyNet", ICPR 2016, https://arxiv.org/abs/1709.01686).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.data import Dataset
from isthmus.errors import InputError, one_line
from isthmus.graph import Graph, capture, find_cut
from isthmus.models import carries_weights, load_model
from isthmus.models.compressed import ExitFigures, ExitRule
from isthmus.models.joint import first, kept, pooled
from isthmus.split import SplitModel
from isthmus.train.fit import predict

_CALIBRATED = 5  # a threshold is calibrated on one in so many training samples
_RIDGE = 1e-3  # of a feature's variance
_DECAY = 1e-4
_STEPS = 100
_TIE = 1e-6


class EarlyExit(nn.Module):
    """The first stage and a linear head on it.

    Args:
        stage: The first device's part of the model.
        head: From F features to K outputs.
    """

    def __init__(self, stage: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.stage = stage
        self.head = head

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Return the outputs, (B, K)."""
        return (self.head(pooled(self.stage(*inputs))),)


class SmallerExit(nn.Module):
    """A model of its own in the place of an early exit.

    Args:
        model: From the inputs to the outputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Return the outputs, (B, K)."""
        return (first(self.model(*inputs)),)


def smaller_exit(text: str, split_model: SplitModel, inputs: Sequence[np.ndarray]) -> SmallerExit:
    """Load a compressed model that is to answer where a split one does not.

    Args:
        text: Its folder.
        split_model: Whose inputs and outputs it has to have.
        inputs: Samples, one array (N, ...) for each input.

    Raises:
        InputError: It is no such folder, or a model of other inputs or outputs.
    """
    if not carries_weights(text):
        raise InputError(f"early model {text}: expected a folder that `isthmus compress` made")
    found = SmallerExit(load_model(text)).eval()
    few = tuple(torch.from_numpy(x[:2]) for x in inputs)
    with torch.no_grad():
        expected = split_model.eval()(*few)
        try:
            (scores,) = found(*few)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            line = one_line(error)
            raise InputError(f"early model {text}: does not take the inputs ({line})") from error
    if not isinstance(expected, Tensor) or scores.shape != expected.shape:
        raise InputError(
            f"early model {text}: found outputs {tuple(scores.shape[1:])}, expected the "
            f"model's, {tuple(first(expected).shape[1:])}"
        )
    return found


def fit_exit(split_model: SplitModel, inputs: Sequence[np.ndarray]) -> EarlyExit:
    """Fit an early exit of a split model to that model's outputs.

    Args:
        split_model: Fitted; it is not changed.
        inputs: Training inputs, one array (N, ...) for each of the model's.

    Returns:
        The exit, in eval mode.

    Raises:
        InputError: The model has not one output (N, K).
    """
    split_model.eval()
    stage = split_model.stages[0]
    with torch.no_grad():
        outputs = split_model(*(torch.from_numpy(x[:2]) for x in inputs))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.dtype != torch.float32:
        raise InputError("early exit: expected a model of one fp32 output, a score for each class")
    features_NF = predict(lambda *x: pooled(stage(*x)), inputs)
    outputs_NK = predict(split_model, inputs)
    return EarlyExit(stage, fit_head(features_NF, outputs_NK)).eval()


def fit_head(features_NF: Tensor, outputs_NK: Tensor) -> nn.Linear:
    r"""Return the linear layer whose softmax is nearest to a model's.

    .. math:: \min_{W, b} \; \frac{1}{N} \sum_n KL(softmax(t_n) \| softmax(W f_n + b))
              + \frac{\lambda}{2} \|W \sigma\|^2

    It begins at the least squares between the outputs themselves, which is the same at a high
    temperature, and descends by L-BFGS; there is one least value.

    Args:
        features_NF: f, of standard deviations sigma.
        outputs_NK: t.

    References:
        Liu, Nocedal, "On the limited memory BFGS method", Mathematical Programming 45, 1989.
    """
    features_NF, outputs_NK = features_NF.double(), outputs_NK.double()
    mean_F, mean_K = features_NF.mean(0), outputs_NK.mean(0)
    spread_F = features_NF.std(0, correction=0).clamp_min(1e-9)
    scaled_NF = (features_NF - mean_F) / spread_F
    ridge_FF = _RIDGE * len(scaled_NF) * torch.eye(len(mean_F), dtype=torch.float64)
    weight_FK = torch.linalg.solve(
        scaled_NF.T @ scaled_NF + ridge_FF, scaled_NF.T @ (outputs_NK - mean_K)
    )
    weight_KF, mean_K = _descended(scaled_NF.float(), outputs_NK.float(), weight_FK.T, mean_K)
    head = nn.Linear(len(mean_F), len(mean_K))
    with torch.no_grad():
        head.weight.copy_(weight_KF / spread_F)
        head.bias.copy_(mean_K - weight_KF / spread_F @ mean_F)
    return head


def _descended(
    features_NF: Tensor, outputs_NK: Tensor, weight_KF: Tensor, bias_K: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias that `fit_head` looks for, from those that it begins at."""
    weight_KF, bias_K = (x.float().clone().requires_grad_() for x in (weight_KF, bias_K))
    target_NK = outputs_NK.softmax(1)
    optimizer = torch.optim.LBFGS(
        [weight_KF, bias_K], max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores_NK = F.linear(features_NF, weight_KF, bias_K)
        found = F.cross_entropy(scores_NK, target_NK) + _DECAY / 2 * weight_KF.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return weight_KF.detach().double(), bias_K.detach().double()


def calibrate_exit(
    early_exit: nn.Module,
    split_model: SplitModel,
    inputs: Sequence[np.ndarray],
    rule: ExitRule,
    labels_N: np.ndarray | None = None,
) -> float:
    """Return how sure an early exit has to be to answer; see `exit_threshold`.

    Args:
        early_exit: Fitted.
        split_model: Whose answers are right, where there are no labels.
        inputs: Samples that the exit was not fitted to, one array (N, ...) for each input.
        rule: Which samples are to be answered early.
        labels_N: Their labels, of which a drop is counted.
    """
    early_NK, whole_NK = (
        predict(function, inputs) for function in (lambda *x: early_exit(*x)[0], split_model)
    )
    labels = None if labels_N is None else torch.from_numpy(labels_N)
    return exit_threshold(early_NK, whole_NK, rule, labels)


def exit_threshold(
    early_NK: Tensor,
    whole_NK: Tensor,
    rule: ExitRule,
    labels_N: Tensor | None = None,
) -> float:
    """Return the least confidence, the largest softmax, from which on an exit is to answer.

    Args:
        early_NK: The exit's scores.
        whole_NK: The model's.
        rule: Which samples are to leave; as many more as are as sure as the last.
        labels_N: What is right, of which a drop is counted.

    Raises:
        InputError: No sample is so sure that so many are right, or a drop without labels.

    Example:
        >>> early = torch.tensor([[0.0, 0.1], [0.0, 1.0], [0.0, 2.0]])
        >>> whole = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(exit_threshold(early, whole, ExitRule("agreement", 0.9)), 2)
        0.73
    """
    wanted = rule.value
    sure_N, order = early_NK.softmax(1).amax(1).sort(descending=True)
    early_N, whole_N = (scores.argmax(1)[order] for scores in (early_NK, whole_NK))
    last_N = torch.ones(len(sure_N), dtype=torch.bool)  # of those that are as sure
    last_N[:-1] = sure_N[1:] < sure_N[:-1]
    num_N = torch.arange(1, len(sure_N) + 1)
    if rule.kind == "share":
        return float(sure_N[num_N >= wanted * len(sure_N)][0])
    if rule.kind == "agreement":
        found_N = (early_N == whole_N).cumsum(0) / num_N
        words = (f"{wanted:.1%} equal answers", "{:.1%} of")
    else:
        if labels_N is None:
            raise InputError("early exit: found no labels, of which a drop is counted; bring some")
        right_N = labels_N[order]
        gained_N = (early_N == right_N).long() - (whole_N == right_N).long()
        found_N = gained_N.cumsum(0) * 100 / len(sure_N)
        words = (f"a loss of {wanted:g} points at most", "{:.2g} points by")
        wanted = -wanted
    enough_N = last_N & (found_N >= wanted - _TIE)
    if not enough_N.any():
        best = words[1].format(abs(float(found_N[last_N].max())))
        raise InputError(
            f"early exit: expected {words[0]}, found {best} those that are surest; ask for less, "
            "or cut later"
        )
    return float(sure_N[enough_N][-1])


def parted(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return which training samples a head is fitted to, and which calibrate its threshold."""
    order = np.random.default_rng(0).permutation(len(data.y_train))
    few = max(1, len(order) // _CALIBRATED)
    return order[few:], order[:few]


def measure_exits(
    model: nn.Module, paths: Sequence[str], data: Dataset, rule: ExitRule
) -> tuple[ExitFigures, ...]:
    """Say what an exit behind each of some modules is worth, each for itself.

    Args:
        model: In evaluation.
        paths: Of modules that make one tensor, in the order in which they run.
        data: Heads are fitted to four fifths of its training half, thresholds calibrated on the
            rest, and both judged by its test half.
        rule: Which samples are to leave.

    Raises:
        InputError: No sample is so sure that so many are right.
    """
    fitted_N, calibrated_N = parted(data)
    halves = [
        _seen(model, paths, inputs)
        for inputs in (
            [x[fitted_N] for x in data.x_train],
            [x[calibrated_N] for x in data.x_train],
            data.x_test,
        )
    ]
    example = tuple(torch.from_numpy(x[:2]) for x in data.x_train)
    graph = capture(model, example)
    labels_N, held_N = (torch.from_numpy(y) for y in (data.y_test, data.y_train[calibrated_N]))
    (_, test_NK) = halves[2]
    right_N = test_NK.argmax(1) == labels_N
    found = []
    for k, path in enumerate(paths):
        head = fit_head(halves[0][0][k], halves[0][1])
        with torch.no_grad():
            kept_NK, scores_NK = (head(features[k]) for features, _ in halves[1:])
        least = exit_threshold(kept_NK, halves[1][1], rule, held_N)
        leaves_N = scores_NK.softmax(1).amax(1) >= least
        early_N = scores_NK.argmax(1) == labels_N
        leaving = leaves_N.float().mean().item()
        early = graph.nodes[: find_cut(graph, _computed(model, graph, path, example)).index]
        early_macs = sum(node.macs or 0 for node in early)
        found.append(
            ExitFigures(
                path=path,
                accuracy=early_N.double().mean().item(),
                confidence=least,
                share=leaving,
                accuracy_with=torch.where(leaves_N, early_N, right_N).double().mean().item(),
                macs=round(
                    leaving * early_macs + (1 - leaving) * graph.macs + head.weight.numel()
                ),
            )
        )
    return tuple(found)


def _seen(
    model: nn.Module, paths: Sequence[str], inputs: Sequence[np.ndarray]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the features (N, F) behind each module, and the model's outputs (N, K)."""
    widths: list[int] = []

    def joined(*batch: Tensor) -> Tensor:
        with kept(model, paths) as made:
            output = first(model(*batch))
        features = [pooled((made[path],)) for path in paths]
        widths[:] = [x.shape[1] for x in features]
        return torch.cat([*features, output.float()], 1)

    *features, outputs_NK = predict(joined, inputs).tensor_split(np.cumsum(widths).tolist(), 1)
    return tuple(features), outputs_NK


def _computed(model: nn.Module, graph: Graph, path: str, example: tuple[Tensor, ...]) -> str:
    """Return the module, or where nothing is left of it, as of a folded norm, the last before."""
    with torch.no_grad(), kept(model, [name for name, _ in model.named_modules() if name]) as made:
        model(*example)
    ran = list(made)
    inside = [f"{node.module}." for node in graph.nodes]
    return next(
        name
        for name in reversed(ran[: ran.index(path) + 1])
        if any(module.startswith(f"{name}.") for module in inside)
    )
