"""Write a bundle: for every device a program, and what the processes must agree on.

.. code-block:: none

    device k:   symbols --> receiver half --> stage --> sender half --> symbols
                (crossing k - 1)                        (crossing k)

Packing symbols into bytes is `isthmus.wire`'s, on both sides, outside the program.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import isthmus
from isthmus.backends import TensorSpec, program_file
from isthmus.bundle import (
    DTYPES,
    FILES,
    PACKED,
    PLATFORM_FILE,
    Bundle,
    CrossingEntry,
    DeviceEntry,
    WidthEntry,
    write_bundle,
)
from isthmus.errors import CaptureError, InputError, one_line, raise_interruption
from isthmus.export.calls import write_calls
from isthmus.export.operators import give_zeros, our_operators, read_once
from isthmus.export.verify import VERIFICATION_FILE, Verification, verify
from isthmus.files import is_one_of, new_folder, write_bytes, write_json
from isthmus.links import Codec
from isthmus.plan import Plan
from isthmus.plan.plan import as_walk
from isthmus.platform import dump_platform
from isthmus.progress import quiet
from isthmus.split import SplitModel, zeros
from isthmus.wire.frames import MAX_PAYLOAD_BYTES
from isthmus.wire.tables import join_tables


def export(
    split_model: SplitModel,
    plan: Plan,
    path: Path,
    *,
    samples: Sequence[np.ndarray],
    labels: np.ndarray | None = None,
    widths: tuple[WidthEntry, ...] = (),
    early_exit: nn.Module | None = None,
    exit_confidence: float | None = None,
) -> Verification:
    """Write a bundle and verify it against the model: whole and right, or not at all.

    Args:
        split_model: The fitted model, split as ``plan`` says.
        plan: The plan.
        path: The folder to make; an older bundle there is replaced.
        samples: Inputs to verify with, one array (N, ...) per model input.
        labels: Of the samples (N,), where these are known.
        widths: What widths of nested crossings are worth, where that was measured.
        early_exit: From the model's inputs to its outputs, for the first device alone.
        exit_confidence: From which on it answers though the others are not silent.

    Returns:
        How far the bundle is from the model.

    Raises:
        CaptureError: A stage cannot be written as a program; names the device.
        BundleError: The bundle does not predict what the model does.
        RunError: A device's backend, which verifies its program, is not installed here.
        InputError: Something else stands at ``path``, or the way visits a device twice.
    """
    check_devices(plan, split_model)
    split_model.eval()
    with new_folder(path, files=FILES) as folder:
        symbols: Sequence[Tensor] = zeros(plan.inputs)
        devices = []
        codecs = [None, *_codecs(split_model), None]
        for k, (stage, part) in enumerate(zip(plan.stages, split_model.stages, strict=True)):
            device, file = plan.platform.device(stage.device), None
            if stage.nodes or k in (0, len(plan.stages) - 1):  # else it only passes bytes on
                program = Program(codecs[k], part, codecs[k + 1]).eval()
                file = f"{device.name}/{program_file(device.backend)}"
                symbols = write_program(program, symbols, folder / file, device=device.name)
            devices.append(
                DeviceEntry(
                    name=device.name,
                    program=file,
                    format=stage.format,
                    backend=device.backend,
                    threads=device.threads,
                    batch=device.batch,
                )
            )
        exit_file = None
        if early_exit is not None:
            first = devices[0]
            exit_file = f"{first.name}/{program_file(first.backend).replace('program', 'exit')}"
            whole = Program(None, early_exit, None).eval()
            write_program(whole, zeros(plan.inputs), folder / exit_file, device=first.name)
        write_bytes(folder / PLATFORM_FILE, dump_platform(plan.platform).encode())
        write_json(folder / "plan.json", plan)
        bundle = Bundle(
            version=isthmus.__version__,
            devices=tuple(devices),
            crossings=_crossings(split_model, plan, folder),
            inputs=plan.inputs,
            outputs=tuple(
                TensorSpec(name=f"output{k}", shape=tuple(x.shape[1:]), dtype=str(x.dtype)[6:])
                for k, x in enumerate(symbols)
            ),
            files={},
            widths=widths,
            early_exit=exit_file,
            exit_confidence=exit_confidence,
        )
        write_bundle(folder, bundle)
        verification = verify(folder, split_model, samples, labels)
        write_json(folder / VERIFICATION_FILE, verification)
        write_bundle(folder, bundle)
        return verification


def check_devices(plan: Plan, model: nn.Module) -> None:
    """Raise where no bundle can hold a plan.

    A device is called like one of its files or stands on the way twice, a payload is longer than
    frames carry, a tensor is of a type that no bundle names, or a convolution of one that the
    runtime does not compute.
    """
    names = [stage.device for stage in as_walk(plan).stages]
    for name in names:
        if is_one_of(PurePath(name.lower()), FILES):
            raise InputError(
                f"plan: device {name}: a bundle holds a file of that name beside the folder of "
                "each device; name it otherwise in the platform file, and plan anew"
            )
        if names.count(name) > 1:
            raise InputError(
                f"plan: {name} stands on the way {names.count(name)} times ({', '.join(names)}), "
                "expected each device once in what can be run; let the output be elsewhere, or "
                "choose another --cut"
            )
    crossing_dtypes = {dtype for crossing in plan.crossings for dtype in crossing.dtypes}
    strange = (crossing_dtypes | {spec.dtype for spec in plan.inputs}) - {*DTYPES, *PACKED}
    if strange:
        raise InputError(
            f"plan: found {min(strange)} tensors on the way, expected {', '.join(DTYPES)} in what "
            "can be run; cast the model, e.g. model.float(), and plan it anew"
        )
    doubles = [n for n, p in model.named_parameters() if p.dtype is torch.float64 and p.dim() > 2]
    if doubles and any(plan.platform.device(n).backend == "onnxruntime" for n in names):
        raise InputError(
            f"{doubles[0]}: found a convolution of float64, which onnxruntime does not compute; "
            "cast the model, e.g. model.float(), and plan it anew, or let the platform say "
            "backend: torch"
        )
    longest = max((crossing.payload_bytes for crossing in plan.crossings), default=0)
    if longest > MAX_PAYLOAD_BYTES:
        raise InputError(
            f"plan: found a payload of {longest:.0f} bytes, expected at most {MAX_PAYLOAD_BYTES} "
            "in what can be run; choose another cut or a narrower codec"
        )


class Program(nn.Module):
    """What one device runs: receiver half, stage, sender half.

    Args:
        received: The codec of the crossing that comes in; None on the first device.
        stage: The device's part of the model; may be empty.
        sent: The codec of the crossing that goes out; None on the last device.
    """

    def __init__(self, received: Codec | None, stage: nn.Module, sent: Codec | None) -> None:
        super().__init__()
        self.receiver = received.receiver if received is not None else None
        self.stage = stage
        self.sender = sent.sender if sent is not None else None

    def forward(self, *symbols: Tensor) -> tuple[Tensor, ...]:
        """Return the next crossing's symbols, or the model's outputs, each (B, ...)."""
        tensors = symbols if self.receiver is None else self.receiver(symbols)
        tensors = self.stage(*tensors)
        if isinstance(tensors, Tensor):
            tensors = (tensors,)
        return tuple(tensors if self.sender is None else self.sender(tensors))


def _codecs(split_model: SplitModel) -> list[Codec | None]:
    """Return the codec of each crossing; behind a relay it is the one before."""
    codecs: list[Codec | None] = []
    for codec in split_model.codecs:
        codecs.append(codec if isinstance(codec, Codec) else codecs[-1])
    return codecs


def _crossings(split_model: SplitModel, plan: Plan, folder: Path) -> tuple[CrossingEntry, ...]:
    """Write the tables of each crossing that has some, and say what crosses."""
    entries = []
    names = (stage.device for stage in plan.stages)
    last: Codec | None = None
    file = None
    for number, (crossing, codec, (source, target)) in enumerate(
        zip(plan.crossings, _codecs(split_model), pairwise(names), strict=True)
    ):
        assert codec is not None
        if codec is not last:
            file = f"crossing{number}.tables" if codec.tables else None
        if codec is not last and file is not None:
            write_bytes(folder / file, join_tables(codec.tables))
        last = codec
        entry = CrossingEntry(
            after=crossing.after,
            source=source,
            target=target,
            codec=crossing.codec,
            shapes=crossing.shapes,
            dtypes=crossing.dtypes,
            payload_bytes=codec.spec.payload_bytes if file else crossing.payload_bytes,
            fixed_rate=crossing.fixed_rate,
            payload_spread_bytes=codec.spec.measured_spread_bytes,
            tables=file,
        )
        entries.append(entry)
    return tuple(entries)


def write_program(
    program: Program,
    symbols: Sequence[Tensor],
    path: Path,
    *,
    device: str,
    any_batch: bool = True,
) -> Sequence[Tensor]:
    """Write one program: as ONNX, or for torch where the file's name ends in ``.safetensors``.

    Args:
        program: What to write.
        symbols: An example of what it takes, of two samples or more if the batch is free.
        path: The file; its folder is made.
        device: Names the program in error messages.
        any_batch: Leave the size of the batch free, in place of the example's.

    Returns:
        What the program makes of the example.

    Raises:
        CaptureError: It cannot be written so.
    """
    batch = {0: torch.export.Dim("batch")}
    free = {"symbols": tuple(batch for _ in symbols)} if any_batch else None
    path.parent.mkdir(exist_ok=True)
    with quiet("torch.onnx"), read_once():
        try:
            exported = torch.export.export(
                program, tuple(symbols), dynamic_shapes=free, strict=False
            )
            if path.suffix == ".safetensors":
                write_calls(exported, path)
            else:
                _write_onnx(exported, path)
        except (OSError, MemoryError, InputError):
            raise
        except Exception as error:  # the exporter raises many types
            raise_interruption(error)
            line = one_line(error.__cause__ or error)
            raise CaptureError(
                f"stage on {device}: cannot be written as {path.name} ({line}); cut the model "
                "elsewhere"
            ) from error
    with torch.no_grad():
        return program(*symbols)


def _write_onnx(exported: torch.export.ExportedProgram, path: Path) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # else the exporter lays attention out in two ways
        onnx_program = torch.onnx.export(
            exported, dynamo=True, verbose=False, custom_translation_table=our_operators()
        )
    assert onnx_program is not None
    give_zeros(onnx_program.model)
    onnx_program.save(path, external_data=False)
