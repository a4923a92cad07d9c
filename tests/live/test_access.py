"""Who may call what: every method of the contract, asked for by root, a member of the group, an outsider and nobody.

The host is a simulated one with claims, a profile and a configuration that was not read yet, so that every call that
is let through changes something. docs/access.md shows the same; KERNTUNE_WRITE_DOCS=1 writes the table there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final
from xml.etree import ElementTree

import pytest

from kerntune import errors
from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.api.names import CPU_GOVERNOR, HOLD, HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY
from tests.harness import CHECKOUT
from tests.harness.daemon import Daemon
from tests.harness.polkitd import MEMBER, OTHER, Polkitd, accounts
from tests.harness.privatebus import package_bus
from tests.live.users import PERSIST, User

PAGE: Final = CHECKOUT / "docs/access.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
NOBODY: Final = "nobody"
# The heading in the table -> the account.
CALLERS: Final = {"root": "root", "member": MEMBER, "outsider": OTHER, "nobody": NOBODY}
NEEDED: Final = {
    "nothing": frozenset(CALLERS),
    "set": frozenset({"root", "member"}),
    "set-memory": frozenset({"root", "member"}),
    "hold": frozenset({"root", "member"}),
    "manage": frozenset({"root"}),
}
REFUSALS: Final = {
    each.dbus_name for each in (errors.NotAuthorized, errors.InteractiveAuthorizationRequired, errors.NotOwner)
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call that changes something on the simulated host, unless it needs nothing; and what it needs of its caller."""

    interface: str
    member: str
    signature: str
    args: tuple[Any, ...]
    needs: str
    what: str = ""

    @property
    def title(self) -> str:
        return f"{self.member}, {self.what}" if self.what else self.member


PAGES: Final = ["hugepages", "2M", "48"]
DISK: Final = ["io-scheduler", "sda", "bfq"]
SETS: Final = partial(Call, MANAGER, "Set", "a(sss)a{sv}")
UNSETS: Final = partial(Call, MANAGER, "Unset", "a(ss)a{sv}")
PLANS: Final = partial(Call, MANAGER, "Plan", "a(sss)a{sv}")
HOLDS: Final = partial(Call, MANAGER, "Hold", "a(sss)ssa{sv}")
CALLS: Final = (
    SETS(([DISK], {}), "set", "disks and CPUs"),
    SETS(([DISK], PERSIST), "set", "disks and CPUs, with `persist`"),
    SETS(([PAGES], {}), "set-memory", "memory"),
    SETS(([PAGES], PERSIST), "set-memory", "memory, with `persist`"),
    SETS(([DISK, PAGES], {}), "set-memory", "both"),
    UNSETS(([["cpu-governor", "*"]], {}), "set", "disks and CPUs"),
    UNSETS(([["hugepages", "*"]], {}), "set-memory", "memory"),
    UNSETS(([["io-scheduler", "*"]], PERSIST), "set", "with `persist`"),
    PLANS(([DISK, PAGES], {}), "nothing"),
    PLANS(([], {"profile": ["s", "other"]}), "nothing", "of a profile"),
    PLANS(([], {"reset": ["b", True], "baseline": ["b", True]}), "nothing", "of a reset"),
    PLANS(([], {"reload": ["b", True]}), "manage", "of a reload"),
    Call(MANAGER, "Verify", "", (), "nothing"),
    Call(MANAGER, "Repair", "a{sv}", ({},), "manage"),
    Call(MANAGER, "Describe", "", (), "nothing"),
    Call(MANAGER, "SetProfile", "sa{sv}", ("other", {}), "manage"),
    Call(MANAGER, "ClearProfile", "a{sv}", ({},), "manage"),
    Call(MANAGER, "ListProfiles", "", (), "nothing"),
    Call(MANAGER, "Reset", "a{sv}", ({},), "manage"),
    Call(MANAGER, "Reset", "a{sv}", ({"baseline": ["b", True]},), "manage", "with `baseline`"),
    Call(MANAGER, "Reset", "a{sv}", ({"holds": ["b", True]},), "manage", "with `holds`"),
    Call(MANAGER, "Reload", "a{sv}", ({},), "manage"),
    HOLDS(([PAGES], "job", "", {}), "hold", "memory"),
    HOLDS(([DISK], "job", "", {"detached": ["b", True], "ttl-usec": ["t", 10**9]}), "manage", "with `detached`"),
    Call(HOLD, "Release", "a{sv}", ({},), "manage", "of another user's hold"),
    Call(CPU_GOVERNOR, "SetGovernor", "ssa{sv}", ("*", "powersave", {}), "set"),
    Call(HUGE_PAGES, "SetCount", "tta{sv}", (0, 64, {}), "set-memory"),
    Call(HUGE_PAGES, "SetCount", "tta{sv}", (0, 8, {"node": ["u", 0]}), "set-memory", "of a node"),
    Call(IO_SCHEDULER, "SetScheduler", "ssa{sv}", ("sda", "bfq", {}), "set"),
    Call(MEMORY, "SetOvercommit", "sua{sv}", ("always", 90, {}), "set-memory"),
)
READS: Final = tuple(
    Call("org.freedesktop.DBus.Properties", "GetAll", "s", (file.stem,), "nothing", f"of {file.stem.split('.')[-1]}")
    for file in interface_files()
)

CONFIG: Final = '[sysctl]\n"vm.swappiness" = {}\n'
PROFILES: Final = {
    "chosen": '[read-ahead]\n"sda" = 512\n',
    "other": '[read-ahead]\n"sda" = 1024\n',
}


class Scene:
    """A daemon with a simulated host, and those who call it."""

    def __init__(self, daemon: Daemon, users: Mapping[str, User]) -> None:
        self._daemon, self.users = daemon, users
        (daemon.config / "profiles").mkdir()
        for name, text in PROFILES.items():
            (daemon.config / f"profiles/{name}.toml").write_text(text)

    def set_up(self) -> None:
        """Give the host claims of both origins and a profile, and a configuration that says more than was read."""
        root = self.users["root"]
        self._configure(33)
        root.call(MANAGER, "Reload", "a{sv}", {})
        root.call(MANAGER, "Reset", "a{sv}", {"holds": ["b", True]})
        root.call(MANAGER, "SetProfile", "sa{sv}", "chosen", {})
        root.set(("cpu-governor", "*", "performance"), ("hugepages", "2M", "16"))
        root.set(("io-scheduler", "nvme*", "mq-deadline"), options=PERSIST)
        held = [["read-ahead", "nvme*", "256"]]
        self.hold: str = root.call(MANAGER, "Hold", "a(sss)ssa{sv}", held, "root's", "", {})[0]
        self._configure(44)

    def _configure(self, swappiness: int) -> None:
        (self._daemon.config / "kerntune.toml").write_text("[drift]\ninterval = 0\n" + CONFIG.format(swappiness))

    def standing(self) -> dict[str, Any]:
        """Return what a call can change: the claims, the profile, and the value of every target."""
        document = self.users["root"].describe()
        return {
            "claims": [(claim["id"], claim["value"], claim["who"], claim["seq"]) for claim in document["claims"]],
            "profile": document["profile"],
            "degraded": document["degraded"],
            "values": {(row["tunable"], row["instance"]): row["value"] for row in document["targets"]},
        }


@pytest.fixture(scope="module")
def scene(machine: None, public: Any) -> Iterator[Scene]:
    """Give a bus, a polkitd and a daemon for this file: the simulated host is nobody else's."""
    with ExitStack() as stack:
        bus = stack.enter_context(package_bus())
        stack.enter_context(accounts())
        stack.enter_context(Polkitd(bus))
        daemon = stack.enter_context(Daemon(bus, "--demo"))
        users = {role: stack.enter_context(User(name, bus, public)) for role, name in CALLERS.items()}
        yield Scene(daemon, users)
        assert "Traceback" not in daemon.journal()


@pytest.fixture(scope="module")
def seen() -> dict[tuple[str, str, str], bool]:
    """Return what the calls of this run came to: interface, title and caller -> whether it was let through."""
    return {}


def ask(scene: Scene, call: Call, caller: str, *, interactive: bool = False) -> bool:
    """Make the call and return whether it was let through; a refusal has a refusal's name and changes nothing."""
    scene.set_up()
    before = scene.standing()
    user = scene.users[caller]
    path = scene.hold if HOLD in (call.interface, *call.args) else names.ROOT
    reply = user.reply(call.interface, call.member, call.signature, *call.args, interactive=interactive, path=path)
    if reply.error:
        assert reply.error in REFUSALS, reply
        assert scene.standing() == before, f"{caller} was refused {call.title}, and something changed"
        return False
    # A plan shows what is in the files, and there is nothing to repair here.
    changes = call.needs != "nothing" and call.member not in {"Plan", "Repair"}
    assert (scene.standing() != before) is changes, f"{call.title} by {caller} {'changed nothing' if changes else ''}"
    return True


def shown(value: object) -> str:
    """Return a test's id."""
    return f"{value.interface.split('.')[-1]}.{value.title}" if isinstance(value, Call) else str(value)


def test_every_method_of_the_contract_has_a_row() -> None:
    contract = {
        (found.attrib["name"], method.attrib["name"])
        for file in interface_files()
        for found in ElementTree.parse(file).getroot().iter("interface")
        for method in found.findall("method")
    }
    assert contract
    assert {(call.interface, call.member) for call in CALLS} == contract


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("call", [*CALLS, *READS], ids=shown)
def test_who_may(scene: Scene, seen: dict[tuple[str, str, str], bool], call: Call, caller: str) -> None:
    allowed = ask(scene, call, caller)
    seen[call.interface, call.title, caller] = allowed
    assert allowed is (caller in NEEDED[call.needs])


@pytest.mark.parametrize("caller", ["member", "outsider", "nobody"])
@pytest.mark.parametrize("call", [call for call in CALLS if call.needs == "manage"], ids=shown)
def test_who_offers_a_password_that_nobody_is_there_to_give_is_refused_too(
    scene: Scene, call: Call, caller: str
) -> None:
    assert not ask(scene, call, caller, interactive=True)


def test_nobody_is_who_has_no_account(scene: Scene) -> None:
    assert scene.users["nobody"].run(scene.users["nobody"].argv("id", "-u")).stdout.strip() == "65534"


def test_the_page_shows_what_this_run_has_seen(seen: dict[tuple[str, str, str], bool]) -> None:
    wanted = {(call.interface, call.title, caller): call for call in (*CALLS, *READS) for caller in CALLERS}
    write = bool(os.environ.get("KERNTUNE_WRITE_DOCS"))
    if seen.keys() != wanted.keys():
        assert not write, "the page is written from a run of this whole file, in one process"
        # Only a part of this file was run, so what is expected stands in for what was seen.
        seen = {key: key[2] in NEEDED[call.needs] for key, call in wanted.items()}
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    text = f"{before}{BEGIN}{table(seen)}{END}{after}"
    if write:
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "the table is not what was seen: KERNTUNE_WRITE_DOCS=1 with this file writes it"


def table(seen: Mapping[tuple[str, str, str], bool]) -> str:
    """Return the rows of docs/access.md for what was seen."""
    lines = [f"| Method | Needs | {' | '.join(CALLERS)} |", "| --- " * (len(CALLERS) + 2) + "|"]
    for interface, calls in groupby((*CALLS, *READS), lambda call: call.interface):
        lines.append(f"| **{interface}** |" + " |" * (len(CALLERS) + 1))
        for call in calls:
            cells = ["yes" if seen[interface, call.title, caller] else "refused" for caller in CALLERS]
            lines.append(f"| {call.title} | {needed(call)} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n\n"


def needed(call: Call) -> str:
    """Return what a row says that a call needs."""
    if call.needs == "hold":
        return "`hold` and `set-memory`"
    return "`set` and `set-memory`" if call.what == "both" else f"`{call.needs}`" if call.needs != "nothing" else ""
