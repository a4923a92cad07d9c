"""`kerntune.hold` for programs, with the daemon on a simulated host: plain, with asyncio, in threads and forks."""

from __future__ import annotations

import asyncio
import enum
import gc
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import kerntune
from kerntune import errors, holding
from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.dbus.client import connect
from tests.api.lab import BOUND
from tests.conftest import needs_root
from tests.harness import CHECKOUT
from tests.harness.daemon import Daemon

pytestmark = needs_root

PAGES = "hugepages@2M=10"
AGAIN = "this hold is entered already"


@pytest.fixture
def daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """Return the daemon; its bus is the system bus for the test too."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", daemon.env["DBUS_SYSTEM_BUS_ADDRESS"])
    return daemon


async def paths() -> list[str]:
    """Return the paths of all holds."""
    async with connect(BUS_NAME) as client:
        found: list[str] = await client.get(ROOT, MANAGER, "Holds")
        return found


def holds() -> list[str]:
    return asyncio.run(paths())


def none_left() -> None:
    """Wait until nobody holds anything."""
    deadline = time.monotonic() + BOUND
    while holds():
        assert time.monotonic() < deadline, "a hold stays"


def run(program: str, daemon: Daemon) -> str:
    """Run a program in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], env=daemon.env | {"PYTHONPATH": str(CHECKOUT / "src")},
        capture_output=True, text=True, timeout=3 * BOUND, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_with_block_holds_until_its_end(daemon: Daemon) -> None:
    mine = kerntune.hold(PAGES)
    with mine as held:
        assert holds() == [held.path]
        assert [outcome.requested for outcome in held.outcomes] == ["+10"]
        assert held.ended(timeout=0) is False
        assert held.ended(timeout=0.01) is False
    assert holds() == []
    with mine as held:
        assert held.number == 2
    assert holds() == []


async def test_an_async_with_block_holds_until_its_end(daemon: Daemon) -> None:
    mine = kerntune.hold(PAGES)
    async with mine as held:
        assert await paths() == [held.path]
    assert await paths() == []
    async with mine as held:
        assert held.number == 2


STRANGER = """\
import asyncio, os, kerntune, kerntune.dbus.client, kerntune.membership
os.setuid(61999)

async def held():
    async with kerntune.hold("hugepages=1"): pass

def plain():
    with kerntune.hold("hugepages=1"): pass

for hold in plain, lambda: asyncio.run(held()):
    try: hold()
    except kerntune.errors.Unreachable as error: print(error)
"""


def test_a_refusal_says_what_this_very_user_can_do(daemon: Daemon) -> None:
    """As the command line does: the bus knows no user with this number."""
    lines = run(STRANGER, daemon).splitlines()
    assert len(lines) == 2
    assert all("The bus may let in no user whom the user database lacks, as uid 61999" in line for line in lines)


def test_a_hold_is_entered_once_at_a_time(daemon: Daemon) -> None:
    mine = kerntune.hold(PAGES)
    with mine as held:
        with pytest.raises(errors.Usage, match=AGAIN), mine:
            pass
        assert holds() == [held.path]
    assert holds() == []
    with mine:
        pass


async def test_one_of_two_tasks_enters(daemon: Daemon) -> None:
    mine, leave = kerntune.hold(PAGES), asyncio.Event()

    async def work() -> int:
        async with mine as held:
            await leave.wait()
            assert await paths() == [held.path]
            return held.number

    tasks = [asyncio.create_task(work()) for _ in range(2)]
    (refused,), _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(errors.Usage, match=AGAIN):
        await refused
    leave.set()
    assert (await asyncio.gather(*tasks, return_exceptions=True)).count(1) == 1


def test_one_of_many_threads_enters(daemon: Daemon) -> None:
    mine, refused, leave = kerntune.hold(PAGES), list[str](), threading.Event()

    def work() -> None:
        try:
            with mine:
                leave.wait(BOUND)
        except errors.Usage as error:
            refused.append(str(error))
        if len(refused) == 3:
            leave.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(BOUND)
        assert not each.is_alive()
    assert len(refused) == 3
    assert holds() == []


def test_a_hold_that_was_refused_may_be_entered_again(daemon: Daemon) -> None:
    too_many = kerntune.hold("hugepages@2M=99999999")
    for _ in range(2):
        with pytest.raises(errors.OverLimit), too_many:
            pass


@pytest.mark.parametrize("form", ["with", "async with"])
def test_a_forked_child_does_not_keep_a_hold(daemon: Daemon, form: str) -> None:
    """The child has copies of all descriptors, and lives on when its parent is killed."""
    plain = f"""
import asyncio, os, signal, time
import kerntune
def fork():
    if os.fork() == 0:
        os.write(ready, b"x")
        os.read(end, 1)
        os._exit(0)
def work():
    with kerntune.hold({PAGES!r}):
        fork()
        time.sleep({BOUND})
async def work_in_a_loop():
    async with kerntune.hold({PAGES!r}):
        fork()
        await asyncio.sleep({BOUND})
wait, ready = os.pipe()
end, go = os.pipe()
parent = os.fork()
if parent == 0:
    os.close(go)
    {"work()" if form == "with" else "asyncio.run(work_in_a_loop())"}
os.read(wait, 1)
os.kill(parent, signal.SIGKILL)
os.waitpid(parent, 0)
async def none():
    from kerntune.api import names
    from kerntune.dbus import client
    async with client.connect(names.BUS_NAME) as bus, asyncio.timeout({BOUND}):
        while await bus.get(names.ROOT, names.MANAGER, "Holds"):
            await asyncio.sleep(0.01)
asyncio.run(none())
print("ended")
"""
    assert run(plain, daemon) == "ended\n"


@pytest.mark.parametrize("form", ["with", "async with"])
def test_a_child_that_leaves_the_block_ends_nothing(daemon: Daemon, form: str) -> None:
    """Nor may it release the hold or wait for its end: it is its parent's."""
    program = f"""
import asyncio, os
import kerntune
def told(work):
    try:
        work()
    except kerntune.KerntuneError as error:
        os.write(1, f"{{error}}\\n".encode())
def child(kid, held):
    if kid == 0:
        told(lambda: run(held.release()))
        told(lambda: run(held.ended()))
    return kid == 0
def run(waiting):
    if waiting is not None and hasattr(waiting, "send"):
        waiting.send(None)
async def count():
    from kerntune.api import names
    from kerntune.dbus import client
    async with client.connect(names.BUS_NAME) as bus:
        print(len(await bus.get(names.ROOT, names.MANAGER, "Holds")), flush=True)
def work():
    with kerntune.hold({PAGES!r}) as held:
        if child(kid := os.fork(), held):
            return True
        os.waitpid(kid, 0)
        asyncio.run(count())
async def work_in_a_loop():
    async with (mine := kerntune.hold({PAGES!r})) as held:
        if child(kid := os.fork(), held):
            try:
                mine.__aexit__(None, None, None).send(None)
            except StopIteration:
                os.write(1, b"left\\n")
            os._exit(0)
        os.waitpid(kid, 0)
        await count()
if {"work()" if form == "with" else "asyncio.run(work_in_a_loop())"}:
    os.write(1, b"left\\n")
    os._exit(0)
asyncio.run(count())
"""
    *refusals, left, during, after = run(program, daemon).splitlines()
    assert len(refusals) == 2
    assert all(line.startswith("this hold is of another process") for line in refusals)
    assert (left, during, after) == ("left", "1", "0")


async def test_a_daemon_that_does_not_come_back_ends_the_wait(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "BACK_SECONDS", 0.1)
    async with kerntune.hold(PAGES) as held:
        ended = asyncio.create_task(held.ended())
        await asyncio.to_thread(daemon.kill)
        async with asyncio.timeout(BOUND):
            with pytest.raises(errors.Unreachable, match="kerntuned has left the bus"):
                await ended


def test_the_holder_learns_that_others_ended_its_hold(daemon: Daemon) -> None:
    with kerntune.hold(PAGES) as held:
        program = f"import asyncio; from tests.api.test_holding import end; asyncio.run(end({held.path!r}))"
        subprocess.run([sys.executable, "-c", program], env=daemon.env, cwd=CHECKOUT, timeout=BOUND, check=True)
        assert held.ended(timeout=BOUND) is True
        assert held.ended(timeout=0) is True
        held.release()
    held.release()
    assert held.ended() is True


async def end(path: str) -> None:
    """Release a hold from another process."""
    async with connect(BUS_NAME) as client:
        await client.call(path, "org.kerntune.Tuner1.Hold", "Release", "a{sv}", {})


def test_a_hold_may_be_released_before_its_block_ends(daemon: Daemon) -> None:
    with kerntune.hold(PAGES) as held:
        held.release()
        assert holds() == []
        assert held.ended() is True


async def test_a_release_after_the_block_does_nothing(daemon: Daemon) -> None:
    async with kerntune.hold(PAGES) as held:
        pass
    await held.release()
    await held.ended()


def test_the_end_of_the_block_ends_the_wait_of_others(daemon: Daemon) -> None:
    told: list[bool] = []
    with kerntune.hold(PAGES) as held:
        waiting = threading.Thread(target=lambda: told.append(held.ended()))
        waiting.start()
        assert held.ended(timeout=0.1) is False
    waiting.join(BOUND)
    assert told == [True]


@pytest.mark.parametrize("form", ["with", "async with"])
def test_an_error_of_the_release_does_not_hide_that_of_the_block(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    async def refuse(held: Any) -> None:
        raise errors.KernelRejected("the pages are in use")

    def work() -> None:
        with kerntune.hold(PAGES):
            raise ZeroDivisionError

    async def work_in_a_loop() -> None:
        async with kerntune.hold(PAGES):
            raise ZeroDivisionError

    monkeypatch.setattr(holding.AsyncHold, "release", refuse)
    with pytest.raises(ZeroDivisionError) as caught:
        work() if form == "with" else asyncio.run(work_in_a_loop())
    assert caught.value.__notes__ == ["the hold was not released in order: the pages are in use"]
    with pytest.raises(errors.KernelRejected), kerntune.hold(PAGES):
        pass
    none_left()


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"ttl": -1}, "ttl is -1"),
        ({"ttl": float("nan")}, "ttl is nan"),
        ({"ttl": float("inf")}, "ttl is inf"),
        ({"ttl": 1e14}, "ttl is 100000000000000.0"),
        ({"ttl": 1e-7}, "ttl is 1e-07"),
        ({"ttl": "2h"}, "ttl is '2h'"),
        ({"ttl": None}, "ttl is None"),
        ({"who": None}, "who is None"),
        ({"why": b"job"}, "why is b'job'"),
        ({"who": "\udcff"}, r"who is '\udcff'"),
        ({"profile": 3}, "profile is 3"),
        ({"settings": (["hugepages=1"],)}, "a setting is ['hugepages=1']"),
        ({"settings": ("hugepages=\udcff",)}, r"a setting is 'hugepages=\udcff'"),
        ({"settings": ()}, "there is nothing to hold"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_at_once(asked: dict[str, Any], what: str) -> None:
    settings = asked.pop("settings", (PAGES,))
    with pytest.raises(errors.Usage) as caught:
        kerntune.hold(*settings, **asked)
    assert caught.value.what == what
    assert caught.value.hint


class Named(enum.StrEnum):
    PROFILE = "ai-inference"


def test_arguments_of_similar_types_are_taken(daemon: Daemon) -> None:
    allow_partial: Any = 1
    with kerntune.hold(PAGES, who="  ", profile=Named.PROFILE, allow_partial=allow_partial, ttl=holding.MAX_TTL):
        program = "import json, kerntune.cli.__main__ as it; it.main(['holds', '--json'])"
        assert '"who": "root (' in run(program, daemon)


async def test_a_cancelled_entry_leaves_nothing(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    """It may be cancelled at any of its steps."""
    for steps in range(0, 60, 2):
        entering = asyncio.create_task(kerntune.hold(PAGES).__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
    await asyncio.to_thread(none_left)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_the_package_lists_its_names() -> None:
    assert {"hold", "Hold", "AsyncHold", "Holding", "KerntuneError", "Outcome"} <= set(dir(kerntune))
    for name in kerntune.__all__:
        assert getattr(kerntune, name)
