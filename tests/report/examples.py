"""A small world to report on: what the stages of the chain would have handed over."""

from math import prod

from isthmus.export import Verification
from isthmus.graph import Graph
from isthmus.graph.ir import Node, Tensor, Weight
from isthmus.models import ModelReference
from isthmus.plan import Crossing, Plan, Prediction, RunnerUp, Sensitivity, Stage, TensorSpec
from isthmus.platform import load_platform
from isthmus.run import RunRecord
from isthmus.run.record import Breakdown, CrossingRecord, Spread, StageRecord
from isthmus.study.evaluate import Record
from isthmus.train import FitConfig, FitRecord
from isthmus.train.loop import PhaseRecord
from isthmus.train.rivals import Rival

VERSIONS = {"python": "3.11.9", "isthmus": "0.1.0", "torch": "2.13.0"}
MACHINE = "Some Processor 3000, 2 cores, Linux 6.1"
CODEC = "bottleneck:ratio=8,bits=4"


def node(name: str, module: str, op: str, source: str, shape: tuple[int, ...], **costs) -> Node:
    weight_bytes = costs.get("weight_bytes", 0)
    weight = Weight(
        name=f"{module}.weight",
        num_elements=weight_bytes // 4,
        num_bytes=weight_bytes,
        trainable=True,
    )
    return Node(
        name=name,
        op=op,
        module=module,
        inputs=(source,),
        outputs=(Tensor(name=name, shape=shape),),
        weights=(weight,) if weight_bytes else (),
        macs=costs.get("macs", 0),
        ops=costs.get("ops", 0),
        read_bytes=costs.get("read_bytes", 0),
        written_bytes=4 * prod(shape),
    )


GRAPH = Graph(
    inputs=(Tensor(name="x", shape=(1, 8, 8)),),
    nodes=(
        node("conv", "conv", "conv2d", "x", (16, 8, 8), macs=9_216, weight_bytes=576),
        node("relu", "relu", "relu", "conv", (16, 8, 8), ops=1_024, read_bytes=4_096),
        node(
            "l1",
            "layer1",
            "conv2d",
            "relu",
            (32, 4, 4),
            macs=589_824,
            ops=2_000,
            weight_bytes=73_728,
            read_bytes=79_952,
        ),
        node("l2", "layer2", "conv2d", "l1", (64, 2, 2), macs=368_640, weight_bytes=92_160),
        node("pool", "pool", "mean", "l2", (64,)),
        node("fc", "fc", "linear", "pool", (10,), macs=640, weight_bytes=2_600),
    ),
    outputs=("fc",),
)

PLAN = Plan(
    objective="latency",
    split=True,
    stages=(
        Stage(
            device="mcu-a",
            nodes=("conv", "relu", "l1"),
            macs=599_040,
            weight_bytes=74_848,
            peak_memory_bytes=6_144,
            format="fp32",
            compute_s=0.8334,
        ),
        Stage(
            device="mcu-b",
            nodes=("l2", "pool", "fc"),
            macs=369_280,
            weight_bytes=95_416,
            peak_memory_bytes=3_200,
            format="fp32",
            compute_s=0.5144,
        ),
    ),
    crossings=(
        Crossing(
            link="mcu-a-mcu-b",
            cut=3,
            after="layer1",
            tensors=("l1",),
            shapes=((32, 4, 4),),
            dtypes=("float32",),
            codec=CODEC,
            payload_bytes=32,
            fixed_rate=True,
            transfer_s=0.000716,
        ),
    ),
    predicted=Prediction(latency_s=1.349, interval_s=0.8334, energy_j=0.1445),
    runner_ups=(
        RunnerUp(
            what="cut after relu",
            cuts=(2,),
            codecs=(CODEC,),
            predicted=Prediction(latency_s=1.352, interval_s=1.34, energy_j=0.1449),
            payload_bytes=64,
            reason="does not fit: mcu-b weights needs 168.5 kB, has 98.3 kB",
            fits=False,
        ),
        RunnerUp(
            what="cut after layer2",
            cuts=(4,),
            codecs=(CODEC,),
            predicted=Prediction(latency_s=1.3501, interval_s=1.3, energy_j=0.1447),
            payload_bytes=16,
            reason="+1.1 ms: computing takes 1.1 ms more",
            fits=True,
        ),
        RunnerUp(
            what="all on mcu-b",
            cuts=(0,),
            codecs=("pixels",),
            predicted=Prediction(latency_s=1.346, interval_s=1.345, energy_j=0.144),
            payload_bytes=64,
            reason="does not fit: mcu-b weights needs 169.1 kB, has 98.3 kB",
            fits=False,
        ),
        RunnerUp(
            what="all on mcu-a",
            cuts=(6,),
            codecs=("label",),
            predicted=Prediction(latency_s=1.345, interval_s=1.344, energy_j=0.144),
            payload_bytes=1,
            reason="does not fit: mcu-a weights needs 169.1 kB, has 98.3 kB",
            fits=False,
        ),
    ),
    sensitivity=(
        Sensitivity(
            figure="mcu-a memory (weights)",
            now=98_304,
            changes_at=169_064,
            unit="byte",
            then="all on mcu-a",
        ),
    ),
    inputs=(TensorSpec(name="x", shape=(1, 8, 8), dtype="float32"),),
    platform=load_platform("two-mcu-spi"),
)

FIT = FitRecord(
    model=ModelReference(text="digits-resnet"),
    data="digits",
    plan=PLAN,
    config=FitConfig(epochs=12, base_epochs=16),
    phases=(
        PhaseRecord(phase="base", epochs=2, losses=(1.2, 0.1), seconds=20.0),
        PhaseRecord(phase="distil", epochs=3, losses=(0.5, 0.3, 0.2), seconds=12.0),
    ),
    rivals=(),
    accuracy_whole=0.981,
    accuracy_split=0.9754,
    machine=MACHINE,
    versions=VERSIONS,
)

VERIFICATION = Verification(
    samples=360, largest_difference=2.1e-5, equal_predictions=1.0, payload_bytes=(32.0,)
)

TIMES = {
    name: Spread(p50=0.00021, p95=0.00025, p99=0.0004)
    for name in ("wait", "queue", "decode", "compute", "encode")
}

RUN = RunRecord(
    crossings=(
        CrossingRecord(
            after="layer1",
            link="mcu-a-mcu-b",
            codec=CODEC,
            payload_bytes_predicted=32.0,
            payload_bytes_measured=32.0,
            wire_bytes=48.0,
            encode_s=0.00004,
            decode_s=0.00003,
            link_asked_s=0.000716,
            link_observed_s=0.000731,
            retries=0,
            round_trip_s=Spread(p50=0.0003, p95=0.0004, p99=0.0005),
            rate_bytes_per_s=44600.0,
        ),
    ),
    stages=(
        StageRecord(device="mcu-a", compute_s=0.00021, pid=11, times_s=TIMES, busy_s=TIMES),
        StageRecord(device="mcu-b", compute_s=0.00017, pid=12, times_s=TIMES, busy_s=TIMES),
    ),
    accuracy=0.9722,
    latency_s=Spread(p50=0.00162, p95=0.00213, p99=0.00302),
    predicted_here_s=0.00158,
    breakdown=Breakdown(
        compute_s=0.00038,
        link_s=0.000731,
        codec_s=0.00007,
        remainder_s=0.000439,
        floor_per_hop_s=0.000142,
    ),
    throughput_per_s=1043.2,
    requests=360,
    lost=0,
    retries=0,
    emulated="devices run at this machine's speed; links are loopback TCP, throttled",
    machine=MACHINE,
    versions=VERSIONS,
)

RIVALS = tuple(
    Rival(name=name, payload_bytes=payload, accuracy=accuracy, what=what)
    for name, payload, accuracy, what in (
        ("input raw", 64, 0.981, "the input; the far device computes everything"),
        ("input png", 101.4, 0.981, "the input; the far device computes everything"),
        ("input jpeg", 349.8, 0.978, "the input; the far device computes everything"),
        ("input webp", 112.7, 0.979, "the input; the far device computes everything"),
        ("int8", 512, 0.981, "the same crossing in 8 bits, not trained"),
        ("int8 + zlib", 287.3, 0.981, "the same crossing in 8 bits, not trained"),
        ("label", 1, 0.981, "the near device computes everything, if it could hold it"),
        ("smaller network", 1, 0.951, "digits-resnet-small, 41 kB, on the near device"),
    )
)

RECORD = Record(
    graph=GRAPH,
    fit=FIT,
    verification=VERIFICATION,
    run=RUN,
    rivals=RIVALS,
)
