"""The polkit policy offers the actions of the code, and the shipped rule opens three of them to one group."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kerntune.api import names
from kerntune.tunables import REGISTRY

CHECKOUT = Path(__file__).parents[2]
ACTIONS = {
    action.attrib["id"]: action
    for action in ElementTree.parse(CHECKOUT / "dbus/org.kerntune.Tuner1.policy").getroot().iter("action")
}
RULE = re.sub(r"^\s*//.*$", "", (CHECKOUT / "dbus/50-kerntune.rules").read_text(), flags=re.MULTILINE)


def test_actions_are_those_of_the_code() -> None:
    assert set(ACTIONS) == {value for name, value in vars(names).items() if name.startswith("ACTION_")}


def test_every_tunable_asks_for_an_action_there_is() -> None:
    assert {f"{names.BUS_NAME}.{tunable.action}" for tunable in REGISTRY} <= set(ACTIONS)


@pytest.mark.parametrize("action", ACTIONS)
def test_only_administrators_by_default(action: str) -> None:
    defaults = ACTIONS[action].find("defaults")
    assert defaults is not None
    assert {default.tag: default.text for default in defaults} == {
        "allow_any": "auth_admin",
        "allow_inactive": "auth_admin",
        "allow_active": "auth_admin_keep",
    }


def test_each_action_asks_in_its_own_words() -> None:
    messages = {action.findtext("message", "") for action in ACTIONS.values()}
    assert len(messages) == len(ACTIONS)
    assert all(message.startswith("Authentication is required to ") and message.endswith(".") for message in messages)
    assert all(action.findtext("description") for action in ACTIONS.values())


def test_the_rule_lists_three_actions_literally() -> None:
    assert re.findall(r'"([^"]*)"', RULE) == [
        names.ACTION_SET,
        names.ACTION_SET_MEMORY,
        names.ACTION_HOLD,
        "kerntune",
    ]


def test_the_rule_only_ever_says_yes_to_members() -> None:
    assert re.findall(r"polkit\.Result\.(\w+)", RULE) == ["YES"]
    assert RULE.count('subject.isInGroup("kerntune")') == RULE.count("&&") == 1
