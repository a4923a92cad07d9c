"""Profiles: which there are, what they include, the last good claims. What `kerntune config check` says of files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kerntune.config.check import check, document, look
from kerntune.config.profiles import MAX_DEPTH, READABLE, Profiles
from kerntune.config.sources import ActiveProfile
from kerntune.errors import InvalidValue, NoSuchProfile
from kerntune.model import Claim, Origin
from kerntune.tunables import REGISTRY

DISK = '[io-scheduler]\n"sd*" = "{}"\n'


class Shelf:
    """A shipped and an administrator's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shipped, self.own = folder / "shipped", folder / "own"
        self.shipped.mkdir()
        self.own.mkdir()
        self.profiles = Profiles((self.shipped, self.own), REGISTRY)

    def write(self, name: str, text: str, *, shipped: bool = False) -> Path:
        path = (self.shipped if shipped else self.own) / f"{name}.toml"
        path.write_text(text)
        return path

    def claims(self, name: str) -> list[tuple[str, str, str]]:
        """Tunable@instances, value and the profile it is from, the weakest first."""
        profile = self.profiles.read(name)
        assert profile.errors == ()
        return said(profile.claims)

    def wrong(self, name: str) -> list[str]:
        return [str(problem).removeprefix(f"{self.own}/") for problem in self.profiles.read(name).problems]

    def in_force(self) -> ActiveProfile:
        return ActiveProfile(self.profiles, self.folder / "run", {tunable.name: tunable for tunable in REGISTRY})


def said(claims: tuple[Claim, ...]) -> list[tuple[str, str, str]]:
    ranked = sorted(claims, key=lambda claim: claim.seq)
    return [(f"{claim.tunable}@{claim.instances}", claim.value, claim.who) for claim in ranked]


@pytest.fixture
def shelf(folder: Path) -> Shelf:
    return Shelf(folder)


def test_what_one_says(shelf: Shelf) -> None:
    text = 'summary = "for me"\n[hugepages]\n"2M" = "1G"\n[overcommit]\n"*" = { value = "always:95", why = "needed" }\n'
    path = shelf.write("mine", text)
    profile = shelf.profiles.read("mine")
    assert (profile.name, profile.summary, profile.files[0], profile.problems) == ("mine", "for me", path, ())
    assert profile.claims == (
        Claim(Origin.PROFILE, "hugepages", "2M", "512", "mine", f"{path}:3", 1, partial=True, place=f"{path}:3"),
        Claim(Origin.PROFILE, "overcommit", "", "always:95", "mine", "needed", 2, place=f"{path}:5"),
    )


def test_the_administrators_takes_the_place_of_the_shipped(shelf: Shelf) -> None:
    shelf.write("balanced", DISK.format("bfq"), shipped=True)
    shelf.write("other", 'summary = "another"', shipped=True)
    assert shelf.claims("balanced") == [("io-scheduler@sd*", "bfq", "balanced")]
    shelf.write("balanced", 'summary = "own"\n' + DISK.format("none"))
    assert shelf.claims("balanced") == [("io-scheduler@sd*", "none", "balanced")]
    assert shelf.profiles.listing() == [("balanced", "own"), ("other", "another")]


def test_only_files_with_a_name_are_profiles(shelf: Shelf) -> None:
    for name in (".hidden", "-x", "a b", "ä", "x" * 65):
        shelf.write(name, "")
    (shelf.own / "mine.toml~").touch()
    assert shelf.profiles.files() == {}
    for name in ("../own/mine", "mine.toml", "", "\0", "x" * 10_000):
        with pytest.raises(NoSuchProfile, match="there is no profile"):
            shelf.profiles.read(name)
    for folder in (shelf.shipped, shelf.own):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    assert shelf.profiles.listing() == []


def test_what_is_included_is_weaker_and_read_once(shelf: Shelf) -> None:
    shelf.write("base", DISK.format("bfq") + '"nvme*" = "none"\n')
    shelf.write("one", 'include = ["base"]\n[overcommit]\n"*" = "always"\n')
    shelf.write("two", 'include = ["base"]\n[overcommit]\n"*" = "heuristic"\n')
    shelf.write("all", 'include = ["one", "two"]\n' + DISK.format("kyber"))
    assert shelf.claims("all") == [
        ("io-scheduler@nvme*", "none", "base"),
        ("overcommit@", "heuristic", "two"),
        ("io-scheduler@sd*", "kyber", "all"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('include = ["mine"]', "mine.toml:1: profiles include each other: mine -> mine. One of them has to do without"),
        ('\ninclude = ["gone"]', "mine.toml:2: there is no profile 'gone'. There are mine"),
        ('include = "base"', "mine.toml:1: include is 'base'. Give names: include = [\"balanced\"]"),
        ("include = [5]", 'mine.toml:1: include is a list. Give names: include = ["balanced"]'),
        ("summary = 5", 'mine.toml:1: summary is 5. Give a line of 200 characters or less: summary = "..."'),
        ('[io-scheduler]\n"sd*" = 5.5', "mine.toml:2: io-scheduler: 5.5 is no value. "
         'Give a whole number, or a word in quotes: "none"'),
        ('[io-scheduler]\n"sd*" = { value = "bfq", when = "now" }',
         "mine.toml:2: io-scheduler: 'when' has no place here. Write { value = \"none\", why = \"...\" }"),
        ('[io-scheduler]\n"sd*" = { value = "bfq", why = 5 }',
         "mine.toml:2: io-scheduler: 5 is no reason. Give a text of 256 characters or less"),
        ("[limits]\nclaims = 5", "mine.toml:1: nothing here is called 'limits'. "
         "There are cpu-governor, hugepages, io-scheduler, overcommit"),
    ],
)  # fmt: skip
def test_mistakes(shelf: Shelf, text: str, message: str) -> None:
    shelf.write("mine", text)
    said = [line.partition(". There are cpu-epp")[0] for line in shelf.wrong("mine")]
    assert said == [message.partition(". There are cpu-governor")[0]]


def test_a_broken_one_is_listed_with_what_is_wrong(shelf: Shelf) -> None:
    path = shelf.write("mine", "[")
    ((name, summary),) = shelf.profiles.listing()
    assert (name, summary.startswith(f"{path}:1: this is not TOML")) == ("mine", True)
    shelf.write("mine", "").chmod(0)
    path.unlink()
    path.mkdir()
    assert shelf.profiles.listing() == []


def test_a_cycle_over_three_and_a_chain_without_end(shelf: Shelf) -> None:
    for name, other in ("ab", "bc", "ca"):
        shelf.write(name, f'include = ["{other}"]')
    assert shelf.wrong("b") == [
        "a.toml:1: profiles include each other: b -> c -> a -> b. One of them has to do without"
    ]
    for number in range(MAX_DEPTH + 5):
        shelf.write(f"n{number}", f'include = ["n{number + 1}"]')
    assert shelf.wrong("n0") == [
        f"n{MAX_DEPTH - 1}.toml:1: profiles include each other {MAX_DEPTH} deep. Include them side by side"
    ]


# In force


def test_who_chooses_one_is_told_what_is_wrong(shelf: Shelf) -> None:
    shelf.write("mine", DISK.format("bfq") + "5 = 5.5\n")
    with pytest.raises(InvalidValue, match=r"profile mine is not in order: .*mine.toml:3: io-scheduler: 5.5 is no"):
        shelf.profiles.read_sound("mine")
    with pytest.raises(NoSuchProfile):
        shelf.profiles.read_sound("yours")
    shelf.write("mine", "[tomorrow]\n" + DISK.format("bfq"))
    with pytest.raises(InvalidValue, match="nothing here is called 'tomorrow'"):
        shelf.profiles.read_sound("mine")
    shelf.write("mine", DISK.format("bfq"))
    chosen = shelf.profiles.read_sound("mine")
    assert (said(chosen.claims), chosen.problems) == ([("io-scheduler@sd*", "bfq", "mine")], ())


BROKEN = {
    "not TOML": "[",
    "a bad claim": DISK.format("bfq").replace('"bfq"', "5.5"),
    "a misspelt table": '[io-schedulers]\n"sd*" = "bfq"\n',
    "a cycle": 'include = ["mine"]\n' + DISK.format("none"),
    "gone": "",
}


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_the_last_good_claims_of_the_one_in_force_stay(shelf: Shelf, *, text: str, restarted: bool) -> None:
    path = shelf.write("mine", DISK.format("bfq"))
    reader = shelf.in_force()
    assert reader.load("mine", is_selected=True).problems == ()
    if text:
        path.write_text(text)
    else:
        path.unlink()
    for _ in range(2):
        if restarted:
            reader = shelf.in_force()
        chosen = reader.load("mine", is_selected=True)
        assert said(chosen.claims) == [("io-scheduler@sd*", "bfq", "mine")]
        assert chosen.claims[0].why.endswith("mine.toml:2, as last read without an error")
        assert [problem.is_error for problem in chosen.problems] == [True]
    shelf.write("mine", DISK.format("none"))
    assert [claim.value for claim in reader.load("mine", is_selected=True).claims] == ["none"]


@pytest.mark.parametrize("is_selected", [True, False], ids=["selected", "named"])
def test_of_the_one_before_only_that_stays_which_the_files_had_named(shelf: Shelf, *, is_selected: bool) -> None:
    """Then the files name one with errors: what a caller had selected ends, and a typo of theirs frees nothing."""
    shelf.write("mine", DISK.format("bfq"))
    shelf.write("bad", "[")
    reader = shelf.in_force()
    reader.load("mine", is_selected=is_selected)
    found = reader.load("bad", is_selected=False)
    assert (found.name, [claim.value for claim in found.claims]) == (("bad", []) if is_selected else ("mine", ["bfq"]))
    assert [problem.is_error for problem in found.problems] == [True]


@pytest.mark.parametrize("is_selected", [True, False], ids=["selected before", "nothing before"])
def test_a_misspelt_name_is_not_in_force(shelf: Shelf, *, is_selected: bool) -> None:
    reader = shelf.in_force()
    if is_selected:
        shelf.write("mine", DISK.format("bfq"))
        reader.load("mine", is_selected=True)
    for name in ("nosuch", "neither"):
        found = reader.load(name, is_selected=False)
        assert (found.name, found.claims) == ("", ())
        assert [problem.what for problem in found.problems] == [f"there is no profile {name!r}"]


def test_a_misspelt_include_takes_nothing_away(shelf: Shelf) -> None:
    shelf.write("base", DISK.format("none") + '"nvme*" = "kyber"\n')
    shelf.write("mine", 'include = ["base"]\n' + DISK.format("bfq"))
    reader = shelf.in_force()
    assert reader.load("mine", is_selected=True).problems == ()
    shelf.write("mine", 'includes = ["base"]\n' + DISK.format("mq-deadline"))
    for _ in range(2):
        chosen = reader.load("mine", is_selected=True)
        assert said(chosen.claims) == [
            ("io-scheduler@nvme*", "kyber", "base"),
            ("io-scheduler@sd*", "mq-deadline", "mine"),
        ]
        (problem,) = chosen.problems
        assert problem.what == (
            "nothing here is called 'includes'; the claims of io-scheduler that this file had stay in force"
        )
        assert problem.allowed.startswith("Did you mean 'include'? There are cpu-epp")
        reader = shelf.in_force()


def test_an_include_that_is_no_name_takes_nothing_away(shelf: Shelf) -> None:
    shelf.write("base", DISK.format("none"))
    shelf.write("mine", 'include = ["base"]\n[hugepages]\n"2M" = 5\n')
    reader = shelf.in_force()
    before = said(reader.load("mine", is_selected=True).claims)
    shelf.write("mine", 'include = 5\n[hugepages]\n"2M" = 5\n')
    chosen = reader.load("mine", is_selected=True)
    assert (said(chosen.claims), len(before)) == (before, 2)
    assert "include is 5" in chosen.problems[0].what


def test_where_there_were_none_only_the_bad_claim_is_left_out(shelf: Shelf) -> None:
    shelf.write("mine", DISK.format("bfq") + '"nvme*" = 5.5\n')
    chosen = shelf.in_force().load("mine", is_selected=True)
    assert said(chosen.claims) == [("io-scheduler@sd*", "bfq", "mine")]
    assert len(chosen.problems) == 1


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_what_is_good_of_a_profile_with_errors_stays_when_it_gets_worse(shelf: Shelf, *, restarted: bool) -> None:
    shelf.write("mine", DISK.format("bfq") + '"nvme*" = 5.5\n')
    reader = shelf.in_force()
    reader.load("mine", is_selected=True)
    shelf.write("mine", "[")
    assert said((shelf.in_force() if restarted else reader).load("mine", is_selected=True).claims) == [
        ("io-scheduler@sd*", "bfq", "mine")
    ]


def test_a_second_reading_gives_the_claims_the_same_order(shelf: Shelf) -> None:
    """The claim on "sd*" is of the profile that includes the others: it is the strongest, whatever stands below."""
    shelf.write("base", DISK.format("bfq"))
    shelf.write("more", '[io-scheduler]\n"sda" = "kyber"\n')
    shelf.write("mine", 'include = ["base", "more"]\n' + DISK.format("none"))
    reader = shelf.in_force()
    for _ in range(3):
        assert said(reader.load("mine", is_selected=True).claims) == [
            ("io-scheduler@sda", "kyber", "more"),
            ("io-scheduler@sd*", "none", "mine"),
        ]


def test_a_copy_that_cannot_be_used_is_set_aside(shelf: Shelf) -> None:
    shelf.write("mine", DISK.format("bfq"))
    (shelf.folder / "run/profile.json").write_text('{"format": 2}')
    reader = shelf.in_force()
    assert reader.set_aside == shelf.folder / "run/profile.json.bad"
    assert said(reader.load("mine", is_selected=True).claims) == [("io-scheduler@sd*", "bfq", "mine")]
    assert shelf.in_force().set_aside is None


# What a check of files reports


Captured = pytest.CaptureFixture[str]

SOUND = DISK.format("none")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The folder that the daemon reads."""
    folder = tmp_path / "etc"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles/mine.toml").write_text(SOUND)
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
        ("etc/profiles/new.toml", SOUND),
        ("profiles/new.toml", SOUND),
        ("new.toml", f'include = ["balanced"]\n{SOUND}'),
        ("new.toml", f'summary = "for me"\n{SOUND}'),
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
        (host / "profiles" / name).write_text(SOUND)
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


@pytest.mark.parametrize("place", ["kerntune.toml", "kerntune.d/10.toml", "profiles/mine.toml"])
def test_a_file_that_the_service_may_not_read_is_told_to_root_too(host: Path, place: str) -> None:
    """Root may read any file by a capability, and the service has none."""
    file = host / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(SOUND)
    assert not look(host, host).problems
    file.chmod(0)
    (problem,) = look(host, host).problems
    assert str(problem) == f"{file}: this file cannot be read: Permission denied. {READABLE}"


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
