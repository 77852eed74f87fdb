"""The exported bundle on disk: a folder per device and ``bundle.json``.

.. code-block:: none

    bundle/
      bundle.json            schema, devices, crossings, SHA-256 of every other file
      platform.yaml          the platform, as planned for
      plan.json              the plan, for people and the report
      <device>/program.onnx  receiver half -> stage -> sender half, up to integer symbols

Nothing here is code that loading would run. A bundle is never written to after export.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SCHEMA = "isthmus.bundle/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEntry:
    """What one device runs.

    Attributes:
        name: The device.
        program: Path of its ONNX program in the bundle; None where it only passes bytes on.
        backend: What runs it.
        threads: Intra-op threads.
        format: The number format the program holds.
    """

    name: str
    program: str | None
    backend: str = "onnxruntime"
    threads: int = 1
    format: str = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossingEntry:
    """What passes from one device to the next; the same order as the devices.

    Attributes:
        after: Where the cut is, in words.
        source: The sending device.
        target: The receiving device.
        codec: As text, ``"bottleneck:ratio=8,bits=4"``.
        shapes: The crossing's tensors before the codec, one sample.
        dtypes: Their numpy names.
        payload_bytes: Predicted payload, one sample; a mean where ``fixed_rate`` is false.
        fixed_rate: Whether that must equal what is measured.
    """

    after: str
    source: str
    target: str
    codec: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    payload_bytes: float
    fixed_rate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A named tensor at the bundle's border, one sample."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A plan made ready to run.

    Attributes:
        version: The Isthmus that wrote it.
        devices: In the order in which a sample visits them.
        crossings: One fewer than the devices.
        inputs: What the first device takes.
        outputs: What the last device returns.
        files: SHA-256 of every file but ``bundle.json``, by path with forward slashes.
    """

    version: str
    devices: tuple[DeviceEntry, ...]
    crossings: tuple[CrossingEntry, ...]
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    files: Mapping[str, str]
