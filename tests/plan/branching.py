"""Small graphs of any shape on small platforms, at random, and a walk through any placement."""

from dataclasses import replace
from functools import cache
from itertools import product
from math import inf
from types import SimpleNamespace

from isthmus.graph import Graph, Node, Tensor
from isthmus.plan.placement import Message, Placement, needed, picks_for
from isthmus.platform import Device, Link, Memory, Platform, route, stops
from isthmus.wire.frames import HEADER_BYTES
from tests.plan.nets import weight

PARTS = ("macs", "weight_bytes", "buffer_bytes")


def random_graph(r):
    """Return a network of two to five nodes: branches, skips, tied weights, several outputs."""
    shapes = [(1, 4, 4), (3, 2, 2), (5,)]
    inputs = tuple(
        Tensor(name=f"x{k}", shape=r.choice(shapes)) for k in range(r.choice([1, 1, 1, 2]))
    )
    tensors = list(inputs)
    pool = [weight(f"w{k}", 4 * r.randint(1, 300)) for k in range(3)]
    nodes = []
    for k in range(r.randint(2, 5)):
        read = r.sample(tensors, r.randint(1, min(2, len(tensors))))
        if r.random() < 0.6:
            read[0] = tensors[-1]
        nodes.append(random_node(r, k, read, pool))
        tensors += nodes[-1].outputs
    last = tensors[-1]
    others = [tensor.name for tensor in tensors if r.random() < 0.15 and tensor is not last]
    return Graph(inputs=inputs, nodes=tuple(nodes), outputs=(*others, last.name))


def random_node(r, index, read, pool):
    outputs = tuple(
        Tensor(
            name=f"t{index}{which}",
            shape=r.choice([(4, 3, 3), (8, 2, 2), (16,), (2,)]),
            batched=r.random() > 0.05,
        )
        for which in "ab"[: r.choice([1, 1, 1, 2])]
    )
    return Node(
        name=f"node{index}",
        op=r.choice(["conv2d", "relu", "add"]),
        module=f"m{index}",
        inputs=tuple(dict.fromkeys(tensor.name for tensor in read)),
        outputs=outputs,
        weights=tuple(r.sample(pool, r.randint(0, 2))),
        macs=r.choice([None, 0, r.randint(1, 5000)]),
        ops=r.randint(0, 500),
        read_bytes=r.randint(0, 2000),
        written_bytes=r.randint(0, 500),
    )


def random_memory(r):
    def room(low, high):
        return None if r.random() < 0.5 else float(r.randint(low, high))

    if r.random() < 0.5:
        return Memory(shared_bytes=room(800, 3000))
    return Memory(weights_bytes=room(300, 2000), activations_bytes=room(200, 1500))


def random_device(r, name):
    return Device(
        name=name,
        memory=random_memory(r),
        memory_bytes_per_s=r.choice([None, 1e6]),
        macs_per_s={r.choice(["fp32"] * 12 + ["int8"]): 10 ** r.uniform(4, 5.5)},
        start_s=r.choice([0.0, 1e-4]),
        j_per_mac={"fp32": 10 ** r.uniform(-12, -8)},
        sram_j_per_byte=r.choice([0.0, 1e-9]),
        static_w=r.choice([0.0, 10 ** r.uniform(-6, -3)]),
        price=float(r.choice([0, 1, 2])),
        unsupported=r.choice([(), (), (), (), ("relu",)]),
        codecs=r.choice([None, None, ("uniform", "label")]),
    )


def random_platform(r):
    """Return two or three devices on a line, in a ring or on a bus, two of them alike at times."""
    count = r.choice([2, 3])
    names = [f"d{k}" for k in range(count)]
    pairs = [("d0", "d1"), ("d1", "d2"), ("d0", "d2")][: 1 if count == 2 else r.choice([2, 3])]
    bus = r.choice(["", "", "bus"])
    links = [
        Link(
            between=pair,
            bytes_per_s=10 ** r.uniform(5, 8),
            latency_s=r.choice([0.0, 1e-4]),
            setup_s=r.choice([0.0, 1e-4]),
            j_per_byte=10 ** r.uniform(-11, -8),
            overhead_bytes=r.randint(0, 8),
            mtu_bytes=r.choice([None, 50]),
            duplex="half" if bus else r.choice(["full", "half"]),
            medium=bus,
        )
        for pair in pairs
    ]
    devices = [random_device(r, name) for name in names]
    output = r.choice(["d0", names[-1]])
    if output == "d0" and len(links) == 3:
        devices[2] = replace(devices[1], name="d2")
        links[2] = replace(links[0], between=("d0", "d2"))
    return Platform(
        name="p", devices=tuple(devices), links=tuple(links), input="d0", output=output
    )


def every_placement(setting):
    """Yield devices of nodes and codecs of messages: all there are."""
    for places in product(range(len(setting.sites)), repeat=len(setting.graph.nodes)):
        sent = needed(setting, places)
        options = [picks_for(setting, setting.parcels[k], a, b) for k, a, b in sent]
        for picks in product(*options):
            messages = tuple(
                Message(parcel=k, source=a, target=b, pick=pick)
                for (k, a, b), pick in zip(sent, picks, strict=True)
            )
            yield Placement(places=places, messages=messages)


@cache
def bill(spec):
    """Return what a codec costs, asked once: its spec works that out anew each time."""
    names = ["payload_bytes", "max_payload_bytes"]
    names += [f"{half}_{what}" for half in ("encoder", "decoder") for what in PARTS]
    return SimpleNamespace(**{name: getattr(spec, name) for name in names})


class Walk:
    """One sample on its way, step by step: what is held where, and what it has cost so far."""

    def __init__(self, setting, placement):
        self.graph, self.platform = setting.graph, setting.platform
        self.devices = {device.name: device for device in self.platform.devices}
        names = list(self.devices)
        self.places = [names[place] for place in placement.places]
        self.choices = {
            (setting.parcels[m.parcel].tensor.name, names[m.source], names[m.target]): (
                setting.choices[m.pick]
            )
            for m in placement.messages
        }
        self.tensors = self.graph.tensors()
        self.held: dict[str, set[str]] = {name: set() for name in names}
        self.weights: dict[str, dict[object, int]] = {name: {} for name in names}
        self.peak = dict.fromkeys(names, 0)
        self.on = {self.platform.input, self.platform.output}
        self.busy = {}
        self.seconds = self.joules = self.drop = 0.0

    def figures(self):
        """Go all the way; return what it costs, or None where the devices cannot."""
        self.send([tensor.name for tensor in self.graph.inputs], self.platform.input, 0)
        for k, (node, place) in enumerate(zip(self.graph.nodes, self.places, strict=True)):
            device = self.devices[place]
            if "fp32" not in device.macs_per_s or node.op in device.unsupported:
                return None
            self.compute(node, device, begins=place not in self.places[:k])
            for name, held in self.held.items():
                self.held[name] = {one for one in held if name in self.readers(one, k + 1)}
            self.send([tensor.name for tensor in node.outputs], place, k + 1)
        if not all(map(self.fits, self.devices.values())):
            return None
        static_w = sum(self.devices[name].static_w for name in self.on)
        return {
            "latency_s": self.seconds,
            "interval_s": max(self.busy.values()),
            "energy_j": self.joules + static_w * self.seconds,
            "price": sum(self.devices[name].price for name in self.on),
            "drop": self.drop,
        }

    def compute(self, node, device, *, begins):
        made = sum(tensor.num_bytes for tensor in node.outputs)
        self.hold(device.name, made)
        self.weights[device.name] |= {weight.name: weight.num_bytes for weight in node.weights}
        count, moved = (node.macs or 0) + node.ops, node.read_bytes + node.written_bytes
        bandwidth = device.memory_bytes_per_s or inf
        seconds = max(count / device.macs_per_s["fp32"], moved / bandwidth)
        self.work(device, seconds + device.start_s * begins, count, node.written_bytes)

    def send(self, made, source, start):
        """Send what was just made, when nodes from ``start`` on are still to come."""
        ways = [
            (name, target)
            for name in made
            for target in dict.fromkeys(self.readers(name, start))
            if target != source
        ]
        for name, target in ways:
            self.held[target].add(name)
        self.held[source] |= {name for name in made if self.readers(name, start)}
        for name, target in ways:
            self.deliver(self.choices[name, source, target], name, source, target)
        self.held[source] -= {n for n in made if source not in self.readers(n, start)}

    def deliver(self, choice, name, source, target):
        spec = bill(choice.spec)
        links = route(self.platform, source, target)
        path = stops(source, links)
        self.drop += choice.drop or 0.0
        self.weights[source][name, target, "encoder"] = spec.encoder_weight_bytes
        self.weights[target][name, target, "decoder"] = spec.decoder_weight_bytes
        self.hold(source, spec.encoder_buffer_bytes)
        self.hold(target, spec.decoder_buffer_bytes)
        self.code(source, spec.encoder_macs, spec.encoder_buffer_bytes)
        decoded = spec.decoder_buffer_bytes + self.tensors[name].num_bytes
        self.code(target, spec.decoder_macs, decoded)
        for relay in path[1:-1]:
            self.hold(relay, spec.max_payload_bytes)
            self.code(relay, 0, spec.max_payload_bytes)
        for link, sender in zip(links, path, strict=False):
            frame, clock = spec.payload_bytes + HEADER_BYTES, link.clock(sender)
            self.seconds += link.transfer_s(frame)
            self.joules += link.transfer_j(frame)
            self.busy[clock] = self.busy.get(clock, 0.0) + link.occupied_s(frame)

    def code(self, name, macs, written):
        device = self.devices[name]
        used = "fp32" if "fp32" in device.macs_per_s else next(iter(device.macs_per_s))
        self.work(device, macs / device.macs_per_s[used], macs, written)

    def work(self, device, seconds, macs, written):
        used = "fp32" if "fp32" in device.macs_per_s else next(iter(device.macs_per_s))
        self.seconds += seconds
        self.joules += macs * device.j_per_mac.get(used, 0.0) + written * device.sram_j_per_byte
        self.busy[device.name] = self.busy.get(device.name, 0.0) + seconds
        self.on.add(device.name)

    def hold(self, name, more):
        held = sum(self.tensors[one].num_bytes for one in self.held[name])
        self.peak[name] = max(self.peak[name], held + more)

    def readers(self, name, start):
        nodes = zip(self.graph.nodes[start:], self.places[start:], strict=True)
        found = [place for node, place in nodes if name in node.inputs]
        return [*found, self.platform.output] if name in self.graph.outputs else found

    def fits(self, device):
        weights, peak = sum(self.weights[device.name].values()), self.peak[device.name]
        memory = device.memory
        rooms = (
            (weights, memory.weights_bytes),
            (peak, memory.activations_bytes),
            (weights + peak, memory.shared_bytes),
        )
        return all(room is None or need <= room for need, room in rooms)


def walk(setting, placement):
    """Return what a placement costs, or None where the devices cannot run it."""
    return Walk(setting, placement).figures()
