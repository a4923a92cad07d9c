"""The NUMA nodes of the host, and the node from which a process takes its memory first (set_mempolicy(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from kerntune.errors import AccessDenied, InvalidValue, KernelRejected, KerntuneError, NoSuchTarget, NotSupported
from kerntune.kernel.files import HostKernel, read_or_none
from kerntune.kernel.memory import parse_meminfo
from kerntune.units import gib, parse_cpus, spell_cpus

HOST: Final = Path("/")
NODES: Final = "sys/devices/system/node"
# The numbers of set_mempolicy(2) and get_mempolicy(2).
CALLS: Final = {"x86_64": (238, 239), "aarch64": (237, 236), "riscv64": (237, 236)}
MAX_NODES: Final = 1024  # the kernel is never built for more (NODES_SHIFT)
WORD: Final = ctypes.sizeof(ctypes.c_ulong) * 8
AUTO: Final = "auto"
INTERLEAVE: Final = "interleave"


class Kind(IntEnum):
    """How memory is spread over nodes, with the kernel's numbers (include/uapi/linux/mempolicy.h)."""

    PREFERRED = 1
    INTERLEAVE = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """The nodes that give memory. Others give theirs when these have no more, so no model is too large for its node."""

    kind: Kind
    nodes: frozenset[int]

    def apply(self) -> None:
        """Give the calling thread, and what it starts from now on, this policy, and read it back.

        Raise NoSuchTarget for nodes that it may not use or that have no memory. Raise NotSupported where the kernel has
        no policies, and AccessDenied where a filter forbids the call.
        """
        if not self.nodes or not all(0 <= node < MAX_NODES for node in self.nodes):
            raise NoSuchTarget(f"{_spelled(self.nodes)} cannot give memory", "Nodes have the numbers 0 to 1023")
        mask = _mask()
        for node in self.nodes:
            mask[node // WORD] |= 1 << node % WORD
        # The kernel takes one off the number of bits (get_nodes of mm/mempolicy.c).
        if error := _call(0, ctypes.c_long(self.kind), mask, ctypes.c_ulong(MAX_NODES + 1)):
            raise _refusal(error, self.nodes)
        if (found := in_force()) != (self.kind, self.nodes):
            raise KernelRejected(f"the kernel takes the memory from {_spelled(found[1])}, not {_spelled(self.nodes)}")


@dataclass(frozen=True, slots=True)
class Node:
    """A node that has memory; `free` counts free bytes and the file cache, which the kernel can drop."""

    number: int
    cpus: frozenset[int]
    free: int


@dataclass(frozen=True, slots=True)
class Place:
    """The meaning of `--numa` here: the policy, the CPUs to stay on (none: all allowed ones), and a sentence."""

    policy: Policy
    cpus: frozenset[int]
    why: str


def place(asked: str, cpus: frozenset[int], root: Path = HOST) -> Place:
    """Return what a number of a node, `auto` or `interleave` comes to, for a process that may use these CPUs.

    Raise InvalidValue for another word, NoSuchTarget for a node that is no use to the process, and NotSupported where
    the kernel has no nodes.
    """
    usable = nodes(root)
    if not usable:
        raise NotSupported("this kernel has no NUMA nodes with memory for the process", "Leave out --numa")
    # A node without CPUs is memory of a device: slower (CXL), or a graphics card's own.
    near = [node for node in usable if node.cpus & cpus]
    if asked in (AUTO, INTERLEAVE) and not near:
        raise NoSuchTarget(f"no node has both memory and one of the CPUs {spell_cpus(cpus)}", "Give the node's number")
    if asked == INTERLEAVE:
        spread = Policy(Kind.INTERLEAVE, frozenset(node.number for node in near))
        return Place(spread, frozenset(), f"memory in turn from {_spelled(spread.nodes)}")
    if asked == AUTO:
        node = roomiest(near)
        most = f", which has the most free memory of {len(near)}" if len(near) > 1 else ""
    else:
        node, most = _named(asked, usable), ""
    stay = node.cpus & cpus
    if node.cpus and not stay:
        raise NoSuchTarget(
            f"the process may use no CPU of node {node.number}, which has {spell_cpus(node.cpus)}",
            f"It may use {spell_cpus(cpus)}",
        )
    on = f"on its CPUs {spell_cpus(stay)}" if stay else "the node has no CPUs to stay on"
    return Place(
        Policy(Kind.PREFERRED, frozenset({node.number})),
        stay,
        f"memory first from node {node.number}{most} ({gib(node.free)} with the file cache); {on}",
    )


def nodes(root: Path = HOST) -> Sequence[Node]:
    """Return the nodes that have memory for this process, in order; none where the kernel has no NUMA."""
    kernel = HostKernel(root)
    numbers = parse_cpus(read_or_none(kernel, f"{NODES}/has_memory") or "") & allowed(root)
    found = []
    for number in sorted(numbers):
        lines = (read_or_none(kernel, f"{NODES}/node{number}/meminfo") or "").splitlines()
        info = parse_meminfo("\n".join(line.removeprefix(f"Node {number} ") for line in lines))
        cache = info.get("Active(file)", 0) + info.get("Inactive(file)", 0)
        cpus = parse_cpus(read_or_none(kernel, f"{NODES}/node{number}/cpulist") or "")
        found.append(Node(number, cpus, info.get("MemFree", 0) + cache))
    return found


def allowed(root: Path = HOST) -> frozenset[int]:
    """Return the nodes whose memory this process may use (cpuset.mems of its cgroup)."""
    status = read_or_none(HostKernel(root), "proc/self/status") or ""
    row = next((line for line in status.splitlines() if line.startswith("Mems_allowed_list:")), "")
    return parse_cpus(row.partition(":")[2])


def roomiest(among: Sequence[Node]) -> Node:
    """Return the node with CPUs that has the most free memory; the first one of equals."""
    return max((node for node in among if node.cpus), key=lambda node: node.free)


def in_force() -> tuple[int, frozenset[int]]:
    """Return the kind and the nodes of the calling thread's policy: (0, none) for the kernel's own."""
    kind, mask = ctypes.c_int(), _mask()
    if error := _call(1, ctypes.byref(kind), mask, ctypes.c_ulong(MAX_NODES + 1), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise _refusal(error, frozenset())
    held = (number for number in range(MAX_NODES) if mask[number // WORD] >> number % WORD & 1)
    return kind.value, frozenset(held)


def _named(asked: str, usable: Sequence[Node]) -> Node:
    if not re.fullmatch(r"[0-9]{1,4}", asked, re.ASCII):
        raise InvalidValue(f"{asked!r} is no node", f"Give its number, {AUTO} or {INTERLEAVE}")
    if node := next((node for node in usable if node.number == int(asked)), None):
        return node
    there = _spelled(frozenset(node.number for node in usable))
    raise NoSuchTarget(f"node {int(asked)} is not there, has no memory, or is not allowed", f"Memory is on {there}")


def _spelled(numbers: frozenset[int]) -> str:
    return (
        f"node {spell_cpus(numbers)}" if len(numbers) == 1 else f"nodes {spell_cpus(numbers)}" if numbers else "no node"
    )


def _mask() -> ctypes.Array[ctypes.c_ulong]:
    return (ctypes.c_ulong * (MAX_NODES // WORD))()


def _call(which: int, *words: object) -> int:
    """Call set_mempolicy (0) or get_mempolicy (1); return the errno, 0 when that went well."""
    machine = os.uname().machine
    if machine not in CALLS or WORD != 64:
        raise NotSupported(f"kerntune cannot set the memory policy of a process on {machine}", "Leave out --numa")
    syscall: Callable[..., int] = ctypes.CDLL(None, use_errno=True).syscall
    return 0 if syscall(ctypes.c_long(CALLS[machine][which]), *words) == 0 else ctypes.get_errno()


def _refusal(error: int, asked: frozenset[int]) -> KerntuneError:
    """Return what an errno of these calls means."""
    if error == errno.EINVAL:
        return NoSuchTarget(
            f"{_spelled(asked)} cannot give memory to the process",
            "It has none, or the cpuset of the cgroup leaves it out: look at cpuset.mems.effective there",
        )
    if error == errno.ENOSYS:
        return NotSupported(
            "there is no set_mempolicy(2) here", "The kernel is built without CONFIG_NUMA, or a filter hides it"
        )
    return AccessDenied(
        f"the process may not set its memory policy ({os.strerror(error)})",
        "A filter of system calls forbids it: containers of docker and podman need --cap-add SYS_NICE for it",
    )
