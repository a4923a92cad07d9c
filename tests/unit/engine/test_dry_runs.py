"""Plans write nothing and say what a Set would do; many who only look cost the host as much as one."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from kerntune.engine.dry_runs import Shared, Snapshot
from kerntune.engine.requests import Request
from kerntune.engine.results import Answer
from kerntune.errors import Exit, KernelRejected, KerntuneError, NoSuchTarget, OverLimit
from kerntune.kernel.files import KernelError
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Origin, Reason, State
from kerntune.results import exit_code
from tests.unit.lab import (
    BOUND,
    POOL,
    Lab,
    claim,
    have_pages,
    host_values,
    large_host,
    queue,
    request,
    running,
    small_host,
)

# Dry runs


def everything(lab_kernel: SimulatedKernel) -> object:
    return host_values(lab_kernel), list(lab_kernel.journal)


@pytest.mark.parametrize(
    ("setting", "state", "changed"),
    [
        (("hugepages", "2M", 10), State.PLANNED, True),
        (("hugepages", "2M", 7), State.SATISFIED, True),
        (("hugepages", "2M", 99999), State.REFUSED, False),
        (("overcommit", "", "never:1"), State.REFUSED, False),
        (("overcommit", "", "always"), State.PLANNED, True),
        (("io-scheduler", "sda", "bfq"), State.PLANNED, True),
        (("io-scheduler", "nvme0n1", "mq-deadline"), State.SATISFIED, False),
        (("io-scheduler", "vd*", "bfq"), State.UNSUPPORTED, True),
    ],
)
async def test_a_plan_is_what_a_set_would_do(setting: tuple[str, str, str | int], state: State, changed: bool) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    async with running(kernel) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "mq-deadline"))
        before, claims = everything(kernel), lab.claims
        answer = await lab.engine.plan(request(setting))
        assert ([o.state for o in answer.outcomes], answer.changed) == ([state], changed)
        assert (everything(kernel), lab.claims) == (before, claims)


COMES_BACK = "the host's own value comes back"
POOL_OF_TEN = ("hugepages", "2M", 10)
FAST = {"policy0": Policy((0, 1), "performance", ("performance", "powersave"), epp="performance")}


@pytest.mark.parametrize(
    ("settings", "error", "codes"),
    [
        # The claim on a preference waits for another governor: what goes with it is set.
        ([("cpu-epp", "*", "power"), ("io-scheduler", "sda", "bfq")], None, (Exit.PARTLY, Exit.PARTLY)),
        ([("cpu-epp", "*", "power")], None, (Exit.NOT_FOUND, Exit.NOT_FOUND)),
        ([("io-scheduler", "vd*", "bfq"), ("io-scheduler", "sda", "bfq")], None, (Exit.PARTLY, Exit.PARTLY)),
        ([("sysctl", "kernel.numa_balancing", 0), ("sysctl", "vm.swappiness", 1)], KernelRejected, ()),
        ([("hugepages", "2M", 99999), ("io-scheduler", "sda", "bfq")], OverLimit, ()),
        ([("io-scheduler", "sda", "bfq"), ("read-ahead", "sda", 512)], None, (Exit.OK, Exit.OK)),
    ],
)
async def test_a_plan_ends_as_the_set_does(
    settings: list[tuple[str, str, str | int]], error: type[KerntuneError] | None, codes: tuple[Exit, ...]
) -> None:
    kernel = large_host()
    kernel.policies = dict(FAST)
    async with running(kernel) as lab:
        asked = request(*settings)
        planned = await lab.engine.plan(asked)
        if error:
            assert not planned.changed
            for ending in (lab.engine.plan(asked, strict=True), lab.engine.change(asked, "Set")):
                with pytest.raises(error):
                    await ending
            assert lab.claims == []
            return
        strict = await lab.engine.plan(asked, strict=True)
        done = await lab.engine.change(asked, "Set")
        assert (exit_code(strict.outcomes), exit_code(done.outcomes)) == codes
        assert (strict, strict.changed) == (planned, done.changed)


async def test_a_plan_to_unset() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        answer = await lab.engine.plan(request(("io-scheduler", "sda", ""), unset=True))
        assert ([(o.state, o.actual) for o in answer.outcomes], answer.changed) == ([(State.PLANNED, "bfq")], True)
        assert not (await lab.engine.plan(request(("io-scheduler", "vd*", ""), unset=True))).changed
        assert lab.writes() == []
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


@pytest.mark.parametrize("nodes", [1, 2])
async def test_a_total_of_several_pools_changes_with_its_nodes(nodes: int) -> None:
    async with running(small_host() if nodes == 1 else large_host(nodes)) as lab:
        await lab.set(("hugepages", "2M", 64), ("overcommit", "", "heuristic"))
        lab.writes()
        named = request(("hugepages", "*", ""), ("overcommit", "", ""))
        planned = await lab.engine.plan(Request(named.settings, unset=True))
        assert [(one.target.tunable, one.actual, one.state) for one in planned.outcomes] == [
            ("hugepages", "64", State.PLANNED),
            ("overcommit", "heuristic", State.UNMANAGED),
        ]
        assert lab.writes() == []
        done = await lab.unset(("hugepages", "*"), ("overcommit", ""))
        assert [(one.before, one.actual, one.state) for one in done.outcomes] == [
            ("64", "0", State.UNMANAGED),
            ("heuristic", "heuristic", State.UNMANAGED),
        ]


async def test_a_total_comes_to_what_is_still_claimed_on_its_nodes() -> None:
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M", 100))
        await lab.set(("hugepages", "2M/node1", 10))
        gone = request(("hugepages", "2M", ""), unset=True)
        (planned,) = (await lab.engine.plan(gone)).outcomes
        others = "it changes with others of hugepages@2M"
        assert (planned.actual, planned.state, planned.requested, planned.detail) == (
            "100", State.PLANNED, "10", others,
        )  # fmt: skip
        (done,) = (await lab.engine.change(gone, "Unset")).outcomes
        assert (done.actual, done.state) == ("10", State.UNMANAGED)


# What one change does to another


async def test_a_governor_that_the_same_call_changes_is_taken_into_account() -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0, 1), "powersave", epp="power")}
    async with running(kernel) as lab:
        both = request(("cpu-governor", "*", "performance"), ("cpu-epp", "*", "balance_power"))
        for answer in (await lab.engine.plan(both), await lab.engine.change(both, "Set")):
            (outcome,) = (one for one in answer.outcomes if one.target.tunable == "cpu-epp")
            assert (outcome.state, outcome.reason) == (State.UNSUPPORTED, Reason.GOVERNOR_DECIDES)
        back = request(("cpu-governor", "*", "powersave"), ("cpu-epp", "*", "performance"))
        assert {one.state for one in (await lab.engine.plan(back)).outcomes} == {State.PLANNED, State.SATISFIED}
        other = request(("cpu-governor", "*", "powersave"), ("cpu-epp", "*", "balance_power"))
        assert {one.state for one in (await lab.engine.plan(other)).outcomes} == {State.PLANNED}
        assert {one.state for one in (await lab.engine.change(other, "Set")).outcomes} == {State.SATISFIED}


async def test_a_claim_that_asks_the_same_as_a_stronger_one_waits_with_it() -> None:
    kernel = large_host()
    kernel.policies = dict(FAST)
    async with running(kernel) as lab:
        await lab.set(("cpu-epp", "*", "power"))
        same = claim(Origin.CONFIG, "cpu-epp", "policy0", "power")
        lab.engine.configure([same], lab.engine.limits)
        await lab.engine.reconcile("reload")
        (outcome,) = lab.engine.looking_up([same])()
        assert (outcome.state, outcome.reason) == (State.UNSUPPORTED, Reason.GOVERNOR_DECIDES)
        assert outcome.detail.startswith("the claim in force is runtime:cpu-epp@* = power, by alice; the governor")


async def test_a_preference_that_comes_back_with_its_governor() -> None:
    """One has a value to get back, which the governor of now forbids; the other has none, and moves all the same."""
    kernel = large_host()
    kernel.policies = {f"policy{n}": Policy((n,), "powersave", epp="power") for n in (0, 1)}
    async with running(kernel) as lab:
        await lab.set(("cpu-epp", "policy0", "balance_power"))
        await lab.set(("cpu-governor", "*", "performance"), ("cpu-epp", "*", "performance"))
        lab.writes()
        gone = request(("cpu-governor", "*", ""), ("cpu-epp", "*", ""), unset=True)
        planned = (await lab.engine.plan(gone)).outcomes
        assert [(str(one.target), one.requested, one.actual, one.state, one.detail) for one in planned] == [
            ("cpu-governor@policy0", "powersave", "performance", State.PLANNED, COMES_BACK),
            ("cpu-governor@policy1", "powersave", "performance", State.PLANNED, COMES_BACK),
            ("cpu-epp@policy0", "power", "performance", State.PLANNED, COMES_BACK),
            ("cpu-epp@policy1", "", "performance", State.UNMANAGED, "it changes with cpu-governor"),
        ]
        done = await lab.engine.change(gone, "Unset")
        assert [(one.actual, one.state) for one in done.outcomes] == [
            ("powersave", State.UNMANAGED),
            ("powersave", State.UNMANAGED),
            ("power", State.UNMANAGED),
            ("power", State.UNMANAGED),
        ]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ([("hugepages", "2M", 100)], [("hugepages@2M", "7", "100")]),
        ([("hugepages", "2M/node1", 100)], [("hugepages@2M/node1", "4", "100")]),
        (
            [("hugepages", "2M", 200), ("hugepages", "2M/node0", 80)],
            [("hugepages@2M", "7", "200"), ("hugepages@2M/node0", "3", "80")],
        ),
        ([("overcommit", "", "always:90")], [("overcommit", "heuristic", "always:90")]),
        ([("read-ahead", "sda", 512)], [("read-ahead@sda", "128", "512")]),
    ],
    ids=["total", "node", "both", "overcommit", "read-ahead"],
)
async def test_what_comes_back_has_the_value_that_is_read_then(
    settings: list[tuple[str, str, str | int]], rows: list[tuple[str, str, str]]
) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    async with running(kernel) as lab:
        await lab.set(*settings)
        gone = request(*((name, at, "") for name, at, _ in settings), unset=True)
        planned = (await lab.engine.plan(gone)).outcomes
        found = [(str(one.target), one.requested, one.actual) for one in planned if one.state is State.PLANNED]
        assert (found, {one.detail for one in planned if one.state is State.PLANNED}) == (rows, {COMES_BACK})
        done = {str(one.target): one.actual for one in (await lab.engine.change(gone, "Unset")).outcomes}
        assert [done[name] for name, *_ in rows] == [value for _, value, _ in rows]


async def test_pages_in_use_that_would_stay_are_foreseen() -> None:
    kernel = small_host()
    have_pages(kernel, 40, used=25)
    async with running(kernel) as lab:
        for answer in (await lab.engine.plan(request(POOL_OF_TEN)), await lab.set(POOL_OF_TEN)):
            (outcome,) = answer.outcomes
            assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.PAGES_IN_USE)
            assert outcome.detail.startswith("25 pages stay until they are given back")


async def test_what_the_winner_changes_for_an_overridden_claim_too_is_planned() -> None:
    async with running(large_host()) as lab:
        same = request(("io-scheduler", "sda", "bfq"), ("io-scheduler", "sd*", "bfq"))
        planned = (await lab.engine.plan(same)).outcomes
        assert [one.state for one in planned] == [State.PLANNED, State.PLANNED]
        assert [one.state for one in (await lab.engine.change(same, "Set")).outcomes] == [State.SATISFIED] * 2


# Sharing


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


async def test_many_who_plan_what_is_not_there_share_a_look(reads: Reads) -> None:
    async with running(large_host()) as lab:
        reads.times.clear()
        with pytest.raises(NoSuchTarget):
            await plan(lab, "none", "nvme9n9")
        of_one = reads.times[SDA]
        reads.times.clear()
        found = await asyncio.gather(*(plan(lab, "none", "nvme9n9") for _ in range(MANY)), return_exceptions=True)
        assert all(isinstance(error, NoSuchTarget) for error in found)
        assert of_one <= reads.times[SDA] <= 2 * of_one


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


async def test_what_was_read_is_let_go_of() -> None:
    async with running(large_host()) as lab:
        await asyncio.gather(*(plan(lab, "none") for _ in range(4)))
        gc.collect()
        assert not any(isinstance(each, Snapshot) for each in gc.get_objects())


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
