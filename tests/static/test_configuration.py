"""The rows of the settings, the file that is shipped and the manual page agree with each other and with the code."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from tools import config_reference

from kerntune.config import schema
from kerntune.config.active import ActiveConfig
from kerntune.config.content import Content
from kerntune.config.parser import parse
from kerntune.config.schema import OPTIONS, PROFILE
from kerntune.config.sources import ConfigFiles
from kerntune.engine.claims import Choice
from kerntune.engine.reconciler import Reconciler
from kerntune.explained import config_table
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Limits
from kerntune.tunables import REGISTRY
from tests.unit.lab import MemoryStore

CHECKOUT = Path(__file__).parents[2]
TUNABLES = {tunable.name: tunable for tunable in REGISTRY}
STALE = "make generated brings it up to date"


def test_every_limit_is_a_field_of_the_model_and_has_its_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Limits)}
    for option in OPTIONS:
        assert option.checked(option.default) == option.default
        if option.table == "limits":
            assert fields[option.name.replace("-", "_")] == option.default
    limits = [option for option in OPTIONS if option.table == "limits"]
    least = {option.path: 0 if option.accepts(0) else 1 for option in limits}
    assert schema.limits_from(least) == Limits(0, 1, 0, 0, 0)
    assert all(not option.accepts(number) for option in limits for number in (-1, True, "5"))


def test_no_table_has_two_meanings() -> None:
    assert {option.table for option in OPTIONS}.isdisjoint(TUNABLES)


def test_the_shipped_file_is_up_to_date() -> None:
    assert (CHECKOUT / config_reference.FILE).read_text() == config_reference.shipped_file(), STALE


def test_the_manual_page_is_up_to_date() -> None:
    page = (CHECKOUT / config_reference.MANUAL).read_text()
    assert page == config_reference.inserted(page), STALE


def test_the_shipped_file_says_nothing() -> None:
    config = ConfigFiles(CHECKOUT / config_reference.FILE, None, REGISTRY).read()
    assert (config.claims, config.problems, config.limits) == ((), (), Limits())


def test_the_shipped_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither parsed nor saved, so it costs a service nothing that is never to be in the way."""
    monkeypatch.setattr("tomllib.loads", lambda _text: pytest.fail("it was parsed"))
    (tmp_path / "kerntune.toml").write_bytes((CHECKOUT / config_reference.FILE).read_bytes())
    (tmp_path / "run").mkdir()
    engine = Reconciler(SimulatedKernel([]), REGISTRY, MemoryStore())
    try:
        assert ActiveConfig(tmp_path, tmp_path / "run", engine, set()).read(Choice()) == (Content(), Content())
    finally:
        engine.threads.close()
    assert not list((tmp_path / "run").iterdir())


def test_without_its_marks_the_shipped_file_is_in_order() -> None:
    """Each line can be used as it stands: its table is above it."""
    text = re.sub(r"^#(?=\S)", "", (CHECKOUT / config_reference.FILE).read_text(), flags=re.M)
    found = parse(Path("kerntune.toml"), text.encode(), TUNABLES)
    assert found.problems == ()
    assert found.options == {option.path: option.default for option in OPTIONS} | {PROFILE.path: "balanced"}
    assert len(found.claims) == sum(len(config_table(tunable).examples) for tunable in REGISTRY)


def test_a_page_without_its_marks_is_told() -> None:
    with pytest.raises(ValueError, match="marks"):
        config_reference.inserted(".Dd\n")


@pytest.mark.parametrize("page", ["kerntune.toml.5", "kerntune.1", "kerntuned.8", "org.kerntune.Tuner1.5"])
def test_the_manual_is_well_formed(page: str) -> None:
    done = subprocess.run(
        ["groff", "-mandoc", "-Tutf8", "-ww", "-z", str(CHECKOUT / "docs/man" / page)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
