"""The reasons for a missing file of the kernel: its build configuration, and a driver that may yet come."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from kerntune.kernel.files import KernelView, read_or_none

QUEUE: Final = "run/udev/queue"  # it exists while udev has devices left to look at (udev_queue_get_queue_is_empty(3))


def settling(kernel: KernelView) -> bool:
    """Return whether udev is still looking at devices: it loads the drivers of those that it finds."""
    return bool(kernel.glob(QUEUE))


def kernel_release(kernel: KernelView) -> str:
    """Return the running kernel's release, as `uname -r` prints it."""
    return read_or_none(kernel, "proc/sys/kernel/osrelease") or "unknown"


def missing(kernel: KernelView, path: str, option: str) -> str:
    """Return a text for people: the file is missing, and what CONFIG_`option` says of it if that can be read."""
    said = configured(kernel, option)
    return f"/{path} is missing; " + (said or f"whether the kernel has CONFIG_{option} cannot be read here")


def built_as_modules(kernel: KernelView, options: Iterable[str]) -> frozenset[str]:
    """Return those of the options that the kernel was built with as modules; none if no configuration is readable."""
    for place in places(kernel):
        if text := read_or_none(kernel, place):
            # Most of its ten thousand lines are about something else.
            return frozenset(name for name in options if re.search(rf"^CONFIG_{name}=m$", text, re.MULTILINE))
    return frozenset()


def places(kernel: KernelView) -> tuple[str, str]:
    """Return the files that may have the build configuration."""
    return f"boot/config-{kernel_release(kernel)}", "proc/config.gz"


def configured(kernel: KernelView, option: str) -> str:
    """Return one sentence on CONFIG_`option` with its source, or "" if no configuration is readable."""
    for place in places(kernel):
        text = read_or_none(kernel, place)
        if text is None:
            continue
        wanted = f"CONFIG_{option}="
        for line in text.splitlines():
            if line.startswith(wanted):
                return f"/{place} has {line}"
        return f"/{place} does not set CONFIG_{option}: this kernel was built without it"
    return ""
