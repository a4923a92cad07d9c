"""Who is told of which pools."""

from __future__ import annotations

import pytest

from kerntune.engine.claims import NOTHING_CHOSEN, Edit, FilesEdit
from kerntune.engine.progress import only_for
from kerntune.model import Claim, Origin, Target
from kerntune.tunables import REGISTRY

TUNABLES = {tunable.name: tunable for tunable in REGISTRY}
TWO, ONE_NODE, LARGE = (Target("hugepages", instance) for instance in ("2M", "2M/node1", "1G"))


def claim(tunable: str, instances: str, value: str = "1") -> Claim:
    return Claim(Origin.RUNTIME, tunable, instances, value)


def heard(edit: Edit, *targets: Target) -> list[Target]:
    told: list[Target] = []
    tell = only_for(edit, TUNABLES, lambda target, _done, _wanted: told.append(target))
    for target in targets:
        tell(target, 1, 2)
    return told


@pytest.mark.parametrize("instances", ["2M", "2M/node1", "2M/*"])
def test_the_pools_of_a_page_size_are_one_plan(instances: str) -> None:
    assert heard(Edit(put=(claim("hugepages", instances),)), TWO, ONE_NODE, LARGE) == [TWO, ONE_NODE]
    assert heard(Edit(drop=(claim("hugepages", instances).id,)), TWO, ONE_NODE, LARGE) == [TWO, ONE_NODE]


def test_who_asks_for_something_else_hears_nothing() -> None:
    assert heard(Edit(put=(claim("overcommit", "", "always"), claim("io-scheduler", "*", "none"))), TWO, LARGE) == []


def test_a_profile_is_about_what_it_says_and_what_it_ends() -> None:
    files = FilesEdit((claim("hugepages", "1G"),), NOTHING_CHOSEN, gone=(claim("hugepages", "2M").id,))
    assert heard(Edit(files=files), TWO, LARGE) == [TWO, LARGE]
    assert heard(Edit(files=FilesEdit((claim("overcommit", ""),), NOTHING_CHOSEN)), TWO) == []
