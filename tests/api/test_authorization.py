"""The gate: what changes something passes it, it lets nobody pass by default, and the journal has who asked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kerntune import errors
from kerntune.api import authorization as module
from kerntune.api import names
from kerntune.api.authorization import LOGGED, USERS, Authorization, needed
from kerntune.api.calls import CHANGE_ASKED, Calls
from kerntune.api.contract import ACTION, interface_files
from kerntune.api.describe import Host
from kerntune.api.holds import HeldObject, Holds
from kerntune.api.manager import Manager
from kerntune.api.typed import CpuGovernor, HugePages, IoScheduler, Memory
from kerntune.config.active import ActiveConfig
from kerntune.daemon.demo import demo_host
from kerntune.dbus.introspection import load, snake
from kerntune.dbus.messages import Variant
from kerntune.dbus.service import Caller, Service
from kerntune.engine import reconciler
from kerntune.engine.claims import Edit, Selection
from kerntune.engine.requests import edit_for
from kerntune.engine.results import Answer
from kerntune.guard.guard import MemoryGuard
from kerntune.model import Setting
from kerntune.tunables import REGISTRY
from tests.api.alone import Alone, NoBus
from tests.unit.lab import Lab, running

CONTRACT = load(interface_files())
STRANGER, ROOT = 65534, 0
# Every method that is not open to everybody, with arguments that would be carried out.
CHANGES: dict[tuple[str, str], tuple[Any, ...]] = {
    (names.MANAGER, "Set"): ([["io-scheduler", "sda", "none"]], {}),
    (names.MANAGER, "Unset"): ([["io-scheduler", "sda"]], {}),
    (names.MANAGER, "SetProfile"): ("one", {}),
    (names.MANAGER, "ClearProfile"): ({},),
    (names.MANAGER, "Reset"): ({},),
    (names.MANAGER, "Reload"): ({},),
    (names.HUGE_PAGES, "SetCount"): (0, 10, {}),
    (names.CPU_GOVERNOR, "SetGovernor"): ("*", "powersave", {}),
    (names.IO_SCHEDULER, "SetScheduler"): ("sda", "none", {}),
    (names.MEMORY, "SetOvercommit"): ("always", 95, {}),
}
ACTIONS = {
    (names.MANAGER, "Set"): names.ACTION_SET,
    (names.MANAGER, "Unset"): names.ACTION_SET,
    (names.MANAGER, "SetProfile"): names.ACTION_MANAGE,
    (names.MANAGER, "ClearProfile"): names.ACTION_MANAGE,
    (names.MANAGER, "Reset"): names.ACTION_MANAGE,
    (names.MANAGER, "Reload"): names.ACTION_MANAGE,
    (names.HUGE_PAGES, "SetCount"): names.ACTION_SET_MEMORY,
    (names.CPU_GOVERNOR, "SetGovernor"): names.ACTION_SET,
    (names.IO_SCHEDULER, "SetScheduler"): names.ACTION_SET,
    (names.MEMORY, "SetOvercommit"): names.ACTION_SET_MEMORY,
}
BASELINE = {"baseline": Variant("b", True)}
OPEN = {"Plan", "Verify", "Describe", "ListProfiles"}


class Files(ActiveConfig):
    """The configuration, which keeps what it was asked to do, and does nothing."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def settings_of(self, profile: str) -> list[Setting]:
        return []

    async def check(self, selection: Selection) -> None:
        pass

    async def plan(self, selection: Selection) -> Answer:
        return Answer(False, ())

    async def listing(self) -> list[tuple[str, str]]:
        return []

    async def choose(self, selection: Selection, cause: str, progress: object = None, **_: object) -> Answer:
        self.done.append(cause)
        return Answer(True, ())

    async def reload(self) -> None:
        self.done.append("Reload")


class Silent(Alone):
    """A service that publishes nothing: no object of it has the contract."""

    def publish(self, path: str, impls: Mapping[str, object]) -> None:
        pass


@asynccontextmanager
async def core() -> AsyncIterator[tuple[Calls, Lab, Files]]:
    """No bus, and a polkit that permits nothing: everybody but root is refused."""
    async with running(demo_host()) as lab:
        files = Files()
        host, guard = (
            Host("6.1", "/", True, 2 << 20),
            MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_told: None),
        )
        yield Calls(Silent(), lab.engine, host, set(), files, guard=guard), lab, files


def handler(core: Calls, interface: str, member: str) -> Any:
    kinds: dict[str, Callable[[Calls], object]] = {
        names.MANAGER: manager_of,
        names.HUGE_PAGES: HugePages,
        names.CPU_GOVERNOR: CpuGovernor,
        names.IO_SCHEDULER: IoScheduler,
        names.MEMORY: Memory,
    }
    return getattr(kinds[interface](core), snake(member))


def manager_of(core: Calls) -> Manager:
    return Manager(core, Holds(core))


def caller(uid: int, interface: str, member: str) -> Caller:
    return Caller(":1.1", uid, 0, False, member, CONTRACT[interface].annotations[member])


def test_every_method_says_what_it_needs() -> None:
    said = {
        (name, member): found.annotations[member][ACTION]
        for name, found in CONTRACT.items()
        for member in found.methods
    }
    assert {member for (_, member), action in said.items() if action == "none"} == OPEN
    held = {(names.MANAGER, "Hold"), (names.HOLD, "Release")}
    assert {key for key, action in said.items() if action != "none"} == CHANGES.keys() | held
    manage = {member for (_, member), action in said.items() if action == "manage"}
    assert manage == {"SetProfile", "ClearProfile", "Reset", "Reload", "Release"}
    assert {member for (_, member), action in said.items() if action == "hold"} == {"Hold"}
    assert set(said.values()) == {"none", "manage", "tunable", "hold"}


def permit(found: Calls, *actions: str) -> NoBus:
    """Have polkit permit these actions from now on, and forget what it was asked."""
    connection = found.service.connection
    assert isinstance(connection, NoBus)
    connection.permitted, connection.asked = actions, []
    return connection


@pytest.mark.parametrize(("interface", "member"), CHANGES)
async def test_a_change_passes_the_gate(interface: str, member: str) -> None:
    async with core() as (found, lab, files):
        change = handler(found, interface, member)
        before = lab.engine.observed.readings
        with pytest.raises(errors.AccessDenied, match="polkit"):
            await change(caller(STRANGER, interface, member), *CHANGES[interface, member])
        assert (files.done, lab.engine.edits.claims.by_id, lab.engine.observed.readings) == ([], {}, before)
        await change(caller(ROOT, interface, member), *CHANGES[interface, member])
        if CONTRACT[interface].annotations[member][ACTION] == "manage":
            assert files.done == [member]


async def test_reset_to_the_hosts_own_values_passes_it_too() -> None:
    async with core() as (found, _, files):
        with pytest.raises(errors.AccessDenied):
            await manager_of(found).reset(caller(STRANGER, names.MANAGER, "Reset"), BASELINE)
        assert not files.done
        await manager_of(found).reset(caller(ROOT, names.MANAGER, "Reset"), BASELINE)
        assert files.done == ["Reset"]


@pytest.mark.parametrize(("interface", "member"), CHANGES)
async def test_polkit_is_asked_for_the_action_of_the_change(interface: str, member: str) -> None:
    """Whom polkit allows that one action passes, whoever it is; a caller who has all others does not."""
    action, every = ACTIONS[interface, member], {names.ACTION_SET, names.ACTION_SET_MEMORY, names.ACTION_MANAGE}
    asks, given = caller(STRANGER, interface, member), CHANGES[interface, member]
    async with core() as (found, lab, files):
        others = permit(found, *(every - {action}))
        with pytest.raises(errors.AccessDenied, match=action):
            await handler(found, interface, member)(asks, *given)
        assert (others.asked, files.done, lab.engine.edits.claims.by_id) == ([action], [], {})
        polkit = permit(found, action)
        await handler(found, interface, member)(asks, *given)
        assert polkit.asked == [action]


@pytest.mark.parametrize("change", ["set", "unset"])
@pytest.mark.parametrize("allowed", [names.ACTION_SET, names.ACTION_SET_MEMORY])
async def test_one_action_is_not_enough_for_settings_of_two(change: str, allowed: str) -> None:
    settings = [["io-scheduler", "sda", "none"], ["hugepages", "2M", "10"]]
    given = settings if change == "set" else [row[:2] for row in settings]
    asks = caller(STRANGER, names.MANAGER, change.capitalize())
    async with core() as (found, lab, _):
        permit(found, allowed)
        with pytest.raises(errors.AccessDenied):
            await getattr(manager_of(found), change)(asks, given, {})
        assert not lab.engine.edits.claims.by_id
        both = permit(found, names.ACTION_SET, names.ACTION_SET_MEMORY)
        await getattr(manager_of(found), change)(asks, given, {})
        assert set(both.asked) == {names.ACTION_SET, names.ACTION_SET_MEMORY}


@pytest.mark.parametrize("lacks", [names.ACTION_HOLD, names.ACTION_SET, names.ACTION_SET_MEMORY])
async def test_a_hold_needs_its_own_action_and_that_of_each_tunable(lacks: str) -> None:
    settings, needs = (
        [["io-scheduler", "sda", "none"], ["hugepages", "2M", "10"]],
        {*ACTIONS.values()} | {names.ACTION_HOLD},
    )
    asks = caller(STRANGER, names.MANAGER, "Hold")
    async with core() as (found, lab, _):
        permit(found, *(needs - {lacks}))
        with pytest.raises(errors.AccessDenied, match=lacks):
            await manager_of(found).hold(asks, settings, "job", "", {})
        assert not lab.engine.edits.claims.by_id
        polkit = permit(found, *(needs - {names.ACTION_MANAGE}))
        await manager_of(found).hold(asks, settings, "job", "", {})
        assert names.ACTION_MANAGE not in polkit.asked
        detached = {"detached": Variant("b", True), "ttl-usec": Variant("t", 10**9)}
        with pytest.raises(errors.AccessDenied, match=names.ACTION_MANAGE):
            await manager_of(found).hold(asks, settings, "job", "", detached)
        assert len(lab.engine.edits.claims.holds) == 1


async def test_its_owner_ends_a_hold_and_others_who_may_manage() -> None:
    asks, settings = caller(STRANGER, names.HOLD, "Release"), [["io-scheduler", "sda", "none"]]
    async with core() as (found, lab, _):
        for uid, ends in ((STRANGER, True), (ROOT, False)):
            await manager_of(found).hold(caller(ROOT, names.MANAGER, "Hold"), settings, "job", "", {})
            (hold,) = (replace(hold, uid=uid) for hold in lab.engine.edits.claims.holds.values())
            held = HeldObject(found, hold, [])
            if not ends:
                with pytest.raises(errors.NotOwner, match=f"hold {hold.number} is not yours"):
                    await held.release(asks, {})
                assert lab.engine.edits.claims.holds
                permit(found, names.ACTION_MANAGE)
            await held.release(asks, {})
            assert not lab.engine.edits.claims.holds


@pytest.mark.parametrize("action", ["", "none", "anything"])
async def test_what_names_no_action_is_roots_alone(action: str) -> None:
    gate = Authorization(Service({}, names.ROOT))
    with pytest.raises(errors.AccessDenied, match="only root may call Chown"):
        await gate.permit(Caller(":1.1", STRANGER, 0, True, "Chown", {ACTION: action}), REGISTRY)
    permit = await gate.permit(Caller(":1.1", ROOT, 0, True, "Chown", {ACTION: action}))
    assert permit.caller.uid == ROOT


async def test_no_tunable_is_no_action_and_no_way_in() -> None:
    gate = Authorization(Service({}, names.ROOT))
    with pytest.raises(errors.AccessDenied, match="only root"):
        await gate.permit(caller(STRANGER, names.MANAGER, "Set"), ())


async def test_what_takes_long_to_check_is_authorised_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may not do it makes no work; who may is told what is wrong with it."""
    given: tuple[Any, ...] = ([["io-scheduler", "nosuch", "none"]], {})
    async with core() as (found, _, _files):
        manager, stranger, root = (
            manager_of(found),
            *(caller(uid, names.MANAGER, "Set") for uid in (STRANGER, ROOT)),
        )
        with pytest.raises(errors.NoSuchTarget):
            await manager.set(stranger, *given)
        monkeypatch.setattr("kerntune.engine.reconciler.SMALL", 0)
        with pytest.raises(errors.AccessDenied):
            await manager.set(stranger, *given)
        with pytest.raises(errors.NoSuchTarget):
            await manager.set(root, *given)
        with pytest.raises(errors.UnknownTunable):
            await manager.set(stranger, [["nosuch", "", "none"]], {})


@pytest.mark.parametrize(("small", "times"), [(reconciler.SMALL, 2), (0, 1)], ids=["small", "large"])
async def test_a_request_is_validated_before_it_is_authorised_and_after_it(
    monkeypatch: pytest.MonkeyPatch, small: int, times: int
) -> None:
    """A rehearsal before it is carried out, as for several settings, is no reason for a third time."""
    asked: list[Any] = []

    def noted(request: Any, *known: Any) -> Edit:
        asked.append(request)
        return edit_for(request, *known)

    async with core() as (found, _, _files):
        monkeypatch.setattr(reconciler, "SMALL", small)
        monkeypatch.setattr(reconciler, "edit_for", noted)
        settings = [["io-scheduler", "sda", "none"], ["overcommit", "", "always"]]
        await manager_of(found).set(caller(ROOT, names.MANAGER, "Set"), settings, {})
        assert len(asked) == times


def test_a_call_needs_the_action_of_each_tunable() -> None:
    by_name = {tunable.name: tunable for tunable in REGISTRY}
    both = [by_name["io-scheduler"], by_name["hugepages"]]
    assert needed("tunable", both) == {names.ACTION_SET, names.ACTION_SET_MEMORY}
    assert needed("manage", ()) == {names.ACTION_MANAGE}
    assert needed("hold", both) == {names.ACTION_HOLD, names.ACTION_SET, names.ACTION_SET_MEMORY}


class TestJournal:
    async def test_each_change_is_one_line_with_who(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with core() as (found, _, _files):
            await manager_of(found).set(caller(ROOT, names.MANAGER, "Set"), [["io-scheduler", "sda", "none"]], {})
            await manager_of(found).reload(caller(ROOT, names.MANAGER, "Reload"), {})
            with pytest.raises(errors.NoSuchTarget):
                await manager_of(found).unset(caller(ROOT, names.MANAGER, "Unset"), [["io-scheduler", "nosuch"]], {})
        lines = [record for record in caplog.records if getattr(record, "MESSAGE_ID", "") == CHANGE_ASKED]
        assert [line.getMessage() for line in lines] == [
            "Set io-scheduler@sda=none, asked by uid 0, uid 0: done",
            "Reload, asked by uid 0, uid 0: done",
        ]
        assert {(vars(line)["KERNTUNE_WHO"], vars(line)["KERNTUNE_UID"]) for line in lines} == {("uid 0", "0")}

    async def test_a_change_that_fails_says_why_on_the_same_line(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with core() as (found, _, files):

            async def fails(*_: object, **__: object) -> Answer:
                raise errors.NoSuchProfile("there is no profile 'x\ny'", "")

            files.choose = fails  # type: ignore[method-assign]  # as when the profile goes at this moment
            with pytest.raises(errors.NoSuchProfile):
                await manager_of(found).set_profile(caller(ROOT, names.MANAGER, "SetProfile"), "x\ny", {})
        (line,) = [each for each in caplog.records if getattr(each, "MESSAGE_ID", "") == CHANGE_ASKED]
        assert line.getMessage().startswith("SetProfile x?y, asked by uid 0, uid 0: NoSuchProfile: there is no profile")
        assert "\n" not in line.getMessage()

    async def test_refusals_are_logged_up_to_a_number(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MINUTE", 0)
        gate = Authorization(Service({}, names.ROOT))
        for uid in range(1000, 1000 + USERS + 10):
            for _ in range(LOGGED + 3):
                with pytest.raises(errors.AccessDenied):
                    await gate.permit(Caller(":1.1", uid, 7, False, "Chown"))
        assert len(gate._refused) <= USERS
        of_one = [each.getMessage() for each in caplog.records if "uid 1000" in each.getMessage()]
        assert len(of_one) == LOGGED
        assert of_one[0].startswith("refused Chown to uid 1000, pid 7: permission denied")
        caplog.clear()
        gate._sum_up(1000)
        assert [each.getMessage() for each in caplog.records] == ["refused 3 more calls to uid 1000 in 0 s"]
        assert 1000 not in gate._refused
