"""SIGKILL at random moments under changing claims: what was answered is in force, what was not is whole or undone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.names import MANAGER
from kerntune.errors import Unreachable
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.users import LIMIT, PERSIST, RUNTIME, Reply, User

KILLS_ON_THE_HOST: Final = 10
LATEST: Final = 0.15  # seconds after the first call
LATEST_ON_THE_HOST: Final = 0.4  # a real drive takes its time
WHILE_STARTING: Final = 0.4  # seconds after the start: before READY, as a rule
# Every so manieth restart is killed too.
UNLUCKY: Final = 5


# What the claims must be by what was answered, worked out without the daemon's code


Key = tuple[str, str]
"""A tunable and an instance."""

ORIGINS = ("runtime", "persistent")  # the stronger first


@dataclass(frozen=True, slots=True)
class Operation:
    """A Set or an Unset: (tunable, instances, value) each."""

    rows: tuple[tuple[str, str, str], ...]
    unset: bool
    persist: bool

    @property
    def origin(self) -> str:
        return "persistent" if self.persist else "runtime"


@dataclass(frozen=True, slots=True)
class Book:
    """The claims of a host with these targets, in the order in which they were made."""

    targets: tuple[Key, ...]
    claims: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    def after(self, operation: Operation) -> Book:
        claims = dict(self.claims)
        for tunable, instances, value in operation.rows:
            if operation.unset:
                for claim in [claim for claim in claims if claim[:2] == (operation.origin, tunable)]:
                    if instances in ("*", claim[2]):
                        del claims[claim]
                continue
            if operation.persist:
                for claim in [claim for claim in claims if claim[:2] == ("runtime", tunable)]:
                    if claim[2] == instances or self.covered(tunable, claim[2]) & self.covered(tunable, instances):
                        del claims[claim]
            claims.pop((operation.origin, tunable, instances), None)
            claims[operation.origin, tunable, instances] = value
        return Book(self.targets, claims)

    def possible(self, unanswered: Sequence[Operation]) -> Iterator[Book]:
        """Yield this book with each of the operations wholly in or wholly out; they touch different tunables."""
        for number in range(len(unanswered) + 1):
            for done in combinations(unanswered, number):
                book = self
                for operation in done:
                    book = book.after(operation)
                yield book

    def covered(self, tunable: str, instances: str) -> set[Key]:
        return {(name, it) for name, it in self.targets if name == tunable and fnmatchcase(it, instances)}

    def desired(self, target: Key) -> str | None:
        """Return the value of the strongest and newest claim on the target."""
        for origin in ORIGINS:
            for (of, tunable, instances), value in reversed(list(self.claims.items())):
                if of == origin and target in self.covered(tunable, instances):
                    return value
        return None

    def ids(self) -> dict[str, str]:
        """Return the claims as the daemon describes them."""
        return {
            f"{origin}:{tunable}" + (f"@{instances}" if instances else ""): value
            for (origin, tunable, instances), value in self.claims.items()
        }


# What may be asked of a host


@dataclass(frozen=True, slots=True)
class Ground:
    """A host below `root`: its disks, and the values that operations choose from."""

    root: Path
    disks: Sequence[str]
    patterns: Sequence[str]
    schedulers: Sequence[str]
    pool: str
    most_pages: int

    @property
    def targets(self) -> list[Key]:
        return [("hugepages", self.pool), ("overcommit", ""), *(("io-scheduler", disk) for disk in self.disks)]

    def values(self) -> dict[Key, str]:
        """Return what every target holds, in its tunable's words."""
        return {target: self._value(target) for target in self.targets}

    def _value(self, target: Key) -> str:
        tunable, instance = target
        if tunable == "io-scheduler":
            return host.scheduler(instance, self.root)
        if tunable == "overcommit":
            mode, ratio = host.overcommit(self.root)
            return f"{mode}:{ratio}"
        return str(host.pages(root=self.root))

    def operations(self, chance: random.Random) -> list[Operation]:
        """Return some that may run at the same time: one on all tunables, or one on each."""
        tunables = ["io-scheduler", "hugepages", "overcommit"]
        if chance.random() < 0.4:
            return [self._operation(chance, chance.sample(tunables, chance.randint(2, 3)))]
        return [self._operation(chance, [tunable]) for tunable in tunables]

    def _operation(self, chance: random.Random, tunables: Sequence[str]) -> Operation:
        unset, persist = chance.random() < 0.35, chance.random() < 0.4
        rows = []
        for tunable in tunables:
            every = unset and chance.random() < 0.5
            where = {"io-scheduler": chance.choice(self.patterns), "hugepages": self.pool, "overcommit": ""}[tunable]
            value = {
                "io-scheduler": chance.choice(self.schedulers),
                "hugepages": str(chance.randint(0, self.most_pages)),
                "overcommit": chance.choice(["heuristic", "always:95", "always:70", "always:85"]),
            }[tunable]
            rows.append((tunable, "*" if every else where, value))
        return Operation(tuple(rows), unset=unset, persist=persist)

    def book(self) -> Book:
        return Book(tuple(self.targets))


def tree_ground(root: Path) -> Ground:
    disks = tuple(host.DISKS)
    return Ground(
        root, disks, (*disks, "nvme*", "*", "later*"), ("mq-deadline", "kyber", "bfq"), pool="2M", most_pages=4096
    )


def host_ground(loops: Sequence[str]) -> Ground:
    """Return this machine: loop devices and a few pages."""
    disks = tuple(loops[:3])
    patterns = (*disks, "loop[0-1]", "loop[0-2]", "later*")
    return Ground(host.HOST, disks, patterns, ("none", "mq-deadline"), pool=host.pool(), most_pages=32)


# Crashes


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_crashes_of_a_tree(
    daemon_with: Callable[..., Daemon], own_root: User, chance: random.Random, tmp_path: Path, kills: int
) -> None:
    ground = tree_ground(host.make_tree(tmp_path / "tree"))
    before = host.snapshot(ground.root)
    daemon = daemon_with("--root", str(ground.root))
    crash(ground, daemon, own_root, chance, kills=kills, latest=LATEST)
    assert host.snapshot(ground.root) == before


@pytest.mark.timeout(120)
def test_10_crashes_of_the_host(
    daemon_with: Callable[..., Daemon],
    own_root: User,
    chance: random.Random,
    loops: Sequence[str],
    kernel_as_found: Mapping[str, str],
) -> None:
    try:
        daemon = daemon_with()
        crash(host_ground(loops), daemon, own_root, chance, kills=KILLS_ON_THE_HOST, latest=LATEST_ON_THE_HOST)
        assert host.snapshot() == kernel_as_found
    finally:
        host.restore(kernel_as_found)


def crash(ground: Ground, daemon: Daemon, user: User, chance: random.Random, *, kills: int, latest: float) -> None:
    """Kill it so often, look at what there is after each restart, and let everything go at the end."""
    own = ground.values()
    book, lost, answered = ground.book(), 0, 0
    daemon.started()
    for number in range(kills):
        unanswered: list[Operation] = []
        killer = threading.Timer(chance.uniform(0, latest), daemon.process.kill)
        killer.start()
        while not unanswered:
            operations = ground.operations(chance)
            for operation, reply in zip(operations, replies(user, operations), strict=True):
                if reply.error:
                    assert reply.error == Unreachable.dbus_name, f"{operation}: {reply}"
                    unanswered.append(operation)
                else:
                    book, answered = book.after(operation), answered + 1
        killer.join(LIMIT)
        daemon.wait()
        lost += len(unanswered)
        if number % UNLUCKY == 0:
            crash_at_start(daemon, chance)
        daemon.started()
        book = what_is_there(user.describe(), book, unanswered)
        in_force(ground, book, own)
    assert "Traceback" not in daemon.journal()
    assert answered, "the calls got nowhere"
    assert lost >= kills
    user.release()
    assert ground.values() == own
    assert daemon.terminate() == 0


def crash_at_start(daemon: Daemon, chance: random.Random) -> None:
    """Cut a start short."""
    daemon.start()
    killer = threading.Timer(chance.uniform(0.1, WHILE_STARTING), daemon.process.kill)
    killer.start()
    daemon.wait()
    killer.join(LIMIT)


def replies(user: User, operations: Sequence[Operation]) -> list[Reply]:
    """Send them side by side, and wait for all."""
    waiting = []
    for client, operation in enumerate(operations):
        member, signature = ("Unset", "a(ss)a{sv}") if operation.unset else ("Set", "a(sss)a{sv}")
        rows = [list(row[: 2 if operation.unset else 3]) for row in operation.rows]
        options = dict(PERSIST if operation.persist else RUNTIME)
        waiting.append(user.send(MANAGER, member, signature, rows, options, client=client))
    return [reply.result(LIMIT) for reply in waiting]


def what_is_there(document: Mapping[str, Any], book: Book, unanswered: Sequence[Operation]) -> Book:
    """Return the claims after the restart: those answered, with each other operation wholly in or wholly out."""
    there = {claim["id"]: claim["value"] for claim in document["claims"]}
    found = [possible for possible in book.possible(unanswered) if possible.ids() == there]
    assert found, f"claims are {there}; answered were {book.ids()}, and not answered {unanswered}"
    return found[0]


def in_force(ground: Ground, book: Book, own: Mapping[Key, str]) -> None:
    """Check that files hold what the claims say, and where there is no claim the host's own value."""
    for target, value in ground.values().items():
        desired = book.desired(target)
        if desired is None:
            assert value == own[target], f"{target} has no claim, and is not put back: {book.ids()}"
        else:
            assert value == desired or value.startswith(f"{desired}:"), f"{target} is not {desired}: {book.ids()}"
