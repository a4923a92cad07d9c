"""Claims: who wins, in whatever order they came. Edits: what becomes of one whose caller left. Baselines at the end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.engine.claims import Claims, Edit, cover, resolve, unmatched
from kerntune.engine.edits import Pending
from kerntune.engine.results import Answer
from kerntune.engine.workers import LaneQueue, PassRequest
from kerntune.errors import Failed
from kerntune.model import Claim, Origin, State, Target
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import (
    BOUND,
    FULL,
    MANY_PAGES,
    POOL,
    Lab,
    MemoryStore,
    begun,
    claim,
    have_pages,
    held,
    host_values,
    large_host,
    pages,
    queue,
    request,
    running,
    slow_pools,
    small_host,
)

RUNTIME = claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", seq=5)


def test_the_same_identity_is_replaced() -> None:
    newer = replace(RUNTIME, value="bfq", seq=6)
    claims = Claims.of(RUNTIME).apply(Edit(7, put=(newer,)))
    assert dict(claims.by_id) == {RUNTIME.id: newer}


def test_another_origin_is_another_claim() -> None:
    persistent = replace(RUNTIME, origin=Origin.PERSISTENT, seq=6)
    claims = Claims.of(RUNTIME).apply(Edit(7, put=(persistent,)))
    assert claims.by_origin(Origin.RUNTIME) == (RUNTIME,)
    assert claims.by_origin(Origin.PERSISTENT) == (persistent,)
    assert claims.by_origin(Origin.HOLD) == ()


def test_dropping() -> None:
    assert not Claims.of(RUNTIME).apply(Edit(6, drop=(RUNTIME.id,))).by_id
    other = claim(Origin.RUNTIME, "io-scheduler", "sda", "none")
    assert Claims.of(RUNTIME).apply(Edit(6, drop=(other.id,))).by_id == {RUNTIME.id: RUNTIME}


def test_an_edit_does_not_touch_what_is_newer() -> None:
    claims = Claims.of(RUNTIME)
    assert claims.apply(Edit(4, drop=(RUNTIME.id,))).by_id == {RUNTIME.id: RUNTIME}
    assert claims.apply(Edit(4, put=(replace(RUNTIME, value="bfq", seq=3),))).by_id == {RUNTIME.id: RUNTIME}


def test_an_edit_leaves_the_claims_before_it_alone() -> None:
    claims = Claims.of(RUNTIME)
    claims.apply(Edit(9, drop=(RUNTIME.id,)))
    assert RUNTIME.id in claims.by_id


def test_without() -> None:
    other = claim(Origin.PERSISTENT, "overcommit", "", "always")
    assert dict(Claims.of(RUNTIME, other).without([RUNTIME]).by_id) == {other.id: other}


def test_the_same_but_for_the_sequence() -> None:
    claims = Claims.of(RUNTIME)
    assert claims.same_as(Claims.of(replace(RUNTIME, seq=99)))
    for other in (
        replace(RUNTIME, value="bfq"),
        replace(RUNTIME, origin=Origin.PERSISTENT),
        replace(RUNTIME, partial=True),
        replace(RUNTIME, instances="*"),
    ):
        assert not claims.same_as(Claims.of(other))
    assert not claims.same_as(Claims())
    assert not claims.same_as(Claims.of(RUNTIME, claim(Origin.RUNTIME, "overcommit", "", "always")))


def test_each_claim_of_an_edit_has_a_number_and_the_edit_the_highest() -> None:
    first, second = (claim(Origin.RUNTIME, "io-scheduler", at, "none", seq=0) for at in ("sda", "sdb"))
    edit = Edit(put=(first, second), drop=(RUNTIME.id,)).numbered(7)
    assert ([each.seq for each in edit.put], edit.seq) == ([8, 9], 10)
    assert list(Claims.of(RUNTIME).apply(edit).by_id) == [first.id, second.id]
    assert RUNTIME.id in Claims.of(replace(RUNTIME, seq=11)).apply(edit).by_id


names = st.sampled_from(["a", "b", "c"])
edits = st.lists(st.tuples(st.booleans(), names, st.sampled_from(["none", "bfq"])), max_size=12)


def numbered(rows: list[tuple[bool, str, str]]) -> list[Edit]:
    """Edits in the order in which they were made, each with its place."""
    found = []
    for seq, (put, at, value) in enumerate(rows, 1):
        one = Claim(Origin.RUNTIME, "io-scheduler", at, value, seq=2 * seq)
        found.append(Edit(2 * seq + 1, put=(one,)) if put else Edit(2 * seq + 1, drop=(one.id,)))
    return found


@given(edits)
def test_applying_an_edit_twice_is_applying_it_once(rows: list[tuple[bool, str, str]]) -> None:
    claims = Claims()
    for edit in numbered(rows):
        claims = claims.apply(edit)
        assert claims.apply(edit) == claims


@given(edits, st.randoms())
def test_edits_that_put_may_be_committed_in_any_order(rows: list[tuple[bool, str, str]], random: object) -> None:
    """A lane that is slower commits later, and must not bring back an older value."""
    puts = numbered([(True, at, value) for _, at, value in rows])
    shuffled = list(puts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as object
    one, other = Claims(), Claims()
    for edit in puts:
        one = one.apply(edit)
    for edit in shuffled:
        other = other.apply(edit)
    assert dict(one.by_id) == dict(other.by_id)


def test_claims_beside_those_it_has() -> None:
    own, other = claim(Origin.CONFIG, "io-scheduler", "*", "bfq"), claim(Origin.CONFIG, "overcommit", "", "always")
    assert Claims.of(RUNTIME).having([own, other]).by_id == {c.id: c for c in (RUNTIME, own, other)}
    assert Claims.of(RUNTIME).having([]) == Claims.of(RUNTIME)


# Who wins


SCHEDULERS = IO_SCHEDULER
DRIVES = tuple(Target("io-scheduler", name) for name in ("nvme0n1", "nvme1n1", "sda"))
FIRST = DRIVES[0]
PATTERNS = ("*", "nvme*", "nvme0n1", "nvme1n1", "sda", "sd?", "vd*")
ORIGINS = [origin for origin in Origin if origin is not Origin.BASELINE]


@st.composite
def many_claims(draw: st.DrawFn) -> list[Claim]:
    """Claims: each identity once, each with a place of its own."""
    ids = draw(st.lists(st.tuples(st.sampled_from(ORIGINS), st.sampled_from(PATTERNS)), unique=True, max_size=12))
    places = draw(st.permutations(range(len(ids))))
    values = draw(st.lists(st.sampled_from(["none", "bfq", "kyber"]), min_size=len(ids), max_size=len(ids)))
    return [
        claim(origin, "io-scheduler", pattern, value, seq=seq)
        for (origin, pattern), seq, value in zip(ids, places, values, strict=True)
    ]


baselines = st.dictionaries(st.sampled_from(DRIVES), st.sampled_from(["none", "mq-deadline"]))


@given(many_claims().flatmap(lambda claims: st.tuples(st.just(claims), st.permutations(claims))), baselines)
def test_any_order_of_the_same_claims_gives_the_same_desired_states(
    claims: tuple[list[Claim], list[Claim]], own: dict[Target, str]
) -> None:
    one, other = claims
    assert resolve(SCHEDULERS, one, own, DRIVES) == resolve(SCHEDULERS, other, own, DRIVES[::-1])


@given(many_claims(), baselines)
def test_the_winner_is_the_highest_origin_and_then_the_newest(claims: list[Claim], own: dict[Target, str]) -> None:
    desired_states = resolve(SCHEDULERS, claims, own, DRIVES)
    for target in DRIVES:
        asking = [claim for claim in claims if SCHEDULERS.matches(claim.instances, target)]
        if not asking:
            assert (target in desired_states) is (target in own)
            continue
        desired = desired_states[target]
        highest = max(claim.origin for claim in asking)
        newest = max(claim.seq for claim in asking if claim.origin is highest)
        assert (desired.winner.origin, desired.winner.seq, desired.value) == (highest, newest, desired.winner.value)
        assert {desired.winner, *desired.overridden} == set(asking)
        assert list(desired.overridden) == sorted(desired.overridden, key=lambda c: (-c.origin, -c.seq))


@given(many_claims(), st.sampled_from(DRIVES))
def test_a_target_that_appears_changes_nothing_for_the_others(claims: list[Claim], late: Target) -> None:
    before = resolve(SCHEDULERS, claims, {}, [target for target in DRIVES if target != late])
    after = resolve(SCHEDULERS, claims, {}, DRIVES)
    assert {target: desired for target, desired in after.items() if target != late} == before


def test_a_claim_of_another_tunable_says_nothing() -> None:
    assert resolve(SCHEDULERS, [claim(Origin.RUNTIME, "overcommit", "*", "always")], {}, DRIVES) == {}


def test_where_nobody_claims_the_baseline_is_desired() -> None:
    (desired,) = resolve(SCHEDULERS, [], {FIRST: "none"}, DRIVES).values()
    assert (desired.target, desired.value, desired.is_baseline, desired.strict) == (FIRST, "none", True, False)


def test_a_baseline_of_another_drive_of_that_name_is_not_desired() -> None:
    replaced = Target("io-scheduler", "nvme0n1", key="2")
    assert resolve(SCHEDULERS, [], {Target("io-scheduler", "nvme0n1", key="1"): "none"}, [replaced]) == {}


def test_strict_is_who_waits_and_allows_no_less() -> None:
    exact = claim(Origin.RUNTIME, "io-scheduler", "nvme0n1", "none")
    lenient = Claim(Origin.RUNTIME, "io-scheduler", "nvme1n1", "none", partial=True)
    unheard = claim(Origin.RUNTIME, "io-scheduler", "sda", "none")
    desired_states = resolve(SCHEDULERS, [exact, lenient, unheard], {}, DRIVES, strict={exact.id, lenient.id})
    assert [desired_states[target].strict for target in DRIVES] == [True, False, False]


@given(many_claims())
def test_a_claim_is_either_in_a_desired_state_or_unmatched(claims: list[Claim]) -> None:
    desired_states = resolve(SCHEDULERS, claims, {}, DRIVES).values()
    heard = {claim for desired in desired_states for claim in (desired.winner, *desired.overridden)}
    left = set(unmatched(cover(SCHEDULERS, claims, DRIVES)))
    assert heard | left == set(claims)
    assert not heard & left


# What becomes of an edit whose caller left


LEFT = "the caller of Set left"


def setting(lab: Lab, *settings: tuple[str, str, str | int]) -> asyncio.Task[Answer]:
    """Begin a Set that is to end with its caller."""
    return asyncio.ensure_future(lab.engine.change(request(*settings), "Set", endable=True))


async def leaves(call: asyncio.Task[Answer]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def details(lab: Lab) -> Iterator[str]:
    """Return the details of all that was published."""
    return (outcome.detail for report in lab.reports for outcome in report.outcomes)


def slow_saves(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, threading.Event]:
    """Have saves wait; return an event that is set when the first begins, and the one that lets them go on."""
    saving, free, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    commit = MemoryStore.commit

    def slowly(store: MemoryStore, claims: Claims) -> None:
        loop.call_soon_threadsafe(saving.set)
        free.wait(BOUND)
        commit(store, claims)

    monkeypatch.setattr(MemoryStore, "commit", slowly)
    return saving, free


async def test_a_slow_pool_is_ended_and_the_old_count_is_back() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        begins = slow_pools(lab.kernel)
        call = setting(lab, ("hugepages", "2M", MANY_PAGES))
        await begins.wait()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert pages(lab.kernel) == [3]
        assert (lab.claims, lab.store.baselines) == ([], {})
        # It did not have to make all of them first.
        assert max(int(text) for path, text in lab.writes() if path == POOL) < MANY_PAGES
        assert any(LEFT in detail for detail in details(lab))
        assert not any("told to stop" in detail for detail in details(lab))


@pytest.mark.usefixtures("endable")
async def test_a_thread_that_is_inside_a_write_is_signalled_until_the_pass_is_over() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        gate = held(lab.kernel, POOL)
        call = setting(lab, ("hugepages", "2M", 100))
        await gate.reached.wait()
        halt = lab.engine.lanes[lab.engine.tunables["hugepages"].lane].halt
        assert halt
        signals = asyncio.Semaphore(0)
        real = halt.interrupt

        def interrupt() -> list[str]:
            signals.release()
            return real()

        halt.interrupt = interrupt  # type: ignore[method-assign]
        await leaves(call)
        for _ in range(3):
            await signals.acquire()
        gate.free.set()
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([3], [])


async def test_without_it_an_edit_is_finished() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        (call,) = await begun(lab.set(("hugepages", "2M", MANY_PAGES)))
        await begins.wait()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([MANY_PAGES], [f"runtime:hugepages@2M={MANY_PAGES}"])


async def test_what_waits_for_its_pass_is_only_withdrawn() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, queue("sda"))
        (first,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        await gate.reached.wait()
        call = setting(lab, ("io-scheduler", "nvme0n1", "kyber"))
        await begun()
        await leaves(call)
        gate.free.set()
        assert [outcome.state for outcome in (await first).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]
        assert lab.kernel.disks["nvme0n1"].scheduler == "none"


async def test_who_shares_the_pass_is_not_harmed() -> None:
    async with running(large_host()) as lab:
        first_gate = held(lab.kernel, queue("sda"))
        (first,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        await first_gate.reached.wait()
        leaving = setting(lab, ("io-scheduler", "nvme0n1", "kyber"))
        (staying,) = await begun(lab.set(("io-scheduler", "nvme1n1", "kyber")))
        gate = held(lab.kernel, queue("nvme0n1"))
        first_gate.free.set()
        await first
        await gate.reached.wait()
        await leaves(leaving)
        gate.free.set()
        assert [outcome.state for outcome in (await staying).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        schedulers = {name: disk.scheduler for name, disk in lab.kernel.disks.items()}
        assert schedulers == {"sda": "bfq", "nvme0n1": "none", "nvme1n1": "kyber"}
        assert not any(LEFT in detail for detail in details(lab))


async def test_who_comes_later_in_the_lane_has_what_he_asked_for() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        leaving = setting(lab, ("hugepages", "2M", MANY_PAGES))
        await begins.wait()
        (later,) = await begun(lab.set(("overcommit", "", "always:95")))
        await leaves(leaving)
        assert [outcome.state for outcome in (await later).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([0], ["runtime:overcommit=always:95"])


async def test_what_is_being_saved_is_finished_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(small_host()) as lab:
        saving, free = slow_saves(monkeypatch)
        call = setting(lab, ("hugepages", "2M", 4))
        await saving.wait()
        call.cancel()
        free.set()
        assert [outcome.state for outcome in (await call).outcomes] == [State.SATISFIED]
        assert (pages(lab.kernel), lab.claims) == ([4], ["runtime:hugepages@2M=4"])


async def test_of_two_that_are_saved_at_the_same_time_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        saving, free = slow_saves(monkeypatch)
        (first,) = await begun(lab.set(("hugepages", "2M", 4)))
        await saving.wait()
        (second,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        # Of another lane: its pass is over, and it is to be saved too.
        for _ in range(2):
            await lab.engine.reconcile("meanwhile")
        free.set()
        await asyncio.gather(first, second)
        assert lab.claims == ["runtime:hugepages@2M=4", "runtime:io-scheduler@sda=bfq"]


async def test_who_leaves_before_the_first_step_leaves_nothing() -> None:
    async with running(small_host()) as lab:
        edit = await lab.engine.check(request(("io-scheduler", "nvme0n1", "kyber")))
        call = asyncio.ensure_future(lab.engine.carry_out(edit, "Set", endable=True))
        await begun()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert (lab.claims, lab.writes()) == ([], [])


async def test_edits_without_a_pause_leave_nothing_of_those_before_them() -> None:
    """Each begins before the one before it has ended."""

    def alive() -> int:
        gc.collect()
        return sum(isinstance(found, Pending) for found in gc.get_objects())

    async with running(large_host()) as lab:
        others, most = alive(), 0

        async def sets(device: str) -> None:
            nonlocal most
            for number in range(20):
                await lab.set(("io-scheduler", device, ("none", "bfq")[number % 2]))
                if number == 15:
                    most = max(most, alive() - others)

        await asyncio.gather(*map(sets, ("sda", "nvme0n1", "nvme1n1")))
        assert most <= 8


async def test_what_is_put_back_is_not_ended_with_another_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[PassRequest] = []
    put = LaneQueue.put

    def noted(self: LaneQueue, request: PassRequest) -> None:
        requests.append(request)
        put(self, request)

    monkeypatch.setattr(LaneQueue, "put", noted)

    def fails(*_: object) -> None:
        raise FULL

    async with running(large_host()) as lab:
        monkeypatch.setattr(MemoryStore, "commit", fails)
        with pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "none"))
        assert [request.waited for request in requests if request.cause == "Set withdrawn"] == [True]


SDA = Target("io-scheduler", "sda", key="3")


# Baselines


async def test_the_hosts_own_value_is_saved_before_it_is_overwritten() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    saved: list[dict[str, str]] = []
    async with running(kernel) as lab:
        kernel.before_write = lambda path, text: saved.append({str(t): v for t, v in lab.store.baselines.items()})
        await lab.set(("hugepages", "2M/node0", 50))
        assert saved == [{"hugepages@2M/node0": "3"}]
        await lab.set(("hugepages", "2M/node0", 60))
        assert saved[-1] == {"hugepages@2M/node0": "3"}


async def test_a_baseline_is_saved_once() -> None:
    async with running(large_host()) as lab:
        for value in ("bfq", "none", "kyber"):
            await lab.set(("io-scheduler", "sda", value))
        assert [target.instance for target in lab.store.kept] == ["sda"]


async def test_only_what_was_written_has_a_baseline() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "mq-deadline"))
        assert {target.instance for target in lab.store.baselines} == {"nvme0n1", "nvme1n1"}


async def test_what_nobody_claims_any_more_is_put_back_once() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        await lab.unset(("io-scheduler", "sda"))
        assert lab.writes() == [(queue("sda"), "mq-deadline")]
        lab.kernel.disks["sda"].scheduler = "kyber"  # it is the admin's again
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        assert lab.engine.observed.outcomes == {}


async def test_a_value_that_never_was_changed_is_not_put_back() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "mq-deadline"))
        lab.kernel.disks["sda"].scheduler = "bfq"
        await lab.unset(("io-scheduler", "sda"))
        assert lab.writes() == []


async def test_after_a_crash_between_write_and_commit_the_host_has_its_own_back() -> None:
    """The baseline is on disk and the value in place, but nobody was answered."""
    kernel = large_host()
    kernel.disks["sda"].scheduler = "bfq"
    async with running(kernel, baselines={SDA: "mq-deadline"}) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert kernel.disks["sda"].scheduler == "mq-deadline"
        assert not lab.store.baselines


# Saved claims


async def test_saved_claims_are_in_force_after_boot() -> None:
    saved = [claim(Origin.PERSISTENT, "hugepages", "2M", 10), claim(Origin.RUNTIME, "io-scheduler", "sda", "bfq")]
    async with running(large_host(), claims=saved) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (pages(lab.kernel), lab.kernel.disks["sda"].scheduler) == ([5, 5], "bfq")
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def test_a_saved_claim_that_no_call_could_have_made_is_left_out() -> None:
    bad = [
        claim(Origin.PERSISTENT, "hugepages", "2M", "1x0"),
        claim(Origin.PERSISTENT, "hugepages", "*", "1"),
        claim(Origin.PERSISTENT, "hugepages", "2048K", "1"),
        claim(Origin.RUNTIME, "overcommit", "", "never:1048576k"),
        claim(Origin.RUNTIME, "no-such-tunable", "", "1"),
        claim(Origin.RUNTIME, "io-scheduler", "../sda", "none"),
    ]
    good = claim(Origin.PERSISTENT, "io-scheduler", "sda", "bfq")
    async with running(large_host(), claims=[*bad, good]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert set(lab.engine.edits.unsound) == set(bad)
        assert list(lab.engine.edits.claims.by_id.values()) == [good]
        assert lab.writes() == [(queue("sda"), "bfq")]


# Put back at the end


async def test_at_the_end_the_host_has_its_own_values_and_the_claims_stay_saved() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    files = [claim(Origin.CONFIG, "overcommit", "", "always:95")]
    async with running(kernel) as lab:
        before = host_values(kernel)
        lab.engine.configure(files, lab.engine.limits)
        await lab.set(("hugepages", "2M/node0", 50), ("io-scheduler", "*", "bfq"), persist=True)
        await lab.set(("read-ahead", "sda", 2048))
        saved = lab.store.claims
        assert await lab.engine.put_back(BOUND)
        assert host_values(kernel) == before
        assert (lab.store.claims, lab.store.baselines) == (saved, {})
        with pytest.raises(Failed, match="is stopping"):
            await lab.set(("read-ahead", "sda", 4096))
        await lab.engine.reconcile("hotplug")
        assert host_values(kernel) == before
        assert lab.store.claims == saved
    async with running(kernel, claims=saved.by_id.values()) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (pages(kernel)[0], kernel.disks["sda"].scheduler, kernel.disks["sda"].read_ahead) == (50, "bfq", 2048)


async def test_what_is_fought_over_is_put_back_at_the_end_too() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        for _ in range(4):
            lab.kernel.disks["sda"].scheduler = "kyber"
            await lab.engine.reconcile("drift")
        assert lab.engine.observed.outcomes[SDA].state is State.CONTESTED
        assert await lab.engine.put_back(BOUND)
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"


async def test_the_end_waits_for_no_kernel_that_does_not_answer() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        answered = threading.Event()

        def block(path: str, text: str) -> None:
            answered.wait(BOUND)

        lab.kernel.before_write = block
        assert await lab.engine.put_back(0.05) is False
        answered.set()
