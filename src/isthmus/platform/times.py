"""Times of a model's nodes, measured on a real machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from isthmus.errors import InputError
from isthmus.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTimes:
    """How long each node of one model takes on one machine.

    Attributes:
        graph: Fingerprint of the graph that was measured.
        seconds: Time of each node, by its name; of a fused block at its first node.
        machine: What measured it, in words.
        whole_s: Time of the whole model, measured in the same run.
        notes: Lines for people: how well the parts add up, what could not be measured alone.

    Raises:
        InputError: A time is no finite number, or negative.
    """

    SCHEMA = "isthmus.times/1"
    graph: str
    seconds: Mapping[str, float]
    machine: str
    whole_s: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (*self.seconds.items(), ("whole_s", self.whole_s)):
            if not isfinite(value) or value < 0:
                raise InputError(f"{name}: found {value} s, expected a time of 0 s or more")


def load_times(path: Path) -> NodeTimes:
    """Read a table that ``isthmus profile --measure`` wrote.

    Raises:
        InputError: No such file, not a table of ours, or a time that cannot be.
    """
    return read_json(path, NodeTimes)
