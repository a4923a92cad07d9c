"""The gate: each change passes it, it opens to nobody by default, and the journal has who asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from kerntune import errors
from kerntune.api import authorization as module
from kerntune.api import names
from kerntune.api.authorization import LOGGED, USERS, Authorization, needed
from kerntune.api.calls import CHANGE_ASKED, Calls
from kerntune.api.contract import ACTION, interface_files
from kerntune.api.holds import HeldObject, Holds
from kerntune.api.manager import Manager
from kerntune.api.typed import CpuGovernor, HugePages, IoScheduler, Memory
from kerntune.daemon.demo import demo_host
from kerntune.dbus.introspection import load, snake
from kerntune.dbus.messages import Variant
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.service import Caller, Service
from kerntune.engine import reconciler
from kerntune.engine.claims import Claims, Edit
from kerntune.engine.requests import edit_for
from kerntune.tunables import REGISTRY
from tests.api.alone import Alone, NoBus, NoFiles, calls_on
from tests.unit.lab import Lab, running

CONTRACT = load(interface_files())
STRANGER, ROOT = 65534, 0
DRIVE, POOL = ["io-scheduler", "sda", "none"], ["hugepages", "2M", "10"]
ALL = {names.ACTION_SET, names.ACTION_SET_MEMORY, names.ACTION_MANAGE}


class Method(NamedTuple):
    """A method that is not open to everybody: its action, and arguments that would be carried out."""

    interface: str
    member: str
    action: str
    args: tuple[Any, ...]


CHANGES = [
    Method(names.MANAGER, "Set", names.ACTION_SET, ([DRIVE], {})),
    Method(names.MANAGER, "Unset", names.ACTION_SET, ([DRIVE[:2]], {})),
    Method(names.MANAGER, "SetProfile", names.ACTION_MANAGE, ("one", {})),
    Method(names.MANAGER, "ClearProfile", names.ACTION_MANAGE, ({},)),
    Method(names.MANAGER, "Reset", names.ACTION_MANAGE, ({},)),
    Method(names.MANAGER, "Reload", names.ACTION_MANAGE, ({},)),
    Method(names.HUGE_PAGES, "SetCount", names.ACTION_SET_MEMORY, (0, 10, {})),
    Method(names.CPU_GOVERNOR, "SetGovernor", names.ACTION_SET, ("*", "powersave", {})),
    Method(names.IO_SCHEDULER, "SetScheduler", names.ACTION_SET, ("sda", "none", {})),
    Method(names.MEMORY, "SetOvercommit", names.ACTION_SET_MEMORY, ("always", 95, {})),
]
HELD = {(names.MANAGER, "Hold"), (names.HOLD, "Release")}
OPEN = {"Plan", "Verify", "Describe", "ListProfiles"}
BASELINE = {"baseline": Variant("b", True)}
every_change = pytest.mark.parametrize("method", CHANGES, ids=[each.member for each in CHANGES])


class Silent(Alone):
    """A service that publishes nothing: no object of it has the contract."""

    def publish(self, path: str, impls: Mapping[str, object]) -> None:
        pass


class Scene(NamedTuple):
    """The calls of a daemon on a simulated host, and what is behind them; polkit permits nothing at first."""

    calls: Calls
    lab: Lab
    files: NoFiles

    @property
    def manager(self) -> Manager:
        return Manager(self.calls, Holds(self.calls))

    async def call(self, method: Method, uid: int) -> Any:
        """Call a method of the contract as this user."""
        kinds: dict[str, Callable[[Calls], object]] = {
            names.HUGE_PAGES: HugePages,
            names.CPU_GOVERNOR: CpuGovernor,
            names.IO_SCHEDULER: IoScheduler,
            names.MEMORY: Memory,
        }
        impl = self.manager if method.interface == names.MANAGER else kinds[method.interface](self.calls)
        return await getattr(impl, snake(method.member))(caller(uid, method.member, method.interface), *method.args)

    def permit(self, *actions: str) -> NoBus:
        """Have polkit permit these actions from now on, and forget what it was asked."""
        connection = self.calls.service.connection
        assert isinstance(connection, NoBus)
        connection.permitted, connection.asked = actions, []
        return connection

    @property
    def claims(self) -> Claims:
        return self.lab.engine.edits.claims


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with running(demo_host()) as lab:
        files = NoFiles()
        yield Scene(calls_on(Silent(), lab, files), lab, files)


def caller(uid: int, member: str, interface: str = names.MANAGER) -> Caller:
    return Caller(":1.1", uid, 0, False, member, CONTRACT[interface].annotations[member])


def test_every_method_says_which_action_it_needs() -> None:
    said = {
        (name, member): found.annotations[member][ACTION]
        for name, found in CONTRACT.items()
        for member in found.methods
    }
    assert {member for (_, member), action in said.items() if action == "none"} == OPEN
    assert {key for key, action in said.items() if action != "none"} == {each[:2] for each in CHANGES} | HELD
    manage = {each.member for each in CHANGES if each.action == names.ACTION_MANAGE} | {"Release"}
    assert {member for (_, member), action in said.items() if action == "manage"} == manage
    assert {member for (_, member), action in said.items() if action == "hold"} == {"Hold"}
    assert set(said.values()) == {"none", "manage", "tunable", "hold"}


@every_change
async def test_a_change_passes_the_gate(method: Method) -> None:
    async with scene() as found:
        before = found.lab.engine.observed.readings
        with pytest.raises(errors.AccessDenied, match="polkit"):
            await found.call(method, STRANGER)
        assert (found.files.done, found.claims.by_id, found.lab.engine.observed.readings) == ([], {}, before)
        await found.call(method, ROOT)
        assert found.files.done == ([method.member] if method.action == names.ACTION_MANAGE else [])


async def test_a_reset_to_the_values_of_the_host_passes_the_gate() -> None:
    reset = Method(names.MANAGER, "Reset", names.ACTION_MANAGE, (BASELINE,))
    async with scene() as found:
        with pytest.raises(errors.AccessDenied):
            await found.call(reset, STRANGER)
        assert not found.files.done
        await found.call(reset, ROOT)
        assert found.files.done == ["Reset"]


@every_change
async def test_polkit_decides_by_the_action_of_the_change(method: Method) -> None:
    """A caller with that one action passes; a caller with all other actions does not."""
    async with scene() as found:
        others = found.permit(*(ALL - {method.action}))
        with pytest.raises(errors.AccessDenied, match=method.action):
            await found.call(method, STRANGER)
        assert (others.asked, found.files.done, found.claims.by_id) == ([method.action], [], {})
        polkit = found.permit(method.action)
        await found.call(method, STRANGER)
        assert polkit.asked == [method.action]


@pytest.mark.parametrize("member", ["Set", "Unset"])
@pytest.mark.parametrize("allowed", [names.ACTION_SET, names.ACTION_SET_MEMORY])
async def test_one_action_is_not_enough_for_settings_of_two(member: str, allowed: str) -> None:
    settings = [DRIVE, POOL] if member == "Set" else [DRIVE[:2], POOL[:2]]
    change = Method(names.MANAGER, member, "", (settings, {}))
    async with scene() as found:
        found.permit(allowed)
        with pytest.raises(errors.AccessDenied):
            await found.call(change, STRANGER)
        assert not found.claims.by_id
        both = found.permit(names.ACTION_SET, names.ACTION_SET_MEMORY)
        await found.call(change, STRANGER)
        assert set(both.asked) == {names.ACTION_SET, names.ACTION_SET_MEMORY}


@pytest.mark.parametrize("lacks", [names.ACTION_HOLD, names.ACTION_SET, names.ACTION_SET_MEMORY])
async def test_a_hold_needs_its_own_action_and_that_of_each_tunable(lacks: str) -> None:
    """A hold that ends with no client needs the action of administrators too."""
    hold = Method(names.MANAGER, "Hold", "", ([DRIVE, POOL], "job", "", {}))
    detached = {"detached": Variant("b", True), "ttl-usec": Variant("t", 10**9)}
    needs = {names.ACTION_HOLD, names.ACTION_SET, names.ACTION_SET_MEMORY}
    async with scene() as found:
        found.permit(*(ALL | needs) - {lacks})
        with pytest.raises(errors.AccessDenied, match=lacks):
            await found.call(hold, STRANGER)
        assert not found.claims.by_id
        polkit = found.permit(*needs)
        await found.call(hold, STRANGER)
        assert names.ACTION_MANAGE not in polkit.asked
        with pytest.raises(errors.AccessDenied, match=names.ACTION_MANAGE):
            await found.call(hold._replace(args=([DRIVE, POOL], "job", "", detached)), STRANGER)
        assert len(found.claims.holds) == 1


async def test_only_its_owner_and_administrators_end_a_hold() -> None:
    asks = caller(STRANGER, "Release", names.HOLD)
    hold = Method(names.MANAGER, "Hold", "", ([DRIVE], "job", "", {}))
    async with scene() as found:
        for owner in (STRANGER, STRANGER - 1, STRANGER + 1, ROOT):
            await found.call(hold, ROOT)
            (begun,) = (replace(begun, uid=owner) for begun in found.claims.holds.values())
            held = HeldObject(found.calls, begun, [])
            if owner != STRANGER:
                found.permit()
                with pytest.raises(errors.NotOwner, match=f"hold {begun.number} is not yours"):
                    await held.release(asks, {})
                assert found.claims.holds
                found.permit(names.ACTION_MANAGE)
            await held.release(asks, {})
            assert not found.claims.holds


@pytest.mark.parametrize("member", ["Set", "Hold"])
async def test_a_call_whose_caller_left_before_it_began_changes_nothing(
    member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerntune.api.calls.MOMENT", -1.0)
    async with scene() as found:
        service = found.calls.service
        assert isinstance(service, Alone)
        service.leaves(":1.1")
        who = [] if member == "Set" else ["job", ""]
        with pytest.raises(CallerGone, match="before its call had begun"):
            await found.call(Method(names.MANAGER, member, "", ([DRIVE], *who, {})), ROOT)
        assert not found.claims.by_id


@pytest.mark.parametrize("action", ["", "none", "anything"])
async def test_only_root_may_call_what_names_no_action(action: str) -> None:
    gate = Authorization(Service({}, names.ROOT))
    with pytest.raises(errors.AccessDenied, match="only root may call Chown"):
        await gate.permit(Caller(":1.1", STRANGER, 0, True, "Chown", {ACTION: action}), REGISTRY)
    permit = await gate.permit(Caller(":1.1", ROOT, 0, True, "Chown", {ACTION: action}))
    assert permit.caller.uid == ROOT


async def test_only_root_may_change_no_tunable_at_all() -> None:
    gate = Authorization(Service({}, names.ROOT))
    with pytest.raises(errors.AccessDenied, match="only root"):
        await gate.permit(caller(STRANGER, "Set"), ())


async def test_a_request_that_takes_long_to_check_is_authorised_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without permission makes no work. A caller with it is told what is wrong with the request."""
    wrong = Method(names.MANAGER, "Set", "", ([["io-scheduler", "nosuch", "none"]], {}))
    async with scene() as found:
        with pytest.raises(errors.NoSuchTarget):
            await found.call(wrong, STRANGER)
        monkeypatch.setattr("kerntune.engine.reconciler.SMALL", 0)
        with pytest.raises(errors.AccessDenied):
            await found.call(wrong, STRANGER)
        with pytest.raises(errors.NoSuchTarget):
            await found.call(wrong, ROOT)
        with pytest.raises(errors.UnknownTunable):
            await found.call(wrong._replace(args=([["nosuch", "", "none"]], {})), STRANGER)


@pytest.mark.parametrize(("small", "times"), [(reconciler.SMALL, 2), (0, 1)], ids=["small", "large"])
async def test_a_request_is_validated_before_it_is_authorised_and_after_it(
    monkeypatch: pytest.MonkeyPatch, small: int, times: int
) -> None:
    """A rehearsal before it is carried out, as for several settings, is no reason for a third time."""
    asked: list[Any] = []

    def noted(request: Any, *known: Any) -> Edit:
        asked.append(request)
        return edit_for(request, *known)

    async with scene() as found:
        monkeypatch.setattr(reconciler, "SMALL", small)
        monkeypatch.setattr(reconciler, "edit_for", noted)
        settings = [["io-scheduler", "sda", "none"], ["overcommit", "", "always"]]
        await Manager(found.calls, Holds(found.calls)).set(caller(ROOT, "Set"), settings, {})
        assert len(asked) == times


def test_a_call_needs_the_action_of_each_tunable() -> None:
    by_name = {tunable.name: tunable for tunable in REGISTRY}
    both = [by_name["io-scheduler"], by_name["hugepages"]]
    assert needed("tunable", both) == {names.ACTION_SET, names.ACTION_SET_MEMORY}
    assert needed("manage", ()) == {names.ACTION_MANAGE}
    assert needed("hold", both) == {names.ACTION_HOLD, names.ACTION_SET, names.ACTION_SET_MEMORY}


class TestJournal:
    async def test_each_change_is_one_line_with_who_asked(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with scene() as found:
            await found.manager.set(caller(ROOT, "Set"), [DRIVE], {})
            await found.manager.reload(caller(ROOT, "Reload"), {})
            with pytest.raises(errors.NoSuchTarget):
                await found.manager.unset(caller(ROOT, "Unset"), [["io-scheduler", "nosuch"]], {})
        lines = [record for record in caplog.records if getattr(record, "MESSAGE_ID", "") == CHANGE_ASKED]
        assert [line.getMessage() for line in lines] == [
            "Set io-scheduler@sda=none, asked by uid 0, uid 0: done",
            "Reload, asked by uid 0, uid 0: done",
        ]
        assert {(vars(line)["KERNTUNE_WHO"], vars(line)["KERNTUNE_UID"]) for line in lines} == {("uid 0", "0")}

    async def test_a_change_that_fails_says_why_on_the_same_line(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with scene() as found:
            # As when the profile is removed at this moment.
            found.files.fails = errors.NoSuchProfile("there is no profile 'x\ny'", "")
            with pytest.raises(errors.NoSuchProfile):
                await found.manager.set_profile(caller(ROOT, "SetProfile"), "x\ny", {})
        (line,) = [each for each in caplog.records if getattr(each, "MESSAGE_ID", "") == CHANGE_ASKED]
        assert line.getMessage().startswith("SetProfile x?y, asked by uid 0, uid 0: NoSuchProfile: there is no profile")
        assert "\n" not in line.getMessage()

    async def test_a_user_fills_no_journal_with_refusals(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MINUTE", 0)
        gate = Authorization(Service({}, names.ROOT))

        async def refused(uid: int) -> None:
            with pytest.raises(errors.AccessDenied):
                await gate.permit(Caller(":1.1", uid, 7, False, "Chown"))

        def told_of(uid: int) -> list[str]:
            return [each.getMessage() for each in caplog.records if f"uid {uid}" in each.getMessage()]

        for uid in range(1000, 1000 + USERS + 1):
            for _ in range(LOGGED + 3):
                await refused(uid)
        assert len(told_of(1000)) == LOGGED
        assert told_of(1000)[0].startswith("refused Chown to uid 1000, pid 7: permission denied")
        assert told_of(1000 + USERS) == [], "so many users are counted at a time"
        caplog.clear()
        while not told_of(1000):  # noqa: ASYNC110  # the journal sends no event
            await asyncio.sleep(0)
        assert told_of(1000) == ["refused 3 more calls to uid 1000 in 0 s"]
        caplog.clear()
        await refused(1000)
        assert len(told_of(1000)) == 1, "the next minute begins anew"
