"""A process that reads a hop slowly, in order, and says what it saw: address, run, count."""

import json
import resource
import sys
import time

from isthmus.run.hop import Receiver
from isthmus.run.messages import Terms
from isthmus.run.session import open_session


def main(address: str, key: str, count: str) -> None:
    in_order = 0
    with open_session(connect=address) as session:
        receiver = Receiver(session, key, Terms(bundle="b", codec="c"))
        start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for expected in range(int(count)):
            frame = receiver.receive(10.0)
            assert frame is not None, f"frame {expected} did not come"
            in_order += frame.request == expected == int.from_bytes(frame.payload[:4], "little")
            time.sleep(0.002)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib
        print(json.dumps({"in_order": in_order, "grown_kib": grown_kib}), flush=True)
        receiver.close()
        time.sleep(0.2)  # lets the last acknowledgement leave


if __name__ == "__main__":
    main(*sys.argv[1:])
