"""What was chosen of the files is saved with the claims: the profile for good, the suspension for this boot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kerntune.engine.claims import Choice, Claims
from kerntune.model import Baseline
from tests.unit.disk import GOOD, NOW, SDA, opened, persistent, runtime

CHOSEN = Choice("fair", suspended=True)


def claims_of(choice: Choice) -> Claims:
    return replace(Claims.of(NOW, GOOD), choice=choice)


@pytest.mark.parametrize("choice", [Choice("fair"), Choice("", suspended=True), CHOSEN, Choice()])
def test_it_survives_a_restart_and_the_suspension_no_reboot(folder: Path, choice: Choice) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "bfq")])
    for saved in (Choice("other"), CHOSEN, choice):
        state.commit(claims_of(saved))
    assert opened(folder).claims == claims_of(choice)
    assert opened(folder, boot="boot-2").claims.choice == Choice(choice.profile)


def test_what_is_saved_beside_it_does_not_lose_it(folder: Path) -> None:
    state = opened(folder)
    state.commit(claims_of(CHOSEN))
    state.save_baselines([Baseline(SDA, "bfq")])
    state.drop_baselines({SDA})
    assert opened(folder).claims.choice == CHOSEN


def test_a_crash_between_the_two_files_leaves_one_of_the_two_choices(folder: Path) -> None:
    """The persistent file decides: it holds what ends with the boot, too."""
    state = opened(folder)
    state.commit(claims_of(Choice("fair")))
    state.save_baselines([Baseline(SDA, "bfq")])
    before = runtime(folder).read_bytes()
    state.commit(claims_of(Choice("", suspended=True)))
    runtime(folder).write_bytes(before)
    assert opened(folder).claims.choice == Choice("", suspended=True)


@pytest.mark.parametrize("value", [5, None, ["fair"], True])
def test_a_profile_that_is_no_name_sets_the_file_aside(folder: Path, value: object) -> None:
    opened(folder).commit(claims_of(CHOSEN))
    document = json.loads(persistent(folder).read_text())
    persistent(folder).write_text(json.dumps(document | {"profile": value}))
    assert [path.name for path in opened(folder).set_aside] == ["claims.json.bad"]


def test_a_switch_that_is_none_sets_the_file_aside(folder: Path) -> None:
    opened(folder).commit(claims_of(CHOSEN))
    document = json.loads(persistent(folder).read_text())
    document["commit"]["suspended"] = "yes"
    persistent(folder).write_text(json.dumps(document))
    assert len(opened(folder).set_aside) == 1


def test_files_of_before_there_were_profiles(folder: Path) -> None:
    opened(folder).commit(claims_of(CHOSEN))
    document = json.loads(persistent(folder).read_text())
    del document["profile"], document["commit"]["suspended"]
    persistent(folder).write_text(json.dumps(document))
    state = opened(folder)
    assert (state.set_aside, state.claims.choice) == ([], Choice())
    assert len(state.claims.by_id) == 2


def test_a_file_that_cannot_be_read_stops_nothing(folder: Path) -> None:
    """A folder stands in its place."""
    persistent(folder).mkdir()
    state = opened(folder)
    assert [path.name for path in state.set_aside] == ["claims.json.bad"]
    state.commit(claims_of(CHOSEN))
    assert opened(folder).claims == claims_of(CHOSEN)


def test_one_that_cannot_be_set_aside_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(folder).commit(claims_of(CHOSEN))
    persistent(folder).write_bytes(b"{")

    def refuse(path: Path, _to: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "replace", refuse)
    state = opened(folder)
    assert (state.set_aside, dict(state.claims.by_id)) == ([persistent(folder)], {})
