"""What anybody reads and hears, and who may set what: the busctl lines of the manual, on the real kernel."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune import errors
from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.dbus import standard
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.harness.polkitd import MEMBER, OTHER
from tests.live.users import LIMIT, User

NAME, ROOT = names.BUS_NAME, names.ROOT
COUNT: Final = f'call {NAME} {ROOT} {NAME}.HugePages SetCount "tta{{sv}}" 0 128 0'
NODE: Final = f'call {NAME} {ROOT} {NAME}.HugePages SetCount "tta{{sv}}" 0 64 1 node u 0'
NVME: Final = f'call {NAME} {ROOT} {NAME}.IoScheduler SetScheduler "ssa{{sv}}" "nvme*" none 1 persist b true'
LOOP: Final = f'call {NAME} {ROOT} {NAME}.IoScheduler SetScheduler "ssa{{sv}}" "loop[0-1]" mq-deadline 0'
OVERCOMMIT: Final = f'call {NAME} {ROOT} {NAME}.Memory SetOvercommit "sua{{sv}}" always 95 0'
GOVERNOR: Final = f'call {NAME} {ROOT} {NAME}.CpuGovernor SetGovernor "ssa{{sv}}" "*" performance 0'
SETTERS: Final = (COUNT, LOOP, OVERCOMMIT)

READS: Final = (
    f"get-property {NAME} {ROOT} {NAME}.HugePages Pools",
    f"get-property {NAME} {ROOT} {NAME}.IoScheduler Devices",
    f"get-property {NAME} {ROOT} {NAME}.Memory OvercommitMode OvercommitRatio CommitLimit Committed",
    f"get-property {NAME} {ROOT} {NAME}.Manager Version Generation Degraded",
    f"--json=short call {NAME} {ROOT} {NAME}.Manager Describe",
    f"call {NAME} {ROOT} {NAME}.Manager Verify",
    f'call {NAME} {ROOT} {NAME}.Manager Plan "a(sss)a{{sv}}" 1 overcommit "" always 0',
    f"introspect {NAME} {ROOT}",
    f"tree {NAME}",
)

POLKIT: Final = "org.freedesktop.PolicyKit1"
AUTHORITY: Final = (f"{POLKIT}.Authority", "CheckAuthorization", "(sa{sv})sa{ss}us")
AT_POLKIT: Final[dict[str, Any]] = {"path": "/org/freedesktop/PolicyKit1/Authority", "service": POLKIT}


@pytest.fixture(params=[MEMBER, OTHER])
def anybody(request: pytest.FixtureRequest, member: User, other: User) -> User:
    return member if request.param == MEMBER else other


def line(user: User, words: str) -> subprocess.CompletedProcess[str]:
    """Run a line as it is pasted into a shell."""
    return user.busctl(*shlex.split(words))


def done(user: User, words: str) -> str:
    """Return what a line prints, which has to work."""
    result = line(user, words)
    assert result.returncode == 0, result.stderr
    return result.stdout


# What a member of the group may do


def test_a_member_sets_the_number_of_huge_pages(daemon: Daemon, member: User) -> None:
    assert done(member, COUNT) == "t 128\n"
    assert host.pages() == 128


def test_a_member_sets_the_huge_pages_of_a_node(daemon: Daemon, member: User) -> None:
    done(member, COUNT)
    assert done(member, NODE) == "t 64\n"
    assert host.pages(node=0) == 64
    (whole,) = (
        row for row in member.describe()["targets"] if row["tunable"] == "hugepages" and row["instance"] == host.pool()
    )
    assert whole["requested"] == "128"
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    assert (whole["state"], host.pages()) == (("overridden", 64) if len(nodes) == 1 else ("satisfied", 128))


def test_a_member_keeps_a_scheduler_for_drives_that_may_come(daemon: Daemon, member: User) -> None:
    rows = json.loads(done(member, f"--json=short {NVME}"))["data"][0]
    drives = sorted(path.name for path in Path("/sys/block").glob("nvme*") if host.choices(path.name))
    assert {row[1] for row in rows} == (set(drives) or {"nvme*"})
    if not drives:
        assert rows[0][5:7] == ["unsupported", "no-such-target"]
    assert [host.scheduler(drive) for drive in drives] == ["none"] * len(drives)
    assert member.claims() == {"persistent:io-scheduler@nvme*": "none"}
    (saved,) = json.loads((daemon.state / "claims.json").read_text())["persistent"]
    assert (saved["instances"], saved["value"]) == ("nvme*", "none")


def test_a_member_sets_the_scheduler_of_loop_devices(daemon: Daemon, member: User, loops: Sequence[str]) -> None:
    assert [host.scheduler(name) for name in loops[:3]] == ["none"] * 3, "this test changes none to mq-deadline"
    rows = json.loads(done(member, f"--json=short {LOOP}"))["data"][0]
    assert [row[:7] for row in rows] == [
        ["io-scheduler", name, "mq-deadline", "none", "mq-deadline", "satisfied", "ok"] for name in loops[:2]
    ]
    assert [host.scheduler(name) for name in loops[:3]] == ["mq-deadline", "mq-deadline", "none"]


def test_a_member_sets_overcommit(daemon: Daemon, member: User) -> None:
    ((*_, state, reason, detail),) = json.loads(done(member, f"--json=short {OVERCOMMIT}"))["data"][0]
    assert (state, reason) == ("satisfied", "ok")
    assert "caps nothing" in detail
    assert host.overcommit() == ("always", 95)


def test_a_member_sets_the_governor_where_there_is_one(daemon: Daemon, member: User, other: User) -> None:
    policies = sorted(Path("/sys/devices/system/cpu/cpufreq").glob("policy*"))
    if policies:
        assert line(other, GOVERNOR).returncode != 0
        done(member, GOVERNOR)
        assert {host.value(policy / "scaling_governor") for policy in policies} == {"performance"}
        return
    refused = line(member, GOVERNOR)
    assert refused.returncode != 0
    assert "no policy" in refused.stderr
    with pytest.raises(errors.NotSupported, match="has no policy"):
        member.call(names.CPU_GOVERNOR, "SetGovernor", "ssa{sv}", "*", "performance", {})
    assert member.claims() == {}


def test_the_command_line_sets_shows_and_unsets(
    daemon: Daemon, member: User, other: User, loops: Sequence[str]
) -> None:
    own = host.scheduler("loop2")
    wanted = ("io-scheduler@loop2=mq-deadline", f"hugepages={32 * host.page_size() >> 20}M", "overcommit=always:60")
    before = host.snapshot()
    denied = other.kerntune("set", *wanted)
    assert (denied.returncode, denied.stdout) == (errors.Exit.NOT_AUTHORISED, "")
    assert host.snapshot() == before

    made = member.kerntune("--json", "set", *wanted)
    assert made.returncode == errors.Exit.OK, made.stderr
    assert [row["state"] for row in json.loads(made.stdout)["outcomes"]] == ["satisfied"] * 3
    assert (host.scheduler("loop2"), host.pages(), host.overcommit()) == ("mq-deadline", 32, ("always", 60))

    shown = other.kerntune("status", "--json")
    assert shown.returncode in (errors.Exit.OK, errors.Exit.FAILED), shown.stderr
    targets = {(row["tunable"], row["instance"]): row["value"] for row in json.loads(shown.stdout)["targets"]}
    assert targets["io-scheduler", "loop2"] == "mq-deadline"
    assert targets["hugepages", host.pool()] == "32"

    what = ("io-scheduler@loop2", "hugepages", "overcommit")
    assert other.kerntune("unset", *what).returncode == errors.Exit.NOT_AUTHORISED
    assert host.pages() == 32
    withdrawn = member.kerntune("unset", *what)
    assert withdrawn.returncode == errors.Exit.OK, withdrawn.stderr
    assert host.snapshot() == before
    assert host.scheduler("loop2") == own


# What somebody else may not


@pytest.mark.parametrize("options", ["", "--allow-interactive-authorization=no "], ids=["asked", "not-asked"])
@pytest.mark.parametrize("words", SETTERS)
def test_somebody_else_is_refused_and_reads_why(
    daemon: Daemon, other: User, loops: Sequence[str], words: str, options: str
) -> None:
    """busctl shows two words of its own in place of org.freedesktop.DBus.Error.AccessDenied's text."""
    before = host.snapshot()
    refused = line(other, options + words)
    assert refused.returncode != 0
    assert re.search(
        r"org\.kerntune\.Tuner1\.set\S* needs authentication.*sudo usermod -aG kerntune \$USER", refused.stderr
    )
    assert refused.stdout == ""
    assert host.snapshot() == before
    assert other.claims() == {}


@pytest.mark.parametrize(
    ("interactive", "error"),
    [
        pytest.param(False, errors.InteractiveAuthorizationRequired, id="a-password-would-do"),
        pytest.param(True, errors.NotAuthorized, id="nobody-is-there-to-ask"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        (names.MANAGER, "Set", "a(sss)a{sv}", [["io-scheduler", "loop0", "mq-deadline"]], {}),
        (names.MANAGER, "Unset", "a(ss)a{sv}", [["io-scheduler", "*"]], {}),
        (names.HUGE_PAGES, "SetCount", "tta{sv}", 0, 8, {}),
        (names.IO_SCHEDULER, "SetScheduler", "ssa{sv}", "loop0", "mq-deadline", {}),
        (names.MEMORY, "SetOvercommit", "sua{sv}", "always", 95, {}),
    ],
    ids=lambda call: str(call[1]),
)
def test_the_refusal_has_a_name(
    daemon: Daemon, other: User, call: Sequence[Any], *, interactive: bool, error: type[errors.KerntuneError]
) -> None:
    before = host.snapshot()
    with pytest.raises(error, match=r"sudo usermod|authentication"):
        other.call(*call, interactive=interactive)
    assert host.snapshot() == before
    assert other.claims() == {}


def test_a_call_needs_the_action_of_every_tunable_it_names(daemon: Daemon, other: User) -> None:
    before = host.snapshot()
    with pytest.raises(errors.InteractiveAuthorizationRequired):
        other.set(("io-scheduler", "loop0", "mq-deadline"), ("overcommit", "", "always"))
    assert host.snapshot() == before


def test_the_group_may_set_and_hold_and_not_manage(daemon: Daemon, member: User, root: User) -> None:
    """Asked of polkit itself, by root about a member's connection and by the member about its own."""
    about = ["system-bus-name", {"name": ["s", member.bus_name()]}]
    mine = ["system-bus-name", {"name": ["s", member.bus_name(service=POLKIT)]}]
    for action in (names.ACTION_SET, names.ACTION_SET_MEMORY, names.ACTION_HOLD, names.ACTION_MANAGE):
        for user, subject in ((root, about), (member, mine)):
            ((authorised, challenge, _details),) = user.call(*AUTHORITY, subject, action, {}, 0, "", **AT_POLKIT)
            assert authorised is (action != names.ACTION_MANAGE), f"{action}, asked by {user.name}"
            assert challenge is (action == names.ACTION_MANAGE)


@pytest.mark.parametrize("member_", ["hold", "set", "_set", "Chown"])
def test_what_is_not_in_the_contract_cannot_be_called(daemon: Daemon, member: User, member_: str) -> None:
    with pytest.raises(errors.UnknownMethod):
        member.call(names.MANAGER, member_, "a{sv}", {})


def test_nobody_but_root_may_own_the_name(own_bus: Any, member: User) -> None:
    asked = member.run(
        member.argv(
            "busctl", f"--address={own_bus.address}", "call", standard.BUS, standard.BUS_PATH,
            standard.BUS, "RequestName", "su", NAME, "4",
        )
    )  # fmt: skip
    assert asked.returncode != 0
    assert "denied" in asked.stderr


# What everybody may


@pytest.mark.parametrize("words", READS)
def test_everybody_reads(daemon: Daemon, anybody: User, words: str) -> None:
    before = host.snapshot()
    assert done(anybody, words)
    assert host.snapshot() == before


def test_pools_are_those_of_sysfs(daemon: Daemon, member: User, other: User) -> None:
    done(member, COUNT)
    rows = json.loads(done(other, f"--json=short {READS[0]}"))["data"]
    for size, node, total, free, _reserved, surplus, requested in rows:
        where = f"/sys/devices/system/node/node{node}" if node else "/sys/kernel/mm"
        pool = Path(where) / f"hugepages/hugepages-{size >> 10}kB"
        assert total == int((pool / "nr_hugepages").read_text())
        assert free == int((pool / "free_hugepages").read_text())
        assert (surplus, requested) == (0, total)
    assert [host.page_size(), "", 128, 128] in [row[:4] for row in rows]


def test_the_description_is_one_json_document(daemon: Daemon, member: User, other: User) -> None:
    done(member, LOOP)
    document = json.loads(json.loads(done(other, READS[4]))["data"][0])
    supported = {row["name"] for row in document["tunables"] if row["supported"]}
    assert {"hugepages", "overcommit", "io-scheduler"} <= supported
    assert all(row["detail"] for row in document["tunables"] if not row["supported"])
    assert document["host"]["simulated"] is False
    (claim,) = document["claims"]
    assert (claim["id"], claim["matches"]) == ("runtime:io-scheduler@loop[0-1]", ["loop0", "loop1"])
    assert MEMBER in claim["who"]
    own = {row["instance"]: row for row in document["targets"] if row["claim"]}
    assert {name: (row["value"], row["baseline"]) for name, row in own.items()} == {
        "loop0": ("mq-deadline", "none"),
        "loop1": ("mq-deadline", "none"),
    }


def test_introspection_is_the_contract(daemon: Daemon, other: User, root: User) -> None:
    settings = [["hugepages", host.pool(), "1"]]
    held, _ = root.call(names.MANAGER, "Hold", "a(sss)ssa{sv}", settings, "", "", {})
    tree = done(other, f"tree {NAME}")
    assert ROOT in tree
    assert held in tree
    for file in interface_files():
        shown = done(other, f"introspect --xml-interface {NAME} {held if file.stem == names.HOLD else ROOT}")
        assert f'<interface name="{file.stem}">' in shown
        assert set(re.findall(r'<(?:method|signal|property) name="\w+"', file.read_text())) <= set(
            re.findall(r'<(?:method|signal|property) name="\w+"', shown)
        )
    root.call(names.HOLD, "Release", "a{sv}", {}, path=held)


def test_properties_are_the_kernels_values(daemon: Daemon, other: User, loops: Sequence[str]) -> None:
    current, offered = other.get(names.IO_SCHEDULER, "Devices")["loop0"]
    assert (current, sorted(offered)) == (host.scheduler("loop0"), sorted(host.choices("loop0")))
    mode, ratio = (other.get(names.MEMORY, f"Overcommit{name}") for name in ("Mode", "Ratio"))
    assert (mode, ratio) == host.overcommit()
    assert other.get(names.MEMORY, "CommitLimit") == host.meminfo()["CommitLimit"]


def test_a_pass_is_announced_once(daemon: Daemon, member: User, other: User, loops: Sequence[str]) -> None:
    """To everybody who listens: one Changed, and one PropertiesChanged for each interface whose values differ."""
    start = other.get(names.MANAGER, "Generation")
    ear = other.listen()
    member.set(
        ("io-scheduler", "loop0", "mq-deadline"), ("io-scheduler", "loop1", "mq-deadline"), ("overcommit", "", "always")
    )
    before_marker = other.get(names.MANAGER, "Generation")
    member.set_scheduler("loop3", "mq-deadline")
    last = before_marker + 1
    # Of one pass, Changed comes last.
    heard = other.heard(ear, lambda so_far: any(h.signal == "Changed" and h.args[0] == last for h in so_far))

    announced = [h.args for h in heard if h.signal == "Changed" and h.args[0] > start]
    assert [generation for generation, _cause, _outcomes in announced] == list(range(start + 1, last + 1))
    assert [cause for _generation, cause, _outcomes in announced] == ["Set", "Set", "SetScheduler"]
    rows = {(row[0], row[1]): row[2:7] for _g, cause, outcomes in announced if cause == "Set" for row in outcomes}
    assert rows["io-scheduler", "loop0"] == ["mq-deadline", "none", "mq-deadline", "satisfied", "ok"]
    assert rows["io-scheduler", "loop1"] == ["mq-deadline", "none", "mq-deadline", "satisfied", "ok"]
    assert rows["overcommit", ""][0] == "always:95"

    properties = [h.args[:2] for h in heard if h.signal == "PropertiesChanged"]
    devices = [values["Devices"] for interface, values in properties if interface == names.IO_SCHEDULER]
    assert [(row["loop1"][0], row["loop3"][0]) for row in devices] == [("mq-deadline", "none"), ("mq-deadline",) * 2]
    assert devices[-1] == other.get(names.IO_SCHEDULER, "Devices")
    # The guard begins to watch with it, and says so when it does.
    memory = [values for interface, values in properties if interface == names.MEMORY]
    assert [values["OvercommitMode"] for values in memory if "OvercommitMode" in values] == ["always"]


def test_root_can_monitor_with_busctl(daemon: Daemon, member: User, root: User, loops: Sequence[str]) -> None:
    monitor = subprocess.Popen(
        ["busctl", "monitor", names.BUS_NAME],
        env=root.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
    )  # fmt: skip
    assert monitor.stdout is not None
    deadline = threading.Timer(LIMIT, monitor.kill)
    deadline.start()
    try:
        until(monitor.stdout.readline, "Monitoring bus message stream")
        member.set_scheduler("loop0", "mq-deadline")
        until(monitor.stdout.readline, "Member=Changed")
        until(monitor.stdout.readline, '"io-scheduler"')
    finally:
        deadline.cancel()
        monitor.kill()
        monitor.wait(LIMIT)
        monitor.stdout.close()


def until(read: Callable[[], str], wanted: str) -> None:
    """Read lines up to the one that holds the text."""
    seen = []
    while text := read():
        seen.append(text)
        if wanted in text:
            return
    raise AssertionError(f"no {wanted} in {''.join(seen)}")
