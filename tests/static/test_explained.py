"""Every tunable is explained, with files and examples that are those of the code."""

from __future__ import annotations

import re

import pytest

from kerntune.cli import spelling
from kerntune.explained import EXPLAINED, Explanation, Grade
from kerntune.kernel.files import WRITABLE
from kerntune.tunables import REGISTRY
from kerntune.tunables.sysctl import REPORTED, path_of

TUNABLES = {tunable.name: tunable for tunable in REGISTRY}
HERE = [one for one in EXPLAINED if one.tunable in TUNABLES]
NAMES = [one.tunable for one in EXPLAINED]


def test_every_tunable_is_explained_once() -> None:
    assert set(TUNABLES) <= set(NAMES), "EXPLAINED in src/kerntune/explained.py lacks an entry"
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("one", EXPLAINED, ids=NAMES)
def test_nothing_is_left_out(one: Explanation) -> None:
    assert all(one)
    assert all(evidence.grade in Grade and evidence.said for evidence in one.evidence)
    assert re.match(r"Documentation/\S+", one.document)
    for prose in (one.what, one.helps, one.risk):
        assert prose[-1] == ".", prose


@pytest.mark.parametrize("one", HERE, ids=lambda one: one.tunable)
def test_its_files_are_those_that_are_written(one: Explanation) -> None:
    reported = {path_of(name) for name in REPORTED}
    assert {file.removeprefix("/") for file in one.files} <= {*WRITABLE, *reported}


@pytest.mark.parametrize("one", HERE, ids=lambda one: one.tunable)
def test_its_example_is_a_setting(one: Explanation) -> None:
    setting = spelling.setting(spelling.asked(one.example.setting), default_page_size=2 << 20)
    tunable = TUNABLES[one.tunable]
    assert setting.tunable == one.tunable
    assert tunable.normal(setting.instances) == setting.instances
    assert tunable.normal_value(setting.value) == setting.value
