"""State on disk: a crash at any moment loses nothing that was answered."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kerntune.engine.claims import Choice, Claims
from kerntune.model import Baseline, Claim, Origin, Target
from kerntune.plain_files import replace_file
from kerntune.store import BOOT_ID, Store

SDA, POOL = Target("io-scheduler", "sda", key="7"), Target("hugepages", "2M/node0")
NOW = Claim(Origin.RUNTIME, "io-scheduler", "nvme*", "none", "alice (busctl)", "", 3)
GOOD = Claim(Origin.PERSISTENT, "hugepages", "2M/node0", "128", "böb", "for the model", 5, partial=True)
LATER = Claim(Origin.RUNTIME, "overcommit", "", "always:95", "carol", "", 7)


def opened(folder: Path, boot: str = "boot-1") -> Store:
    return Store(folder / "run", folder / "lib", boot_id=boot)


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
    return dict(state.claims.by_id), dict(state.baselines)


def held(*claims: Claim) -> dict[Any, Claim]:
    return {claim.id: claim for claim in claims}


BOUND = 10.0  # seconds that a thread may take


def test_nothing_is_known_and_nothing_written_at_first(folder: Path) -> None:
    state = opened(folder)
    assert (dict(state.claims.by_id), dict(state.baselines), state.set_aside) == ({}, {}, [])
    assert files(folder) == {}


def test_there_and_back(folder: Path) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline"), Baseline(POOL, "12")])
    state.commit(Claims.of(NOW, GOOD))
    assert saved(folder) == (held(NOW, GOOD), {SDA: "mq-deadline", POOL: "12"})
    again = opened(folder)
    assert next(target for target in again.baselines if target == SDA).key == "7"


@pytest.mark.parametrize("text", ["ü \u2603 \U0001f427", "\n\t\0\x1b", "\udcff", '"\\'])
def test_any_text_there_and_back(folder: Path, text: str) -> None:
    odd = replace(NOW, who=text), replace(GOOD, why=text)
    opened(folder).commit(Claims.of(*odd))
    assert saved(folder)[0] == held(*odd)


def test_the_same_host_is_known_by_its_boot_id(folder: Path) -> None:
    state = Store(folder / "run", folder / "lib")
    state.commit(Claims.of(NOW))
    assert opened(folder, BOOT_ID.read_text().strip()).claims.by_id == held(NOW)
    assert opened(folder, "another").claims.by_id == {}


def test_the_first_baseline_is_the_hosts_own(folder: Path) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.save_baselines([Baseline(SDA, "none"), Baseline(POOL, "12")])
    assert saved(folder)[1] == {SDA: "mq-deadline", POOL: "12"}


def test_what_was_put_back_is_forgotten(folder: Path) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline"), Baseline(POOL, "12")])
    state.drop_baselines({SDA})
    assert saved(folder)[1] == state.baselines == {POOL: "12"}
    state.save_baselines([Baseline(SDA, "none")])
    assert saved(folder)[1] == {SDA: "none", POOL: "12"}


def test_another_drive_of_the_same_name_has_another_baseline(folder: Path) -> None:
    state = opened(folder)
    other = replace(SDA, key="8")
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.save_baselines([Baseline(other, "bfq")])
    assert saved(folder)[1] == {SDA: "mq-deadline", other: "bfq"}


def test_after_a_reboot_what_is_for_good_is_left(folder: Path) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.commit(Claims.of(NOW, GOOD))
    rebooted = opened(folder, boot="boot-2")
    assert (dict(rebooted.claims.by_id), dict(rebooted.baselines)) == (held(GOOD), {})
    assert rebooted.set_aside == []
    rebooted.commit(Claims.of(GOOD, LATER))
    assert opened(folder, boot="boot-2").claims.by_id == held(GOOD, LATER)


def test_a_tmpfs_that_went_with_the_boot(folder: Path) -> None:
    opened(folder).commit(Claims.of(NOW, GOOD))
    runtime(folder).unlink(missing_ok=True)
    assert opened(folder, boot="boot-2").claims.by_id == held(GOOD)


# Killed between two files


def test_killed_after_the_persistent_file_was_replaced(folder: Path) -> None:
    """The commit of both kinds of claims is decided by one file; the other may be older."""
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.commit(Claims.of(NOW))
    older = runtime(folder).read_bytes()
    state.commit(Claims.of(GOOD, LATER))
    runtime(folder).write_bytes(older)
    assert saved(folder) == (held(GOOD, LATER), {SDA: "mq-deadline"})


def test_killed_before_the_persistent_file_was_replaced(folder: Path) -> None:
    state = opened(folder)
    state.commit(Claims.of(NOW))
    before = files(folder)
    state.commit(Claims.of(GOOD, LATER))
    for name in files(folder):
        (folder / name).unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)
    assert saved(folder)[0] == held(NOW)


def test_of_two_records_the_newer_counts(folder: Path) -> None:
    state = opened(folder)
    state.commit(Claims.of(GOOD, NOW))
    state.commit(Claims.of(GOOD, LATER))  # only the runtime file is written
    assert saved(folder)[0] == held(GOOD, LATER)
    state.commit(Claims.of(GOOD))
    assert saved(folder)[0] == held(GOOD)


def test_serials_go_on_after_a_restart(folder: Path) -> None:
    state = opened(folder)
    state.commit(Claims.of(GOOD, NOW))
    runtime(folder).unlink(missing_ok=True)
    again = opened(folder)
    assert again.claims.by_id == held(GOOD, NOW)
    again.save_baselines([Baseline(SDA, "none")])
    again.commit(Claims.of(GOOD, LATER))
    assert saved(folder) == (held(GOOD, LATER), {SDA: "none"})


def test_a_runtime_commit_leaves_the_persistent_file_alone(folder: Path) -> None:
    state = opened(folder)
    state.commit(Claims.of(GOOD))
    before = persistent(folder).stat()
    state.commit(Claims.of(GOOD, NOW))
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
    state.commit(Claims.of(GOOD))
    lib = folder / "lib"
    assert len(synced) == 2
    assert synced[0].startswith(f"{lib}/")
    assert synced[1] == str(lib)


STORY: list[Callable[[Store], None]] = [
    lambda state: state.save_baselines([Baseline(SDA, "mq-deadline")]),
    lambda state: state.commit(Claims.of(NOW)),
    lambda state: state.commit(Claims.of(NOW, GOOD)),
    lambda state: state.save_baselines([Baseline(POOL, "12")]),
    lambda state: state.commit(Claims.of(LATER, GOOD)),
    lambda state: state.drop_baselines({SDA}),
    lambda state: state.commit(Claims.of(LATER)),
    lambda state: state.commit(Claims()),
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
    answered = (dict(state.claims.by_id), dict(state.baselines))
    following: tuple[dict[Any, Claim], dict[Target, str]] | None = None
    reference = folder / "reference"
    (reference / "run").mkdir(parents=True)
    (reference / "lib").mkdir()
    try:
        for step in STORY:
            step(state)
            answered = (dict(state.claims.by_id), dict(state.baselines))
    except Killed:
        monkeypatch.undo()
        told = opened(reference)
        for step in STORY:
            before = (dict(told.claims.by_id), dict(told.baselines))
            step(told)
            following = (dict(told.claims.by_id), dict(told.baselines))
            if before == answered:
                break
        assert saved(folder) in (answered, following)
    else:
        monkeypatch.undo()
        assert saved(folder) == answered == ({}, {POOL: "12"})


# Threads: passes keep baselines while the saver commits


class WatchedLock:
    """Says when a second thread has come to it."""

    def __init__(self, settled: threading.Event) -> None:
        self._lock, self._settled = threading.Lock(), settled

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._settled.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


SAVES: dict[str, Callable[[Store], None]] = {
    "save_baselines": lambda state: state.save_baselines([Baseline(SDA, "mq-deadline")]),
    "drop_baselines": lambda state: state.drop_baselines({POOL}),
    "commit": lambda state: state.commit(Claims.of(NOW)),
    "commit for good": lambda state: state.commit(Claims.of(NOW, GOOD)),
}


@pytest.mark.parametrize("first", SAVES)
@pytest.mark.parametrize("second", SAVES)
def test_what_two_threads_save_at_a_time_is_all_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """The second thread begins while the first is inside its write, and waits for it or is done."""
    settled = threading.Event()
    opened(folder).save_baselines([Baseline(POOL, "12")])
    one_after_the_other = opened(folder)
    with monkeypatch.context() as patch:
        lock = WatchedLock(settled)
        patch.setattr("kerntune.store.threading", SimpleNamespace(Lock=lambda: lock))
        state = opened(folder)

        def other() -> None:
            SAVES[second](state)
            settled.set()

        saver = threading.Thread(target=other)

        def write(path: Path, document: dict[str, Any], *, durable: bool) -> None:
            if threading.current_thread() is not saver:
                saver.start()
                assert settled.wait(BOUND)
            replace_file(path, document, durable=durable)

        patch.setattr("kerntune.store.replace_file", write)
        SAVES[first](state)
        saver.join(BOUND)
        assert not saver.is_alive()
    found = saved(folder)
    assert found == (dict(state.claims.by_id), dict(state.baselines))
    SAVES[first](one_after_the_other)
    SAVES[second](one_after_the_other)
    assert found == (dict(one_after_the_other.claims.by_id), dict(one_after_the_other.baselines))


# A disk that is full


def full(document: Any, file: Any, **_options: Any) -> None:
    file.write('{"format": 1, "runt')
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "save",
    [
        lambda state: state.commit(Claims.of(LATER)),
        lambda state: state.commit(Claims.of(NOW, GOOD, LATER)),
        lambda state: state.commit(Claims.of(NOW, replace(GOOD, value="1"))),
        lambda state: state.save_baselines([Baseline(POOL, "12")]),
        lambda state: state.drop_baselines({SDA}),
    ],
    ids=["runtime", "another", "persistent", "keep", "forget"],
)
def test_a_full_disk_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[[Store], None]
) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "mq-deadline")])
    state.commit(Claims.of(NOW, GOOD))
    before = files(folder)
    known = (dict(state.claims.by_id), dict(state.baselines))
    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            save(state)
    assert (dict(state.claims.by_id), dict(state.baselines)) == known
    assert files(folder) == before
    assert saved(folder) == known
    save(state)
    assert saved(folder) == (dict(state.claims.by_id), dict(state.baselines))


def test_a_full_run_cannot_take_back_what_is_saved_for_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that ends in an error leaves no claim: once the persistent file says so, the call must not fail."""
    state = opened(folder)
    state.commit(Claims.of(NOW))
    real = Path.replace

    def refuse(place: Path, target: Path) -> Path:
        if target.parent.name == "run":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return real(place, target)

    monkeypatch.setattr(Path, "replace", refuse)
    try:
        state.commit(Claims.of(NOW, GOOD))
    except OSError:
        assert saved(folder)[0] == held(NOW)
    else:
        assert saved(folder)[0] == held(NOW, GOOD)


def test_a_folder_that_is_read_only_is_an_error(folder: Path) -> None:
    state = opened(folder)
    (folder / "lib").rmdir()
    with pytest.raises(FileNotFoundError):
        state.commit(Claims.of(NOW, GOOD))
    assert dict(state.claims.by_id) == {}


# What was chosen of the files: the profile for good, the suspension for this boot


CHOSEN = Choice("fair", suspended=True)


def claims_of(choice: Choice) -> Claims:
    return replace(Claims.of(NOW, GOOD), choice=choice)


@pytest.mark.parametrize("choice", [Choice("fair"), Choice("", suspended=True), CHOSEN, Choice()])
def test_it_survives_a_restart_and_the_suspension_no_reboot(folder: Path, choice: Choice) -> None:
    state = opened(folder)
    state.save_baselines([Baseline(SDA, "bfq")])
    for former in (Choice("other"), CHOSEN, choice):
        state.commit(claims_of(former))
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
