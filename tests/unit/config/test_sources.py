"""The configuration files of a folder: their order, and what is in force when one of them goes wrong."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kerntune.config.content import Content
from kerntune.config.sources import STALE, ConfigFiles
from kerntune.guard.policy import GuardLimits
from kerntune.model import NO_MEMORY, Limits
from kerntune.plain_files import MAX_FILE_BYTES
from kerntune.tunables import REGISTRY

NONE, BFQ, KYBER = (f'[io-scheduler]\n"nvme*" = "{name}"\n' for name in ("none", "bfq", "kyber"))
POOL = '[hugepages]\n"2M" = 64\n'


@dataclass(slots=True)
class Folder:
    """The files, the runtime directory, and the daemon's eye on both."""

    config: Path
    runtime: Path
    configuration: ConfigFiles

    def write(self, text: str, name: str = "kerntune.toml") -> None:
        path = self.config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def read(self) -> Content:
        return self.configuration.read()

    def restart(self) -> None:
        self.configuration = ConfigFiles(self.config, self.runtime, REGISTRY)


@pytest.fixture
def etc(folder: Path) -> Folder:
    return Folder(folder / "etc", folder / "run", ConfigFiles(folder / "etc", folder / "run", REGISTRY))


def claims(config: Content) -> dict[str, str]:
    return {f"{claim.tunable}@{claim.instances}": claim.value for claim in config.claims}


def where(config: Content) -> list[str]:
    """File and line of each claim."""
    return [claim.why.rpartition("/")[2] for claim in config.claims]


# Which files there are


def test_without_files_nothing_is_claimed(etc: Folder) -> None:
    assert etc.read() == Content()
    assert not (etc.runtime / "config.json").exists()
    etc.write("", "kerntune.d/README")
    assert etc.read() == Content()


def test_the_later_file_and_line_wins(etc: Folder) -> None:
    etc.write(KYBER, "kerntune.d/20-b.toml")
    etc.write("[limits]\nhugepages-percent = 50\nclaims = 7\n" + NONE + '"*" = "mq-deadline"\n')
    etc.write("[limits]\nhugepages-percent = 60\n" + POOL, "kerntune.d/10-a.toml")
    config = etc.read()
    assert [path.name for path in config.files] == ["kerntune.toml", "10-a.toml", "20-b.toml"]
    ranked = sorted(config.claims, key=lambda claim: claim.seq)
    assert [(claim.tunable, claim.instances, claim.value) for claim in ranked] == [
        ("io-scheduler", "*", "mq-deadline"),
        ("hugepages", "2M", "64"),
        ("io-scheduler", "nvme*", "kyber"),
    ]
    assert len({claim.seq for claim in config.claims}) == 3
    assert config.limits == Limits(hugepages_percent=60, claims=7)
    assert config.problems == ()


def test_a_later_file_may_name_another_profile_or_none(etc: Folder) -> None:
    etc.write('profile = "mine"\n')
    assert etc.read().profile == "mine"
    etc.write('profile = "yours"\n', "kerntune.d/10.toml")
    assert etc.read().profile == "yours"
    etc.write('profile = ""\n', "kerntune.d/20.toml")
    assert etc.read().profile == ""


def test_only_toml_files_in_sight_are_read(etc: Folder) -> None:
    for name in (".#10.toml", ".10.toml", "10.toml~", "10.toml.dpkg-new", "10.conf", "toml"):
        etc.write("no TOML", f"kerntune.d/{name}")
    etc.write("no TOML", "other.toml")
    assert etc.read() == Content()


def test_a_link_to_nothing_masks_a_file(etc: Folder) -> None:
    (etc.config / "kerntune.d").mkdir(parents=True)
    (etc.config / "kerntune.d/10.toml").symlink_to("/dev/null")
    config = etc.read()
    assert (config.claims, config.problems) == ((), ())


def test_what_is_no_file_is_told_and_not_waited_for(etc: Folder) -> None:
    (etc.config / "kerntune.d").mkdir(parents=True)
    os.mkfifo(etc.config / "kerntune.d/20.toml")
    writer = os.open(etc.config / "kerntune.d/20.toml", os.O_RDWR)
    try:
        (problem,) = etc.read().problems
    finally:
        os.close(writer)
    assert problem.what == "this file cannot be read: it is no regular file"


def test_two_spellings_of_one_pool_are_one_claim(etc: Folder) -> None:
    etc.write('[hugepages]\n"2048K" = 5\n"2M" = 6\n')
    assert claims(etc.read()) == {"hugepages@2M": "6"}


# What is in force when a file is not in order


BROKEN = {
    "not TOML": "[io-scheduler]\nnvme* = none\n",
    "a bad claim": '[hugepages]\n"2M" = 128\n[io-scheduler]\n"nvme*" = "no such name"\n',
    "a bad table": 'io-scheduler = "bfq"\n',
    "not a text": "\udcff",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_broken_file_keeps_its_last_good_claims(etc: Folder, *, broken: str, restarted: bool) -> None:
    etc.write(POOL + NONE)
    etc.write('[overcommit]\n"*" = "always"', "kerntune.d/10.toml")
    etc.read()
    (etc.config / "kerntune.toml").write_bytes(broken.encode(errors="surrogateescape"))
    etc.write('[overcommit]\n"*" = "heuristic"', "kerntune.d/10.toml")
    for _ in range(2):
        if restarted:
            etc.restart()
        config = etc.read()
        assert claims(config) == {"hugepages@2M": "64", "io-scheduler@nvme*": "none", "overcommit@": "heuristic"}
        assert where(config) == [f"kerntune.toml:2{STALE}", f"kerntune.toml:4{STALE}", "10.toml:2"]
        assert [problem.file for problem in config.errors] == [str(etc.config / "kerntune.toml")]
    etc.write(BFQ)
    config = etc.read()
    assert (claims(config), config.problems) == ({"io-scheduler@nvme*": "bfq", "overcommit@": "heuristic"}, ())
    assert where(config) == ["kerntune.toml:2", "10.toml:2"]


def test_at_a_first_start_only_what_is_bad_is_left_out(etc: Folder) -> None:
    etc.write(POOL + '[io-scheduler]\nsda = "none"\n"../x" = "none"\n[limits]\nclaims = 0\nhugepages-percent = 5')
    config = etc.read()
    assert claims(config) == {"hugepages@2M": "64", "io-scheduler@sda": "none"}
    assert config.limits == Limits(hugepages_percent=5)
    assert [problem.line for problem in config.errors] == [5, 7]
    # From then on these are what the file keeps.
    etc.write("[[[")
    assert claims(etc.read()) == {"hugepages@2M": "64", "io-scheduler@sda": "none"}


def test_where_nothing_was_claimed_before_only_what_is_bad_is_left_out(etc: Folder) -> None:
    etc.write("# nothing yet\n[io-scheduler]\n")
    etc.read()
    etc.write(POOL + "[io-scheduler]\nsda = 1.5\n")
    config = etc.read()
    assert (claims(config), len(config.errors)) == ({"hugepages@2M": "64"}, 1)


def test_a_file_that_is_no_toml_keeps_its_limits_and_a_bad_option_has_its_default(etc: Folder) -> None:
    etc.write("[limits]\nhugepages-percent = 30\n" + POOL)
    assert etc.read().limits.hugepages_percent == 30
    etc.write("[limits]\nhugepages-percent = 3o\n" + POOL)
    etc.restart()
    assert etc.read().limits.hugepages_percent == 30
    etc.write("[limits]\nhugepages-percent = 300\n" + NONE)
    config = etc.read()
    assert config.limits.hugepages_percent == 75
    assert claims(config) == {"io-scheduler@nvme*": "none"}
    etc.write("[limits]\nhugepages-percent = 40\n[hugepages]\n2M = 1.5")
    config = etc.read()
    assert (config.limits.hugepages_percent, claims(config)) == (40, {"io-scheduler@nvme*": "none"})


def test_a_file_that_is_removed_is_gone(etc: Folder) -> None:
    etc.write(POOL)
    etc.write(NONE, "kerntune.d/10.toml")
    etc.read()
    (etc.config / "kerntune.d/10.toml").unlink()
    assert claims(etc.read()) == {"hugepages@2M": "64"}
    (etc.config / "kerntune.toml").unlink()
    assert etc.read() == Content()
    etc.write("[[[", "kerntune.d/10.toml")
    assert etc.read().claims == ()


def test_a_name_nobody_knows_is_an_error_and_keeps_nothing_back(etc: Folder) -> None:
    etc.write(POOL)
    etc.read()
    etc.write(POOL.replace("64", "32") + NONE + "[tomorrow]\nx = 1\n")
    config = etc.read()
    assert claims(config) == {"hugepages@2M": "32", "io-scheduler@nvme*": "none"}
    assert [problem.what for problem in config.errors] == ["nothing here is called 'tomorrow'"]


SAID = 'profile = "mine"\n[guard]\ncalm = 9\nband = 5\n' + POOL + NONE
MISSPELT = {
    "a table": (SAID.replace("[hugepages]", "[hugepage]"), "the claims of hugepages that this file had stay"),
    "tables": (
        SAID.replace("[hugepages]", "[hugepage]").replace("[io-", "[ior-"),
        "the claims of hugepages, io-scheduler that this file had stay",
    ),
    "a table of options": (SAID.replace("[guard]", "[gaurd]"), "band in [guard] and calm in [guard] that this"),
    "an option": (SAID.replace("calm", "calmm"), "calm in [guard] that this file had stays"),
    "a profile": (SAID.replace("profile", "profil"), "the profile mine that this file had stays"),
    "no name of a profile": (SAID.replace('"mine"', "5"), "the profile mine that this file had stays"),
    "a lost header": (SAID.replace("[hugepages]\n", ""), "the claims of hugepages that this file had stay"),
}


@pytest.mark.parametrize(("text", "kept"), MISSPELT.values(), ids=MISSPELT)
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_typo_takes_nothing_away_and_keeps_nothing_back(
    etc: Folder, *, text: str, kept: str, restarted: bool
) -> None:
    etc.write(SAID)
    etc.read()
    etc.write(text + '[overcommit]\n"*" = "always"')
    for _ in range(2):
        if restarted:
            etc.restart()
        config = etc.read()
        assert claims(config) == {"hugepages@2M": "64", "io-scheduler@nvme*": "none", "overcommit@": "always:95"}
        assert (config.profile, config.guard.calm, config.guard.band) == ("mine", 9, 5)
        assert kept in config.errors[0].what
        assert config.errors[0].what.endswith(" in force")
        assert not any("stay" in problem.what for problem in config.errors[1:])
    etc.write(BFQ)
    config = etc.read()
    assert (claims(config), config.profile, config.problems) == ({"io-scheduler@nvme*": "bfq"}, "", ())


def test_what_a_file_that_is_not_in_order_says_anew_wins_over_what_it_said(etc: Folder) -> None:
    etc.write(POOL + NONE)
    etc.read()
    etc.write(POOL.replace("hugepages", "hugepage") + BFQ)
    assert claims(etc.read()) == {"hugepages@2M": "64", "io-scheduler@nvme*": "bfq"}
    etc.write(POOL.replace("hugepages", "hugepage") + BFQ.replace('"bfq"', "5.5"))
    assert claims(etc.read()) == {"hugepages@2M": "64", "io-scheduler@nvme*": "bfq"}


@pytest.mark.parametrize(
    ("main", "more", "wrong"),
    [
        ("holds-per-user = 100\n", "", ["kerntune.toml:2: holds-per-user is 100, and holds is 64"]),
        ("holds-per-user = 64\nholds = 10\n", "", ["kerntune.toml:2: holds-per-user is 64, and holds is 10"]),
        ("holds-per-user = 20\n", "holds = 10\n", ["kerntune.toml:2: holds-per-user is 20, and holds is 10"]),
        ("holds = 10\n", "holds-per-user = 20\n", ["10.toml:2: holds-per-user is 20, and holds is 10"]),
        ("holds = 60\nclaims = 59\n", "", ["kerntune.toml:2: holds is 60, and claims is 59"]),
        ("holds = 10\n", "", []),
        ("claims = 5\n", "", []),
        ("holds = 400\nholds-per-user = 400\nclaims = 400\n", "", []),
        ("holds-per-user = 100\n", "holds = 100\n", []),
    ],
)
def test_limits_that_contradict_are_told_where_they_stand(etc: Folder, main: str, more: str, wrong: list[str]) -> None:
    etc.write("[limits]\n" + main)
    if more:
        etc.write("[limits]\n" + more, "kerntune.d/10.toml")
    config = etc.read()
    said = [f"{Path(problem.file).name}:{problem.line}: {problem.what}" for problem in config.errors]
    assert said == wrong
    name = wrong[0].split()[1] if wrong else ""
    if name:
        assert getattr(config.limits, name.replace("-", "_")) == getattr(Limits(), name.replace("-", "_"))


@pytest.mark.parametrize(
    ("enabled", "band", "calm"), [*itertools.product((True, False), (0, 1, 1 << 24), (0, 3600))], ids=str
)
def test_no_values_of_the_guard_contradict(etc: Folder, *, enabled: bool, band: int, calm: int) -> None:
    """They mean what is written: above the floor it caps, and it lets go above where it caps."""
    etc.write(f"[guard]\nenabled = {str(enabled).lower()}\nband = {band}\ncalm = {calm}\n")
    config = etc.read()
    assert (config.problems, config.guard) == ((), GuardLimits(enabled=enabled, band=band, calm=calm))
    for total in (1 << 30, 1 << 35, 1 << 43):
        memory = replace(NO_MEMORY, total=total)
        assert config.guard.floor(memory) < config.guard.caps_at(memory) < config.guard.ends_at(memory)
        if band:
            assert config.guard.caps_at(memory) - config.guard.floor(memory) == band << 20


@pytest.mark.parametrize("name", ["kerntune.toml", "kerntune.d/10.toml"])
def test_a_file_that_cannot_be_read_keeps_its_claims(etc: Folder, name: str) -> None:
    etc.write(POOL, name)
    etc.read()
    path = etc.config / name
    path.unlink()
    path.mkdir()
    config = etc.read()
    assert claims(config) == {"hugepages@2M": "64"}
    assert list(map(str, config.errors)) == [f"{path}: this file cannot be read: Is a directory"]
    path.rmdir()
    path.symlink_to("nowhere")
    config = etc.read()
    assert claims(config) == {"hugepages@2M": "64"}
    assert "No such file" in str(config.errors[0])


def test_a_file_that_is_too_long_is_not_read(etc: Folder) -> None:
    etc.write("#" * (MAX_FILE_BYTES + 1))
    assert [problem.what for problem in etc.read().errors] == [
        f"this file cannot be read: it is longer than {MAX_FILE_BYTES} bytes"
    ]


def test_a_folder_that_cannot_be_listed_keeps_the_claims_of_its_files(etc: Folder) -> None:
    etc.write(POOL)
    etc.write(NONE, "kerntune.d/10.toml")
    etc.read()
    (etc.config / "kerntune.d").rename(etc.config / "away")
    (etc.config / "kerntune.d").write_text("no folder")
    etc.restart()
    config = etc.read()
    assert claims(config) == {"hugepages@2M": "64", "io-scheduler@nvme*": "none"}
    assert [problem.what for problem in config.errors] == ["this folder cannot be listed: Not a directory"]


# The copy


COPIES = ["", "null", "[]", "{", '{"format": 2}', '{"format": 1, "files": 5}', '{"format": 1, "files": {"a": 1}}',
          '{"format": 1, "files": {"a": {"claims": [{"x": 1}], "options": []}}}',
          '{"format": 1, "files": {"a": {"claims": [], "options": [["limits", "claims", "x"]]}}}',
          '{"format": 1, "files": {"a": {"claims": [], "options": [5]}}}', "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("text", COPIES, ids=lambda text: text[:50])
def test_a_copy_that_cannot_be_used_is_not_used(etc: Folder, text: str) -> None:
    (etc.runtime / "config.json").write_text(text)
    etc.write(POOL)
    etc.restart()
    assert etc.configuration.set_aside == etc.runtime / "config.json.bad"
    assert claims(etc.read()) == {"hugepages@2M": "64"}
    etc.write("[[[")
    etc.restart()
    assert claims(etc.read()) == {"hugepages@2M": "64"}


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("broken", ["[[[", "[limit]\nholds = 300\n[limits]\nclaims = 100\n"], ids=["no TOML", "a typo"])
def test_kept_limits_that_contradict_are_reported_too(etc: Folder, *, broken: str, restarted: bool) -> None:
    etc.write("[limits]\nholds = 300\nclaims = 100\n" if broken == "[[[" else "[limits]\nholds = 300\nclaims = 400\n")
    etc.read()
    etc.write(broken)
    if restarted:
        etc.restart()
    config = etc.read()
    contradictions = [problem for problem in config.problems if "holds is 300, and claims is 100" in problem.what]
    assert [Path(problem.file).name for problem in contradictions] == ["kerntune.toml"]
    assert config.limits == Limits(claims=100)


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_a_file_that_names_no_profile_still_names_none_when_it_breaks(etc: Folder, *, restarted: bool) -> None:
    etc.write('profile = "balanced"\n', "kerntune.d/10-a.toml")
    etc.write('profile = ""\n', "kerntune.d/20-b.toml")
    assert etc.read().profile == ""
    etc.write("[[[", "kerntune.d/20-b.toml")
    if restarted:
        etc.restart()
    assert etc.read().profile == ""
    etc.write('profil = ""\n', "kerntune.d/20-b.toml")
    config = etc.read()
    assert config.profile == ""
    assert "the choice of no profile that this file had stays in force" in config.problems[0].what


def test_no_claim_comes_from_the_copy_that_no_file_could_make(etc: Folder) -> None:
    etc.write(POOL)
    etc.read()
    copy = etc.runtime / "config.json"
    document = json.loads(copy.read_text())
    (kept,) = document["files"].values()
    kept["claims"].append(kept["claims"][0] | {"tunable": "io-scheduler", "instances": "../sda"})
    kept["options"] = [["limits", "gone", 5], ["limits", "claims", 9]]
    copy.write_text(json.dumps(document))
    etc.write("[[[")
    etc.restart()
    config = etc.read()
    assert (claims(config), config.limits.claims) == ({"hugepages@2M": "64"}, 9)


def test_a_claim_of_the_copy_has_its_place_and_one_of_an_earlier_version_has_none(etc: Folder) -> None:
    etc.write('[io-scheduler]\n"nvme*" = { value = "none", why = "its own queue" }\n')
    etc.read()
    etc.write("[[[")
    etc.restart()
    place = f"{etc.config}/kerntune.toml:2"
    assert [(claim.why, claim.place) for claim in etc.read().claims] == [(f"its own queue{STALE}", place)]
    copy = etc.runtime / "config.json"
    document = json.loads(copy.read_text())
    (kept,) = document["files"].values()
    del kept["claims"][0]["place"]
    copy.write_text(json.dumps(document))
    etc.restart()
    assert [(claim.why, claim.place) for claim in etc.read().claims] == [(f"its own queue{STALE}", "")]
    kept["claims"][0]["place"] = 5
    copy.write_text(json.dumps(document))
    etc.restart()
    assert etc.configuration.set_aside == copy.with_name("config.json.bad")


def test_the_copy_is_written_only_when_it_changes_and_a_failure_is_none(
    etc: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    etc.write(POOL)
    etc.read()
    before = (etc.runtime / "config.json").stat().st_mtime_ns, (etc.runtime / "config.json").stat().st_ino
    etc.restart()
    etc.read()
    assert ((etc.runtime / "config.json").stat().st_mtime_ns, (etc.runtime / "config.json").stat().st_ino) == before
    etc.write(NONE)
    etc.runtime.rename(etc.runtime.with_name("away"))
    assert claims(etc.read()) == {"io-scheduler@nvme*": "none"}
    assert "cannot be saved" in caplog.text


def test_a_file_that_says_nothing_any_more_leaves_nothing(etc: Folder) -> None:
    etc.write(POOL)
    etc.read()
    etc.write("# [hugepages]\n")
    etc.restart()
    assert etc.read() == Content()
    etc.write("[[[")
    etc.restart()
    assert claims(etc.read()) == {}
