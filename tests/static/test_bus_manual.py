"""org.kerntune.Tuner1(5) says what the contract says, and the other pages name it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tools import dbus_manual

from kerntune import errors
from kerntune.api.contract import interface_files

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / dbus_manual.MANUAL).read_text()
MEMBERS = [
    (interface.attrib["name"], member)
    for file in interface_files()
    for interface in ElementTree.parse(file).getroot().iter("interface")
    for member in interface
]


def test_it_is_up_to_date() -> None:
    assert dbus_manual.page(interface_files()) == PAGE, "make generated brings it up to date"


def test_every_member_is_there_with_its_arguments() -> None:
    for _, member in MEMBERS:
        (line,) = re.findall(rf'^\.Ic {member.attrib["name"]}\n\.Dl "(.*)"$', PAGE, re.M)
        for arg in member.findall("arg"):
            assert f"{arg.attrib['type']} {arg.attrib['name']}" in line


def test_every_error_is_there() -> None:
    for name, error in errors.by_name().items():
        assert not error.__doc__ or error.__doc__.startswith("Only in") or f".It Li {name.rpartition('.')[2]}" in PAGE


def test_its_busctl_calls_fit_the_contract() -> None:
    """A method with that interface, and the signature that it takes."""
    taken = {
        (interface, member.attrib["name"]): "".join(
            arg.attrib["type"] for arg in member.findall("arg") if arg.attrib.get("direction") == "in"
        )
        for interface, member in MEMBERS
        if member.tag == "method"
    }
    calls = [shlex.split(line) for line in PAGE.replace("\\e\n", "").splitlines() if re.match("busctl .*call ", line)]
    assert len(calls) > 4
    for words in calls:
        _, _, interface, member, *rest = words[words.index("call") + 1 :]
        assert taken[interface, member] == (rest[0] if rest and rest[0] != "|" else "")


@pytest.mark.parametrize("page", ["kerntune.1", "kerntune.toml.5", "kerntuned.8"])
def test_the_other_pages_refer_to_it(page: str) -> None:
    assert re.search(r"^\.(Xr|BR) org\.kerntune\.Tuner1 \(?5", (CHECKOUT / "docs/man" / page).read_text(), re.M)
