r"""Early exits at several depths, trained together with the network.

.. code-block:: none

    inputs --> block --> block --> block --> outputs
                 |         '--> mean over positions --> linear --> outputs
                 '------------> mean over positions --> linear --> outputs

What is minimised is :math:`L(y_N) + w \sum_n L(y_n)` over the answers of the network and of each
exit. The heads are there for that alone: `isthmus export` makes one for the crossing that is
planned, and `isthmus.train.measure_exits` one at each depth, as the best for what arrives there
has to be found anew wherever weights changed since.

References:
    Teerapittayanon, McDanel, Kung, "BranchyNet", ICPR 2016, https://arxiv.org/abs/1709.01686
    (section III.A: joint training, a weighted sum).
"""

from math import inf

import torch
from torch import Tensor, nn

from isthmus.compress.technique import Options, Samples, Technique, check_names, number, useful
from isthmus.errors import InputError
from isthmus.models.compressed import ExitRule
from isthmus.models.joint import Joint, first, kept, pooled

EXITS = "exits"


class Exits(Joint):
    """A network with heads on what some of its modules make.

    Args:
        model: The network.
        heads: From the means of the channels that a module makes, by its path.
        weight: How much the loss of each head counts.
    """

    teaching = False

    def __init__(self, model: nn.Module, heads: dict[str, nn.Linear], weight: float) -> None:
        super().__init__()
        self.model, self.weight, self.paths = model, weight, tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network says."""
        output: Tensor = self.model(*inputs)
        return output

    def answers(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the network says (B, K), then what each head says."""
        with kept(self.model, self.paths) as made:
            output = first(self.model(*inputs))
        pairs = zip(self.paths, self.heads, strict=True)
        return (output, *(head(pooled((made[path],))) for path, head in pairs))

    def settled(self) -> nn.Module:
        """Return the network."""
        return self.model


def exits(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Put a head behind each of some modules; see `isthmus.compress.exits`."""
    paths = exit_paths(model, options, samples)
    with torch.no_grad(), kept(model, paths) as made:
        num_classes = first(model(*samples.example)).shape[1]
    heads = {path: nn.Linear(pooled((made[path],)).shape[1], num_classes) for path in paths}
    return Exits(model, heads, options["weight"])


def exit_paths(model: nn.Module, options: Options, samples: Samples) -> tuple[str, ...]:
    """Return the modules behind which there is an exit, in the order in which they run.

    These are those of ``only``, or where it is silent the outermost ones that make maps or
    sequences; but for those of ``skip``.

    Raises:
        InputError: There are none, or one does not make one such tensor.
    """
    check_names(model, options, technique=EXITS)
    wanted = options["only"] or tuple(name for name, _ in model.named_children())
    wanted = [path for path in wanted if path not in options["skip"]]
    with torch.no_grad(), kept(model, wanted) as made:
        scores = first(model.eval()(*samples.example))
    if scores.ndim != 2 or not scores.is_floating_point():
        raise InputError(f"technique {EXITS}: expected a model of one output, scores for classes")
    found = [
        path
        for path, output in made.items()
        if isinstance(output, Tensor) and output.ndim > 2 and output.is_floating_point()
    ]
    wrong = sorted(set(options["only"]) - set(found) - set(options["skip"]))
    if wrong or not found:
        raise InputError(
            f"technique {EXITS}: found no map or sequence behind "
            f"{wrong[0] if wrong else 'the outermost modules'}; name modules that make one with "
            "only="
        )
    return tuple(found)


def _check(options: Options) -> None:
    if options["agreement"] and options["drop"] < inf:
        raise InputError(
            f"technique {EXITS}: found agreement= and drop=, expected one of them: how many "
            "answers are to be the network's, or how many points of accuracy may be lost"
        )


def rule(options: Options) -> ExitRule:
    """Return by which of the three options samples leave."""
    if options["drop"] < inf:
        return ExitRule("drop", options["drop"])
    agreement = options["agreement"]
    return ExitRule("agreement", agreement) if agreement else ExitRule("share", options["share"])


EXITING = Technique(
    name=EXITS,
    does="trains early exits behind several modules together with the network",
    paper="Teerapittayanon, McDanel, Kung, ICPR 2016, https://arxiv.org/abs/1709.01686",
    needs="training",
    improves=("time", "energy"),
    stage="structure",
    apply=exits,
    options={
        "weight": number(low=0.001, high=100, default=1),
        "share": useful(number(low=0.01, high=1, default=0.5), agreement=(0,), drop=(inf,)),
        "agreement": number(low=0, high=1, default=0),
        "drop": number(low=0, high=100, default=inf),
    },
    check=_check,
)
