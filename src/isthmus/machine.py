"""Which machine and which versions made a number."""

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("isthmus", "numpy", "onnxruntime", "openvino", "eclipse-zenoh", "torch", "lightning")
_MALLOPT = {-3: 32 << 20, -1: 256 << 20}  # M_MMAP_THRESHOLD, its most; M_TRIM_THRESHOLD


def describe_machine() -> str:
    """Return the processor, its cores and the system in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ())
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that move numbers, where installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_revision() -> str | None:
    """Return the commit that this code was checked out from, ``-dirty`` where it was changed.

    None where it was installed from a package, or where there is no git.
    """
    name = Path(__file__).name
    try:
        # Without this question, an environment inside another repository would name that one's.
        _git("ls-files", "--error-unmatch", name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", "-C", Path(__file__).parent, *args],
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees for what it needs next.

    Else every large frame is mapped anew, at a page fault for each 4 KiB of it. Only glibc knows
    this; elsewhere nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, num_bytes in _MALLOPT.items():
            libc.mallopt(parameter, num_bytes)
