"""The manual lists what there is: every tunable, verb, state, exit code, message id, and every member on the bus."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tools import dbus_manual

from kerntune import errors, journal
from kerntune.api.contract import interface_files
from kerntune.cli.commands import EVERYWHERE, VERBS
from kerntune.config.active import CONFIG_INVALID
from kerntune.daemon.app import Status
from kerntune.engine.claims import SUSPENDED
from kerntune.errors import Exit
from kerntune.guard.alerts import MESSAGE_ID as GUARD_CHANGED
from kerntune.guard.guard import CAPS, OBSERVES
from kerntune.guard.saved import CAP_FILE
from kerntune.model import GuardState, Reason, State
from kerntune.results import Condition
from kerntune.store import STATE_SET_ASIDE
from kerntune.tunables import REGISTRY
from tests.harness import CHECKOUT

MAN = CHECKOUT / "docs/man"
PAGES = sorted(MAN.iterdir())
DAEMON = (MAN / "kerntuned.8").read_text().replace("\\-", "-")
COMMAND = (MAN / "kerntune.1").read_text()
BUS = (CHECKOUT / dbus_manual.MANUAL).read_text()
MEMBERS = [
    (interface.attrib["name"], member)
    for file in interface_files()
    for interface in ElementTree.parse(file).getroot().iter("interface")
    for member in interface
]
SECTIONS = {
    '"MEMORY GUARD"': [state.value for state in GuardState],
    "TUNABLES": [tunable.name for tunable in REGISTRY],
    "STATES": [state.value for state in State],
    "REASONS": [reason.value for reason in Reason],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_word_is_explained_once(section: str) -> None:
    text = re.search(rf"^\.SH {section}\n(.*?)^\.SH", DAEMON, re.M | re.S)
    assert text
    assert re.findall(r"^\.TP\n\.B (\S+)$", text[1], re.M) == SECTIONS[section]


def test_the_command_s_page_has_every_tunable() -> None:
    text = re.search(r"^\.Ss Tunables, instances and values\n(.*?)^\.Ss", COMMAND, re.M | re.S)
    assert text
    names = [name for line in re.findall(r"^\.It Li (.+)$", text[1], re.M) for name in line.split(" , ")]
    assert sorted(names) == sorted(tunable.name for tunable in REGISTRY)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_formatters_have_no_complaints(page: Path) -> None:
    done = subprocess.run(
        ["groff", "-mandoc", "-Tutf8", "-ww", "-rLL=100n", str(page)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    head, *_, foot = [line for line in done.stdout.splitlines() if line.strip()]
    assert "BSD" not in head + foot
    assert "kerntune" in foot
    assert re.search(r"\d, \d{4}", foot), "a date"
    if shutil.which("mandoc"):
        lint = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", str(page)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (lint.returncode, lint.stdout) == (0, "")


@pytest.mark.parametrize(
    "word",
    [
        journal.TARGET_SET, journal.TARGET_NOT_SET, journal.CONFIG_PROBLEM, GUARD_CHANGED, CAP_FILE, STATE_SET_ASIDE,
        CONFIG_INVALID, SUSPENDED, OBSERVES, CAPS, f" {Status.TAKEN.value} when",
    ],
)  # fmt: skip
def test_what_the_daemon_says_of_itself_is_explained(word: str) -> None:
    assert word in re.sub(r"\s+", " ", DAEMON)


# kerntune(1)


def test_the_man_page_has_every_verb_and_option() -> None:
    page = COMMAND
    synopsis = page.partition(".Sh SYNOPSIS\n")[2].partition(".Sh DESCRIPTION\n")[0].split(".Nm\n")
    for verb in VERBS:
        assert f".It Cm {verb.name}\n" in page or f".It Cm {verb.name} " in page, verb.name
        usage = "".join(form for form in synopsis if f"Cm {verb.name}\n" in form)
        assert usage, verb.name
        for name in ["--json", *(name for argument in verb.arguments for name in argument.names)]:
            if name.startswith("--"):
                # An option stands alone or in front of its argument.
                option = re.compile(rf"Fl {name.removeprefix('-')}( (Ar|Ns) .+)?\n")
                assert re.search(rf"\.It (Fl \w , -|Fl -){name.removeprefix('--')}( (Ar|Ns) .+)?\n", page), name
                assert option.search(usage), (verb.name, name)


def test_the_man_page_has_the_options_of_every_verb() -> None:
    for option in EVERYWHERE:
        if not option.takes_value:
            short, name = option.names
            assert f".It Fl {short.removeprefix('-')} , {name.removeprefix('-')}\n" in COMMAND, name


def test_the_man_page_has_every_exit_code_state_and_reason() -> None:
    page = COMMAND
    for code in Exit:
        assert f".It {code.value}\n" in page, code
    for state in (*Condition, State.UNMANAGED):
        assert f".It {state}\n" in page, state
    for reason in Reason:
        assert f".It {reason}\n" in page, reason


# org.kerntune.Tuner1(5)


def test_every_member_is_there_with_its_arguments() -> None:
    for _, member in MEMBERS:
        (line,) = re.findall(rf'^\.Ic {member.attrib["name"]}\n\.Dl "(.*)"$', BUS, re.M)
        for arg in member.findall("arg"):
            assert f"{arg.attrib['type']} {arg.attrib['name']}" in line


@pytest.mark.parametrize("name", sorted({interface for interface, _ in MEMBERS}))
def test_a_section_names_its_interface_once_and_goes_on_with_what_it_is(name: str) -> None:
    text = BUS.partition(f"The interface is {name}.\n")[2].partition("\n.Ss ")[0]
    assert text[0].isupper()
    assert name.lower() not in text.lower()


def test_every_error_is_there() -> None:
    for name, error in errors.by_name().items():
        assert not error.__doc__ or error.__doc__.startswith("Only in") or f".It Li {name.rpartition('.')[2]}" in BUS


def test_its_busctl_calls_fit_the_contract() -> None:
    """A method with that interface, and the signature that it takes."""
    taken = {
        (interface, member.attrib["name"]): "".join(
            arg.attrib["type"] for arg in member.findall("arg") if arg.attrib.get("direction") == "in"
        )
        for interface, member in MEMBERS
        if member.tag == "method"
    }
    calls = [shlex.split(line) for line in BUS.replace("\\e\n", "").splitlines() if re.match("busctl .*call ", line)]
    assert len(calls) > 4
    for words in calls:
        _, _, interface, member, *rest = words[words.index("call") + 1 :]
        assert taken[interface, member] == (rest[0] if rest and rest[0] != "|" else "")


@pytest.mark.parametrize("page", ["kerntune.1", "kerntune.toml.5", "kerntuned.8"])
def test_the_other_pages_refer_to_it(page: str) -> None:
    assert re.search(r"^\.(Xr|BR) org\.kerntune\.Tuner1 \(?5", (MAN / page).read_text(), re.M)
