"""What a tunable says of itself agrees with the places that have to know of it; a message names the one that does not.

CONTRIBUTING, "Adding a tunable", is the list of those places; test_manual.py looks into the manual.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kerntune.cli import spelling, telling
from kerntune.doctor import translate
from kerntune.explained import Grade
from kerntune.kernel.files import WRITABLE
from kerntune.kernel.simulated import demo_host
from kerntune.patterns import EVERY, Kind
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable, as_number
from kerntune.tunables.sysctl import REPORTED, path_of

CHECKOUT = Path(__file__).parents[2]
# Written on behalf of a tunable that does not name them: the remedy, the guard's, and a baseline's other form.
BESIDE = {"compact_memory", "overcommit_kbytes"}


def named(tunable: Tunable) -> str:
    return tunable.name


each = pytest.mark.parametrize("tunable", REGISTRY, ids=named)


@each
def test_nothing_is_left_out(tunable: Tunable) -> None:
    one = tunable.explained
    assert all(one)
    assert all(evidence.grade in Grade and evidence.said for evidence in one.evidence)
    assert re.match(r"Documentation/\S+", one.document)
    for prose in (one.what, one.helps, one.risk):
        assert prose[-1] == ".", prose


@each
def test_its_files_are_those_that_are_written(tunable: Tunable) -> None:
    reported = {path_of(name) for name in REPORTED}
    files = {file.removeprefix("/") for file in tunable.explained.files}
    assert files <= {*WRITABLE, *reported}, "WRITABLE in src/kerntune/kernel/files.py"


def test_nothing_is_writable_that_no_tunable_names() -> None:
    files = {file.removeprefix("/") for tunable in REGISTRY for file in tunable.explained.files}
    assert {path.rpartition("/")[2] for path in set(WRITABLE) - files} == BESIDE


@each
def test_lines_that_set_its_files_by_hand_are_known(tunable: Tunable) -> None:
    for file in tunable.explained.files:
        path = file.replace("*", "2048")
        knob = translate.knob(path, 2 << 20)
        assert knob, f"by_hand of {tunable.name} does not match {path}"
        assert knob.tunable == tunable.name
        if tunable.kind is Kind.SINGLE:
            assert knob.instances == ""
        else:
            assert tunable.normal(knob.instances) == knob.instances


@each
def test_its_files_lead_to_its_name(tunable: Tunable) -> None:
    names = [other.name for other in REGISTRY]
    for file in tunable.explained.files:
        meant = {telling.tunable(word, names).partition("@")[0] for word in file.split("/")[1:]}
        assert tunable.name in meant, f"KNOWN_AS in src/kerntune/cli/telling.py: {file}"


@each
def test_its_example_is_a_setting(tunable: Tunable) -> None:
    setting = spelling.setting(tunable.explained.example.setting)
    assert setting.tunable == tunable.name
    instances = tunable.normal(setting.instances or ("2M" if tunable.kind is Kind.POOLS else EVERY))
    assert tunable.normal_value(as_number(tunable, instances, setting.value))


@each
def test_the_simulated_host_has_it(tunable: Tunable) -> None:
    kernel = demo_host()
    targets = tunable.targets(kernel)
    assert targets, f"src/kerntune/kernel/simulated.py has no file of {tunable.name}: --demo and the tests need them"
    assert all(reading.value is not None for reading in tunable.read_all(kernel, targets).values())


@each
def test_it_has_tests(tunable: Tunable) -> None:
    assert (CHECKOUT / f"tests/unit/tunables/test_{tunable.name.replace('-', '_')}.py").exists()
