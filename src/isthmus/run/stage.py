"""What one device does with a payload: unpack, compute, pack."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus.backends import Array, Program, load_program
from isthmus.bundle import Bundle
from isthmus.errors import IsthmusError, RunError
from isthmus.run import border
from isthmus.run.hop import Arrival
from isthmus.run.messages import Work
from isthmus.wire import CodecSpec, pack, parse_codec, unpack
from isthmus.wire.nested import Width, read_width
from isthmus.wire.pack import read_tables
from isthmus.wire.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codec:
    """What makes symbols of a payload, and a payload of symbols."""

    spec: CodecSpec
    tables: tuple[Tables, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStage:
    """What turns a payload into the next one.

    Attributes:
        bundle: Says what passes its border.
        batch: How many requests it may compute in one call.
        program: None where the device passes payloads on.
        before: The codec of what arrives; None for the model's inputs.
        after: The codec of what leaves; None for the model's outputs.
    """

    bundle: Bundle
    batch: int
    program: Program | None
    before: _Codec | None
    after: _Codec | None


def load_stage(path: Path, bundle: Bundle, index: int) -> LoadedStage:
    """Load what one device of a bundle runs.

    Args:
        path: The bundle.
        bundle: What `isthmus.bundle.read_bundle` says of it.
        index: Of the device.

    Raises:
        IsthmusError: A program or a table is damaged, or there is no such backend.
    """
    device = bundle.devices[index]
    return LoadedStage(
        bundle=bundle,
        batch=device.batch,
        program=None
        if device.program is None
        else load_program(path / device.program, backend=device.backend, threads=device.threads),
        before=_codec(path, bundle, index - 1) if index > 0 else None,
        after=_codec(path, bundle, index) if index < len(bundle.crossings) else None,
    )


def apply_stage(
    stage: LoadedStage, frames: Sequence[Arrival], width: Width | None, *, ready_s: float
) -> list[tuple[bytes, Work]]:
    """Return the payload that leaves for each that arrived, and what that cost.

    Args:
        stage: What computes them, in one call.
        frames: What arrived; of any widths, as unpacked they are all as wide as the widest.
        width: Of nested crossings, where the frame does not say; None is the widest.
        ready_s: Since when the stage waited for a frame, by this machine's monotonic clock.
    """
    begin_s = time.monotonic()
    start_s = decoded_s = computed_s = time.perf_counter()
    if stage.program is None:
        payloads = [frame.payload for frame in frames]
    else:
        samples = [_unpack(stage, memoryview(frame.payload)) for frame in frames]
        inputs = [np.stack(arrays) for arrays in zip(*samples, strict=True)]
        decoded_s = time.perf_counter()
        outputs = stage.program(inputs)
        computed_s = time.perf_counter()
        if any(array.shape[:1] != (len(frames),) for array in outputs):
            raise RunError(f"the program makes no batch of {len(frames)}")
        payloads = [
            _pack(stage, [array[index] for array in outputs], width, frame.width)
            for index, frame in enumerate(frames)
        ]
    encoded_s = time.perf_counter()
    return [
        (
            payload,
            Work(
                request=frame.request,
                decode_s=decoded_s - start_s,
                compute_s=computed_s - decoded_s,
                encode_s=encoded_s - computed_s,
                payload_bytes=len(payload),
                start_s=begin_s,
                queue_s=begin_s - frame.arrived_s,
                wait_s=max(0.0, frame.arrived_s - ready_s),
                batch=len(frames),
            ),
        )
        for frame, payload in zip(frames, payloads, strict=True)
    ]


def apply_each(
    stage: LoadedStage, frames: Sequence[Arrival], width: Width | None, *, ready_s: float
) -> Iterator[tuple[Arrival, tuple[bytes, Work] | IsthmusError]]:
    """Do as `apply_stage`, and give each frame its result, or why it has none.

    Where a batch fails, its frames are computed one by one, so that only a wrong one fails.
    """
    try:
        yield from zip(frames, apply_stage(stage, frames, width, ready_s=ready_s), strict=True)
    except IsthmusError as error:
        if len(frames) == 1:
            yield frames[0], error
            return
        for frame in frames:
            yield from apply_each(stage, [frame], width, ready_s=ready_s)


def _unpack(stage: LoadedStage, payload: memoryview) -> tuple[Array, ...]:
    if stage.before is None:
        return border.from_bytes(payload, stage.bundle.inputs)
    return unpack(stage.before.spec, payload, stage.before.tables)


def _pack(stage: LoadedStage, outputs: list[Array], width: Width | None, asked: int) -> bytes:
    if stage.after is None:
        return border.to_bytes(outputs, stage.bundle.outputs)
    spec = stage.after.spec
    if spec.nested and asked:
        width = read_width(spec, bytes([asked]))
    return pack(spec, outputs, stage.after.tables, width=width if spec.nested else None)


def _codec(path: Path, bundle: Bundle, index: int) -> _Codec:
    crossing = bundle.crossings[index]
    spec = parse_codec(crossing.codec, shapes=crossing.shapes, dtypes=crossing.dtypes)
    tables = () if crossing.tables is None else read_tables(path / crossing.tables, spec)
    return _Codec(spec=spec, tables=tables)
