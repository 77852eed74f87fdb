"""Plans written by hand: stages between given cuts, on as many devices."""

from itertools import pairwise

from isthmus.backends import TensorSpec
from isthmus.graph import Graph, cuts
from isthmus.plan.plan import Crossing, Plan, Prediction, Stage
from isthmus.platform import Device, Link, Platform


def plan_at(graph: Graph, *indices: int, codec: str = "raw") -> Plan:
    """Cut a graph at some indices, one device more than cuts."""
    edges = (0, *indices, len(graph.nodes))
    names = [f"device{k}" for k in range(len(indices) + 1)]
    stages = tuple(
        Stage(
            device=name,
            nodes=tuple(node.name for node in graph.nodes[start:end]),
            macs=0,
            weight_bytes=0,
            peak_memory_bytes=0,
            format="fp32",
            compute_s=0.0,
        )
        for name, start, end in zip(names, edges, edges[1:], strict=False)
    )
    links = tuple(Link(between=(a, b), bytes_per_s=1e6) for a, b in pairwise(names))
    crossings = tuple(
        Crossing(
            link=link.name,
            cut=index,
            after=cuts(graph)[index].after,
            tensors=tuple(tensor.name for tensor in cuts(graph)[index].tensors),
            shapes=tuple(tensor.shape for tensor in cuts(graph)[index].tensors),
            dtypes=tuple(tensor.dtype for tensor in cuts(graph)[index].tensors),
            codec=codec,
            payload_bytes=0.0,
            fixed_rate=True,
            transfer_s=0.0,
        )
        for link, index in zip(links, indices, strict=True)
    )
    return Plan(
        objective="latency",
        split=len(indices) > 0,
        stages=stages,
        crossings=crossings,
        predicted=Prediction(latency_s=0.0, interval_s=0.0, energy_j=0.0),
        inputs=tuple(TensorSpec(name=t.name, shape=t.shape, dtype=t.dtype) for t in graph.inputs),
        platform=Platform(
            name="bench",
            devices=tuple(Device(name=name, macs_per_s={"fp32": 1e9}) for name in names),
            links=links,
            input=names[0],
            output=names[-1],
        ),
    )
