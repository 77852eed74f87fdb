"""A process that sends frames over an interface and says what that and TCP counted: interface,
host, count, size; then ``one`` to send each when the one before is acknowledged."""

import json
import os
import sys
from pathlib import Path

from isthmus.run.hop import Sender
from isthmus.run.messages import Terms
from isthmus.run.session import locator, open_session


def retransmitted() -> int:
    """Return how many segments TCP has sent again in this network namespace."""
    names, values = (
        line.split()
        for line in Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    )
    return int(dict(zip(names, values, strict=True))["RetransSegs"])


def main(interface: str, host: str, count: str, size: str, way: str = "many") -> None:
    sent = Path(f"/sys/class/net/{interface}/statistics/tx_bytes")
    with (
        open_session(listen=f"tcp/{host}:0") as session,
        Sender(session, "hop", crossing=0, timeout_s=30) as sender,
    ):
        print(locator(session), flush=True)
        sender.agree(Terms(bundle="b", codec="c"))
        payload = os.urandom(int(size))
        start, start_again = int(sent.read_text()), retransmitted()
        frame_bytes = 0
        for request in range(int(count)):
            frame_bytes += sender.send(request, payload)
            assert way == "many" or sender.flush(60)
        assert sender.flush(60)
        counted = int(sent.read_text()) - start
        again = retransmitted() - start_again
        found = {"frames": frame_bytes, "counted": counted, "retransmitted": again}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
