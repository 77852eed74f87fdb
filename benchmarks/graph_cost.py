"""How long does capture with all costs take, and do others count the same MACs?

    python benchmarks/graph_cost.py [--out benchmarks/results]

Whole networks of published size with random weights, one sample each, one thread, five runs.
Beside ours: torch's FlopCounterMode and fvcore's FlopCountAnalysis, which run a forward pass.
Networks of `transformers` and the figures of `fvcore` are left out where these are not installed.
"""

import argparse
import importlib.util
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from table import write_csv
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isthmus.files import write_bytes
from isthmus.graph import capture
from isthmus.machine import describe_machine, git_revision, library_versions
from isthmus.models.resnet import resnet

RUNS = 5
LIMIT_S = 15.0
PRODUCTS = (
    "addmm",
    "baddbmm",
    "bmm",
    "conv",
    "conv_transpose",
    "einsum",
    "linear",
    "matmul",
    "mv",
)
OTHERS = [name for name in ("transformers", "fvcore") if importlib.util.find_spec(name)]
if "transformers" in OTHERS:
    import transformers as tf
if "fvcore" in OTHERS:
    from fvcore.nn import FlopCountAnalysis


@dataclass(frozen=True)
class Net:
    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], Tensor]


class Answer(nn.Module):
    """A network of `transformers` that returns one tensor."""

    def __init__(self, net: nn.Module, **options: bool) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(x, **self.options)
        return answer.logits


def image() -> Tensor:
    return torch.zeros(1, 3, 224, 224)


def tokens() -> Tensor:
    return torch.zeros(1, 128, dtype=torch.int64)


def networks() -> list[Net]:
    ours = [
        Net(f"ResNet-{depth}", lambda depth=depth: imagenet(depth), image) for depth in (18, 152)
    ]
    if "transformers" not in OTHERS:
        return ours
    return [
        *ours,
        Net("MobileNetV2", mobilenetv2, image),
        Net("ConvNeXt-T", convnext, image),
        Net("DeiT-S", deit, image),
        Net("SegFormer-B0", segformer, image),
        Net("GPT-2, 128 tokens", gpt2, tokens),
        Net("BERT-base, 128 tokens", bert, tokens),
    ]


def imagenet(depth: int) -> nn.Module:
    return resnet(depth, num_classes=1000, stem="imagenet")


def mobilenetv2() -> nn.Module:
    return Answer(tf.MobileNetV2ForImageClassification(tf.MobileNetV2Config(num_labels=1000)))


def convnext() -> nn.Module:
    return Answer(tf.ConvNextForImageClassification(tf.ConvNextConfig(num_labels=1000)))


def deit() -> nn.Module:
    config = tf.DeiTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    return Answer(tf.DeiTForImageClassification(config))


def segformer() -> nn.Module:
    return Answer(tf.SegformerForSemanticSegmentation(tf.SegformerConfig(num_labels=150)))


def gpt2() -> nn.Module:
    return Answer(tf.GPT2LMHeadModel(tf.GPT2Config()), use_cache=False)


def bert() -> nn.Module:
    return Answer(tf.BertForSequenceClassification(tf.BertConfig()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--hardware", default="2core-x86")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [row for net in networks() for row in rows_of(net)]
    name = f"graph_cost_{arguments.hardware}_{date.today():%Y-%m}"
    write_csv(arguments.out / f"{name}.csv", rows)
    write_bytes(arguments.out / f"{name}.md", text(rows, name).encode())
    print(text(rows, name))


def rows_of(net: Net) -> list[dict[str, float | str]]:
    torch.manual_seed(0)
    model, x = net.make().eval(), net.example()
    counters: dict[str, Callable[[], tuple[int, str]]] = {
        "isthmus": lambda: by_isthmus(model, x),
        "torch": lambda: by_torch(model, x),
    }
    if "fvcore" in OTHERS:
        counters["fvcore"] = lambda: by_fvcore(model, x)
    rows: list[dict[str, float | str]] = []
    for counter, count in counters.items():
        walls, busy = [], []
        for _ in range(RUNS):
            wall, process = time.perf_counter(), time.process_time()
            macs, unknown = count()
            walls.append(time.perf_counter() - wall)
            busy.append(time.process_time() - process)
        rows.append(
            {
                "network": net.name,
                "counter": counter,
                "macs": macs,
                "not_counted": unknown,
                "median_s": round(statistics.median(walls), 3),
                "min_s": round(min(walls), 3),
                "max_s": round(max(walls), 3),
                "median_cpu_s": round(statistics.median(busy), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def by_isthmus(model: nn.Module, x: Tensor) -> tuple[int, str]:
    graph = capture(model, (x,))
    return graph.macs, " ".join(graph.unknown_ops)


def by_torch(model: nn.Module, x: Tensor) -> tuple[int, str]:
    """Halve what the counter says: two for each MAC."""
    with (
        sdpa_kernel(SDPBackend.MATH),  # the counter knows no other attention on a CPU
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        model(x)
    return counter.get_total_flops() // 2, ""


def by_fvcore(model: nn.Module, x: Tensor) -> tuple[int, str]:
    """Count products alone: fvcore counts one for each MAC, and norms and pooling as well."""
    analysis = FlopCountAnalysis(model, (x,)).unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False).tracer_warnings("none")
    counts = analysis.by_operator()
    unknown = sorted(op for op in analysis.unsupported_ops() if "attention" in op)
    return round(sum(counts[op] for op in counts if op in PRODUCTS)), " ".join(unknown)


def text(rows: list[dict[str, float | str]], name: str) -> str:
    found = library_versions() | {library: version(library) for library in OTHERS}
    versions = ", ".join(f"{key} {value}" for key, value in found.items())
    deep = next(row for row in rows if row["network"] == "ResNet-152")
    lines = [
        f"# {name}",
        "",
        "Capture with all costs (MACs, other operations, bytes, weights), and MACs beside those",
        "of two other counters, for one sample. Times are wall-clock, one thread, median of five",
        "runs (smallest - largest). torch is its FlopCounterMode, fvcore its FlopCountAnalysis,",
        "without the figures for norms and pooling; both run the network and count MACs alone,",
        "where ours runs nothing and writes down every cost.",
        "",
        "- command: `taskset -c 1 python benchmarks/graph_cost.py`",
        f"- machine: {describe_machine()}",
        f"- load in the last 15 minutes: {os.getloadavg()[2]:.1f}",
        f"- versions: {versions}",
        f"- revision: {git_revision()}",
        "",
        f"Capture and costs of ResNet-152 at 224 px: {deep['median_s']} s of at most {LIMIT_S:g} s"
        f" ({deep['median_cpu_s']} s of it on the processor).",
        "",
        "| network | counter | MACs | of ours | seconds | CPU seconds | not counted |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    ours = 1.0
    for row in rows:
        ours = float(row["macs"]) if row["counter"] == "isthmus" else ours
        lines.append(
            f"| {row['network']} | {row['counter']} | {row['macs']:,} | "
            f"{float(row['macs']) / ours:.2%} | {row['median_s']} ({row['min_s']} - "
            f"{row['max_s']}) | {row['median_cpu_s']} | {row['not_counted']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
