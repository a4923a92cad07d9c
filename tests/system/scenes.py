"""Brings a machine's memory into states that are hard to reach: fragmented, and huge pages in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.system.host import Host
from tests.system.machine import Machine
from tests.system.shell import Job

SPOILT: Final = 600  # MiB: more than the node keeps for what runs there
BESIDE: Final = 100  # MiB that stay as they are


def fragment(host: Host, node: int) -> Job:
    """Leave a node with some 700 MiB free of which few make huge pages; kill the job to undo that.

    The rest of the node goes to the pool of 2 MiB pages, whose number is then the host's own.
    """
    where = f"/sys/devices/system/node/node{node}"
    # From Linux 6.7 on, the lists of the CPUs keep up to an eighth of the memory when much of it is freed. It counts as
    # free nowhere, and comes back by some MiB a second.
    host.vm.check("sysctl --quiet vm.percpu_pagelist_high_fraction=100000")
    free = int(host.vm.check(f"awk '/MemFree/ {{print int($4 / 1024)}}' {where}/meminfo"))
    pages = host.pages(node) + (free - SPOILT - BESIDE) // 2
    host.vm.check(f"echo {pages} > {where}/hugepages/hugepages-2048kB/nr_hugepages")
    spoiler = host.vm.spawn(f"exec numactl --membind={node} fragment {SPOILT}")
    spoiler.wait_output("ready")
    return spoiler


# For the shell: `hold take NODE NUMBER` and `hold give NODE NUMBER` print how many pages the program then has there.
HOLDER: Final = "/run/holder"
HOLD: Final = f'hold() {{ echo "$@" > {HOLDER}/ask; read -r had < {HOLDER}/answer; echo "holds $had"; }}'


@contextmanager
def holder(vm: Machine) -> Iterator[Job]:
    """Run a program of alice's that holds huge pages on the nodes that `hold` names; it ends with the context."""
    vm.check(f"install -d -o alice {HOLDER}")
    program = vm.spawn(["hold-pages", HOLDER], user="alice")
    program.wait_output("ready")
    try:
        yield program
    finally:
        program.kill(9)
        program.wait()
