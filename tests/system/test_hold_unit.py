"""kerntune-hold@.service on a real host: a model server's unit requires it, and each side stops, crashes and restarts.

And who may hold from a service: an older polkit reads the user database, a newer one the groups of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.system.host import UNIT, Host
from tests.system.machine import Machine

pytestmark = pytest.mark.own_machine

PROFILE: Final = "/etc/kerntune/profiles/serving.toml"
PAGES: Final = 24
HOLD: Final = "kerntune-hold@serving.service"
SERVER: Final = "model-server.service"
SERVER_UNIT: Final = f"""
[Unit]
Requires={HOLD}
After={HOLD}
[Service]
ExecStart=/usr/bin/sleep infinity
DynamicUser=yes
"""


@pytest.fixture(scope="module", autouse=True)
def units(vm: Machine) -> None:
    # Its patterns match nothing too: what is granted is in force in part.
    vm.write(PROFILE, f'[hugepages]\n"2M" = {PAGES}\n[io-scheduler]\n"none-such*" = "none"\n')
    vm.write(f"/etc/systemd/system/{SERVER}", SERVER_UNIT)
    vm.check("systemctl daemon-reload")


@pytest.fixture
def served(host: Host) -> Iterator[Host]:
    """Give the machine with the model server running, and the profile held for it; nothing is left afterwards."""
    host.vm.check(f"systemctl start {SERVER}")
    yield host
    host.vm.check(f"systemctl start {UNIT}; systemctl stop {SERVER} '{HOLD}'; systemctl reset-failed")
    assert host.pages() == 0
    assert holds(host) == []


def holds(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.describe()["holds"]
    return found


def states(host: Host) -> list[str]:
    """Return how the unit of the hold and that of the server are."""
    return host.vm.run(f"systemctl is-active {HOLD} {SERVER}").out.split()


def pid(host: Host, unit: str) -> int:
    return int(host.unit("MainPID", unit))


@pytest.mark.every_system
def test_it_is_active_when_the_values_are_there_and_ends_with_the_last_that_requires_it(host: Host) -> None:
    host.vm.check(f"systemctl start {SERVER}")
    assert host.pages() == PAGES
    assert states(host) == ["active", "active"]
    (held,) = holds(host)
    assert (held["who"], held["uid"]) == (f"{HOLD}, root (kerntune)", 0)
    assert host.unit("StatusText", HOLD) == f"Hold {held['hold']}: all is in force"
    # It still counts as needed while the server restarts.
    host.vm.check(f"systemctl restart {SERVER}")
    assert [each["hold"] for each in holds(host)] == [held["hold"]]
    host.vm.check(f"systemctl stop {SERVER}")
    host.vm.wait_for(f"[ $(systemctl is-active {HOLD}) = inactive ]")
    assert host.pages() == 0
    assert host.unit("Result", HOLD) == "success"


def test_the_values_are_back_before_a_stop_returns(served: Host) -> None:
    served.vm.check(f"systemctl stop {HOLD}")
    assert served.pages() == 0
    # What requires it is stopped before it, so that no page is in use when they go.
    assert states(served) == ["inactive", "inactive"]


@pytest.mark.every_system
def test_a_hold_that_is_killed_comes_back_and_its_server_is_restarted(served: Host) -> None:
    hold, server = pid(served, HOLD), pid(served, SERVER)
    served.vm.check(f"kill -9 {hold}")
    served.vm.wait_for(f"[ $(systemctl show --value --property=MainPID {SERVER}) -gt {server} ]")
    assert states(served) == ["active", "active"]
    assert pid(served, HOLD) not in (0, hold)
    assert served.pages() == PAGES


def test_a_restart_of_the_unit(served: Host) -> None:
    (before,) = holds(served)
    served.vm.check(f"systemctl restart {HOLD}")
    assert states(served) == ["active", "active"]
    (after,) = holds(served)
    assert after["hold"] != before["hold"]
    assert served.pages() == PAGES


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_it_survives_the_next_daemon(served: Host, how: str) -> None:
    (before,) = holds(served)
    hold, daemon = pid(served, HOLD), served.pid
    served.vm.check(f"systemctl restart {UNIT}" if how == "restart" else f"kill -9 {daemon}")
    served.wait_restarted(daemon)
    assert [each["hold"] for each in holds(served)] == [before["hold"]]
    assert pid(served, HOLD) == hold
    assert states(served) == ["active", "active"]


@pytest.mark.timeout(300)
def test_a_daemon_that_was_stopped_is_not_started_by_it(served: Host) -> None:
    served.vm.check(f"systemctl stop {UNIT}")
    served.vm.wait_for(f"[ $(systemctl is-active {HOLD}) = failed ]", 120)
    assert served.unit("ActiveState") == "inactive"
    assert served.unit("ExecMainStatus", HOLD) == "5"
    assert "kerntuned has left the bus" in served.unit("StatusText", HOLD)
    assert states(served) == ["failed", "active"]


def test_a_hold_that_somebody_releases_ends_well(served: Host) -> None:
    (held,) = holds(served)
    served.vm.check(f"kerntune release {held['hold']}")
    served.vm.wait_for(f"[ $(systemctl is-active {HOLD}) = inactive ]")
    assert served.unit("Result", HOLD) == "success"
    assert served.pages() == 0


def test_a_refusal_says_why_and_is_not_tried_again(host: Host) -> None:
    unit = "kerntune-hold@none-such.service"
    assert host.vm.run(f"systemctl start {unit}").status
    assert host.unit("ExecMainStatus", unit) == "3"
    assert host.unit("NRestarts", unit) == "0"
    assert "there is no profile 'none-such'" in host.unit("StatusText", unit)
    assert "there is no profile 'none-such'" in host.vm.run(f"systemctl status {unit}").out
    host.vm.check(f"systemctl reset-failed {unit}")


# Who may hold from a service


JOIN: Final = "sudo usermod -aG kerntune alice"
GRANTED: Final = "Hold "


def service(vm: Machine, *properties: str) -> str:
    """Hold in a service with these properties; return what it says, which is the refusal or the grant."""
    options = " ".join(f"--property={each}" for each in properties)
    # Whoever is granted holds until the end of the time, which ends the hold.
    line = f"systemd-run --quiet --pipe --wait --collect {options} kerntune hold hugepages@2M=8 --ttl 1 2>&1"
    return " ".join(vm.run(line).out.split())


def reads_database(vm: Machine) -> bool:
    """Return whether this polkit is an older one, which reads the user database."""
    return float(vm.check("dpkg-query --show --showformat='${Version}' polkitd").split("-")[0]) < 124


@pytest.mark.every_system
def test_a_service_whose_user_is_no_member(host: Host) -> None:
    assert f"Members of the group kerntune may: {JOIN}, then log in again, or restart" in service(host.vm, "User=alice")
    lent = service(host.vm, "User=alice", "SupplementaryGroups=kerntune")
    refusal = f"This process has the group kerntune, but an older polkit reads the user database: {JOIN}"
    assert (refusal if reads_database(host.vm) else GRANTED) in lent
    assert holds(host) == []


@pytest.mark.every_system
def test_a_service_whose_user_is_a_member(host: Host) -> None:
    host.vm.check("usermod -aG kerntune alice")
    try:
        assert GRANTED in service(host.vm, "User=alice")
        # A session that is older than that has not got the group.
        bare = ["setpriv", "--reuid=alice", "--regid=alice", "--clear-groups", "kerntune", "hold", "hugepages@2M=8"]
        said = " ".join(host.vm.run(" ".join([*bare, "--ttl 1 2>&1"])).out.split())
        refusal = "The group kerntune has alice, but not in this process: log in again, or restart its service"
        assert (GRANTED if reads_database(host.vm) else refusal) in said
    finally:
        host.vm.check("gpasswd --delete alice kerntune")
    assert holds(host) == []


@pytest.mark.every_system
@pytest.mark.parametrize("lent", [(), ("SupplementaryGroups=kerntune",)], ids=["alone", "lent-the-group"])
def test_a_service_with_a_dynamic_user_is_told_of_the_unit(host: Host, lent: tuple[str, ...]) -> None:
    """Without libnss-systemd, as here, the bus lets no such user in."""
    said = service(host.vm, "DynamicUser=yes", *lent)
    assert "The bus may let in no user whom the user database lacks" in said
    assert "Requires=kerntune-hold@PROFILE.service" in said
    assert holds(host) == []
