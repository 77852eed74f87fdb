"""A process that sends frames over an interface and says what that counted: interface, host,
count, size."""

import json
import os
import sys
from pathlib import Path

from isthmus.run.hop import Sender, Terms, locator, open_session


def main(interface: str, host: str, count: str, size: str) -> None:
    sent = Path(f"/sys/class/net/{interface}/statistics/tx_bytes")
    with (
        open_session(listen=f"tcp/{host}:0") as session,
        Sender(session, "hop", crossing=0, timeout_s=30) as sender,
    ):
        print(locator(session), flush=True)
        sender.agree(Terms(bundle="b", codec="c"))
        payload = os.urandom(int(size))
        start = int(sent.read_text())
        frame_bytes = sum(sender.send(request, payload) for request in range(int(count)))
        assert sender.flush(60)
        counted = int(sent.read_text()) - start
        print(json.dumps({"frames": frame_bytes, "counted": counted}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
