"""State on disk: a crash at any moment loses nothing that was answered, and no file of any content is fatal."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.daemon.state import BOOT_ID, State
from kerntune.engine.claims import ClaimBook
from kerntune.model import Baseline, Claim, Origin, Target

SDA, POOL = Target("io-scheduler", "sda", key="7"), Target("hugepages", "2M/node0")
NOW = Claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", "alice (busctl)", "", 3)
GOOD = Claim(Origin.PERSISTENT, "hugepages", "2M/node0", "128", "böb", "for the model", 5, partial=True)
LATER = Claim(Origin.RUNTIME, "overcommit", "", "always:95", "carol", "", 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "lib").mkdir()
    return tmp_path


def opened(folder: Path, boot: str = "boot-1") -> State:
    return State(folder / "run", folder / "lib", boot_id=boot)


def runtime(folder: Path) -> Path:
    return folder / "run/runtime.json"


def persistent(folder: Path) -> Path:
    return folder / "lib/claims.json"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(folder: Path) -> tuple[dict[Any, Claim], dict[Target, str]]:
    """What another daemon would find, without the files being touched."""
    state = opened(folder)
    assert state.set_aside == []
    return dict(state.book.claims), dict(state.baselines)


def held(*claims: Claim) -> dict[Any, Claim]:
    return {claim.id: claim for claim in claims}


def test_nothing_is_known_and_nothing_written_at_first(folder: Path) -> None:
    state = opened(folder)
    assert (dict(state.book.claims), dict(state.baselines), state.set_aside) == ({}, {}, [])
    assert files(folder) == {}


def test_there_and_back(folder: Path) -> None:
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline"), Baseline(POOL, "12")])
    state.commit(ClaimBook.of(NOW, GOOD))
    assert saved(folder) == (held(NOW, GOOD), {SDA: "mq-deadline", POOL: "12"})
    again = opened(folder)
    assert next(target for target in again.baselines if target == SDA).key == "7"


@pytest.mark.parametrize("text", ["ü \u2603 \U0001f427", "\n\t\0\x1b", "\udcff", '"\\'])
def test_any_text_there_and_back(folder: Path, text: str) -> None:
    odd = replace(NOW, who=text), replace(GOOD, why=text)
    opened(folder).commit(ClaimBook.of(*odd))
    assert saved(folder)[0] == held(*odd)


def test_the_same_host_is_known_by_its_boot_id(folder: Path) -> None:
    state = State(folder / "run", folder / "lib")
    state.commit(ClaimBook.of(NOW))
    assert opened(folder, BOOT_ID.read_text().strip()).book.claims == held(NOW)
    assert opened(folder, "another").book.claims == {}


def test_the_first_baseline_is_the_hosts_own(folder: Path) -> None:
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline")])
    state.keep([Baseline(SDA, "none"), Baseline(POOL, "12")])
    assert saved(folder)[1] == {SDA: "mq-deadline", POOL: "12"}


def test_what_was_put_back_is_forgotten(folder: Path) -> None:
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline"), Baseline(POOL, "12")])
    state.forget({SDA})
    assert saved(folder)[1] == state.baselines == {POOL: "12"}
    state.keep([Baseline(SDA, "none")])
    assert saved(folder)[1] == {SDA: "none", POOL: "12"}


def test_another_drive_of_the_same_name_has_another_baseline(folder: Path) -> None:
    state = opened(folder)
    other = replace(SDA, key="8")
    state.keep([Baseline(SDA, "mq-deadline")])
    state.keep([Baseline(other, "bfq")])
    assert saved(folder)[1] == {SDA: "mq-deadline", other: "bfq"}


def test_after_a_reboot_what_is_for_good_is_left(folder: Path) -> None:
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline")])
    state.commit(ClaimBook.of(NOW, GOOD))
    rebooted = opened(folder, boot="boot-2")
    assert (dict(rebooted.book.claims), dict(rebooted.baselines)) == (held(GOOD), {})
    assert rebooted.set_aside == []
    rebooted.commit(ClaimBook.of(GOOD, LATER))
    assert opened(folder, boot="boot-2").book.claims == held(GOOD, LATER)


def test_a_tmpfs_that_went_with_the_boot(folder: Path) -> None:
    opened(folder).commit(ClaimBook.of(NOW, GOOD))
    runtime(folder).unlink(missing_ok=True)
    assert opened(folder, boot="boot-2").book.claims == held(GOOD)


# Killed between two files


def test_killed_after_the_persistent_file_was_replaced(folder: Path) -> None:
    """The commit of both kinds of claims is decided by one file; the other may be older."""
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline")])
    state.commit(ClaimBook.of(NOW))
    older = runtime(folder).read_bytes()
    state.commit(ClaimBook.of(GOOD, LATER))
    runtime(folder).write_bytes(older)
    assert saved(folder) == (held(GOOD, LATER), {SDA: "mq-deadline"})


def test_killed_before_the_persistent_file_was_replaced(folder: Path) -> None:
    state = opened(folder)
    state.commit(ClaimBook.of(NOW))
    before = files(folder)
    state.commit(ClaimBook.of(GOOD, LATER))
    for name in files(folder):
        (folder / name).unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)
    assert saved(folder)[0] == held(NOW)


def test_of_two_records_the_newer_counts(folder: Path) -> None:
    state = opened(folder)
    state.commit(ClaimBook.of(GOOD, NOW))
    state.commit(ClaimBook.of(GOOD, LATER))  # only the runtime file is written
    assert saved(folder)[0] == held(GOOD, LATER)
    state.commit(ClaimBook.of(GOOD))
    assert saved(folder)[0] == held(GOOD)


def test_serials_go_on_after_a_restart(folder: Path) -> None:
    state = opened(folder)
    state.commit(ClaimBook.of(GOOD, NOW))
    runtime(folder).unlink(missing_ok=True)
    again = opened(folder)
    assert again.book.claims == held(GOOD, NOW)
    again.keep([Baseline(SDA, "none")])
    again.commit(ClaimBook.of(GOOD, LATER))
    assert saved(folder) == (held(GOOD, LATER), {SDA: "none"})


def test_a_runtime_commit_leaves_the_persistent_file_alone(folder: Path) -> None:
    state = opened(folder)
    state.commit(ClaimBook.of(GOOD))
    before = persistent(folder).stat()
    state.commit(ClaimBook.of(GOOD, NOW))
    after = persistent(folder).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_what_is_for_good_is_on_the_disk_before_the_call_returns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def watched(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    state = opened(folder)
    state.commit(ClaimBook.of(GOOD))
    lib = folder / "lib"
    assert len(synced) == 2
    assert synced[0].startswith(f"{lib}/")
    assert synced[1] == str(lib)


STORY: list[Callable[[State], None]] = [
    lambda state: state.keep([Baseline(SDA, "mq-deadline")]),
    lambda state: state.commit(ClaimBook.of(NOW)),
    lambda state: state.commit(ClaimBook.of(NOW, GOOD)),
    lambda state: state.keep([Baseline(POOL, "12")]),
    lambda state: state.commit(ClaimBook.of(LATER, GOOD)),
    lambda state: state.forget({SDA}),
    lambda state: state.commit(ClaimBook.of(LATER)),
    lambda state: state.commit(ClaimBook()),
]


class Killed(BaseException):
    """SIGKILL, as far as a test can have it inside its own process."""


@pytest.mark.parametrize("moment", range(30))
def test_killed_at_any_moment_either_all_or_nothing_of_a_step_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Killed before or after each step that reaches the disk: the files hold what was answered last, or the next."""
    left = moment
    real_replace, real_fsync = Path.replace, os.fsync

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            done = call(*args)
            left -= 1
            if left == 0:
                raise Killed
            left -= 1
            return done

        return run

    monkeypatch.setattr(Path, "replace", counted(real_replace))
    monkeypatch.setattr(os, "fsync", counted(real_fsync))
    state = opened(folder)
    answered = (dict(state.book.claims), dict(state.baselines))
    following: tuple[dict[Any, Claim], dict[Target, str]] | None = None
    reference = folder / "reference"
    (reference / "run").mkdir(parents=True)
    (reference / "lib").mkdir()
    try:
        for step in STORY:
            step(state)
            answered = (dict(state.book.claims), dict(state.baselines))
    except Killed:
        monkeypatch.undo()
        told = opened(reference)
        for step in STORY:
            before = (dict(told.book.claims), dict(told.baselines))
            step(told)
            following = (dict(told.book.claims), dict(told.baselines))
            if before == answered:
                break
        assert saved(folder) in (answered, following)
    else:
        monkeypatch.undo()
        assert saved(folder) == answered == ({}, {POOL: "12"})


# A disk that is full


def full(document: Any, file: Any, **_options: Any) -> None:
    file.write('{"format": 1, "runt')
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "save",
    [
        lambda state: state.commit(ClaimBook.of(LATER)),
        lambda state: state.commit(ClaimBook.of(NOW, GOOD, LATER)),
        lambda state: state.commit(ClaimBook.of(NOW, replace(GOOD, value="1"))),
        lambda state: state.keep([Baseline(POOL, "12")]),
        lambda state: state.forget({SDA}),
    ],
    ids=["runtime", "another", "persistent", "keep", "forget"],
)
def test_a_full_disk_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[State], None]
) -> None:
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline")])
    state.commit(ClaimBook.of(NOW, GOOD))
    before = files(folder)
    known = (dict(state.book.claims), dict(state.baselines))
    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            save(state)
    assert (dict(state.book.claims), dict(state.baselines)) == known
    assert files(folder) == before
    assert saved(folder) == known
    save(state)
    assert saved(folder) == (dict(state.book.claims), dict(state.baselines))


def test_a_full_run_cannot_take_back_what_is_saved_for_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that ends in an error leaves no claim: once the persistent file says so, the call must not fail."""
    state = opened(folder)
    state.commit(ClaimBook.of(NOW))
    real = Path.replace

    def refuse(place: Path, target: Path) -> Path:
        if target.parent.name == "run":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return real(place, target)

    monkeypatch.setattr(Path, "replace", refuse)
    try:
        state.commit(ClaimBook.of(NOW, GOOD))
    except OSError:
        assert saved(folder)[0] == held(NOW)
    else:
        assert saved(folder)[0] == held(NOW, GOOD)


def test_a_folder_that_is_read_only_is_an_error(folder: Path) -> None:
    state = opened(folder)
    (folder / "lib").rmdir()
    with pytest.raises(FileNotFoundError):
        state.commit(ClaimBook.of(NOW, GOOD))
    assert dict(state.book.claims) == {}


# Files of any content


def written(folder: Path) -> None:
    state = opened(folder)
    state.keep([Baseline(SDA, "mq-deadline")])
    state.commit(ClaimBook.of(NOW, GOOD))
    state.commit(ClaimBook.of(LATER, GOOD))


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
        assert not path.exists()
    if name.startswith("run/"):
        assert GOOD.id in state.book.claims
    else:
        assert state.book.claims.get(LATER.id) == LATER
        assert dict(state.baselines) == {SDA: "mq-deadline"}
    state.keep([Baseline(POOL, "12")])
    state.commit(ClaimBook.of(NOW, GOOD))
    assert opened(folder).book.claims == held(NOW, GOOD)


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
    assert (dict(state.book.claims), dict(state.baselines)) == ({}, {})


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
        state.keep([Baseline(POOL, "12")])
        state.forget({SDA})
        state.commit(ClaimBook.of(NOW))
        again = opened(folder)
        assert again.set_aside == []
        assert again.book.claims == held(NOW)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("boot", "serial", "runtime", "baselines", "persistent", "commit")


@given(st.sampled_from(FIELDS), json_values, st.sampled_from([None, "boot", "serial", "runtime"]))
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
        state.keep([Baseline(POOL, "12")])
        state.commit(ClaimBook.of(NOW, GOOD))
        again = opened(folder)
        assert again.book.claims == held(NOW, GOOD)
        assert again.baselines[POOL] == "12"


def test_claims_with_a_field_of_the_wrong_kind(folder: Path) -> None:
    written(folder)
    row = json.loads(persistent(folder).read_text())["persistent"][0]
    for name, value in [("seq", "5"), ("seq", True), ("seq", 1.5), ("value", 5), ("partial", "yes"), ("who", None)]:
        persistent(folder).write_text(json.dumps({"format": 1, "persistent": [row | {name: value}]}))
        assert len(opened(folder).set_aside) == 1, (name, value)
