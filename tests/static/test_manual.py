"""The manual lists what there is: every tunable, every state, every reason, every message id."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kerntune import journal
from kerntune.config.active import CONFIG_INVALID
from kerntune.daemon.app import Status
from kerntune.engine.claims import SUSPENDED
from kerntune.guard.alerts import MESSAGE_ID as GUARD_CHANGED
from kerntune.guard.guard import OBSERVES
from kerntune.guard.policy import GuardState
from kerntune.guard.saved import CAP_FILE
from kerntune.model import Reason, State
from kerntune.store import STATE_SET_ASIDE
from kerntune.tunables import REGISTRY

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs/man/kerntuned.8").read_text().replace("\\-", "-")
COMMAND = (CHECKOUT / "docs/man/kerntune.1").read_text()
PAGES = sorted((CHECKOUT / "docs/man").iterdir())


SECTIONS = {
    '"MEMORY GUARD"': [state.value for state in GuardState],
    "TUNABLES": [tunable.name for tunable in REGISTRY],
    "STATES": [state.value for state in State],
    "REASONS": [reason.value for reason in Reason],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_word_is_explained_once(section: str) -> None:
    text = re.search(rf"^\.SH {section}\n(.*?)^\.SH", PAGE, re.M | re.S)
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


def test_message_ids_and_exit_status_are_those_of_the_daemon() -> None:
    assert journal.TARGET_SET in PAGE
    assert journal.TARGET_NOT_SET in PAGE
    assert journal.CONFIG_PROBLEM in PAGE
    assert GUARD_CHANGED in PAGE
    assert CAP_FILE in PAGE
    assert STATE_SET_ASIDE in PAGE
    assert CONFIG_INVALID in PAGE
    assert SUSPENDED in PAGE
    assert OBSERVES in PAGE
    unit = (CHECKOUT / "systemd/kerntuned.service").read_text()
    assert f"RestartPreventExitStatus={Status.TAKEN.value}\n" in unit
    assert f" {Status.TAKEN.value} when" in re.sub(r"\s+", " ", PAGE)
