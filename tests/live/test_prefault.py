"""The first touch of huge pages on this machine's kernel; every page is given back."""

from __future__ import annotations

import mmap
import signal
import subprocess
import sys
from pathlib import Path

from kerntune.kernel.huge_pages import Pool, read_pool
from kerntune.run.prefault import flags, touched
from tests.harness import host
from tests.live.pages import reserved
from tests.live.users import LIMIT

PAGE = host.page_size()
PIECE = 16 * PAGE
OVERCOMMIT = Path(f"/sys/kernel/mm/hugepages/hugepages-{PAGE >> 10}kB/nr_overcommit_hugepages")
# It touches 48 pages, and gets Ctrl-C's signal after the first 16.
INTERRUPTED = f"""\
import os, signal
from kerntune.run.prefault import touched
try:
    for done in touched(48, {PAGE}, piece={PIECE}):
        os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print(done, open("/sys/kernel/mm/hugepages/hugepages-{PAGE >> 10}kB/free_hugepages").read())
"""


def pool() -> Pool:
    return read_pool(PAGE)


def held(pages: int) -> mmap.mmap:
    """Take pages as another program does."""
    return mmap.mmap(-1, pages * PAGE, flags=flags(PAGE))


def test_as_many_as_asked_are_in_use_at_the_end_and_free_afterwards() -> None:
    with reserved(64):
        free = pool().free
        steps = [(done, free - pool().free) for done in touched(40, PAGE, piece=PIECE)]
        assert steps == [(16, 16), (32, 32), (40, 40)]
        assert pool().free == free


def test_none_are_asked() -> None:
    with reserved(16):
        assert list(touched(0, PAGE)) == []


def test_a_piece_that_is_smaller_than_a_page() -> None:
    with reserved(16):
        assert list(touched(3, PAGE, piece=PAGE - 1)) == [1, 2, 3]


def test_it_ends_early_where_others_have_taken_pages() -> None:
    with reserved(48 - pool().left):
        other = held(8)
        try:
            assert list(touched(48, PAGE, piece=PIECE)) == [16, 32, 40]
            steps = []
            for done in touched(40, PAGE, piece=PIECE):
                steps.append(done)
                if done == 16:
                    other.close()
                    other = held(20)
            assert steps == [16, 28]
        finally:
            other.close()
        assert pool().left == 48


def test_it_borrows_no_pages() -> None:
    before = OVERCOMMIT.read_text()
    with reserved(16 - pool().left):
        OVERCOMMIT.write_text("32")
        try:
            assert [(done, pool().surplus) for done in touched(32, PAGE, piece=PIECE)] == [(16, 0)]
        finally:
            OVERCOMMIT.write_text(before)


def test_there_is_no_pool_of_this_size() -> None:
    assert list(touched(8, 3 << 20)) == []


def test_a_caller_that_stops_early_gives_all_back() -> None:
    with reserved(64):
        free = pool().free
        for _ in touched(64, PAGE, piece=PIECE):
            break
        assert pool().free == free


def test_ctrl_c_ends_it_after_a_piece() -> None:
    with reserved(48):
        free = pool().free
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=LIMIT, check=True
        )
        assert done.stdout.split() == ["16", str(free)]


def test_a_process_that_is_killed_meanwhile_leaves_none_in_use() -> None:
    killed = INTERRUPTED.replace("SIGINT", "SIGKILL")
    with reserved(48):
        free = pool().free
        done = subprocess.run([sys.executable, "-c", killed], timeout=LIMIT, check=False)
        assert done.returncode == -signal.SIGKILL
        assert pool().free == free
