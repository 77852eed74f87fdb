"""Which device computes what, and what crosses each link."""

from isthmus.plan.check import check, with_payloads
from isthmus.plan.partition import METHODS, Partitioner, partition
from isthmus.plan.plan import (
    Asked,
    Crossing,
    InputSpec,
    Limits,
    Plan,
    Prediction,
    RunnerUp,
    Sensitivity,
    Stage,
    Violation,
)

__all__ = [
    "METHODS",
    "Asked",
    "Crossing",
    "InputSpec",
    "Limits",
    "Partitioner",
    "Plan",
    "Prediction",
    "RunnerUp",
    "Sensitivity",
    "Stage",
    "Violation",
    "check",
    "partition",
    "with_payloads",
]
