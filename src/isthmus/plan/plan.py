"""The plan as data: stages on devices, crossings on links, predictions and broken limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.backends import TensorSpec
from isthmus.errors import InputError
from isthmus.plan.accuracy import AccuracyTable
from isthmus.platform.platform import Platform
from isthmus.units import format_quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The part of the graph that one device runs; empty where the device only passes on.

    Attributes:
        device: Its name.
        nodes: Names of the nodes, in execution order.
        macs: Of the nodes alone, one sample.
        weight_bytes: Weights of the nodes and of the codec halves on this device.
        peak_memory_bytes: Largest sum of activations alive at once, codec buffers included.
        format: In which number formats the device computes the MACs, most of them first:
            ``"int8"``, ``"int8+fp32"``.
        compute_s: Predicted time of the nodes and of the codec halves on this device.
        codec_s: That of the codec halves alone.
        energy_j: Predicted energy, without static power.
    """

    device: str
    nodes: tuple[str, ...]
    macs: int
    weight_bytes: int
    peak_memory_bytes: int
    format: str
    compute_s: float
    codec_s: float = 0.0
    energy_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What passes from one stage to the next.

    Attributes:
        link: Name of the link.
        cut: Index of the cut: the number of nodes before it.
        after: The same place in the user's words.
        tensors: Names of the tensors alive across the cut.
        shapes: Their shapes, one sample.
        dtypes: Their numpy names; ``uint8``, ``uint4`` or ``uint2`` where they cross as the
            integers in which the stage holds them.
        codec: As the user would write it, e.g. ``"bottleneck:ratio=8,bits=4"``.
        payload_bytes: Predicted payload, one sample; a mean where the rate is variable.
        fixed_rate: Whether the payload is predicted exactly.
        transfer_s: Predicted time on the link, header and message overhead included.
        energy_j: Predicted energy of the link.
        accuracy: Of the model when this alone crosses, 0 to 1; None where it is unknown.
        origin: Whence that is known: ``"trained"``, ``"post-hoc"``, ``"lossless"`` where the codec
            loses nothing, or ``"unknown"``.
    """

    link: str
    cut: int
    after: str
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    codec: str
    payload_bytes: float
    fixed_rate: bool
    transfer_s: float
    energy_j: float = 0.0
    accuracy: float | None = None
    origin: str = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one sample costs on the platform.

    Attributes:
        latency_s: From the sample on the input device to the answer on the output device.
        interval_s: Time between answers of a full pipeline: that of the busiest device or medium.
        energy_j: Energy of all stages and links, and static power of every device on the way.
        price: Of all devices on the way, in USD.
        drop: Accuracy lost, as a share of all samples; of several crossings the sum, which is
            assumed. None where it is unknown.
    """

    latency_s: float
    interval_s: float
    energy_j: float
    price: float = 0.0
    drop: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan must not exceed; None where it is free to.

    Attributes:
        latency_s: Of one sample.
        interval_s: Between answers of a full pipeline.
        energy_j: Of one sample.
        price: Of all devices on the way, in USD.
        drop: Accuracy lost, as a share of all samples. Codecs of unknown accuracy are barred.
        link_bytes: Payload of any one crossing.
    """

    latency_s: float | None = None
    interval_s: float | None = None
    energy_j: float | None = None
    price: float | None = None
    drop: float | None = None
    link_bytes: float | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked of a plan; the fields are arguments of `isthmus.plan.partition`."""

    objective: str = "latency"
    codec: str | None = None
    cut: int | Sequence[int] | None = None
    png_bytes: float | None = None
    accuracy: AccuracyTable | None = None
    limits: Limits = NO_LIMITS
    time_limit_s: float = 60.0


def exceeds(need: float, limit: float | None) -> bool:
    """Return whether a figure is over its limit by more than rounding."""
    return limit is not None and need > limit * (1 + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One limit that a plan breaks: where, by how much, and what would mend it.

    Attributes:
        where: The device; ``"plan"`` for what the whole costs.
        what: Of what there is too little: ``"weights"``, ``"activations"``, ``"latency"`` ...
        need: How much the plan needs.
        limit: How much there is; 0 where the device has none at all.
        unit: Of both.
        remedy: What would mend it.
    """

    where: str
    what: str
    need: float
    limit: float
    unit: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.shortfall}; {self.remedy}"

    @property
    def shortfall(self) -> str:
        """What is needed and what there is, in words."""
        need, limit = (format_quantity(value, self.unit) for value in (self.need, self.limit))
        has = limit if self.limit else "none"
        return f"{self.what} needs {need}, has {has}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """A plan that lost, and why.

    Attributes:
        what: In words: ``"cut after layer1"``, ``"all on mcu-a"``.
        cuts: Index of the cut on each link.
        codecs: The codec on each link.
        predicted: Its cost.
        payload_bytes: Predicted payload over all links.
        reason: One line: by how much it is worse, or which limit it breaks.
        fits: Whether it could run at all.
        alike: Other cuts, in words, that cost just as much: the same devices send as many bytes
            through the same codecs, and nothing but the place differs.
    """

    what: str
    cuts: tuple[int, ...]
    codecs: tuple[str, ...]
    predicted: Prediction
    payload_bytes: float
    reason: str
    fits: bool
    alike: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The value of one figure at which the answer changes.

    Attributes:
        figure: The platform's figure: ``"link mcu-a-mcu-b rate"``, ``"mcu-a memory (weights)"``.
        now: Its value.
        changes_at: The nearest value at which another plan wins.
        unit: Of both.
        then: The plan that wins there, in words.
    """

    figure: str
    now: float
    changes_at: float
    unit: str
    then: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which device computes what, and what crosses each link.

    Attributes:
        objective: latency, throughput, energy or price.
        split: Whether more than one device computes.
        stages: One for each device on the way from input to output, in order. A device that the
            way passes more than once has nodes in one of them at most.
        crossings: One for each link on that way.
        predicted: Cost on the platform.
        violations: The limits it breaks; empty for a plan that fits.
        runner_ups: Other plans, best first.
        sensitivity: What would change the answer, nearest first.
        inputs: The model's inputs.
        platform: What it was planned for.
        unused: Devices of the platform that are not on the way.
        notes: Lines for people: ops without a cost rule, cuts that cannot be used ...
        limits: What it was not to exceed.
        gap: By which share of its cost a better plan might still exist: 0 where it is proven to
            be the best, None where nothing is known.
        branched: Whether stages are no walk: tensors go from any of them to any other, one or more
            crossings for each, in the order of sending. Such a plan cannot be split or exported.
    """

    SCHEMA = "isthmus.plan/1"
    objective: str
    split: bool
    stages: tuple[Stage, ...]
    crossings: tuple[Crossing, ...]
    predicted: Prediction
    violations: tuple[Violation, ...] = ()
    runner_ups: tuple[RunnerUp, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    inputs: tuple[TensorSpec, ...]
    platform: Platform
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    gap: float | None = None
    branched: bool = False


def as_walk(plan: Plan) -> Plan:
    """Return a plan whose stages follow each other; raise where it branches."""
    if plan.branched:
        raise InputError(
            "plan: it branches, expected stages that follow each other; plan with method chain to "
            "split, export, run or simulate it"
        )
    return plan
