"""Every method of the contract with whatever its signature allows: no write that was not permitted, no internal error.

The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones, and more of them. Plans that are as
expensive as can be, on a host with 512 CPUs, keep nobody else waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from kerntune import errors
from kerntune.api import names
from kerntune.api.calls import Calls
from kerntune.api.contract import interface_files
from kerntune.api.describe import Host
from kerntune.api.holds import Holds
from kerntune.config.active import ActiveConfig
from kerntune.daemon.app import publish
from kerntune.daemon.demo import demo_host
from kerntune.dbus import messages
from kerntune.dbus.introspection import load, parse
from kerntune.dbus.messages import Message, MessageFlag, MessageType, Variant
from kerntune.dbus.standard import INTERFACES
from kerntune.engine.reconciler import Reconciler
from kerntune.guard.guard import MemoryGuard
from kerntune.kernel.files import is_writable
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.store import Store
from kerntune.tunables import REGISTRY
from tests.api.alone import Alone
from tests.hostile.conftest import FIGURES, Victim
from tests.hostile.raw import split

FEW: Final = settings(derandomize=True, database=None, deadline=timedelta(seconds=10), max_examples=60)
MANY: Final = settings(database=None, deadline=timedelta(seconds=10), max_examples=400)
HARD: Final = MANY if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else FEW

CONTRACT: Final = {found.name: found for found in parse(INTERFACES)} | load(interface_files())
METHODS: Final = [(interface, member) for interface, found in CONTRACT.items() for member in sorted(found.methods)]
PROPERTIES: Final = sorted({name for found in CONTRACT.values() for name in found.properties})
KNOWN: Final = errors.by_name().keys()

# What each action lets a caller write, as prefixes of paths: kept apart from the tunables' own word for it.
PERMITS: Final[Mapping[str, tuple[str, ...]]] = {
    names.ACTION_SET: ("sys/block/", "sys/devices/system/cpu/"),
    names.ACTION_SET_MEMORY: ("proc/sys/vm/", "sys/kernel/mm/", "sys/devices/system/node/"),
}

# values


TUNABLES: Final = [tunable.name for tunable in REGISTRY]
WORDS: Final = """
* ? [ [!a]* nvme* nvme0n1 nvme[01]n1 sda by-id/* by-id/nvme-Simulated_SSD_0 by-id/.. . .. ../.. ../../etc/passwd
/dev/sda sda/../../sda policy0 policy* policy99 0-3,7 7-0 0-99999999999 -1 2M 2M/* 2M/node0 2M/node1 2M/node7 1G
1G/node0 64K 3M 2M/node-1 2M/../1G 2m 2M/node0/../.. 99999999999999999999G
0 1 16 00016 512 40000 18446744073709551615 99999999999999999999999 1e3 0x10 none mq-deadline bfq kyber NONE performance
powersave schedutil ondemand userspace heuristic always always:95 never never:50 never:1 never:101 never:0 never:4096k
always: :50 never:50:50
"""
SPELLINGS: Final = WORDS.split()
# By the name of the argument: what may well be carried out. Others get anything of their type.
LIKELY: Final[Mapping[str, tuple[Any, ...]]] = {
    "page_size": (0, 2 << 20, 1 << 30),
    "count": (0, 16, 2000, 20_000, 1 << 40),
    "devices": ("*", "nvme*", "sda", "nvme9*", "by-id/*"),
    "scheduler": ("none", "mq-deadline", "kyber"),
    "cpus": ("*", "policy1", "0-3"),
    "governor": ("performance", "schedutil", "powersave"),
    "mode": ("heuristic", "always", "never"),
    "ratio": (0, 50, 95),
    "who": ("", "job"),
    "why": ("", "a test"),
}
OPTIONS: Final = (
    *("persist", "allow-partial", "node", "unset", "profile", "reset", "holds", "baseline"),
    *("ttl-usec", "detached"),
)
ODD: Final = [
    "",
    "\u0663",
    "\u00b2",
    " ",
    "\n",
    "2M\n",
    "sda\nnvme0n1",
    "\u202e\ufeff",
    "é\u0301",
    "\U0001f600",
    "%s%n",
    "'\"\\",
    "x" * 300,
]

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
strings = st.one_of(st.sampled_from([*TUNABLES, *SPELLINGS, *ODD, *CONTRACT, *PROPERTIES]), text)


def whole(bits: int, *, signed: bool = False) -> SearchStrategy[int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    usual = st.sampled_from([n for n in (0, 1, 2, 50, 64, 128, 2 << 20, 1 << 30, 65536, high, low) if low <= n <= high])
    return st.one_of(usual, st.integers(low, high))


PATHS: Final = st.from_regex(r"/|(/[A-Za-z0-9_]{1,8}){1,4}", fullmatch=True)
BASIC: Final[Mapping[str, SearchStrategy[Any]]] = {
    "y": whole(8),
    "b": st.booleans(),
    "n": whole(16, signed=True),
    "q": whole(16),
    "i": whole(32, signed=True),
    "u": whole(32),
    "x": whole(64, signed=True),
    "t": whole(64),
    "d": st.floats(),
    "s": strings,
    "o": PATHS,
    "g": st.sampled_from(["", "s", "a{sv}", "(sss)", "ai"]),
}
VARIANTS: Final = ["b", "b", "u", "t", "s", "i", "y", "d", "o", "g", "as", "v", "a{sv}", "(su)", "a(sss)", "aav"]


@cache
def anything(kind: str) -> SearchStrategy[Any]:
    """Values of one complete D-Bus type, as a handler gets them."""
    if kind in BASIC:
        return BASIC[kind]
    if kind == "v":
        return st.deferred(lambda: st.sampled_from(VARIANTS).flatmap(variant))
    if kind == "a{sv}":
        known = st.dictionaries(st.sampled_from(OPTIONS), anything("v"), max_size=3)
        right = st.dictionaries(st.sampled_from(OPTIONS[:2]), variant("b"), max_size=2)
        return st.one_of(st.just({}), right, known, st.dictionaries(strings, anything("v"), max_size=3))
    if kind == "a(sss)":
        return st.one_of(
            st.lists(sensible(), max_size=3), st.lists(st.one_of(sensible(), anything("(sss)")), max_size=4)
        )
    if kind.startswith("a{"):
        key, value = split(kind[2:-1])
        return st.dictionaries(anything(key), anything(value), max_size=3)
    if kind.startswith("a"):
        return st.lists(anything(kind[1:]), max_size=4)
    return everything(kind[1:-1])


def variant(kind: str) -> SearchStrategy[Variant]:
    return anything(kind).map(lambda value: Variant(kind, value))


def everything(signature: str) -> SearchStrategy[list[Any]]:
    return st.tuples(*map(anything, split(signature))).map(list)


def sensible() -> SearchStrategy[list[str]]:
    """Settings that may well be carried out."""
    return st.sampled_from(
        [
            [tunable, instances, value]
            for tunable, found, wanted in (
                ("hugepages", ("2M", "1G", "2M/node0", "2M/*"), ("0", "16", "2000", "20000", "99999999")),
                ("overcommit", ("",), ("heuristic", "always:95", "never:80", "never:1")),
                ("io-scheduler", ("*", "nvme*", "sda", "nvme9*"), ("none", "mq-deadline", "kyber")),
                ("hugepages-overcommit", ("2M", "1G"), ("0", "16", "99999999")),
                ("cpu-epp", ("*", "policy1"), ("performance", "power", "default")),
                ("thp", ("enabled", "defrag"), ("always", "defer", "never")),
                ("sysctl", ("vm.swappiness", "vm.zone_reclaim_mode"), ("0", "7", "150")),
                ("read-ahead", ("*", "nvme*", "sda"), ("0", "2048", "65537")),
                ("cpu-governor", ("*", "policy1", "0-3"), ("performance", "schedutil", "powersave")),
            )
            for instances in found
            for value in wanted
        ]
    )


class Call(NamedTuple):
    """A call of a method of the contract."""

    interface: str
    member: str
    args: list[Any]
    flags: MessageFlag

    def message(self, serial: int) -> Message:
        return Message(
            names.BUS_NAME,
            names.hold_path(1) if self.interface == names.HOLD else names.ROOT,
            self.interface,
            self.member,
            signature=CONTRACT[self.interface].methods[self.member][0],
            body=self.args,
            flags=self.flags,
            serial=serial,
        )


def calls(interface: str, member: str) -> SearchStrategy[Call]:
    takes, _ = CONTRACT[interface].methods[member]
    likely = [
        st.sampled_from(LIKELY[name]) if name in LIKELY else anything(kind)
        for name, kind in zip(CONTRACT[interface].takes[member], split(takes), strict=True)
    ]
    args = st.one_of(st.tuples(*likely).map(list), everything(takes))
    flags = st.sampled_from([MessageFlag.NONE, MessageFlag.NONE, MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION])
    return st.builds(Call, st.just(interface), st.just(member), args, flags)


# Methods that change something end in options; they are the more interesting half.
CHANGES: Final = [
    (interface, member) for interface, member in METHODS if CONTRACT[interface].methods[member][0].endswith("a{sv}")
]
# Those that most often come to a write are called more often than the others.
SETTERS: Final = [method for method in CHANGES if method[1].startswith("Set") and method[1] != "SetProfile"]
ANY_CALL: Final = st.one_of(*map(st.sampled_from, (SETTERS, CHANGES, METHODS))).flatmap(lambda method: calls(*method))


# in process


class Stage(Alone):
    """The service of the contract on no bus, for callers of one user; polkit permits the actions in `permitted`."""

    def __init__(self, permitted: frozenset[str], uid: int) -> None:
        super().__init__(CONTRACT, uid=uid)
        self.connection.permitted = permitted

    async def serve(self, serial: int, call: Call) -> Message:
        """Return the reply to a call that goes over the wire both ways."""
        message = messages.parse(messages.marshalled(call.message(serial)))
        message.sender = ":1.7"
        self.connection.receive(message)
        await self.connection.rest()
        replies = [found for found in self.connection.sent if found.reply_serial == serial]
        assert len(replies) == 1, self.connection.logged
        return replies[0]


class World(NamedTuple):
    """A stage with everything behind it."""

    stage: Stage
    kernel: SimulatedKernel
    engine: Reconciler


async def play(permitted: frozenset[str], uid: int, script: list[Call], kernel: SimulatedKernel | None = None) -> World:
    """The calls one after another on a fresh host; each is checked by itself."""
    kernel = kernel or demo_host()
    with tempfile.TemporaryDirectory(prefix="kerntune-fuzz-", dir=memory_folder()) as name:
        folders = [Path(name) / part for part in ("run", "state")]
        for folder in folders:
            folder.mkdir()
        state = Store(*folders, boot_id="boot")
        guard = MemoryGuard(kernel, folders[0], lambda *_news: None)
        engine = Reconciler(kernel, REGISTRY, state, companion=guard)
        stage = Stage(permitted, uid)
        working = asyncio.create_task(engine.work())
        try:
            await engine.observed.read_all()
            troubles: set[str] = set()
            config = ActiveConfig(Path(name), folders[0], engine, troubles)
            config.booted()
            host = Host("6.1", "(simulated)", True, 2 << 20)
            holds = Holds(Calls(stage, engine, host, troubles, config, guard=guard))
            engine.observed.listeners.append(lambda _report: holds.sync())
            publish(stage, holds)
            for serial, call in enumerate(script, 1):
                written = len(kernel.journal)
                reply = await stage.serve(serial, call)
                check_reply(call, reply)
                check_writes(stage, [path for path, _ in kernel.journal[written:]])
            return World(stage, kernel, engine)
        finally:
            guard.stop()
            working.cancel()
            await asyncio.wait([working])
            engine.threads.close()


def memory_folder() -> str | None:
    """Where fsync(2) costs nothing, if there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def check_reply(call: Call, reply: Message) -> None:
    """It fits the contract, or it is an error of ours that says what happened."""
    if reply.message_type is MessageType.ERROR:
        assert reply.error_name in KNOWN
        (said,) = reply.body
        assert said
        own = said.replace(repr(call.args), "")
        for quoted in sorted(texts(call.args), key=len, reverse=True):
            own = own.replace(repr(quoted), "")
        assert not re.search(r"internal error|Traceback|\.py\b|site-packages", own), said
    else:
        assert reply.signature == CONTRACT[call.interface].methods[call.member][1]


def texts(value: Any) -> Iterator[str]:
    """The texts of a call, which a message may quote."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value:
            yield from texts(item)


def check_writes(stage: Stage, paths: list[str]) -> None:
    """All on the list of what is tuned, and each of a kind that this caller may change."""
    for path in paths:
        assert is_writable(path), path
        if stage.connection.uid:
            actions = [action for action, prefixes in PERMITS.items() if path.startswith(prefixes)]
            assert len(actions) == 1, path
            assert actions[0] in stage.connection.permitted, path
            assert actions[0] in stage.connection.asked, f"{path} was written, and polkit was not asked"


@contextmanager
def nothing_logged() -> Iterator[None]:
    """An internal error is logged by the dispatcher or a lane's worker."""
    heard: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = heard.append  # type: ignore[method-assign,assignment]  # all it takes
    logging.getLogger("kerntune").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("kerntune").removeHandler(handler)
    assert [record.getMessage() for record in heard] == []


class TestInProcess:
    @pytest.mark.parametrize(("interface", "member"), METHODS, ids=[f"{i.rpartition('.')[2]}.{m}" for i, m in METHODS])
    def test_who_may_not_changes_nothing(self, interface: str, member: str) -> None:
        @HARD
        @given(st.lists(calls(interface, member), min_size=1, max_size=6))
        def run(script: list[Call]) -> None:
            with nothing_logged():
                world = asyncio.run(play(frozenset(), 1000, script))
            assert world.kernel.journal == []
            assert not world.engine.edits.claims.by_id
            assert not world.engine.edits.store.claims.by_id

        run()

    @pytest.mark.parametrize(
        "permitted",
        [{names.ACTION_SET}, {names.ACTION_SET_MEMORY}, set(PERMITS), {*PERMITS, names.ACTION_HOLD}],
        ids=["set", "memory", "both", "and hold"],
    )
    def test_who_may_changes_no_more_than_that(self, permitted: set[str]) -> None:
        writes = 0

        @settings(HARD, max_examples=3 * HARD.max_examples)
        @given(st.lists(ANY_CALL, min_size=1, max_size=8))
        def run(script: list[Call]) -> None:
            nonlocal writes
            with nothing_logged():
                writes += len(asyncio.run(play(frozenset(permitted), 1000, script)).kernel.journal)

        run()
        FIGURES.append(f"fuzz: {writes} writes by a caller who may {', '.join(sorted(permitted))}")
        # Hypothesis takes constants of whatever modules are loaded: the number is another in another order of tests.
        assert writes > 5, "the values are too odd: hardly anything was carried out"

    def test_root(self) -> None:
        @HARD
        @given(st.lists(ANY_CALL, min_size=1, max_size=8))
        def run(script: list[Call]) -> None:
            with nothing_logged():
                world = asyncio.run(play(frozenset(), 0, script))
            assert not world.stage.connection.asked

        run()


class TestOverTheBus:
    def test_as_somebody_who_may_not(self, victim: Victim) -> None:
        """The same over a real bus, from a process of an ordinary user: every call is answered, nothing is changed."""
        frames: list[bytes] = []

        @settings(HARD, max_examples=500)
        @given(ANY_CALL)
        def collect(call: Call) -> None:
            frames.append(messages.marshalled(call.message(serial=len(frames) + 2)))

        collect()
        victim.give("calls", b"".join(frames))
        before = victim.targets()
        with victim.under("given") as result:
            assert result.replies == len(frames)
        assert victim.targets() == before
        FIGURES.append(f"fuzz: {result.replies} calls over the bus: {result.errors}")


# Expensive plans on a host with 512 CPUs


LONGEST = 1.0  # seconds that nobody else is served

SETTINGS = {
    "CPU lists that cover all": [["cpu-governor", f"0-{last}", "performance"] for last in range(1, 1000)],
    "CPU lists that cover few": [["cpu-governor", f"{n},{n + 1}", "performance"] for n in range(195)],
    "globs": [["io-scheduler", f"*{'?' * (n % 50)}{n}*", "none"] for n in range(1000)],
    "too many": [["io-scheduler", f"*a*b*c*d*e*f*{n}*", "none"] for n in range(6000)],
    "stars": [["io-scheduler", "*" * 250, "none"]],
    "a long range": [["cpu-governor", "0-99999999", "performance"]],
}


def large_host() -> SimulatedKernel:
    kernel = demo_host()
    kernel.policies = {f"policy{cpu}": Policy((cpu,)) for cpu in range(512)}
    for number in range(64):
        kernel.plug(f"nvme{number}n2")
    return kernel


@pytest.mark.parametrize("options", [{}, {"unset": True}, {"persist": True}], ids=["set", "unset", "persist"])
@pytest.mark.parametrize("what", SETTINGS)
def test_a_plan_of(what: str, options: dict[str, bool]) -> None:
    gaps: list[float] = []

    async def beat() -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    async def run() -> None:
        beating = asyncio.create_task(beat())
        wanted = {key: Variant("b", value) for key, value in options.items()}
        call = Call(names.MANAGER, "Plan", [SETTINGS[what], wanted], MessageFlag.NONE)
        await play(frozenset(), 1000, [call], large_host())
        beating.cancel()

    asyncio.run(run())
    FIGURES.append(f"a plan of {what}, {options or 'no options'}: nobody else is served for {max(gaps) * 1e3:.0f} ms")
    assert max(gaps) < LONGEST
