"""The memory guard when something goes wrong: somebody else's hand, a kernel that refuses, no memory for itself."""

from __future__ import annotations

import asyncio
import errno
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kerntune.errors import Failed
from kerntune.guard import alerts as alerts_module
from kerntune.guard import guard as guard_module
from kerntune.guard import thread as thread_module
from kerntune.guard.alerts import Alert
from kerntune.guard.policy import GuardVerdict, Sample, decide
from kerntune.guard.saved import CAP_FILE
from kerntune.guard.sysctls import KBYTES, MEMINFO, MODE, RATIO
from kerntune.kernel.files import KernelError
from kerntune.kernel.processes import Consumers
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import GuardState, Limits, Reason, State
from tests.unit.guard.lab import CONFIGURED, GIB, PATIENCE, Scene, scene, told_of
from tests.unit.lab import FULL, Clock

ORIGINAL = (1, 95, 0)


@dataclass(slots=True)
class Faulty(SimulatedKernel):
    """A read of a file that is named here raises that; `looked` is set whenever the guard looks at memory."""

    faults: dict[str, BaseException] = field(default_factory=dict)
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def read(self, path: str) -> str:
        if threading.current_thread().name == "guard":
            if path == MEMINFO:
                self.loop.call_soon_threadsafe(self.looked.set)
            if path in self.faults:
                raise self.faults[path]
        return SimulatedKernel.read(self, path)

    async def looks(self, times: int) -> None:
        """Wait for so many looks."""
        async with asyncio.timeout(PATIENCE):
            for _ in range(times):
                self.looked.clear()
                await self.looked.wait()


def once(path: str, value: str, error: BaseException) -> Callable[[str, str], None]:
    """For `before_write`: the first write of this raises."""
    left = [error]

    def raising(written: str, text: str) -> None:
        if (written, text) == (path, value) and left:
            raise left.pop()

    return raising


async def passed(host: Scene) -> None:
    """All that the alerts have asked for is done."""
    await host.lab.engine.reconcile("test")


async def let_go(host: Scene) -> None:
    """There is memory again, and what was there before the cap is back."""
    host.leave(40)
    await host.until(GuardState.RELAXED)
    assert host.settings == ORIGINAL


async def test_who_ends_a_cap_by_hand_is_not_fought(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        await passed(host)
        host.kernel.overcommit |= {"memory": 0}
        host.lab.writes()
        await host.until(GuardState.OBSERVING)
        await passed(host)
        assert MODE not in [path for path, _ in host.lab.writes()]
        assert host.settings[0] == 0
        (outcome,) = host.lab.engine.observed.outcomes.values()
        assert (outcome.state, outcome.reason) == (State.CONTESTED, Reason.CHANGED_BY_OTHERS)
        assert "heuristic" in outcome.detail
        host.leave(40)
        await passed(host)
        assert host.settings[0] == 0
        # Until somebody says so.
        await host.watch()
        assert host.settings == ORIGINAL


async def test_memory_that_goes_while_it_caps_leaves_the_originals_known(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        host.kernel.before_write = once(MODE, "2", MemoryError())
        host.leave(5)
        await host.until(GuardState.CAPPED)
        await let_go(host)


async def test_memory_that_goes_while_it_caps_and_while_it_undoes_that(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        faults = once(MODE, "2", MemoryError()), once(RATIO, "95", MemoryError())

        def failing(path: str, text: str) -> None:
            for fault in faults:
                fault(path, text)

        host.kernel.before_write = failing
        host.leave(5)
        await host.until(GuardState.CAPPED)
        await let_go(host)


async def test_a_cap_that_could_not_be_told_is_told_later_and_undone(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        host.deaf.append(MemoryError())
        host.leave(5)
        await host.until(GuardState.CAPPED)
        assert host.settings[0] == 2
        assert not host.deaf
    assert host.settings == ORIGINAL


async def test_looks_that_fail_are_followed_by_others_and_told_once_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Faulty([Node(64 * GIB)])
    fault = KernelError(errno.ENOMEM, "Cannot allocate memory", MEMINFO)
    async with scene(tmp_path, kernel=kernel) as host:
        await host.cap()
        kernel.faults[MEMINFO] = fault
        host.leave(40)
        assert host.guard.alive
        await kernel.looks(3)
        kernel.faults.clear()
        await host.until(GuardState.RELAXED)
        assert host.settings == ORIGINAL
        assert caplog.text.count("goes on trying") == 1
        kernel.faults[MEMINFO] = fault
        async with asyncio.timeout(PATIENCE):
            while caplog.text.count("goes on trying") == 1:
                await kernel.looks(1)


async def test_what_is_no_news_is_told_once(tmp_path: Path) -> None:
    kernel = Faulty([Node(64 * GIB)])
    async with scene(tmp_path, kernel=kernel) as host:
        await host.watch()
        await kernel.looks(5)
        assert host.told == [GuardState.RELAXED]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_thread_that_is_gone_is_not_alive(tmp_path: Path) -> None:
    kernel = Faulty([Node(64 * GIB)])
    async with scene(tmp_path, kernel=kernel) as host:
        assert host.guard.alive, "there is nothing to look at"
        await host.watch()
        assert host.guard.alive
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "guard")
        kernel.faults[MEMINFO] = SystemExit()
        await asyncio.to_thread(thread.join, PATIENCE)
        assert not host.guard.alive


async def test_a_cap_that_cannot_be_undone_is_tried_again(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        host.kernel.refuse[MODE] = errno.EBUSY
        host.leave(40)
        verdict = await host.met(lambda: bool(host.guard.verdict.reason))
        assert verdict.caps
        assert "cannot be changed" in verdict.reason
        del host.kernel.refuse[MODE]
        await host.until(GuardState.RELAXED)
        assert host.settings == ORIGINAL


async def test_what_cannot_be_undone_at_the_end_is_for_the_next_and_not_written_over(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        host.kernel.overcommit |= {"ratio": 0, "kbytes": 5 << 20}
        host.leave(5)
        await host.until(GuardState.CAPPED)
        host.kernel.refuse[KBYTES] = errno.EBUSY
    assert host.settings[0] == 1
    left = (tmp_path / CAP_FILE).read_text()
    async with scene(tmp_path, kernel=host.kernel) as again:
        again.leave(40)
        await again.lab.one("overcommit", "", "always:95")
        verdict = await again.until(GuardState.OBSERVING)
        assert "an earlier cap" in verdict.reason
        assert (tmp_path / CAP_FILE).read_text() == left
        del again.kernel.refuse[KBYTES]
        await passed(again)
        await again.until(GuardState.RELAXED)
        assert again.settings == (1, 0, 5 << 20)


async def test_a_call_that_fails_meanwhile_ends_no_cap(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        await host.lab.one("overcommit", "", "heuristic")
        host.lab.store.full_for_claims = FULL
        with pytest.raises(Failed):
            await host.lab.one("overcommit", "", "never:90")
        await passed(host)
        assert host.guard.verdict.caps
        assert host.settings[0] == 2


async def test_a_reload_with_always_in_it_ends_no_cap_and_one_without_does(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.engine.reload([CONFIGURED], Limits())
        await host.until(GuardState.RELAXED)
        host.leave(5)
        await host.until(GuardState.CAPPED)
        await host.lab.engine.reload([replace(CONFIGURED, value="always:94")], Limits())
        assert host.guard.verdict.caps
        await host.lab.engine.reload([], Limits())
        assert host.guard.verdict.state is GuardState.OFF
        assert host.settings == (0, 50, 0)


async def test_in_a_container_the_reason_is_that_it_may_not_write(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        host.kernel.refuse |= dict.fromkeys((MODE, RATIO, KBYTES), errno.EROFS)
        await host.lab.engine.reload([CONFIGURED], Limits())
        verdict = await host.until(GuardState.OBSERVING)
        assert "cannot be written here" in verdict.reason


async def test_a_plan_waits_for_no_guard_and_no_guard_for_a_plan(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        await host.lab.one("overcommit", "", "always:95")
        with host.guard.lock:
            async with asyncio.timeout(5):
                assert await host.lab.engine.verify() == ()


async def test_writes_that_hang_delay_no_cap(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        for number in range(40):
            host.kernel.plug(f"nvme{number}n1")
        await host.lab.engine.observed.read_all()
        await host.watch()
        gate = threading.Event()

        def hanging(path: str, text: str) -> None:
            if path.endswith("/scheduler"):
                gate.wait(20)

        host.kernel.before_write = hanging
        drives = asyncio.create_task(host.lab.set(("io-scheduler", "*", "mq-deadline")))
        async with asyncio.timeout(10):
            await host.lab.one("overcommit", "", "always:94")
            host.leave(5)
            await host.until(GuardState.CAPPED)
        gate.set()
        await drives


async def test_while_it_caps_no_thread_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path) as host:
        for number in range(12):
            host.kernel.plug(f"nvme{number}n1")
        await host.lab.engine.observed.read_all()
        await host.cap()
        assert "psutil" in sys.modules

        def refused(thread: threading.Thread) -> None:
            raise RuntimeError(f"can't start new thread {thread.name}")

        monkeypatch.setattr(threading.Thread, "start", refused)
        await host.lab.engine.observed.read_all()
        await passed(host)
        outcomes = (await host.lab.set(("io-scheduler", "*", "mq-deadline"))).outcomes
        assert {outcome.actual for outcome in outcomes} == {"mq-deadline"}
        host.leave(40)
        await host.until(GuardState.RELAXED)


async def test_who_cannot_be_seen_is_not_named_and_all_else_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path) as host:
        heard = host.heard()
        await host.watch()
        await told_of(heard, GuardState.RELAXED)
        look, failures = Consumers.look, [MemoryError()]

        def failing(consumers: Consumers, now: float) -> None:
            if failures:
                raise failures.pop()
            look(consumers, now)

        monkeypatch.setattr(Consumers, "look", failing)  # what psutil does where memory is short
        host.leave(5)
        assert (await told_of(heard, GuardState.CAPPED)).largest == ()
        assert not failures


async def test_it_watches_though_nobody_could_be_seen_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> Consumers:
        raise MemoryError

    monkeypatch.setattr(alerts_module, "Consumers", failing)  # where memory is short already
    async with scene(tmp_path) as host:
        await host.cap()
        assert "who holds memory cannot be seen: MemoryError" in caplog.text


async def test_one_state_with_many_words_is_told_with_the_last(tmp_path: Path) -> None:
    async with scene(tmp_path) as host:
        heard = asyncio.Queue[str]()
        host.alerts.listeners.append(lambda alert: heard.put_nowait(alert.verdict.reason))
        for number in range(100):
            host.alerts.tell(GuardVerdict(GuardState.OBSERVING, reason=str(number)), None, None)
        told = 0
        async with asyncio.timeout(10):
            while await heard.get() != "99":
                told += 1
        assert told < 5


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
@pytest.mark.parametrize("method", ["largest", "growing", "look"])
async def test_a_cap_is_told_also_when_nobody_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    async with scene(tmp_path) as host:
        await host.watch()
        heard = host.heard()
        threads = set[str]()

        def fail(*_args: object) -> None:
            threads.add(threading.current_thread().name)
            raise error

        monkeypatch.setattr(Consumers, method, fail)
        host.leave(5)
        await host.until(GuardState.CAPPED)
        alert = await told_of(heard, GuardState.CAPPED)
        assert (alert.largest, alert.growing) == ((), ())
        assert all(name.startswith("consumers") for name in threads), "the loop waits for none of it"


async def test_a_process_whose_files_hang_delays_no_alert_for_longer_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts_module, "OFTEN", 0.01)
    begun, gate, looks = threading.Event(), threading.Event(), list[str]()

    def hang(_consumers: Consumers) -> str:
        looks.append("begun")
        begun.set()
        gate.wait(2 * PATIENCE)
        return "the hog"

    async with scene(tmp_path) as host:
        heard = host.heard()
        await host.watch()
        await told_of(heard, GuardState.RELAXED)
        monkeypatch.setattr(Consumers, "culprit", hang)  # it reads command lines, and the kernel locks their memory
        try:
            with monkeypatch.context() as hanging:
                hanging.setattr(alerts_module, "LOOK_SECONDS", 0.05)  # a look that ends may take longer than that
                host.leave(5)
                assert (await told_of(heard, GuardState.CAPPED)).culprit == ""
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            host.leave(40)
            await told_of(heard, GuardState.RELAXED)
            host.leave(5)
            await told_of(heard, GuardState.CAPPED)
            assert looks == ["begun"], "no second look waits behind the one that hangs"
        finally:
            gate.set()
        await asyncio.to_thread(looked_to_the_end, host)
        host.leave(3)
        assert (await told_of(heard, GuardState.EXHAUSTED)).culprit == "the hog"
        assert caplog.text.count("who holds memory cannot be seen: TimeoutError") == 1


def looked_to_the_end(host: Scene) -> None:
    """Wait for the look that runs: what its thread is given now comes after it."""
    host.alerts._threads.submit(int).result(PATIENCE)


async def test_a_listener_that_fails_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(alerts_module, "OFTEN", 0.01)
    async with scene(tmp_path) as host:
        await host.watch()
        failing = [True]

        def fail(_alert: Alert) -> None:
            if failing:
                failing.pop()
                raise MemoryError

        host.alerts.listeners.append(fail)
        heard = host.heard()
        host.leave(5)
        await host.until(GuardState.CAPPED)
        host.leave(40)
        await told_of(heard, GuardState.RELAXED)
        assert "cannot be told: MemoryError" in caplog.text


async def test_the_end_waits_for_no_pass_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard_module, "HANGS", 0.05)
    async with scene(tmp_path) as host:
        await host.watch()
        with host.guard.lock:
            host.guard.stop()
        assert "a pass hangs with the memory guard's files" in caplog.text
        assert host.guard.limits is not None


@pytest.mark.parametrize("error", [KernelError(errno.EINTR, "Interrupted system call", MODE), MemoryError()])
async def test_a_mode_that_cannot_be_written_again_leaves_the_cap_the_guards_own(
    tmp_path: Path, error: BaseException
) -> None:
    """Near the floor it is written each second; the limit that moves in the same look is not taken for another's."""
    clock = Clock()
    async with scene(tmp_path, clock=clock) as host:
        await host.exhaust()
        tried = asyncio.Event()
        loop = asyncio.get_running_loop()
        fails = once(MODE, "2", error)

        def failing(path: str, text: str) -> None:
            if (path, text) == (MODE, "2"):
                loop.call_soon_threadsafe(tried.set)
            fails(path, text)

        with host.guard.lock:
            host.kernel.before_write = failing
            clock.now += 1.5
            host.kernel.nodes[0].programs -= GIB // 2
            host.kernel.committed += GIB
        async with asyncio.timeout(PATIENCE):
            await tried.wait()
        await host.met(lambda: host.settings[2] == host.guard.verdict.kbytes)
        assert host.guard.counters["guard_caps"] == 1
        host.leave(40)
        clock.now += 10
        await host.until(GuardState.RELAXED)
        assert host.settings == ORIGINAL


async def test_a_cap_that_cannot_be_undone_for_want_of_memory_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(tmp_path) as host:
        await host.cap()
        host.kernel.before_write = once(MODE, "1", MemoryError())
        host.guard.stop()
        assert "a cap cannot be undone" in caplog.text
        assert (tmp_path / CAP_FILE).read_text().strip(), "what is to be put back is still there"


@pytest.mark.parametrize(("name", "value"), [("kbytes", 4096), ("ratio", 1), ("memory", 0)])
async def test_what_somebody_sets_between_a_look_and_its_write_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    clock = Clock()
    async with scene(tmp_path, clock=clock) as host:
        await host.exhaust()
        left = [True]

        def and_then(sample: Sample, *rest: Any) -> GuardVerdict:
            after = decide(sample, *rest)
            if left and left.pop():
                host.kernel.overcommit[name] = value
                if name != "memory":
                    host.kernel.overcommit["kbytes" if name == "ratio" else "ratio"] = 0
            return after

        with host.guard.lock:
            monkeypatch.setattr(thread_module, "decide", and_then)
            clock.now += 1.5
            host.kernel.nodes[0].programs -= GIB // 2
            host.kernel.committed += GIB
        verdict = await host.met(lambda: host.guard.verdict.state is GuardState.OBSERVING)
        assert "something else set" in verdict.reason
