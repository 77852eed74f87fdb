"""Graphs and platforms drawn at random, small enough to list every plan."""

from dataclasses import replace
from itertools import combinations, pairwise

from isthmus.graph import Graph, Node, Tensor, fingerprint
from isthmus.platform import Device, Link, Memory, NodeTimes, Platform
from tests.plan.nets import weight

KINDS = ("chain", "tree", "bus", "mesh", "one-way", "star of twins", "bus of twins")


def draw_graph(random, *, most_nodes=4):
    """Draw a network with skips, tied weights, views and an operation now and then unknown."""
    tensors = [Tensor(name="x", shape=random.choice([(1, 4, 4), (3, 2, 2), (5,)]))]
    pool = [weight(f"w{k}", 4 * random.randint(1, 500)) for k in range(3)]
    nodes = []
    for k in range(random.randint(1, most_nodes)):
        skips = [random.choice(tensors).name] if random.random() < 0.3 else []
        made = Tensor(name=f"t{k}", shape=random.choice([(4, 3, 3), (8, 2, 2), (16,), (2,)]))
        node = Node(
            name=f"node{k}",
            op=random.choice(["op", "op", "gelu"]),
            module=f"m{k // 2}.n{k}",
            inputs=tuple(dict.fromkeys([tensors[-1].name, *skips])),
            outputs=(made,),
            weights=tuple(random.sample(pool, random.randint(0, 2))),
            macs=random.choice([None, 0, random.randint(0, 5000), random.randint(0, 5000)]),
            ops=random.choice([0, random.randint(0, 2000)]),
            read_bytes=random.randint(0, 4000),
            written_bytes=made.num_bytes,
        )
        nodes.append(node)
        tensors.append(made)
    return Graph(inputs=(tensors[0],), nodes=tuple(nodes), outputs=(tensors[-1].name,))


def draw_device(random, name, graph, *, able=False):
    """Draw a device; now and then one lacks fp32, an operation, a codec, or has a table.

    An able one lacks nothing and has room: most plans are left to choose from.
    """

    def room():
        return None if able else random.choice([None, None, float(random.randint(100, 6000))])

    separate = Memory(weights_bytes=room(), activations_bytes=room())
    seconds = {node.name: 10 ** random.uniform(-5, -2) for node in graph.nodes}
    table = NodeTimes(graph=fingerprint(graph), seconds=seconds, machine="bench", whole_s=1.0)
    return Device(
        name=name,
        memory=random.choice([separate, Memory(shared_bytes=room())]),
        memory_bytes_per_s=random.choice([None, 10 ** random.uniform(4, 7)]),
        macs_per_s={
            random.choice(["fp32"] * 9 + ["fp32" if able else "int8"]): 10 ** random.uniform(3, 7)
        },
        efficiency=random.choice([(), ((100.0, 0.2), (3000.0, 0.9))]),
        start_s=random.choice([0.0, 10 ** random.uniform(-5, -2)]),
        j_per_mac={"fp32": 10 ** random.uniform(-12, -6)},
        sram_j_per_byte=random.choice([0.0, 1e-9]),
        static_w=random.choice([0.0, 0.01, 10 ** random.uniform(-3, 1)]),
        price=random.choice([0.0, 1.0, 2.0, random.uniform(0, 9)]),
        unsupported=random.choice([(), (), () if able else ("gelu",)]),
        codecs=None
        if able
        else random.choice([None, None, None, ("uniform",), ("pixels", "label", "bottleneck")]),
        node_s=table if random.random() < 0.15 else None,
    )


def draw_link(random, ends, *, duplexes=("half", "full"), medium=""):
    """Draw a link."""
    return Link(
        between=ends,
        bytes_per_s=10 ** random.uniform(2, 7),
        latency_s=random.choice([0.0, 10 ** random.uniform(-5, -2)]),
        setup_s=random.choice([0.0, 10 ** random.uniform(-5, -3)]),
        j_per_byte=10 ** random.uniform(-12, -6),
        overhead_bytes=random.randint(0, 8),
        mtu_bytes=random.choice([None, random.randint(8, 100)]),
        duplex="half" if medium else random.choice(duplexes),
        medium=medium,
    )


def _draw_links(random, kind, names):
    pairs = list(combinations(names, 2))
    if kind == "chain":
        return [draw_link(random, ends) for ends in pairwise(names)]
    if kind == "tree":
        return [
            draw_link(random, (names[random.randrange(k)], names[k])) for k in range(1, len(names))
        ]
    if kind in ("bus", "bus of twins"):
        bus = draw_link(random, ("a", "b"), medium="bus")
        return [replace(bus, between=ends) for ends in pairs]
    if kind == "star of twins":
        spoke = draw_link(random, ("a", "b"))
        return [replace(spoke, between=(names[0], name)) for name in names[1:]]
    duplexes = ("half", "full", "one-way") if kind == "one-way" else ("half", "full")
    links = []
    for k, ends in enumerate(pairs):
        if k < len(names) - 1 or random.random() < 0.6:
            turned = ends[::-1] if random.random() < 0.3 else ends
            medium = random.choice(["", "", "air"]) if kind == "mesh" else ""
            links.append(draw_link(random, turned, duplexes=duplexes, medium=medium))
    return links


def draw_platform(random, graph, *, most_devices=3, kinds=KINDS):
    """Draw a platform; an InputError where one-way links leave no way to the output."""
    kind = random.choice(kinds)
    names = [f"d{k}" for k in range(random.randint(1, most_devices))]
    able = random.random() < 0.5
    devices = [draw_device(random, name, graph, able=able) for name in names]
    if kind.endswith("twins"):
        devices[1:] = [replace(devices[-1], name=name) for name in names[1:]]
        ends = names[:1] * 2 if random.random() < 0.7 else random.choices(names, k=2)
    else:
        ends = random.choices(names, k=2)
    return Platform(
        name=kind.replace(" ", "-"),
        devices=tuple(devices),
        links=tuple(_draw_links(random, kind, names)),
        input=ends[0],
        output=ends[1],
    )
