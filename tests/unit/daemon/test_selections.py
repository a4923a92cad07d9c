"""SetProfile, ClearProfile and Reset: one edit and one pass each, saved before it is answered, suspended and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kerntune.config.active import CONFIG_INVALID
from kerntune.config.content import Content
from kerntune.config.sources import ActiveProfile
from kerntune.engine.claims import SUSPENDED, Choice, Selection
from kerntune.errors import Failed, InvalidValue, NoSuchProfile, NotAuthorized
from kerntune.model import Origin, Reason, State, Target
from tests.unit.daemon.lab import Bench, booted
from tests.unit.lab import FULL, Lab, claim, pages, queue

DISK = '[io-scheduler]\n"sda" = "{}"\n'
FAST = DISK.format("none") + '[overcommit]\n"*" = "always:95"\n[hugepages]\n"2M" = 10\n'
OWN = "mq-deadline"  # the scheduler that sda has by itself
BASELINE = Selection(reset=True, baseline=True)
RESET, CLEAR = Selection(reset=True), Selection("")


@contextlib.asynccontextmanager
async def started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "", *, lab: Lab | None = None
) -> AsyncIterator[Bench]:
    """Give a daemon with two profiles."""
    profiles = {"fast": FAST, "fair": DISK.format("bfq")}
    async with booted(folder, monkeypatch, text, lab=lab, profiles=profiles) as bench:
        yield bench


async def test_a_switch_is_one_pass_and_never_by_way_of_the_baseline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(folder, monkeypatch) as bench:
        changed, outcomes = await bench.choose(Selection("fast"))
        assert changed
        assert outcomes == {
            "io-scheduler@sda": ("none", "none", State.SATISFIED),
            "overcommit": ("always:95", "always:95", State.SATISFIED),
            "hugepages@2M": ("10", "10", State.SATISFIED),
        }
        assert (bench.config.profile, bench.lab.store.claims.choice) == ("fast", Choice("fast"))
        assert dict(bench.lab.store.claims.by_id) == {}
        bench.lab.reports.clear()
        bench.writes()
        changed, outcomes = await bench.choose(Selection("fair"))
        assert outcomes["io-scheduler@sda"] == ("bfq", "bfq", State.SATISFIED)
        assert (outcomes["hugepages@2M"][2], pages(bench.lab.kernel)) == (State.UNMANAGED, [0, 0])
        assert bench.writes().count(queue("sda")) == 1
        assert {report.cause for report in bench.lab.reports} == {"test"}
        changed, outcomes = await bench.choose(Selection("fair"))
        assert (changed, outcomes) == (False, {"io-scheduler@sda": ("bfq", "bfq", State.SATISFIED)})
        assert bench.writes() == []


async def test_it_is_below_the_configuration_and_the_callers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch, DISK.format("kyber")) as bench:
        await bench.lab.set(("overcommit", "", "heuristic"))
        for ask in (bench.config.plan(Selection("fast")), bench.config.choose(Selection("fast"), "test")):
            answer = await ask
            told = {str(outcome.target): outcome for outcome in answer.outcomes}
            disk, memory = told["io-scheduler@sda"], told["overcommit"]
            assert (disk.requested, disk.actual, disk.state) == ("none", "kyber", State.OVERRIDDEN)
            assert (disk.reason, memory.reason) == (Reason.CONFIG_WINS, Reason.OVERRIDDEN)
            assert disk.detail.startswith(f"config:io-scheduler@sda = kyber ({folder}/kerntune.toml:2) wins; ")
            assert (memory.requested, memory.actual, memory.state) == ("always:95", "heuristic", State.OVERRIDDEN)
        assert (bench.disk, pages(bench.lab.kernel)) == ("kyber", [5, 5])
        (desired,) = [claim for claim in bench.lab.engine.edits.claims.by_id.values() if claim.origin is Origin.CONFIG]
        assert desired.value == "kyber"
        # Without the line the profile has its way, and with it again the line.
        for text, value in (("", "none"), (DISK.format("bfq"), "bfq")):
            (folder / "kerntune.toml").write_text(text)
            await bench.config.reload()
            assert bench.disk == value
        changed, outcomes = await bench.choose(CLEAR)
        assert changed
        assert outcomes["io-scheduler@sda"] == ("bfq", "bfq", State.SATISFIED)
        assert (await bench.choose(CLEAR)) == (False, {})


@pytest.mark.parametrize("named", [True, False], ids=["named", "chosen"])
async def test_the_configuration_wins_over_the_profile_that_it_names_and_over_one_that_was_chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    """The broader pattern of the configuration wins, too: the file is the administrator's."""
    (folder / "profiles").mkdir()
    (folder / "profiles/fair.toml").write_text(DISK.format("bfq"))
    wide = '[io-scheduler]\n"*" = "kyber"\n'
    head = 'profile = "fair"\n' if named else ""
    async with started(folder, monkeypatch, head + wide) as bench:
        if not named:
            await bench.choose(Selection("fair"))
        assert (bench.config.profile, bench.disk) == ("fair", "kyber")
        (folder / "kerntune.toml").write_text(head)
        await bench.config.reload()
        assert (bench.config.profile, bench.disk) == ("fair", "bfq")
        (folder / "kerntune.toml").write_text(wide)
        await bench.config.reload()
        assert (bench.config.profile, bench.disk) == ("" if named else "fair", "kyber")
        await bench.choose(CLEAR)
        assert (bench.config.profile, bench.disk) == ("", "kyber")
        (folder / "kerntune.toml").write_text("")
        await bench.config.reload()
        assert bench.disk == OWN


async def test_what_the_host_lacks_is_no_error_and_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch) as bench:
        bench.profile("other", '[hugepages]\n"1G" = 9999\n[io-scheduler]\n"sdz" = "none"\n"nvme0n1" = "no-such"\n')
        _, outcomes = await bench.choose(Selection("other"))
        assert outcomes["io-scheduler@sdz"][2] is State.UNSUPPORTED
        assert outcomes["io-scheduler@nvme0n1"][2] is State.UNSUPPORTED
        # Nobody waits for exactly these: what memory has is kept, as at boot.
        assert outcomes["hugepages@1G"][2] is State.PARTIAL
        bench.lab.kernel.plug("sdz", scheduler="mq-deadline")
        await bench.lab.engine.reconcile("plugged")
        assert bench.lab.kernel.disks["sdz"].scheduler == "none"


async def test_it_outlives_the_daemon_and_follows_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch) as before:
        await before.choose(Selection("fair"))
    async with started(folder, monkeypatch, lab=before.lab) as bench:
        assert (bench.config.profile, bench.disk, bench.writes()) == ("fair", "bfq", [])
        bench.profile("fair", DISK.format("none"))
        await bench.config.reload()
        assert bench.disk == "none"
        bench.profile("fair", DISK.replace("{}", "5"))
        (folder / "profiles/fair.toml").write_text("[[[")
        with pytest.raises(InvalidValue, match=r"fair\.toml:1: this is not TOML"):
            await bench.config.reload()
        assert (bench.disk, bench.degraded) == ("none", {CONFIG_INVALID})
        await bench.choose(Selection("fast"))
        assert bench.degraded == set()
        (folder / "profiles/fast.toml").unlink()
        with pytest.raises(InvalidValue, match="there is no profile 'fast'"):
            await bench.config.reload()
        assert (bench.disk, bench.config.profile, bench.degraded) == ("none", "fast", {CONFIG_INVALID})
        await bench.choose(CLEAR)
        assert (bench.disk, bench.config.profile, bench.degraded) == (OWN, "", set())


async def test_the_configuration_may_name_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "profiles").mkdir()
    (folder / "profiles/fair.toml").write_text(DISK.format("bfq"))
    async with started(folder, monkeypatch, 'profile = "fair"\n') as bench:
        assert (bench.config.profile, bench.disk) == ("fair", "bfq")
        await bench.choose(Selection("fast"))
        assert (bench.config.profile, bench.disk) == ("fast", "none")
        _, outcomes = await bench.choose(CLEAR)
        assert (bench.config.profile, bench.disk) == ("fair", "bfq")
        assert outcomes["io-scheduler@sda"] == ("bfq", "bfq", State.SATISFIED)
        (folder / "kerntune.toml").write_text('profile = "gone"\n')
        with pytest.raises(InvalidValue, match="there is no profile 'gone'; the claims of profile fair stay in force"):
            await bench.config.reload()
        (folder / "kerntune.toml").write_text("profile = 5\n")
        with pytest.raises(InvalidValue, match="profile is 5"):
            await bench.config.reload()
        assert (bench.config.profile, bench.disk) == ("fair", "bfq")
        (folder / "kerntune.toml").write_text("")
        await bench.config.reload()
        assert (bench.config.profile, bench.disk, bench.degraded) == ("", OWN, set())


@pytest.mark.parametrize("wrong", ['profile = "gone"\n', "profile = 5\n", 'profile = "bad"\n', 'profile = "part"\n'])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_a_typo_in_the_name_of_the_profile_frees_no_pages(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, wrong: str, restarted: bool
) -> None:
    """A name that no profile has, or that of a profile with errors: it takes the place of none."""
    (folder / "profiles").mkdir()
    (folder / "profiles/fast.toml").write_text(FAST)
    async with contextlib.AsyncExitStack() as stack:
        bench = await stack.enter_async_context(started(folder, monkeypatch, 'profile = "fast"\n'))
        assert (bench.config.profile, bench.disk, pages(bench.lab.kernel)) == ("fast", "none", [5, 5])
        bench.profile("bad", "[")
        bench.profile("part", DISK.format("bfq") + '[hugepage]\n"2M" = 10\n')
        if restarted:
            bench = await stack.enter_async_context(started(folder, monkeypatch, wrong, lab=bench.lab))
        else:
            (folder / "kerntune.toml").write_text(wrong)
        for _ in range(2):
            with pytest.raises(
                InvalidValue, match=r"claims of profile fast stay in|profile fast that this file had stays"
            ):
                await bench.config.reload()
            assert (bench.config.profile, bench.disk, pages(bench.lab.kernel)) == ("fast", "none", [5, 5])
            assert bench.degraded == {CONFIG_INVALID}
        # A call that returns to the files changes nothing either; without the name its claims end.
        assert not (await bench.choose(CLEAR))[0]
        (folder / "kerntune.toml").write_text('profile = "fair"\n')
        await bench.config.reload()
        assert (bench.config.profile, bench.disk, pages(bench.lab.kernel)) == ("fair", "bfq", [0, 0])
        (folder / "kerntune.toml").write_text("")
        await bench.config.reload()
        (folder / "kerntune.toml").write_text(wrong.replace("part", "gone"))
        with pytest.raises(InvalidValue):
            await bench.config.reload()
        assert (bench.disk, bench.degraded) == (OWN, {CONFIG_INVALID})


async def test_a_caller_who_clears_a_profile_frees_it_though_the_files_name_none_that_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(folder, monkeypatch, 'profile = "gone"\n') as bench:
        assert (bench.config.profile, bench.disk, bench.degraded) == ("", OWN, {CONFIG_INVALID})
        await bench.choose(Selection("fast"))
        await bench.config.reload()
        assert (bench.config.profile, bench.disk, bench.degraded) == ("fast", "none", set())
        await bench.choose(CLEAR)
        assert (bench.disk, pages(bench.lab.kernel), bench.degraded) == (OWN, [0, 0], {CONFIG_INVALID})
        with pytest.raises(InvalidValue, match="there is no profile 'gone'"):
            await bench.config.reload()
        assert (bench.disk, pages(bench.lab.kernel)) == (OWN, [0, 0])


async def test_what_cannot_be_chosen_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch) as bench:
        await bench.choose(Selection("fair"))
        bench.writes()
        bench.profile("bad", DISK.replace('"{}"', "5.5"))
        for name, error in (("gone", NoSuchProfile), ("bad", InvalidValue)):
            for ask in (bench.config.check, bench.config.plan, bench.choose):
                with pytest.raises(error):
                    await ask(Selection(name))
        bench.lab.store.full_for_claims = FULL
        with pytest.raises(Failed, match="cannot be saved"):
            await bench.choose(Selection("fast"))
        bench.lab.store.full_for_claims = None
        assert (bench.config.profile, bench.disk, pages(bench.lab.kernel)) == ("fair", "bfq", [0, 0])
        assert bench.lab.engine.edits.claims.choice == Choice("fair")


async def test_reset_drops_what_callers_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch, DISK.format("kyber")) as bench:
        await bench.choose(Selection("fair"))
        await bench.lab.set(("io-scheduler", "sda", "none"), ("overcommit", "", "always"))
        await bench.lab.set(("hugepages", "2M", 10), persist=True)
        changed, outcomes = await bench.choose(RESET)
        assert changed
        assert outcomes == {
            "io-scheduler@sda": ("kyber", "kyber", State.SATISFIED),
            "overcommit": ("", "heuristic", State.UNMANAGED),
            "hugepages@2M": ("", "0", State.UNMANAGED),
        }
        assert dict(bench.lab.store.claims.by_id) == {}
        assert await bench.choose(RESET) == (False, {})
        assert (bench.config.profile, bench.degraded) == ("fair", set())


ENDS = {"reset": RESET, "profile": Selection("fair"), "reload": None}


@pytest.mark.parametrize("ending", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_baseline_suspends_the_files_until_it_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, ending: Selection | None, restarted: bool
) -> None:
    config = '[overcommit]\n"*" = "always"\n'
    async with contextlib.AsyncExitStack() as stack:
        bench = await stack.enter_async_context(started(folder, monkeypatch, config))
        await bench.choose(Selection("fair"))
        await bench.lab.set(("hugepages", "2M", 10), persist=True)
        changed, outcomes = await bench.choose(BASELINE)
        assert changed
        assert {actual for _, actual, _ in outcomes.values()} == {OWN, "heuristic", "0"}
        assert {state for *_, state in outcomes.values()} == {State.UNMANAGED}
        if restarted:
            bench = await stack.enter_async_context(started(folder, monkeypatch, config, lab=bench.lab))
        assert (bench.disk, bench.lab.kernel.overcommit["memory"]) == (OWN, 0)
        assert (bench.config.profile, bench.degraded) == ("", {SUSPENDED})
        assert bench.lab.engine.observed.outcomes == {}
        # Neither a claim nor the end of the profile ends it.
        await bench.lab.set(("io-scheduler", "sda", "kyber"))
        await bench.lab.unset(("io-scheduler", "sda"))
        assert (await bench.choose(BASELINE)) == (False, {})
        assert (bench.disk, bench.degraded) == (OWN, {SUSPENDED})
        if ending:
            changed, outcomes = await bench.choose(ending)
            assert changed
            assert outcomes["io-scheduler@sda"] == ("bfq", "bfq", State.SATISFIED)
        else:
            await bench.config.reload()
        assert (bench.disk, bench.lab.kernel.overcommit["memory"]) == ("bfq", 1)
        assert (bench.config.profile, bench.degraded) == ("fair", set())
        assert bench.lab.store.claims.choice == Choice("fair")


async def test_the_end_of_a_profile_while_suspended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch) as bench:
        await bench.choose(Selection("fair"))
        await bench.choose(BASELINE)
        assert await bench.choose(CLEAR) == (True, {})
        assert bench.degraded == {SUSPENDED}
        await bench.config.reload()
        assert (bench.disk, bench.config.profile, bench.degraded) == (OWN, "", set())


async def test_a_plan_changes_nothing_and_says_what_would(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch) as bench:
        await bench.lab.set(("overcommit", "", "always"))
        bench.writes()
        before = dict(bench.lab.engine.edits.claims.by_id)
        for selection in (Selection("fast"), RESET, BASELINE):
            planned = await bench.config.plan(selection)
            assert planned.changed
            assert State.PLANNED in {outcome.state for outcome in planned.outcomes}
        assert not (await bench.config.plan(CLEAR)).changed
        assert (bench.writes(), dict(bench.lab.engine.edits.claims.by_id), bench.config.profile) == ([], before, "")
        assert not (folder / "run/profile.json").exists()
        await bench.choose(Selection("fair"))
        kept = (folder / "run/profile.json").read_bytes()
        (folder / "kerntune.toml").write_text('profile = "fast"\n')
        await bench.config.reload()
        for selection in (Selection("fast"), CLEAR):
            assert (await bench.config.plan(selection)).changed
        assert (folder / "run/profile.json").read_bytes() == kept


async def test_a_plan_of_a_reload_reads_the_files_and_keeps_nothing_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(folder, monkeypatch, DISK.format("kyber")) as bench:
        assert not (await bench.config.plan_reload()).changed
        kept = {path: path.read_bytes() for path in (folder / "run").iterdir()}
        before, told = bench.config.files, list(bench.told)
        bench.file.write_text('profile = "fast"\n[limits]\nhugepages-percent = 10\n[hugepages]\n"2M" = 9000\n')
        caplog.clear()
        planned = await bench.config.plan_reload()
        rows = {str(one.target): (one.requested, one.actual, one.state, one.reason) for one in planned.outcomes}
        assert planned.changed
        assert rows["io-scheduler@sda"] == ("none", "kyber", State.PLANNED, Reason.OK)
        assert rows["hugepages@2M"] == ("9000", "0", State.PARTIAL, Reason.OVER_LIMIT)
        assert {path: path.read_bytes() for path in (folder / "run").iterdir()} == kept
        assert (bench.writes(), bench.config.files, bench.told, caplog.text) == ([], before, told, "")
        assert (bench.disk, bench.config.profile, bench.lab.engine.limits.hugepages_percent) == ("kyber", "", 75)
        await bench.config.reload()
        outcome = bench.lab.engine.observed.outcomes[Target("hugepages", "2M")]
        assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.OVER_LIMIT)
        assert not (await bench.config.plan_reload()).changed


async def test_a_plan_of_a_reload_ends_as_the_reload_would_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(folder, monkeypatch, DISK.format("kyber")) as bench:
        bench.file.write_text(DISK.format("none") + "[overcommit]\n'*' = 'sometimes'\n")
        bench.writes()
        with pytest.raises(InvalidValue, match=f"in part only: {bench.file}:4: ") as planned:
            await bench.config.plan_reload()
        assert (bench.writes(), bench.disk, bench.degraded) == ([], "kyber", set())
        with pytest.raises(InvalidValue) as done:
            await bench.config.reload()
        assert str(done.value) == str(planned.value).replace("would be taken", "was taken")
        assert bench.degraded == {CONFIG_INVALID}


async def test_a_plan_of_a_reload_of_what_is_suspended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch, DISK.format("kyber")) as bench:
        await bench.choose(BASELINE)
        planned = await bench.config.plan_reload()
        assert planned.changed
        assert [(one.requested, one.state) for one in planned.outcomes] == [("kyber", State.PLANNED)]
        assert bench.degraded == {SUSPENDED}
        await bench.config.reload()
        assert bench.disk == "kyber"


async def test_choices_beside_each_other_and_beside_reloads_take_turns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(folder, monkeypatch, '[io-scheduler]\n"nvme0n1" = "kyber"\n') as bench:
        asked = [bench.choose(Selection(name)) for name in ("fast", "fair") * 4]
        reloads = [bench.config.reload() for _ in range(4)]
        sets = [bench.lab.set(("overcommit", "", f"always:{number}")) for number in range(50, 54)]
        await asyncio.gather(*asked, *reloads, *sets, bench.choose(BASELINE))
        await bench.choose(RESET)
        await bench.choose(Selection("fair"))
        assert (bench.disk, pages(bench.lab.kernel), bench.config.profile) == ("bfq", [0, 0], "fair")
        origins = {claim.origin for claim in bench.lab.engine.edits.claims.by_id.values()}
        assert origins == {Origin.CONFIG, Origin.PROFILE}
        await bench.choose(CLEAR)
        assert (bench.disk, bench.lab.kernel.disks["nvme0n1"].scheduler) == (OWN, "kyber")


@pytest.mark.parametrize("left", [Selection("fast"), CLEAR], ids=["set", "clear"])
@pytest.mark.parametrize("then", ["reload", "reset", "plan"])
async def test_a_selection_whose_caller_has_left_is_no_basis_for_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, left: Selection, then: str
) -> None:
    async with started(folder, monkeypatch) as bench:
        await bench.choose(Selection("fair"))
        pass_, begun = threading.Event(), threading.Event()
        kind = type(bench.lab.kernel)
        write = kind.write

        def slow(*args: Any) -> None:
            begun.set()
            assert pass_.wait(20)
            write(*args)

        monkeypatch.setattr(kind, "write", slow)
        leaving = asyncio.create_task(bench.config.choose(left, "test", endable=True))
        try:
            assert await asyncio.to_thread(begun.wait, 20)
            work = {"reload": bench.config.reload, "reset": lambda: bench.choose(RESET), "plan": None}[then]
            following = asyncio.ensure_future(work()) if work else None
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.sleep(0)
            planned = await bench.config.plan(Selection("fast")) if not following else None
        finally:
            pass_.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        if following:
            await following
        assert planned is None or planned.changed
        await bench.lab.engine.reconcile("settled")
        assert (bench.config.profile, bench.disk, pages(bench.lab.kernel)) == ("fair", "bfq", [0, 0])
        assert [claim.who for claim in bench.config.claims] == ["fair"]
        assert bench.lab.store.claims.choice == Choice("fair")
        assert list(json.loads((folder / "run/profile.json").read_text())["files"]) == ["fair"]


@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "not saved"])
async def test_a_profile_that_was_cleared_does_not_come_back_at_a_restart(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, is_saved: bool
) -> None:
    """The files name none that is there; the copy may be older than the choice, if the daemon was killed between."""
    async with started(folder, monkeypatch, 'profile = "gone"\n') as before:
        await before.choose(Selection("fast"))
        copy = (folder / "run/profile.json").read_bytes()
        await before.choose(CLEAR)
        if not is_saved:
            (folder / "run/profile.json").write_bytes(copy)
    async with started(folder, monkeypatch, 'profile = "gone"\n', lab=before.lab) as bench:
        assert (bench.config.profile, bench.disk, pages(bench.lab.kernel)) == ("", OWN, [0, 0])


async def test_no_selection_and_no_reload_begins_before_the_one_before_has_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(folder, monkeypatch) as bench:
        begun, gate = list[str](), asyncio.Event()

        async def first() -> None:
            begun.append("fast")
            await gate.wait()

        async def second() -> None:
            begun.append("fair")

        asked = [
            asyncio.create_task(bench.config.choose(Selection("fast"), "test", begins=first)),
            asyncio.create_task(bench.config.choose(Selection("fair"), "test", begins=second)),
            asyncio.create_task(bench.config.reload()),
        ]
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert (begun, [task.done() for task in asked]) == (["fast"], [False, False, False])
        gate.set()
        await asyncio.gather(*asked)
        assert (begun, bench.config.profile, bench.disk) == (["fast", "fair"], "fair", "bfq")


async def test_who_is_not_permitted_selects_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> None:
        raise NotAuthorized("no")

    async with started(folder, monkeypatch) as bench:
        with pytest.raises(NotAuthorized):
            await bench.config.choose(Selection("fast"), "test", begins=refused)
        assert (bench.config.profile, bench.disk, bench.writes()) == ("", OWN, [])


async def test_a_selection_that_is_being_saved_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate, save = threading.Event(), threading.Event(), ActiveProfile.save

    def slow(self: ActiveProfile, content: Content, *, is_selected: bool) -> None:
        entered.set()
        assert gate.wait(20)
        save(self, content, is_selected=is_selected)

    async with started(folder, monkeypatch) as bench:
        monkeypatch.setattr(ActiveProfile, "save", slow)
        task = asyncio.create_task(bench.config.choose(Selection("fast"), "test", endable=True))
        try:
            assert await asyncio.to_thread(entered.wait, 20)
            task.cancel()
            await asyncio.wait([task], timeout=0.05)
            assert not task.done()
        finally:
            gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(json.loads((folder / "run/profile.json").read_text())["files"]) == ["fast"]


async def test_the_end_of_a_trouble_is_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch, 'profile = "gone"\n') as bench:
        published: list[set[str]] = []
        bench.lab.engine.observed.listeners.append(lambda _report: published.append(set(bench.degraded)))
        await bench.choose(Selection("fast"))
        assert (published[0], published[-1]) == ({CONFIG_INVALID}, set())


async def test_a_claim_that_came_after_the_reset_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(folder, monkeypatch) as bench:
        await bench.lab.set(("io-scheduler", "sda", "none"))
        _, answer = await asyncio.gather(bench.choose(RESET), bench.lab.set(("io-scheduler", "sda", "bfq")))
        assert (answer.outcomes[0].actual, bench.disk) == ("bfq", "bfq")


def test_the_book_knows_who_may_go() -> None:
    """Reset: what callers asked for; the guard's and a hold's claims are not theirs."""
    from kerntune.engine.claims import Claims, FilesEdit  # noqa: PLC0415

    claims = Claims.of(*(claim(origin, "io-scheduler", "sda", "none") for origin in Origin))
    edit = claims.files_edit(FilesEdit((), Choice()), reset=True).numbered(1)
    assert {claim_id.origin for claim_id in edit.drop} == {Origin.PERSISTENT, Origin.RUNTIME}
    assert {claim_id.origin for claim_id in edit.released} == {
        Origin.PERSISTENT, Origin.RUNTIME, Origin.CONFIG, Origin.PROFILE,
    }  # fmt: skip
    left = {claim_id.origin for claim_id in claims.apply(edit).by_id}
    assert left == {Origin.BASELINE, Origin.HOLD, Origin.GUARD}
