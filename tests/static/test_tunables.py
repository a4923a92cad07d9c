"""What a tunable says of itself agrees with the places that are written by hand; a message names the one that does not.

CONTRIBUTING, "Adding a knob", is the list of those places; test_manual.py looks into the manual.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from kerntune import explained, syntax
from kerntune.cli import suggest
from kerntune.daemon.demo import demo_host
from kerntune.doctor.import_plan import claim_key
from kerntune.explained import Grade, config_table, explanation
from kerntune.kernel.files import WRITABLE
from kerntune.patterns import EVERY, HUGE_PAGES, Kind
from kerntune.tunables import REGISTRY
from kerntune.tunables.base import Tunable, as_number
from kerntune.tunables.knobs import REPORTED, SYSCTL
from tests.harness import CHECKOUT

# Written on behalf of a tunable that does not name them: the remedy, the guard's, and a baseline's other form.
BESIDE = {"compact_memory", "overcommit_kbytes"}


def named(tunable: Tunable) -> str:
    return tunable.name


each = pytest.mark.parametrize("tunable", REGISTRY, ids=named)


def test_each_is_explained_and_nothing_else() -> None:
    said = explained.load()
    assert list(said) == [tunable.name for tunable in REGISTRY], (
        "src/kerntune/tunables/explanations.toml, in this order"
    )
    for tunable in REGISTRY:
        names = said[tunable.name].get("names", {})
        assert not names or set(names) == set(tunable.names), f"[{tunable.name}.names] in explanations.toml"


def test_the_tunables_with_a_default_page_size_are_those_of_huge_pages() -> None:
    assert {tunable.name for tunable in REGISTRY if tunable.kind is Kind.POOLS} == HUGE_PAGES, "patterns.py"


@each
def test_nothing_is_left_out(tunable: Tunable) -> None:
    one = explanation(tunable)
    assert all(one)
    assert all(evidence.grade in Grade and evidence.said for evidence in one.evidence)
    assert re.match(r"Documentation/\S+", one.document)
    for prose in (one.what, one.helps, one.risk):
        assert prose[-1] == ".", prose
    for text in (*one[:1], *one[-3:-1], *config_table(tunable)[:3]):
        assert "{" not in text
    assert config_table(tunable).examples


def test_the_daemon_reads_no_explanation_unless_something_is_wrong() -> None:
    code = "import kerntune.daemon.app as _, kerntune.explained as e; print(e.load.cache_info().misses)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "0\n"


@each
def test_its_files_are_those_that_are_written(tunable: Tunable) -> None:
    reported = {SYSCTL.scope.path(name) for name in REPORTED}
    assert {*tunable.files} <= {*WRITABLE, *reported}, "WRITABLE in src/kerntune/kernel/files.py"


def test_nothing_is_writable_that_no_tunable_names() -> None:
    files = {file for tunable in REGISTRY for file in tunable.files}
    assert {path.rpartition("/")[2] for path in set(WRITABLE) - files} == BESIDE


@each
def test_lines_that_set_its_files_by_hand_are_known(tunable: Tunable) -> None:
    for file in tunable.files:
        path = file.replace("*", "2048")
        key = claim_key(path, 2 << 20)
        assert key, f"import_patterns of {tunable.name} does not match {path}"
        assert key.tunable == tunable.name
        if tunable.kind is Kind.SINGLE:
            assert key.instances == ""
        else:
            assert tunable.normal(key.instances) == key.instances


@each
def test_its_files_lead_to_its_name(tunable: Tunable) -> None:
    names = [other.name for other in REGISTRY]
    for file in tunable.files:
        assert suggest.tunable(file.rpartition("/")[2], names).partition("@")[0] == tunable.name


@each
def test_its_example_is_a_setting(tunable: Tunable) -> None:
    setting = syntax.setting(explanation(tunable).example.setting)
    assert setting.tunable == tunable.name
    instances = setting.instances or ("2M" if tunable.kind is Kind.POOLS else EVERY)
    assert tunable.normal(tunable.normal(instances)) == tunable.normal(instances)
    assert tunable.normal_value(as_number(tunable, tunable.normal(instances), setting.value))


@each
def test_the_simulated_host_has_it(tunable: Tunable) -> None:
    kernel = demo_host()
    targets = tunable.targets(kernel)
    assert targets, f"kernel/simulated.py, or demo.py, has no file of {tunable.name}: --demo and the tests need them"
    assert all(reading.value is not None for reading in tunable.read_all(kernel, targets).values())


@pytest.mark.parametrize(
    "file",
    [
        "src/kerntune/tunables/explanations.toml",
        *sorted(f"packaging/profiles/{path.name}" for path in (CHECKOUT / "packaging/profiles").glob("*.toml")),
    ],
)
def test_times_that_are_told_as_measured_stand_in_the_evidence(file: str) -> None:
    """`explain` and profiles show them; the page has the run, its interval, and how to repeat it."""
    evidence = (CHECKOUT / "docs/evidence.md").read_text()
    told = re.findall(r"(0\.\d\d) of the time( \[[^\]]+\])?", (CHECKOUT / file).read_text())
    assert [ratio for ratio, interval in told if f"| {ratio}{interval or ' ['}" not in evidence] == []
