"""Who may: a member of the group, somebody else, somebody with the password, and everybody while polkit is away."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.system.host import Host, Setting
from tests.system.machine import Machine

MIB = 1 << 20
SETTINGS: tuple[Setting, ...] = (
    ("hugepages", "2M", "16"),
    ("overcommit", "", "always:95"),
    ("cpu-governor", "*", "performance"),
    ("io-scheduler", "vdb", "mq-deadline"),
)
SET = f'busctl call {BUS_NAME} {ROOT} {MANAGER} Set "a(sss)a{{sv}}" 1 cpu-governor 0 performance 0'


ORDINARY = ("bob", "alice", "nobody")  # a member of the group, somebody outside, and uid 65534
CONFIG = "/etc/kerntune/kerntune.d/90-access.toml"
PROFILES = {"access": "mq-deadline", "access-other": "none"}
# What only an administrator may do: the words of busctl after the name of the interface.
MANAGING = {
    "SetProfile": "SetProfile 'sa{sv}' access-other 0",
    "ClearProfile": "ClearProfile 'a{sv}' 0",
    "Reset": "Reset 'a{sv}' 0",
    "Reset-baseline": "Reset 'a{sv}' 1 baseline b true",
    "Reload": "Reload 'a{sv}' 0",
}


@pytest.fixture
def managed(host: Host) -> Iterator[Host]:
    """The machine with claims of both origins, a chosen profile, and a configuration that was not read yet."""
    folder = "/etc/kerntune/profiles"
    for name, scheduler in PROFILES.items():
        host.vm.write(f"{folder}/{name}.toml", f'[io-scheduler]\nvdb = "{scheduler}"\n')
    assert not host.set(("hugepages", "2M", "16")).refusal
    assert not host.set(("cpu-governor", "*", "performance"), persist=True).refusal
    host.vm.check(f"busctl call {BUS_NAME} {ROOT} {MANAGER} SetProfile 'sa{{sv}}' access 0")
    host.vm.write(CONFIG, '[sysctl]\n"vm.swappiness" = 33\n')
    yield host
    host.vm.check(f"rm -f {CONFIG}")
    for words in (MANAGING["Reset"], MANAGING["ClearProfile"], MANAGING["Reload"]):
        host.vm.check(f"busctl call {BUS_NAME} {ROOT} {MANAGER} {words}")
    host.vm.check(f"rm -f {' '.join(f'{folder}/{name}.toml' for name in PROFILES)}")


def standing(host: Host) -> tuple[object, ...]:
    """Return what a managing call changes: the profile, the claims, what is wrong, and the kernel's values."""
    document = host.describe()
    claims = {claim["id"]: claim["value"] for claim in document["claims"]}
    return document["profile"], claims, document["degraded"], host.snapshot()


@pytest.fixture
def without_polkit(host: Host) -> Iterator[Host]:
    """The machine while polkitd is stopped and cannot be started; it runs again after the test."""
    host.vm.check("systemctl mask --runtime --now polkit.service")
    yield host
    host.vm.check("systemctl unmask --runtime polkit.service && systemctl start polkit.service")


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


@pytest.mark.parametrize("words", MANAGING.values(), ids=MANAGING)
def test_only_an_administrator_manages(managed: Host, words: str) -> None:
    before = standing(managed)
    assert before[0] == "access"
    call = f"busctl call {BUS_NAME} {ROOT} {MANAGER} {words}"
    for user in ORDINARY:
        refused = managed.vm.run(call, user=user)
        assert refused.status != 0, f"{user} was let through"
        assert "denied" in refused.err, f"{user}: {refused.err}"
        assert standing(managed) == before, f"{user} was refused, and something changed"
    managed.vm.check(call)
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
    without_polkit.vm.check("systemctl unmask --runtime polkit.service && systemctl start polkit.service")
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
    found = re.search(r"(\d+) pages asked for 2M, (\d+) possible, (\d+) there now.*75 % of RAM", answer.refusal)
    assert found, answer.refusal
    assert (int(found[1]), int(found[3])) == (ceiling + 1, 0)
    assert int(found[2]) <= ceiling
    assert host.pages() == 0
    assert host.claims() == {}
