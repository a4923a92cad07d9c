"""Any sequence: whatever is asked, held or killed in whatever order, the host ends with what the claims say.

Replies are true, plans write nothing, and letting go gives the host back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerntune.engine.claims import Claims
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.results import Answer
from kerntune.errors import KerntuneError, Overridden, PartiallyAllocated
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Baseline, Hold, Lane, Origin, Reason, State, Target
from kerntune.store import Store
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import SYSCTLS
from tests.harness import often
from tests.unit.lab import (
    BOUND,
    GIB,
    PAGE,
    Clock,
    Lab,
    MemoryStore,
    have_pages,
    host_values,
    large_host,
    pages,
    request,
    running,
)

VALUES = {
    "hugepages": ["0", "3", "46", "80", "200", "99999999"],
    "overcommit": ["heuristic", "always", "always:95", "never:1", "never:80"],
    "io-scheduler": ["none", "mq-deadline", "bfq", "kyber"],
    "cpu-governor": ["performance", "powersave", "schedutil"],
    "cpu-epp": ["performance", "balance_power", "power"],
    "hugepages-overcommit": ["0", "7", "99999999"],
    "thp": ["always", "madvise", "defer", "never"],
    "sysctl": ["0", "1", "3", "150"],
    "read-ahead": ["0", "128", "2048"],
}
INSTANCES = {
    "hugepages": ["2M", "2M/node0", "2M/node1", "2M/*", "1G", "1G/*"],
    "overcommit": [""],
    "io-scheduler": ["*", "nvme*", "nvme0n1", "sda", "by-id/nvme-First", "vd*"],
    "cpu-governor": ["*", "policy0", "0-1"],
    "cpu-epp": ["*", "policy2", "0-1"],
    "hugepages-overcommit": ["2M", "1G"],
    "thp": ["enabled", "defrag"],
    "sysctl": list(SYSCTLS),
    "read-ahead": ["*", "nvme*", "sda"],
}
QUIET = {State.SATISFIED, State.OVERRIDDEN, State.UNMANAGED}


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: several settings, or what they name withdrawn."""

    settings: tuple[tuple[str, str, str], ...]
    unset: bool
    persist: bool
    partial: bool
    must_win: bool


setting = st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(INSTANCES[name]), st.sampled_from(VALUES[name]))
)
asks = st.builds(
    Ask,
    settings=st.lists(setting, min_size=1, max_size=3).map(tuple),
    unset=st.sampled_from([False, False, True]),
    persist=st.booleans(),
    partial=st.booleans(),
    must_win=st.booleans(),
)


@st.composite
def hosts(draw: st.DrawFn) -> SimulatedKernel:
    """Two nodes with pages and values of their own; memory may be in pieces, programs may hold pages."""
    kernel = large_host()
    used = draw(st.sampled_from([0, 5]))
    have_pages(kernel, 12, 34, used=used)
    for node in kernel.nodes:
        node.whole = draw(st.none() | st.integers(0, 100).map(lambda count: count * PAGE))
    kernel.compaction = draw(st.sampled_from([0, 2 * PAGE]))
    kernel.policies = {
        "policy0": Policy((0, 1), epp="power"),
        "policy2": Policy((2, 3), "powersave", epp="performance"),
    }
    kernel.overcommit = draw(
        st.sampled_from(
            [
                {"memory": 0, "ratio": 50, "kbytes": 0},
                {"memory": 1, "ratio": 150, "kbytes": 0},
                {"memory": 2, "ratio": 0, "kbytes": 20 << 20},
            ]
        )
    )
    return kernel


async def do(lab: Lab, ask: Ask) -> None:
    """One call and what must hold of it and after it."""
    what = request(*ask.settings, unset=ask.unset, persist=ask.persist, partial=ask.partial, must_win=ask.must_win)
    before, claims = in_all(lab.kernel), lab.claims
    lab.writes()
    planned, _ = await ended(lab.engine.plan(what))
    _, foreseen = await ended(lab.engine.plan(what, strict=True))
    assert lab.writes() == []
    answer, error = await ended(lab.engine.change(what, "Set"))
    # Nobody foresees that memory is in pieces, nor what must win without a claim of its own.
    if not isinstance(error, PartiallyAllocated | Overridden):
        assert (type(foreseen), str(foreseen)) == (type(error), str(error))
        assert not (error and planned and planned.changed)
    if answer is None:
        assert in_all(lab.kernel) == before
        assert lab.claims == claims
    else:
        for outcome in answer.outcomes:
            reading = next((r for t, r in now(lab.kernel).items() if str(t) == str(outcome.target)), None)
            assert outcome.actual == (reading or "")
        assert planned is not None
        # Pages are asked for once more where some are missing, which comes to nothing where memory is in pieces.
        in_vain = any(outcome.state is State.PARTIAL for outcome in lab.engine.observed.outcomes.values())
        assert answer.changed == planned.changed or (planned.changed and in_vain)
    assert lab.engine.edits.claims == lab.engine.edits.committed
    assert sum(node.hugetlb for node in lab.kernel.nodes) <= sum(node.memory for node in lab.kernel.nodes) * 75 // 100
    if {outcome.state for outcome in lab.engine.observed.outcomes.values()} <= QUIET:
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def ended(call: Awaitable[Answer]) -> tuple[Answer | None, KerntuneError | None]:
    """Return what a call answers, or the error that it ends with."""
    try:
        return await call, None
    except KerntuneError as error:
        return None, error


def in_all(kernel: SimulatedKernel) -> dict[str, object]:
    """The values, with pools as totals: how a total is spread over nodes that nobody named is nobody's claim."""
    totals = {size: sum(node.pools[size].asked for node in kernel.nodes) for size in kernel.sizes}
    return host_values(kernel) | {"pools": totals}


def now(kernel: SimulatedKernel) -> dict[Target, str | None]:
    return {t: tunable.read(kernel, t).value for tunable in REGISTRY for t in tunable.targets(kernel)}


async def let_go(lab: Lab) -> None:
    for persist in (False, True):
        await lab.unset(*((name, "*") for name in sorted(VALUES)), persist=persist)


@settings(max_examples=often(40))
@given(kernel=hosts(), calls=st.lists(asks, max_size=6))
def test_after_letting_go_the_host_is_as_it_was(kernel: SimulatedKernel, calls: list[Ask]) -> None:
    start = host_values(kernel)

    async def story() -> None:
        async with running(kernel) as lab:
            for ask in calls:
                await do(lab, ask)
            await let_go(lab)
            assert host_values(kernel) == start
            assert lab.claims == []
            assert not lab.store.baselines
            assert lab.engine.observed.outcomes == {}

    asyncio.run(asyncio.wait_for(story(), BOUND))


@settings(max_examples=often(25))
@given(kernel=hosts(), calls=st.lists(asks, min_size=1, max_size=4), more=st.lists(asks, max_size=2))
def test_a_restart_in_between_changes_nothing(kernel: SimulatedKernel, calls: list[Ask], more: list[Ask]) -> None:
    start = host_values(kernel)

    async def story() -> None:
        async with running(kernel) as lab:
            for ask in calls:
                await do(lab, ask)
            states = {outcome.state for outcome in lab.engine.observed.outcomes.values()}
        before = host_values(kernel)
        saved = lab.store.claims.by_id.values()
        async with running(kernel, claims=saved, baselines=lab.store.baselines) as later:
            later.writes()
            await later.engine.reconcile("boot", enforce=True)
            if states <= QUIET:
                assert later.writes() == []
                assert host_values(kernel) == before
            for ask in more:
                await do(later, ask)
            await let_go(later)
            assert host_values(kernel) == start
            assert not later.store.baselines

    asyncio.run(asyncio.wait_for(story(), BOUND))


@settings(max_examples=often(25))
@given(kernel=hosts(), calls=st.lists(asks, min_size=2, max_size=6))
def test_calls_at_the_same_moment_leave_what_is_saved_in_force(kernel: SimulatedKernel, calls: list[Ask]) -> None:
    start = host_values(kernel)

    async def story() -> None:
        async with running(kernel) as lab:
            asked = [
                lab.engine.change(
                    request(*ask.settings, unset=ask.unset, persist=ask.persist, partial=ask.partial), "Set"
                )
                for ask in calls
            ]
            for found in await asyncio.gather(*asked, return_exceptions=True):
                assert not isinstance(found, BaseException) or isinstance(found, KerntuneError)
            assert lab.engine.edits.claims == lab.engine.edits.committed
            assert dict(lab.engine.edits.claims.by_id) == dict(lab.store.claims.by_id)
            if {outcome.state for outcome in lab.engine.observed.outcomes.values()} <= QUIET:
                lab.writes()
                await lab.engine.reconcile("again")
                assert lab.writes() == []
            await let_go(lab)
            assert host_values(kernel) == start
            assert not lab.store.baselines

    asyncio.run(asyncio.wait_for(story(), BOUND))


def test_every_lane_is_asked() -> None:
    names = {tunable.name for tunable in REGISTRY if tunable.lane in Lane}
    assert names == set(VALUES), "a new tunable: say what may be asked of it"


# Pools of three nodes in which programs have pages, on old and new kernels


SEQUENCES = often(100)  # on each kernel
NODES = 3
HOUR = 3600.0
POOL_INSTANCES = ("2M", "2M", "2M/*", *(f"2M/node{number}" for number in range(NODES)))
COUNTS = (0, 0, 3, 10, 40, 64, 100)


def counters(kernel: SimulatedKernel) -> list[tuple[int, int, int]]:
    """What the kernel counts on each node: pages, surplus and free ones."""
    pools = [node.pools[PAGE] for node in kernel.nodes]
    return [(pool.total, pool.surplus, pool.free) for pool in pools]


def a_program(kernel: SimulatedKernel, dice: random.Random) -> None:
    """A program takes pages on a node, or gives some back; or it is promised some, or lets them go."""
    number = dice.randrange(NODES)
    pool = kernel.nodes[number].pools[PAGE]
    if dice.random() < 0.3:
        kernel.reserve(dice.choice((-kernel.reserved.get(PAGE, 0), 4, 15)), PAGE)
    elif dice.random() < 0.6:
        kernel.take(number, dice.choice((1, 5, 20, 50)), PAGE)
    else:
        pool.used -= dice.randint(0, pool.used)


async def a_call(lab: Lab, dice: random.Random) -> None:
    """Somebody sets or withdraws something; a call that cannot be carried out is one that leaves nothing."""
    name, at = ("hugepages-overcommit", "2M") if dice.random() < 0.2 else ("hugepages", dice.choice(POOL_INSTANCES))
    with contextlib.suppress(KerntuneError):
        if dice.random() < 0.3:
            await lab.unset((name, at))
        else:
            await lab.set((name, at, dice.choice(COUNTS)), partial=dice.random() < 0.3)


async def story(dice: random.Random, *, counts_foreign_surplus: bool) -> None:
    nodes, clock = [Node(16 * GIB, programs=GIB) for _ in range(NODES)], Clock()
    kernel = SimulatedKernel(nodes, sizes=(PAGE,), counts_foreign_surplus=counts_foreign_surplus)
    have_pages(kernel, *(dice.choice((0, 0, 7, 30)) for _ in range(NODES)))
    kernel.borrow[PAGE] = dice.choice((0, 0, 25))
    own, lent = counters(kernel), kernel.borrow[PAGE]
    async with running(kernel, clock=clock) as lab:
        for _ in range(10):
            if dice.random() < 0.5:
                a_program(kernel, dice)
            else:
                await a_call(lab, dice)
                # What is surplus is in use or promised, so the kernel frees it when it is given back.
                kept = sum(max(0, surplus - (total - free)) for total, surplus, free in counters(kernel))
                assert kept <= kernel.reserved.get(PAGE, 0)
        await lab.unset(("hugepages", "*"), ("hugepages-overcommit", "*"))
        numbers = list(range(NODES))
        dice.shuffle(numbers)
        for number in numbers:
            kernel.nodes[number].pools[PAGE].used = 0
            if dice.random() < 0.5:
                await lab.engine.reconcile("timer")
        kernel.reserve(-kernel.reserved.get(PAGE, 0), PAGE)
        for _ in range(3):
            clock.now += HOUR
            await lab.engine.reconcile("timer")
        assert (counters(kernel), kernel.borrow[PAGE]) == (own, lent)
        assert (lab.claims, dict(lab.store.baselines), lab.engine.observed.outcomes) == ([], {}, {})


@pytest.mark.parametrize("counts_foreign_surplus", [True, False], ids=["up to 6.13", "since 6.14"])
def test_the_host_gets_its_pools_back(counts_foreign_surplus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerntune.engine.passes.LATE", ())  # this kernel obeys at once
    for seed in range(SEQUENCES):
        playing = story(random.Random(seed), counts_foreign_surplus=counts_foreign_surplus)
        try:
            asyncio.run(asyncio.wait_for(playing, BOUND))
        except AssertionError as error:
            raise AssertionError(f"sequence {seed}: {error}") from error


# Clients with holds, and daemons that are killed: the host is simulated, the state is on disk. A daemon dies at any of
# its writes, to the kernel or to its state: from there on nothing that it does reaches either. The next one starts with
# what is left.


OWN_PAGES = (12, 34)  # pages that the host has by itself
SPEED = ("powersave", "schedutil", "performance")
LIVES = often(100)
NEVER = 10_000  # writes

Settings = tuple[tuple[str, str, str], ...]


class Life:
    """Counts what a daemon writes, and drops what it writes after its death."""

    def __init__(self, left: int = NEVER) -> None:
        self.left = left

    @property
    def is_over(self) -> bool:
        return self.left <= 0

    def spend(self) -> bool:
        """Whether one more write is done."""
        self.left -= 1
        return self.left >= 0


class Mortal:
    """A kernel as one daemon has it."""

    def __init__(self, kernel: SimulatedKernel, life: Life) -> None:
        self._kernel, self._life = kernel, life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def write(self, path: str, text: str) -> None:
        if self._life.spend():
            self._kernel.write(path, text)


class Disk:
    """Its state, likewise; what the daemon believes it has saved goes with it."""

    def __init__(self, state: Store, life: Life) -> None:
        self._state, self._life, self._believed = state, life, MemoryStore(state.claims, state.baselines)

    @property
    def claims(self) -> Claims:
        return self._believed.claims

    @property
    def baselines(self) -> Mapping[Target, str]:
        return self._believed.baselines

    @property
    def reserved(self) -> Collection[Target]:
        return ()

    def save_baselines(self, baselines: Sequence[Baseline]) -> None:
        self._do("save_baselines", baselines)

    def drop_baselines(self, targets: Collection[Target]) -> None:
        self._do("drop_baselines", targets)

    def commit(self, claims: Claims) -> None:
        self._do("commit", claims)

    def _do(self, what: str, *args: Any) -> None:
        if self._life.spend():
            getattr(self._state, what)(*args)
        getattr(self._believed, what)(*args)


@dataclass(frozen=True, slots=True)
class Step:
    """One event: `what` a client (or somebody with `set`) does, and after how many writes the daemon is killed."""

    what: str
    client: str
    settings: Settings
    writes: int
    client_too: bool


pages_of = st.tuples(
    st.just("hugepages"),
    st.sampled_from(["2M", "2M", "2M/node0", "2M/node1"]),
    st.sampled_from(["1", "20", "300", "9000"]),
)
governor = st.tuples(st.just("cpu-governor"), st.just("*"), st.sampled_from(SPEED))
scheduler = st.tuples(st.just("io-scheduler"), st.sampled_from(["*", "sda"]), st.sampled_from(["none", "bfq"]))
wanted = st.lists(st.one_of(pages_of, pages_of, governor, scheduler), min_size=1, max_size=3, unique_by=lambda s: s[:2])
steps = st.builds(
    Step,
    st.sampled_from(["hold", "hold", "hold", "release", "leave", "leave", "set", "unset", "bus"]),
    st.sampled_from([":1.1", ":1.2", ":1.3"]),
    wanted.map(tuple),
    st.sampled_from([NEVER, NEVER, NEVER, 0, 1, 2, 3, 4, 5, 8]),
    st.booleans(),
)


def host() -> SimulatedKernel:
    kernel = large_host()
    have_pages(kernel, *OWN_PAGES)
    kernel.policies = {"policy0": Policy((0, 1), "powersave"), "policy2": Policy((2, 3), "schedutil")}
    return kernel


@dataclass
class Story:
    """A host over the lives of several daemons, and the clients that are on the bus."""

    kernel: SimulatedKernel
    folder: Path
    bus: int = 0
    gone: set[tuple[str, int]] = field(default_factory=set)  # clients that have left, and their bus

    @contextlib.asynccontextmanager
    async def daemon(self, life: Life) -> AsyncIterator[Lab]:
        """A daemon from its start, where it drops what has no client any more; it has made the boot pass."""
        store = Disk(Store(self.folder, self.folder, boot_id="boot"), life)
        engine = Reconciler(Mortal(self.kernel, life), REGISTRY, store)
        working = asyncio.create_task(engine.work())
        try:
            held = engine.edits.committed.holds.values()
            await engine.edits.drop_holds([hold.number for hold in held if self.has_left(hold)])
            await engine.observed.read_all()
            await engine.reconcile("boot", enforce=True)
            yield Lab(self.kernel, store, engine)  # type: ignore[arg-type]  # nothing of a MemoryStore is asked
        finally:
            working.cancel()
            await asyncio.wait([working])
            engine.threads.close()

    def has_left(self, hold: Hold) -> bool:
        return hold.bus != str(self.bus) or (hold.client, self.bus) in self.gone

    async def happens(self, lab: Lab, step: Step, life: Life) -> None:
        """One event, and what the daemon does of it while it lives."""
        engine = lab.engine
        life.left = step.writes
        with contextlib.suppress(KerntuneError):
            match step.what:
                case "hold":
                    hold = Hold(engine.edits.number_for_a_hold(), "job", "", 1000, step.client, str(self.bus))
                    await engine.change(request(*step.settings, hold=hold), "Hold")
                    assert life.is_over or hold.number in engine.edits.committed.holds
                case "set":
                    await engine.change(request(*step.settings), "Set")
                case "unset":
                    await engine.change(request(*step.settings, unset=True), "Unset")
                case "release":
                    numbers = [
                        hold.number for hold in engine.edits.committed.holds.values() if hold.client == step.client
                    ]
                    await engine.release(numbers[:1], "Release")
                case "leave":
                    await self.leaves(lab, step.client)
                case "bus":
                    # The daemon is lost with it.
                    life.left = 0
                    self.bus += 1
                    self.gone.clear()
        if life.is_over and step.client_too:
            self.gone.add((step.client, self.bus))

    async def leaves(self, lab: Lab, client: str) -> None:
        """A client leaves, and comes back under the same name only on another bus."""
        numbers = [hold.number for hold in lab.engine.edits.committed.holds.values() if hold.client == client]
        await lab.engine.release(numbers, "client gone", is_fact=True)


def check(kernel: SimulatedKernel, in_force: Claims, own: Mapping[str, Any]) -> None:
    """The values are those of the claims, by a model that knows nothing of the engine."""
    claims = sorted(in_force.by_id.values(), key=lambda claim: (claim.origin, claim.seq))
    assert {claim.hold for claim in claims if claim.origin is Origin.HOLD} == in_force.holds.keys()

    def by(tunable: str, *instances: str, held: bool) -> list[str]:
        return [
            claim.value
            for claim in claims
            if claim.tunable == tunable and claim.instances in instances and (claim.origin is Origin.HOLD) is held
        ]

    claimed = [by("hugepages", f"2M/node{n}", held=False) for n in (0, 1)]
    whole = by("hugepages", "2M", held=False)
    held_whole = sum(map(int, by("hugepages", "2M", held=True)))
    held_nodes = [sum(map(int, by("hugepages", f"2M/node{n}", held=True))) for n in (0, 1)]
    base = sum(int(claims[-1]) for claims in claimed if claims)
    if not whole:
        base += sum(own for own, claims in zip(OWN_PAGES, claimed, strict=True) if not claims)
    elif not all(claimed):
        base = max(base, int(whole[-1]))
    now = pages(kernel)
    assert sum(now) == base + held_whole + sum(held_nodes), (now, claims)
    for has, claims_here, held_here, own_pages in zip(now, claimed, held_nodes, OWN_PAGES, strict=True):
        least = int(claims_here[-1]) if claims_here else 0 if whole else own_pages
        # How what is held of the whole is spread is the kernel's to say.
        is_shared = held_whole or (whole and not claims_here)
        if not is_shared:
            assert has == least + held_here
        elif claims_here or held_here:
            assert has >= least + held_here
    for name, policy in kernel.policies.items():
        held = sorted(by("cpu-governor", "*", held=True), key=SPEED.index)
        expected = (held or by("cpu-governor", "*", held=False) or [own["governors"][name]])[-1]
        assert policy.governor == expected
    for name, disk in kernel.disks.items():
        patterns = ("*", "sda") if name == "sda" else ("*",)
        held = by("io-scheduler", *patterns, held=True)
        assert disk.scheduler == (held or by("io-scheduler", *patterns, held=False) or [own["schedulers"][name]])[-1]


async def nobody_else_is_blamed(lab: Lab) -> None:
    """A pass that looks for drift finds none: nobody but the daemon has written."""
    lab.writes()
    await lab.engine.reconcile("drift")
    assert lab.writes() == []
    assert Reason.CHANGED_BY_OTHERS not in lab.engine.observed.troubles
    assert Reason.CHANGED_BY_OTHERS not in {outcome.reason for outcome in await lab.engine.verify()}


SEEN: Counter[str] = Counter()


@settings(max_examples=LIVES, deadline=None)
@given(st.lists(steps, min_size=1, max_size=12))
def test_after_the_dust_the_values_are_what_the_claims_say(script: list[Step]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        asyncio.run(play(script, Path(name)))


def test_these_sequences_were_worth_it() -> None:
    if not SEEN or often(100) < 100:
        return  # run by itself, or for a part
    sys.stdout.write(f"{SEEN}\n")
    assert min(SEEN[what] for what in ("hold", "hold, killed", "leave", "leave, killed", "bus, killed", "set")) > 5


async def play(script: Sequence[Step], folder: Path) -> None:
    kernel = host()
    own = host_values(kernel)
    story = Story(kernel, folder)
    left = list(script)
    async with asyncio.timeout(BOUND):
        while left:
            life = Life()
            async with story.daemon(life) as lab:
                check(kernel, lab.engine.edits.committed, own)
                while left and not life.is_over:
                    step = left.pop(0)
                    await story.happens(lab, step, life)
                    SEEN[f"{step.what}{', killed' if life.is_over else ''}"] += 1
                    if not life.is_over:
                        life.left = NEVER
                        check(kernel, lab.engine.edits.committed, own)
                        await nobody_else_is_blamed(lab)
        story.bus += 1
        async with story.daemon(Life()) as lab:
            assert not lab.engine.edits.committed.holds
            check(kernel, lab.engine.edits.committed, own)
            await lab.unset(*((name, "*") for name in ("hugepages", "cpu-governor", "io-scheduler")))
            assert host_values(kernel) == own
