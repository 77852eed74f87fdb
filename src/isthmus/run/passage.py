"""What the way of a frame took, as its sender saw it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One frame on its link.

    Attributes:
        request: Its request.
        frame_bytes: Its length, header included.
        asked_s: How long the emulated link should take for it; 0 without one.
        observed_s: Time from handing it over to giving it to the transport; 0 without one.
        start_s: When it was handed over, by this machine's monotonic clock.
    """

    request: int
    frame_bytes: int
    asked_s: float
    observed_s: float
    start_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """One frame and its acknowledgement, by the sender's clock alone.

    Attributes:
        frame_bytes: Length of the frame.
        seconds: From giving it to the transport to its acknowledgement, less what the receiver
            says it kept it for.
    """

    frame_bytes: int
    seconds: float
