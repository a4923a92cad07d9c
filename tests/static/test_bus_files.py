"""Bus policy, activation file and group agree with the names in the code and with the contract."""

from __future__ import annotations

import subprocess
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.dbus import standard

CHECKOUT = Path(__file__).parents[2]
POLICY = ElementTree.parse(CHECKOUT / "dbus/org.kerntune.Tuner1.conf").getroot()
SYSUSERS = CHECKOUT / "systemd/kerntune.sysusers"

STANDARD = {f"{standard.BUS}.{name}" for name in ("Introspectable", "ObjectManager", "Peer", "Properties")}


def rules(**policy: str) -> list[tuple[str, dict[str, str]]]:
    """What the policies with these attributes allow and deny."""
    return [(rule.tag, rule.attrib) for found in POLICY.findall("policy") if found.attrib == policy for rule in found]


def contract() -> set[str]:
    return {
        interface.attrib["name"]
        for file in interface_files()
        for interface in ElementTree.parse(file).getroot().iter("interface")
    }


def test_names_are_those_of_the_contract() -> None:
    constants = {value for value in vars(names).values() if isinstance(value, str)}
    prefix = f"{names.BUS_NAME}."
    assert {c for c in constants if c.startswith(prefix) and c.removeprefix(prefix)[:1].isupper()} == contract()


def test_there_are_two_policies_and_no_limits() -> None:
    assert [child.attrib for child in POLICY] == [{"user": "root"}, {"context": "default"}]


def test_root_alone_owns_the_name() -> None:
    assert rules(user="root") == [("allow", {"own": names.BUS_NAME})]
    assert not any("own" in attributes for _, attributes in rules(context="default"))


def test_everybody_may_call_the_interfaces_there_are() -> None:
    wanted = contract() | STANDARD
    expected = [("allow", {"send_destination": names.BUS_NAME, "send_interface": name}) for name in sorted(wanted)]
    assert sorted(rules(context="default"), key=str) == sorted(expected, key=str)


def test_activation_goes_through_the_unit() -> None:
    activation = ConfigParser(interpolation=None)
    activation.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep capitals
    activation.read(CHECKOUT / "dbus/org.kerntune.Tuner1.service")
    service = dict(activation["D-BUS Service"])
    assert service == {
        "Name": names.BUS_NAME,
        "Exec": "/bin/false",
        "User": "root",
        "SystemdService": "kerntuned.service",
    }
    assert (CHECKOUT / "systemd" / service["SystemdService"]).exists()


def test_the_group_is_all_sysusers_makes(tmp_path: Path) -> None:
    lines = [line for line in SYSUSERS.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["g kerntune -"]
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", "-"],
        input=SYSUSERS.read_text(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
