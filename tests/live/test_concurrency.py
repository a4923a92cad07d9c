"""Many callers at once who contradict each other, and an authority that does not answer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.api.authorization import ANSWER
from kerntune.api.names import HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY
from kerntune.errors import NotAuthorized, Overridden
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.harness.polkitd import MEMBER, Polkitd, accounts
from tests.harness.privatebus import PrivateBus, package_bus
from tests.live.conftest import LOOPS
from tests.live.users import LIMIT, PERSIST, RUNTIME, Heard, Reply, User

CLIENTS: Final = 20
CALLS: Final = 200
SWIFT: Final = 1.0  # seconds
STUCK: Final = 15.0  # seconds, RUNAWAY_KILLER_TIMEOUT in polkitd's sources
BOUNDED: Final = ANSWER + 3  # seconds in which a caller is told that polkit does not answer

Call = tuple[Any, ...]
Key = tuple[str, str]


def random_call(chance: random.Random, number: int) -> Call:
    """Return one of the calls of the storm; every number of huge pages is asked for once."""
    device = chance.choice([*LOOPS, "loop[0-1]", "loop[0-3]"])
    scheduler = chance.choice(["none", "mq-deadline"])
    mode = chance.choice(["heuristic", "always:95", "always:70", "always:85"])
    options = dict(chance.choice([RUNTIME, RUNTIME, PERSIST]))
    word, _, ratio = mode.partition(":")
    pool = chance.choice([host.pool(), host.pool(), f"{host.pool()}/node0"])
    all_three = [["io-scheduler", device, scheduler], ["hugepages", pool, str(number)], ["overcommit", "", mode]]
    drop = chance.choice([["io-scheduler", device], ["hugepages", pool], ["overcommit", ""], ["io-scheduler", "*"]])
    calls: list[Call] = [
        (IO_SCHEDULER, "SetScheduler", "ssa{sv}", device, scheduler, options),
        (HUGE_PAGES, "SetCount", "tta{sv}", 0, number, options),
        (MEMORY, "SetOvercommit", "sua{sv}", word, int(ratio or 0), options),
        (MANAGER, "Set", "a(sss)a{sv}", chance.sample(all_three, chance.randint(1, 3)), options),
        (MANAGER, "Unset", "a(ss)a{sv}", [drop], options),
    ]
    return chance.choice(calls)


def announced(heard: Sequence[Heard], document: Mapping[str, Any]) -> dict[Key, set[str]]:
    """Return what each target was announced to hold, at one time or another; or holds, when it never changed.

    The pools of one page size share: a claim on one of them moves the others.
    """
    found: defaultdict[Key, set[str]] = defaultdict(set)
    for tunable, instance, _requested, before, actual, *_ in changes(heard):
        found[tunable, family(tunable, instance)] |= {before, actual}
    for row in document["targets"]:
        found[row["tunable"], family(row["tunable"], row["instance"])].add(row["value"] or "")
    return found


def changes(heard: Sequence[Heard]) -> list[list[str]]:
    """Return the outcomes in all signals Changed."""
    return [row for signal in heard if signal.signal == "Changed" for row in signal.args[2]]


def family(tunable: str, instance: str) -> str:
    return instance.partition("/")[0] if tunable == "hugepages" else instance


def is_true(call: Call, reply: Reply, values: Mapping[Key, set[str]]) -> None:
    """Check that a reply says what was read back, and does not claim more."""
    member = call[1]
    if reply.error:
        assert reply.error == Overridden.dbus_name, f"{call}: {reply}"
        assert member.startswith("Set"), call
        assert member != "Set", "there being overridden is an outcome"
        return
    if member == "SetCount":
        assert reply.value == [call[4]], f"{call}: {reply}"
        return
    rows = reply.value[-1]
    if member.startswith("Set"):
        assert rows, f"{call}: {reply}"
    for tunable, instance, requested, _before, actual, state, reason, _detail in rows:
        assert actual in values[tunable, family(tunable, instance)] or several_nodes(), f"{call}: {reply}"
        if member == "Unset":
            continue
        assert (state, reason) in (("satisfied", "ok"), ("overridden", "overridden")), f"{call}: {reply}"
        if state == "satisfied":
            assert actual == requested or actual.startswith(f"{requested}:"), f"{call}: {reply}"


def in_force(document: Mapping[str, Any]) -> dict[Key, str]:
    """Return what the claims say, worked out anew: the value of the strongest and newest that covers a target."""
    ranks = {"persistent": 30, "runtime": 40}
    desired_states = {}
    for claim in sorted(document["claims"], key=lambda claim: (ranks[claim["origin"]], claim["seq"])):
        for instance in claim["matches"]:
            desired_states[claim["tunable"], instance] = claim["value"]
    return desired_states


def test_200_calls_that_contradict_each_other(
    daemon: Daemon, member: User, other: User, loops: Sequence[str], chance: random.Random
) -> None:
    ear = other.listen()
    calls = [random_call(chance, number) for number in range(1, CALLS + 1)]
    waiting = [member.send(*call, client=number % CLIENTS) for number, call in enumerate(calls)]
    replies = [reply.result(LIMIT) for reply in waiting]
    assert len(replies) == CALLS

    document = other.describe()
    heard = other.heard(ear, lambda so_far: any(h.args[0] == document["generation"] for h in so_far))
    values = announced(heard, document)
    for call, reply in zip(calls, replies, strict=True):
        is_true(call, reply, values)

    # The passes were fewer than the calls: those that came meanwhile shared one.
    assert len([h for h in heard if h.signal == "Changed"]) < CALLS
    assert any(not reply.error for reply in replies)
    kernel_is_as_claimed(in_force(document))
    assert [row for row in member.call(MANAGER, "Verify")[0] if row[5] != "overridden"] == []


def several_nodes() -> bool:
    """Return True if a pool of huge pages is spread, in ways that are not foreseen here."""
    return Path("/sys/devices/system/node/node1").exists()


def kernel_is_as_claimed(desired_states: Mapping[Key, str]) -> None:
    """Look into the files. A claim on node0 beats one on the whole where node0 is all there is."""
    for device in LOOPS:
        assert host.scheduler(device) == desired_states.get(("io-scheduler", device), "none")
    whole, node = (desired_states.get(("hugepages", f"{host.pool()}{part}")) for part in ("", "/node0"))
    if node is not None:
        assert host.pages(node=0) == int(node)
    expected = max(int(whole or 0), int(node or 0)) if several_nodes() else int(node or whole or 0)
    assert host.pages() == expected
    mode, ratio = host.overcommit()
    word, _, percent = desired_states.get(("overcommit", ""), "heuristic").partition(":")
    assert mode == word
    assert not percent or ratio == int(percent)


def test_the_same_call_from_everybody_is_one_change(daemon: Daemon, member: User, other: User) -> None:
    """200 callers who agree: all are told so, the kernel is written once."""
    ear = other.listen()
    waiting = [member.send(HUGE_PAGES, "SetCount", "tta{sv}", 0, 24, {}, client=n % CLIENTS) for n in range(CALLS)]
    assert [reply.result(LIMIT).get() for reply in waiting] == [[24]] * CALLS
    document = other.describe()
    heard = other.heard(ear, lambda so_far: any(h.args[0] == document["generation"] for h in so_far))
    written = [row for row in changes(heard) if row[3] != row[4]]
    assert [(row[1], row[3], row[4]) for row in written] == [(host.pool(), "0", "24")]
    assert len(document["claims"]) == 1


# An authority that does not answer


@pytest.fixture
def silence(polkitd: Polkitd, daemon: Daemon, member: User) -> Iterator[None]:
    """Have polkitd keep its name and answer nothing."""
    member.set_scheduler("loop3", "mq-deadline")
    polkitd.stop()
    try:
        yield
    finally:
        polkitd.cont()


def swift(reply: Future[Reply]) -> Any:
    """Return the value of a call that nobody may hold up."""
    found = reply.result(LIMIT)
    assert found.seconds < SWIFT, found
    return found.get()


def test_a_silent_polkit_holds_up_only_who_needs_it(
    silence: None, member: User, other: User, root: User, loops: Sequence[str]
) -> None:
    before = host.snapshot()
    waiting = [
        user.send(IO_SCHEDULER, "SetScheduler", "ssa{sv}", "loop0", "mq-deadline", {}, client=number)
        for user in (member, other)
        for number in range(3)
    ]
    for user in (member, other, root):
        for client in (0, 9):
            swift(user.send(MANAGER, "Describe", client=client))
            swift(user.send(MANAGER, "Verify", client=client))
            get = "org.freedesktop.DBus.Properties", "Get", "ss"
            swift(user.send(*get, HUGE_PAGES, "Pools", client=client))
            swift(user.send(MANAGER, "Plan", "a(sss)a{sv}", [["overcommit", "", "always"]], {}, client=client))
    swift(root.send(HUGE_PAGES, "SetCount", "tta{sv}", 0, 8, {}))
    swift(root.send(MANAGER, "Set", "a(sss)a{sv}", [["io-scheduler", "loop1", "mq-deadline"]], {}))
    assert (host.pages(), host.scheduler("loop1"), host.scheduler("loop0")) == (8, "mq-deadline", "none")
    assert not any(reply.done() for reply in waiting), "the members still wait"

    for reply in waiting:
        refused = reply.result(BOUNDED)
        assert refused.error == NotAuthorized.dbus_name, refused
        assert "polkit did not say" in refused.message
        assert refused.seconds < BOUNDED
    assert host.scheduler("loop0") == before["sys/block/loop0/queue/scheduler"]
    assert "runtime:io-scheduler@loop0" not in root.claims()


def test_a_member_may_although_polkit_was_stuck(daemon: Daemon, polkitd: Polkitd, member: User) -> None:
    """polkitd can be stuck for STUCK seconds, and then says yes."""
    polkitd.stop()
    try:
        waiting = member.send(MEMORY, "SetOvercommit", "sua{sv}", "always", 0, {})
        swift(member.send(MANAGER, "Describe", client=1))
        with pytest.raises(TimeoutError):
            waiting.result(STUCK)
    finally:
        polkitd.cont()
    waiting.result(LIMIT).get()
    assert host.overcommit()[0] == "always"
    swift(member.send(MEMORY, "SetOvercommit", "sua{sv}", "heuristic", 0, {}))


@pytest.fixture
def bus_without_polkit(machine: None) -> Iterator[PrivateBus]:
    with accounts(), package_bus() as alone:
        yield alone


def test_without_polkit_root_alone_may_change_anything(bus_without_polkit: PrivateBus, public: Path) -> None:
    bus = bus_without_polkit
    before = host.snapshot()
    with Daemon(bus), User("root", bus, public) as root, User(MEMBER, bus, public) as member:
        swift(root.send(HUGE_PAGES, "SetCount", "tta{sv}", 0, 8, {}))
        assert host.pages() == 8
        refused = member.reply(HUGE_PAGES, "SetCount", "tta{sv}", 0, 16, {})
        assert refused.error == NotAuthorized.dbus_name
        assert "Is polkit running?" in refused.message
        assert refused.seconds < BOUNDED
        assert len(swift(member.send(MANAGER, "Describe"))) == 1
        assert host.pages() == 8
        with Polkitd(bus):
            assert member.set_count(16) == 16
        with pytest.raises(NotAuthorized):
            member.set_count(24)
        assert host.pages() == 16
        root.release()
    assert host.snapshot() == before
