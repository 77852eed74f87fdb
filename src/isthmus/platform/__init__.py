"""On what the model runs: devices and links."""

from isthmus.platform.platform import Device, Link, Memory, Platform

__all__ = ["Device", "Link", "Memory", "Platform"]
