"""Files that may be anything: read without waiting or leaking, tried again, set aside without replacing each other."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kerntune import plain_files as files
from kerntune.config.profiles import Profiles
from kerntune.config.sources import ConfigFiles
from kerntune.paths import files_in
from kerntune.plain_files import NoPlainFile, contents_of, patiently, put_aside, replace_file
from kerntune.tunables import REGISTRY


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listened(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def looping(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def long(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


KINDS: list[Callable[[Path], None]] = [Path.mkdir, fifo, listened, looping, endless, long]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("make", KINDS)
def test_what_is_no_plain_file_is_told_and_no_descriptor_stays(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "it"
    make(path)
    before = descriptors()
    for _ in range(3):
        with pytest.raises(NoPlainFile) as refusal:
            contents_of(path)
        assert refusal.value.strerror
    assert descriptors() == before


def test_a_pipe_with_a_writer_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "it")
    writer = os.open(tmp_path / "it", os.O_RDWR)
    try:
        with pytest.raises(NoPlainFile, match="no regular file"):
            contents_of(tmp_path / "it")
    finally:
        os.close(writer)


def test_a_file_and_a_link_to_one_and_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "null").symlink_to("/dev/null")
    assert contents_of(tmp_path / "link") == b"x" * 3_000
    assert contents_of(tmp_path / "null") == b""
    assert contents_of(tmp_path / "file", 3_000) == b"x" * 3_000
    with pytest.raises(NoPlainFile, match="longer than 2999 bytes"):
        contents_of(tmp_path / "file", 2_999)


@pytest.mark.parametrize("make", [Path.mkdir, fifo])
def test_the_readers_of_configuration_and_profiles_leak_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    for folder in ("etc/kerntune.d", "etc/profiles", "run"):
        (tmp_path / folder).mkdir(parents=True)
    make(tmp_path / "etc/kerntune.d/backup.toml")
    make(tmp_path / "etc/profiles/old.toml")
    configuration = ConfigFiles(tmp_path / "etc", tmp_path / "run", REGISTRY)
    profiles = Profiles([tmp_path / "etc/profiles"], REGISTRY)
    configuration.read(), profiles.listing()
    before = descriptors()
    for _ in range(3):
        assert len(configuration.read().problems) == 1
        assert profiles.listing() == []
    assert descriptors() == before


def test_a_folder_of_profiles_lists_files(tmp_path: Path) -> None:
    (tmp_path / "file.toml").touch()
    (tmp_path / "null.toml").symlink_to("/dev/null")
    (tmp_path / "nowhere.toml").symlink_to("nowhere")
    for number, make in enumerate(KINDS[:3]):
        make(tmp_path / f"other{number}.toml")
    assert {path.name for path in files_in(tmp_path)} == {"file.toml", "null.toml", "nowhere.toml"}


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Path]:
    """The disk cannot read a file so many times; the tries."""
    tried: list[Path] = []

    def read(path: Path, longest: int) -> bytes:
        tried.append(path)
        if len(tried) <= times:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return contents_of(path, longest)

    monkeypatch.setattr(files, "contents_of", read)
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    return tried


def test_an_error_that_passes_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it").write_text("text")
    failing(monkeypatch, 2)
    assert patiently(tmp_path / "it", 100) == b"text"


def test_an_error_that_stays_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, 100)
    with pytest.raises(OSError, match="Input/output error"):
        patiently(tmp_path / "it", 100)
    assert len(tried) == 3


def test_nothing_is_tried_again_where_it_is_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch, 0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError):
        patiently(tmp_path / "nothing", 100)
    with pytest.raises(NoPlainFile):
        patiently(tmp_path / "folder", 100)
    assert len(tried) == 2


@pytest.mark.parametrize("keep_oldest", [False, True])
def test_what_is_set_aside_replaces_no_other_until_there_are_many(tmp_path: Path, keep_oldest: bool) -> None:
    path = tmp_path / "it.json"
    found = []
    for number in range(files.ASIDE + 1):
        path.write_text(str(number))
        os.utime(path, (number, number))
        found.append(put_aside(path, "bad", keep_oldest=keep_oldest).name)
    assert found[:3] == ["it.json.bad", "it.json.1.bad", "it.json.2.bad"]
    replaced = files.ASIDE - 1 if keep_oldest else 0
    assert found[-1] == found[replaced]
    kept = sorted(int(each.read_text()) for each in tmp_path.iterdir())
    assert kept == [number for number in range(files.ASIDE + 1) if number != replaced]


@pytest.mark.parametrize("make", KINDS)
def test_what_lies_in_the_way_of_a_new_file(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / ".it.json.new")
    before = descriptors()
    for number in range(3):
        replace_file(tmp_path / "it.json", {"number": number}, durable=True)
        assert (tmp_path / "it.json").read_text() == f'{{"number": {number}}}'
    assert descriptors() == before
