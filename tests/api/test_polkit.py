"""Questions to polkit: a played authority answers, refuses, asks for a password, hangs, or is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kerntune import errors
from kerntune.api.authorization import ANSWER, PROMPTS_OF_USER, QUESTIONS_OF_USER, WAITING, Polkit
from kerntune.api.names import ACTION_MANAGE, ACTION_SET
from kerntune.dbus.introspection import parse
from kerntune.dbus.name_watch import CallerGone
from kerntune.dbus.service import Caller, Service
from tests.dbus import lab
from tests.harness.privatebus import PrivateBus

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

    @pytest.mark.parametrize(("action", "advice"), [(ACTION_SET, "adduser .* kerntune"), (ACTION_MANAGE, "sudo")])
    async def test_polkit_refuses(self, bus: PrivateBus, action: str, advice: str) -> None:
        async with lab.serving(bus) as service, authority(bus, NO):
            with pytest.raises(errors.AccessDenied, match=f"uid 1000 .*{action}.*{advice}") as caught:
                await authorise(service, somebody(":1.7", interactive=True), action)
            assert ("adduser" in str(caught.value)) == (action == ACTION_SET)

    async def test_a_caller_without_interaction_is_not_asked_for_a_password(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, CHALLENGE) as polkit:
            with pytest.raises(errors.InteractiveAuthorizationRequired, match="adduser"):
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
            with pytest.raises(errors.AccessDenied, match=what):
                await authorise(service, somebody(client.name, interactive=True), ACTION_SET)

    async def test_root_passes_without_polkit(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            await authorise(service, somebody(":1.7", uid=0), ACTION_MANAGE)


class TestNoAnswer:
    async def test_without_polkit_nothing_is_permitted(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service:
            async with asyncio.timeout(2):
                with pytest.raises(errors.AccessDenied, match="is polkit running"):
                    await authorise(service, somebody(":1.7", interactive=True), ACTION_SET)

    async def test_a_silent_polkit_permits_nothing(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, authority(bus, HANG) as polkit:
            with pytest.raises(errors.AccessDenied, match=r"did not say within 0.05 s.*is polkit running"):
                await authorise(service, somebody(":1.7", interactive=True), ACTION_SET, timeout=0.05)
            assert await polkit.cancelled.get() == polkit.ids[0]

    def test_polkit_is_waited_for_longer_than_it_can_be_stuck(self) -> None:
        """polkitd gives its rules 15 s, and can lose these with a good answer at their end; busctl waits for 25 s."""
        assert 15 < ANSWER < 25

    async def test_a_prompt_that_nobody_answers_ends(self, bus: PrivateBus) -> None:
        async with lab.serving(bus) as service, lab.client(bus) as client, authority(bus, CHALLENGE, HANG) as polkit:
            caller = somebody(client.name, interactive=True)
            with pytest.raises(errors.AccessDenied, match="nobody authenticated"):
                await authorise(service, caller, ACTION_SET, interactive_timeout=0.05)
            assert await polkit.cancelled.get() == polkit.ids[1]

    async def test_an_action_that_polkit_does_not_know(self, bus: PrivateBus) -> None:
        unknown = errors.Failed(f"Action {ACTION_SET} is not registered")
        async with lab.serving(bus) as service, authority(bus, unknown):
            with pytest.raises(errors.AccessDenied, match="reinstall"):
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
            assert not played.answers  # the last prompt of the first user was not made
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
