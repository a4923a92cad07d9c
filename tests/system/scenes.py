"""What is done to a machine to bring it into a state worth testing in."""

from __future__ import annotations

from typing import Final

from tests.system.host import Host
from tests.system.shell import Job

SPOILT: Final = 300  # MiB
BESIDE: Final = 100  # MiB that stay as they are


def fragment(host: Host, node: int) -> Job:
    """Leave a node with some 400 MiB free of which few make huge pages; kill the job to undo that.

    The rest of the node goes to the pool of 2 MiB pages, whose number is then the host's own.
    """
    where = f"/sys/devices/system/node/node{node}"
    free = int(host.vm.check(f"awk '/MemFree/ {{print int($4 / 1024)}}' {where}/meminfo"))
    pages = host.pages(node) + (free - SPOILT - BESIDE) // 2
    host.vm.check(f"echo {pages} > {where}/hugepages/hugepages-2048kB/nr_hugepages")
    spoiler = host.vm.spawn(f"exec numactl --membind={node} fragment {SPOILT}")
    spoiler.wait_output("ready")
    return spoiler
