"""The host of `kerntuned --demo`, and its events: a FIFO takes `add NAME` and `remove NAME` for drives.

After `slow MILLISECONDS` huge pages take that time, as on a host whose memory is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from kerntune.daemon.hotplug import Counters, Look
from kerntune.kernel.simulated import Node, PlainFile, Policy, SimulatedKernel
from kerntune.model import Lane
from kerntune.tunables.knobs import KNOBS

log = logging.getLogger(__name__)
FIFO = "demo"
LONGEST = 4096
SLOWEST = 10_000  # milliseconds


def demo_host() -> SimulatedKernel:
    """Return the host that `kerntuned --demo` shows: two NUMA nodes of 64 GiB, 8 CPUs, two NVMe drives and a disk."""
    nodes = [Node(64 << 30, programs=4 << 30), Node(64 << 30, programs=2 << 30)]
    kernel = SimulatedKernel(nodes, plain=plain_files() | {"proc/config.gz": PlainFile(build_configuration())})
    kernel.policies = {f"policy{cpu}": Policy((cpu,), epp="balance_performance") for cpu in range(8)}
    for number in range(2):
        kernel.plug(f"nvme{number}n1", by_id=f"nvme-Simulated_SSD_{number}")
    kernel.plug("sda", scheduler="mq-deadline", offered=("none", "mq-deadline", "bfq"), by_id="ata-Simulated_HDD")
    return kernel


def build_configuration() -> str:
    """Return what the kernel was built with: all that it loads when it is named is in modules."""
    return "\n".join(f"CONFIG_{module.option}=m" for knob in KNOBS for module in knob.modules.values())


def plain_files() -> dict[str, PlainFile]:
    """Return the files that have a fixed name and no effects, as a kernel starts with them."""
    return {
        knob.scope.path(name): PlainFile(knob.value.default(name), knob.value.choices(name))
        for knob in KNOBS
        for name in knob.names
    }


@contextlib.contextmanager
def listening(kernel: SimulatedKernel, runtime: Path, look: Look, counters: Counters) -> Iterator[None]:
    """Carry out the lines written to the FIFO, and ask for a pass at each event, while the context lasts."""
    path = runtime / FIFO
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    # Open for reading and writing, so that the end of one writer is not the end of the file.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in os.read(fd, LONGEST).decode(errors="replace").splitlines():
            if event := carry_out(kernel, line):
                counters["hotplug_events"] += 1
                look(event, [Lane.BLOCK])

    loop.add_reader(fd, read)
    log.info("plug a simulated drive: echo add nvme2n1 > %s (and: remove nvme2n1)", path)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        path.unlink(missing_ok=True)


def carry_out(kernel: SimulatedKernel, line: str) -> str:
    """Carry out a line, and return it as the cause of a pass, or "" if no pass is needed."""
    match line.split():
        case ["add", name] if name.isalnum() and name not in kernel.disks:
            kernel.plug(name, by_id=f"nvme-Simulated_{name}")
        case ["remove", name] if name in kernel.disks:
            kernel.unplug(name)
        case ["slow", milliseconds] if milliseconds.isdecimal():
            kernel.pace = min(int(milliseconds), SLOWEST) / 1000
            return ""
        case _:
            log.warning(
                "%r: say `add NAME` for a new drive, `remove NAME` for one there is, or `slow MILLISECONDS` for what a "
                "GiB of huge pages takes",
                line[:80],
            )
            return ""
    return line
