"""Authorization: each change passes the gate, the journal has who asked, and a played polkit is asked.

The gate opens to nobody by default. The authority answers, refuses, asks for a password, hangs, or is not there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from kerntune import errors
from kerntune.api import authorization as module
from kerntune.api import names
from kerntune.api.authorization import (
    ANSWER,
    LOGGED,
    PROMPTS_OF_USER,
    QUESTIONS_OF_USER,
    USERS,
    WAITING,
    Authorization,
    Polkit,
    needed,
)
from kerntune.api.calls import CHANGE_ASKED, Calls
from kerntune.api.contract import ACTION, interface_files
from kerntune.api.holds import HeldObject, Holds
from kerntune.api.manager import Manager
from kerntune.api.names import ACTION_MANAGE, ACTION_SET
from kerntune.api.typed import CpuGovernor, HugePages, IoScheduler, Memory
from kerntune.daemon.demo import demo_host
from kerntune.dbus.intake import Places
from kerntune.dbus.introspection import load, parse, snake
from kerntune.dbus.messages import Variant
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.server import PLACE
from kerntune.dbus.service import Caller, Service
from kerntune.engine import reconciler
from kerntune.engine.claims import Claims, Edit
from kerntune.engine.requests import edit_for
from kerntune.engine.workers import READERS
from kerntune.tunables import REGISTRY
from tests.api.alone import Alone, NoBus, NoFiles, calls_on
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus
from tests.unit.lab import BOUND, Lab, running

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
    Method(names.MANAGER, "Repair", names.ACTION_MANAGE, ({},)),
    Method(names.HUGE_PAGES, "SetCount", names.ACTION_SET_MEMORY, (0, 10, {})),
    Method(names.CPU_GOVERNOR, "SetGovernor", names.ACTION_SET, ("*", "powersave", {})),
    Method(names.IO_SCHEDULER, "SetScheduler", names.ACTION_SET, ("sda", "none", {})),
    Method(names.MEMORY, "SetOvercommit", names.ACTION_SET_MEMORY, ("always", 95, {})),
]
HELD = {(names.MANAGER, "Hold"), (names.HOLD, "Release")}
OPEN = {"Plan", "Verify", "Describe", "ListProfiles"}
BASELINE = {"baseline": Variant("b", True)}
ENDABLE = [each for each in CHANGES if each.member != "Reload"]
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
        with pytest.raises(errors.NotAuthorized, match="polkit"):
            await found.call(method, STRANGER)
        assert (found.files.done, found.claims.by_id, found.lab.engine.observed.readings) == ([], {}, before)
        await found.call(method, ROOT)
        of_files = method.action == names.ACTION_MANAGE and method.member != "Repair"
        assert found.files.done == ([method.member] if of_files else [])


async def test_a_plan_of_a_reload_shows_what_is_in_files_and_passes_the_gate() -> None:
    plan = Method(names.MANAGER, "Plan", names.ACTION_MANAGE, ([], {"reload": Variant("b", True)}))
    async with scene() as found:
        for allowed in (ALL - {names.ACTION_MANAGE}, {names.ACTION_MANAGE}):
            polkit = found.permit(*allowed)
            if names.ACTION_MANAGE in allowed:
                await found.call(plan, STRANGER)
            else:
                with pytest.raises(errors.AccessDenied, match=names.ACTION_MANAGE):
                    await found.call(plan, STRANGER)
            assert polkit.asked == [names.ACTION_MANAGE]
        for others in ({"reset": Variant("b", True)}, {"profile": Variant("s", "")}, {"persist": Variant("b", True)}):
            with pytest.raises(errors.InvalidArgs, match="one thing at a time"):
                await found.call(plan._replace(args=([], {"reload": Variant("b", True), **others})), ROOT)
        with pytest.raises(errors.InvalidArgs, match="takes no settings"):
            await found.call(plan._replace(args=([DRIVE], {"reload": Variant("b", True)})), ROOT)
        off = Variant("b", False)
        assert not (await found.call(plan._replace(args=([], {"reload": off})), ROOT))[0]


async def test_a_plan_of_what_its_caller_has_claimed_already_changes_nothing() -> None:
    settings = Method(names.MANAGER, "Set", "", ([DRIVE, POOL], {}))
    async with scene() as found:
        assert (await found.call(settings, ROOT))[0]
        for member in ("Plan", "Set"):
            changed, rows = await found.call(settings._replace(member=member), ROOT)
            assert (changed, {row[5] for row in rows}) == (False, {"satisfied"})
        # It would be another's claim.
        assert (await found.call(settings._replace(member="Plan"), STRANGER))[0]


async def test_a_reset_to_the_values_of_the_host_passes_the_gate() -> None:
    reset = Method(names.MANAGER, "Reset", names.ACTION_MANAGE, (BASELINE,))
    async with scene() as found:
        with pytest.raises(errors.NotAuthorized):
            await found.call(reset, STRANGER)
        assert not found.files.done
        await found.call(reset, ROOT)
        assert found.files.done == ["Reset"]


@every_change
async def test_polkit_decides_by_the_action_of_the_change(method: Method) -> None:
    """A caller with that one action passes; a caller with all other actions does not."""
    async with scene() as found:
        others = found.permit(*(ALL - {method.action}))
        with pytest.raises(errors.NotAuthorized, match=method.action):
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
        with pytest.raises(errors.NotAuthorized):
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
        with pytest.raises(errors.NotAuthorized, match=lacks):
            await found.call(hold, STRANGER)
        assert not found.claims.by_id
        polkit = found.permit(*needs)
        await found.call(hold, STRANGER)
        assert names.ACTION_MANAGE not in polkit.asked
        with pytest.raises(errors.NotAuthorized, match=names.ACTION_MANAGE):
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


@pytest.mark.parametrize("method", ENDABLE, ids=[each.member for each in ENDABLE])
async def test_a_change_ends_with_its_caller_only_where_the_call_says_so(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kerntune.api.calls.MOMENT", math.inf)  # it has begun by then
    *args, _ = method.args
    async with scene() as found:
        service = found.calls.service
        assert isinstance(service, Alone)
        service.leaves(":1.1")
        found.files.ready.clear()
        with pytest.raises(CallerGone, match="has left the bus"):
            async with asyncio.timeout(BOUND):
                await found.call(method._replace(args=(*args, {"cancel-on-leave": Variant("b", True)})), ROOT)
        found.files.ready.set()
        assert (found.files.done, found.claims.by_id) == ([], {})
        await found.call(method, ROOT)


@pytest.mark.parametrize("action", ["", "none", "anything"])
async def test_only_root_may_call_what_names_no_action(action: str) -> None:
    gate = Authorization(Service({}, names.ROOT))
    with pytest.raises(errors.NotAuthorized, match="only root may call Chown"):
        await gate.permit(Caller(":1.1", STRANGER, 0, True, "Chown", {ACTION: action}), REGISTRY)
    permit = await gate.permit(Caller(":1.1", ROOT, 0, True, "Chown", {ACTION: action}))
    assert permit.caller.uid == ROOT


async def test_only_root_may_change_no_tunable_at_all() -> None:
    gate = Authorization(Service({}, names.ROOT))
    with pytest.raises(errors.NotAuthorized, match="only root"):
        await gate.permit(caller(STRANGER, "Set"), ())


@pytest.mark.parametrize(("uid", "owner"), [(ROOT, ROOT), (STRANGER, ROOT), (STRANGER, STRANGER)])
async def test_a_permitted_call_gives_its_place_to_others_of_its_user(uid: int, owner: int) -> None:
    """It may take long from now on."""
    places = Places(1, lambda _uid: None, lambda _uid: None)
    async with scene() as found:
        found.permit(names.ACTION_MANAGE)
        asks, gate = caller(uid, "Release", names.HOLD), Authorization(found.calls.service)
        for permitted in (gate.permit(asks), gate.permit_owner(asks, owner, "hold 1")):
            PLACE.set(places.take(uid))
            await permitted
            assert not places.taken


async def test_what_anybody_may_ask_for_takes_no_thread_of_permitted_calls() -> None:
    gate = threading.Event()
    async with scene() as found:
        permitted = [found.lab.engine.threads.read(gate.wait, 2 * BOUND) for _ in range(READERS)]
        try:
            async with asyncio.timeout(BOUND):
                await found.call(Method(names.MANAGER, "Plan", "", ([DRIVE], {})), STRANGER)
                await found.call(Method(names.MANAGER, "Verify", "", ()), STRANGER)
        finally:
            gate.set()
        await asyncio.gather(*permitted)


async def test_a_request_that_takes_long_to_check_is_authorised_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller without permission makes no work. A caller with it is told what is wrong with the request."""
    wrong = Method(names.MANAGER, "Set", "", ([["io-scheduler", "nosuch", "none"]], {}))
    async with scene() as found:
        with pytest.raises(errors.NoSuchTarget):
            await found.call(wrong, STRANGER)
        monkeypatch.setattr("kerntune.engine.reconciler.SMALL", 0)
        with pytest.raises(errors.NotAuthorized):
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

    async def test_every_method_that_changes_something_is_a_line(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        *others, repair = sorted(CHANGES, key=lambda each: each.member == "Repair")
        hold = Method(names.MANAGER, "Hold", "", ([POOL], "job", "", {}))
        async with scene() as found:
            for method in (*others, hold):
                await found.call(method, ROOT)
            (begun,) = found.claims.holds.values()
            await HeldObject(found.calls, begun, []).release(caller(ROOT, "Release", names.HOLD), {})
            found.lab.kernel.disks["sda"].scheduler = "bfq"
            await found.call(repair, ROOT)
        lines = [vars(record) for record in caplog.records if getattr(record, "MESSAGE_ID", "") == CHANGE_ASKED]
        assert [line["KERNTUNE_CAUSE"] for line in lines] == [
            *(each.member for each in others),
            "Hold",
            "Release",
            "Repair",
        ]

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
            with pytest.raises(errors.NotAuthorized):
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


# Questions to a played polkit


POLKIT = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
XML = """
<node>
  <interface name="org.freedesktop.PolicyKit1.Authority">
    <method name="CheckAuthorization">
      <arg type="(sa{sv})" name="subject" direction="in"/>
      <arg type="s" name="action_id" direction="in"/>
      <arg type="a{ss}" name="details" direction="in"/>
      <arg type="u" name="flags" direction="in"/>
      <arg type="s" name="cancellation_id" direction="in"/>
      <arg type="(bba{ss})" name="result" direction="out"/>
    </method>
    <method name="CancelCheckAuthorization">
      <arg type="s" name="cancellation_id" direction="in"/>
    </method>
  </interface>
</node>
"""

YES, NO, CHALLENGE = [True, False, {}], [False, False, {}], [False, True, {}]
HANG = None


class Authority:
    """A polkit that gives its answers in order: HANG is no answer, and an exception is an error reply.

    Any number of calls may hang.
    """

    service: Service

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, str, int]] = []
        self.ids: list[str] = []
        self.hanging = asyncio.Event()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()

    async def check_authorization(self, caller: Caller, *args: Any) -> list[Any]:
        subject, action, _details, flags, cancellation = args
        self.asked.append((subject[0], subject[1]["name"].value, action, flags))
        self.ids.append(cancellation)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is HANG:
            self.hanging.set()
            with self.service.connection.aside():
                await asyncio.Event().wait()
        assert isinstance(answer, list)
        return answer

    async def cancel_check_authorization(self, caller: Caller, cancellation: str) -> None:
        self.cancelled.put_nowait(cancellation)


@asynccontextmanager
async def authority(bus: PrivateBus, *answers: Any) -> AsyncIterator[Authority]:
    played = Authority(*answers)
    service = played.service = Service({each.name: each for each in parse(XML)}, PATH, address=bus.address)
    await service.connect(POLKIT)
    service.publish(PATH, {f"{POLKIT}.Authority": played})
    service.connection.open()
    try:
        yield played
    finally:
        await service.connection.close()


async def authorise(service: Service, caller: Caller, action: str, **times: float) -> None:
    await Polkit(service).authorise(caller, action, **times)


def somebody(name: str, *, interactive: bool = False, uid: int = 1000) -> Caller:
    return Caller(name, uid, 1, interactive)


class TestAnswers:
    async def test_polkit_permits(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, YES) as polkit:
            await authorise(service, somebody(":1.7"), ACTION_SET)
            assert polkit.asked == [("system-bus-name", ":1.7", ACTION_SET, 0)]

    @pytest.mark.parametrize(("action", "advice"), [(ACTION_SET, "usermod -aG kerntune"), (ACTION_MANAGE, "sudo")])
    async def test_polkit_refuses(self, bus: PrivateBus, action: str, advice: str) -> None:
        async with lab.serving(bus) as service, authority(bus, NO):
            with pytest.raises(errors.NotAuthorized, match=f"uid 1000 .*{action}.*{advice}") as caught:
                await authorise(service, somebody(":1.7", interactive=True), action)
            assert ("usermod" in str(caught.value)) == (action == ACTION_SET)

    async def test_a_caller_without_interaction_is_not_asked_for_a_password(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, CHALLENGE) as polkit:
            with pytest.raises(errors.InteractiveAuthorizationRequired, match="usermod"):
                await authorise(service, somebody(":1.7"), ACTION_SET)
            assert [flags for *_, flags in polkit.asked] == [0]

    async def test_a_person_gives_the_password(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, CHALLENGE, YES) as polkit:
            await authorise(service, somebody(client.name, interactive=True), ACTION_SET)
            assert [flags for *_, flags in polkit.asked] == [0, 1]
            assert len(set(polkit.ids)) == 2

    @pytest.mark.parametrize(("answer", "what"), [(NO, "does not let"), (CHALLENGE, "nobody was there")])
    async def test_a_person_does_not_give_the_password(self, bus: PrivateBus, answer: list[Any], what: str) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, CHALLENGE, answer):
            with pytest.raises(errors.NotAuthorized, match=what):
                await authorise(service, somebody(client.name, interactive=True), ACTION_SET)


class TestNoAnswer:
    async def test_without_polkit_nothing_is_permitted(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            async with asyncio.timeout(2):
                with pytest.raises(errors.NotAuthorized, match="Is polkit running"):
                    await authorise(service, somebody(":1.7", interactive=True), ACTION_SET)

    async def test_a_silent_polkit_permits_nothing(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, HANG) as polkit:
            with pytest.raises(errors.NotAuthorized, match=r"did not say within 0.05 s.*Is polkit running"):
                await authorise(service, somebody(":1.7", interactive=True), ACTION_SET, timeout=0.05)
            assert await polkit.cancelled.get() == polkit.ids[0]

    def test_polkit_is_waited_for_longer_than_it_can_be_stuck(self) -> None:
        """polkitd gives its rules 15 s, and can lose these with a good answer at their end; busctl waits for 25 s."""
        assert 15 < ANSWER < 25

    async def test_a_prompt_that_nobody_answers_ends(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, CHALLENGE, HANG) as polkit:
            caller = somebody(client.name, interactive=True)
            with pytest.raises(errors.NotAuthorized, match="nobody authenticated"):
                await authorise(service, caller, ACTION_SET, interactive_timeout=0.05)
            assert await polkit.cancelled.get() == polkit.ids[1]

    async def test_an_action_that_polkit_does_not_know(self, bus: PrivateBus) -> None:
        unknown = errors.Failed(f"Action {ACTION_SET} is not registered")
        async with lab.serving(bus) as service, authority(bus, unknown):
            with pytest.raises(errors.NotAuthorized, match="Reinstall"):
                await authorise(service, somebody(":1.7"), ACTION_SET)

    async def test_others_do_not_wait_for_a_silent_polkit(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, HANG, YES) as polkit:
            stuck = asyncio.create_task(authorise(service, somebody(":1.7"), ACTION_SET))
            await polkit.hanging.wait()
            await authorise(service, somebody(":1.8"), ACTION_SET)
            assert await client.call(lab.ROOT, lab.IFACE, "Both") == [1, "two"]
            stuck.cancel()
            assert await polkit.cancelled.get() == polkit.ids[0]

    async def test_one_user_does_not_take_all_places(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, *[HANG] * QUESTIONS_OF_USER, YES) as played:
            polkit = Polkit(service)
            stuck = [asyncio.create_task(polkit.authorise(somebody(f":1.{n}"), ACTION_SET)) for n in range(WAITING)]
            while len(played.asked) < QUESTIONS_OF_USER:
                await service.connection.call(lab.NAME, lab.ROOT, lab.IFACE, "Both", timeout=5)
            with pytest.raises(errors.LimitsExceeded, match="wait"):
                await polkit.authorise(somebody(":1.99"), ACTION_SET)
            await polkit.authorise(somebody(":1.99", uid=2000), ACTION_SET)
            assert len(played.asked) == QUESTIONS_OF_USER + 1
            for task in stuck:
                task.cancel()
            await asyncio.wait(stuck)
            assert not polkit.users

    async def test_open_prompts_hold_up_no_other_question(self, bus: PrivateBus) -> None:
        """The next prompt of that user waits for a place; its quick question, and another user's prompt, do not."""
        prompts = [CHALLENGE] * (PROMPTS_OF_USER + 1) + [HANG] * PROMPTS_OF_USER
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, *prompts) as played:
            polkit = Polkit(service)
            asks = somebody(client.name, interactive=True)
            stuck = [asyncio.create_task(polkit.authorise(asks, ACTION_MANAGE)) for _ in range(PROMPTS_OF_USER + 1)]
            while len(played.asked) < len(prompts):
                await service.connection.call(lab.NAME, lab.ROOT, lab.IFACE, "Both", timeout=5)
            played.answers += [YES, CHALLENGE, YES]
            await polkit.authorise(somebody(client.name), ACTION_SET)
            await polkit.authorise(somebody(client.name, interactive=True, uid=2000), ACTION_MANAGE)
            assert len(played.asked) == len(prompts) + 3, "the last prompt of the first user is not made"
            for task in stuck:
                task.cancel()
            await asyncio.wait(stuck)


class TestAuthorityOrClientGoes:
    async def test_after_a_restart_of_polkit_the_next_is_asked(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            polkit = Polkit(service)
            for _ in range(2):
                async with authority(bus, YES) as played:
                    await polkit.authorise(somebody(":1.7"), ACTION_SET)
                    assert len(played.asked) == 1

    async def test_the_question_is_withdrawn_when_the_client_leaves(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, CHALLENGE, HANG) as polkit:
            async with lab.client(bus) as client:
                caller = somebody(client.name, interactive=True)
                asking = asyncio.create_task(authorise(service, caller, ACTION_SET))
                await polkit.hanging.wait()
            with pytest.raises(CallerGone):
                await asking
            assert await polkit.cancelled.get() == polkit.ids[1]

    async def test_the_question_is_withdrawn_when_the_daemon_stops(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, CHALLENGE, HANG) as polkit:
            asking = asyncio.create_task(authorise(service, somebody(client.name, interactive=True), ACTION_SET))
            await polkit.hanging.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await polkit.cancelled.get() == polkit.ids[1]
