"""Write a bundle and verify it."""

from isthmus.export.export import Program, check_devices, export
from isthmus.export.verify import Verification, verify

__all__ = ["Program", "Verification", "check_devices", "export", "verify"]
