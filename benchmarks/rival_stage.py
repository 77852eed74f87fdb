"""One stage of a rival in `benchmarks/pipeline.py`: what such a set-up needs, and no more.

python benchmarks/rival_stage.py WAY CUT RANK PORT
"""

import pickle
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from isthmus.models import resnet

Array = npt.NDArray[Any]
Send = Callable[[Array], int]
Receive = Callable[[], Array]

WIDTH = 64
REQUESTS = 200
ENDS = {  # of all stages but the last
    "even2": ("layer2",),
    "even4": ("layer1", "layer2", "layer3"),
    "uneven4": ("stem", "layer1", "layer4"),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet(18, width=WIDTH, num_classes=100).eval()


def stage(kind: str, cut: str, rank: int, port: int) -> None:
    """Be one stage of a rival; say what computing took, and how many bytes it sent, at the end."""
    torch.set_num_threads(1)
    children = dict(network().named_children())
    names, ends = list(children), [*ENDS[cut], "head"]
    stages = len(ends)
    first = 0 if rank == 1 else names.index(ends[rank - 2]) + 1
    part = nn.Sequential(*(children[n] for n in names[first : names.index(ends[rank - 1]) + 1]))
    with ExitStack() as stack, torch.inference_mode():
        send, receive = RIVALS[kind](stack, rank, stages, port)
        seconds, num_bytes = [], 0
        while len(x := receive()):
            begin_s = time.perf_counter()
            y = part(torch.from_numpy(x)).numpy()
            seconds.append(time.perf_counter() - begin_s)
            num_bytes = send(y)
        if rank < stages:
            send(x)
        print(statistics.median(seconds[:REQUESTS]), num_bytes, flush=True)


def by_gloo(stack: ExitStack, rank: int, stages: int, port: int) -> tuple[Send, Receive]:
    """Send by torch.distributed: a header of the shape's length, the shape, then the tensor."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=stages + 1
    )
    stack.callback(dist.destroy_process_group)
    before, after = (rank - 1) % (stages + 1), (rank + 1) % (stages + 1)

    def send(x: Array) -> int:
        shape = torch.tensor([*x.shape, *[1] * (4 - x.ndim), x.ndim])
        dist.send(shape, after)
        if x.size:
            dist.send(torch.from_numpy(np.ascontiguousarray(x)), after)
        return x.nbytes

    def receive() -> Array:
        shape = torch.zeros(5, dtype=torch.int64)
        dist.recv(shape, before)
        x = torch.empty(shape[: int(shape[4])].tolist())
        if x.numel():
            dist.recv(x, before)
        return x.numpy()

    return send, receive


def by_pickle(stack: ExitStack, rank: int, stages: int, port: int) -> tuple[Send, Receive]:
    """Send pickled arrays, each after its length."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", port + 1 + rank)))
    there = connected(port + 1 + (rank + 1) % (stages + 1))
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stack.enter_context(there)
    here = stack.enter_context(server.accept()[0])

    def send(x: Array) -> int:
        data = pickle.dumps(x)
        there.sendall(len(data).to_bytes(8, "little") + data)
        return len(data)

    def receive() -> Array:
        found: Array = pickle.loads(taken(here, int.from_bytes(taken(here, 8), "little")))
        return found

    return send, receive


def connected(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.01)


def taken(end: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = end.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return bytes(data)


RIVALS: dict[str, Callable[[ExitStack, int, int, int], tuple[Send, Receive]]] = {
    "torch.distributed, gloo": by_gloo,
    "pickle over sockets": by_pickle,
}

if __name__ == "__main__":
    stage(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
