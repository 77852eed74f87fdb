"""Write a bundle and verify it."""

from isthmus.export.export import Program, export
from isthmus.export.verify import Verification, verify

__all__ = ["Program", "Verification", "export", "verify"]
