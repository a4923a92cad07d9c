"""What the kernel's lines say about who was refused memory."""

from __future__ import annotations

from kerntune.kernel.refusals import Refused, counted


def test_processes_are_counted_the_most_often_refused_first() -> None:
    lines = [
        "__vm_enough_memory: pid: 403, comm: python3, no enough memory for the allocation",
        "__vm_enough_memory: pid: 402, comm: my model, server, no enough memory for the allocation",
        "__vm_enough_memory: pid: 402, comm: my model, server, bytes: 8388608 not enough memory for the allocation",
        "Out of memory: Killed process 402 (take)",
    ]
    assert counted(lines) == [Refused("my model, server", 402, 2), Refused("python3", 403, 1)]


def test_a_name_is_printable() -> None:
    (refused,) = counted(["__vm_enough_memory: pid: 1, comm: a\x1b[2Jb, no enough memory for the allocation"])
    assert refused.command.isprintable()
