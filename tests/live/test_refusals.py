"""What is refused: what cannot be meant, with a typed error in words each, and what would endanger the host.

Nothing is written and no claim is left. Too many huge pages are refused, and a commit limit that would let nobody start
a program. What comes near such a limit is done on the simulated host (`--demo`): to reserve three quarters of this
machine's memory even for a moment would hurt what else runs on it. What is refused is refused on the real kernel. Mode
never itself is set in the virtual machine only (tests/system/test_knobs.py).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune import errors
from kerntune.api.names import HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY, ROOT
from kerntune.errors import (
    AccessDenied,
    InvalidArgs,
    InvalidValue,
    LimitsExceeded,
    NoSuchTarget,
    OverLimit,
    PropertyReadOnly,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    UnknownProperty,
    UnknownTunable,
)
from kerntune.model import Claim, Origin
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.conftest import saved
from tests.live.users import LIMIT, PARTIAL, PERSIST, RUNTIME, Options, User

PROPERTIES: Final = "org.freedesktop.DBus.Properties"
# Arguments that cannot be meant, and the error that each has to get
HUGE: Final = (1 << 64) - 1
LONG: Final = "a" * 5000
SET: Final = (MANAGER, "Set", "a(sss)a{sv}")
UNSET: Final = (MANAGER, "Unset", "a(ss)a{sv}")
PLAN: Final = (MANAGER, "Plan", "a(sss)a{sv}")
COUNT: Final = (HUGE_PAGES, "SetCount", "tta{sv}")
SCHEDULER: Final = (IO_SCHEDULER, "SetScheduler", "ssa{sv}")
OVERCOMMIT: Final = (MEMORY, "SetOvercommit", "sua{sv}")
# Names of devices that are none, wherever they are written.
NO_NAMES: Final = (
    "", ".", "..", "../loop0", "loop0/..", "loop0/queue", "/dev/mapper/loop0", "loop0\n", "\nloop0", "loop0 ",
    "loop0\t", "loop0;", "loop0\r", "\x7f", "lööp0", "by-id/..", "by-id/.", "by-id/../../sys", "by-id/", "by-path/x",
    LONG,
)  # fmt: skip
NO_POOLS: Final = (
    "*", "/", "2", "0M", "2X", "-2M", "2M/", "2M/node", "2M/node-1", "2M/node0/", "2M/node0\n", "2M\n", "2M/../..",
    "2M/**", "2M/node?", "../2M", "hugepages-2048kB", "99999999999T", LONG,
)  # fmt: skip
NO_COUNTS: Final = (
    "",
    " ",
    "-1",
    "+1",
    "1.5",
    "1e3",
    "0x10",
    "128\n",
    "128 ",
    "12 8",
    "many",
    "64X",
    "3M",
    "9" * 21,
    LONG,
)
NO_SCHEDULERS: Final = ("", "nonesuch", "none\n", "../none", "none mq-deadline", "[none]", "NONE", LONG)
NO_OVERCOMMITS: Final = (
    "", "sometimes", "never", "never:0", "never:101", "always:101", "always:0", "heuristic:50", "never:1k", "never:-1",
    "never:", "always:1.5", "never:50\n", "2", "ALWAYS", "never:999999999999", LONG,
)  # fmt: skip
NO_TUNABLES: Final = ("", "nonesuch", "hugepages\n", "../hugepages", "HugePages", "hugepages@2M", "sys/block", LONG)

# Member, its arguments before the options, the error.
TYPED: Final = [
    *((SCHEDULER, (name, "none"), InvalidValue) for name in NO_NAMES),
    *((SCHEDULER, ("loop0", name), InvalidValue) for name in NO_SCHEDULERS),
    *((SCHEDULER, (name, "none"), NoSuchTarget) for name in ("nosuchdisk", "loop0p1", "by-id/nosuch", "...")),
    (SCHEDULER, ("loop[0-1]", "nonesuch"), InvalidValue),
    (COUNT, (3, 1), InvalidValue),
    (COUNT, (4096, 1), NoSuchTarget),
    (COUNT, (12288, 1), NoSuchTarget),
    (COUNT, (HUGE, 1), InvalidValue),
    (COUNT, (1 << 63, 1), NoSuchTarget),
    (COUNT, (0, HUGE), OverLimit),
    (COUNT, (0, 1 << 63), OverLimit),
    (OVERCOMMIT, ("always", 101), InvalidValue),
    (OVERCOMMIT, ("always", (1 << 32) - 1), InvalidValue),
    (OVERCOMMIT, ("never", 0), InvalidValue),
    (OVERCOMMIT, ("never", 101), InvalidValue),
    (OVERCOMMIT, ("heuristic", 50), InvalidValue),
    (OVERCOMMIT, ("sometimes", 0), InvalidValue),
    (OVERCOMMIT, ("always:5", 0), InvalidValue),
    (OVERCOMMIT, ("", 0), InvalidValue),
]
GENERIC: Final = [
    *((("io-scheduler", name, "none"), InvalidValue) for name in NO_NAMES),
    *((("io-scheduler", "loop0", name), InvalidValue) for name in NO_SCHEDULERS),
    (("io-scheduler", "nosuchdisk", "none"), NoSuchTarget),
    *((("hugepages", name, "1"), InvalidValue) for name in NO_POOLS),
    *((("hugepages", "2M", name), InvalidValue) for name in NO_COUNTS),
    *((("hugepages", name, "1"), NoSuchTarget) for name in ("4K", "2M/node99", "3M", "512G/node0")),
    (("hugepages", "2M", "9" * 20), OverLimit),
    *((("overcommit", "", name), InvalidValue) for name in NO_OVERCOMMITS),
    *((("overcommit", name, "always"), InvalidValue) for name in ("x", "..", "\n", "loop0", LONG)),
    *(((name, "*", "1"), UnknownTunable) for name in NO_TUNABLES),
]
OPTIONS: Final = (
    {"nonesuch": ["b", True]},
    {"Persist": ["b", True]},
    {"": ["b", True]},
    {"persist": ["s", "yes"]},
    {"persist": ["u", 1]},
    {"persist": ["v", ["b", True]]},
    {"persist": ["b", True], "ttl-usec": ["t", 1]},
    {"baseline": ["b", True]},
)


def nothing_came_of_it(user: User, daemon: Daemon, before: dict[str, str]) -> None:
    """Check that the kernel's values are the same, and no claim is left, in the daemon or on disk."""
    assert host.snapshot() == before
    document = user.describe()
    assert document["claims"] == []
    assert document["degraded"] == []
    assert [row for row in document["targets"] if row["baseline"] is not None or row["state"] != "unmanaged"] == []
    for file in (daemon.runtime / "runtime.json", daemon.state / "claims.json"):
        saved = json.loads(file.read_text()) if file.exists() else {}
        assert (saved.get("runtime", []), saved.get("persistent", []), saved.get("baselines", [])) == ([], [], [])


def refused(
    user: User, daemon: Daemon, error: type[errors.KerntuneError], call: Sequence[Any], *args: Any, **where: Any
) -> str:
    """Make the call, which has to be refused with that error and without any effect; what it says."""
    before = host.snapshot()
    reply = user.reply(*call, *args, **where)
    assert reply.error == error.dbus_name, reply
    nothing_came_of_it(user, daemon, before)
    assert "Traceback" not in reply.message
    assert ".py" not in reply.message
    return reply.message


def shown(value: Any) -> str:
    """Return a test's id."""
    text = "-".join(map(repr, value[1:] if value[0] == MANAGER else value)) if isinstance(value, tuple) else ""
    return (text if len(text) < 60 else f"{text[:50]}...") or value.__name__


@pytest.mark.parametrize("options", [RUNTIME, PERSIST], ids=["runtime", "persist"])
@pytest.mark.parametrize(("call", "args", "error"), TYPED, ids=shown)
def test_a_typed_setter_refuses(
    daemon: Daemon,
    member: User,
    *,
    call: Sequence[str],
    args: Sequence[Any],
    error: type[errors.KerntuneError],
    options: Options,
) -> None:
    message = refused(member, daemon, error, call, *args, dict(options))
    assert len(message) > 30, "what happened, then the likely cause and what to try"
    assert len(message) < 6000


@pytest.mark.parametrize("options", [RUNTIME, PERSIST], ids=["runtime", "persist"])
@pytest.mark.parametrize(("setting", "error"), GENERIC, ids=shown)
def test_set_refuses(
    daemon: Daemon, member: User, setting: Sequence[str], error: type[errors.KerntuneError], options: Options
) -> None:
    """Alone, and behind a setting that is all right, which then is not made either; Plan says the same."""
    good = ["io-scheduler", "loop1", "mq-deadline"]
    refused(member, daemon, error, SET, [list(setting)], dict(options))
    refused(member, daemon, error, SET, [good, list(setting)], dict(options))
    if error is OverLimit:
        _changed, ((*_, state, reason, _detail),) = member.call(*PLAN, [list(setting)], dict(options))
        assert (state, reason) == ("refused", "over-limit")
        return
    refused(member, daemon, error, PLAN, [list(setting)], dict(options))
    refused(member, daemon, error, SET, [good, list(setting)], {**options, **PARTIAL})


@pytest.mark.parametrize("call", [COUNT, SCHEDULER, OVERCOMMIT, SET, UNSET, PLAN], ids=lambda call: str(call[1]))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_that_does_not_exist_is_refused(
    daemon: Daemon, member: User, call: Sequence[str], options: dict[str, Any]
) -> None:
    args: dict[str, list[Any]] = {
        "SetCount": [0, 8],
        "SetScheduler": ["loop0", "mq-deadline"],
        "SetOvercommit": ["always", 50],
        "Set": [[["overcommit", "", "always"]]],
        "Unset": [[["overcommit", ""]]],
        "Plan": [[["overcommit", "", "always"]]],
    }
    message = refused(member, daemon, InvalidArgs, call, *args[call[1]], options)
    assert "option" in message


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"node": ["u", 99]}, NoSuchTarget),
        ({"node": ["u", (1 << 32) - 1]}, InvalidValue),
        ({"node": ["i", 0]}, InvalidArgs),
        ({"node": ["s", "0"]}, InvalidArgs),
        ({"allow-partial": ["s", "yes"]}, InvalidArgs),
        ({"allow-partial": ["b", True], "node": ["u", 99]}, NoSuchTarget),
    ],
    ids=str,
)
def test_the_options_of_huge_pages(
    daemon: Daemon, member: User, options: dict[str, Any], error: type[errors.KerntuneError]
) -> None:
    refused(member, daemon, error, COUNT, 0, 8, options)


@pytest.mark.parametrize("call", [SCHEDULER, OVERCOMMIT], ids=lambda call: str(call[1]))
@pytest.mark.parametrize("options", [PARTIAL, {"node": ["u", 0]}], ids=str)
def test_options_of_huge_pages_elsewhere(
    daemon: Daemon, member: User, call: Sequence[str], options: dict[str, Any]
) -> None:
    args: Sequence[Any] = ("loop0", "mq-deadline") if call is SCHEDULER else ("always", 50)
    refused(member, daemon, InvalidArgs, call, *args, dict(options))


@pytest.mark.parametrize(
    ("member_", "signature", "args"),
    [
        ("Set", "", []),
        ("Set", "a(sss)", [[["overcommit", "", "always"]]]),
        ("Set", "a(ss)a{sv}", [[["overcommit", "always"]], {}]),
        ("Set", "a(ssss)a{sv}", [[["overcommit", "", "always", ""]], {}]),
        ("Set", "(sss)a{sv}", [["overcommit", "", "always"], {}]),
        ("Set", "asa{sv}", [["overcommit"], {}]),
        ("Set", "a(sss)a{ss}", [[["overcommit", "", "always"]], {}]),
        ("Unset", "a(sss)a{sv}", [[["overcommit", "", ""]], {}]),
        ("Describe", "s", ["all"]),
        ("Verify", "a{sv}", [{}]),
    ],
)
def test_a_wrong_signature_is_refused(
    daemon: Daemon, member: User, member_: str, signature: str, args: Sequence[Any]
) -> None:
    message = refused(member, daemon, InvalidArgs, (MANAGER, member_, signature), *args)
    assert member_ in message


@pytest.mark.parametrize("call", [(HUGE_PAGES, "SetCount", "uua{sv}"), (HUGE_PAGES, "SetCount", "xta{sv}")], ids=str)
def test_numbers_of_another_size_are_refused(daemon: Daemon, member: User, call: Sequence[str]) -> None:
    refused(member, daemon, InvalidArgs, call, 0, 8, {})


@pytest.mark.parametrize("call", [SET, UNSET], ids=lambda call: str(call[1]))
def test_no_settings_are_refused(daemon: Daemon, member: User, call: Sequence[str]) -> None:
    refused(member, daemon, InvalidArgs, call, [], {})


@pytest.mark.parametrize(
    "settings",
    [
        [["overcommit", "", "always"], ["overcommit", "", "heuristic"]],
        [["overcommit", "", "always"], ["overcommit", "*", "always"]],
        [["hugepages", "2M", "8"], ["hugepages", "2048K", "16"]],
        [["io-scheduler", "loop0", "mq-deadline"], ["io-scheduler", "loop0", "mq-deadline"]],
    ],
    ids=str,
)
def test_the_same_instances_twice_are_refused(daemon: Daemon, member: User, settings: list[list[str]]) -> None:
    refused(member, daemon, InvalidValue, SET, settings, {})


def test_more_claims_than_allowed_are_refused(daemon: Daemon, member: User) -> None:
    rows = [["io-scheduler", f"zz{number}*", "none"] for number in range(1001)]
    assert "1000" in refused(member, daemon, LimitsExceeded, SET, rows, {})


def test_a_message_that_is_too_large_is_refused(daemon: Daemon, member: User) -> None:
    rows = [["io-scheduler", "loop0", LONG] for _ in range(60)]
    refused(member, daemon, LimitsExceeded, SET, rows, {})


@pytest.mark.parametrize("row", [["hugepages\0", "2M", "8"], ["hugepages", "2M\0", "8"], ["hugepages", "2M", "8\0"]])
def test_a_nul_never_arrives(daemon: Daemon, member: User, row: list[str]) -> None:
    """D-Bus has no NUL in strings: the bus throws out whoever sends one, and the daemon never hears of it."""
    before = host.snapshot()
    reply = member.reply(*SET, [row], {}, client=1000 + row.index(next(text for text in row if "\0" in text)))
    assert reply.error
    nothing_came_of_it(member, daemon, before)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (("io-scheduler", "nosuchdisk"), NoSuchTarget),
        (("io-scheduler", ".."), InvalidValue),
        (("io-scheduler", LONG), InvalidValue),
        (("hugepages", "2M/node99"), NoSuchTarget),
        (("hugepages", "2M\n"), InvalidValue),
        (("overcommit", "x"), InvalidValue),
        (("nonesuch", "*"), UnknownTunable),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [RUNTIME, PERSIST], ids=["runtime", "persist"])
def test_unset_refuses(
    daemon: Daemon, member: User, what: Sequence[str], error: type[errors.KerntuneError], options: Options
) -> None:
    refused(member, daemon, error, UNSET, [list(what)], dict(options))


def test_a_refusal_leaves_the_claims_there_were(daemon: Daemon, member: User, loops: Sequence[str]) -> None:
    """What the refused call would have overridden or replaced is still in force."""
    member.set(("io-scheduler", "loop0", "mq-deadline"), ("overcommit", "", "always:60"))
    before, claims = host.snapshot(), member.claims()
    for bad in (["hugepages", "2M", "9" * 20], ["io-scheduler", "loop1", "nonesuch"], ["overcommit", "", "never:1"]):
        for options in (RUNTIME, PERSIST):
            good = ["io-scheduler", "loop0", "none"]
            assert member.reply(*SET, [good, bad], dict(options)).error
            assert host.snapshot() == before
            assert member.claims() == claims


@pytest.mark.parametrize(
    ("call", "where", "error"),
    [
        ((MANAGER, "Nonesuch"), {}, UnknownMethod),
        ((MANAGER, "__init__"), {}, UnknownMethod),
        ((MANAGER, "SetCount", "tta{sv}", 0, 8, {}), {}, UnknownMethod),
        (("org.kerntune.Tuner1.Nonesuch", "Set"), {}, AccessDenied),  # by the bus policy
        ((MANAGER, "Describe"), {"path": f"{ROOT}/nonesuch"}, UnknownObject),
        ((MANAGER, "Describe"), {"path": "/org/kerntune"}, UnknownObject),
        ((PROPERTIES, "Get", "ss", MANAGER, "Nonesuch"), {}, UnknownProperty),
        ((PROPERTIES, "Get", "ss", "org.kerntune.Nonesuch", "Version"), {}, UnknownInterface),
        ((PROPERTIES, "Get", "s", MANAGER), {}, InvalidArgs),
        ((PROPERTIES, "Set", "ssv", MANAGER, "Generation", ["t", 1]), {}, PropertyReadOnly),
        ((PROPERTIES, "Set", "ssv", MEMORY, "OvercommitMode", ["s", "always"]), {}, PropertyReadOnly),
        ((PROPERTIES, "Set", "ssv", MEMORY, "Nonesuch", ["s", "always"]), {}, UnknownProperty),
    ],
    ids=str,
)
def test_what_is_not_there_cannot_be_called(
    daemon: Daemon, member: User, call: Sequence[Any], where: dict[str, Any], error: type[errors.KerntuneError]
) -> None:
    refused(member, daemon, error, call, **where)


def test_partitions_are_no_devices(daemon: Daemon, member: User) -> None:
    parts = sorted(path.parent.name for path in Path("/sys/block").glob("*/*/partition"))
    for name in [*parts, "loop0p1", "vda1"]:
        refused(member, daemon, NoSuchTarget, SCHEDULER, name, "none", {})


MIB: Final = 1 << 20
FAR_TOO_MANY: Final = 99_999_999
NOISE: Final = 512 * MIB  # what else runs here may take as much; the pages asked for are a thousand times that
FIGURES: Final = re.compile(
    r"(\d+) pages \([^)]*\) asked for (\S+), (\d+)(?: \([^)]*\))? possible, (\d+)(?: \([^)]*\))? there now"
)
SAMPLE: Final = 0.001  # seconds

# `--demo`: two nodes of 32 GiB, 6 GiB of them taken by programs.
DEMO_TOTAL: Final = 128 << 30
DEMO_CEILING: Final = DEMO_TOTAL * 75 // 100 // (2 * MIB)


@contextmanager
def memory_watched() -> Iterator[list[dict[str, int]]]:
    """Give samples of /proc/meminfo throughout, the first from before and the last from after."""
    samples, end = [host.meminfo()], threading.Event()

    def sample() -> None:
        while not end.wait(SAMPLE):
            samples.append(host.meminfo())

    watching = threading.Thread(target=sample)
    watching.start()
    try:
        yield samples
    finally:
        end.set()
        watching.join(LIMIT)
        samples.append(host.meminfo())


@pytest.fixture
def demo(daemon_with: Callable[..., Daemon], own_root: User) -> User:
    """Give root before a daemon on the simulated host."""
    daemon = daemon_with("--demo")
    daemon.started()
    return own_root


def pool_of(user: User, node: str = "") -> int:
    """Return the total of the 2M pool as the daemon reads it."""
    rows = user.get(HUGE_PAGES, "Pools")
    return next(int(row[2]) for row in rows if row[:2] == [2 * MIB, node])


# Huge pages


@pytest.mark.parametrize("options", [RUNTIME, PERSIST, {"node": ["u", 0]}], ids=["runtime", "persist", "node"])
def test_far_too_many_pages_are_refused_before_anything_is_written(
    daemon: Daemon, member: User, options: Options
) -> None:
    member.set_count(16)
    before, claims = host.snapshot(), member.claims()
    with memory_watched() as samples:
        for _ in range(20):
            with pytest.raises(OverLimit) as refusal:
                member.set_count(FAR_TOO_MANY, options)
    assert host.snapshot() == before
    assert member.claims() == claims

    found = FIGURES.search(str(refusal.value))
    assert found, refusal.value
    asked, instance, possible, now = int(found[1]), found[2], int(found[3]), int(found[4])
    assert (asked, now) == (FAR_TOO_MANY, 16)
    assert instance.startswith(host.pool())
    memory = samples[0]
    assert 16 <= possible * host.page_size() <= memory["MemTotal"] * 75 // 100
    assert possible * host.page_size() <= memory["MemAvailable"] + 16 * host.page_size()

    assert len(samples) > 5
    assert {sample["Hugetlb"] // host.page_size() for sample in samples} == {16}
    least = min(sample["MemAvailable"] for sample in samples)
    assert least > memory["MemAvailable"] - NOISE


def test_a_plan_foresees_the_refusal(daemon: Daemon, member: User) -> None:
    row = ["hugepages", host.pool(), str(FAR_TOO_MANY)]
    _changed, (outcome,) = member.call(MANAGER, "Plan", "a(sss)a{sv}", [row], {})
    assert outcome[5:7] == ["refused", "over-limit"]
    assert FIGURES.search(outcome[7])
    assert member.claims() == {}


def test_a_small_request_that_may_be_partial_is_met(daemon: Daemon, member: User) -> None:
    assert member.set_count(16, PARTIAL) == host.pages() == 16


def test_one_page_too_many_is_refused_and_the_possible_number_is_had(demo: User) -> None:
    """On the simulated host, where the limit is known to the page."""
    with pytest.raises(OverLimit) as refusal:
        demo.set_count(DEMO_CEILING + 1)
    found = FIGURES.search(str(refusal.value))
    assert found
    assert found.groups() == (str(DEMO_CEILING + 1), "2M", str(DEMO_CEILING), "0")
    assert (pool_of(demo), demo.claims()) == (0, {})
    assert demo.set_count(DEMO_CEILING) == DEMO_CEILING == pool_of(demo)
    with pytest.raises(OverLimit):
        demo.set_count(1, size=1 << 30)
    assert demo.claims() == {"runtime:hugepages@2M": str(DEMO_CEILING)}


@pytest.mark.parametrize("options", [PARTIAL, PARTIAL | PERSIST], ids=["runtime", "persist"])
def test_with_allow_partial_far_too_many_become_the_possible_number(demo: User, options: Options) -> None:
    """On the simulated host: here it would take three quarters of the memory."""
    assert demo.set_count(FAR_TOO_MANY, options) == DEMO_CEILING == pool_of(demo)
    (row,) = (row for row in demo.describe()["targets"] if (row["tunable"], row["instance"]) == ("hugepages", "2M"))
    assert (row["state"], row["reason"]) == ("partial", "over-limit")
    assert f"{DEMO_CEILING} (96 GiB) possible" in row["detail"]
    assert "over-limit" in demo.get(MANAGER, "Degraded")
    demo.release()
    assert pool_of(demo) == 0
    assert demo.get(MANAGER, "Degraded") == []


def test_a_node_gives_no_more_than_it_has(demo: User) -> None:
    """On the simulated host: node 0 has 60 GiB free, node 1 has 62."""
    assert demo.set_count(FAR_TOO_MANY, PARTIAL | {"node": ["u", 0]}) <= 60 * 512
    assert pool_of(demo, "1") == 0


# The commit limit


def refuse_to_lock_out(user: User, ratio: int = 1) -> str:
    """Ask for `never` with that ratio in every way there is; what the last refusal says."""
    for options in (RUNTIME, PERSIST):
        with pytest.raises(OverLimit):
            user.set_overcommit("never", ratio, options)
        with pytest.raises(OverLimit) as refusal:
            user.set(("overcommit", "", f"never:{ratio}"), options=options)
        with pytest.raises(OverLimit):
            user.set(("io-scheduler", "zz*", "none"), ("overcommit", "", f"never:{ratio}"), options=options)
    assert user.claims() == {}
    return str(refusal.value)


def test_never_with_a_ratio_of_1_is_refused(demo: User, daemon: Daemon, member: User) -> None:
    """On the real kernel only after the simulated one was spared: were it done, no shell could start here."""
    assert "commit limit 1310 MiB" in refuse_to_lock_out(demo)
    assert demo.get(MEMORY, "OvercommitMode") == "heuristic"

    before, memory = host.snapshot(), host.meminfo()
    said = refuse_to_lock_out(member)
    assert host.snapshot() == before
    limit = re.search(r"commit limit (\d+) MiB", said)
    committed = re.search(r"(\d+) MiB are committed", said)
    assert limit
    assert committed
    assert int(limit[1]) * MIB == pytest.approx((memory["MemTotal"] - memory["Hugetlb"]) // 100, abs=64 * MIB)
    assert int(committed[1]) * MIB == pytest.approx(memory["Committed_AS"], abs=NOISE)


@pytest.mark.parametrize("options", [["--demo"], []], ids=["simulated", "real"])
def test_never_with_a_ratio_of_1_is_refused_at_start(
    daemon_with: Callable[..., Daemon], own_root: User, options: Sequence[str]
) -> None:
    """Nobody is there to be told: the daemon starts all the same, says it, and keeps the other claim in force."""
    before = host.snapshot()
    daemon = daemon_with(*options)
    saved(
        daemon,
        Claim(Origin.PERSISTENT, "overcommit", "", "never:1", seq=1),
        Claim(Origin.PERSISTENT, "hugepages", host.pool(), "8", seq=2),
    )
    daemon.started()
    rows = {(row["tunable"], row["instance"]): row for row in own_root.describe()["targets"]}
    refused, given = rows["overcommit", ""], rows["hugepages", host.pool()]
    assert (refused["state"], refused["reason"]) == ("refused", "over-limit")
    assert own_root.get(MANAGER, "Degraded") == ["over-limit"]
    assert own_root.get(MEMORY, "OvercommitMode") == ("heuristic" if options else host.overcommit()[0])
    assert (given["value"], given["state"]) == ("8", "satisfied")
    assert "overcommit refused, over-limit" in daemon.journal()
    after = host.snapshot()
    assert {path: text for path, text in after.items() if "overcommit" in path} == {
        path: text for path, text in before.items() if "overcommit" in path
    }
    own_root.release()
    assert host.snapshot() == before


def test_huge_pages_do_not_grow_into_the_commit_limit(demo: User) -> None:
    """On the simulated host: never:10 promises 12.8 GiB of 128, 8.4 GiB of them needed; huge pages lower it by a tenth
    of their size.
    """
    demo.set_overcommit("never", 10)
    spare = DEMO_TOTAL // 10 - (2 << 30) - DEMO_TOTAL // 20
    possible = spare * 10 // (2 * MIB)
    with pytest.raises(OverLimit, match="never:10") as refusal:
        demo.set_count(2 * possible)
    found = FIGURES.search(str(refusal.value))
    assert found
    assert int(found[3]) == pytest.approx(possible, abs=8)
    assert pool_of(demo) == 0
    assert demo.set_count(2 * possible, PARTIAL) == int(found[3])
    demo.release()

    # The other way round: the pages are there, and the ratio would no longer do.
    demo.set_count(2 * possible)
    with pytest.raises(OverLimit):
        demo.set_overcommit("never", 10)
    # Both in one call, which has to look at what both would do.
    demo.release()
    with pytest.raises(OverLimit):
        demo.set(("hugepages", "2M", str(2 * possible)), ("overcommit", "", "never:10"))
    assert (pool_of(demo), demo.get(MEMORY, "OvercommitMode"), demo.claims()) == (0, "heuristic", {})


def test_a_refused_limit_leaves_the_mode_that_was(daemon: Daemon, member: User, root: User) -> None:
    member.set_overcommit("always", 60)
    for ratio in (1, 2):
        with pytest.raises(OverLimit):
            member.set_overcommit("never", ratio)
        assert host.overcommit() == ("always", 60)
    outcomes: list[Any] = root.call(MANAGER, "Verify")[0]
    assert outcomes == []
