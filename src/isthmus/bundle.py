"""The exported bundle on disk: a folder per device and ``bundle.json``.

.. code-block:: none

    bundle/
      bundle.json            schema, devices, crossings, SHA-256 of every other file
      platform.yaml          the platform, as planned for
      plan.json              the plan, for people and the report
      verification.json      how far it is from the model
      crossing0.tables       how often each symbol comes, where a codec is entropy-coded
      bundle.sig             the signature of bundle.json, where the bundle was signed
      <device>/program.onnx  receiver half -> stage -> sender half, up to integer symbols;
                             program.safetensors where torch is to run it
      <first>/exit.onnx      the early exit, where there is one: inputs -> outputs, less well

Nothing here is code that loading would run, and no other file is taken into a bundle. It is never
written to after export; `isthmus keys sign` adds a file.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from isthmus import __version__
from isthmus.backends import MAX_BATCH, MAX_THREADS, TensorSpec
from isthmus.errors import BundleError, InputError
from isthmus.files import from_json, is_one_of, sha256, write_json

INDEX_FILE = "bundle.json"
PLATFORM_FILE = "platform.yaml"
SIGNATURE_FILE = "bundle.sig"
FILES = (
    INDEX_FILE, SIGNATURE_FILE, PLATFORM_FILE, "plan.json", "verification.json",
    "crossing*.tables", "*/program.onnx", "*/program.safetensors", "*/exit.onnx",
    "*/exit.safetensors",
)  # fmt: skip

_MAX_INDEX_BYTES = 16 << 20
_MAX_FILE_BYTES = 2 << 30  # an ONNX program is one protobuf message, which ends at 2 GiB
_MAX_FILES = 1000
_MAX_ELEMENTS = 1 << 31
_ODD_CHARACTERS = set("\\:\0")  # they lead elsewhere on some systems
DTYPES = (
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip

PACKED = ("uint4", "uint2")  # which cross, but no program takes them


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEntry:
    """What one device runs.

    Attributes:
        name: The device.
        program: Path of its program in the bundle; None where it only passes bytes on.
        backend: What runs it, a name of `isthmus.backends`.
        threads: Intra-op threads.
        batch: How many waiting requests it may compute in one call.
        format: The number formats in which the plan predicted the program.
    """

    name: str
    program: str | None
    backend: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
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
        payload_spread_bytes: Standard deviation of the payload, where it was measured.
        tables: Path in the bundle of the tables of an entropy-coded codec; None without.
    """

    after: str
    source: str
    target: str
    codec: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    payload_bytes: float
    fixed_rate: bool
    payload_spread_bytes: float | None = None
    tables: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthEntry:
    """What one width of the nested crossings is worth.

    Attributes:
        ratio: Channels before / channels on the wire, of all nested crossings.
        bits: Bits of a symbol, likewise.
        payload_bytes: Mean payload of all crossings of a sample together.
        accuracy: Of the split model with it, on the test half of the fit's data.
    """

    ratio: int
    bits: int
    payload_bytes: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A plan made ready to run.

    Attributes:
        version: The Isthmus that wrote it.
        devices: In the order in which a sample visits them.
        crossings: One fewer than the devices.
        inputs: What the first device takes.
        outputs: What the last device returns.
        files: SHA-256 of every file but ``bundle.json`` and its signature, by path with forward
            slashes.
        widths: Those of nested crossings whose worth was measured.
        early_exit: Path of the program with which the first device answers alone, by its own
            backend, where the others are silent; None where there is none.
        exit_confidence: Its largest softmax from which on it answers in any case; None: never.
    """

    SCHEMA = "isthmus.bundle/1"
    version: str
    devices: tuple[DeviceEntry, ...]
    crossings: tuple[CrossingEntry, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str]
    widths: tuple[WidthEntry, ...] = ()
    early_exit: str | None = None
    exit_confidence: float | None = None


def confidence(scores: np.ndarray) -> float:
    """Return the largest softmax of a sample's scores.

    Example:
        >>> confidence(np.log(np.array([1.0, 3.0])))
        0.75
    """
    powers = np.exp(scores - scores.max())
    return float(powers.max() / powers.sum())


def write_bundle(folder: Path, bundle: Bundle) -> Bundle:
    """Make a folder of programs a bundle: hash every file, then write ``bundle.json`` last.

    Args:
        folder: Holds ``platform.yaml`` and the programs that ``bundle`` names, and nothing that
            does not belong to the bundle.
        bundle: Its ``files`` are filled in here.

    Returns:
        The bundle as written.

    Raises:
        BundleError: It could not be read back: a program is missing, a shape makes no sense ...
    """
    names = sorted(name for name in _names(folder) if (folder / name).is_file())
    files = {name: sha256(folder / name) for name in names}
    whole = replace(bundle, files=files)
    _check(whole, folder)
    write_json(folder / INDEX_FILE, whole)
    return whole


def read_bundle(path: Path) -> Bundle:
    """Read a bundle and verify it: schema, shapes, and the SHA-256 of every file.

    Args:
        path: The folder.

    Returns:
        The bundle; every file it names is inside the folder and unchanged.

    Raises:
        BundleError: It is of another version, damaged, or names what is not its own.
    """
    index, text = path / INDEX_FILE, read_index(path)
    _check_version(text, index)
    try:
        bundle = from_json(text, Bundle, where=str(index))
    except InputError as error:
        raise BundleError(f"{error}; export the bundle anew") from error
    _check(bundle, path)
    return bundle


def read_index(path: Path) -> bytes:
    """Return what ``bundle.json`` holds; raises a `BundleError` where it is none."""
    index = path / INDEX_FILE
    if not index.is_file():
        raise BundleError(f"{path}: found no {INDEX_FILE}, expected a bundle; export one")
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise BundleError(f"{index}: over {_MAX_INDEX_BYTES} bytes; export the bundle anew")
    return index.read_bytes()


def count_samples(bundle: Bundle, inputs: Sequence[np.ndarray]) -> int:
    """Return how many samples arrays hold that a bundle can take, (N, ...) for each input.

    Raises:
        InputError: They are of other shapes or types, or not of as many samples each.
    """
    if len(inputs) != len(bundle.inputs):
        raise InputError(f"found {len(inputs)} input arrays, expected {len(bundle.inputs)}")
    for array, tensor in zip(inputs, bundle.inputs, strict=True):
        if array.shape[1:] != tensor.shape or array.dtype.name != tensor.dtype or not array.ndim:
            raise InputError(
                f"input {tensor.name}: found {array.dtype.name}{list(array.shape)}, expected "
                f"{tensor.dtype} with samples of shape {list(tensor.shape)} along axis 0"
            )
    lengths = {len(array) for array in inputs}
    if len(lengths) != 1 or not min(lengths):
        raise InputError(f"found inputs of {sorted(lengths)} samples, expected as many in each")
    return lengths.pop()


def bundle_id(path: Path) -> str:
    """Return what tells two bundles apart: the SHA-256 of ``bundle.json``."""
    return hashlib.sha256(read_index(path)).hexdigest()


def _check_version(text: bytes, index: Path) -> None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{index}: not JSON ({error}); export the bundle anew") from error
    found = fields.get("schema") if isinstance(fields, dict) else None
    if found != Bundle.SCHEMA:
        writer = fields.get("version", "unknown") if isinstance(fields, dict) else "unknown"
        raise BundleError(
            f"{index}: found schema {found!r}, written by Isthmus {writer}; Isthmus {__version__} "
            f"reads {Bundle.SCHEMA!r}: run it with that version or export the bundle anew"
        )


def _check(bundle: Bundle, folder: Path) -> None:
    """Raise on the first thing that is wrong with a bundle or its files."""
    problems = (*_shape_problems(bundle), *_chain_problems(bundle))
    if problems:
        raise BundleError(f"{folder / INDEX_FILE}: {problems[0]}; export the bundle anew")
    for problem in _file_problems(bundle, folder):
        raise BundleError(f"{problem}; export the bundle anew")


def _shape_problems(bundle: Bundle) -> Iterator[str]:
    border = [(entry.name, entry.shape, entry.dtype) for entry in bundle.inputs + bundle.outputs]
    crossings = [
        (f"crossing after {entry.after}", shape, dtype)
        for entry in bundle.crossings
        for shape, dtype in zip(entry.shapes, entry.dtypes, strict=False)
    ]
    for where, shape, dtype in border + crossings:
        if any(size < 1 for size in shape) or math.prod(shape) > _MAX_ELEMENTS:
            yield f"{where}: found shape {shape}, expected sizes over 0 and at most 2**31 elements"
        known = (*DTYPES, *PACKED) if where.startswith("crossing") else DTYPES
        if dtype not in known:
            yield f"{where}: found dtype {dtype!r}, expected one of {', '.join(known)}"
    for entry in bundle.crossings:
        if not entry.shapes or len(entry.shapes) != len(entry.dtypes):
            yield f"crossing after {entry.after}: expected one dtype for each shape"
        if entry.tables is not None and entry.tables not in bundle.files:
            yield f"crossing after {entry.after}: {entry.tables!r} is not among the files"
        if not 0 < entry.payload_bytes < math.inf:
            yield f"crossing after {entry.after}: found a payload of {entry.payload_bytes} bytes"
        elif entry.fixed_rate and entry.payload_bytes % 1:
            yield f"crossing after {entry.after}: expected whole bytes at a fixed rate"


def _chain_problems(bundle: Bundle) -> Iterator[str]:
    names = [device.name for device in bundle.devices]
    if not names or len(set(names)) != len(names):
        yield f"found devices {names}, expected at least one, each once"
        return
    if not bundle.inputs or not bundle.outputs:
        yield "expected at least one input and one output"
    found = [(crossing.source, crossing.target) for crossing in bundle.crossings]
    expected = list(pairwise(names))
    if found != expected:
        yield f"found crossings {found}, expected {expected}"
        return
    for index, device in enumerate(bundle.devices):
        if not 1 <= device.threads <= MAX_THREADS:
            yield f"device {device.name}: found {device.threads} threads, expected 1 to 1024"
        if not 1 <= device.batch <= MAX_BATCH:
            yield f"device {device.name}: found a batch of {device.batch}, expected 1 to 1024"
        if device.program is None:
            yield from _relay_problems(bundle, index)
        elif device.program not in bundle.files:
            yield f"device {device.name}: program {device.program!r} is not among the files"
    yield from _exit_problems(bundle)
    if PLATFORM_FILE not in bundle.files:
        yield f"{PLATFORM_FILE} is not among the files"


def _exit_problems(bundle: Bundle) -> Iterator[str]:
    if bundle.early_exit is not None and bundle.early_exit not in bundle.files:
        yield f"early exit: program {bundle.early_exit!r} is not among the files"
    if bundle.exit_confidence is None:
        return
    if bundle.early_exit is None:
        yield "exit confidence: found one, but no early exit"
    if not 0 <= bundle.exit_confidence <= 1:
        yield f"exit confidence: found {bundle.exit_confidence}, expected 0 to 1"


def _relay_problems(bundle: Bundle, index: int) -> Iterator[str]:
    """A device without a program passes bytes on, so both its links must carry the same."""
    name = bundle.devices[index].name
    if index in (0, len(bundle.devices) - 1):
        yield f"device {name}: no program, expected one on the first and the last device"
        return
    before, after = (
        (each.codec, each.tables, each.shapes, each.dtypes)
        for each in bundle.crossings[index - 1 : index + 1]
    )
    if before != after:
        yield f"device {name}: no program, expected the same codec and tensors on both its links"


def _file_problems(bundle: Bundle, folder: Path) -> Iterator[str]:
    if len(bundle.files) > _MAX_FILES:
        yield f"{folder}: found {len(bundle.files)} files, expected at most {_MAX_FILES}"
        return
    for name, digest in bundle.files.items():
        path = folder / name
        if not _stays_inside(name) or _has_symlink(folder, name):
            yield f"{folder}: {name!r} leaves the bundle, expected a plain file inside it"
        elif not is_one_of(PurePosixPath(name), FILES):
            yield f"{folder}: {name!r} is no file of a bundle, which holds data alone"
        elif not path.is_file():
            yield f"{path}: is missing"
        elif path.stat().st_size > _MAX_FILE_BYTES:
            yield f"{path}: found {path.stat().st_size} bytes, expected at most 2 GiB"
        elif sha256(path) != digest:
            yield f"{path}: has been changed or cut short (its SHA-256 is not the bundle's)"
    for name in sorted(_names(folder) - bundle.files.keys()):
        yield f"{folder / name}: does not belong to the bundle; remove it"


def _stays_inside(name: str) -> bool:
    parts = name.split("/")
    odd = any(part in ("", ".", "..") or set(part) & _ODD_CHARACTERS for part in parts)
    return not odd and name not in (INDEX_FILE, SIGNATURE_FILE)


def _has_symlink(folder: Path, name: str) -> bool:
    steps = PurePosixPath(name).parts
    return any(folder.joinpath(*steps[: k + 1]).is_symlink() for k in range(len(steps)))


def _names(folder: Path) -> set[str]:
    """Return what is below a folder, with forward slashes: files, links, folders left empty."""
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir())
    }
    return found - {INDEX_FILE, SIGNATURE_FILE}
