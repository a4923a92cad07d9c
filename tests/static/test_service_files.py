"""The files that the service is shipped with: interfaces, bus policy, polkit, units, configuration and profiles.

Interfaces have one shape and are documented in place. Each opening of a unit has a reason, and the daemon can write
what it has to and no more. The lines of the configuration can be used as they stand.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import tomllib
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tools import config_reference

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.cli.held import RELEASE_SECONDS
from kerntune.cli.holds import MANAGER_SECONDS
from kerntune.config import schema
from kerntune.config.active import ActiveConfig
from kerntune.config.content import Content
from kerntune.config.parser import parse
from kerntune.config.profiles import Profiles
from kerntune.config.schema import OPTIONS, PROFILE
from kerntune.config.sources import ConfigFiles
from kerntune.daemon.app import RESTORE, SETTLE, Status
from kerntune.dbus import standard
from kerntune.engine.claims import Choice
from kerntune.engine.reconciler import Reconciler
from kerntune.explained import config_table
from kerntune.kernel.files import WRITABLE
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Limits
from kerntune.paths import folders
from kerntune.tunables import REGISTRY
from tests.harness import CHECKOUT
from tests.harness.privatebus import POLICY
from tests.unit.lab import MemoryStore

FILES = interface_files()
EMITS = {"true", "invalidates", "const", "false"}
STANDARD = {f"{standard.BUS}.{name}" for name in ("Introspectable", "ObjectManager", "Peer", "Properties")}
# The methods that change nothing and take no options; every other method ends in them.
READING = {"Verify", "Describe", "ListProfiles"}
ACTIONS = {
    action.attrib["id"]: action
    for action in ElementTree.parse(CHECKOUT / "dbus/org.kerntune.Tuner1.policy").getroot().iter("action")
}
RULE = re.sub(r"^\s*//.*$", "", (CHECKOUT / "dbus/50-kerntune.rules").read_text(), flags=re.MULTILINE)
SYSUSERS = CHECKOUT / "systemd/kerntune.sysusers"

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def interface(file: Path) -> ElementTree.Element:
    (found,) = ElementTree.parse(file).getroot().findall("interface")
    return found


def every(kind: str) -> list[ElementTree.Element]:
    return [member for file in FILES for member in interface(file).findall(kind)]


def arguments(method: ElementTree.Element) -> list[tuple[str, str]]:
    """Return the names and types of what a method takes."""
    return [(a.attrib["name"], a.attrib["type"]) for a in method.findall("arg") if a.attrib["direction"] == "in"]


def rules(**policy: str) -> list[tuple[str, dict[str, str]]]:
    """Return what the policies with these attributes allow and deny."""
    policies = ElementTree.parse(POLICY).getroot().findall("policy")
    return [(rule.tag, rule.attrib) for found in policies if found.attrib == policy for rule in found]


# The contract


@each_file
def test_a_file_holds_the_interface_it_is_named_after(file: Path) -> None:
    assert interface(file).attrib["name"] == file.stem


@each_file
def test_every_member_is_documented_where_it_stands(file: Path) -> None:
    documented = re.findall(
        r'<!--\s*(\w+):(?:(?!-->).)*-->\s*<(?:method|property|signal) name="(\w+)"', file.read_text(), re.DOTALL
    )
    assert [member for said, member in documented if said == member] == [m.attrib["name"] for m in interface(file)]


@pytest.mark.parametrize("method", every("method"), ids=lambda method: method.attrib["name"])
def test_what_a_method_takes(method: ElementTree.Element) -> None:
    """What changes something ends in options; and busctl would take a number below 0 for an option of its own."""
    taken = arguments(method)
    if method.attrib["name"] in READING:
        assert taken == []
    else:
        assert taken[-1] == ("options", "a{sv}")
    assert [name for name, signature in taken if set("nixh") & set(signature)] == []


def test_settings_and_outcomes_are_spelt_one_way() -> None:
    spelt = {"settings": f"a{names.SETTING}", "outcomes": "a(ssssssss)"}
    for member in every("method") + every("signal"):
        for arg in member.findall("arg"):
            assert arg.attrib["type"] == spelt.get(arg.attrib["name"], arg.attrib["type"]), member.attrib["name"]


def test_properties_are_read_only_and_say_how_they_change() -> None:
    for prop in every("property"):
        assert prop.attrib["access"] == "read", prop.attrib["name"]
        for note in prop.findall("annotation"):
            assert note.attrib["name"] == f"{standard.BUS}.Property.EmitsChangedSignal"
            assert note.attrib["value"] in EMITS


# The bus


def test_root_alone_owns_the_name_and_everybody_may_call_the_interfaces_there_are() -> None:
    assert rules(user="root") == [("allow", {"own": names.BUS_NAME})]
    wanted = {file.stem for file in FILES} | STANDARD
    expected = [("allow", {"send_destination": names.BUS_NAME, "send_interface": name}) for name in sorted(wanted)]
    assert sorted(rules(context="default"), key=str) == sorted(expected, key=str), "dbus/org.kerntune.Tuner1.conf"


def test_activation_goes_through_the_unit() -> None:
    activation = ConfigParser(interpolation=None)
    activation.read(CHECKOUT / "dbus/org.kerntune.Tuner1.service")
    service = activation["D-BUS Service"]
    assert service["Name"] == names.BUS_NAME
    assert (CHECKOUT / "systemd" / service["SystemdService"]).exists()
    assert service["Exec"] == "/bin/false", "without systemd the bus starts nothing"


# polkit


def test_there_is_every_action_that_is_asked_for() -> None:
    asked = {value for name, value in vars(names).items() if name.startswith("ACTION_")}
    asked |= {f"{names.BUS_NAME}.{tunable.action}" for tunable in REGISTRY}
    assert asked == ACTIONS.keys()


@pytest.mark.parametrize("action", ACTIONS)
def test_only_administrators_by_default_and_they_are_asked_in_its_words(action: str) -> None:
    defaults = ACTIONS[action].find("defaults")
    assert defaults is not None
    assert {default.tag: default.text for default in defaults} == {
        "allow_any": "auth_admin",
        "allow_inactive": "auth_admin",
        "allow_active": "auth_admin_keep",
    }
    assert re.fullmatch(r"Authentication is required to .+\.", ACTIONS[action].findtext("message", ""))
    assert ACTIONS[action].findtext("description")


def test_no_two_actions_ask_for_the_same() -> None:
    assert len({action.findtext("message") for action in ACTIONS.values()}) == len(ACTIONS)


def test_the_rule_says_yes_to_members_for_all_but_managing() -> None:
    open_to_members = ACTIONS.keys() - {names.ACTION_MANAGE}
    assert {*re.findall(r'"([^"]*)"', RULE)} == {*open_to_members, "kerntune"}
    assert re.findall(r"polkit\.Result\.(\w+)", RULE) == ["YES"]
    assert RULE.count('subject.isInGroup("kerntune")') == RULE.count("&&") == 1


def test_the_page_about_access_has_every_action_and_those_of_the_group_first() -> None:
    page = (CHECKOUT / "docs/access.md").read_text()
    told = re.findall(r"^\| `(org\.\S+)` \|", page, re.M)
    assert sorted(told) == sorted(ACTIONS)
    assert told[-1] == names.ACTION_MANAGE
    assert len(told) == 4, "the page counts them"
    assert "`50-kerntune.rules` gives the first three to the group" in page


def test_the_group_is_all_that_sysusers_makes(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", "-"], input=SYSUSERS.read_text(),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = re.findall(r"Creating (\w+) '([^']+)'", done.stdout + done.stderr)
    assert made == [("group", "kerntune")]


# The units


FOLDER = CHECKOUT / "systemd"
DAEMON, TARGET, METRICS = "kerntuned.service", "kerntune.target", "kerntune-metrics.service"
HOLD, HELD = "kerntune-hold@.service", "kerntune-hold@ai-inference.service"
UNIT = (FOLDER / DAEMON).read_text()
WRITTEN = [Path("/", re.sub(r"^sys/(block|class)/", "sys/devices/", pattern)) for pattern in WRITABLE]

# What `systemd-analyze security` finds open in a service, and why it has to be.
OPEN = {
    "RootDirectoryOrRootImage": "Python and the host's programs are in the host's root",
    "UserOrDynamicUser": "root owns the files that are tuned",
    "RestrictAddressFamilies_AF_UNIX": "D-Bus and the journal are unix sockets",
    "ProcSubset": "/proc/meminfo and /proc/sys are read",
    "PrivateUsers": "root of another user namespace owns no file that is tuned",
    "DeviceAllow": "systemd adds the clock by ProtectClock=, which is read-only",
}
# Debian 12's systemd-analyze does not see that ProtectSystem= and others bring a namespace for mounts.
NOT_SEEN = {"PrivateMounts"}
OPEN_FOR_METRICS = {"UMask": "everybody may read the metrics"}
OPEN_FOR_THE_DAEMON = {
    "ProtectKernelTunables": "it makes /proc/sys and /sys read-only over ReadWritePaths=",
    "RestrictAddressFamilies_AF_NETLINK": "device events are netlink",
    "ProtectProc": "who holds huge pages is read from /proc/PID/status of every process",
    "PrivateNetwork": "device events arrive in the host's network namespace only",
}


def settings(name: str, text: str = UNIT) -> list[str]:
    """Return the values of a setting, in the order of the file."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def words(name: str) -> list[str]:
    """Return the words of all values of a setting."""
    return " ".join(settings(name)).split()


def analyze(unit: Path, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask systemd-analyze about a unit."""
    return subprocess.run(
        ["systemd-analyze", verb, *options, str(unit)], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the units; their programs are ones that are there, for systemd-analyze looks for them."""
    for unit in (path for path in FOLDER.iterdir() if path.suffix in {".service", ".target", ".timer"}):
        text = re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    (tmp_path / HELD).symlink_to(HOLD)
    return tmp_path


def exposed(unit: Path) -> set[str]:
    """Return what systemd-analyze finds open in a service."""
    done = analyze(unit, "security", "--offline=true", "--json=short", "--no-pager")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return {row["json_field"] for row in rows if float(row["exposure"] or 0)} - NOT_SEEN


@pytest.mark.parametrize("unit", [DAEMON, TARGET, METRICS, HELD, "kerntune-metrics.timer"])
def test_systemd_accepts_it(folder: Path, unit: str) -> None:
    done = analyze(folder / unit, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_would_see_a_mistake(folder: Path) -> None:
    unit = folder / DAEMON
    unit.write_text(unit.read_text().replace("LockPersonality=", "LockPersonalty="))
    assert "LockPersonalty" in analyze(unit, "verify", "--man=no").stderr


@pytest.mark.parametrize(
    ("unit", "reasons"), [(DAEMON, OPEN | OPEN_FOR_THE_DAEMON), (METRICS, OPEN | OPEN_FOR_METRICS), (HELD, OPEN)]
)
def test_what_is_open_has_its_reason_and_nothing_else_is_open(folder: Path, unit: str, reasons: dict[str, str]) -> None:
    assert exposed(folder / unit) == reasons.keys()


def test_what_strict_leaves_open_is_closed() -> None:
    """ProtectSystem=strict excepts /proc and /sys, and systemd makes the folder of the configuration writable."""
    (configuration,) = settings("ConfigurationDirectory")
    assert {*words("ReadOnlyPaths"), *words("BindReadOnlyPaths")} >= {
        "/proc/sys", "/sys", "/run", f"/etc/{configuration}"
    }  # fmt: skip


def test_every_setting_is_said_once() -> None:
    names = re.findall(r"^(\w+)=", UNIT, re.MULTILINE)
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == {"Wants", "After", "Before", "SystemCallFilter"}


@pytest.mark.parametrize(
    ("name", "value", "because"),
    [
        ("Type", "notify", "workloads start when READY=1 has come"),
        ("WatchdogSec", "30", "a daemon that hangs is started anew"),
        ("Restart", "always", "a daemon that crashed comes back"),
        ("StartLimitIntervalSec", "0", "however often"),
        ("RestartPreventExitStatus", str(Status.TAKEN.value), "but not beside another one that has the name"),
        ("OOMScoreAdjust", "-900", "it is needed when memory is short"),
        ("LimitMEMLOCK", "infinity", "so is what it has locked"),
        ("LimitCORE", "0", "an abort would write all that is locked to a disk"),
        ("RuntimeDirectoryPreserve", "yes", "what the host had is known over a stop"),
        ("StateDirectoryMode", "0700", "what it saves names users"),
        ("RuntimeDirectoryMode", "0700", "so does this"),
        ("UMask", "0077", "and each file"),
        ("WantedBy", "multi-user.target", "it starts at boot"),
    ],
)
def test_what_a_host_can_rely_on(name: str, value: str, because: str) -> None:
    assert settings(name) == [value], because


def test_there_is_time_to_stop() -> None:
    (seconds,) = settings("TimeoutStopSec")
    assert int(seconds) >= SETTLE + RESTORE + 10


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("BusName", "it belongs to Type=dbus; READY=1 comes later than the name"),
        ("Alias", "activation names the unit itself, so that it works where the unit is not enabled"),
        ("Conflicts", "one unprivileged call to the bus could then stop the other service"),
        ("DefaultDependencies", "the order of the boot is the usual one"),
    ],
)
def test_what_must_stay_unset(name: str, because: str) -> None:
    assert settings(name) == [], because


def test_a_missing_path_does_not_fail_the_start() -> None:
    assert words("ReadWritePaths")
    assert all(path.startswith("-/") for path in words("ReadWritePaths"))


def test_what_the_daemon_writes_is_writable_and_no_path_is_writable_in_vain() -> None:
    # /sys/block and /sys/class hold links into /sys/devices only.
    allowed = [path.lstrip("-") for path in words("ReadWritePaths")]
    assert [path for path in WRITTEN if not any(path.is_relative_to(root) for root in allowed)] == []
    assert [root for root in allowed if not any(path.is_relative_to(root) for path in WRITTEN)] == []


def test_order_of_the_boot() -> None:
    assert set(words("Wants")) == {"dbus.socket", TARGET}
    assert set(words("After")) >= {"dbus.socket", "dbus.service", "systemd-sysctl.service", "tuned.service"}
    assert set(words("After")) >= {"systemd-modules-load.service", "power-profiles-daemon.service"}
    # kerntuned(8) promises it to these.
    assert set(words("Before")) >= {TARGET, "kubelet.service", "docker.service", "containerd.service"}
    assert set(words("Before")) >= {"ollama.service", "libvirtd.service", "slurmd.service"}
    # Before one of these would close a circle with the default dependencies.
    assert not {"basic.target", "sysinit.target"} & set(words("Before"))


def test_the_target_brings_the_service_and_does_not_bind_to_it() -> None:
    said = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / TARGET).read_text(), re.MULTILINE))
    assert (said.pop("Wants"), said.pop("After")) == (DAEMON, DAEMON)
    # Anything more, such as Requires=, would stop workloads when the service is restarted.
    assert set(said) == {"Description", "Documentation"}


@pytest.mark.parametrize(
    ("name", "value", "because"),
    [
        ("Type", "notify", "it is active only when the hold is granted"),
        ("Restart", "on-abnormal", "a refusal stays, and so does the end of a kerntuned that was stopped"),
        ("StopWhenUnneeded", "yes", "nothing is left when the last model server has been stopped"),
        ("Wants", DAEMON, "a restart of the daemon must not restart it: the hold survives that"),
        ("ExecStart", "/usr/bin/kerntune hold --profile=%i --who=%n", "%I would have a slash for each hyphen"),
    ],
)
def test_what_a_model_server_can_rely_on(name: str, value: str, because: str) -> None:
    assert settings(name, (FOLDER / HOLD).read_text()) == [value], because


def test_a_hold_has_the_time_that_the_call_has() -> None:
    (limit,) = settings("TimeoutStartSec", (FOLDER / HOLD).read_text())
    assert int(limit.removesuffix("min")) * 60 > names.EDIT_SECONDS


def test_the_hold_is_over_before_a_stop_would_kill_it() -> None:
    assert "TimeoutStopSec" not in (FOLDER / HOLD).read_text()
    assert RELEASE_SECONDS + MANAGER_SECONDS < 60  # systemd's default is 90 s


# The configuration


TUNABLES = {tunable.name: tunable for tunable in REGISTRY}


def test_every_limit_is_a_field_of_the_model_and_has_its_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Limits)}
    for option in OPTIONS:
        assert option.checked(option.default) == option.default
        if option.table == "limits":
            assert fields[option.name.replace("-", "_")] == option.default
    limits = [option for option in OPTIONS if option.table == "limits"]
    least = {option.path: 0 if option.accepts(0) else 1 for option in limits}
    assert schema.limits_from(least) == Limits(0, 1, 0, 0, 0)
    assert all(not option.accepts(number) for option in limits for number in (-1, True, "5"))


def test_no_table_has_two_meanings() -> None:
    assert {option.table for option in OPTIONS}.isdisjoint(TUNABLES)


def test_the_shipped_file_says_nothing() -> None:
    config = ConfigFiles(CHECKOUT / config_reference.FILE, None, REGISTRY).read()
    assert (config.claims, config.problems, config.limits) == ((), (), Limits())


def test_the_shipped_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither parsed nor saved, so it costs a service nothing that is never to be in the way."""
    monkeypatch.setattr("tomllib.loads", lambda _text: pytest.fail("it was parsed"))
    (tmp_path / "kerntune.toml").write_bytes((CHECKOUT / config_reference.FILE).read_bytes())
    (tmp_path / "run").mkdir()
    engine = Reconciler(SimulatedKernel([]), REGISTRY, MemoryStore())
    try:
        assert ActiveConfig(tmp_path, tmp_path / "run", engine, set()).read(Choice()) == (Content(), Content())
    finally:
        engine.threads.close()
    assert not list((tmp_path / "run").iterdir())


def test_without_its_marks_the_shipped_file_is_in_order() -> None:
    """Each line can be used as it stands: its table is above it."""
    text = re.sub(r"^#(?=\S)", "", (CHECKOUT / config_reference.FILE).read_text(), flags=re.M)
    found = parse(Path("kerntune.toml"), text.encode(), TUNABLES)
    assert found.problems == ()
    assert found.options == {option.path: option.default for option in OPTIONS} | {PROFILE.path: "balanced"}
    assert len(found.claims) == sum(len(config_table(tunable).examples) for tunable in REGISTRY)


# The shipped profiles


PROFILE_FILES = sorted((CHECKOUT / "packaging/profiles").glob("*.toml"))
PROFILES = Profiles(folders(Path("/nonexistent")), REGISTRY)
EVIDENCE = ("measured: ", "documentation (kernel): ", "documentation (vendors): ")
NOT_TABLES = {"summary", "include"}


@pytest.mark.parametrize("file", PROFILE_FILES, ids=lambda file: file.stem)
def test_a_profile_is_in_order_and_each_value_has_its_reason_and_evidence(file: Path) -> None:
    profile = PROFILES.read(file.stem)
    assert profile.summary
    assert profile.problems == ()
    # Huge pages and overcommit depend on the model, which its user knows.
    assert {claim.tunable for claim in profile.claims}.isdisjoint({"hugepages", "overcommit"})
    assert profile.claims
    text = file.read_text()
    tables = {name: table for name, table in tomllib.loads(text).items() if name not in NOT_TABLES}
    for table, entries in tables.items():
        for pattern, entry in entries.items():
            assert entry.keys() == {"value", "why"}, (table, pattern)
            assert entry["why"].startswith(EVIDENCE), (table, pattern)
    # Also for who reads the file: a comment above each.
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if "{ value =" in line:
            assert above.startswith("# "), line


def test_profiles_are_named_where_people_look() -> None:
    manual, readme = (CHECKOUT / page for page in ("docs/man/kerntune.toml.5", "README.md"))
    listed = re.findall(r"^\.It Li ([a-z]+(?:-[a-z]+)?)$", manual.read_text(), re.M)
    assert sorted(listed) == list(PROFILES.files()) == [file.stem for file in PROFILE_FILES]
    assert [name for name in listed if name not in readme.read_text()] == []
