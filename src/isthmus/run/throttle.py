"""Make a fast link behave like a narrow one.

A link is busy while a frame's bytes pass, and the frame arrives a latency later. The rate holds
back the next frame; the latency does not:

.. code-block:: none

    frame 0   |== busy ==|-- latency --> released
    frame 1              |== busy ==|-- latency --> released

What says when a link is free again is one number, nanoseconds of this machine's monotonic clock,
in a small file that all users of the link share: both directions of a half-duplex link take turns.
"""

import fcntl
import os
import struct
import time
from pathlib import Path
from typing import Self

from isthmus.platform.platform import Link

_FREE_AT_NS = struct.Struct("<q")
_SPIN_S = 2e-4  # longer than a sleeping thread oversleeps; the rest of a wait is spun


class Throttle:
    """One user's view of an emulated link; owns a file handle.

    Args:
        link: What to behave like.
        clock: The file that all users of the link share; made where it is missing.
    """

    def __init__(self, link: Link, clock: Path) -> None:
        self.link = link
        self._file = os.open(clock, os.O_RDWR | os.O_CREAT, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def reserve(self, frame_bytes: int) -> float:
        """Take the link's next free span for one frame.

        Args:
            frame_bytes: Length of the frame, header included.

        Returns:
            The time at which the frame is across, in seconds of `time.monotonic`.
        """
        occupied_ns = round(self.link.occupied_s(frame_bytes) * 1e9)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            record = os.pread(self._file, _FREE_AT_NS.size, 0)
            free_ns = _FREE_AT_NS.unpack(record)[0] if record else 0
            end_ns = max(time.monotonic_ns(), free_ns) + occupied_ns
            os.pwrite(self._file, _FREE_AT_NS.pack(end_ns), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return end_ns * 1e-9 + self.link.latency_s


def wait_until(time_s: float) -> None:
    """Sleep until shortly before a time of `time.monotonic`, then spin until it has come."""
    while (left_s := time_s - time.monotonic()) > 0:
        if left_s > _SPIN_S:
            time.sleep(left_s - _SPIN_S)
