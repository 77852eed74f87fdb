"""What both ends of a hop must agree on, and how they find out."""

from dataclasses import dataclass

from isthmus.errors import RunError
from isthmus.files import from_json

PROTOCOL = 5
TERMS_SCHEMA = "isthmus.terms/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What both ends of a hop must agree on before the first frame.

    Attributes:
        bundle: Id of the bundle.
        codec: What carries the crossing, tensors included.
        protocol: Version of the rules of `isthmus.run.hop`.
    """

    bundle: str
    codec: str
    protocol: int = PROTOCOL


def check_terms(own: Terms, answer: bytes, *, crossing: int) -> None:
    """Compare a sender's terms with those that its receiver answered with.

    Raises:
        RunError: They differ; says in what.
    """
    other = from_json(answer, Terms, schema=TERMS_SCHEMA, where=f"hop {crossing}")
    for name in ("protocol", "bundle", "codec"):
        mine, theirs = getattr(own, name), getattr(other, name)
        if mine != theirs:
            raise RunError(
                f"hop {crossing}: the sender has {name} {mine!r}, the receiver {theirs!r}; give "
                "both the same bundle and the same Isthmus"
            )
