"""How it is known that a file was read from its disk."""

from __future__ import annotations

import os
import tempfile

import pytest

from kerntune.bench.cold import PAGE, in_memory, judge

MIB = 1 << 20
SIZE = 1024 * MIB


@pytest.mark.parametrize(
    ("before", "read", "proof", "trouble"),
    [
        (0, SIZE, "blocks read", ""),
        (None, SIZE, "blocks read", ""),
        (512 * MIB, SIZE, "blocks read", ""),
        (0, SIZE - 10 * MIB, "blocks read", ""),
        (0, SIZE - 11 * MIB, "not in the page cache", ""),
        (0, 0, "not in the page cache", ""),
        (None, 0, "", ""),
        (None, SIZE // 2, "", ""),
        (512 * MIB, 512 * MIB, "", "not cold: 512 of 1 024 MiB were in memory before the read"),
        (PAGE, 0, "", "not cold: 1 of 1 024 MiB were in memory before the read"),
    ],
)
def test_what_is_known(before: int | None, read: int, proof: str, trouble: str) -> None:
    assert judge(SIZE, before, read) == (proof, trouble)


def test_a_file_of_somebody_else_is_read_from_its_disk_or_it_was_in_memory() -> None:
    assert judge(SIZE, None, SIZE, on_disk=True) == ("blocks read", "")
    proof, trouble = judge(SIZE, None, 0, on_disk=True)
    assert proof == ""
    assert trouble.startswith("not cold: 0 of ")


def test_what_was_written_just_now_is_in_memory() -> None:
    # Not on an overlay, whose files have their pages below it.
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.pwrite(file.fileno(), bytes(3 * PAGE + 1), 0)
        # Kernels before 6.5 do not say.
        assert in_memory(file.fileno(), 3 * PAGE + 1) in (3 * PAGE + 1, None)


def test_of_no_file_nothing_is_known() -> None:
    assert in_memory(-1, PAGE) is None
