"""The memory of a command and its descendants: what is counted, when it is looked at, and what is said of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from kerntune.kernel.huge_pages import Pool, read_pool
from kerntune.kernel.process_memory import Process, Processes, Rollup
from kerntune.run.allocator import environment
from kerntune.run.memory import LATEST, LONGEST, SOONEST, MemoryWatch, Pace, heap_of
from kerntune.run.memory_warnings import Expected, Heap, MemoryWarning, Program, Situation, asking, killed, warnings_of
from kerntune.units import mib

MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE: Final = 2 * MIB
POOLED: Final = Expected(hugetlb=2, page_size=PAGE, pages=64)
BORROWED: Final = Expected(hugetlb=2, page_size=PAGE, pages=64, borrowed=True)
THP: Final = Expected(hugetlb=1)
LATE: Final = 1000.0  # seconds: a command of this age may be walked through often
LIMIT: Final = 30  # seconds
WAITING: Final = "import sys; print('ready', flush=True); sys.stdin.read()"
LARGE: Final = f"data = b'x' * (80 << 20); {WAITING}"


# The pace


def looks(seconds: float, cost: float, walk: float) -> tuple[Pace, int, int]:
    """Return the pace after so many seconds, and the numbers of looks and of walks."""
    pace, count, walks = Pace(0.0), 0, 0
    while pace.next_look <= seconds:
        walked = pace.affords(pace.next_look, walk)
        pace.looked(pace.next_look, cost, walk if walked else 0.0)
        count, walks = count + 1, walks + walked
    return pace, count, walks


@pytest.mark.parametrize(
    ("cost", "walk"),
    [(0.0002, 0.0003), (0.0002, 0.012), (0.0002, 0.75), (0.0002, 12.0), (0.005, 0.1), (0.25, 1.0)],
    ids=["small", "1G", "64G", "1T", "100-processes", "4096-processes"],
)
def test_looks_at_a_server_of_days_cost_less_than_2_percent(cost: float, walk: float) -> None:
    day = 86_400.0
    _, count, walks = looks(day, cost, walk)
    assert walks > 10
    assert count * cost + walks * walk < 0.02 * day


def test_a_load_of_a_third_of_a_second_is_seen_while_it_grows() -> None:
    # The walk over 1 GiB of small pages took 12 ms; it grows with the load.
    pace, moments = Pace(0.0), []
    while (now := pace.next_look) <= 0.3:
        cost = 0.012 * now / 0.3
        assert pace.affords(now, cost)
        pace.looked(now, 0.0002, cost)
        moments.append(round(now, 3))
    assert moments == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]


@pytest.mark.parametrize(
    ("age", "cost", "interval"),
    [(1, 0.0, SOONEST), (10, 0.0, 0.2), (500, 0.0, LATEST), (500, 0.02, 2.0), (500, 9.0, LONGEST)],
)
def test_the_next_look(age: float, cost: float, interval: float) -> None:
    pace = Pace(100.0)
    pace.looked(100.0 + age, cost, 0.0)
    assert pace.next_look == pytest.approx(100.0 + age + interval)


# A simulated /proc


def lay(
    root: Path,
    pid: int,
    *,
    parent: int = 1,
    children: str | None = "",
    name: str = "server",
    forked: bool = False,
    state: str = "S",
    anonymous: int = 0,
    hugetlb: int = 0,
    rollup: Mapping[str, int] | None = None,
    environ: str = "",
    ids: str = "0 0 0 0",
) -> None:
    """Write the files of a process; sizes are in MiB. `children` is None without CONFIG_PROC_CHILDREN."""
    folder = root / "proc" / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    flags = 0x400040 if forked else 0x400000
    fields = [state, parent, *[0] * 4, flags, *[0] * 12, 7000 + pid, 0]
    (folder / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")
    rows = {"VmRSS": anonymous, "RssAnon": anonymous, "HugetlbPages": hugetlb}
    status = "".join(f"{key}:\t{size << 10} kB\n" for key, size in rows.items())
    (folder / "status").write_text(f"Uid:\t{ids}\nGid:\t0 0 0 0\n{status}")
    sizes = {"Anonymous": anonymous, "Pss_Anon": anonymous, "Private_Hugetlb": hugetlb, **(rollup or {})}
    (folder / "smaps_rollup").write_text("".join(f"{key}: {size << 10} kB\n" for key, size in sizes.items()))
    (folder / "environ").write_text(environ)
    if children is not None:
        (folder / "task" / str(pid) / "children").write_text(children)


def lay_pool(root: Path, **pages: int) -> None:
    folder = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    for name, count in pages.items():
        (folder / f"{name}_hugepages").write_text(f"{count}\n")


def watch_at(root: Path, expected: Expected = POOLED) -> MemoryWatch:
    return MemoryWatch(10, expected, root=root, began=0.0)


@pytest.mark.parametrize("listed", [True, False], ids=["children", "ppid"])
def test_all_descendants_are_found(tmp_path: Path, listed: bool) -> None:
    for pid, parent, children in [(10, 1, "11 12 "), (11, 10, "13 "), (12, 10, ""), (13, 11, ""), (20, 1, "")]:
        lay(tmp_path, pid, parent=parent, children=children if listed else None)
    assert sorted(Processes(str(tmp_path)).tree(10)) == [10, 11, 12, 13]
    assert len(Processes(str(tmp_path)).tree(10, most=2)) == 2


def test_a_process_stays_in_the_tree_when_its_parent_has_ended(tmp_path: Path) -> None:
    lay(tmp_path, 10, children="11 ")
    lay(tmp_path, 11, parent=10, anonymous=5)
    watch = watch_at(tmp_path)
    watch.look(LATE)
    lay(tmp_path, 10, anonymous=3)
    lay(tmp_path, 11, anonymous=7)
    watch.look(LATE + 1)
    assert (watch.peak.total, watch.peak.processes) == (10 * MIB, 2)


def test_another_process_with_the_same_pid_is_no_descendant(tmp_path: Path) -> None:
    lay(tmp_path, 11)
    assert Processes(str(tmp_path)).tree(10, {11: 7010}) == {}
    assert list(Processes(str(tmp_path)).tree(10, {11: 7011})) == [11]


@pytest.mark.parametrize("state", ["Z", "X"])
def test_ended_processes_are_passed_over(tmp_path: Path, state: str) -> None:
    lay(tmp_path, 10, children="11 99 ", anonymous=5)
    lay(tmp_path, 11, state=state)
    (tmp_path / "proc/12").mkdir()
    watch = watch_at(tmp_path)
    assert watch.look(LATE) == []
    assert (watch.peak.processes, watch.peak.unread, watch.peak.moment) == (1, 0, LATE)


def test_a_setuid_program_is_unread_and_nothing_is_said_of_it(tmp_path: Path) -> None:
    lay(tmp_path, 10, children="11 ", anonymous=5)
    lay(tmp_path, 11, anonymous=500, ids="1000 0 0 0")
    watch = watch_at(tmp_path)
    assert watch.look(LATE) == []
    assert str(watch.peak) == "0 % of the heap on huge pages (0 of 5 MiB, 1 process, 1 more that may not be read)"


def test_a_command_that_may_not_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    lay(tmp_path, 10, anonymous=500, ids="1000 0 0 0")
    watch = watch_at(tmp_path)
    watch.look(LATE)
    (tmp_path / "proc/10/stat").unlink()
    watch.look(LATE + 1)
    assert "may not read it" in str(watch.peak)
    assert watch.peak.figures()["unread_processes"] == 1


def test_a_forked_process_counts_when_it_is_seen_again(tmp_path: Path) -> None:
    lay(tmp_path, 10, children="11 ", anonymous=100)
    lay(tmp_path, 11, parent=10, forked=True, anonymous=100)  # as after vfork(2): in the memory of its parent
    watch = watch_at(tmp_path)
    watch.look(LATE)
    assert watch.peak.total == 100 * MIB
    watch.look(LATE + 1)
    assert watch.peak.total == 200 * MIB


def test_without_a_walk_the_last_one_is_scaled(tmp_path: Path) -> None:
    lay(tmp_path, 10, anonymous=100, hugetlb=10, rollup={"AnonHugePages": 60})
    watch = watch_at(tmp_path, THP)
    watch.look(LATE)
    watch._pace.walked = 1e9
    lay(tmp_path, 10, anonymous=200, hugetlb=20, rollup={"AnonHugePages": 0})
    watch.look(LATE + 1)
    peak = watch.peak
    assert (peak.anonymous, peak.anon_huge, peak.hugetlb) == (200 * MIB, 120 * MIB, 20 * MIB)


def test_the_peak_is_the_look_with_the_largest_heap(tmp_path: Path) -> None:
    watch = watch_at(tmp_path)
    for moment, size in enumerate([3, 9, 4]):
        lay(tmp_path, 10, anonymous=size, hugetlb=2 * size)
        watch.look(LATE + moment)
    peak = watch.peak
    assert (peak.total, peak.moment) == (27 * MIB, LATE + 1)
    assert peak.share == pytest.approx(2 / 3)
    assert peak.figures() == {
        "heap_bytes": 27 * MIB, "on_huge_pages_bytes": 18 * MIB, "private_hugetlb_bytes": 18 * MIB,
        "shared_hugetlb_bytes": 0, "anon_huge_bytes": 0, "anonymous_bytes": 9 * MIB, "processes": 1,
        "unread_processes": 0,
    }  # fmt: skip


def test_what_forked_processes_share_counts_once() -> None:
    process = Process(1, 1, 0, forked=False, name="x")
    parent = Rollup(100, 40, 50, 2, 80)
    child = Rollup(100, 40, 50, 4, 70)
    assert heap_of([(process, parent), (process, child)]) == Heap(6, 80, 40, 80, 2)


def test_a_warning_is_given_once(tmp_path: Path) -> None:
    lay(tmp_path, 10, anonymous=500, hugetlb=2, environ="GLIBC_TUNABLES=glibc.malloc.hugetlb=2\0")
    lay_pool(tmp_path, nr=64, free=10, resv=10)
    watch = watch_at(tmp_path)
    assert [each.kind for each in watch.look(LATE)] == ["used-up"]
    assert watch.look(LATE + 1) == []


def test_forks_at_risk_are_found_at_the_second_look(tmp_path: Path) -> None:
    shared = {"Private_Hugetlb": 4, "Shared_Hugetlb": 40}
    lay_pool(tmp_path, nr=64, free=7)
    lay(tmp_path, 10, children="11 ", hugetlb=44, rollup=shared)
    lay(tmp_path, 11, parent=10, forked=True, name="worker", hugetlb=44, rollup=shared)
    smaps = tmp_path / "proc/11/smaps"
    smaps.write_text(f"7f00-7f01 rw-p 0 00:11 5 /anon_hugepage (deleted)\nShared_Hugetlb: {40 << 10} kB\n")
    watch = watch_at(tmp_path)
    assert watch.look(LATE) == []  # it may be on its way to execve
    (warning,) = watch.look(LATE + 1)
    assert (warning.kind, warning.program, warning.pid) == ("forks", "worker", 11)
    assert "shares 20 huge pages with the process that forked it, and the pool has 7 left" in warning.what
    assert "spawn" in warning.hint
    assert "13 more pages: --hugepages 192M" in warning.hint


def test_memory_that_is_made_to_be_shared_is_no_risk(tmp_path: Path) -> None:
    shared = {"Private_Hugetlb": 0, "Shared_Hugetlb": 40}
    lay_pool(tmp_path, nr=20, free=0)
    lay(tmp_path, 10, children="11 ", hugetlb=40, rollup=shared)
    lay(tmp_path, 11, parent=10, forked=True, hugetlb=40, rollup=shared)
    (tmp_path / "proc/11/smaps").write_text(f"7f00-7f01 rw-s 0 00:11 5 /hugepages/db\nShared_Hugetlb: {40 << 10} kB\n")
    watch = watch_at(tmp_path)
    assert watch.look(LATE) + watch.look(LATE + 1) == []


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ("", []),
        ("PATH=/bin\0", []),
        ("GLIBC_TUNABLES=glibc.malloc.arena_max=1\0", []),
        ("A=b\0GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.hugetlb=2\0", ["unused"]),
        ("\0\0\0\0", ["unused"]),  # a program that has written its title over it: not known
    ],
    ids=["empty", "other", "another-tunable", "told", "overwritten"],
)
def test_a_lost_setting(tmp_path: Path, environ: str, told: list[str]) -> None:
    lay(tmp_path, 10, children="11 ")
    lay(tmp_path, 11, parent=10, anonymous=100, environ=environ)
    lay_pool(tmp_path, nr=99, free=99)
    (warning,) = watch_at(tmp_path).look(LATE)
    assert (warning.kind, warning.pid) == ((told or ["lost-setting"])[0], 11)


def test_a_pool_in_sysfs(tmp_path: Path) -> None:
    assert read_pool(PAGE, tmp_path) == Pool()
    lay_pool(tmp_path, nr=23, free=10, resv=3, surplus=5, nr_overcommit=9)
    pool = read_pool(PAGE, tmp_path)
    assert (pool.left, pool.borrowable) == (7, 4)
    assert (Pool(free=3, reserved=9).left, Pool(surplus=3).borrowable) == (0, 0)


# Decisions


def program(total: int, huge: int = 0, anon_huge: int = 0, *, told: bool | None = True) -> Program:
    """Return a program; sizes are in MiB."""
    return Program(7, "server", Heap(huge * MIB, 0, anon_huge * MIB, (total - huge) * MIB, 1), told)


def said(expected: Expected, pool: Pool | None, *programs: Program, thp: bool = True) -> list[MemoryWarning]:
    return list(warnings_of(Situation(programs, pool, thp=thp), expected))


@pytest.mark.parametrize(
    ("expected", "pool", "one", "kinds"),
    [
        (POOLED, Pool(64, free=0), program(1024, 128), ["used-up"]),
        (POOLED, Pool(64, free=5, reserved=5), program(1024, 128), ["used-up"]),
        (POOLED, Pool(64, free=62), program(1024, 4), ["too-small"]),
        (POOLED, Pool(600, free=598), program(1024, 4), ["unused"]),
        (POOLED, Pool(600, free=600), program(1024), ["unused"]),
        (POOLED, Pool(64, free=64), program(1024), ["unused"]),
        (POOLED, Pool(64, free=0), program(60), []),
        (POOLED, Pool(640, free=0), program(1100, 1020), []),
        (POOLED, Pool(640, free=99), program(1034, 1024), []),
        (POOLED, Pool(640, free=500), program(1000, 400), []),
        (POOLED, Pool(64, free=0), program(1024, 4, 1000), []),
        (BORROWED, Pool(8, surplus=8, overcommit=999), program(500, 4), ["unused"]),
        (BORROWED, Pool(99, surplus=99, overcommit=99), program(500, 198), ["used-up"]),
        (POOLED, Pool(64, free=0), program(500, told=None), ["used-up"]),
        (POOLED, Pool(64, free=0), program(500, told=False), ["lost-setting"]),
        (THP, None, program(500, 0, 10), ["no-thp"]),
        (THP, None, program(500, 0, 450), []),
        (THP, None, program(500, 0, 200), []),
        (THP, None, program(60), []),
        (THP, None, program(500, told=False), ["lost-setting"]),
        (Expected(), Pool(64, free=0), program(500), []),
    ],
)  # fmt: skip
def test_what_is_said(expected: Expected, pool: Pool | None, one: Program, kinds: list[str]) -> None:
    assert [each.kind for each in said(expected, pool, one)] == kinds


def test_the_sentences() -> None:
    (warning,) = said(POOLED, Pool(64), program(1024, 2))
    assert warning.what == (
        "the pool of 2 MiB pages is used up: 2 of 1 024 MiB of the heap of server (pid 7) lie on huge pages"
    )
    assert warning.hint == "malloc takes small pages then, and says nothing. Ask for more, at least --hugepages 1280M"
    (warning,) = said(POOLED, Pool(64, free=62), program(1024, 4))
    assert "4 of 1 024 MiB of the heap of server (pid 7) lie on huge pages, and 124 MiB are left" in warning.what
    assert "fragmented" in said(BORROWED, Pool(overcommit=99), program(99))[0].hint
    assert "--thp" in said(THP, None, program(99), thp=False)[0].hint


@pytest.mark.parametrize(
    ("more", "expected", "words"),
    [
        (0, POOLED, "--hugepages 128M"),
        (900 * MIB, POOLED, "--hugepages 1152M"),
        (900 * MIB, BORROWED, "--hugepages 1152M --borrow"),
        (900 * MIB, Expected(GIB, GIB, 1), "--hugepages 2G"),
    ],
)
def test_the_pages_to_ask_for(more: int, expected: Expected, words: str) -> None:
    assert asking(more, expected) == words


@pytest.mark.parametrize(
    ("status", "expected", "why"),
    [
        (-signal.SIGBUS, POOLED, True),
        (128 + signal.SIGBUS, POOLED, True),
        (-signal.SIGBUS, THP, False),
        (-signal.SIGBUS, Expected(), False),
        (-signal.SIGSEGV, POOLED, False),
        (0, POOLED, False),
    ],
)
def test_the_end_by_sigbus(status: int, expected: Expected, why: bool) -> None:
    assert (killed(status, expected) is not None) == why


@pytest.mark.parametrize(
    ("heap", "text"),
    [
        (Heap(1188 * MIB, 0, 0, 102 * MIB, 1), "92 % of the heap on huge pages (1 188 of 1 290 MiB, 1 process)"),
        (Heap(99 * MIB, 0, 9 * MIB, 901 * MIB, 3), "10 % of the heap on huge pages (108 of 1 000 MiB, 3 processes)"),
        (Heap(), "the memory of the command was not seen: it ended too soon"),
        (Heap(unread=1), "the memory of the command was not seen: this user may not read it"),
    ],
)
def test_the_summary(heap: Heap, text: str) -> None:
    assert str(heap) == text


@pytest.mark.parametrize(("count", "text", "up"), [(0, "0", "0"), (1, "0", "1"), (GIB + 1, "1 024", "1 025")])
def test_mib(count: int, text: str, up: str) -> None:
    assert (mib(count), mib(count, up=True)) == (text, up)


# Real processes, without huge pages


@pytest.fixture
def started() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def ready(stack: ExitStack, words: Sequence[str], expected: Expected = POOLED) -> MemoryWatch:
    """Start a command with the setting for malloc, and wait until it says that it is ready."""
    process = subprocess.Popen(
        words,
        env=environment(os.environ, ["hugepages=64"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    stack.enter_context(process)
    stack.callback(os.killpg, process.pid, signal.SIGKILL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return MemoryWatch(process.pid, expected, began=0.0)


def test_a_real_child_that_lost_the_setting(started: ExitStack) -> None:
    watch = ready(started, ["sh", "-c", f'exec 3<&0; env -i {sys.executable} -c "{LARGE}" <&3; true'])
    kinds = [each.kind for each in watch.look(LATE) + watch.look(LATE + 1)]
    assert kinds == ["lost-setting"]
    assert 80 * MIB <= watch.peak.anonymous < 160 * MIB
    assert watch.peak.processes == 2


@pytest.mark.parametrize(
    "words",
    [
        ["sh", "-c", "(sleep 60) & (sleep 60; true) & echo ready; read line"],
        [sys.executable, "-c", WAITING],
        ["sh", "-c", "echo ready; exec sleep 60"],
    ],
    ids=["shell", "python", "sleep"],
)
@pytest.mark.parametrize("expected", [POOLED, THP, BORROWED], ids=["pool", "thp", "borrowed"])
def test_small_programs_give_no_warning(started: ExitStack, words: list[str], expected: Expected) -> None:
    watch = ready(started, words, expected)
    assert [warning for moment in range(3) for warning in watch.look(LATE + moment)] == []


def test_real_forks_are_one_program(started: ExitStack) -> None:
    fork = f"data = b'x' * (80 << 20); import os; child = os.fork(); {WAITING}"
    code = fork.replace("print('ready', flush=True)", "child and print('ready', flush=True)")
    watch = ready(started, [sys.executable, "-c", code], Expected())
    watch.look(LATE)
    watch.look(LATE + 1)
    assert watch.peak.processes == 2
    assert 80 * MIB <= watch.peak.total < 130 * MIB  # the pages that both have count once


def test_a_command_that_has_ended(started: ExitStack) -> None:
    process = subprocess.Popen(["true"])
    process.wait(LIMIT)
    watch = MemoryWatch(process.pid, POOLED)
    assert watch.look(watch.next_look) == []
    assert "not seen" in str(watch.peak)
