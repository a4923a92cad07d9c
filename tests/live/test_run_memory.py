"""What `kerntune run` sees of a command's memory on the real kernel: huge pages, fall-backs, and forks that share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from kerntune.bench.worker import MAP_HUGETLB
from kerntune.kernel.huge_pages import read_pool
from kerntune.run.allocator import environment
from kerntune.run.memory import MemoryWatch
from kerntune.run.memory_warnings import Expected, Heap, MemoryWarning, killed
from tests.harness import host
from tests.harness.workers import MIB
from tests.live.pages import reserved, transparent
from tests.live.users import LIMIT, until

NOBODY: Final = 65534
LATE: Final = 1000.0  # seconds: a command of this age may be walked through often
SAY: Final = "print('ready', flush=True); sys.stdin.read()"
LOAD: Final = f"import sys; data = [b'x' * (8 << 20) for _ in range(12)]; {SAY}"
OBJECTS: Final = f"import sys; data = [bytes(40) for _ in range(1_200_000)]; {SAY}"
OWN: Final = "data = bytearray(b'x') * (48 << 20)"
SHARED: Final = f"data = mmap.mmap(-1, 48 << 20, flags=mmap.MAP_SHARED | {MAP_HUGETLB})"
# The child says when it has read or written each page; the parent ends by the signal that ended the child.
FORK: Final = f"""
import mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
{{memory}}
for place in range(0, len(data), mmap.PAGESIZE):
    data[place] = 1
child = os.fork()
if not child:
    for place in range(0, len(data), mmap.PAGESIZE):
        {{touch}}
    {SAY}
    os._exit(0)
os.kill(os.getpid(), os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
READ: Final = "data[place]"
WRITE: Final = "data[place] = 2"


def pooled() -> Expected:
    return Expected(hugetlb=2, page_size=host.page_size(), pages=0)


def pages_in_use() -> int:
    pool = read_pool(host.page_size())
    return pool.pages - pool.free


def watched(code: str, expected: Expected, **more: str) -> tuple[list[MemoryWarning], Heap]:
    """Start a program of Python, look at it three times when it says that it is ready, and end it."""
    setting = "thp@enabled=madvise" if expected.hugetlb == 1 else "hugepages=64"
    before = pages_in_use()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environment(os.environ, [setting], default_page_size=host.page_size()), **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            watch = MemoryWatch(process.pid, expected, began=0.0)
            return [warning for moment in range(3) for warning in watch.look(LATE + moment)], watch.peak
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            until(lambda: pages_in_use() <= before)  # a forked process ends later than the one that is waited for


def test_a_load_that_fits_lies_on_the_pool_and_gives_no_warning() -> None:
    with reserved(80):
        warnings, peak = watched(LOAD, pooled())
    assert warnings == []
    assert peak.private_hugetlb >= 96 * MIB
    assert peak.share > 0.85


def test_a_pool_that_is_used_up() -> None:
    with reserved(6 - read_pool(host.page_size()).left):
        (warning,), peak = watched(LOAD, pooled())
    assert warning.kind in ("used-up", "too-small")  # a page may be left that no block of 8 MiB fits in
    assert "lie on huge pages" in warning.what
    assert 0 < peak.on_huge < 16 * MIB < 96 * MIB <= peak.total


def test_objects_of_python_do_not_come_from_malloc() -> None:
    with reserved(110):
        (warning,), _ = watched(OBJECTS, pooled())
        others, peak = watched(OBJECTS, pooled(), PYTHONMALLOC="malloc")
    assert warning.kind == "unused"
    assert "PYTHONMALLOC=malloc" in warning.hint
    assert others == []
    assert peak.share > 0.8


def test_borrowed_pages_count_as_pages_that_are_left() -> None:
    overcommit = Path(f"/sys/kernel/mm/hugepages/hugepages-{host.page_size() >> 10}kB/nr_overcommit_hugepages")
    before = overcommit.read_text()
    overcommit.write_text("80")
    try:
        warnings, peak = watched(LOAD, Expected(2, host.page_size(), 80, borrowed=True))
    finally:
        overcommit.write_text(before)
    assert warnings == []
    assert peak.share > 0.85


def test_transparent_huge_pages_are_seen() -> None:
    with transparent("madvise"):
        warnings, peak = watched(LOAD, Expected(hugetlb=1))
    assert warnings == []
    assert peak.anon_huge > 48 * MIB


def test_transparent_huge_pages_that_are_off() -> None:
    with transparent("never"):
        (warning,), peak = watched(LOAD, Expected(hugetlb=1))
    assert (warning.kind, peak.anon_huge) == ("no-thp", 0)
    assert "--thp" in warning.hint


@pytest.mark.parametrize(("pages", "kinds"), [(34, ["forks"]), (90, [])], ids=["too-few", "enough"])
def test_forked_processes_that_share_huge_pages(pages: int, kinds: list[str]) -> None:
    with reserved(pages - read_pool(host.page_size()).left):
        warnings, peak = watched(FORK.format(memory=OWN, touch=READ), pooled())
    assert [warning.kind for warning in warnings] == kinds
    assert peak.processes == 2
    assert 40 * MIB < peak.hugetlb < 64 * MIB  # what both have counts once


def test_memory_that_is_shared_for_good_is_no_risk() -> None:
    with reserved(34 - read_pool(host.page_size()).left):
        warnings, peak = watched(FORK.format(memory=SHARED, touch=READ), pooled())
    assert warnings == []
    assert peak.shared_hugetlb >= 40 * MIB


def test_a_write_of_a_forked_process_is_killed_where_no_page_is_left() -> None:
    with reserved(34 - read_pool(host.page_size()).left):
        done = subprocess.run(
            [sys.executable, "-c", FORK.format(memory=OWN, touch=WRITE)],
            env=environment(os.environ, ["hugepages=34"], default_page_size=host.page_size()),
            timeout=LIMIT,
            check=False,
        )
    assert done.returncode == -signal.SIGBUS
    assert killed(done.returncode, pooled()) is not None


def test_a_process_of_another_user_is_unread() -> None:
    come, go = os.pipe()
    if not (child := os.fork()):
        os.setresuid(NOBODY, NOBODY, NOBODY)
        watch = MemoryWatch(os.getppid(), pooled(), began=0.0)
        warnings = watch.look(LATE) + watch.look(LATE + 1)
        os.write(go, f"{len(warnings)} {watch.peak.processes} {watch.peak.unread > 0}".encode())
        os._exit(0)
    os.close(go)
    os.waitpid(child, 0)
    with os.fdopen(come) as said:
        assert said.read() == "0 1 True"  # it reads itself
