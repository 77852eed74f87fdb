"""A small study to report on: records and readings as two depths and three seeds leave them."""

from isthmus.study.cells import Candidate, Choice
from isthmus.study.grid import Cell
from isthmus.study.records import StudyRecord
from isthmus.study.transfer import Reading, Transfer

MACHINE = "Some Processor 3000, 2 cores, Linux 6.1"
VERSIONS = {"python": "3.11.9", "isthmus": "0.1.0", "torch": "2.13.0"}
RECIPE = {"epochs": 8, "batch_size": 128, "augmentation": {"border": "reflection", "flip": True}}
CHANNELS = {"layer1": (1, 1024), "layer2": (2, 256), "layer3": (4, 64)}  # widths, pixels
SHARES = {"layer1": (0.25, 0.02), "layer2": (0.5, 0.06), "layer3": (0.75, 0.25)}


def record(depth, placement, ratio, accuracy, *, seed=0, **changes):
    cell = Cell(
        depth=depth,
        width=changes.pop("width", 16),
        placement=placement,
        ratio=ratio,
        data=changes.pop("data", "cifar100"),
        recipe="small",
        epochs=8,
        seed=seed,
    )
    cuts = [
        {
            "after": name,
            "channels": channels,
            "wire_channels": channels // (ratio if placement == "cut" else 1),
            "int8_bytes": channels // (ratio if placement == "cut" else 1) * pixels,
            "fp32_bytes": 4 * (channels // (ratio if placement == "cut" else 1)) * pixels,
            "macs_before_share": SHARES[name][0],
            "weights_before_share": SHARES[name][1],
        }
        for name, (widths, pixels) in CHANNELS.items()
        for channels in (widths * cell.width,)
    ]
    figures = {
        "accuracy": accuracy,
        "top5": min(1.0, accuracy + 0.25),
        "bytes": cuts[1]["int8_bytes"],
        "parameters": 700_000,
        "losses": [2.0, 1.0],
        "cuts": cuts,
        "recipe": RECIPE,
    }
    facts = {"machine": MACHINE, "versions": VERSIONS, "revision": "0123abc", **changes}
    return StudyRecord(
        key=cell.key, cell=cell, config={}, figures=figures, seconds=1800.0, attempts=1, **facts
    )


# Of each line the accuracy at r = 1, 2, 4, 8; the seeds are 0.01 below, at, and 0.01 above.
MEANS = {
    (18, "block"): (0.60, 0.58, 0.56, 0.54),
    (18, "cut"): (0.60, 0.575, 0.55, 0.47),
    (34, "block"): (0.62, 0.63, 0.61, 0.60),
    (34, "cut"): (0.62, 0.60, 0.59, 0.52),
}
RECORDS = tuple(
    record(depth, placement, 2**step, round(mean + 0.01 * (seed - 1), 6), seed=seed)
    for (depth, placement), means in MEANS.items()
    for step, mean in enumerate(means)
    for seed in (0, 1, 2)
)

CHOICE = Choice(
    data="cifar100",
    network="resnet18, width 16, ratio 1",
    candidates=(
        Candidate(recipe="small", epochs=8, accuracy=0.51),
        Candidate(recipe="small-lower-rate", epochs=8, accuracy=0.49),
    ),
    held_out=5_000,
)

LAYERS = {"stem": 802816, "layer1.0": 802816, "layer1.1": 802816, "layer2.0": 401408,
          "layer2.1": 401408, "layer3.0": 200704, "head": 4000}  # fmt: skip


def reading(placement, ratio, layer, meter, median, *, spread=0.0, not_positive=0.0):
    return Reading(
        placement=placement,
        ratio=ratio,
        layer=layer,
        meter=meter,
        median_bytes=median,
        first_quartile_bytes=median - spread,
        third_quartile_bytes=median + 2 * spread,
        not_positive=not_positive,
        repeats=20,
    )


def _readings():
    for placement in ("block", "cut"):
        for ratio in (1, 2, 8):
            for index, (layer, size) in enumerate(LAYERS.items()):
                narrow = placement == "cut" and layer.startswith("layer")
                crossing = size // (ratio if narrow else 1)
                noise = 4096.0 * ((7 * index + 3 * ratio) % 11 - 3)
                yield reading(
                    placement, ratio, layer, "memory", noise, spread=30_000.0, not_positive=0.45
                )
                yield reading(placement, ratio, layer, "shape", crossing)
                if layer.startswith("layer"):
                    inside = size // (ratio if placement == "block" else 1)
                    yield reading(placement, ratio, layer, "shape inside", inside)
                if layer != "head":
                    yield reading(placement, ratio, layer, "wire", crossing + 16)


READINGS = tuple(_readings())
TRANSFER = Transfer(
    readings=READINGS, machine=MACHINE, versions=VERSIONS, revision="0123abc", seconds=90.0
)
