"""Files below a root: links stay inside, and nothing that is odd about a file stops the reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerntune.doctor.files import Files, whole
from tests.unit.doctor.lab import write

NOBODY = 65534


@pytest.mark.parametrize(
    ("link", "leads_to"),
    [("b", "etc/b"), ("../x", "x"), ("/etc/b", "etc/b"), ("../../../../x/y", "x/y"), ("/dev/null", "dev/null")],
)
def test_links_are_followed_as_below_the_root(tmp_path: Path, link: str, leads_to: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/a").symlink_to(link)
    assert Files(tmp_path).resolve("etc/a") == leads_to


def test_a_link_out_of_the_root_finds_nothing_outside(tmp_path: Path) -> None:
    write(tmp_path, {"secret": "outside", "root/etc/b": "inside"})
    (tmp_path / "root/etc/a").symlink_to(tmp_path / "secret")
    assert Files(tmp_path / "root").text("etc/a") is None


def test_a_loop_of_links_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    files = Files(tmp_path)
    assert files.text("a") is None
    assert files.leads_to("a") == ""
    assert "/a" in files.unreadable


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    files = Files(tmp_path)
    assert [files.text(name) for name in ("fifo", "folder", "nothing", "nothing/below")] == [None] * 4
    assert files.names("nothing") == []
    assert not files.runs("folder")


def test_a_folder_that_cannot_be_listed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "crontabs").mkdir(mode=0o100)
    files, user = Files(tmp_path), os.geteuid()
    os.seteuid(user or NOBODY)  # root may list every folder
    try:
        assert files.names("crontabs") == []
    finally:
        os.seteuid(user)
    assert files.unreadable == {"/crontabs": "Permission denied"}


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\n\none\r\n\xfftwo\0")
    assert list(Files(tmp_path).lines("a"))[2:] == [
        (3, "one"),
        (4, "\N{REPLACEMENT CHARACTER}two\N{REPLACEMENT CHARACTER}"),
    ]


@pytest.mark.parametrize(("text", "number"), [("7", 7), (" 12 ", 12), ("", None), ("-1", None), ("9" * 99, None)])
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole(text) == number
