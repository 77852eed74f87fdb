"""A process that asks a service many things, several at a time: host, keys, count, deadline."""

import json
import sys
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.errors import RequestError
from isthmus.run.client import Client
from tests.run.bundles import logits, samples


def main(host: str, keys: str, count: str, deadline: str) -> None:
    x = samples(int(count))
    right = logits(x)
    ends_s: dict[int, float] = {}

    def note(index: int, future: Future[Any]) -> None:
        ends_s[index] = time.monotonic()

    found: dict[str, int] = {}
    with Client(host, keys=Path(keys), deadline_s=30) as client:
        client.ask(x[0])
        print("begun", flush=True)
        starts_s, futures = [], []
        for index, sample in enumerate(x):
            time.sleep(0.01)
            starts_s.append(time.monotonic())
            future = client.submit(sample, deadline_s=float(deadline))
            future.add_done_callback(partial(note, index))
            futures.append(future)
        for index, future in enumerate(futures):
            try:
                word = "right" if np.array_equal(future.result(60)[0], right[index]) else "wrong"
            except RequestError as error:
                word = error.reason
            found[word] = found.get(word, 0) + 1
        time.sleep(0.1)
    print(json.dumps({**found, "longest_s": max(ends_s[k] - starts_s[k] for k in ends_s)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
