r"""NetAdapt: channels go step by step, each time from the layer whose loss costs least.

.. code-block:: none

    until the resource is within its budget:
        for each layer: a copy with as many channels fewer as bring the step's saving, tuned a bit
        the copy that does best on samples that were not trained on is the network of the next step

Step i shall save :math:`\Delta R_i = s \; d^i \; R_0`, and half of it where no layer alone can.
Which channels go is said by the L2 norm of their weights. What a network takes is estimated by the
model that plans use, so that a step may be one in latency, in energy, or in bytes of a crossing.

References:
    Yang, Howard, Chen, Zhang, Go, Sandler, Sze, Adam, "NetAdapt: Platform-Aware Neural Network
    Adaptation for Mobile Applications", ECCV 2018, https://arxiv.org/abs/1804.03230 (algorithm 1;
    in place of the highest accuracy the least cross entropy, which few samples can tell apart).
"""

from collections.abc import Callable
from math import ceil, inf

import torch
from torch import nn

from isthmus.compress.prune import LEAST_SAMPLES, check_runs, removable, stuck, with_channels
from isthmus.compress.technique import (
    Options,
    Samples,
    Technique,
    described,
    losses,
    needs_data,
    number,
    useful,
    word,
)
from isthmus.errors import InputError
from isthmus.graph import capture, find_cut
from isthmus.plan.estimate import estimate, make_site, stage_loads
from isthmus.plan.partition import partition_anyway
from isthmus.platform import load_platform

_NAME = "prune:netadapt"
_LEAST_STEP = 0.002  # of what the model took at first
_PREDICTED = {"latency": "latency_s", "energy": "energy_j"}

Cost = Callable[[nn.Module], float]
Made = tuple[nn.Module, float]  # a smaller model, and what it takes


def netadapt(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Remove channels until a resource is within its budget; see `isthmus.compress.netadapt`."""
    needs_data(samples, technique=_NAME, least=LEAST_SAMPLES)
    cost = resource(options, samples)
    fixed = stuck(_NAME, model, samples, options)
    options = {**options, "skip": (*options["skip"], *fixed)}
    start = reached = cost(model)
    target, step = options["keep"] * start, options["step"] * start
    number = 0
    while reached > target:
        number += 1
        limit = max(target, reached - step)
        made = _smaller(model, options, samples, cost, (reached, limit), number)
        if made is None and step <= _LEAST_STEP * start:
            share = ceil(1000 * reached / start) / 1000
            raise InputError(
                f"technique {_NAME}: {options['resource']} is at {share:g} of what it was, and no "
                f"layer can give up more; expected keep={share:g} or more, or a smaller round_to="
            )
        step *= options["decay"] if made else 0.5  # too much for any layer alone
        model, reached = made or (model, reached)
    check_runs(_NAME, model, samples)
    return model


def resource(options: Options, samples: Samples) -> Cost:
    """Return what measures a model: MACs, bytes, seconds or joules, for one sample.

    With ``cut`` latency and energy are those of the best plan that sends this crossing as it is
    from the platform's input to its output, or where none fits yet of the one nearest to that;
    without, those of the whole model on one device.
    """
    what, cut = options["resource"], options["cut"]
    platform = load_platform(options["platform"]) if what in _PREDICTED else None

    def cost(model: nn.Module) -> float:
        graph = capture(model, samples.example)
        if what == "crossing":
            return find_cut(graph, cut).num_bytes
        if platform is None:
            return graph.macs if what == "macs" else graph.weight_bytes
        if cut:
            index = find_cut(graph, cut).index  # it may fit when it is smaller
            plan = partition_anyway(graph, platform, objective=what, cut=index, codec="raw")
            return getattr(plan.predicted, _PREDICTED[what])
        site = make_site(graph, platform.device(options["device"] or platform.input))
        found = estimate(stage_loads(graph, ()), (), (site,), ())
        return getattr(found.prediction, _PREDICTED[what])

    return cost


def _check(options: Options) -> None:
    """Raise unless the options name the device, or the crossing, that the resource needs."""
    what = options["resource"]
    if what == "crossing" and not options["cut"]:
        raise InputError(
            f"technique {_NAME}: resource=crossing needs the crossing; add cut=MODULE"
        )
    if what in _PREDICTED and not options["platform"]:
        raise InputError(
            f"technique {_NAME}: resource={what} needs a device; add platform= with a name of "
            "`isthmus platforms` or a file, and device= if it is not the one of the input"
        )
    if what in _PREDICTED:
        platform = load_platform(options["platform"])
        platform.device(options["device"] or platform.input)


def _smaller(
    model: nn.Module,
    options: Options,
    samples: Samples,
    cost: Cost,
    ends: tuple[float, float],
    number: int,
) -> Made | None:
    """Return the best network of one step; ``ends`` are what it takes now and what it may."""
    training = samples.training
    best: Made | None = None

    def proposal(path: str, channels: int) -> Made | None:
        made = within(model, path, channels, options, samples, cost, ends)
        if made and training and options["short"]:
            training.short(made[0], options["short"])
        return made

    def choose() -> str:
        nonlocal best
        chosen, least = "", inf
        for path, channels in layers_of_channels.items():
            made = proposal(path, channels)
            loss = _loss(made[0], samples) if made else inf
            if loss < least:
                chosen, least, best = path, loss, made
        return chosen

    layers_of_channels = removable(_NAME, model, samples, options)
    chosen = training.kept(f"step {number}", choose) if training else choose()
    if chosen in layers_of_channels and best is None:  # an earlier sitting chose it
        best = proposal(chosen, layers_of_channels[chosen])
    return best


def within(
    model: nn.Module,
    path: str,
    channels: int,
    options: Options,
    samples: Samples,
    cost: Cost,
    ends: tuple[float, float],
) -> Made | None:
    """Return the model with the fewest channels less in one layer that is within the limit.

    Counts are tried from above: first the next one, then where a straight line would lead.
    """
    (now, limit), unit = ends, options["round_to"]
    best: Made | None = None
    low, high = 0, ceil(channels / unit)  # of these units none is left; the limit is not held
    guess = high - 1
    per_unit = 0.0
    while low < guess < high:
        made = with_channels(_NAME, model, path, guess * unit, channels, samples)
        taken = cost(made)
        if not per_unit:
            per_unit = (now - taken) / (high - guess)
            if per_unit <= 0:
                return None  # the resource is not this layer's
        if taken <= limit:
            low, best = guess, (made, taken)
        else:
            high, now = guess, taken
        guess = max(low + 1, min(high - 1, high - ceil((now - limit) / per_unit)))
    return best


def _loss(model: nn.Module, samples: Samples) -> float:
    """Return the mean cross entropy of all samples."""
    with torch.no_grad():
        return sum(float(loss) for loss in losses(model, samples)) / len(samples.inputs[0])


NETADAPT = Technique(
    name=_NAME,
    does="removes channels step by step, where it costs least, until a resource is in its budget",
    paper="Yang et al., ECCV 2018, https://arxiv.org/abs/1804.03230",
    needs="data",
    improves=("parameters", "macs", "weight bytes", "stored bytes", "time", "energy"),
    stage="structure",
    apply=netadapt,
    options={
        "resource": word(("macs", "weights", "crossing", *_PREDICTED), default="macs"),
        "keep": number(low=0.001, high=1, default=0.5),
        "step": number(low=0.001, high=1, default=0.05),
        "decay": number(low=0.5, high=1, default=0.98),
        "round_to": number(low=1, high=1024, default=1, whole=True),
        "short": number(low=0, high=1 << 20, default=1024, whole=True),
        "platform": useful(described("a preset or a file"), resource=_PREDICTED),
        "device": useful(described("a device of the platform"), resource=_PREDICTED, cut=("",)),
        "cut": useful(
            described("the module after which to cut"), resource=("crossing", *_PREDICTED)
        ),
    },
    check=_check,
)
