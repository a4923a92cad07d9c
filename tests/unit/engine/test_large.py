"""Large requests leave the event loop: what is compared in which thread, and that nothing is lost meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from kerntune.engine import reconciler
from kerntune.engine.passes import Result
from kerntune.engine.requests import edit_for
from kerntune.errors import InvalidValue, LimitsExceeded, NoSuchTarget
from kerntune.model import Lane, Limits, Reading, State, Target
from kerntune.patterns import Matcher
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import BOUND, Lab, large_host, request, running

LOOP = "MainThread"
Rows = list[tuple[str, str, str]]


def rows(*names: str, value: str = "none") -> Rows:
    return [("io-scheduler", name, value) for name in names]


FEW, MANY = rows("nvme0*", "nvme1*"), rows("nvme0*", "nvme1*", "sda*")


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_small_request_is_compared_on_the_loop(compared: Counter[str]) -> None:
    async with running(large_host()) as lab:
        await lab.set(*FEW[:1])
        assert compared[LOOP]
        assert not compared["read"] + compared["open"]
        await lab.unset(*((tunable, at) for tunable, at, _ in FEW))
        assert not compared["read"] + compared["open"]


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
            lab.engine.outcomes_now()
        finally:
            gate.set()
        assert {outcome.state for outcome in (await setting).outcomes} == {State.SATISFIED}
        assert not compared[LOOP]


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


def held(monkeypatch: pytest.MonkeyPatch, hold: Callable[[Any], object]) -> None:
    """Call `hold` with each request before it is checked, in the thread that checks it."""

    def check(asked: Any, *given: Any) -> Any:
        hold(asked)
        return edit_for(asked, *given)

    monkeypatch.setattr(reconciler, "edit_for", check)


def both_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No large request is checked before another is."""
    barrier = threading.Barrier(2)
    held(monkeypatch, lambda _asked: barrier.wait(BOUND))


async def set_both(lab: Lab, first: Rows, second: Rows) -> list[Any]:
    async with asyncio.timeout(BOUND):
        return list(await asyncio.gather(lab.set(*first), lab.set(*second), return_exceptions=True))


async def test_of_two_that_are_checked_at_once_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    both_at_once(monkeypatch)
    async with running(large_host()) as lab:
        others = rows("nvme0n*", "nvme1n*", "sd*", value="bfq")
        found = await set_both(lab, MANY, others)
        assert [len(answer.outcomes) for answer in found] == [3, 3]
        assert {claim.id.instances for claim in lab.engine.claims.by_id.values()} == {at for _, at, _ in MANY + others}
        numbers = [claim.seq for claim in lab.store.claims.by_id.values()]
        assert len(set(numbers)) == len(numbers)


async def test_the_one_that_was_asked_for_later_is_newer_though_it_is_checked_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has one setting, which is not rehearsed: it is checked once."""
    monkeypatch.setattr(reconciler, "SMALL", 2)
    later = threading.Event()

    def hold(asked: Any) -> None:
        if asked.settings[0].value == "bfq":
            later.set()
        else:
            assert later.wait(BOUND)

    held(monkeypatch, hold)
    async with running(large_host()) as lab:
        answer, newer = await set_both(lab, rows("*"), rows("*", value="bfq"))
        assert {outcome.actual for outcome in newer.outcomes} == {"bfq"}
        assert {outcome.requested for outcome in answer.outcomes} == {"none"}
        assert {claim.value for claim in lab.store.claims.by_id.values()} == {"bfq"}


async def test_two_that_are_checked_at_once_keep_to_the_limit_of_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    both_at_once(monkeypatch)
    async with running(large_host(), limits=Limits(claims=5)) as lab:
        found = await set_both(lab, MANY, rows("nvme0n*", "nvme1n*", "sd*", value="bfq"))
        assert [type(each).__name__ for each in found if isinstance(each, Exception)] == [LimitsExceeded.__name__]
        assert len(lab.claims) == 3


async def test_readings_that_a_thread_goes_through_stay_as_they_are() -> None:
    """A pass that a look has overtaken adds what it has written to those that there are."""
    async with running(large_host()) as lab:
        before = lab.engine.readings
        known, target = dict(before), next(target for target in before if target.instance == "sda")
        lab.engine.observed.learn(Lane.BLOCK, Result(readings={target: Reading(target, "bfq")}), [target])
        assert before == known
        assert lab.engine.readings[target].value == "bfq"
