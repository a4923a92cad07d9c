"""The shipped profiles: in order, each value with its reason and evidence, and named where people look for them."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from kerntune.config.profiles import Profiles
from kerntune.paths import folders
from kerntune.tunables import REGISTRY

CHECKOUT = Path(__file__).parents[2]
FILES = sorted((CHECKOUT / "packaging/profiles").glob("*.toml"))
PROFILES = Profiles(folders(Path("/nonexistent")), REGISTRY)
EVIDENCE = ("measured: ", "documentation (kernel): ", "documentation (vendors): ")
NOT_TABLES = {"summary", "include"}


def test_these_are_shipped() -> None:
    assert list(PROFILES.files()) == ["ai-inference", "ai-training", "balanced", "model-download"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_they_are_in_order(file: Path) -> None:
    profile = PROFILES.read(file.stem)
    assert profile.summary
    assert profile.problems == ()
    assert profile.claims


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_value_has_its_reason_and_how_well_that_is_known(file: Path) -> None:
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


def test_what_depends_on_the_model_is_left_to_its_user() -> None:
    for name in PROFILES.files():
        assert {claim.tunable for claim in PROFILES.read(name).claims}.isdisjoint({"hugepages", "overcommit"})


def test_they_are_named_where_people_look() -> None:
    manual = (CHECKOUT / "docs/man/kerntune.toml.5").read_text()
    assert re.findall(r"^\.It Li ([a-z]+(?:-[a-z]+)?)$", manual, re.M) == [
        "balanced",
        "model-download",
        "ai-inference",
        "ai-training",
    ]
    readme = (CHECKOUT / "README.md").read_text()
    assert all(name in readme for name in PROFILES.files())
