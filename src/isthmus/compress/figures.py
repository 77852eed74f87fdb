"""What a model costs: the figures that techniques are judged by."""

import torch
from torch import Tensor, nn

from isthmus.graph import capture, cuts
from isthmus.models.compressed import Figures, pack_weights
from isthmus.models.layers import Integer


def figures(
    model: nn.Module, example: tuple[Tensor, ...], *, accuracy: float | None = None
) -> Figures:
    """Count what a model costs for one sample.

    Args:
        model: Settled, in evaluation.
        example: Inputs of two samples.
        accuracy: Measured on the test set, where there is one.
    """
    graph = capture(model, example)
    weights: list[Tensor] = list(model.parameters())
    weights += [module.weight for module in model.modules() if isinstance(module, Integer)]
    return Figures(
        accuracy=accuracy,
        parameters=sum(int(torch.count_nonzero(weight)) for weight in weights),
        macs=graph.macs,
        weight_bytes=graph.weight_bytes,
        stored_bytes=len(pack_weights(model)),
        activation_bytes=max(cut.num_bytes for cut in cuts(graph)),
    )
