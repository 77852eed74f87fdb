"""Small graphs and platforms, by hand and at random."""

from hypothesis import strategies as st

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


@st.composite
def graphs(draw):
    """Draw a network of up to six nodes with skips and tied weights."""
    tensors = [Tensor(name="x", shape=draw(st.sampled_from([(1, 4, 4), (3, 2, 2), (5,)])))]
    pool = [weight(f"w{k}", 4 * draw(st.integers(1, 500))) for k in range(3)]
    nodes = []
    for k in range(draw(st.integers(1, 6))):
        skips = draw(st.sets(st.sampled_from([tensor.name for tensor in tensors]), max_size=1))
        shape = draw(st.sampled_from([(4, 3, 3), (8, 2, 2), (16,), (2,)]))
        node = Node(
            name=f"node{k}",
            op="op",
            module=f"m{k // 2}.n{k}",
            inputs=tuple(dict.fromkeys([tensors[-1].name, *sorted(skips)])),
            outputs=(Tensor(name=f"t{k}", shape=shape),),
            weights=tuple(draw(st.lists(st.sampled_from(pool), max_size=2, unique=True))),
            macs=draw(st.none() | st.integers(0, 5000)),
        )
        nodes.append(node)
        tensors.append(node.outputs[0])
    return Graph(inputs=(tensors[0],), nodes=tuple(nodes), outputs=(tensors[-1].name,))


@st.composite
def memories(draw):
    room = st.none() | st.integers(100, 6000).map(float)
    if draw(st.booleans()):
        return Memory(shared_bytes=draw(room))
    return Memory(weights_bytes=draw(room), activations_bytes=draw(room))


@st.composite
def platforms(draw):
    """Draw a chain of one to four devices; now and then one lacks fp32."""
    count = draw(st.integers(1, 4))
    rates = st.floats(1e3, 1e7)
    devices = tuple(
        Device(
            name=f"d{k}",
            memory=draw(memories()),
            macs_per_s={draw(st.sampled_from(["fp32"] * 9 + ["int8"])): draw(rates)},
            j_per_mac={"fp32": draw(st.floats(1e-12, 1e-6))},
            sram_j_per_byte=draw(st.sampled_from([0.0, 1e-9])),
            static_w=draw(st.sampled_from([0.0, 0.01])),
        )
        for k in range(count)
    )
    links = tuple(
        Link(
            between=(f"d{k}", f"d{k + 1}"),
            bytes_per_s=draw(st.floats(1e2, 1e7)),
            latency_s=draw(st.sampled_from([0.0, 0.01])),
            j_per_byte=draw(st.floats(1e-12, 1e-6)),
            overhead_bytes=draw(st.integers(0, 8)),
            mtu_bytes=draw(st.none() | st.integers(8, 100)),
            duplex=draw(st.sampled_from(["half", "full"])),
        )
        for k in range(count - 1)
    )
    return Platform(name="chain", devices=devices, links=links, input="d0", output=f"d{count - 1}")
