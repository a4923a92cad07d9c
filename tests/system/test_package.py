"""The Debian package as dpkg and systemd see it: installed, upgraded, removed, and purged at the end."""

from __future__ import annotations

import pytest

from tests.system.host import UNIT, Host, Setting
from tests.system.image.installed import IN_GUEST
from tests.system.machine import Machine

pytestmark = pytest.mark.own_machine

NEWER = "/root/newer"
RUNTIME: Setting = ("cpu-governor", "*", "performance")
SAVED: Setting = ("hugepages", "2M", "40")
CLAIMS = {"runtime:cpu-governor@*": "performance", "persistent:hugepages@2M": "40"}


@pytest.mark.every_system
def test_it_is_installed_enabled_and_running(host: Host, vm: Machine) -> None:
    assert vm.check("dpkg-query -W -f '${db:Status-Status}' kerntune") == "installed"
    assert vm.run("dpkg --verify kerntune").out == ""
    assert (host.unit("UnitFileState"), host.unit("ActiveState")) == ("enabled", "active")
    assert vm.check("systemctl is-system-running") == "running"
    assert "bob" in vm.check("getent group kerntune")
    assert [host.pages(), host.governor(0), host.claims()] == [0, "schedutil", {}], "it has changed nothing"
    for folder in ("/var/lib/kerntune", "/run/kerntune"):
        assert vm.run(["ls", folder], user="alice").status != 0, f"{folder} is for root"


def test_an_upgrade_leaves_values_and_claims(host: Host, vm: Machine) -> None:
    host.set(RUNTIME, user="bob")
    host.set(SAVED, user="bob", persist=True)
    vm.check(f"dpkg-deb -R {IN_GUEST} {NEWER} && sed -i 's/^Version: .*/&+newer/' {NEWER}/DEBIAN/control")
    vm.check(f"dpkg-deb -Znone -b {NEWER} {NEWER}.deb && rm -r {NEWER}")
    pid = host.pid
    vm.check(f"dpkg -i {NEWER}.deb")
    assert host.wait_restarted(pid) != pid
    assert vm.check("dpkg-query -W -f '${Version}' kerntune").endswith("+newer")
    assert host.claims() == CLAIMS
    assert [host.pages(), host.governor(0), host.governor(1)] == [40, "performance", "performance"]
    said = vm.check(f"journalctl --output=cat _SYSTEMD_INVOCATION_ID={host.unit('InvocationID')}")
    assert ", was " not in said, f"nothing was put back and set again: {said}"


def test_removed_it_is_gone_and_values_stay_and_the_older_one_knows_them(host: Host, vm: Machine) -> None:
    """The newer version is removed, and the older one comes back: a downgrade goes like an upgrade."""
    host.set(RUNTIME, user="bob")
    host.set(SAVED, user="bob", persist=True)
    vm.check("dpkg --remove kerntune")
    assert vm.run(f"systemctl is-active {UNIT}").out.strip() in ("inactive", "unknown")
    assert [host.pages(), host.governor(0)] == [40, "performance"]
    assert "not activatable" in host.set(SAVED).refusal or "not provided" in host.set(SAVED).refusal
    assert vm.run("ls /usr/lib/python3/dist-packages/kerntune").status != 0, "nothing is left of the modules"
    vm.check("test -e /var/lib/kerntune/claims.json && test -e /etc/kerntune/kerntune.toml")
    vm.check(f"dpkg -i {IN_GUEST}")
    assert (host.unit("UnitFileState"), host.unit("ActiveState")) == ("enabled", "active")
    assert host.claims() == CLAIMS
    host.release()
    assert [host.pages(), host.governor(0)] == [0, "schedutil"], "the host's own values are still known"


@pytest.mark.every_system
def test_purged_nothing_is_left(host: Host, vm: Machine) -> None:
    host.set(SAVED, user="bob", persist=True)
    vm.check("dpkg --purge kerntune")
    left = vm.run("ls -d /etc/kerntune /var/lib/kerntune /run/kerntune /etc/systemd/system/*/*kerntune*")
    assert left.out == ""
    assert host.pages() == 40
    vm.check(f"echo 0 > /proc/sys/vm/nr_hugepages; dpkg -i {IN_GUEST}")
    assert host.claims() == {}
