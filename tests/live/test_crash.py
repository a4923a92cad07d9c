"""SIGKILL at random moments under changing claims: what was answered is in force, what was not is whole or undone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.names import MANAGER
from kerntune.errors import Unreachable
from tests.harness import host
from tests.harness.daemon import READY, Daemon
from tests.live.book import Book, Key, Operation
from tests.live.ground import Ground, host_ground, make_tree, tree_ground
from tests.live.users import LIMIT, PERSIST, RUNTIME, Reply, User

KILLS_ON_THE_HOST: Final = 10
LATEST: Final = 0.15  # seconds after the first call
LATEST_ON_THE_HOST: Final = 0.4  # a real drive takes its time
WHILE_STARTING: Final = 0.4  # seconds after the start: before READY, as a rule
# Every so manieth restart is killed too.
UNLUCKY: Final = 5


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_crashes_of_a_tree(
    daemon_with: Callable[..., Daemon], own_root: User, chance: random.Random, tmp_path: Path, kills: int
) -> None:
    ground = tree_ground(make_tree(tmp_path / "tree"))
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
    ready(daemon)
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
        ready(daemon)
        book = what_is_there(user.describe(), book, unanswered)
        in_force(ground, book, own)
    assert "Traceback" not in daemon.journal()
    assert answered > kills, "the calls got nowhere"
    assert lost >= kills
    user.release()
    assert ground.values() == own
    assert daemon.terminate() == 0


def ready(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_for(READY)


def crash_at_start(daemon: Daemon, chance: random.Random) -> None:
    """A start that is cut short."""
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
    """The claims after the restart: those answered, with each other operation wholly in or wholly out."""
    there = {claim["id"]: claim["value"] for claim in document["claims"]}
    found = [possible for possible in book.possible(unanswered) if possible.ids() == there]
    assert found, f"claims are {there}; answered were {book.ids()}, and not answered {unanswered}"
    return found[0]


def in_force(ground: Ground, book: Book, own: Mapping[Key, str]) -> None:
    """The files hold what the claims say, and where there is no claim the host's own value."""
    for target, value in ground.values().items():
        desired = book.desired(target)
        if desired is None:
            assert value == own[target], f"{target} has no claim, and is not put back: {book.ids()}"
        else:
            assert value == desired or value.startswith(f"{desired}:"), f"{target} is not {desired}: {book.ids()}"
