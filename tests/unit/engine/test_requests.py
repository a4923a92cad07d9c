"""What a caller may ask for: what is typed, what is refused before any write, what one call may cost and where."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kerntune.api import describe
from kerntune.api.calls import outcome_row
from kerntune.api.describe import Host, document, in_parts, prepare
from kerntune.engine import reconciler
from kerntune.engine.claims import Edit
from kerntune.engine.requests import Request, edit_for
from kerntune.engine.results import Result, described
from kerntune.errors import (
    InvalidValue,
    KerntuneError,
    LimitsExceeded,
    NoSuchName,
    NoSuchTarget,
    NotSupported,
    UnknownTunable,
)
from kerntune.guard.guard import MemoryGuard
from kerntune.kernel.simulated import Policy
from kerntune.model import Claim, Lane, Limits, Origin, Outcome, Reading, State, Target
from kerntune.patterns import Matcher
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import (
    BOUND,
    SETTINGS,
    Lab,
    held,
    large_host,
    queue,
    request,
    running,
)


@pytest.mark.parametrize(
    ("setting", "claim"),
    [
        (("hugepages", "", "3"), "runtime:hugepages@2M=3"),
        (("hugepages", "", "64M"), "runtime:hugepages@2M=32"),
        (("hugepages", "2048kB/node0", "64MiB"), "runtime:hugepages@2M/node0=32"),
        (("hugepages", "2M/node1,0", "64m"), "runtime:hugepages@2M/node0-1=32"),
        (("hugepages", "1024M", "1G"), "runtime:hugepages@1G=1"),
        (("hugepages-overcommit", "", "64M"), "runtime:hugepages-overcommit@2M=32"),
        (("read-ahead", "*", "4M"), "runtime:read-ahead@*=4096"),
        (("hugepages", "2M/0", "64m"), "runtime:hugepages@2M/node0=32"),
        (("hugepages", "node0", "64m"), "runtime:hugepages@2M/node0=32"),
        (("hugepages", "node0-1", "3"), "runtime:hugepages@2M/node0-1=3"),
        (("hugepages", "node*", "3"), "runtime:hugepages@2M/*=3"),
        (("io-scheduler", "/dev/nvme0n1", "none"), "runtime:io-scheduler@nvme0n1=none"),
        (("sysctl", "swappiness", "10"), "runtime:sysctl@vm.swappiness=10"),
        (("overcommit", "", "1"), "runtime:overcommit=always:95"),
        (("overcommit", "", "heuristic"), "runtime:overcommit=heuristic"),
        (("overcommit", "*", "heuristic"), "runtime:overcommit=heuristic"),
        (("cpu-governor", "cpu3", "performance"), "runtime:cpu-governor@3=performance"),
        (("cpu-governor", "policy?", "performance"), "runtime:cpu-governor@policy?=performance"),
        (("cpu-governor", "policy0,2", "performance"), "runtime:cpu-governor@policy0,2=performance"),
        (("sysctl", "vm/swappiness", "10"), "runtime:sysctl@vm.swappiness=10"),
    ],
)
async def test_what_is_typed_is_claimed_in_normal_form(setting: tuple[str, str, str], claim: str) -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0, 1)), "policy2": Policy((2, 3))}
    async with running(kernel) as lab:
        await lab.set(setting)
        assert lab.claims == [claim]
        await lab.unset((setting[0], "*"))
        assert lab.claims == []


@pytest.mark.parametrize(
    ("tunable", "typed", "value"),
    [
        ("hugepages", "node0", "3"),
        ("hugepages", "2M/0", "3"),
        ("hugepages", "", "3"),
        ("io-scheduler", "/dev/nvme0n1", "none"),
        ("sysctl", "/proc/sys/vm/swappiness", "10"),
        ("sysctl", "swappiness", "10"),
    ],
)
async def test_what_was_typed_withdraws_it(tunable: str, typed: str, value: str) -> None:
    async with running(large_host()) as lab:
        await lab.set((tunable, typed, value))
        assert (await lab.unset((tunable, typed))).changed
        assert lab.claims == []


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        (("hugepages", "", "3M"), InvalidValue, r"not a whole number of 2M pages.*1 \(2M\) and 2 \(4M\)"),
        (("hugepages", "*", "64M"), InvalidValue, "not a pool of huge pages"),
        (("hugepages", "2M", "lots"), InvalidValue, "not a number of huge pages.*64G"),
        (("read-ahead", "sda", "4X"), InvalidValue, "no read-ahead"),
        # A variable of a script that is not set is not every drive.
        (("io-scheduler", "", "none"), InvalidValue, "cannot name a block device"),
        (("cpu-governor", "", "performance"), InvalidValue, "names no CPUs"),
        (("thp", "*", "always"), InvalidValue, "two files"),
        (("sysctl", "", "10"), InvalidValue, "vm.swappiness"),
        (("cpu-governor", "policy0-9x", "performance"), InvalidValue, "names no CPUs"),
        (("cpu-governor", "0,7-4", "performance"), InvalidValue, "'7-4' runs backwards.*4-7"),
        (("cpu-governor", "policy4-7", "performance"), NoSuchTarget, "policy4-7"),
        (("io-scheduler", "sda*b/", "none"), InvalidValue, "cannot name a block device"),
    ],
)
async def test_what_cannot_be_meant(setting: tuple[str, str, str], error: type[KerntuneError], said: str) -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0, 1)), "policy2": Policy((2, 3))}
    async with running(kernel) as lab:
        with pytest.raises(error, match=said):
            await lab.set(setting)
        assert (lab.claims, lab.writes()) == ([], [])


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Return the requests that are validated from now on, each as often as it is."""
    found: list[Request] = []

    def noted(request: Request, *known: Any) -> Edit:
        found.append(request)
        return edit_for(request, *known)

    monkeypatch.setattr(reconciler, "edit_for", noted)
    return found


@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS[:1]], ids=["rehearsed", "not rehearsed"])
async def test_a_request_is_validated_before_it_is_authorised_and_after(
    checks: list[Request], settings: list[tuple[str, str, str]]
) -> None:
    async with running(large_host()) as lab:
        asked = request(*settings)
        edit = await lab.engine.check(asked)
        await lab.engine.change(asked, "Set")
        assert checks == [asked] * 2
        assert {claim.seq for claim in edit.put} == {edit.seq} == {0}, "no number before it is queued"


async def test_what_is_queued_while_a_request_is_rehearsed_counts_for_its_limits() -> None:
    async with running(large_host(), limits=Limits(claims=3)) as lab:
        found = await asyncio.gather(
            lab.set(*SETTINGS[:2]), lab.set(("io-scheduler", "sda", "none"), SETTINGS[2]), return_exceptions=True
        )
        assert [type(each) for each in found if isinstance(each, Exception)] == [LimitsExceeded]
        assert len(lab.claims) == 2


async def test_what_is_queued_while_a_persistent_request_is_rehearsed_is_replaced() -> None:
    async with running(large_host()) as lab:
        settings = [("io-scheduler", "nvme*", "none"), ("io-scheduler", "sda", "none")]
        await asyncio.gather(lab.set(*settings, persist=True), lab.set(("io-scheduler", "nvme0n1", "bfq")))
        assert lab.claims == [f"persistent:{tunable}@{at}={value}" for tunable, at, value in settings]
        assert lab.kernel.disks["nvme0n1"].scheduler == "none"


def meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[None]]) -> None:
    """Have something happen once, when the next dry run of a call has ended."""
    read, events = lab.engine.threads.read, [happens]

    async def then(work: Callable[..., Any], *given: Any) -> Any:
        found = await read(work, *given)
        if events:
            await events.pop()()
        return found

    monkeypatch.setattr(lab.engine.threads, "read", then)


async def test_limits_that_change_while_a_request_is_rehearsed_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        await lab.set(("thp", "enabled", "never"))
        lab.writes()
        meanwhile(lab, monkeypatch, lambda: lab.engine.reload((), Limits(claims=2)))
        with pytest.raises(LimitsExceeded, match="there are 2 runtime claims already"):
            await lab.set(("sysctl", "vm.swappiness", 9), ("io-scheduler", "nvme1n1", "bfq"))
        assert lab.writes() == []


async def test_a_drive_that_goes_while_a_request_is_rehearsed_has_nothing_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(large_host()) as lab:

        async def unplugged() -> None:
            lab.kernel.unplug("nvme1n1")
            await lab.engine.reconcile("remove")

        meanwhile(lab, monkeypatch, unplugged)
        with pytest.raises(NoSuchTarget, match="nvme1n1"):
            await lab.set(("io-scheduler", "nvme0n1", "kyber"), ("io-scheduler", "nvme1n1", "kyber"))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_an_edit_that_is_withdrawn_while_a_request_is_rehearsed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host(), limits=Limits(claims=3)) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "bfq"))
        await lab.set(("io-scheduler", "sda", "bfq"))
        gate = held(lab.kernel, queue("sda"))
        unset = request(("io-scheduler", "sda", ""), unset=True)
        leaving = asyncio.create_task(lab.engine.change(unset, "Unset", endable=True))
        await gate.reached.wait()

        async def left() -> None:
            leaving.cancel()
            gate.free.set()
            await asyncio.wait([leaving])

        meanwhile(lab, monkeypatch, left)
        with pytest.raises(LimitsExceeded, match="there are 3 runtime claims already"):
            await lab.set(("sysctl", "vm.swappiness", 9), ("thp", "enabled", "never"))
        assert len(lab.claims) == 2


async def test_claims_have_numbers_in_the_order_in_which_they_are_queued() -> None:
    async with running(large_host()) as lab:
        await asyncio.gather(lab.set(*SETTINGS), lab.set(("io-scheduler", "sda", "none")), lab.set(SETTINGS[1]))
        placed = sorted(lab.store.claims.by_id.values(), key=lambda claim: claim.seq)
        # The single setting of a scheduler is not rehearsed.
        assert [claim.instances for claim in placed][:2] == ["sda", "*"]
        assert len({claim.seq for claim in placed}) == len(placed) == 4


async def test_a_host_may_have_no_default_page_size() -> None:
    kernel = large_host()
    kernel.sizes = ()
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match="no default size of huge pages"):
            await lab.set(("hugepages", "", "64M"))


# Refused before anything is asked of the kernel


# Refused before anything is asked of the kernel


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        (("io-sched", "sda", "none"), UnknownTunable),
        (("io-scheduler", "sdz", "none"), NoSuchTarget),
        (("io-scheduler", "by-id/none-such", "none"), NoSuchTarget),
        (("io-scheduler", "sda", "no!"), InvalidValue),
        (("io-scheduler", "sda/..", "none"), InvalidValue),
        (("io-scheduler", "a" * 257, "none"), InvalidValue),
        (("hugepages", "2M", "many"), InvalidValue),
        (("hugepages", "3M", "1"), NoSuchName),
        (("hugepages", "4M", "1"), NoSuchTarget),
        (("sysctl", "vm.swappiness", "201"), InvalidValue),
        (("thp", "enabled", "sometimes"), InvalidValue),
        (("overcommit", "", "never"), InvalidValue),
    ],
)
async def test_one_bad_setting_refuses_the_whole_call(
    setting: tuple[str, str, str], error: type[KerntuneError]
) -> None:
    async with running(large_host()) as lab:
        with pytest.raises(error):
            await lab.set(("io-scheduler", "nvme*", "mq-deadline"), setting, ("hugepages", "2M", 10))
        assert (lab.writes(), lab.claims, lab.engine.observed.generation) == ([], [], 0)


async def test_the_same_instances_twice_in_one_call() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(InvalidValue, match="name the same instances"):
            await lab.set(("hugepages", "2M", 1), ("hugepages", "2048K", 2))


async def test_claims_have_a_limit_and_replacing_is_no_new_one() -> None:
    async with running(large_host(), limits=Limits(claims=2)) as lab:
        await lab.set(("io-scheduler", "nvme*", "none"))
        await lab.set(("io-scheduler", "sda", "none"))
        with pytest.raises(LimitsExceeded, match="2 runtime claims already"):
            await lab.set(("io-scheduler", "vd*", "none"))
        await lab.set(("io-scheduler", "sda", "bfq"))
        await lab.set(("io-scheduler", "vd*", "none"), persist=True)
        await lab.unset(("io-scheduler", "nvme*"))
        await lab.set(("io-scheduler", "vd*", "none"))
        assert len(lab.claims) == 3


async def test_a_call_of_too_many_settings_writes_nothing() -> None:
    async with running(large_host(), limits=Limits(claims=2)) as lab:
        with pytest.raises(LimitsExceeded):
            await lab.set(*(("io-scheduler", name, "mq-deadline") for name in ("nvme0n1", "nvme1n1", "sda")))
        assert (lab.writes(), lab.claims) == ([], [])


# What a call may cost


DRIVES = [("io-scheduler", f"nvme{n}*", "none") for n in range(129)]


async def test_a_plan_has_fewer_settings_than_a_set_may_have() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(LimitsExceeded, match="a plan of 129 settings is too long, 128 are allowed"):
            await lab.engine.plan(request(*DRIVES))
        assert (await lab.engine.plan(request(*DRIVES[:128]))).changed
        assert (await lab.set(*DRIVES)).changed


async def test_settings_times_targets_are_bounded() -> None:
    """Three drives: the third pattern is the one too many."""
    async with running(large_host(), limits=Limits(comparisons=8)) as lab:
        assert (await lab.engine.plan(request(*DRIVES[:2]))).changed
        with pytest.raises(LimitsExceeded, match="3 settings for so many targets"):
            await lab.engine.plan(request(*DRIVES[:3]))


async def test_what_a_call_is_answered_is_bounded() -> None:
    """Three drives: the second pattern would be answered two outcomes too many."""
    every = [("io-scheduler", pattern, "none") for pattern in ("*", "nvme*")]
    async with running(large_host(), limits=Limits(outcomes=4)) as lab:
        assert len((await lab.engine.plan(request(every[0]))).outcomes) == 3
        for refused in (lab.engine.plan(request(*every)), lab.set(*every)):
            with pytest.raises(LimitsExceeded, match="cover 5 targets together, and 4 are allowed"):
                await refused
        assert lab.claims == []


async def test_what_a_call_withdraws_is_bounded() -> None:
    async with running(large_host(), limits=Limits(claims=3)) as lab:
        named = [(tunable, instances) for tunable, instances, _ in DRIVES]
        assert not (await lab.unset(*named[:3])).changed
        with pytest.raises(LimitsExceeded, match="a call of 4 settings is too long, and 3 are allowed"):
            await lab.unset(*named[:4])


async def test_no_set_waits_for_what_anybody_may_ask_for() -> None:
    async with running(large_host()) as lab:
        gate = threading.Event()
        strangers = [lab.engine.threads.open(gate.wait, BOUND) for _ in range(32)]
        plans = [asyncio.create_task(lab.engine.plan(request(("hugepages", "2M", 10)))) for _ in range(8)]
        try:
            async with asyncio.timeout(BOUND / 2):
                assert (await lab.set(("hugepages", "2M", 20))).changed
            assert not any(plan.done() for plan in plans)
        finally:
            gate.set()
        await asyncio.gather(*strangers, *plans)


async def test_a_large_document_is_made_of_a_copy_and_says_the_same() -> None:
    host = Host("6.1", "/", simulated=True, default_page_size=2 << 20)
    async with running(large_host()) as lab:
        guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_given: None)
        await lab.set(*DRIVES[:20])
        head, rows = prepare(lab.engine.observed, lab.engine.edits, guard, host, degraded=[], profile="")
        before = head | rows()
        await lab.set(("io-scheduler", "*", "bfq"))
        assert json.loads(await lab.engine.threads.open(in_parts, head, rows)) == json.loads(json.dumps(before))


async def test_a_large_document_is_made_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "SMALL", 0)
    gate, host = threading.Event(), Host("6.1", "/", simulated=True, default_page_size=2 << 20)
    async with running(large_host()) as lab:
        guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_given: None)
        stranger = lab.engine.threads.open(gate.wait, BOUND)
        making = asyncio.create_task(document(lab.engine, guard, host, degraded=[], profile=""))
        try:
            await asyncio.sleep(0)
            assert not making.done(), "the event loop goes on meanwhile"
        finally:
            gate.set()
        await stranger
        assert json.loads(await making)["targets"]


async def test_a_document_fits_the_bus_whatever_is_saved_with_a_claim() -> None:
    """A file that was damaged has any text for a name."""
    host = Host("6.1", "/", simulated=True, default_page_size=2 << 20)
    odd = Claim(Origin.RUNTIME, "io-scheduler", "sda", "bfq", who="\udcff", why="\0")
    async with running(large_host(), claims=[odd]) as lab:
        guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_given: None)
        said = await document(lab.engine, guard, host, degraded=[], profile="")
        head, rows = prepare(lab.engine.observed, lab.engine.edits, guard, host, degraded=[], profile="")
        for text in (said, in_parts(head, rows)):
            assert b"\0" not in text.encode()
            (row,) = json.loads(text)["claims"]
            assert (row["who"], row["why"]) == (odd.who, odd.why)


def test_an_outcome_fits_the_bus_whatever_is_saved_with_a_claim() -> None:
    odd = Claim(Origin.RUNTIME, "io-scheduler", "sda", "\0", who="j\udcfcrgen")
    outcome = Outcome(Target("io-scheduler", "sda"), odd.value, "", "none", State.OVERRIDDEN, detail=described(odd))
    row = outcome_row(outcome)
    assert (row[2], row[-1]) == ("?", "runtime:io-scheduler@sda = ?, by j?rgen")


async def test_who_is_named_again_and_again_is_withdrawn_once() -> None:
    async with running(large_host()) as lab:
        for number in range(20):
            await lab.set(("io-scheduler", f"nvme{number}*", "none"))
        edit = await lab.engine.check(request(*[("io-scheduler", "*", "")] * 1000, unset=True))
        assert len(edit.drop) == 20


# Large requests leave the event loop


LOOP = "MainThread"
Rows = list[tuple[str, str, str]]


def rows(*names: str, value: str = "none") -> Rows:
    return [("io-scheduler", name, value) for name in names]


FEW, MANY = rows("nvme0*", "nvme1*"), rows("nvme0*", "nvme1*", "sda*")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """On three drives two patterns are a small request, and three a large one."""
    monkeypatch.setattr(reconciler, "SMALL", 8)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how many drives each kind of thread compares with a pattern."""
    found, inner = Counter[str](), IO_SCHEDULER.matcher

    def matcher(instances: str) -> Matcher:
        matches = inner(instances)

        def counted(target: Target) -> bool:
            found[threading.current_thread().name.partition("_")[0]] += 1
            return matches(target)

        return counted

    monkeypatch.setattr(IO_SCHEDULER, "matcher", matcher)
    return found


@pytest.mark.usefixtures("few")
async def test_a_small_request_is_compared_on_the_loop(compared: Counter[str]) -> None:
    async with running(large_host()) as lab:
        await lab.set(*FEW[:1])
        assert compared[LOOP]
        assert not compared["read"] + compared["open"]
        await lab.unset(*((tunable, at) for tunable, at, _ in FEW))
        assert not compared["read"] + compared["open"]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("persist", [False, True])
async def test_a_large_one_is_not(compared: Counter[str], *, persist: bool) -> None:
    async with running(large_host()) as lab:
        assert len((await lab.engine.plan(request(*MANY, persist=persist))).outcomes) == 3
        assert compared["open"]
        assert not compared["read"] + compared[LOOP]
        compared.clear()
        assert len((await lab.set(*MANY, persist=persist)).outcomes) == 3
        assert compared["read"]
        assert not compared["open"] + compared[LOOP]
        compared.clear()
        await lab.unset(*((tunable, at) for tunable, at, _ in MANY), persist=persist)
        assert not compared["open"] + compared[LOOP]


@pytest.mark.usefixtures("few")
async def test_a_persistent_one_is_compared_with_what_it_replaces(compared: Counter[str]) -> None:
    async with running(large_host()) as lab:
        for setting in MANY:
            await lab.set(setting)
        compared.clear()
        await lab.set(*FEW[:1], persist=True)
        assert compared["read"]
        # No more than what the answer of one setting takes, and whether it is being set.
        assert compared[LOOP] <= 2 * len(lab.kernel.disks)
        others = [f"runtime:io-scheduler@{at}=none" for at in ("nvme1*", "sda*")]
        assert lab.claims == ["persistent:io-scheduler@nvme0*=none", *others]


@pytest.mark.usefixtures("few")
async def test_who_looks_while_a_large_one_is_carried_out_compares_nothing(compared: Counter[str]) -> None:
    async with running(kernel := large_host()) as lab:
        writing, gate = threading.Event(), threading.Event()

        def wait(path: str, text: str) -> None:
            writing.set()
            assert gate.wait(BOUND)

        kernel.before_write = wait
        setting = asyncio.create_task(lab.set(*rows("nvme0*", "nvme1*", "sda*", value="bfq")))
        try:
            assert await asyncio.to_thread(writing.wait, BOUND)
            assert not await lab.engine.verify()
            lab.engine.observed.outcomes_now()
        finally:
            gate.set()
        assert {outcome.state for outcome in (await setting).outcomes} == {State.SATISFIED}
        assert not compared[LOOP]


@pytest.mark.usefixtures("few")
async def test_a_large_one_is_refused_as_a_small_one_is() -> None:
    async with running(large_host()) as lab:
        for wrong, error in (
            (("io-scheduler", "nvme9n9", "none"), NoSuchTarget),
            (("io-scheduler", "*", "nosuch"), InvalidValue),
            (MANY[0], InvalidValue),
        ):
            for refused in (lab.set(*MANY, wrong), lab.engine.plan(request(*MANY, wrong))):
                with pytest.raises(error):
                    await refused
        assert lab.claims == []
        assert lab.writes() == []


def before_checks(monkeypatch: pytest.MonkeyPatch, hold: Callable[[Any], object]) -> None:
    """Call `hold` with each request before it is checked, in the thread that checks it."""

    def check(asked: Any, *given: Any) -> Any:
        hold(asked)
        return edit_for(asked, *given)

    monkeypatch.setattr(reconciler, "edit_for", check)


def both_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of two large requests is checked for the first time before the other is."""
    barrier, known = threading.Barrier(2), set[Any]()

    def hold(asked: Any) -> None:
        if asked not in known:
            known.add(asked)
            barrier.wait(BOUND)

    before_checks(monkeypatch, hold)


async def set_both(lab: Lab, first: Rows, second: Rows) -> list[Any]:
    async with asyncio.timeout(BOUND):
        return list(await asyncio.gather(lab.set(*first), lab.set(*second), return_exceptions=True))


@pytest.mark.usefixtures("few")
async def test_of_two_that_are_checked_at_once_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    both_at_once(monkeypatch)
    async with running(large_host()) as lab:
        others = rows("nvme0n*", "nvme1n*", "sd*", value="bfq")
        found = await set_both(lab, MANY, others)
        assert [len(answer.outcomes) for answer in found] == [3, 3]
        assert {claim.id.instances for claim in lab.engine.edits.claims.by_id.values()} == {
            at for _, at, _ in MANY + others
        }
        numbers = [claim.seq for claim in lab.store.claims.by_id.values()]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("large", [MANY, MANY[2:]], ids=["rehearsed", "not rehearsed"])
async def test_a_large_one_that_another_passes_is_queued_after_it_and_wins(
    monkeypatch: pytest.MonkeyPatch, large: Rows
) -> None:
    monkeypatch.setattr(reconciler, "SMALL", 2)  # what passes it has a thread of its own
    checking, passed = threading.Event(), threading.Event()

    def hold(asked: Any) -> None:
        if asked.settings[0].value == "none":
            checking.set()
            assert passed.wait(BOUND)

    before_checks(monkeypatch, hold)
    async with running(large_host()) as lab:
        setting = asyncio.create_task(lab.set(*large))
        try:
            assert await asyncio.to_thread(checking.wait, BOUND)
            assert (await lab.one("io-scheduler", "sda*", "bfq")).actual == "bfq"
        finally:
            passed.set()
        assert {outcome.actual for outcome in (await setting).outcomes} == {"none"}
        assert lab.claims == [f"runtime:io-scheduler@{at}=none" for _, at, _ in large]


@pytest.mark.usefixtures("few")
async def test_two_that_are_checked_at_once_keep_to_the_limit_of_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    both_at_once(monkeypatch)
    async with running(large_host(), limits=Limits(claims=5)) as lab:
        found = await set_both(lab, MANY, rows("nvme0n*", "nvme1n*", "sd*", value="bfq"))
        assert [type(each).__name__ for each in found if isinstance(each, Exception)] == [LimitsExceeded.__name__]
        assert len(lab.claims) == 3


@pytest.mark.usefixtures("few")
async def test_readings_that_a_thread_goes_through_stay_as_they_are() -> None:
    """A pass that a look has overtaken adds what it has written to those that there are."""
    async with running(large_host()) as lab:
        before = lab.engine.observed.readings
        known, target = dict(before), next(target for target in before if target.instance == "sda")
        lab.engine.observed.learn(Lane.BLOCK, Result(readings={target: Reading(target, "bfq")}), [target])
        assert before == known
        assert lab.engine.observed.readings[target].value == "bfq"
