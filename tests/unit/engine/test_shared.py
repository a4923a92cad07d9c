"""Many who only look cost the host as much as one, and each is told what is so after he has asked."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from kerntune.engine.dry_runs import Shared, Snapshot
from kerntune.engine.results import Answer
from kerntune.kernel.files import KernelError
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import State
from tests.unit.lab import BOUND, POOL, Lab, large_host, queue, request, running

MANY = 64
SDA = queue("sda")


class Reads:
    """Counts how often files are read, and can make a look wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = Counter[str]()
        self.reached, self.free = threading.Event(), threading.Event()
        self._held, read = False, SimulatedKernel.read

        def counted(kernel: SimulatedKernel, path: str) -> str:
            self.times[path] += 1
            text = read(kernel, path)
            if self._held and path == SDA:
                self._held = False
                self.reached.set()
                assert self.free.wait(BOUND)
            return text

        monkeypatch.setattr(SimulatedKernel, "read", counted)

    def hold(self) -> None:
        """Have the next look wait when it has read sda's scheduler."""
        self._held = True

    async def held(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, BOUND)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


def plan(lab: Lab, value: str, instances: str = "sda") -> asyncio.Task[Answer]:
    return asyncio.create_task(lab.engine.plan(request(("io-scheduler", instances, value))))


async def all_asked(lab: Lab) -> None:
    """Return when the plans that were begun have come as far as they can without a thread."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_plans_that_wait_share_a_look(reads: Reads) -> None:
    async with running(large_host()) as lab:
        reads.times.clear()
        await plan(lab, "none")
        of_one, gate = reads.times.copy(), threading.Event()
        assert of_one[SDA]
        waiting = lab.engine.threads.open(gate.wait, BOUND)
        reads.times.clear()
        plans = [plan(lab, value, at) for at in ("sda", "nvme*") for value in ["none", "bfq"] * (MANY // 4)]
        await all_asked(lab)
        gate.set()
        await waiting
        answers = await asyncio.gather(*plans)
        assert reads.times == of_one
        assert [len(answer.outcomes) for answer in answers] == [1] * (MANY // 2) + [2] * (MANY // 2)
        assert {outcome.requested for answer in answers for outcome in answer.outcomes} == {"none", "bfq"}


async def test_a_plan_does_not_see_what_was_read_before_it_was_asked_for(reads: Reads) -> None:
    async with running(large_host()) as lab:
        reads.hold()
        first = plan(lab, "none")
        await reads.held()
        lab.kernel.disks["sda"].scheduler = "bfq"
        second = plan(lab, "none")
        await all_asked(lab)
        reads.free.set()
        before = [(await each).outcomes[0].before for each in (first, second)]
        assert before == ["mq-deadline", "bfq"]


async def test_a_plan_sees_what_a_pass_has_written_meanwhile(reads: Reads) -> None:
    """Both had been asked for before the look; the pass has ended when the second one's turn comes."""
    async with running(large_host()) as lab:
        gate = threading.Event()
        waiting = lab.engine.threads.open(gate.wait, BOUND)
        plans = [plan(lab, "bfq"), plan(lab, "bfq")]
        await all_asked(lab)
        reads.hold()
        gate.set()
        await waiting
        await reads.held()
        await lab.set(("io-scheduler", "sda", "bfq"))
        reads.free.set()
        found = [(await each).outcomes[0] for each in plans]
        assert [(outcome.before, outcome.state) for outcome in found] == [
            ("mq-deadline", State.PLANNED),
            ("bfq", State.SATISFIED),
        ]


async def test_a_look_at_memory_is_nobody_elses(reads: Reads) -> None:
    """Its counters are read until they stand still."""
    async with running(large_host()) as lab:
        reads.times.clear()
        await lab.engine.plan(request(("hugepages", "2M", 10)))
        of_one = reads.times[POOL]
        await asyncio.gather(*(lab.engine.plan(request(("hugepages", "2M", 10))) for _ in range(4)))
        assert reads.times[POOL] == 5 * of_one


async def test_what_was_read_is_let_go_of(reads: Reads) -> None:
    async with running(large_host()) as lab:
        await asyncio.gather(*(plan(lab, "none") for _ in range(4)))
        assert lab.engine._dry_runs._snapshot is None


async def test_those_who_verify_at_the_same_time_share_a_look(reads: Reads) -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "none"))
        reads.times.clear()
        await lab.engine.verify()
        of_one = reads.times[SDA]
        reads.times.clear()
        lab.kernel.disks["sda"].scheduler = "bfq"
        found = await asyncio.gather(*(lab.engine.verify() for _ in range(MANY)))
        assert reads.times[SDA] == of_one
        assert {tuple(outcome.target.instance for outcome in each) for each in found} == {("sda",)}


async def test_who_verifies_does_not_share_a_look_that_has_begun(reads: Reads) -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "none"))
        reads.hold()
        first = asyncio.create_task(lab.engine.verify())
        await reads.held()
        lab.kernel.disks["sda"].scheduler = "bfq"
        others = [asyncio.create_task(lab.engine.verify()) for _ in range(MANY)]
        await all_asked(lab)
        others[0].cancel()  # who leaves takes nobody along
        reads.free.set()
        assert await first == ()
        assert {(await each)[0].actual for each in others[1:]} == {"bfq"}


async def test_an_error_is_that_of_all_who_share_it_and_of_nobody_after() -> None:
    tries = 0

    async def work() -> int:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0)
        if tries == 1:
            raise KernelError(errno.EIO, "broken", "sys/x")
        return tries

    shared = Shared(work)
    found = await asyncio.gather(shared(), shared(), return_exceptions=True)
    assert [type(each) for each in found] == [KernelError, KernelError]
    assert [*await asyncio.gather(shared(), shared())] == [2, 2]


async def test_one_runs_and_one_is_next_however_many_ask_one_after_the_other() -> None:
    running_now = runs = 0
    free = asyncio.Event()

    async def work() -> int:
        nonlocal running_now, runs
        runs, running_now = runs + 1, running_now + 1
        assert running_now == 1
        await free.wait()
        running_now -= 1
        return runs

    shared = Shared(work)
    asking = []
    for _ in range(MANY):
        asking.append(asyncio.create_task(shared()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    free.set()
    assert [await each for each in asking] == [1] + [2] * (MANY - 1)


def test_a_snapshot_says_what_the_kernel_said_once_and_writes_nothing() -> None:
    kernel = large_host()
    snapshot = Snapshot(kernel, 1, None)
    asked: list[Callable[[], object]] = [
        lambda: snapshot.read(SDA),
        lambda: tuple(snapshot.glob("sys/block/*/queue/scheduler")),
        lambda: tuple(snapshot.links("sda")),
        lambda: snapshot.identity("sys/block/sda/queue"),
    ]
    before = [ask() for ask in asked]
    with pytest.raises(KernelError, match="No such file"):
        snapshot.read(queue("sdb"))
    kernel.plug("sdb", by_id="ata-Other")
    kernel.disks["sda"].scheduler = "bfq"
    del kernel.disks["sda"]
    assert [ask() for ask in asked] == before
    assert before[0] == kernel_text("mq-deadline")
    with pytest.raises(KernelError, match="No such file"):
        snapshot.read(queue("sdb"))
    for writes in (lambda: snapshot.write(SDA, "none"), lambda: snapshot.open(SDA, writable=True)):
        with pytest.raises(KernelError) as caught:
            writes()
        assert caught.value.errno == errno.EROFS
    assert not kernel.journal


def kernel_text(chosen: str) -> str:
    return " ".join(f"[{each}]" if each == chosen else each for each in ("none", "mq-deadline", "bfq"))
