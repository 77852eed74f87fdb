"""Run a bundle's programs against the model that they came from, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from isthmus.backends import Program, load_program
from isthmus.bundle import Bundle, confidence, count_samples, read_bundle
from isthmus.data.images import NO_LABEL
from isthmus.errors import BundleError, CaptureError, InputError
from isthmus.export.integers import read_integers, run_integers, write_integers
from isthmus.export.lower import lower
from isthmus.files import new_folder, write_json
from isthmus.links import Codec
from isthmus.models.joint import kept
from isthmus.progress import Report, silent
from isthmus.split import SplitModel
from isthmus.wire import CodecSpec, pack, parse_codec, unpack
from isthmus.wire.pack import read_tables
from isthmus.wire.tables import Tables

VERIFICATION_FILE = "verification.json"
INTEGERS_FILE = "integers.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerStage:
    """Whether a stage is integer arithmetic alone.

    Attributes:
        device: Its name.
        file_bytes: Of what was written; 0 where nothing was.
        reason: Why nothing was.
    """

    device: str
    file_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegersRecord:
    """What a bundle answers by integers alone.

    Attributes:
        stages: Of each device that computes; one that is not of integers runs its program.
        samples: How many were compared.
        equal_predictions: Share of samples answered as by the bundle's programs, 0..1.
        accuracy: Share answered rightly; None without labels.
        accuracy_of_bundle: The same by the bundle's programs.
        symbols_differ: Share of each crossing's integers that are others than the programs send;
            None where floats cross.
    """

    SCHEMA = "isthmus.integers-record/1"
    stages: tuple[IntegerStage, ...]
    samples: int
    equal_predictions: float
    accuracy: float | None
    accuracy_of_bundle: float | None
    symbols_differ: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How far a bundle is from its model.

    Attributes:
        samples: How many were compared.
        largest_difference: Largest absolute difference of any output.
        equal_predictions: Share of samples with the same largest output, 0..1.
        payload_bytes: Mean payload of each crossing.
        symbols_differ: The share of each crossing's integers that are other ones than the model's,
            0..1; None where floats go as they are.
        symbols_apart: The largest difference of these, in steps.
        early_exit_equal: The share of samples for which the early exit predicts what the model
            does; None where there is none.
        early_exit_share: The share of samples of which it is sure, so that nothing crosses; None
            where it answers only when the others are silent.
        early_exit_sure_equal: The share of these for which it predicts what the model does; None
            where there are none.
        early_exit_drop: Points of accuracy lost where it answers these, by the samples' labels;
            None where none were given, or where it answers only when the others are silent.
    """

    SCHEMA = "isthmus.verification/1"
    samples: int
    largest_difference: float
    equal_predictions: float
    payload_bytes: tuple[float, ...]
    symbols_differ: tuple[float | None, ...] = ()
    symbols_apart: tuple[int | None, ...] = ()
    early_exit_equal: float | None = None
    early_exit_share: float | None = None
    early_exit_sure_equal: float | None = None
    early_exit_drop: float | None = None


def verify(
    path: Path,
    split_model: SplitModel,
    inputs: Sequence[np.ndarray],
    labels_N: np.ndarray | None = None,
) -> Verification:
    """Send samples through the bundle's programs, packed and unpacked, and through the model.

    Args:
        path: The bundle; every file's checksum is verified.
        split_model: What it was exported from.
        inputs: One array (N, ...) per model input.
        labels_N: What is right, where that is known.

    Returns:
        The differences. A symbol that falls on the edge between two steps may round either way in
        the two runtimes, so a few predictions in a thousand may differ.

    Raises:
        BundleError: The bundle is damaged, an output is not finite where the model's is, or NaN,
            or more than 1 % of the predictions differ, and more than one.
        RunError: A program cannot be loaded, or its backend is not installed.
    """
    bundle = read_bundle(path)
    programs, specs, tables = _load(path, bundle)
    senders = [f"codecs.{k}.sender" for k in range(len(specs))]
    own = [name for name in senders if isinstance(split_model.get_submodule(name[:-7]), Codec)]
    with torch.no_grad(), kept(split_model, own) as sent:
        expected = tree_leaves(split_model.eval()(*(torch.from_numpy(x) for x in inputs)))
    if any(torch.isnan(output).any() for output in expected):
        raise BundleError(
            f"{path}: the model itself answers NaN; look for NaN in its weights or in the data"
        )
    every: list[list[Sequence[np.ndarray]]] = []
    payloads = np.zeros((len(inputs[0]), len(specs)))
    largest, equal = 0.0, 0
    for i in range(len(inputs[0])):
        outputs, crossed = _run(
            programs, specs, tables, [x[i : i + 1] for x in inputs], payloads[i]
        )
        every.append(crossed)
        for output, wanted in zip(outputs, expected, strict=True):
            largest = max(largest, _difference(output, wanted[i : i + 1].numpy(), where=path))
        equal += int(outputs[0].argmax() == int(expected[0][i].argmax()))
    apart: list[tuple[float | None, int | None]] = []
    for name, found in zip(senders, zip(*every, strict=True), strict=True):
        if name not in sent:  # a relay
            apart.append(apart[-1])
        else:
            apart.append(_apart(found, [x.numpy() for x in sent[name]]))
    result = Verification(
        samples=len(inputs[0]),
        largest_difference=largest,
        equal_predictions=equal / len(inputs[0]),
        payload_bytes=tuple(payloads.mean(axis=0).tolist()),
        symbols_differ=tuple(share for share, _ in apart),
        symbols_apart=tuple(steps for _, steps in apart),
        **_early_exit(path, bundle, inputs, expected[0].numpy(), labels_N),
    )
    flips = result.samples - equal
    if flips > max(1, 0.01 * result.samples):
        raise BundleError(
            f"{path}: {flips} of {result.samples} predictions differ from the model's (largest "
            f"difference {largest:.3g}), expected at most 1 %; use a codec of more bits or "
            "report the model"
        )
    return result


def by_integers(
    path: Path,
    out: Path,
    inputs: Sequence[np.ndarray],
    labels_N: np.ndarray,
    *,
    report: Report = silent,
) -> IntegersRecord:
    """Write the stages of a bundle as integer arithmetic alone, and see what they answer so.

    Args:
        path: The bundle.
        out: The folder to make: ``DEVICE.safetensors`` for each stage of integers, and what is
            returned as ``integers.json``; an older one is replaced.
        inputs: Samples to compare with, one array (N, ...) per model input.
        labels_N: What is right; -1 where that is not known.
        report: Is told of each sample.

    Returns:
        What could be written, and how often both ways answer alike.

    Raises:
        InputError: No stage is of integers, the samples are others than it takes, or ``out`` is
            something else.
    """
    bundle = read_bundle(path)
    num_samples = count_samples(bundle, inputs)
    programs, specs, tables = _load(path, bundle)
    whole, stages = list(programs), []
    files = tuple(f"{device.name}.safetensors" for device in bundle.devices)
    with new_folder(out, files=(INTEGERS_FILE, *files)) as folder:
        for k, (device, file) in enumerate(zip(bundle.devices, files, strict=True)):
            if device.program is None:
                continue
            size, reason = 0, "its program is not ONNX; choose another backend"
            if device.program.endswith(".onnx"):
                try:
                    steps, tensors = lower(path / device.program)
                except CaptureError as error:
                    reason = str(error)
                else:
                    write_integers(folder / file, steps, tensors)
                    size, reason = (folder / file).stat().st_size, ""
                    whole[k] = partial(run_integers, *read_integers(folder / file))
            stages.append(IntegerStage(device=device.name, file_bytes=size, reason=reason))
        if all(stage.reason for stage in stages):
            reasons = "; ".join(f"{stage.device}: {stage.reason}" for stage in stages)
            raise InputError(
                f"{path}: found no stage of integers ({reasons}); make them so with `isthmus "
                "compress --with quantize:int8`, and cut where integers cross"
            )
        answers: tuple[list[int], ...] = ([], [])
        crossed: tuple[list[list[Sequence[np.ndarray]]], ...] = ([], [])
        for i in range(num_samples):
            for way, each in enumerate((programs, whole)):
                sizes = np.zeros(len(specs))
                made, sent = _run(each, specs, tables, [x[i : i + 1] for x in inputs], sizes)
                answers[way].append(int(made[0].argmax()))
                crossed[way].append(sent)
            report("samples", i + 1, num_samples)
        of_bundle_N, found_N = map(np.array, answers)
        known_N = labels_N != NO_LABEL
        record = IntegersRecord(
            stages=tuple(stages),
            samples=num_samples,
            equal_predictions=float((of_bundle_N == found_N).mean()),
            accuracy=_share((found_N == labels_N)[known_N]),
            accuracy_of_bundle=_share((of_bundle_N == labels_N)[known_N]),
            symbols_differ=tuple(
                _apart(found, _joined(wanted))[0]
                for wanted, found in zip(*(zip(*way, strict=True) for way in crossed), strict=True)
            ),
        )
        write_json(folder / INTEGERS_FILE, record)
    return record


def _share(right_N: np.ndarray) -> float | None:
    return float(right_N.mean()) if len(right_N) else None


def _load(
    path: Path, bundle: Bundle
) -> tuple[Sequence[Program | None], Sequence[CodecSpec], Sequence[Sequence[Tables]]]:
    """Return a bundle's programs, and the codec and tables of each crossing."""
    programs = [
        None
        if device.program is None
        else load_program(path / device.program, backend=device.backend, threads=device.threads)
        for device in bundle.devices
    ]
    specs = [
        parse_codec(crossing.codec, shapes=crossing.shapes, dtypes=crossing.dtypes)
        for crossing in bundle.crossings
    ]
    tables = [
        read_tables(path / crossing.tables, spec) if crossing.tables else ()
        for crossing, spec in zip(bundle.crossings, specs, strict=True)
    ]
    return programs, specs, tables


def _run(
    programs: Sequence[Program | None],
    specs: Sequence[CodecSpec],
    tables: Sequence[Sequence[Tables]],
    inputs: Sequence[np.ndarray],
    payload_bytes: np.ndarray,
) -> tuple[Sequence[np.ndarray], list[Sequence[np.ndarray]]]:
    """Return one sample's outputs and the symbols of each crossing, each (1, ...).

    The payload of each crossing is filled in.
    """
    symbols: Sequence[np.ndarray] = inputs
    crossed = []
    for k, program in enumerate(programs):
        if program is not None:
            symbols = program(symbols)
        if k < len(specs):
            payload = pack(specs[k], [array[0] for array in symbols], tables[k])
            payload_bytes[k] = len(payload)
            crossed.append(symbols)
            symbols = [array[None] for array in unpack(specs[k], payload, tables[k])]
    return symbols, crossed


def _apart(
    found: Sequence[Sequence[np.ndarray]], wanted: Sequence[np.ndarray]
) -> tuple[float | None, int | None]:
    """Return which share of a crossing's integers are others than the model's, and how far off."""
    pairs = [
        (x.astype(np.int64), y.astype(np.int64))
        for x, y in zip(_joined(found), wanted, strict=True)
        if y.dtype.kind != "f"
    ]
    if not pairs:
        return None, None
    apart = np.concatenate([np.abs(x - y).reshape(-1) for x, y in pairs])
    return np.count_nonzero(apart) / len(apart), int(apart.max())


def _joined(samples: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return the tensors of all samples, each (N, ...)."""
    return [np.concatenate(x) for x in zip(*samples, strict=True)]


def _early_exit(
    path: Path,
    bundle: Bundle,
    inputs: Sequence[np.ndarray],
    expected_NK: np.ndarray,
    labels_N: np.ndarray | None,
) -> dict[str, float]:
    if bundle.early_exit is None:
        return {}
    first = bundle.devices[0]
    program = load_program(path / bundle.early_exit, backend=first.backend, threads=first.threads)
    found = [program([x[i : i + 1] for x in inputs])[0] for i in range(len(inputs[0]))]
    early_N, whole_N = np.concatenate(found).argmax(1), expected_NK.argmax(1)
    equal_N = early_N == whole_N
    result = {"early_exit_equal": float(equal_N.mean())}
    if bundle.exit_confidence is not None:
        sure_N = np.array([confidence(scores) for scores in found]) >= bundle.exit_confidence
        result["early_exit_share"] = float(sure_N.mean())
        if sure_N.any():
            result["early_exit_sure_equal"] = float(equal_N[sure_N].mean())
        if labels_N is not None:
            lost_N = (whole_N == labels_N) * 1.0 - (early_N == labels_N)
            result["early_exit_drop"] = 100 * float((lost_N * sure_N).mean())
    return result


def _difference(found: np.ndarray, wanted: np.ndarray, *, where: Path) -> float:
    """Return the largest absolute difference of two outputs."""
    if not np.isfinite(found).all() and np.isfinite(wanted).all():
        raise BundleError(f"{where}: returns NaN or infinity where the model does not")
    return float(np.nanmax(np.abs(found.astype(np.float64) - wanted), initial=0.0))
