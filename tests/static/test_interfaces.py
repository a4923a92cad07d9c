"""The contract's XML: well-formed, documented in place, and of one shape."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.dbus import standard

FILES = interface_files()
EMITS = {"true", "invalidates", "const", "false"}

# The methods that change nothing and take no options; every other method ends in them.
READING = {"Verify", "Describe", "ListProfiles"}


def interface(file: Path) -> ElementTree.Element:
    (found,) = ElementTree.parse(file).getroot().findall("interface")
    return found


def every(kind: str) -> list[ElementTree.Element]:
    return [member for file in FILES for member in interface(file).findall(kind)]


def arguments(method: ElementTree.Element, direction: str) -> list[tuple[str, str]]:
    return [(a.attrib["name"], a.attrib["type"]) for a in method.findall("arg") if a.attrib["direction"] == direction]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_holds_the_interface_it_is_named_after(file: Path) -> None:
    assert interface(file).attrib["name"] == file.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_member_is_documented_where_it_stands(file: Path) -> None:
    documented = re.findall(
        r'<!--\s*(\w+):(?:(?!-->).)*-->\s*<(?:method|property|signal) name="(\w+)"', file.read_text(), re.DOTALL
    )
    assert [member for said, member in documented if said == member] == [m.attrib["name"] for m in interface(file)]


@pytest.mark.parametrize("method", every("method"), ids=lambda method: method.attrib["name"])
def test_a_method_that_changes_something_ends_in_options(method: ElementTree.Element) -> None:
    taken = arguments(method, "in")
    if method.attrib["name"] in READING:
        assert taken == []
    else:
        assert taken[-1] == ("options", "a{sv}")


@pytest.mark.parametrize("method", every("method"), ids=lambda method: method.attrib["name"])
def test_no_argument_is_negative_or_a_descriptor(method: ElementTree.Element) -> None:
    # busctl takes -1 for one of its own options.
    for name, signature in arguments(method, "in"):
        assert not set("nixh") & set(signature), name


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
