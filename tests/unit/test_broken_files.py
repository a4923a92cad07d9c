"""Files that may be anything: read without waiting or leaking, and set aside; state files of any content too."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune import plain_files
from kerntune.config.profiles import Profiles
from kerntune.config.sources import ConfigFiles
from kerntune.engine.claims import Claims
from kerntune.model import Baseline
from kerntune.paths import files_in
from kerntune.plain_files import NoPlainFile, contents_of, patiently, put_aside, replace_file
from kerntune.store import Store
from kerntune.tunables import REGISTRY
from tests.unit.test_store import GOOD, LATER, NOW, POOL, SDA, files, held, opened, persistent, runtime


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

    monkeypatch.setattr(plain_files, "contents_of", read)
    monkeypatch.setattr(plain_files, "PAUSES", (0.0, 0.0))
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
    for number in range(plain_files.ASIDE + 1):
        path.write_text(str(number))
        os.utime(path, (number, number))
        found.append(put_aside(path, "bad", keep_oldest=keep_oldest).name)
    assert found[:3] == ["it.json.bad", "it.json.1.bad", "it.json.2.bad"]
    replaced = plain_files.ASIDE - 1 if keep_oldest else 0
    assert found[-1] == found[replaced]
    kept = sorted(int(each.read_text()) for each in tmp_path.iterdir())
    assert kept == [number for number in range(plain_files.ASIDE + 1) if number != replaced]


@pytest.mark.parametrize("make", KINDS)
def test_what_lies_in_the_way_of_a_new_file(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / ".it.json.new")
    before = descriptors()
    for number in range(3):
        replace_file(tmp_path / "it.json", {"number": number}, durable=True)
        assert (tmp_path / "it.json").read_text() == f'{{"number": {number}}}'
    assert descriptors() == before


# State files of any content: set aside and reported, never fatal


def written(folder: Path) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.commit(Claims.of(NOW, GOOD))
    state.commit(Claims.of(LATER, GOOD))


BROKEN = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"5",
    b'"text"',
    b"\0" * 100,
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"format": 2, "persistent": [], "runtime": []}',
    b'{"format": "1"}',
    b'{"persistent": []}',
    b'{"format": 1, "boot": "boot-1", "serial": "5", "persistent": null, "runtime": null}',
    b'{"format": 1, "boot": "boot-1", "serial": "5"}',
    b'{"format": 1, "boot": "boot-1", "serial": 1e999}',
    b'{"format": 1, "boot": "boot-1", "serial": null}',
    b'{"format": 1, "boot": "boot-1", "serial": 1, "runtime": [5], "persistent": [5]}',
    b'{"format": 1, "boot": "boot-1", "serial": 1, "runtime": [{"tunable": 5}], "persistent": [{"tunable": 5}]}',
    b'{"format": 1, "boot": "boot-1", "serial": 1, "runtime": {"a": 1}, "persistent": {"a": 1}}',
    b'{"format": 1, "boot": "boot-1", "serial": 1, "baselines": [["a", "b", "c"]], "commit": 5}',
    b'{"format": 1, "boot": "boot-1", "serial": 1, "baselines": 5, "commit": []}',
    b'{"format": 1, "boot": "boot-1", "serial": 1, "baselines": ["abcd"], "commit": "x"}',
    b'{"format": 1, "boot": "boot-1", "serial": -1, "baselines": {"abcd": 1}, "commit": {"boot": "boot-1"}}',
    b'{"format": 1, "serial": 1, "runtime": [], "persistent": [], "baselines": [[1, 2, 3, 4]],'
    b' "commit": {"boot": "boot-1", "serial": "9", "runtime": []}}',
    b'{"format": 1, "serial": 1, "runtime": [], "persistent": [], "baselines": 7,'
    b' "commit": {"boot": "boot-1", "serial": 1e999, "runtime": []}}',
]


@pytest.mark.parametrize("name", ["run/runtime.json", "lib/claims.json"])
@pytest.mark.parametrize("content", BROKEN, ids=lambda content: content[:60].decode(errors="replace"))
def test_a_broken_file_is_set_aside_and_the_other_is_used(folder: Path, name: str, content: bytes) -> None:
    written(folder)
    path = folder / name
    path.write_bytes(content)
    state = opened(folder)
    if state.set_aside:
        assert state.set_aside == [path.with_name(f"{path.name}.bad")]
        assert state.set_aside[0].read_bytes() == content
        assert not path.exists() or path.read_bytes() != content
    if name.startswith("run/"):
        assert GOOD.id in state.claims.by_id
    else:
        assert state.claims.by_id.get(LATER.id) == LATER
        assert dict(state.baselines) == {SDA: "mq-deadline"}
    state.save_baselines([Baseline(POOL, "12")])
    state.commit(Claims.of(NOW, GOOD))
    assert opened(folder).claims.by_id == held(NOW, GOOD)


@pytest.mark.parametrize("name", ["run/runtime.json", "lib/claims.json"])
@pytest.mark.parametrize("content", BROKEN[:12], ids=lambda content: content[:60].decode(errors="replace"))
def test_what_is_no_state_file_is_always_set_aside(folder: Path, name: str, content: bytes) -> None:
    written(folder)
    (folder / name).write_bytes(content)
    assert [path.name for path in opened(folder).set_aside] == [Path(name).name + ".bad"]


def test_a_file_of_a_later_version_is_set_aside_whole(folder: Path) -> None:
    written(folder)
    later = json.loads(persistent(folder).read_text()) | {"format": 2, "holds": []}
    persistent(folder).write_text(json.dumps(later))
    state = opened(folder)
    assert json.loads(state.set_aside[0].read_text()) == later


def test_two_broken_files_are_two(folder: Path) -> None:
    written(folder)
    runtime(folder).write_bytes(b"{")
    persistent(folder).write_bytes(b"}")
    state = opened(folder)
    assert {path.name for path in state.set_aside} == {"runtime.json.bad", "claims.json.bad"}
    assert (dict(state.claims.by_id), dict(state.baselines)) == ({}, {})


@pytest.mark.parametrize("name", ["run/runtime.json", "lib/claims.json"])
def test_a_file_cut_anywhere_is_not_fatal(folder: Path, name: str) -> None:
    written(folder)
    whole = (folder / name).read_bytes()
    other = files(folder)
    for length in range(len(whole)):
        for path, data in other.items():
            (folder / path).write_bytes(data)
        (folder / name).write_bytes(whole[:length])
        assert len(opened(folder).set_aside) == 1


damage = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


def damaged(data: bytes, hits: list[tuple[float, int]]) -> bytes:
    wounded = bytearray(data)
    for place, value in hits:
        wounded[int(place * len(wounded))] = value
    return bytes(wounded)


@given(run=damage | st.none() | st.binary(max_size=200), lib=damage | st.none() | st.binary(max_size=200))
def test_bytes_that_changed_are_not_fatal(
    run: list[tuple[float, int]] | bytes | None, lib: list[tuple[float, int]] | bytes | None
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("run", "lib"):
            (folder / part).mkdir()
        written(folder)
        for path, hits in ((runtime(folder), run), (persistent(folder), lib)):
            if hits is not None:
                data = path.read_bytes()
                path.write_bytes(hits if isinstance(hits, bytes) else damaged(data, hits))
        state = opened(folder)
        state.save_baselines([Baseline(POOL, "12")])
        state.drop_baselines({SDA})
        state.commit(Claims.of(NOW))
        again = opened(folder)
        assert again.set_aside == []
        assert again.claims.by_id == held(NOW)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "boot",
    "serial",
    "runtime",
    "baselines",
    "persistent",
    "commit",
    "holds",
    "hold_claims",
    "last_hold",
    "suspended",
)


@given(st.sampled_from(FIELDS), json_values, st.sampled_from([None, "boot", "serial", "runtime", "holds", "last_hold"]))
def test_a_field_of_any_value_is_not_fatal(name: str, value: Any, inner: str | None) -> None:
    """A file that somebody edited by hand."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        for part in ("run", "lib"):
            (folder / part).mkdir()
        written(folder)
        for path in (runtime(folder), persistent(folder)):
            document = json.loads(path.read_text())
            if inner and isinstance(document.get("commit"), dict):
                document["commit"][inner] = value
            else:
                document[name] = value
            path.write_text(json.dumps(document))
        state = opened(folder)
        state.save_baselines([Baseline(POOL, "12")])
        state.commit(Claims.of(NOW, GOOD))
        again = opened(folder)
        assert again.claims.by_id == held(NOW, GOOD)
        assert again.baselines[POOL] == "12"


def test_claims_with_a_field_of_the_wrong_kind(folder: Path) -> None:
    written(folder)
    row = json.loads(persistent(folder).read_text())["persistent"][0]
    wrong = [("seq", "5"), ("seq", True), ("seq", 1.5), ("value", 5), ("partial", "yes"), ("who", None), ("place", 5)]
    for name, value in wrong:
        persistent(folder).write_text(json.dumps({"format": 1, "persistent": [row | {name: value}]}))
        assert len(opened(folder).set_aside) == 1, (name, value)


HOLD = {
    "number": 3, "who": "job", "why": "", "uid": 1000, "client": ":1.5", "bus": "a bus", "ttl": 0, "since": 1,
    "ends_boottime": 0,
}  # fmt: skip
HELD = {
    "tunable": "hugepages", "instances": "2M", "value": "10", "who": "job", "why": "", "seq": 1, "partial": False,
    "hold": 3,
}  # fmt: skip


def with_hold(folder: Path, hold: dict[str, Any], claim: dict[str, Any]) -> Store:
    document = {"format": 1, "boot": "boot-1", "serial": 1, "holds": [HOLD | hold], "hold_claims": [HELD | claim]}
    runtime(folder).write_text(json.dumps(document))
    return opened(folder)


@pytest.mark.parametrize(
    ("hold", "claim"),
    [
        ({"number": 0}, {"hold": 0}),
        ({"number": 2**64}, {"hold": 2**64}),
        ({"uid": 2**32}, {}),
        ({"uid": -1}, {}),
        ({"since": -1}, {}),
        ({"since": 2**64}, {}),
        ({"ttl": 2**64 - 1}, {}),
        ({"ends_boottime": 2**80}, {}),
        ({"uid": True}, {}),
        ({"who": "\udcff"}, {}),
        ({"why": "\0"}, {}),
        ({"client": None}, {}),
        ({"ends": 5}, {}),
        ({}, {"instances": "\0"}),
        ({}, {"value": "\udcff"}),
    ],
)
def test_a_hold_that_no_bus_could_tell_of(folder: Path, hold: dict[str, Any], claim: dict[str, Any]) -> None:
    """It is set aside at its first start: the daemon could not even publish it."""
    state = with_hold(folder, hold, claim)
    assert (state.claims.holds, len(state.set_aside)) == ({}, 1)


@pytest.mark.parametrize("last", [-1, 2**64 - 1, "7", True])
def test_a_last_hold_that_the_next_start_would_not_take(folder: Path, last: object) -> None:
    """With the number after it a new hold would have the whole file set aside."""
    runtime(folder).write_text(json.dumps({"format": 1, "boot": "boot-1", "serial": 1, "last_hold": last}))
    state = opened(folder)
    assert (len(state.set_aside), state.claims.last_hold) == (1, 0)


def test_a_hold_with_the_largest_numbers(folder: Path) -> None:
    most = {"uid": 2**32 - 1, "since": 2**63, "ttl": 2**63 - 1, "ends_boottime": 2**64 - 1}
    assert with_hold(folder, most, {}).claims.holds[3].expires == 2**64 - 1


# Files that cannot be read now


def unreadable(monkeypatch: pytest.MonkeyPatch, broken: Path, times: int = 100) -> None:
    """The disk cannot read this file, whatever it is called later, so many times."""
    left, inode = count(-times), broken.stat().st_ino
    read = plain_files.contents_of

    def fail(path: Path, longest: int) -> bytes:
        if path.exists() and path.stat().st_ino == inode and next(left) < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, longest)

    monkeypatch.setattr(plain_files, "PAUSES", (0.0,))
    monkeypatch.setattr(plain_files, "contents_of", fail)


@pytest.mark.parametrize("name", ["run/runtime.json", "lib/claims.json"])
def test_a_read_error_that_passes_is_not_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    written(folder)
    before = files(folder)
    unreadable(monkeypatch, folder / name, times=1)
    assert opened(folder).claims.by_id == held(LATER, GOOD)
    assert files(folder) == before


@pytest.mark.parametrize("save", [True, False])
def test_claims_that_cannot_be_read_are_there_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, save: bool
) -> None:
    written(folder)
    other = replace(GOOD, instances="2M/node1", value="64")
    with monkeypatch.context() as broken:
        unreadable(broken, persistent(folder))
        state = opened(folder)
        assert state.claims.by_id == held(LATER)
        assert [path.name for path in state.unread] == ["claims.json.unread"]
        assert state.set_aside == []
        # Who claims the drive is not known, so nothing is put back; a new claim on it is free to keep its baseline.
        assert (state.baselines, state.reserved) == ({SDA: "mq-deadline"}, {SDA})
        if save:
            state.save_baselines([Baseline(SDA, "none")])
            assert (state.baselines, state.reserved) == ({SDA: "mq-deadline"}, set())
            state.commit(Claims.of(LATER, other))
        again = opened(folder)
        assert again.unread == state.unread
    state = opened(folder)
    assert (state.unread, state.set_aside) == ([], [])
    newer = replace(other, seq=GOOD.seq + other.seq)
    assert state.claims.by_id == (held(GOOD, LATER, newer) if save else held(GOOD, LATER)), "the later one is the newer"
    assert dict(state.baselines) == {SDA: "mq-deadline"}
    assert [path for path in files(folder) if "unread" in path] == []
    assert opened(folder).claims.by_id == state.claims.by_id


def test_baselines_that_cannot_be_read_are_there_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder)
    with monkeypatch.context() as broken:
        unreadable(broken, runtime(folder))
        state = opened(folder)
        # What of the runtime's claims was withdrawn since the copy in the other file is not known.
        assert state.claims.by_id == held(GOOD)
        state.save_baselines([Baseline(SDA, "bfq"), Baseline(POOL, "12")])
        state.commit(Claims.of(NOW, GOOD))
    state = opened(folder)
    assert state.claims.by_id == held(replace(NOW, seq=LATER.seq + NOW.seq), LATER, GOOD)
    assert dict(state.baselines) == {SDA: "mq-deadline", POOL: "12"}


def test_a_claim_that_was_withdrawn_does_not_come_back_with_a_damaged_file(folder: Path) -> None:
    state = opened(folder)
    state.commit(Claims.of(NOW, GOOD))  # both files' content, in the one that outlives the boot
    state.commit(Claims.of(GOOD))
    runtime(folder).write_bytes(b"{")
    assert opened(folder).claims.by_id == held(GOOD)
    assert opened(folder).claims.by_id == held(GOOD)


def test_what_was_withdrawn_does_not_come_back_though_the_disk_is_full_at_the_first_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing but the file that was set aside tells the next start that the copy of its claims is old."""
    state = opened(folder)
    state.commit(Claims.of(NOW, GOOD))
    state.commit(Claims.of(GOOD))
    runtime(folder).write_bytes(b"{")
    with monkeypatch.context() as full:

        def refuse(*_args: object, **_options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr("kerntune.store.replace_file", refuse)
        assert opened(folder).claims.by_id == held(GOOD)
    assert not runtime(folder).exists()
    assert opened(folder).claims.by_id == held(GOOD)


def test_what_is_set_aside_later_does_not_replace_what_was_before(folder: Path) -> None:
    for number in range(3):
        persistent(folder).write_bytes(b"%d" % number)
        assert len(opened(folder).set_aside) == 1
    kept = {path: data for path, data in files(folder).items() if path.endswith(".bad")}
    assert kept == {"lib/claims.json.bad": b"0", "lib/claims.json.1.bad": b"1", "lib/claims.json.2.bad": b"2"}


@pytest.mark.parametrize("name", ["run/runtime.json", "lib/claims.json"])
def test_one_that_can_be_neither_read_nor_moved_stops_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    written(folder)

    def refuse(*_args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    unreadable(monkeypatch, folder / name)
    monkeypatch.setattr(Path, "replace", refuse)
    assert opened(folder).unread == [folder / name]
