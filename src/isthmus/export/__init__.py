"""Write a bundle and verify it."""

from isthmus.export.export import Program, check_devices, export
from isthmus.export.verify import IntegersRecord, Verification, by_integers, verify

__all__ = [
    "IntegersRecord",
    "Program",
    "Verification",
    "by_integers",
    "check_devices",
    "export",
    "verify",
]
