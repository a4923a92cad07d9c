"""The service on the system bus: who may call it, what busctl shows of it, and a bus or a polkit that goes away."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from kerntune.api.contract import interface_files
from kerntune.api.names import BUS_NAME, HOLD, ROOT
from tests.system.host import RELOAD, RESET, Host, Setting, call
from tests.system.machine import Machine

MIB = 1 << 20
SETTINGS: tuple[Setting, ...] = (
    ("hugepages", "2M", "16"),
    ("overcommit", "", "always:95"),
    ("cpu-governor", "*", "performance"),
    ("io-scheduler", "vdb", "mq-deadline"),
)
SET = call('Set "a(sss)a{sv}" 1 cpu-governor 0 performance 0')
ORDINARY = ("bob", "alice", "nobody")  # a member of the group, somebody outside, and uid 65534
CONFIG = "/etc/kerntune/kerntune.d/90-access.toml"
PROFILES = {"access": "mq-deadline", "access-other": "none"}
# The calls that only an administrator may make.
MANAGING = {
    "SetProfile": "SetProfile 'sa{sv}' access-other 0",
    "ClearProfile": "ClearProfile 'a{sv}' 0",
    "Reset": RESET,
    "Reset-baseline": "Reset 'a{sv}' 1 baseline b true",
    "Reload": RELOAD,
}
MEMBERS = ("method", "signal", "property")
POLKIT_BACK = "systemctl unmask --runtime polkit.service && systemctl start polkit.service"


@pytest.fixture
def managed(host: Host) -> Iterator[Host]:
    """Give the machine with claims of both origins, a profile, and a configuration that nobody has read yet."""
    folder = "/etc/kerntune/profiles"
    for name, scheduler in PROFILES.items():
        host.vm.write(f"{folder}/{name}.toml", f'[io-scheduler]\nvdb = "{scheduler}"\n')
    assert not host.set(("hugepages", "2M", "16")).refusal
    assert not host.set(("cpu-governor", "*", "performance"), persist=True).refusal
    host.vm.check(call("SetProfile 'sa{sv}' access 0"))
    host.vm.write(CONFIG, '[sysctl]\n"vm.swappiness" = 33\n')
    yield host
    host.vm.check(f"rm -f {CONFIG}")
    for member in (RESET, MANAGING["ClearProfile"], RELOAD):
        host.vm.check(call(member))
    host.vm.check(f"rm -f {' '.join(f'{folder}/{name}.toml' for name in PROFILES)}")


def standing(host: Host) -> tuple[object, ...]:
    """Return what such a call changes: the profile, the claims, the reasons of Degraded, and the kernel's values."""
    document = host.describe()
    claims = {claim["id"]: claim["value"] for claim in document["claims"]}
    return document["profile"], claims, document["degraded"], host.snapshot()


@pytest.fixture
def without_polkit(host: Host) -> Iterator[Host]:
    """Give the machine with polkitd stopped and masked; it runs again after the test."""
    host.vm.check("systemctl mask --runtime --now polkit.service")
    yield host
    host.vm.check(POLKIT_BACK)


@pytest.mark.every_system
def test_a_member_may(host: Host) -> None:
    answer = host.set(*SETTINGS, user="bob")
    assert {row.state for row in answer.outcomes} == {"satisfied"}
    assert (host.pages(), host.overcommit(), host.governor(1)) == (16, (1, 95), "performance")
    assert host.scheduler("vdb") == "mq-deadline"
    assert not host.unset(*((tunable, "*") for tunable, _, _ in SETTINGS), user="bob").refusal
    assert (host.pages(), host.overcommit(), host.governor(1)) == (0, (0, 50), "schedutil")


@pytest.mark.every_system
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_somebody_else_may_not(host: Host, setting: Setting) -> None:
    answer = host.set(setting, user="alice")
    assert "denied" in answer.refusal
    assert host.claims() == {}
    assert (host.pages(), host.overcommit(), host.governor(0)) == (0, (0, 50), "schedutil")
    assert host.describe(user="alice")["claims"] == []
    assert not host.plan(setting, user="alice").refusal, "plans are for everybody"


@pytest.mark.parametrize("member", MANAGING.values(), ids=MANAGING)
def test_only_an_administrator_manages(managed: Host, member: str) -> None:
    before = standing(managed)
    assert before[0] == "access"
    for user in ORDINARY:
        refused = managed.vm.run(call(member), user=user)
        assert refused.status != 0, f"{user} was let through"
        assert "denied" in refused.err, f"{user}: {refused.err}"
        assert standing(managed) == before, f"{user} was refused, and something changed"
    managed.vm.check(call(member))
    assert standing(managed) != before, "root's call changes nothing, so the refusals prove nothing"


@pytest.mark.every_system
def test_a_session_is_asked_for_the_password(host: Host, vm: Machine) -> None:
    allowed = vm.run(f"polkit-agent root {SET}", user="alice", session=True)
    assert allowed.status == 0, allowed.err
    assert "asked: org.kerntune.Tuner1.set: Authentication is required to change CPU governors" in allowed.err
    assert host.governor(0) == "performance"
    (claim,) = host.describe()["claims"]
    assert "alice" in claim["who"]


def test_a_session_that_does_not_know_the_password_is_refused(host: Host, vm: Machine) -> None:
    for password in ("''", "wrong"):
        refused = vm.run(f"polkit-agent {password} {SET}", user="alice", session=True)
        assert refused.status != 0
        assert "asked: org.kerntune.Tuner1.set:" in refused.err
        assert "denied" in refused.err
    assert host.governor(0) == "schedutil"
    assert host.claims() == {}


@pytest.mark.every_system
def test_while_polkit_is_away_root_may_and_others_read(without_polkit: Host) -> None:
    refused = without_polkit.vm.run("kerntune set hugepages=16", user="bob")
    assert refused.status == 4
    assert "polkit" in refused.err
    assert without_polkit.pages() == 0
    assert without_polkit.describe(user="bob")["claims"] == []
    assert without_polkit.describe(user="alice")["claims"] == []
    assert not without_polkit.set(SETTINGS[0]).refusal
    assert without_polkit.pages() == 16
    without_polkit.vm.check(POLKIT_BACK)
    assert not without_polkit.set(SETTINGS[0], user="bob").refusal


@pytest.mark.parametrize("persist", [False, True], ids=["runtime", "persist"])
def test_a_member_cannot_lock_the_host_out_of_its_memory(host: Host, persist: bool) -> None:
    answer = host.set(("overcommit", "", "never:1"), user="bob", persist=persist)
    found = re.search(r"commit limit (\d+) MiB.* (\d+) MiB are committed", answer.refusal)
    assert found, answer.refusal
    memory = host.meminfo()
    assert int(found[1]) == pytest.approx((memory["MemTotal"] - memory["Hugetlb"]) // 100 // MIB, abs=2)
    assert int(found[2]) == pytest.approx(memory["Committed_AS"] // MIB, abs=100)
    assert host.overcommit() == (0, 50)
    assert host.claims() == {}


@pytest.mark.parametrize("persist", [False, True], ids=["runtime", "persist"])
def test_a_member_cannot_take_more_than_three_quarters_of_the_memory(host: Host, persist: bool) -> None:
    memory = host.meminfo()
    ceiling = (memory["MemTotal"] * 75 // 100 - memory["Hugetlb"]) // (2 * MIB)
    answer = host.set(("hugepages", "2M", str(ceiling + 1)), user="bob", persist=persist)
    found = re.search(
        r"(\d+) pages \(.*\) asked for 2M, (\d+) \(.*\) possible, (\d+)(?: \([^)]*\))? there now.*75 % of RAM",
        answer.refusal,
    )
    assert found, answer.refusal
    assert (int(found[1]), int(found[3])) == (ceiling + 1, 0)
    assert int(found[2]) <= ceiling
    assert host.pages() == 0
    assert host.claims() == {}


@pytest.mark.every_system
def test_busctl_shows_a_well_formed_tree(host: Host, vm: Machine) -> None:
    tree = vm.check(["busctl", "tree", "--list", BUS_NAME], user="alice").splitlines()
    assert ROOT in tree
    for path in tree:
        ET.fromstring(vm.check(["busctl", "introspect", "--xml-interface", BUS_NAME, path], user="alice"))


def test_introspection_is_the_contract(host: Host, vm: Machine) -> None:
    held = json.loads(vm.check("kerntune hold --json --detach --ttl 10m hugepages@2M=1"))["hold"]
    for file in interface_files():
        path = f"{ROOT}/hold/{held}" if file.stem == HOLD else ROOT
        shown = ET.fromstring(vm.check(["busctl", "introspect", "--xml-interface", BUS_NAME, path], user="alice"))
        (interface,) = shown.iterfind(f"interface[@name='{file.stem}']")
        (contract,) = ET.parse(file).getroot().iterfind("interface")
        for kind in MEMBERS:
            assert {row.get("name") for row in interface.iter(kind)} == {row.get("name") for row in contract.iter(kind)}
    vm.check(f"kerntune release {held}")
    rows = vm.check(["busctl", "introspect", BUS_NAME, ROOT], user="alice")
    assert re.search(r"\.SetCount\s+method\s+tta\{sv\}\s+t\s", rows)
    assert re.search(r"\.Pools\s+property\s+a\(tsttttt\)", rows)


def test_a_monitor_hears_what_changes(host: Host, vm: Machine) -> None:
    watching = vm.spawn(f"exec busctl monitor {BUS_NAME} 2>&1")
    watching.wait_output("Monitoring bus message stream")
    host.set(("cpu-governor", "*", "performance"), user="bob")
    watching.wait_output("Member=Changed")
    watching.kill()
    assert 'STRING "policy0"' in watching.wait().out


def test_it_comes_back_after_the_bus(host: Host, vm: Machine) -> None:
    host.set(("hugepages", "2M", "24"), ("cpu-governor", "*", "performance"), user="bob")
    claims = host.claims()
    pid = host.pid
    vm.check("systemctl kill --signal=KILL dbus.service")
    vm.wait_for("systemctl is-active --quiet dbus.service")
    host.wait_restarted(pid)
    vm.wait_for(f"busctl call {BUS_NAME} {ROOT} org.freedesktop.DBus.Peer Ping")
    assert host.claims() == claims
    assert [host.pages(), host.governor(0)] == [24, "performance"]
    vm.wait_for("busctl call org.freedesktop.PolicyKit1 / org.freedesktop.DBus.Peer Ping")
    assert not host.set(("hugepages", "2M", "8"), user="bob").refusal
    host.release()
    assert [host.pages(), host.governor(0)] == [0, "schedutil"]
