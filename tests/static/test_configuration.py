"""What is shipped to configure with: the file, whose lines can be used as they stand, and the profiles."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from tools import config_reference

from kerntune.config import schema
from kerntune.config.active import ActiveConfig
from kerntune.config.content import Content
from kerntune.config.parser import parse
from kerntune.config.profiles import Profiles
from kerntune.config.schema import OPTIONS, PROFILE
from kerntune.config.sources import ConfigFiles
from kerntune.engine.claims import Choice
from kerntune.engine.reconciler import Reconciler
from kerntune.explained import config_table
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Limits
from kerntune.paths import folders
from kerntune.tunables import REGISTRY
from tests.harness import CHECKOUT
from tests.unit.lab import MemoryStore

TUNABLES = {tunable.name: tunable for tunable in REGISTRY}


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


# The shipped profiles


FILES = sorted((CHECKOUT / "packaging/profiles").glob("*.toml"))
PROFILES = Profiles(folders(Path("/nonexistent")), REGISTRY)
EVIDENCE = ("measured: ", "documentation (kernel): ", "documentation (vendors): ")
NOT_TABLES = {"summary", "include"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_profile_is_in_order_and_each_value_has_its_reason_and_evidence(file: Path) -> None:
    profile = PROFILES.read(file.stem)
    assert profile.summary
    assert profile.problems == ()
    # Huge pages and overcommit depend on the model, which its user knows.
    assert {claim.tunable for claim in profile.claims}.isdisjoint({"hugepages", "overcommit"})
    assert profile.claims
    text = file.read_text()
    tables = {name: table for name, table in tomllib.loads(text).items() if name not in NOT_TABLES}
    for table, entries in tables.items():
        for pattern, entry in entries.items():
            assert entry.keys() == {"value", "why"}, (table, pattern)
            assert entry["why"].startswith(EVIDENCE), (table, pattern)
    # Also for who reads the file: a comment above each.
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if "{ value =" in line:
            assert above.startswith("# "), line


def test_profiles_are_named_where_people_look() -> None:
    manual, readme = (CHECKOUT / page for page in ("docs/man/kerntune.toml.5", "README.md"))
    listed = re.findall(r"^\.It Li ([a-z]+(?:-[a-z]+)?)$", manual.read_text(), re.M)
    assert sorted(listed) == list(PROFILES.files()) == [file.stem for file in FILES]
    assert [name for name in listed if name not in readme.read_text()] == []
