"""Everything that cannot be meant: a typed error each, in words, with nothing written and no claim left."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.live.users import PARTIAL, PERSIST, RUNTIME, Options, User

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
    "", ".", "..", "../loop0", "loop0/..", "loop0/queue", "/dev/loop0", "loop0\n", "\nloop0", "loop0 ", "loop0\t",
    "loop0;", "loop0\r", "\x7f", "lööp0", "by-id/..", "by-id/.", "by-id/../../sys", "by-id/", "by-path/x", LONG,
)  # fmt: skip
NO_POOLS: Final = (
    "*", "/", "2", "0M", "2X", "-2M", "2M/", "2M/node", "2M/node-1", "2M/node0/", "2M/node0\n", "2M\n", "2M/../..",
    "2M/**", "2M/node*", "../2M", "hugepages-2048kB", "99999999999T", LONG,
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
