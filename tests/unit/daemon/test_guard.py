"""The memory guard beside the engine, on a simulated host: who writes what and when, and what is put back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kerntune.daemon.alarm import OFTEN, Alarm
from kerntune.daemon.cap_file import NAME, Unreadable, undo_cap
from kerntune.daemon.guard import MemoryGuard
from kerntune.engine.guard import GuardLimits, GuardState, GuardVerdict
from kerntune.engine.requests import Request
from kerntune.kernel.pressure import ADMIN_RESERVE, KBYTES, MODE, RATIO, USER_RESERVE
from kerntune.kernel.refusals import Refused
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Memory, Reason, Setting, State
from tests.unit.lab import Lab, running

GIB = 1 << 30
QUICK = GuardLimits(calm=0.0, dwell=0.0, doubling=False)
WITHDRAW = Request((Setting("overcommit", "", ""),), unset=True)
PATIENCE = 10.0  # seconds


class Scene:
    """A host of 64 GiB with a guard; `news` are its verdicts that were."""

    def __init__(self, lab: Lab, guard: MemoryGuard, news: asyncio.Queue[GuardVerdict], alarm: Alarm) -> None:
        self.lab, self.guard, self.news, self.alarm = lab, guard, news, alarm
        self.kernel = lab.kernel

    def leave(self, gib: float) -> None:
        """Programs take so much that this is left."""
        self.kernel.nodes[0].programs = int((64 - gib) * GIB)
        self.kernel.committed = self.kernel.nodes[0].programs

    async def until(self, state: GuardState) -> GuardVerdict:
        return await self.met(lambda: self.guard.verdict.state is state)

    async def met(self, condition: Callable[[], bool]) -> GuardVerdict:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.news.get()
        return self.guard.verdict

    @property
    def settings(self) -> tuple[int, int, int, int]:
        """Mode, ratio, kilobytes, and what is reserved for root, as the kernel has them."""
        now = self.kernel.overcommit
        assert (self.kernel.user_reserve == 131072) is (self.kernel.admin_reserve == 8192)
        return now["memory"], now["ratio"], now["kbytes"], self.kernel.admin_reserve


@contextlib.asynccontextmanager
async def scene(
    runtime: Path, settings: GuardLimits = QUICK, kernel: SimulatedKernel | None = None, **overcommit: int
) -> AsyncIterator[Scene]:
    """With an alarm, which asks for the passes that follow a cap and its end."""
    kernel = kernel or SimulatedKernel([Node(64 * GIB)])
    kernel.overcommit |= overcommit
    loop, news, alarm = asyncio.get_running_loop(), asyncio.Queue[GuardVerdict](), Alarm()

    def tell(verdict: GuardVerdict, memory: Memory | None, limits: GuardLimits | None) -> None:
        alarm.tell(verdict, memory, limits)
        loop.call_soon_threadsafe(news.put_nowait, verdict)

    guard = MemoryGuard(kernel, runtime, tell)
    guard.configure(settings)
    try:
        async with running(kernel, guard=guard) as lab:
            guard.preparations += [alarm.prepare, lab.engine.threads.prepare]
            telling = asyncio.create_task(alarm.work(lab.engine))
            yield Scene(lab, guard, news, alarm)
            assert not telling.done(), "the alarm has gone on"
            telling.cancel()
    finally:
        guard.stop()
        alarm.close()


async def test_it_watches_from_the_first_claim_of_always_to_the_last(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        assert host.guard.limits is None
        outcome = await host.lab.one("overcommit", "", "always:90")
        assert "caps what is promised when less than 11141 MiB (17 % of RAM) are left" in outcome.detail
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
        host.leave(7)
        verdict = await host.until(GuardState.CAPPED)
        assert host.lab.writes() == [
            (ADMIN_RESERVE, "131072"),
            (USER_RESERVE, "262144"),
            (KBYTES, str(verdict.kbytes)),
            (MODE, "2"),
        ]
        assert host.settings == (2, 0, verdict.kbytes, 131072)
        host.leave(40)
        await host.until(GuardState.RELEASED)
        assert host.lab.writes() == [
            (MODE, "1"),
            (RATIO, "95"),
            (ADMIN_RESERVE, "8192"),
            (USER_RESERVE, "131072"),
        ]
        assert host.settings == before
        assert host.lab.engine.counters["guard_caps"] == 1
        assert not (tmp_path / NAME).read_text().strip()


async def test_what_is_set_meanwhile_waits_until_it_lets_go(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(5)
        await host.until(GuardState.CAPPED)
        outcome = await host.lab.one("overcommit", "", "heuristic")
        assert (outcome.state, outcome.reason) == (State.OVERRIDDEN, Reason.GUARD_LIMIT)
        assert host.settings[0] == 2
        again = await host.lab.one("overcommit", "", "heuristic", must_win=True)
        assert again.reason is Reason.GUARD_LIMIT
        host.leave(40)
        await host.until(GuardState.RELEASED)
        await host.lab.engine.reconcile("memory guard")
        assert host.settings == (0, 95, 0, 8192)
        assert host.guard.verdict.state is GuardState.OFF


async def test_who_withdraws_always_ends_it_in_the_same_pass(tmp_path: Path) -> None:
    async with scene(tmp_path, ratio=60) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(5)
        await host.until(GuardState.CAPPED)
        planned = (await host.lab.engine.plan(WITHDRAW)).outcomes
        assert [outcome.state for outcome in planned] == [State.PLANNED]
        assert host.settings[0] == 2
        await host.lab.unset(("overcommit", ""))
        assert host.settings == (0, 60, 0, 8192)
        assert host.guard.verdict.state is GuardState.OFF


async def test_a_pass_meanwhile_writes_nothing_and_shows_the_guard_as_the_winner(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(5)
        verdict = await host.until(GuardState.CAPPED)
        host.lab.writes()
        await host.lab.engine.reconcile("drift", enforce=True)
        assert host.lab.writes() == []
        (outcome,) = host.lab.engine.outcomes.values()
        assert (outcome.requested, outcome.state) == (f"never:{verdict.kbytes}k", State.SATISFIED)
        assert "guard:overcommit" in [str(claim) for claim in host.lab.engine.book.claims]
        assert "guard:overcommit" not in [str(claim) for claim in host.lab.ledger.book.claims]


async def test_a_cap_that_somebody_else_changes_is_theirs(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(5)
        await host.until(GuardState.CAPPED)
        host.kernel.overcommit |= {"memory": 0, "ratio": 70, "kbytes": 0}
        host.lab.writes()
        verdict = await host.until(GuardState.OBSERVING)
        assert "something else set vm.overcommit_memory to 0" in verdict.reason
        assert host.lab.writes() == [(ADMIN_RESERVE, "8192"), (USER_RESERVE, "131072")]
        assert host.settings == (0, 70, 0, 8192)
    assert host.settings == (0, 70, 0, 8192)


async def test_the_ratio_comes_back_where_somebody_else_changes_only_the_mode(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(5)
        verdict = await host.until(GuardState.CAPPED)
        assert host.settings[:3] == (2, 0, verdict.kbytes)
        host.kernel.overcommit |= {"memory": 0}
        await host.until(GuardState.OBSERVING)
        assert host.settings == (0, 95, 0, 8192)


async def test_stopping_puts_back_a_host_that_had_kilobytes(tmp_path: Path) -> None:
    async with scene(tmp_path, memory=1, ratio=0, kbytes=5 << 20) as host:
        await host.lab.one("overcommit", "", "always")
        host.leave(5)
        await host.until(GuardState.CAPPED)
    assert host.settings == (1, 0, 5 << 20, 8192)


async def test_a_daemon_that_is_killed_leaves_what_the_next_one_puts_back(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        host.leave(5)
        await host.until(GuardState.CAPPED)
        left = (tmp_path / NAME).read_bytes()
        capped = dict(host.kernel.overcommit)
    assert json.loads(left) == [1, 95, 0, 8192, 131072]
    host.kernel.overcommit, host.kernel.admin_reserve, host.kernel.user_reserve = capped, 131072, 262144
    (tmp_path / NAME).write_bytes(left)
    assert undo_cap(host.kernel, tmp_path)
    assert host.settings == (1, 95, 0, 8192)
    assert not undo_cap(host.kernel, tmp_path)


@pytest.mark.parametrize("left", [b"", b" " * 256])
def test_nothing_is_put_back_where_nothing_was_capped(tmp_path: Path, left: bytes) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / NAME).write_bytes(left)
    assert not undo_cap(kernel, tmp_path)
    assert kernel.journal == []


@pytest.mark.parametrize(
    "left",
    [
        b"[1, 95",
        b"[1, 95, 0, 8192]",
        b'["a", 1, 2, 3, 4]',
        b"\xff",
        b"[" * 256,
        b"[1, 95, 0, -8192, 131072]",
        b"[3, 95, 0, 8192, 131072]",
    ],
)
def test_nothing_is_put_back_from_what_cannot_be_read(tmp_path: Path, left: bytes) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / NAME).write_bytes(left)
    with pytest.raises(Unreadable):
        undo_cap(kernel, tmp_path)
    assert kernel.journal == []


def test_nothing_is_put_back_where_somebody_has_set_another_mode_since(tmp_path: Path) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / NAME).write_text("[1, 95, 0, 8192, 131072]")
    assert undo_cap(kernel, tmp_path)
    assert kernel.journal == []


async def test_where_it_may_not_write_it_only_watches_and_says_why(tmp_path: Path) -> None:
    async with scene(tmp_path, memory=1) as host:
        host.kernel.refuse[ADMIN_RESERVE] = errno.EROFS
        await host.lab.one("overcommit", "", "always")
        verdict = await host.until(GuardState.OBSERVING)
        assert "admin_reserve_kbytes cannot be written here" in verdict.reason
        host.leave(5)
        await host.met(lambda: host.guard.verdict.level == 100)
        assert host.settings[0] == 1


async def test_a_cap_that_fails_half_way_is_undone(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        await host.until(GuardState.RELAXED)
        host.kernel.refuse[KBYTES] = errno.EINVAL
        host.leave(5)
        verdict = await host.until(GuardState.OBSERVING)
        assert "overcommit_kbytes" in verdict.reason
        assert host.settings == (1, 95, 0, 8192)


async def test_disabled_it_does_nothing_and_the_outcome_says_so(tmp_path: Path) -> None:
    async with scene(tmp_path, GuardLimits(enabled=False)) as host:
        outcome = await host.lab.one("overcommit", "", "always:95")
        assert "disabled in the configuration" in outcome.detail
        host.leave(1)
        assert (host.guard.limits, host.guard.verdict.state) == (None, GuardState.OFF)
        host.guard.configure(QUICK)
        await host.lab.engine.reconcile("reload")
        await host.until(GuardState.EXHAUSTED)


async def test_without_room_on_disk_it_only_watches(tmp_path: Path) -> None:
    async with scene(tmp_path / "gone") as host:
        outcome = await host.lab.one("overcommit", "", "always:95")
        assert host.guard.verdict.state is GuardState.OBSERVING
        assert "could not be saved" in outcome.detail


async def test_who_was_refused_is_sought_from_the_cap_on_however_late_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: asyncio.Queue[float] = asyncio.Queue()
    now, loop = 1_000.0, asyncio.get_running_loop()

    def refused_since(begin: float) -> list[Refused]:
        loop.call_soon_threadsafe(sought.put_nowait, begin)
        return []

    monkeypatch.setattr("kerntune.daemon.alarm.refused_since", refused_since)
    monkeypatch.setattr("kerntune.daemon.alarm.time.time", lambda: now)
    async with scene(tmp_path) as host:
        host.alarm.tell(GuardVerdict(GuardState.CAPPED, 100, kbytes=1), None, None)
        now = 1_060.0
        host.alarm.tell(GuardVerdict(GuardState.RELEASED), None, None)
        async with asyncio.timeout(PATIENCE):
            assert await sought.get() == 1_000.0 - OFTEN
