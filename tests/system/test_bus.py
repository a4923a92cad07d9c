"""The service on the system bus: what busctl shows of it, and a bus that goes away."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from kerntune.api.contract import interface_files
from kerntune.api.names import BUS_NAME, HOLD, ROOT
from tests.system.host import Host
from tests.system.machine import Machine

MEMBERS = ("method", "signal", "property")


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
