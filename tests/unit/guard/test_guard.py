"""The memory guard beside the engine, on a simulated host; its thread, the files it keeps open, its own process."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kerntune.api.describe import guard_row
from kerntune.engine.requests import Request
from kerntune.guard import sysctls
from kerntune.guard.policy import GuardLimits
from kerntune.guard.saved import CAP_FILE, SavedOriginals, Unreadable, undo_cap
from kerntune.guard.sysctls import KBYTES, MEMINFO, MODE, RATIO, Sysctls
from kerntune.guard.thread import GuardThread
from kerntune.kernel.processes import Consumers
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import NO_MEMORY, Claim, GuardState, Limits, Origin, Reason, Setting, State
from tests.unit.guard.lab import CONFIGURED, GIB, PATIENCE, QUICK, scene, told_of
from tests.unit.lab import Clock, request

WITHDRAW = Request((Setting("overcommit", "", ""),), unset=True)


async def test_it_watches_from_the_first_claim_of_always_to_the_last(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        assert host.guard.limits is None
        outcome = await host.lab.one("overcommit", "", "always:90")
        assert "caps commits (promises of memory) when less than 8601 MiB (13.1% of RAM) are left" in outcome.detail
        await host.until(GuardState.RELAXED)
        assert host.guard.limits == replace(QUICK, ratio=90)
        await host.lab.one("overcommit", "", "heuristic")
        assert (host.guard.limits, host.guard.verdict.state) == (None, GuardState.OFF)


async def test_when_memory_is_short_it_caps_and_afterwards_all_is_as_before(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        before = host.settings
        await host.until(GuardState.RELAXED)
        host.lab.writes()
        host.leave(5)
        verdict = await host.until(GuardState.CAPPED)
        assert host.lab.writes() == [(KBYTES, str(verdict.kbytes)), (MODE, "2")]
        # All that is above the floor, and the kernel's reserves of 136 MiB.
        assert verdict.kbytes == int((59 + 5 - 64 * 0.05) * GIB + 136 * (1 << 20)) >> 10
        assert host.settings == (2, 0, verdict.kbytes)
        host.leave(40)
        await host.until(GuardState.RELAXED)
        assert host.lab.writes() == [(MODE, "1"), (RATIO, "95")]
        assert host.settings == before
        assert host.guard.counters["guard_caps"] == 1
        assert not (tmp_path / CAP_FILE).read_text().strip()


async def test_what_is_set_meanwhile_waits_until_it_lets_go(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        asked = ("overcommit", "", "heuristic")
        planned = (await host.lab.engine.plan(request(asked), strict=True)).outcomes
        outcome = await host.lab.one(*asked)
        assert (outcome.state, outcome.reason) == (State.OVERRIDDEN, Reason.GUARD_LIMIT)
        assert [(each.state, each.reason) for each in planned] == [(outcome.state, outcome.reason)]
        assert host.settings[0] == 2
        again = await host.lab.one("overcommit", "", "heuristic", must_win=True)
        assert again.reason is Reason.GUARD_LIMIT
        host.leave(40)
        # The pass that follows the cap's end may have ended the guard already.
        await host.met(lambda: not host.guard.verdict.caps)
        await host.lab.engine.reconcile("memory guard")
        assert host.settings == (0, 95, 0)
        assert host.guard.verdict.state is GuardState.OFF


async def test_who_withdraws_always_ends_it_in_the_same_pass(tmp_path: Path) -> None:
    async with scene(tmp_path, ratio=60) as host:
        await host.cap()
        planned = (await host.lab.engine.plan(WITHDRAW)).outcomes
        assert [outcome.state for outcome in planned] == [State.PLANNED]
        assert host.settings[0] == 2
        await host.lab.unset(("overcommit", ""))
        assert host.settings == (0, 60, 0)
        assert host.guard.verdict.state is GuardState.OFF


async def test_a_pass_meanwhile_writes_nothing_and_shows_the_guard_as_the_winner(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        verdict = await host.cap()
        host.lab.writes()
        await host.lab.engine.reconcile("drift", enforce=True)
        assert host.lab.writes() == []
        (outcome,) = host.lab.engine.observed.outcomes.values()
        assert (outcome.requested, outcome.state) == (f"never:{verdict.kbytes}k", State.SATISFIED)
        assert "guard:overcommit" in [str(claim) for claim in host.lab.engine.edits.claims.by_id]
        assert "guard:overcommit" not in [str(claim) for claim in host.lab.store.claims.by_id]


async def test_a_cap_that_somebody_else_changes_is_theirs(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        with host.guard.lock:
            host.lab.writes()
            host.kernel.overcommit |= {"memory": 0, "ratio": 70, "kbytes": 0}
        async with asyncio.timeout(PATIENCE):
            while "something else set vm.overcommit_memory to 0" not in (await host.news.get()).reason:
                pass
        assert host.lab.writes() == []
        assert host.settings == (0, 70, 0)
    assert host.settings == (0, 70, 0)


@pytest.mark.parametrize(("name", "value"), [("ratio", 70), ("kbytes", 4096)])
async def test_a_limit_that_somebody_else_sets_brings_back_the_mode_and_stays(
    tmp_path: Path, name: str, value: int
) -> None:
    """Mode never is the guard's: with a limit that is not, nobody may be able to start anything."""
    async with scene(tmp_path) as host:
        await host.cap()
        with host.guard.lock:
            host.kernel.overcommit |= {"memory": 2, "ratio": 0, "kbytes": 0, name: value}
            host.lab.writes()
        # While memory is short it caps again, and what was set is what comes back when that cap ends.
        await host.met(lambda: host.guard.counters["guard_caps"] == 2)
        assert host.lab.writes()[0] == (MODE, "1")
        host.leave(40)
        await host.until(GuardState.RELAXED)
        assert host.settings == (1, value if name == "ratio" else 0, value if name == "kbytes" else 0)


async def test_the_ratio_comes_back_where_somebody_else_changes_only_the_mode(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        assert host.settings[:2] == (2, 0)
        host.kernel.overcommit |= {"memory": 0}
        await host.until(GuardState.OBSERVING)
        assert host.settings == (0, 95, 0)


async def test_stopping_puts_back_a_host_that_had_kilobytes(tmp_path: Path) -> None:
    async with scene(tmp_path, memory=1, ratio=0, kbytes=5 << 20) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.kernel.overcommit |= {"ratio": 0, "kbytes": 5 << 20}
        host.leave(5)
        await host.until(GuardState.CAPPED)
    assert host.settings == (1, 0, 5 << 20)


async def test_a_daemon_that_is_killed_leaves_what_the_next_one_puts_back(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        left = (tmp_path / CAP_FILE).read_bytes()
        capped = dict(host.kernel.overcommit)
    assert json.loads(left) == [1, 95, 0]
    host.kernel.overcommit = capped
    (tmp_path / CAP_FILE).write_bytes(left)
    assert undo_cap(host.kernel, tmp_path)
    assert host.settings == (1, 95, 0)
    assert not undo_cap(host.kernel, tmp_path)


async def test_where_it_may_not_write_it_only_watches_and_says_why(tmp_path: Path) -> None:
    async with scene(tmp_path, memory=1) as host:
        host.kernel.refuse[KBYTES] = errno.EROFS
        await host.lab.one("overcommit", "", "always")
        verdict = await host.until(GuardState.OBSERVING)
        assert "overcommit_kbytes cannot be written here" in verdict.reason
        host.leave(5)
        await host.met(lambda: host.guard.verdict.level == 100)
        assert host.settings[0] == 1


async def test_a_cap_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        host.kernel.refuse[KBYTES] = errno.EINVAL
        host.leave(5)
        verdict = await host.until(GuardState.OBSERVING)
        assert "overcommit_kbytes" in verdict.reason
        assert host.settings == (1, 95, 0)
        # It is not tried again: the kernel would refuse it at each look.
        del host.kernel.refuse[KBYTES]
        host.lab.writes()
        host.leave(1)
        await host.met(lambda: host.guard.verdict.level == 255)
        assert (host.guard.verdict.state, host.lab.writes()) == (GuardState.OBSERVING, [])


async def test_disabled_it_does_nothing_and_the_outcome_says_so(tmp_path: Path) -> None:
    async with scene(tmp_path, GuardLimits(enabled=False)) as host:
        outcome = await host.lab.one("overcommit", "", "always:95")
        assert "disabled in the configuration" in outcome.detail
        host.leave(3)
        assert (host.guard.limits, host.guard.verdict.state) == (None, GuardState.OFF)
        host.guard.configure(QUICK)
        await host.lab.engine.reconcile("reload")
        await host.until(GuardState.EXHAUSTED)


async def test_without_room_on_disk_it_only_watches(tmp_path: Path) -> None:
    async with scene(tmp_path / "gone") as host:
        outcome = await host.lab.one("overcommit", "", "always:95")
        assert host.guard.verdict.state is GuardState.OBSERVING
        assert "could not be saved" in outcome.detail


async def test_what_was_there_before_is_saved_before_the_first_write(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        saved: list[str] = []
        host.kernel.before_write = lambda *_write: saved.append((tmp_path / CAP_FILE).read_text().strip())
        host.leave(5)
        await host.until(GuardState.CAPPED)
        assert saved[:2] == ["[1, 95, 0]", "[1, 95, 0]"]


async def test_the_file_for_it_has_its_room_from_the_start(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        size = (tmp_path / CAP_FILE).stat().st_size
        host.leave(5)
        await host.until(GuardState.CAPPED)
        assert (tmp_path / CAP_FILE).stat().st_size == size > len("[1, 95, 0]")


async def test_withdrawing_always_ends_the_cap_whatever_other_claims_are_left(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        config = Claim(Origin.CONFIG, "overcommit", "", "heuristic", who="config")
        await host.lab.engine.reload([config], Limits())
        await host.cap()
        await host.lab.unset(("overcommit", ""))
        assert host.guard.verdict.state is GuardState.OFF
        assert host.settings == (0, 95, 0)


async def test_a_thread_that_hangs_is_not_alive(tmp_path: Path) -> None:
    clock = Clock()
    async with scene(tmp_path, clock=clock) as host:
        await host.watch()
        with host.guard.lock:
            clock.now += 29
            assert host.guard.alive
            clock.now += 2
            assert not host.guard.alive
        host.leave(5)
        await host.until(GuardState.CAPPED)
        assert host.guard.alive


async def test_below_the_floor_the_mode_is_written_again_so_that_the_kernel_counts_exactly(tmp_path: Path) -> None:
    clock = Clock()
    async with scene(tmp_path, clock=clock) as host:
        await host.exhaust()
        written = host.written()
        clock.now += 1
        async with asyncio.timeout(PATIENCE):
            while await written.get() != (MODE, "2"):
                pass


async def test_the_dry_run_says_at_which_headroom_it_would_cap_and_whether_it_could(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        asked = Request((Setting("overcommit", "", "always"),))
        (outcome,) = (await host.lab.engine.plan(asked)).outcomes
        assert outcome.requested == "always:95"
        assert "caps commits (promises of memory) when less than 5324 MiB (8.1% of RAM) are left" in outcome.detail
        assert "could not" not in outcome.detail
        host.leave(4)
        host.kernel.swap, host.kernel.committed = 128 * GIB, 2 * GIB
        low = Request((Setting("overcommit", "", "always:50"),))
        (outcome,) = (await host.lab.engine.plan(low)).outcomes
        assert "as things are it could not: the kernel's limit is never below the swap of 131072 MiB" in outcome.detail
        assert (host.guard.limits, host.lab.writes()) == (None, [])


async def test_the_limit_follows_headroom_and_that_is_one_cap(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        before = (await host.cap()).kbytes
        written = host.written()
        async with asyncio.timeout(PATIENCE):
            host.kernel.nodes[0].programs += GIB  # which nobody has committed
            assert await written.get() == (KBYTES, str(before - (1 << 20)))
            host.kernel.nodes[0].programs -= GIB
            assert await written.get() == (KBYTES, str(before))
        assert host.guard.counters["guard_caps"] == 1


async def test_while_it_caps_passes_use_no_threads_of_their_own(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        host.kernel.plug("nvme0n1")
        await host.lab.engine.observed.read_all()
        await host.lab.one("overcommit", "", "always:95")
        writers: list[str] = []
        host.kernel.before_write = lambda path, _text: writers.append(
            threading.current_thread().name if path.endswith("/scheduler") else ""
        )
        await host.lab.one("io-scheduler", "nvme0n1", "bfq")
        assert host.guard.may_use_threads
        host.leave(5)
        await host.until(GuardState.CAPPED)
        assert not host.guard.may_use_threads
        await host.lab.one("io-scheduler", "nvme0n1", "none")
        free, capped = filter(None, writers)
        assert free.partition("_")[0] != capped.partition("_")[0]


async def test_the_journal_says_when_a_cap_has_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with scene(tmp_path) as host:
        heard = host.heard()
        await host.cap()
        await told_of(heard, GuardState.CAPPED)
        host.leave(40)
        await told_of(heard, GuardState.RELAXED)
    said = [record.getMessage() for record in caplog.records if "MiB are left" in record.getMessage()]
    assert said[-1].startswith("there is memory again: the cap has ended; 40960 MiB are left")
    assert "the memory guard caps commits (promises of memory); 5120 MiB are left, the floor is 3276 MiB" in caplog.text


async def test_a_limit_that_moves_while_somebody_looks_is_nobody_elses(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        await host.lab.engine.reconcile("test")
        with host.guard.lock:  # as between what the guard says and what the kernel does
            host.kernel.overcommit["kbytes"] -= 1000
            assert await host.lab.engine.verify() == ()
            host.kernel.overcommit["kbytes"] += 1000


async def test_who_has_made_memory_short_is_told_everywhere_and_forgotten_with_the_shortage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Consumers, "culprit", lambda _self: "hog.service: hog (pid 7, alice), 9 MiB")
    async with scene(tmp_path) as host:
        host.alerts.listeners.append(host.guard.note)
        heard = host.heard()
        await host.watch()
        assert (await told_of(heard, GuardState.RELAXED)).culprit == ""
        host.leave(5)
        alert = await told_of(heard, GuardState.CAPPED)
        assert alert.culprit == guard_row(host.guard, None)["culprit"] == "hog.service: hog (pid 7, alice), 9 MiB"
        memory = replace(NO_MEMORY, commit_limit=9 * GIB, committed=7 * GIB)
        assert guard_row(host.guard, memory)["room"] == 2 * GIB
        host.leave(40)
        await told_of(heard, GuardState.RELAXED)
        row = guard_row(host.guard, memory)
        assert (row["culprit"], row["room"]) == ("", 0)
    assert "; most to do with it: hog.service: hog (pid 7, alice), 9 MiB; largest: " in caplog.text


async def test_a_stopped_guard_begins_no_more(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        host.guard.stop()
        host.leave(3)
        outcome = await host.lab.one("overcommit", "", "always:95")
        assert outcome.state is State.SATISFIED
        assert host.guard.limits is None
        assert host.settings[0] == 1


async def test_another_ratio_moves_the_floor_of_the_guard_that_watches(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(12)
        await host.until(GuardState.RELAXED)
        await host.lab.one("overcommit", "", "always:80")
        await host.until(GuardState.EXHAUSTED)
        assert host.guard.limits == replace(QUICK, ratio=80)


async def test_a_ratio_that_would_lock_everybody_out_at_once_is_not_taken(tmp_path: Path) -> None:
    """It comes by a configuration, or while another one caps: the guard keeps to the one in force."""
    async with scene(tmp_path) as host:
        await host.cap()
        outcome = await host.lab.one("overcommit", "", "always:50")
        assert outcome.reason is Reason.GUARD_LIMIT
        assert host.guard.limits == QUICK
        assert host.settings[2] * 1024 > host.kernel.committed


async def test_with_too_little_left_for_a_ratio_it_observes_until_there_is_more(tmp_path: Path) -> None:
    async with scene(tmp_path, memory=1, ratio=50) as host:
        host.leave(8)
        host.lab.engine.configure([replace(CONFIGURED, value="always:50")], Limits())
        await host.lab.engine.reconcile("reload")
        assert host.guard.verdict.state is GuardState.OBSERVING
        assert "always:50 keeps 32768 MiB free, and 8192 MiB are left" in host.guard.verdict.reason
        assert host.settings[0] == 1
        host.leave(20)
        await host.lab.engine.reconcile("drift")
        await host.until(GuardState.EXHAUSTED)
        assert host.settings[2] * 1024 > host.kernel.committed


# What the guard does to its own process


# mman.h of Linux, for most processors: what is mapped now, what will be, and each page only when it is used.
NOW, LATER, WHEN_USED = 1, 2, 4


@dataclass(slots=True)
class Libc:
    """Notes what is asked of the C library; `locks` is what mlockall returns."""

    locks: int = 0
    heap: dict[int, int] = field(default_factory=dict)
    locked: list[int] = field(default_factory=list)

    def mallopt(self, what: int, value: int) -> int:
        self.heap[what] = value
        return 1

    def mlockall(self, flags: int) -> int:
        self.locked.append(flags)
        return self.locks


def prepared(monkeypatch: pytest.MonkeyPatch, libc: Libc, memlock: int) -> None:
    """Call it with this C library and this limit of locked memory, whatever the limit is here."""
    ctypes = SimpleNamespace(CDLL=lambda *_, **__: libc, get_errno=lambda: errno.ENOMEM)
    monkeypatch.setattr(sysctls, "ctypes", ctypes)
    limits = {resource.RLIMIT_MEMLOCK: (memlock, memlock)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    sysctls.prepare_for_low_memory()


def test_pages_are_locked_once_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last flag all that is mapped would be made real at once: stacks of threads, and room never used."""
    libc = Libc()
    prepared(monkeypatch, libc, resource.RLIM_INFINITY)
    assert libc.locked == [NOW | LATER | WHEN_USED]


@pytest.mark.parametrize("memlock", [0, 8 << 20, 1 << 40])
def test_nothing_is_locked_where_locked_memory_is_limited(monkeypatch: pytest.MonkeyPatch, memlock: int) -> None:
    """What is mapped later counts as well: at the limit the daemon would get no memory, however much is free."""
    libc = Libc()
    prepared(monkeypatch, libc, memlock)
    assert libc.locked == []
    assert libc.heap.keys() == {sysctls.M_TOP_PAD, sysctls.M_TRIM_THRESHOLD}


def test_a_host_that_locks_nothing_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    prepared(monkeypatch, Libc(locks=-1), resource.RLIM_INFINITY)
    assert [record.getMessage() for record in caplog.records] == [
        f"the daemon's memory cannot be locked: {os.strerror(errno.ENOMEM)}"
    ]


# The open files


@dataclass(slots=True)
class Swapping(SimulatedKernel):
    """With these texts in place of its own."""

    texts: dict[str, str] = field(default_factory=dict)

    def read(self, path: str) -> str:
        return self.texts[path] if path in self.texts else SimulatedKernel.read(self, path)


def test_a_zram_device_that_comes_later_is_seen() -> None:
    kernel = Swapping([Node(16 * GIB)], texts={"proc/swaps": "Filename Type Size Used Priority"})
    files = Sysctls(kernel)
    assert files.sample(1.0, "").memory.swap_free == 0
    kernel.texts = {
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 40960 0 100",
        "sys/block/zram0/mm_stat": "41943040 0 10485760 0",
        "proc/meminfo": "MemTotal: 16777216 kB\nSwapFree: 40960 kB",
    }
    assert files.sample(2.0, "").memory.swap_free == 30 << 20


@pytest.mark.parametrize("text", ["", "MemTotal: lots"])
def test_figures_that_cannot_be_made_out_are_no_sample(text: str) -> None:
    kernel = Swapping([Node(16 * GIB)], texts={"proc/meminfo": text})
    with pytest.raises(ValueError, match="does not say how much memory there is"):
        Sysctls(kernel).sample(1.0, "")


def test_what_zfs_gives_back_is_in_a_sample() -> None:
    kernel = Swapping([Node(16 * GIB)], texts={"proc/spl/kstat/zfs/arcstats": "c_min 4 1000\nsize 4 8000\n"})
    assert Sysctls(kernel).sample(1.0, "").memory.arc == 7000


def test_a_sample_has_the_kernels_reserves_and_the_cpus() -> None:
    sample = Sysctls(SimulatedKernel([Node(16 * GIB)])).sample(7.0, "why not")
    assert (sample.reserves, sample.cpus, sample.now, sample.unavailable_reason) == (
        136 << 20,
        os.cpu_count(),
        7.0,
        "why not",
    )


# How often it looks, and at what


def thread_of(kernel: SimulatedKernel, runtime: Path, clock: Clock) -> GuardThread:
    """Return a thread that has not started: a test looks for it."""
    return GuardThread(
        Sysctls(kernel),
        SavedOriginals(runtime),
        GuardLimits(),
        lock=threading.Lock(),
        publish=lambda *_: None,
        clock=clock,
    )


@dataclass
class Reads(SimulatedKernel):
    """What is read is noted."""

    paths: list[str] = field(default_factory=list)

    def read(self, path: str) -> str:
        self.paths.append(path)
        return SimulatedKernel.read(self, path)


def test_while_there_is_enough_a_look_reads_one_file_and_each_second_all(tmp_path: Path) -> None:
    kernel, clock = Reads([Node(64 * GIB)]), Clock()
    kernel.overcommit |= {"memory": 1, "ratio": 95}
    kernel.nodes[0].programs = int(58.7 * GIB)
    thread = thread_of(kernel, tmp_path, clock)
    read = []
    for seconds in (0, 0.02, 0.02, 0.99):
        kernel.paths.clear()
        clock.now += seconds
        assert thread.look() == pytest.approx(0.02)
        read.append(set(kernel.paths))
    assert MODE in read[0]
    assert read[1:] == [{MEMINFO}, {MEMINFO}, read[0]]
    kernel.nodes[0].programs += GIB
    clock.now += 0.02
    thread.look()
    assert thread.verdict.caps
    assert kernel.overcommit["memory"] == 2
    kernel.nodes[0].programs -= 20 * GIB
    capped_with = kernel.overcommit["kbytes"]
    clock.now += 0.02
    thread.look()
    assert kernel.overcommit["kbytes"] > capped_with, "in a cap each look is a whole one"


def test_one_that_can_do_nothing_looks_once_a_second(tmp_path: Path) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    kernel.nodes[0].programs = 62 * GIB
    thread = thread_of(kernel, tmp_path, Clock())
    assert [thread.look(), thread.look()] == [0.02, 1.0]
    assert thread.verdict.state is GuardState.OBSERVING


def test_how_soon_it_looks_again_rests_on_what_is_in_ram_now(tmp_path: Path) -> None:
    """Swap may be switched off in between."""
    kernel, clock = SimulatedKernel([Node(64 * GIB)]), Clock()
    kernel.overcommit |= {"memory": 1, "ratio": 95}
    kernel.nodes[0].programs, kernel.swap = int(58.5 * GIB), 200 * GIB
    thread = thread_of(kernel, tmp_path, clock)
    assert thread.look() > 0.02
    clock.now += 0.01
    assert thread.look() == pytest.approx(0.02)


# What a killed guard has left


@pytest.mark.parametrize("left", [b"", b" " * 256])
def test_nothing_is_put_back_where_nothing_was_capped(tmp_path: Path, left: bytes) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / CAP_FILE).write_bytes(left)
    assert not undo_cap(kernel, tmp_path)
    assert kernel.journal == []


@pytest.mark.parametrize(
    "left",
    [
        b"[1, 95",
        b"[1, 95]",
        b'["a", 1, 2]',
        b"\xff",
        b"[" * 256,
        b"[1, 95, -8192]",
        b"[3, 95, 0]",
    ],
)
def test_nothing_is_put_back_from_what_cannot_be_read(tmp_path: Path, left: bytes) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / CAP_FILE).write_bytes(left)
    with pytest.raises(Unreadable):
        undo_cap(kernel, tmp_path)
    assert kernel.journal == []


def test_nothing_is_put_back_where_somebody_has_set_another_mode_since(tmp_path: Path) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / CAP_FILE).write_text("[1, 95, 0]")
    assert undo_cap(kernel, tmp_path)
    assert kernel.journal == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [("never:80", ""), ("heuristic", ""), ("always:90", ""), ("", ""), ("", "always:80"), ("", "heuristic")],
    ids=["never", "heuristic", "always", "unset", "unset, then always", "unset, then heuristic"],
)
async def test_while_it_caps_a_plan_is_what_its_call_does(tmp_path: Path, value: str, kept: str) -> None:
    async with scene(tmp_path) as host:
        if kept:
            await host.lab.set(("overcommit", "", kept), persist=True)
        await host.cap()
        asked = Request((Setting("overcommit", "", value),), unset=not value, who="alice")
        planned = await host.lab.engine.plan(asked, strict=True)
        assert host.guard.verdict.caps
        done = await host.lab.engine.change(asked, "test")
        assert planned.changed == done.changed
        ((one,), (came,)) = planned.outcomes, done.outcomes
        if one.state is State.PLANNED:
            assert (came.state, came.actual) in {(State.SATISFIED, one.requested), (State.UNMANAGED, one.requested)}
        else:
            assert (one.state, one.reason, one.requested) == (came.state, came.reason, came.requested)
