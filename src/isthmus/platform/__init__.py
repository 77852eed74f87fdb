"""On what the model runs: devices and links."""

from isthmus.platform.dump import dump_platform
from isthmus.platform.files import PRESETS, load_platform, preset_text
from isthmus.platform.platform import Device, Link, Memory, Platform, multiplexing
from isthmus.platform.routes import path, route, routes, stops
from isthmus.platform.stream import plan_to_stream, to_stream
from isthmus.platform.times import NodeTimes, load_times

__all__ = [
    "PRESETS",
    "Device",
    "Link",
    "Memory",
    "NodeTimes",
    "Platform",
    "dump_platform",
    "load_platform",
    "load_times",
    "multiplexing",
    "path",
    "plan_to_stream",
    "preset_text",
    "route",
    "routes",
    "stops",
    "to_stream",
]
