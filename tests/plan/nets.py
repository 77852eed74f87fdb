"""Small graphs and platforms, by hand and at random."""

from math import prod

from isthmus.graph import Graph, Node, Tensor, Weight
from isthmus.platform import Device, Link, Memory, Platform

ROOMY = Memory()


def weight(name, num_bytes):
    return Weight(name=name, num_elements=num_bytes // 4, num_bytes=num_bytes, trainable=True)


def chain(*layers, image=(1, 8, 8)):
    """Return a chain of (MACs, weight bytes, output shape); layer k is the module ``layer{k}``."""
    nodes = []
    before = "x"
    for k, (macs, weight_bytes, shape) in enumerate(layers):
        node = Node(
            name=f"node{k}",
            op="conv2d",
            module=f"layer{k}",
            inputs=(before,),
            outputs=(Tensor(name=f"t{k}", shape=shape),),
            weights=(weight(f"w{k}", weight_bytes),) if weight_bytes else (),
            macs=macs,
            written_bytes=4 * prod(shape),
        )
        nodes.append(node)
        before = f"t{k}"
    return Graph(inputs=(Tensor(name="x", shape=image),), nodes=tuple(nodes), outputs=(before,))


def pair(*, first=1e6, second=1e6, rate=125_000.0, latency=0.001, memories=(ROOMY, ROOMY), **link):
    """Return two devices joined by a link."""
    return Platform(
        name="pair",
        devices=(
            Device(name="near", macs_per_s={"fp32": first}, memory=memories[0]),
            Device(name="far", macs_per_s={"fp32": second}, memory=memories[1]),
        ),
        links=(Link(between=("near", "far"), bytes_per_s=rate, latency_s=latency, **link),),
        input="near",
        output="far",
    )
