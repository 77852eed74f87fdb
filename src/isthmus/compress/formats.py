"""Number formats: what weights, or what layers read, become with few bits, also in blocks."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.compress.sparse import SPARSE
from isthmus.compress.technique import (
    Options,
    Samples,
    Technique,
    format_name,
    layers,
    number,
    useful,
    word,
)
from isthmus.models.compressed import replaced
from isthmus.models.rounding import RoundTo, round_to
from isthmus.wire.formats import AnyFormat, find_format


class InFormat(nn.Module):
    """Rounds a weight on its way; the gradient passes as 1, and a weight of 0 stays 0.

    Args:
        form: The format.
        kept: Which weights are not 0.
    """

    kept: Tensor

    def __init__(self, form: AnyFormat, kept: Tensor) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the weight becomes."""
        weight = torch.where(self.kept, weight, 0.0)
        return weight + (round_to(weight, self.form) - weight).detach()


def formatted(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Round the weights of every layer to a format, what it reads, or both."""
    del samples
    form = find_format(options["name"])
    generator = torch.Generator().manual_seed(options["seed"])
    for path, layer in layers(model, SPARSE, options, technique="format").items():
        if options["of"] != "activations":
            weight = layer.get_parameter("weight")
            if options["round"] == "chance":
                with torch.no_grad():
                    weight.copy_(round_to(weight, form, generator=generator))
            rounding = InFormat(form, weight.detach() != 0)
            parametrize.register_parametrization(layer, "weight", rounding)
        if options["of"] != "weights":
            reading = nn.Sequential(RoundTo(options["name"]), layer)
            model = replaced(model, path, reading, where="format")
    return model


FORMATTING = (
    Technique(
        name="format",
        does="weights in a number format of few bits, or what layers read, or both",
        paper="Rouhani et al., 2023, https://arxiv.org/abs/2310.10537 (MX); Micikevicius et al., "
        "2022, https://arxiv.org/abs/2209.05433 (fp8); more in isthmus.wire.formats",
        level="arithmetic",
        improves=("stored bytes", "energy"),
        stage="values",
        apply=formatted,
        options={
            "name": format_name(),
            "of": word(("weights", "activations", "both"), default="weights"),
            "round": word(("nearest", "chance"), default="nearest"),
            "seed": useful(number(low=0, high=1 << 31, default=0, whole=True), round=("chance",)),
        },
    ),
)
