"""The paper's hardware side: what passes from layer to layer of ResNet-18, by several meters.

.. code-block:: none

    memory         growth of the machine's used memory around each layer's thread (the paper's)
    rss            the same of this process alone
    shape          bytes of the tensor that the layer hands on
    shape inside   bytes of the tensor between the two convolutions of the layer's block
    wire           bytes of the frames between processes, one process for each layer

The first two are what an allocator did; the others are what crosses.

References:
    Lin, Zhu, Eshraghian, "Reducing Data Bottlenecks in Distributed, Heterogeneous Neural
    Networks", 2024, https://arxiv.org/abs/2410.09650: one thread for each layer, memory read by
    psutil, a claim of about 70 % less at the fifth layer for a ratio of 8.
"""

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.export import export
from isthmus.graph import capture, find_cut
from isthmus.models import RATIOS, resnet
from isthmus.models.joint import kept
from isthmus.plan import partition
from isthmus.platform import Device, Link, Platform
from isthmus.progress import Report, silent
from isthmus.run import start_workers
from isthmus.study.grid import PLACEMENTS, Placement
from isthmus.train import split_with_codecs

FIFTH = 4  # index of the paper's fifth layer; the stem is the first
CLAIM_RATIO = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one meter says of one layer, over all repeats, in bytes.

    Attributes:
        placement: block or cut.
        ratio: Channels before / channels of the narrow layer.
        layer: Its name.
        meter: A name of the module's list.
        median_bytes: Half of the readings are larger.
        first_quartile_bytes: A quarter of them is smaller.
        third_quartile_bytes: A quarter of them is larger.
        not_positive: Share of readings that are zero or negative.
        repeats: How many readings.
    """

    placement: Placement
    ratio: int
    layer: str
    meter: str
    median_bytes: float
    first_quartile_bytes: float
    third_quartile_bytes: float
    not_positive: float
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """All readings of one run, and where it ran.

    Attributes:
        readings: For each placement, ratio, layer and meter.
        machine: In one line.
        versions: Of Python and the libraries.
        revision: The commit of this code, None where it is not known.
        seconds: Wall time.
    """

    SCHEMA = "isthmus.transfer/1"
    readings: tuple[Reading, ...]
    machine: str
    versions: Mapping[str, str]
    revision: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one meter says about "ratio 8 cuts about 70 % at the fifth layer".

    Attributes:
        placement: block or cut.
        meter: A name of the module's list.
        layer: The fifth layer's name.
        before_bytes: Median at ratio 1.
        after_bytes: Median at ratio 8.
        saved: Share saved, or None where the meter reads nothing at ratio 1.
    """

    placement: Placement
    meter: str
    layer: str
    before_bytes: float
    after_bytes: float
    saved: float | None


def measure_transfer(
    meters: Sequence[str] = ("memory", "shape", "wire"),
    *,
    placements: Sequence[Placement] = PLACEMENTS,
    ratios: Sequence[int] = RATIOS,
    repeats: int = 20,
    pixels: int = 224,
    width: int = 64,
    report: Report = silent,
) -> tuple[Reading, ...]:
    """Send an image through ResNet-18, layer by layer, and read every meter.

    Args:
        meters: Keys of ``METERS``.
        placements: block, cut, or both.
        ratios: Of the narrow layers.
        repeats: Readings of each layer.
        pixels: Height and width of the image.
        width: Channels of the first stage; 64 is ResNet-18.
        report: Told of every network.

    Returns:
        Readings for each placement, ratio, layer and meter.

    Raises:
        InputError: There is no such meter.
    """
    unknown = [meter for meter in meters if meter not in METERS]
    if unknown:
        raise InputError(f"no meter {unknown[0]!r}; there are {', '.join(METERS)}")
    x = torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    grid = [(placement, ratio) for placement in placements for ratio in ratios]
    readings: list[Reading] = []
    for done, (placement, ratio) in enumerate(grid, start=1):
        torch.manual_seed(0)
        network = resnet(
            18,
            num_classes=1000,
            width=width,
            stem="imagenet",
            ratio=ratio,
            placement=placement,
            narrow_after="block" if placement == "cut" else "stage",
        ).eval()
        for meter in meters:
            for name, layers in METERS[meter](network, x, repeats).items():
                readings += [
                    _reading(placement, ratio, layer, name, values)
                    for layer, values in layers.items()
                ]
        report(f"transfer, placement {placement}, ratio {ratio}", done, len(grid))
    return tuple(readings)


def claims(readings: Sequence[Reading]) -> tuple[Claim, ...]:
    """Compare ratio 8 with ratio 1 at the fifth layer, for each placement and meter.

    A network of fewer layers makes no claim.
    """
    names = list(dict.fromkeys(reading.layer for reading in readings))
    if len(names) <= FIFTH:
        return ()
    medians = {
        (reading.placement, reading.meter, reading.ratio): reading.median_bytes
        for reading in readings
        if reading.layer == names[FIFTH]
    }
    found = []
    for placement, meter, ratio in medians:
        if ratio == CLAIM_RATIO and (placement, meter, 1) in medians:
            before, after = medians[placement, meter, 1], medians[placement, meter, ratio]
            found.append(
                Claim(
                    placement=placement,
                    meter=meter,
                    layer=names[FIFTH],
                    before_bytes=before,
                    after_bytes=after,
                    saved=1 - after / before if before > 0 else None,
                )
            )
    return tuple(found)


def layers_of(network: nn.Module) -> dict[str, nn.Sequential]:
    """Return the layers that have a thread or a process each: stem, every block, head.

    A narrow layer belongs to the block before it, the one that widens again to the block after.
    """
    return {
        name: nn.Sequential(*map(network.get_submodule, paths))
        for name, paths in _paths(network).items()
    }


def _paths(network: nn.Module) -> dict[str, list[str]]:
    """Return the paths of the modules that each layer is made of, in order."""
    paths = {"stem": ["stem"]}
    for stage in range(1, 5):
        waiting: list[str] = []
        for child, _ in network.get_submodule(f"layer{stage}").named_children():
            path = f"layer{stage}.{child}"
            if child.startswith("widen"):
                waiting = [path]
            elif child.startswith("narrow"):
                paths[list(paths)[-1]].append(path)
            else:
                paths[path] = [*waiting, path]
                waiting = []
    return {**paths, "head": ["pool", "flatten", "head"]}


Values = dict[str, dict[str, list[float]]]  # by meter, then by layer: one value for each repeat


def _memory(network: nn.Module, x_BCHW: Tensor, repeats: int) -> Values:
    """Read memory before and after each layer's thread, as the paper does."""
    layers = layers_of(network)
    values: Values = {meter: {name: [] for name in layers} for meter in ("memory", "rss")}
    for _ in range(repeats):
        handed = [x_BCHW]  # every output stays alive until the pass is over
        for name, layer in layers.items():
            grown: list[int] = []
            thread = threading.Thread(target=_metered, args=(layer, handed, grown))
            thread.start()
            thread.join()
            for meter, growth in zip(values, grown, strict=True):
                values[meter][name].append(growth)
    return values


def _metered(layer: nn.Module, handed: list[Tensor], grown: list[int]) -> None:
    """Run one layer on what was handed over last; tell how much memory grew by either meter."""
    process = psutil.Process()
    before = (psutil.virtual_memory().used, process.memory_info().rss)
    with torch.no_grad():
        handed.append(layer(handed[-1]))
    after = (psutil.virtual_memory().used, process.memory_info().rss)
    grown += [late - early for early, late in zip(before, after, strict=True)]


def _shape(network: nn.Module, x_BCHW: Tensor, repeats: int) -> Values:
    """Count the bytes of the tensors; they do not vary."""
    del repeats
    values: Values = {"shape": {}, "shape inside": {}}
    with torch.no_grad():
        for name, layer in layers_of(network).items():
            paths = [path for path, _ in layer.named_modules() if path.endswith("conv1")]
            with kept(layer, paths) as inside:
                x_BCHW = layer(x_BCHW)
            values["shape"][name] = [x_BCHW.nbytes]
            if paths:
                values["shape inside"][name] = [inside[paths[0]].nbytes]
    return values


def _wire(network: nn.Module, x_BCHW: Tensor, repeats: int) -> Values:
    """Make each layer a process and count the frames that its worker hands to the transport."""
    paths = _paths(network)
    names = list(paths)
    graph = capture(network, (x_BCHW,))
    ends = [find_cut(graph, paths[name][-1]).index for name in names[:-1]]
    plan = partition(graph, _row(names), codec="raw", cut=ends)
    split_model = split_with_codecs(network, plan)
    sample = x_BCHW.numpy()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(split_model, plan, bundle, samples=[sample])
        with start_workers(bundle) as workers:
            for _ in range(repeats):
                workers.ask([sample[0]])
            timings = workers.timings()
    return {
        "wire": {
            name: [passage.frame_bytes for passage in timing.passages]
            for name, timing in zip(names[:-1], timings, strict=False)
        }
    }


METERS: dict[str, Callable[[nn.Module, Tensor, int], Values]] = {
    "memory": _memory,
    "shape": _shape,
    "wire": _wire,
}


def _row(names: Sequence[str]) -> Platform:
    """Return a row of equal devices, one for each layer."""
    devices = [name.replace(".", "-") for name in names]
    return Platform(
        name="one-layer-each",
        devices=tuple(Device(name=name, macs_per_s={"fp32": 1e9}) for name in devices),
        links=tuple(Link(between=ends, bytes_per_s=1e9) for ends in pairwise(devices)),
        input=devices[0],
        output=devices[-1],
    )


def _reading(
    placement: Placement, ratio: int, layer: str, meter: str, values: Sequence[float]
) -> Reading:
    low, middle, high = (float(q) for q in np.percentile(values, (25, 50, 75)))
    return Reading(
        placement=placement,
        ratio=ratio,
        layer=layer,
        meter=meter,
        median_bytes=middle,
        first_quartile_bytes=low,
        third_quartile_bytes=high,
        not_positive=float(np.mean(np.asarray(values) <= 0)),
        repeats=len(values),
    )
