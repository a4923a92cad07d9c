"""A device that hangs takes itself along, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from kerntune.engine.claims import Claims, FilesEdit
from kerntune.engine.hung import Bounds, Crew, Hung, Reader
from kerntune.engine.workers import LOOKING
from kerntune.engine.writer import WRITERS
from kerntune.errors import Failed, KernelRejected
from kerntune.kernel.files import KernelError
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Claim, Lane, Origin, Outcome, Reason, State, Target
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import BOUND, Lab, claim, failing, large_host, pages, queue, request, running

SHORT = Bounds(read=0.1, write=0.2, least=0.02)
SOON = BOUND / 3  # seconds that a caller may wait though something hangs for BOUND
BFQ = ("io-scheduler", "*", "bfq")


@dataclass(slots=True)
class Stuck:
    """The kernel does not return from a read or write of these files until it is let go."""

    paths: set[str]
    go_on: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    inside: list[str] = field(default_factory=list)

    def hang(self, path: str) -> None:
        if path in self.paths and not self.go_on.is_set():
            self.inside.append(path)
            self.began.set()
            self.go_on.wait(BOUND)

    def hang_in_write(self, path: str, _text: str) -> None:
        self.hang(path)


@contextlib.contextmanager
def ended() -> Iterator[asyncio.Event]:
    """While inside: is set when the engine knows that a device answers again."""
    loop, event, end = asyncio.get_running_loop(), asyncio.Event(), Hung.end

    def ending(self: Hung, *given: Any, **how: Any) -> None:
        end(self, *given, **how)
        loop.call_soon_threadsafe(event.set)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hung, "end", ending)
        yield event


@contextlib.contextmanager
def stuck(kernel: SimulatedKernel, *paths: str, reads: bool = False, writes: bool = True) -> Iterator[Stuck]:
    """While inside, these files hang; nothing hangs after it."""
    files, read = Stuck(set(paths)), SimulatedKernel.read

    def reading(self: SimulatedKernel, path: str) -> str:
        files.hang(path)
        return read(self, path)

    if writes:
        kernel.before_write = files.hang_in_write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedKernel, "read", reading if reads else read)
        try:
            yield files
        finally:
            files.go_on.set()


@contextlib.asynccontextmanager
async def lab_on(kernel: SimulatedKernel, claims: Iterable[Claim] = (), **options: Any) -> AsyncIterator[Lab]:
    async with asyncio.timeout(BOUND), running(kernel, claims=claims, bounds=SHORT, **options) as lab:
        yield lab


def schedulers(lab: Lab) -> dict[str, str]:
    return {name: disk.scheduler for name, disk in lab.kernel.disks.items()}


def hangs(outcome: Outcome) -> bool:
    return (outcome.state, outcome.reason) == (State.FAILED, Reason.DEVICE_HANGS)


def of(lab: Lab, name: str = "sda") -> Outcome:
    return next(o for t, o in lab.engine.observed.outcomes.items() if t.instance == name)


async def test_of_many_the_others_are_set_and_the_one_that_hung_is_set_when_the_kernel_returns() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda")) as files:
            found = {o.target.instance: o for o in (await lab.set(BFQ)).outcomes}
            assert [name for name, o in found.items() if o.state is State.SATISFIED] == ["nvme0n1", "nvme1n1"]
            assert hangs(found["sda"])
            assert found["sda"].actual == "mq-deadline", "the last that is known"
            assert "sda hangs: the kernel has not returned from a write to /sys/block/sda" in found["sda"].detail
            assert lab.claims == ["runtime:io-scheduler@*=bfq"]
            assert lab.engine.observed.troubles == {Reason.DEVICE_HANGS}
            assert files.inside == [queue("sda")]
        await lab.until(lambda: of(lab).state is State.SATISFIED)
        assert set(schedulers(lab).values()) == {"bfq"}
        assert lab.engine.observed.counters["drift_repairs"] == 0
        await lab.unset(("io-scheduler", "*"))
        assert schedulers(lab) == {"nvme0n1": "none", "nvme1n1": "none", "sda": "mq-deadline"}
        assert lab.store.baselines == {}


async def test_who_names_only_the_one_that_hangs_gets_an_error_and_its_own_value_comes_back() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda")):
            for _ in range(2):
                with pytest.raises(KernelRejected, match="sda hangs: the kernel has not returned"):
                    await lab.set(("io-scheduler", "sda", "bfq"))
            assert lab.claims == []
            assert of(lab).is_owed
            assert list(lab.store.baselines.values()) == ["mq-deadline"]
        await lab.until(lambda: not lab.store.baselines)
        assert schedulers(lab)["sda"] == "mq-deadline"
        assert lab.engine.observed.outcomes == {}


async def test_while_one_hangs_everything_else_is_served_and_nothing_touches_it() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda"), reads=True) as files:
            # The first read is the pass's own, so that it hangs before anything is written.
            assert hangs(next(o for o in (await lab.set(BFQ)).outcomes if o.target.instance == "sda"))
            inside = list(files.inside)
            assert (await lab.one("io-scheduler", "nvme0n1", "kyber")).state is State.SATISFIED
            assert (await lab.one("read-ahead", "nvme1n1", "256")).state is State.SATISFIED
            assert (await lab.one("hugepages", "2M", 8)).state is State.SATISFIED
            assert sum(pages(lab.kernel)) == 8
            assert [o.target.instance for o in await lab.engine.verify() if hangs(o)] == ["sda"]
            await lab.engine.observed.fresh(Lane, 0, None)
            described = {t: o for t, o in lab.engine.observed.outcomes_now().items() if t.instance == "sda"}
            assert [hangs(o) for o in described.values()] == [True]
            lab.kernel.plug("sdz", offered=("none", "bfq"))
            await lab.engine.reconcile("device")
            assert (of(lab, "sdz").state, lab.kernel.disks["sdz"].scheduler) == (State.SATISFIED, "bfq")
            generation = lab.engine.observed.generation
            await lab.engine.reconcile("drift")
            assert lab.engine.observed.generation == generation, "that it still hangs is no change"
            assert files.inside == inside, "no other thread went into it"
        await lab.until(lambda: of(lab).state is State.SATISFIED)
        assert schedulers(lab)["sda"] == "bfq"


async def test_all_that_is_asked_of_the_host_is_dropped_though_one_hangs() -> None:
    async with lab_on(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "bfq"))
        lab.kernel.disks["sda"].scheduler = "none"
        with stuck(lab.kernel, queue("sda")):
            await lab.engine.reconcile("drift")
            assert hangs(of(lab))
            reset = lab.engine.files_edit(FilesEdit((), Claims().choice), reset=True)
            await lab.engine.carry_out(reset, "Reset")
            assert lab.claims == []
            assert schedulers(lab) == {"nvme0n1": "none", "nvme1n1": "none", "sda": "none"}
            assert of(lab).is_owed
        await lab.until(lambda: not lab.store.baselines)
        # The write that had hung ended with the claim's value, and that is nobody else's work.
        assert schedulers(lab)["sda"] == "mq-deadline"


async def test_a_boot_pass_goes_on_without_a_drive_that_cannot_be_read() -> None:
    kernel = large_host()
    with stuck(kernel, queue("nvme0n1"), queue("sda"), reads=True):
        async with lab_on(kernel, [claim(Origin.PERSISTENT, *BFQ)]) as lab:
            await lab.engine.reconcile("boot", enforce=True)
            assert hangs(of(lab))
            assert hangs(of(lab, "nvme0n1"))
            assert of(lab).actual == "", "it was never read"
            assert schedulers(lab)["nvme1n1"] == "bfq"
            with pytest.raises(KernelRejected, match="a read of /sys/block/sda"):
                await lab.set(("io-scheduler", "sda", "bfq"))


async def test_more_of_them_than_there_are_threads_leave_room_for_the_rest() -> None:
    kernel = large_host()
    names = [f"sd{first}{second}" for first in "bcde" for second in "abcdefghij"]
    for name in names:
        kernel.plug(name, scheduler="none", offered=("none", "bfq"))
    assert len(names) > WRITERS
    async with lab_on(kernel) as lab:
        with stuck(kernel, *(queue(name) for name in names)) as files:
            found = (await lab.set(BFQ)).outcomes
            assert {o.target.instance for o in found if hangs(o)} == set(names)
            assert [o.target.instance for o in found if o.state is State.SATISFIED] == ["nvme0n1", "nvme1n1", "sda"]
            assert (await lab.one("io-scheduler", "sda", "none")).state is State.SATISFIED
            assert sorted(files.inside) == sorted(map(queue, names))
        await lab.until(lambda: all(of(lab, name).state is State.SATISFIED for name in names))
        assert {kernel.disks[name].scheduler for name in names} == {"bfq"}


async def test_a_policy_whose_every_file_waits_for_a_write_hangs_alone() -> None:
    """The kernel holds a lock of the policy while it writes one of its files (store in drivers/cpufreq/cpufreq.c)."""
    kernel = large_host()
    kernel.policies = {f"policy{number}": Policy((number,)) for number in range(3)}
    folder = "sys/devices/system/cpu/cpufreq/policy1"
    async with lab_on(kernel) as lab:
        files = ("scaling_governor", "related_cpus", "scaling_available_governors", "scaling_driver")
        with stuck(kernel, f"{folder}/{files[0]}") as writing:
            await lab.set(("cpu-governor", "*", "performance"))
            with stuck(kernel, *(f"{folder}/{name}" for name in files), reads=True, writes=False) as reading:
                assert hangs(of(lab, "policy1"))
                await lab.engine.reconcile("drift")
                await lab.engine.reconcile("drift")
                assert hangs(of(lab, "policy1"))
                assert (await lab.one("cpu-governor", "2", "powersave")).state is State.SATISFIED
            assert reading.inside == [], "no file beside one that hangs is tried"
            assert writing.inside == [f"{folder}/scaling_governor"]
        await lab.until(lambda: of(lab, "policy1").state is State.SATISFIED)
        assert [policy.governor for policy in kernel.policies.values()] == ["performance", "performance", "powersave"]


async def test_a_stop_names_it_and_does_not_wait() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda")):
            await lab.set(BFQ)
            assert await lab.engine.end_writes(BOUND) == [queue("sda")]
            assert not await lab.engine.put_back(BOUND)
            assert schedulers(lab) == {"nvme0n1": "none", "nvme1n1": "none", "sda": "mq-deadline"}
            assert lab.store.baselines == {Target("io-scheduler", "sda", key_of(lab, "sda")): "mq-deadline"}
            with pytest.raises(Failed, match="is stopping"):
                await lab.set(BFQ)


def key_of(lab: Lab, name: str) -> str:
    return next(target.key for target in lab.engine.observed.readings if target.instance == name)


@pytest.mark.parametrize("reads", [True, False])
async def test_the_others_do_not_wait_for_longer_than_the_bound(*, reads: bool) -> None:
    kernel = large_host()
    async with lab_on(kernel) as lab:
        with stuck(kernel, queue("sda"), queue("nvme0n1"), reads=reads):
            began = time.monotonic()
            found = {o.target.instance: o for o in (await lab.set(BFQ)).outcomes}
            assert time.monotonic() - began < SOON
            assert [name for name, outcome in found.items() if hangs(outcome)] == ["nvme0n1", "sda"]
            assert found["nvme1n1"].state is State.SATISFIED
            assert ("a read of" if reads else "a write to") in found["sda"].detail
        await lab.until(
            lambda: {outcome.state for outcome in lab.engine.observed.outcomes.values()} == {State.SATISFIED}
        )
        assert set(schedulers(lab).values()) == {"bfq"}


@pytest.mark.parametrize("reads", [True, False])
async def test_where_every_drive_hangs_its_callers_get_an_error_soon_and_other_lanes_go_on(*, reads: bool) -> None:
    kernel = large_host()
    for number in range(WRITERS + LOOKING + 3):
        kernel.plug(f"sd{number}", offered=("none", "bfq"))
    kernel.policies = {"policy0": Policy((0,))}
    async with lab_on(kernel) as lab:
        with stuck(kernel, *map(queue, kernel.disks), reads=reads) as files:
            began = time.monotonic()
            with pytest.raises(KernelRejected, match="hangs: the kernel has not returned"):
                await lab.set(BFQ)
            assert (await lab.one("hugepages", "2M", 8)).state is State.SATISFIED
            assert (await lab.one("cpu-governor", "0", "performance")).state is State.SATISFIED
            assert time.monotonic() - began < SOON
            assert len(files.inside) == len(kernel.disks), "one thread is inside each"
            assert lab.claims == ["runtime:cpu-governor@0=performance", "runtime:hugepages@2M=8"]
        await lab.until(lambda: not any(t.tunable == "io-scheduler" for t in lab.store.baselines))
        assert set(schedulers(lab).values()) == {"none", "mq-deadline"}


async def test_however_long_it_hangs_no_thread_more_is_spent_on_it() -> None:
    async with lab_on(large_host(), [claim(Origin.PERSISTENT, *BFQ)]) as lab:
        with stuck(lab.kernel, queue("sda"), reads=True) as files:

            async def work(rounds: int) -> int:
                for _ in range(rounds):
                    await lab.engine.reconcile("drift")
                    await lab.engine.observed.fresh([Lane.BLOCK], 0)
                    await lab.engine.verify()
                    await lab.engine.plan(request(BFQ))
                return threading.active_count()

            before = await work(5)
            assert await work(50) < before + 10
            assert files.inside == [queue("sda")]
            hung = lab.engine.lanes[Lane.BLOCK].runner.hung
            assert (list(hung.now().why), hung.writes) == (["sda"], [])


async def test_a_drive_that_is_removed_while_it_hangs_is_gone_and_the_next_of_its_name_is_set() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda")):
            await lab.set(BFQ)
            lab.kernel.unplug("sda")
            lab.reports.clear()
            await lab.engine.reconcile("device")
            gone = [o for report in lab.reports for o in report.outcomes if o.target.instance == "sda"]
            assert [(o.state, o.reason) for o in gone] == [(State.UNSUPPORTED, Reason.NO_SUCH_TARGET)]
            assert lab.engine.observed.troubles == set()
            assert {target.instance for target in lab.store.baselines} == {"nvme0n1", "nvme1n1"}
        lab.kernel.plug("sda", scheduler="none", offered=("none", "bfq"))
        await lab.engine.reconcile("device")
        await lab.until(lambda: of(lab).state is State.SATISFIED)
        assert lab.kernel.disks["sda"].scheduler == "bfq"


async def test_what_the_host_had_is_saved_before_the_write_that_hangs() -> None:
    async with lab_on(large_host()) as lab:
        saved: list[str] = []
        with stuck(lab.kernel, queue("sda")) as files:
            hang = lab.kernel.before_write
            assert hang

            def writing(path: str, text: str) -> None:
                saved.append(lab.store.baselines[Target("io-scheduler", "sda", key_of(lab, "sda"))])
                hang(path, text)

            lab.kernel.before_write = writing
            with pytest.raises(KernelRejected):
                await lab.set(("io-scheduler", "sda", "bfq"))
            assert (saved, files.inside) == (["mq-deadline"], [queue("sda")])


async def test_plan_and_verify_say_of_it_what_a_set_says() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda")):
            done = {o.target.instance: o for o in (await lab.set(BFQ)).outcomes}
            kyber = request(("io-scheduler", "*", "kyber"))
            foreseen = {o.target.instance: o for o in (await lab.engine.plan(kyber)).outcomes}
            assert {name: o.state for name, o in foreseen.items() if name != "sda"} == {
                "nvme0n1": State.PLANNED,
                "nvme1n1": State.PLANNED,
            }
            (verified,) = await lab.engine.verify()
            assert hangs(foreseen["sda"])
            assert hangs(verified)
            assert foreseen["sda"].detail == verified.detail == done["sda"].detail


async def test_a_look_that_finds_it_has_a_pass_publish_it() -> None:
    async with lab_on(large_host()) as lab:
        await lab.set(BFQ)
        with stuck(lab.kernel, queue("sda"), reads=True):
            await lab.engine.observed.fresh([Lane.BLOCK], 0)
            assert hangs(next(o for t, o in lab.engine.observed.outcomes_now().items() if t.instance == "sda"))
            await lab.until(lambda: lab.engine.observed.troubles == {Reason.DEVICE_HANGS})
        await lab.until(lambda: lab.engine.observed.troubles == set())
        assert lab.engine.observed.counters["drift_repairs"] == 0


async def test_callers_who_poll_get_what_is_known() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda"), reads=True):
            for _ in range(3):
                began = time.monotonic()
                await lab.engine.observed.fresh(Lane, 0)
                assert time.monotonic() - began < SOON
            values = {t.instance: r for t, r in lab.engine.observed.readings.items() if t.tunable == "io-scheduler"}
            assert [reading.value for reading in values.values()] == ["none", "none", "mq-deadline"]
            assert values["sda"].reason is Reason.DEVICE_HANGS


async def test_the_first_look_waits_for_no_policy_that_cannot_say_which_cpus_it_moves() -> None:
    kernel = large_host()
    kernel.policies = {f"policy{number}": Policy((number,)) for number in range(3)}
    names = ("related_cpus", "scaling_governor", "scaling_driver", "scaling_available_governors")
    files = [f"sys/devices/system/cpu/cpufreq/policy0/{name}" for name in names]
    with stuck(kernel, *files, reads=True) as held:
        async with lab_on(kernel, [claim(Origin.PERSISTENT, "cpu-governor", "*", "performance")]) as lab:
            await lab.engine.reconcile("boot", enforce=True)
            assert hangs(of(lab, "policy0"))
            assert [policy.governor for policy in kernel.policies.values()] == ["schedutil", *["performance"] * 2]
            assert len(held.inside) == 1
            held.go_on.set()
            await lab.until(lambda: kernel.policies["policy0"].governor == "performance")


async def test_one_that_answers_before_the_boot_pass_waits_for_that() -> None:
    kernel = large_host()
    with stuck(kernel, queue("sda"), reads=True) as files, ended() as returned:
        async with lab_on(kernel, [claim(Origin.PERSISTENT, *BFQ)]) as lab:
            files.go_on.set()
            await returned.wait()
            assert all(each.idle for each in lab.engine.lanes.values())
            await lab.engine.reconcile("boot", enforce=True)
            assert set(schedulers(lab).values()) == {"bfq"}


async def test_one_that_answers_while_the_boot_pass_runs_is_set_after_it() -> None:
    kernel = large_host()
    with stuck(kernel, queue("sda"), reads=True, writes=False) as reading, ended() as returned:
        async with lab_on(kernel, [claim(Origin.PERSISTENT, *BFQ)]) as lab:
            lab.engine.lanes[Lane.BLOCK].runner.hung.bounds = Bounds(write=BOUND)
            kernel.before_write = (writing := Stuck({queue("nvme0n1")})).hang_in_write
            boot = asyncio.ensure_future(lab.engine.reconcile("boot", enforce=True))
            await asyncio.to_thread(writing.began.wait, BOUND)
            reading.go_on.set()
            await returned.wait()
            writing.go_on.set()
            await boot
            await lab.until(lambda: of(lab).state is State.SATISFIED)
            assert set(schedulers(lab).values()) == {"bfq"}


async def test_a_stop_does_not_wait_for_the_bound() -> None:
    async with lab_on(large_host()) as lab:
        lab.engine.lanes[Lane.BLOCK].runner.hung.bounds = Bounds(read=BOUND, write=BOUND)
        with stuck(lab.kernel, queue("sda")) as files:
            call = asyncio.ensure_future(lab.set(BFQ))
            await asyncio.to_thread(files.began.wait, BOUND)
            began = time.monotonic()
            assert await lab.engine.end_writes(0.2, grace=0) == [queue("sda")]
            assert time.monotonic() - began < SOON
            assert lab.store.claims.by_id == {}
            assert "mq-deadline" in lab.store.baselines.values()
        await call


async def test_a_caller_who_leaves_while_it_hangs_leaves_nothing_behind() -> None:
    async with lab_on(large_host()) as lab:
        with stuck(lab.kernel, queue("sda")) as files:
            call = asyncio.ensure_future(lab.engine.change(request(BFQ), "Set", endable=True))
            await asyncio.to_thread(files.began.wait, BOUND)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            began = time.monotonic()
            assert (await lab.one("io-scheduler", "nvme1n1", "kyber")).state is State.SATISFIED
            assert time.monotonic() - began < SOON
            assert lab.claims == ["runtime:io-scheduler@nvme1n1=kyber"]
            assert of(lab).is_owed
        await lab.until(lambda: len(lab.store.baselines) == 1)
        assert schedulers(lab) == {"nvme0n1": "none", "nvme1n1": "kyber", "sda": "mq-deadline"}


async def test_where_no_thread_can_be_made_the_look_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab_on(large_host()) as lab:
        with failing(monkeypatch, Crew, "submit", RuntimeError("can't start new thread")):
            lab.kernel.disks["sda"].scheduler = "none"
            await lab.engine.observed.fresh([Lane.BLOCK], 0)
        assert {r.value for t, r in lab.engine.observed.readings.items() if t.tunable == "io-scheduler"} == {"none"}


def test_a_device_that_hangs_at_each_try_is_tried_after_longer_and_longer_waits() -> None:
    now, waits = [0.0], list[float]()
    hung = Hung(waits.append, clock=lambda: now[0])

    def hangs(device: str, seconds: float) -> None:
        hung.mark(device, queue(device), write=True)
        now[0] += seconds
        hung.end(device, queue(device), write=True)

    for _ in range(5):
        hangs("sda", 6.0)
        now[0] += waits[-1]
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0]
    hangs("sdb", 6.0)
    assert waits[-1] == 0.0
    now[0] += 3600.0
    hangs("sda", 6.0)
    assert waits[-1] == 0.0, "it did well for an hour"
    assert len(hung.returned) == 1


async def test_a_slow_refusal_is_not_asked_for_again_and_again() -> None:
    kernel, tries = large_host(), 0

    def refuses(path: str, _text: str) -> None:
        nonlocal tries
        if path == queue("sda"):
            tries += 1
            time.sleep(2 * SHORT.write)  # it takes its time to refuse
            raise KernelError(errno.EIO, "I/O error", path)

    kernel.before_write = refuses
    waits, twice, loop = list[float](), asyncio.Event(), asyncio.get_running_loop()
    async with running(kernel, bounds=SHORT) as lab, asyncio.timeout(BOUND):
        hung = lab.engine.lanes[Lane.BLOCK].runner.hung
        again = hung.ended

        def noted(wait: float) -> None:
            waits.append(wait)
            if len(waits) == 2:
                loop.call_soon_threadsafe(twice.set)
            again(wait)

        hung.ended = noted
        await lab.set(BFQ)
        await twice.wait()
        assert (waits, tries) == ([0.0, 1.0], 2)


def test_a_read_that_is_cancelled_with_its_threads_is_waited_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, began, queued = threading.Event(), threading.Event(), threading.Event()
    crew, kernel = Crew(1, "test"), large_host()
    submit = crew.submit

    def noted(*given: Any) -> Future[Any]:
        job = submit(*given)
        queued.set()
        return job

    monkeypatch.setattr(crew, "submit", noted)

    def blocks() -> None:
        began.set()
        gate.wait(BOUND)

    crew.submit(blocks)
    assert began.wait(BOUND)
    queued.clear()
    reader = Reader(kernel, crew, Hung(bounds=SHORT))
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.all, IO_SCHEDULER)
        assert queued.wait(BOUND)
        crew.close()
        try:
            with pytest.raises(CancelledError):
                reading.result(BOUND)
        finally:
            gate.set()
