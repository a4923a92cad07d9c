"""What a check of files reports: profiles that are named and are not there, profiles themselves, empty folders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kerntune.config.check import check, document, look

Captured = pytest.CaptureFixture[str]

DISK = '[io-scheduler]\n"sd*" = "none"\n'


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The folder that the daemon reads."""
    folder = tmp_path / "etc"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles/mine.toml").write_text(DISK)
    return folder


def report(place: Path, host: Path, capsys: Captured) -> tuple[int, dict[str, Any]]:
    found = look(place, host)
    assert check(place, host) == bool(found.errors)
    capsys.readouterr()
    return int(bool(found.errors)), document(found)


def wrong(place: Path, host: Path, capsys: Captured) -> tuple[int, list[str]]:
    """The exit status, and the problems with their places below the folder of the place."""
    code, said = report(place, host, capsys)
    return code, [f"{Path(row['file']).name}:{row['line']}: {row['what']}" for row in said["problems"]]


def test_a_profile_that_is_not_there(host: Path, capsys: Captured) -> None:
    (host / "kerntune.toml").write_text('# mine\nprofile = "nosuch"\n')
    code, said = report(host, host, capsys)
    (problem,) = said["problems"]
    assert (code, problem["severity"], problem["line"]) == (1, "error", 2)
    assert problem["file"] == str(host / "kerntune.toml")
    assert problem["what"] == "there is no profile 'nosuch'"
    assert "balanced" in problem["allowed"]
    assert "mine" in problem["allowed"]


def test_the_last_file_that_names_one_counts(host: Path, capsys: Captured) -> None:
    (host / "kerntune.toml").write_text('profile = "nosuch"\n')
    (host / "kerntune.d").mkdir()
    (host / "kerntune.d/10.toml").write_text('profile = "mine"\n')
    assert wrong(host, host, capsys) == (0, [])
    (host / "kerntune.d/20.toml").write_text('\nprofile = "gone"\n')
    assert wrong(host, host, capsys) == (1, ["20.toml:2: there is no profile 'gone'"])


@pytest.mark.parametrize("file", ["kerntune.toml", "kerntune.d/10.toml", "elsewhere.toml"])
def test_one_file_is_checked_with_the_profiles_that_it_would_find(
    tmp_path: Path, host: Path, capsys: Captured, file: str
) -> None:
    place = (host if file.startswith("kerntune") else tmp_path) / file
    place.parent.mkdir(exist_ok=True)
    place.write_text('profile = "mine"\n')
    assert wrong(place, host, capsys) == (0, [])
    place.write_text('profile = "nosuch"\n')
    assert wrong(place, host, capsys) == (1, [f"{place.name}:1: there is no profile 'nosuch'"])


def test_what_is_wrong_with_the_profile_in_force_is_told_once(host: Path, capsys: Captured) -> None:
    (host / "kerntune.toml").write_text('profile = "mine"\n')
    (host / "profiles/mine.toml").write_text('include = ["gone"]\n')
    assert wrong(host, host, capsys) == (1, ["mine.toml:1: there is no profile 'gone'"])


def test_mistakes_in_any_profile_are_errors(host: Path, capsys: Captured) -> None:
    """A caller may have selected it, and a reload would then refuse it."""
    (host / "kerntune.toml").write_text('profile = "mine"\n')
    (host / "profiles/spare.toml").write_text('include = ["base"]\n')
    (host / "profiles/base.toml").write_text('[io-scheduler]\n"sda" = 5.5\n')
    assert wrong(host, host, capsys) == (1, ["base.toml:2: io-scheduler: 5.5 is no value"])
    assert wrong(host / "profiles", host, capsys) == (1, ["base.toml:2: io-scheduler: 5.5 is no value"])


def test_ten_thousand_mistakes_take_no_minute(host: Path, capsys: Captured) -> None:
    (host / "kerntune.toml").write_text('profile = "big"\n')
    text = "[io-scheduler]\n" + "".join(f'"sd{number}" = 5.5\n' for number in range(10_000))
    (host / "profiles/big.toml").write_text(text)
    began = time.monotonic()
    code, said = report(host, host, capsys)
    assert (code, len(said["problems"])) == (1, 10_000)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("etc/profiles/new.toml", DISK),
        ("profiles/new.toml", DISK),
        ("new.toml", f'include = ["balanced"]\n{DISK}'),
        ("new.toml", f'summary = "for me"\n{DISK}'),
    ],
)
def test_a_profile_is_checked_as_one(tmp_path: Path, host: Path, capsys: Captured, file: str, text: str) -> None:
    place = tmp_path / file
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
    code, said = report(place, host, capsys)
    assert (code, said["problems"], said["files"]) == (0, [], [str(place)])
    assert {"tunable": "io-scheduler", "instances": "sd*", "value": "none"}.items() <= said["claims"][-1].items()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('include = ["nosuch"]\n', (1, ["new.toml:1: there is no profile 'nosuch'"])),
        ('include = ["other"]\n', (1, ["other.toml:2: io-scheduler: 5.5 is no value"])),
        ('include = ["new"]\n', (1, ["new.toml:1: profiles include each other: new -> new"])),
        ("include = []\nsummary = 5\n", (1, ["new.toml:2: summary is 5"])),
        ('summary = "x"\n[guard]\ncap = 9\n', (1, ["new.toml:2: nothing here is called 'guard'"])),
    ],
)
def test_mistakes_of_a_profile(
    tmp_path: Path, host: Path, capsys: Captured, text: str, expected: tuple[int, list[str]]
) -> None:
    place = tmp_path / "new.toml"
    place.write_text(text)
    (host / "profiles/other.toml").write_text('[io-scheduler]\n"sda" = 5.5\n')
    assert wrong(place, host, capsys) == expected


def test_a_name_that_no_profile_can_have(tmp_path: Path, host: Path, capsys: Captured) -> None:
    place = tmp_path / "new profile.txt"
    place.write_text('summary = "x"\n')
    code, said = report(place, host, capsys)
    (problem,) = said["problems"]
    assert (code, problem["severity"]) == (0, "warning")
    assert "no profile is found under this name" in problem["what"]


def test_a_folder_of_profiles(host: Path, capsys: Captured) -> None:
    (host / "profiles/bad.toml").write_text('include = ["gone"]\n')
    code, said = report(host / "profiles", host, capsys)
    assert code == 1
    assert [Path(name).name for name in said["files"]] == ["bad.toml", "mine.toml"]
    assert [problem["what"] for problem in said["problems"]] == ["there is no profile 'gone'"]


def test_a_folder_without_a_configuration_says_so(tmp_path: Path, host: Path, capsys: Captured) -> None:
    (host / "profiles/mine.toml").unlink()
    code, said = report(host, host, capsys)
    (problem,) = said["problems"]
    assert (code, problem["severity"], problem["what"]) == (0, "warning", "there is no configuration here")
    assert problem["allowed"] == "kerntuned reads kerntune.toml, and kerntune.d/*.toml, in such a folder"
    assert wrong(tmp_path / "gone", host, capsys) == (1, ["gone:0: there is no such file or folder"])
    assert check(host, host) == 0
    assert "warning: there is no configuration here" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["", "profiles"])
def test_a_file_that_no_profile_is_found_in_is_told(host: Path, capsys: Captured, place: str) -> None:
    for name in ("bad name.toml", ".#mine.toml", "notes.txt"):
        (host / "profiles" / name).write_text(DISK)
    code, said = report(host / place, host, capsys)
    (problem,) = said["problems"]
    assert (code, problem["severity"]) == (0, "warning")
    assert problem["file"] == str(host / "profiles/bad name.toml")
    assert problem["what"] == "no profile is found under this name"


def test_a_path_that_no_file_can_have_is_told(tmp_path: Path, capsys: Captured) -> None:
    report = look(tmp_path / ("x" * 300), tmp_path)
    assert [problem.what for problem in report.problems] == ["this cannot be read: File name too long"]
    assert check(tmp_path / ("x" * 300), tmp_path) == 1
    assert "File name too long" in capsys.readouterr().out


def test_one_file_is_a_part_and_contradicts_no_other(tmp_path: Path) -> None:
    """The folder as a whole is in order: a drop-in raises what the file goes by."""
    main, drop_in = tmp_path / "kerntune.toml", tmp_path / "kerntune.d" / "10.toml"
    main.write_text("[limits]\nholds-per-user = 100\n")
    assert not look(main, tmp_path).problems
    assert look(tmp_path, tmp_path).problems
    drop_in.parent.mkdir()
    drop_in.write_text("[limits]\nholds = 100\n")
    assert not look(tmp_path, tmp_path).problems
    main.write_text("[limits]\nholds-per-user = 100\nholds = 7\n")
    assert look(main, tmp_path).problems
