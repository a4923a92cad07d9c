"""Whatever clients hold and whoever is killed: after the dust the host's values are what the remaining claims say.

The host is simulated, the state is on disk. A daemon dies at any of its writes, to the kernel or to its state: from
there on nothing that it does reaches either. The next one starts with what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kerntune.engine.claims import Claims
from kerntune.engine.reconciler import Reconciler
from kerntune.errors import KerntuneError
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Baseline, Hold, Origin, Reason, Target
from kerntune.store import Store
from kerntune.tunables import REGISTRY
from tests.harness import often
from tests.unit.lab import BOUND, Lab, MemoryStore, have_pages, host_values, large_host, pages, request

NODES = (12, 34)  # pages that the host has by itself
SPEED = ("powersave", "schedutil", "performance")
SEQUENCES = often(100)
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
    have_pages(kernel, *NODES)
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
        base += sum(own for own, claims in zip(NODES, claimed, strict=True) if not claims)
    elif not all(claimed):
        base = max(base, int(whole[-1]))
    now = pages(kernel)
    assert sum(now) == base + held_whole + sum(held_nodes), (now, claims)
    for has, claims_here, held_here, own_pages in zip(now, claimed, held_nodes, NODES, strict=True):
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


@settings(max_examples=SEQUENCES, deadline=None)
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
