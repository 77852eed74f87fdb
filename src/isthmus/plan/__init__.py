"""Which device computes what, and what crosses each link."""

from isthmus.backends import TensorSpec
from isthmus.plan.check import check, with_payloads
from isthmus.plan.partition import METHODS, Partitioner, partition
from isthmus.plan.plan import (
    Asked,
    Crossing,
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
    "Limits",
    "Partitioner",
    "Plan",
    "Prediction",
    "RunnerUp",
    "Sensitivity",
    "Stage",
    "TensorSpec",
    "Violation",
    "check",
    "partition",
    "with_payloads",
]
