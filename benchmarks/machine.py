"""What the benchmark ran on, without anything that names the machine or its owner."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from kerntune import __version__


def describe(tuned_version: str) -> dict[str, Any]:
    """CPUs, memory, kernel and versions."""
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)),
        "kernel": ".".join(re.findall(r"\d+", platform.release())[:2]),
        "versions": {
            "kerntune": __version__,
            "TuneD": tuned_version or "(not measured)",
            "Python": platform.python_version(),
            "dbus-daemon": version_of("dbus-daemon", "--version"),
        },
    }


def cpu_model(cpuinfo: str) -> str:
    """`model name` of the first CPU, where the architecture has one."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return re.sub(r"\((R|TM)\)", "", found[1]) if found else platform.machine()


def version_of(*argv: str) -> str:
    """The first thing that looks like a version in what a program says of itself."""
    said = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else "unknown"
