"""The manual lists what there is: every state, every reason, every message id."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kerntune.daemon import logs
from kerntune.daemon.app import Status
from kerntune.daemon.cap_file import NAME
from kerntune.daemon.reloading import CONFIG_INVALID
from kerntune.daemon.state import STATE_SET_ASIDE
from kerntune.engine.claims import SUSPENDED
from kerntune.engine.guard import OBSERVES, GuardState
from kerntune.model import Reason, State
from kerntune.tunables import REGISTRY

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs/man/kerntuned.8").read_text().replace("\\-", "-")


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


def test_message_ids_and_exit_status_are_those_of_the_daemon() -> None:
    assert logs.TARGET_SET in PAGE
    assert logs.TARGET_NOT_SET in PAGE
    assert logs.CONFIG_PROBLEM in PAGE
    assert logs.GUARD_CHANGED in PAGE
    assert NAME in PAGE
    assert STATE_SET_ASIDE in PAGE
    assert CONFIG_INVALID in PAGE
    assert SUSPENDED in PAGE
    assert OBSERVES in PAGE
    unit = (CHECKOUT / "systemd/kerntuned.service").read_text()
    assert f"RestartPreventExitStatus={Status.TAKEN.value}\n" in unit
    assert f" {Status.TAKEN.value} when" in re.sub(r"\s+", " ", PAGE)
