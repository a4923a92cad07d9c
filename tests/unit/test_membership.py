"""What a caller is told who may not tune: the line that gives this user the group, or that no line does."""

from __future__ import annotations

import grp
import os
import pwd
import threading
from pathlib import Path

import pytest

from kerntune import errors, membership
from kerntune.membership import DYNAMIC, JOIN, UNIT, advice, for_stranger, for_this_user, for_user, stranger

JOINING = "sudo usermod -aG kerntune alice"


@pytest.mark.parametrize(
    ("in_process", "in_database", "said"),
    [
        (False, False, f"Members of the group kerntune may: {JOINING}, then log in again, or restart its service"),
        (True, False, f"This process has the group kerntune, but an older polkit reads the user database: {JOINING}"),
        (False, True, "The group kerntune has alice, but not in this process: log in again, or restart its service"),
        (True, True, "The group kerntune has alice already, so a rule of polkit says otherwise"),
    ],
)
def test_who_has_an_account(said: str, *, in_process: bool, in_database: bool) -> None:
    assert for_user("alice", in_process=in_process, in_database=in_database).startswith(said)


@pytest.mark.parametrize("uid", [DYNAMIC[0], DYNAMIC[-1], 3_999_999_999])
@pytest.mark.parametrize("in_process", [False, True])
def test_who_has_none_is_told_of_the_unit(uid: int, *, in_process: bool) -> None:
    said = for_stranger(uid, in_process=in_process)
    assert said.startswith("A user of DynamicUser=, as" if uid in DYNAMIC else "A user without an account, as")
    assert f"uid {uid}" in said
    assert f"Requires={UNIT}" in said
    assert ("SupplementaryGroups=kerntune" in said) is not in_process
    assert "usermod" not in said


def test_the_line_can_be_pasted_whatever_the_name() -> None:
    assert "-aG kerntune 'EXAMPLE\\alice smith'," in for_user(
        "EXAMPLE\\alice smith", in_process=False, in_database=False
    )


@pytest.fixture
def a_host_with_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "GROUP", grp.getgrgid(0).gr_name)


@pytest.mark.usefixtures("a_host_with_the_group")
@pytest.mark.parametrize("uid", [DYNAMIC[0], DYNAMIC[-1], 3_999_999_999])
def test_a_number_without_an_account(uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    in_process = 0 in {os.getegid(), *os.getgroups()}
    assert advice() == for_stranger(uid, in_process=in_process)
    assert f"as uid {uid} (libnss-systemd helps)" in stranger()


@pytest.mark.usefixtures("a_host_with_the_group")
def test_the_user_of_this_process() -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    in_process = 0 in {os.getegid(), *os.getgroups()}
    in_database = 0 in os.getgrouplist(name, pwd.getpwnam(name).pw_gid)
    assert advice() == for_user(name, in_process=in_process, in_database=in_database)
    assert stranger() == ""


@pytest.mark.usefixtures("a_host_with_the_group")
@pytest.mark.parametrize("kind", [errors.NotAuthorized, errors.InteractiveAuthorizationRequired])
def test_a_refusal_has_the_line_of_this_user(kind: type[errors.KerntuneError]) -> None:
    found = for_this_user(kind(f"you may not. {JOIN}"))
    assert (type(found), found.what, found.hint) == (kind, "you may not", advice())
    other = kind("you may not", "Ask an administrator")
    assert for_this_user(other) is other


def test_a_user_of_systemd_s_range_with_an_account_is_none_of_systemd_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text(f"root:x:0:0::/:/bin/sh\nodd\nalice:x:{DYNAMIC[5]}:100::/:/bin/sh\n")
    monkeypatch.setattr(membership, "PASSWD", passwd)
    monkeypatch.setattr(membership, "_name_of", lambda _uid: "alice")
    monkeypatch.setattr(os, "geteuid", lambda: DYNAMIC[5])
    assert stranger() == ""
    monkeypatch.setattr(os, "geteuid", lambda: DYNAMIC[6])
    assert stranger()


def test_a_host_without_the_group_has_what_the_daemon_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "GROUP", "no-such-group")
    assert advice() == JOIN


def test_a_user_database_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow() -> str:
        asked.set()
        answer.wait(20)
        return "late"

    monkeypatch.setattr(membership, "_looked_up", slow)
    assert advice(0.05) == JOIN
    assert asked.is_set()
    answer.set()
