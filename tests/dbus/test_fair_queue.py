"""The order in which messages of many users are looked at, and those that are not kept at all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kerntune import errors
from kerntune.dbus import intake as module
from kerntune.dbus.fair_queue import (
    FEW,
    LONG,
    MAX_BODY,
    OF_USER,
    OVERHEAD,
    TOTAL,
    UNANSWERED,
    USER,
    WAITING,
    FairQueue,
)
from kerntune.dbus.framing import Frame
from kerntune.dbus.intake import ASKING, BATCH, HEAVY, SLICE, STALE, Intake
from kerntune.dbus.messages import Message, MessageFlag, Variant, marshalled
from kerntune.dbus.users import UNKNOWN, Users


def frame(size: int = 0, *, number: int = 0, flags: MessageFlag = MessageFlag.NONE) -> Frame:
    """Return a message of about so many bytes."""
    call = Message("a.b", "/", "a.b", "M", flags=flags, signature="uay", body=[number, bytes(size)], serial=1)
    return Frame(marshalled(call))


def frames(count: int) -> list[Frame]:
    """Return so many short messages, no two alike."""
    return [frame(number=number) for number in range(count)]


class Bus:
    """A played bus, which knows the user of each connection: Bus(_7=1000) has :1.7 of uid 1000."""

    def __init__(self, **connections: int) -> None:
        self.connections = {f":1.{name[1:]}": uid for name, uid in connections.items()}
        self.asked: list[str] = []
        self.asking = self.most = 0
        self.error: errors.KerntuneError | None = None
        self.open = asyncio.Event()  # while it is clear, no question is answered
        self.open.set()

    async def credentials(self, name: str) -> dict[str, Any]:
        self.asked.append(name)
        self.asking += 1
        self.most = max(self.most, self.asking)
        await self.open.wait()
        self.asking -= 1
        if self.error:
            raise self.error
        if name not in self.connections:
            raise errors.Unreachable(f"the name {name} has no owner")
        return {"UnixUserID": Variant("u", self.connections[name])}


class Taken:
    """An intake, and what it has handed over: the frame with the uid of its sender."""

    def __init__(self, bus: Bus, users: Users) -> None:
        self.bus, self.users = bus, users
        self.got: asyncio.Queue[tuple[Frame, int]] = asyncio.Queue()
        self.intake = Intake(lambda frame, uid: self.got.put_nowait((frame, uid)), users)

    async def frames(self, count: int) -> list[Frame]:
        return [(await self.got.get())[0] for _ in range(count)]

    async def uids(self, count: int) -> list[int]:
        return [(await self.got.get())[1] for _ in range(count)]

    async def has_asked(self) -> None:
        """Wait until the bus has answered all questions."""
        while self.bus.asking or self.intake.queue.aside:  # noqa: ASYNC110  # the intake sends no event
            await asyncio.sleep(0)

    def put_long_ago(self, sender: bytes, message: Frame) -> None:
        """Queue a message of a sender that is known as if it had waited for long."""
        uid = self.users.known(sender.decode())
        self.intake.queue.put(uid, sender, message, asyncio.get_running_loop().time() - 2 * STALE)


async def taking(bus: Bus | None = None) -> Taken:
    """Return an intake that knows :1.1, of uid 1, and :1.2, of uid 2; it asks `bus` from now on."""
    bus = bus or Bus()
    users, there = Users(bus.credentials), bus.connections
    bus.connections = {":1.1": 1, ":1.2": 2}
    for name in bus.connections:
        await users.of(name)
    bus.connections, bus.asked = there, []
    return Taken(bus, users)


def drain(queue: FairQueue) -> list[Frame]:
    return [queue.pop().frame for _ in range(len(queue))]


class TestOrder:
    def test_one_sender_keeps_its_order(self) -> None:
        queue, sent = FairQueue(), [frame(size) for size in (5000, 1, 300, 0)]
        for each in sent:
            assert queue.put(1, b":1.1", each)
        assert drain(queue) == sent

    def test_a_late_sender_waits_for_one_message_of_a_greedy_one(self) -> None:
        queue = FairQueue()
        for _ in range(100):
            queue.put(1, b":1.1", frame(1000))
        queue.pop()
        late = frame()
        queue.put(2, b":1.2", late)
        assert queue.pop().frame is late

    def test_work_is_shared_by_bytes_and_not_by_messages(self) -> None:
        queue, long, short = FairQueue(), frame(20 * OVERHEAD), frame()
        for _ in range(5):
            queue.put(1, b":1.1", long)
        for _ in range(15):
            queue.put(2, b":1.2", short)
        assert drain(queue)[:10] == [short] * 10

    def test_a_user_who_comes_again_and_again_has_saved_nothing_up(self) -> None:
        """It starts where the others are, each time, and takes no more than its share from one with a backlog."""
        queue = FairQueue()
        for number in range(100):
            queue.put(1, b":1.1", frame(number=number))
        for _ in range(50):
            queue.pop()
        uids = []
        for _ in range(20):
            queue.put(2, b":1.2", frame())
            while (uid := queue.pop().uid) != 2:
                uids.append(uid)
            uids.append(uid)
        assert 15 <= uids.count(1) <= 25

    def test_a_user_who_was_idle_has_saved_nothing_up(self) -> None:
        queue, one, two = FairQueue(), frame(), frame(flags=MessageFlag.NO_AUTOSTART)
        for _ in range(50):
            queue.put(1, b":1.1", one)
            queue.pop()
        for _ in range(3):
            queue.put(2, b":1.2", two)
            queue.put(1, b":1.1", one)
        assert drain(queue) == [two, one] * 3


class TestUsers:
    def test_fifty_connections_of_one_user_have_the_share_of_one(self) -> None:
        queue = FairQueue()
        for number in range(50):
            for _ in range(10):
                assert queue.put(1, f":1.{number}".encode(), frame())
        for _ in range(20):
            assert queue.put(2, b":1.99", frame())
        assert [queue.pop().uid for _ in range(40)].count(2) == 20

    def test_the_connections_of_a_user_have_equal_shares(self) -> None:
        queue = FairQueue()
        for _ in range(100):
            queue.put(1, b":1.1", frame())
        for _ in range(5):
            queue.put(1, b":1.2", frame())
        for _ in range(30):
            queue.put(2, b":1.3", frame())
        taken = [queue.pop().sender for _ in range(20)]
        assert (taken.count(b":1.1"), taken.count(b":1.2"), taken.count(b":1.3")) == (5, 5, 10)

    def test_a_connection_that_comes_late_waits_for_one_message_of_each_of_its_user(self) -> None:
        queue = FairQueue()
        for number in range(50):
            for _ in range(5):
                queue.put(1, f":1.{number}".encode(), frame(1000))
        for _ in range(60):
            queue.pop()
        queue.put(1, b":1.99", frame(1000))
        assert b":1.99" in {queue.pop().sender for _ in range(51)}

    def test_a_user_that_is_paused_has_no_turn_and_loses_none(self) -> None:
        queue = FairQueue()
        queue.pause(1)
        for _ in range(3):
            queue.put(1, b":1.1", frame())
            queue.put(2, b":1.2", frame())
        assert [queue.pop().uid for _ in range(3)] == [2] * 3
        assert queue.next is None
        assert len(queue) == 3
        queue.resume(1)
        assert [queue.pop().uid for _ in range(3)] == [1] * 3
        assert queue.idle

    def test_surplus_calls_of_a_connection_are_refused_while_its_user_is_paused(self) -> None:
        queue = FairQueue({":1.1": 2, ":1.2": 0}.__getitem__, 4)
        queue.pause(1)
        for sender in (b":1.1", b":1.2"):
            for number in range(5):
                assert queue.put(1, sender, frame(number=number))
        refused = [queue.pop() for _ in range(4)]
        assert [turn.sender for turn in refused] == [b":1.1"] * 3 + [b":1.2"]
        assert not any(turn.frame.whole for turn in refused)
        assert queue.next is None
        queue.resume(1)
        assert [frame.whole for frame in drain(queue)] == [True] * 6

    def test_a_user_has_so_many_bytes_and_its_quiet_connections_a_little_more(self) -> None:
        queue, long = FairQueue(), frame(100 << 10)
        for number in range(USER // len(long.data)):
            assert queue.put(1, f":1.{number}".encode(), long)
        queue.put(1, b":1.1", long)
        queue.put(1, b":1.77", frame())
        queue.put(2, b":1.78", long)
        assert sorted(turn.sender for turn in (queue.pop() for _ in range(len(queue))) if not turn.frame.whole) == [
            b":1.1"
        ]

    def test_a_user_has_so_many_messages(self) -> None:
        queue = FairQueue()
        for number in range(OF_USER // WAITING):
            for _ in range(WAITING):
                assert queue.put(1, f":1.{number}".encode(), frame())
        assert len(queue) == OF_USER
        assert [queue.put(1, b":1.99", frame()) for _ in range(FEW + 1)] == [True] * FEW + [False]
        assert queue.put(2, b":1.98", frame())


class TestLimits:
    def test_calls_that_nobody_waits_for_are_dropped_first(self) -> None:
        queue, quiet = FairQueue(), frame(flags=MessageFlag.NO_REPLY_EXPECTED)
        taken = [queue.put(1, b":1.1", quiet) for _ in range(UNANSWERED + 5)]
        assert taken.count(True) == UNANSWERED
        assert queue.put(1, b":1.1", frame())
        assert queue.put(2, b":1.2", quiet)

    def test_a_sender_has_so_many_messages(self) -> None:
        queue = FairQueue()
        assert [queue.put(1, b":1.1", frame()) for _ in range(WAITING + 1)] == [True] * WAITING + [False]

    def test_only_the_header_of_too_long_messages_is_kept(self) -> None:
        queue, long = FairQueue(), frame(LONG // 2)
        assert [queue.put(1, b":1.1", long) for _ in range(4)] == [True] * 4
        assert [each.whole for each in drain(queue)] == [True, False, False, False]
        assert not queue.put(1, b":1.1", frame(LONG + 1, flags=MessageFlag.NO_REPLY_EXPECTED))

    def test_all_users_together_have_so_many_bytes(self) -> None:
        queue, size = FairQueue(), len(frame(100 << 10).data)
        kept = [queue.put(n, f":1.{n}".encode(), frame(100 << 10)) for n in range(TOTAL // size + 3)]
        assert all(kept)
        assert [each.whole for each in drain(queue)].count(False) == 3
        assert queue.put(1, b":1.1", frame(LONG // 2))
        assert queue.pop().frame.whole


class TestStrangers:
    """Senders whose user is not known yet."""

    async def test_their_messages_wait_until_the_bus_has_told_the_user(self) -> None:
        taken, sent = await taking(Bus(_7=1000)), frames(3)
        for each in sent:
            assert taken.intake.put(b":1.7", each)
        taken.intake.run(more=False)
        assert taken.got.empty()
        assert [await taken.got.get() for _ in sent] == [(each, 1000) for each in sent]
        assert taken.bus.asked == [":1.7"]
        taken.intake.put(b":1.7", sent[0])
        taken.intake.run(more=False)
        assert await taken.got.get() == (sent[0], 1000)
        assert taken.bus.asked == [":1.7"]

    async def test_all_messages_of_one_that_has_left_are_dropped(self) -> None:
        taken = await taking(Bus(_8=8))
        for sender in (b":1.7", b":1.7", b":1.8"):
            taken.intake.put(sender, frame())
        assert await taken.uids(1) == [8]
        await taken.has_asked()
        assert taken.intake.queue.idle

    async def test_the_bus_is_asked_a_few_questions_at_once(self) -> None:
        bus = Bus(**{f"_{number}": number for number in range(10, 100)})
        taken = await taking(bus)
        bus.open.clear()
        for number in range(10, 100):
            taken.intake.put(f":1.{number}".encode(), frame())
        taken.intake.put(b":1.1", frame())
        taken.intake.run(more=False)
        assert taken.got.get_nowait()[1] == 1, "a known sender waits for no question"
        await asyncio.sleep(0)
        bus.open.set()
        assert set(await taken.uids(90)) == set(range(10, 100))
        assert bus.most == ASKING

    async def test_a_limited_number_of_them_waits_for_the_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "ASIDE", 2)
        taken = await taking()
        assert [taken.intake.put(f":1.{number}".encode(), frame()) for number in (7, 7, 8, 9, 7, 1)] == [
            *(True, True, True),
            *(False, True, True),
        ]
        taken.intake.stop()


class TestDeparted:
    """Senders that may have left the bus, because their message has waited for long."""

    async def test_all_messages_of_one_that_has_left_are_dropped(self) -> None:
        taken = await taking(Bus(_2=2))
        for _ in range(3):
            taken.put_long_ago(b":1.1", frame())
            taken.put_long_ago(b":1.2", frame())
        taken.intake.run(more=False)
        assert await taken.uids(3) == [2] * 3
        await taken.has_asked()
        assert taken.intake.queue.idle
        assert sorted(taken.bus.asked) == [":1.1", ":1.2"], "one question for all that it has sent"

    async def test_one_that_was_forgotten_while_it_waited_is_heard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kerntune.dbus.users.REMEMBERED", 2)
        taken, sent = await taking(Bus(_1=1, _8=8, _9=9)), frames(3)
        taken.intake.pause(1)
        taken.put_long_ago(b":1.1", sent[0])
        for name in (":1.8", ":1.9"):
            await taken.users.of(name)
        assert taken.users.known(":1.1") is None
        taken.bus.open.clear()
        taken.intake.put(b":1.1", sent[1])
        taken.intake.resume(1)
        await asyncio.sleep(0)
        taken.bus.open.set()
        assert set(await taken.frames(2)) == set(sent[:2])
        await taken.has_asked()
        taken.intake.put(b":1.1", sent[2])
        taken.intake.run(more=False)
        assert await taken.frames(1) == [sent[2]]
        assert taken.intake.queue.idle

    async def test_one_that_was_asked_about_is_heard_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long everything takes: the bus is not asked about one message again and again."""
        monkeypatch.setattr(module, "STALE", -1.0)
        taken, sent = await taking(Bus(_1=1, _2=2)), frames(4)
        for each in sent:
            taken.intake.put(b":1.1", each)
        taken.intake.run(more=False)
        assert await taken.frames(4) == sent
        assert taken.bus.asked == [":1.1"] * 4

    async def test_one_that_is_known_is_heard_though_the_bus_is_slow(self) -> None:
        taken = await taking()
        taken.bus.error = errors.Failed("the bus did not answer in time")
        taken.put_long_ago(b":1.1", frame())
        taken.intake.put(b":1.3", frame())
        taken.intake.run(more=False)
        assert set(await taken.uids(2)) == {1, UNKNOWN}

    def test_a_question_costs_the_sender_no_turn(self) -> None:
        queue = FairQueue()
        queue.put(1, b":1.1", frame())
        for _ in range(3):
            queue.set_aside()
            queue.identify(b":1.1", 1)
        queue.put(1, b":1.2", frame())
        queue.put(1, b":1.2", frame())
        assert [queue.pop().sender for _ in range(3)] == [b":1.1", b":1.2", b":1.2"]

    async def test_messages_that_come_during_the_question_keep_their_places(self) -> None:
        taken, sent = await taking(Bus(_1=1)), frames(3)
        taken.put_long_ago(b":1.1", sent[0])
        taken.intake.run(more=False)
        assert taken.intake.queue.is_aside(b":1.1")
        for each in sent[1:]:
            taken.intake.put(b":1.1", each)
        taken.intake.run(more=False)
        assert await taken.frames(3) == sent


class TestIntake:
    async def test_the_first_short_messages_of_a_read_are_taken_at_once_where_nothing_waits(self) -> None:
        taken = await taking()
        taken.intake.run(more=False)
        taken.intake.put(b":1.1", frame(2 * HEAVY))
        assert taken.got.empty()
        taken.intake.run(more=False)
        await taken.frames(1)
        taken.intake.run(more=False)
        for _ in range(BATCH + 3):
            taken.intake.put(b":1.1", frame())
        assert (taken.got.qsize(), len(taken.intake.queue)) == (BATCH, 3)
        taken.intake.run(more=False)
        await taken.frames(BATCH + 3)
        taken.intake.pause(2)
        taken.intake.put(b":1.1", frame())
        assert taken.got.empty(), "a user is paused: all have their turns"
        taken.intake.stop()

    async def test_only_root_may_send_a_long_body(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "QUIET", 0.0)
        taken = await taking(Bus(_3=0))
        await taken.users.of(":1.3")
        longest = MAX_BODY - 8  # with the number and the length of the array
        for sender, size in ((b":1.1", longest), (b":1.1", longest + 1), (b":1.3", longest + 1)):
            taken.intake.put(sender, frame(size))
            taken.intake.run(more=False)
        got = [await taken.got.get() for _ in range(3)]
        assert sorted((uid, found.whole) for found, uid in got) == [(0, True), (1, False), (1, True)]

    async def test_other_tasks_have_their_turn_between_messages(self) -> None:
        seen: list[str] = []

        def receive(frame: Frame, uid: int) -> None:
            time.sleep(2 * SLICE)  # what parsing does: it holds the loop
            seen.append("message")

        intake = Intake(receive, (await taking()).users)
        for _ in range(3):
            intake.put(b":1.1", frame())
        intake.run(more=False)
        while intake.queue:
            seen.append("others")
            await asyncio.sleep(0)
        assert seen == ["message", "others", "message", "others", "message"]

    async def test_a_long_message_waits_until_no_more_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "LONG_MESSAGE_INTERVAL", 1e9)
        taken = await taking()
        taken.intake.put(b":1.1", frame(2 * HEAVY))
        taken.intake.run(more=True)
        assert taken.got.empty()
        taken.intake.put(b":1.2", frame())
        taken.intake.run(more=True)
        first, second = await taken.frames(2)
        assert len(first.data) < HEAVY < len(second.data)

    async def test_a_long_message_does_not_wait_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "LONG_MESSAGE_INTERVAL", 0.0)
        taken = await taking()
        taken.intake.put(b":1.1", frame(2 * HEAVY))
        taken.intake.run(more=True)
        assert taken.got.qsize() == 1

    async def test_nothing_is_taken_after_the_end(self) -> None:
        taken = await taking()
        for _ in range(3):
            taken.intake.put(b":1.1", frame())
        taken.intake.run(more=True)
        taken.intake.stop()
        await asyncio.sleep(0)
        taken.intake.run(more=False)
        assert taken.got.qsize() == 1
