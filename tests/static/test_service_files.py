"""What the bus and polkit are given: interfaces of one shape, documented in place, and who may do what with them."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.dbus import standard
from kerntune.tunables import REGISTRY
from tests.harness import CHECKOUT
from tests.harness.privatebus import POLICY

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
    spelt = {"settings": f"a{names.SETTING}", "outcomes": f"a{names.OUTCOME}"}
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


def test_the_group_is_all_that_sysusers_makes(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", "-"], input=SYSUSERS.read_text(),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = re.findall(r"Creating (\w+) '([^']+)'", done.stdout + done.stderr)
    assert made == [("group", "kerntune")]
