"""On what the model runs: devices and links."""

from isthmus.platform.files import PRESETS, dump_platform, load_platform, preset_text
from isthmus.platform.platform import Device, Link, Memory, Platform, path

__all__ = [
    "PRESETS",
    "Device",
    "Link",
    "Memory",
    "Platform",
    "dump_platform",
    "load_platform",
    "path",
    "preset_text",
]
