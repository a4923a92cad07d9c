"""Whose message is looked at next, and what is not kept at all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from kerntune import errors
from kerntune.dbus import fair_queue
from kerntune.dbus import intake as intake_module
from kerntune.dbus.fair_queue import (
    FEW,
    LONG,
    MAX_BODY,
    OF_USER,
    OVERHEAD,
    UNANSWERED,
    USER,
    WAITING,
    FairQueue,
)
from kerntune.dbus.framing import Frame
from kerntune.dbus.intake import (
    ASKING,
    BATCH,
    HEAVY,
    LONG_MESSAGE_INTERVAL,
    SLICE,
    STALE,
    Intake,
)
from kerntune.dbus.messages import Message, MessageFlag, Variant
from kerntune.dbus.users import UNKNOWN, User, Users
from tests.hostile.raw import message


def frame(size: int = 0, *, flags: MessageFlag = MessageFlag.NONE) -> Frame:
    message = Message("a.b", "/", "a.b", "M", flags=flags, signature="ay", body=[bytes(size)], serial=1)
    return Frame(bytes(message._marshall()))  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


class Bus:
    """Plays the bus: who is on it with which uid; `held` lets questions wait."""

    def __init__(self, **connections: int) -> None:
        self.connections = {f":1.{name[1:]}": uid for name, uid in connections.items()}
        self.asked: list[str] = []
        self.asking = self.most = 0
        self.open = asyncio.Event()
        self.open.set()

    async def credentials(self, name: str) -> dict[str, Any]:
        self.asked.append(name)
        self.asking += 1
        self.most = max(self.most, self.asking)
        await self.open.wait()
        self.asking -= 1
        if name not in self.connections:
            raise errors.Unreachable(f"the name {name} has no owner")
        return {"UnixUserID": Variant("u", self.connections[name])}


def known(bus: Bus | None = None) -> Users:
    """The users of :1.1 and :1.2, who were asked about."""
    users = Users((bus or Bus()).credentials)
    users._known |= {":1.1": User(1, 0), ":1.2": User(2, 0)}
    return users


def numbered(number: int) -> Frame:
    message = Message("a.b", "/", "a.b", "M", signature="u", body=[number], serial=1)
    return Frame(bytes(message._marshall()))  # type: ignore[no-untyped-call]  # as above


def drain(turns: FairQueue) -> list[Frame]:
    return [turns.pop().frame for _ in range(len(turns))]


class TestOrder:
    def test_one_sender_keeps_its_order(self) -> None:
        turns, sent = FairQueue(), [frame(size) for size in (5000, 1, 300, 0)]
        for each in sent:
            assert turns.put(1, b":1.1", each)
        assert drain(turns) == sent

    def test_a_late_comer_waits_for_one_message_of_a_greedy_sender(self) -> None:
        turns = FairQueue()
        for _ in range(100):
            turns.put(1, b":1.1", frame(1000))
        turns.pop()
        late = frame()
        turns.put(2, b":1.2", late)
        assert turns.pop().frame is late

    def test_work_is_shared_by_bytes_and_not_by_messages(self) -> None:
        turns, long, short = FairQueue(), frame(20 * OVERHEAD), frame()
        for _ in range(5):
            turns.put(1, b":1.1", long)
        for _ in range(15):
            turns.put(2, b":1.2", short)
        assert drain(turns)[:10] == [short] * 10

    def test_who_was_idle_has_saved_nothing_up(self) -> None:
        turns, one, two = FairQueue(), frame(), frame(flags=MessageFlag.NO_AUTOSTART)
        for _ in range(50):
            turns.put(1, b":1.1", one)
            turns.pop()
        for _ in range(3):
            turns.put(2, b":1.2", two)
            turns.put(1, b":1.1", one)
        assert drain(turns) == [two, one] * 3


class TestUsers:
    def test_fifty_connections_of_one_user_have_the_share_of_one(self) -> None:
        turns = FairQueue()
        for number in range(50):
            for _ in range(10):
                assert turns.put(1, f":1.{number}".encode(), frame())
        for _ in range(20):
            assert turns.put(2, b":1.99", frame())
        assert [turns.pop().uid for _ in range(40)].count(2) == 20

    def test_within_a_user_it_goes_by_connection(self) -> None:
        turns = FairQueue()
        for _ in range(100):
            turns.put(1, b":1.1", frame())
        for _ in range(5):
            turns.put(1, b":1.2", frame())
        for _ in range(30):
            turns.put(2, b":1.3", frame())
        taken = [turns.pop().sender for _ in range(20)]
        assert (taken.count(b":1.1"), taken.count(b":1.2"), taken.count(b":1.3")) == (5, 5, 10)

    def test_a_connection_that_comes_late_waits_for_one_message_of_each_of_its_user(self) -> None:
        turns = FairQueue()
        for number in range(50):
            for _ in range(5):
                turns.put(1, f":1.{number}".encode(), frame(1000))
        for _ in range(60):
            turns.pop()
        turns.put(1, b":1.99", frame(1000))
        assert b":1.99" in {turns.pop().sender for _ in range(51)}

    def test_who_is_held_has_no_turn_and_loses_none(self) -> None:
        turns = FairQueue()
        turns.pause(1)
        for _ in range(3):
            turns.put(1, b":1.1", frame())
            turns.put(2, b":1.2", frame())
        assert [turns.pop().uid for _ in range(3)] == [2] * 3
        assert turns.next is None
        assert len(turns) == 3
        turns.resume(1)
        assert [turns.pop().uid for _ in range(3)] == [1] * 3
        assert (turns._users, turns._ready, turns._bytes) == ({}, {}, 0)

    def test_who_is_held_is_refused_what_makes_too_many_of_one_connection(self) -> None:
        turns = FairQueue({":1.1": 2, ":1.2": 0}.__getitem__, 4)
        turns.pause(1)
        for sender in (b":1.1", b":1.2"):
            for number in range(5):
                assert turns.put(1, sender, numbered(number))
        refused = [turns.pop() for _ in range(4)]
        assert [turn.sender for turn in refused] == [b":1.1"] * 3 + [b":1.2"]
        assert not any(turn.frame.whole for turn in refused)
        assert turns.next is None
        turns.resume(1)
        assert [frame.whole for frame in drain(turns)] == [True] * 6

    def test_one_user_has_so_much_and_its_quiet_connections_a_little_more(self) -> None:
        turns, long = FairQueue(), frame(100 << 10)
        for number in range(USER // len(long.data)):
            assert turns.put(1, f":1.{number}".encode(), long)
        turns.put(1, b":1.1", long)
        turns.put(1, b":1.77", frame())
        turns.put(2, b":1.78", long)
        assert sorted(turn.sender for turn in (turns.pop() for _ in range(len(turns))) if not turn.frame.whole) == [
            b":1.1"
        ]

    def test_one_user_has_so_many(self) -> None:
        turns = FairQueue()
        for number in range(OF_USER // WAITING):
            for _ in range(WAITING):
                assert turns.put(1, f":1.{number}".encode(), frame())
        assert len(turns) == OF_USER
        assert [turns.put(1, b":1.99", frame()) for _ in range(FEW + 1)] == [True] * FEW + [False]
        assert turns.put(2, b":1.98", frame())


class TestStrangers:
    async def test_messages_of_one_wait_until_the_bus_has_told_the_user(self) -> None:
        got: asyncio.Queue[tuple[Frame, int]] = asyncio.Queue()
        bus = Bus(_7=1000)
        intake = Intake(lambda frame, uid: got.put_nowait((frame, uid)), known(bus))
        sent = [numbered(number) for number in range(3)]
        for each in sent:
            assert intake.put(b":1.7", each)
        intake.run(more=False)
        assert got.empty()
        assert [await got.get() for _ in sent] == [(each, 1000) for each in sent]
        assert bus.asked == [":1.7"]
        intake.put(b":1.7", sent[0])
        intake.run(more=False)
        assert await got.get() == (sent[0], 1000)
        assert bus.asked == [":1.7"]

    async def test_one_who_has_left_is_dropped_with_all_its_messages(self) -> None:
        got: asyncio.Queue[int] = asyncio.Queue()
        intake = Intake(lambda _, uid: got.put_nowait(uid), known(Bus(_8=8)))
        for sender in (b":1.7", b":1.7", b":1.8"):
            intake.put(sender, frame())
        assert await got.get() == 8
        await asyncio.gather(*intake._asking)
        assert not intake.queue
        assert (intake.queue.aside, intake.queue._bytes) == (0, 0)

    async def test_the_bus_is_asked_a_few_questions_at_once(self) -> None:
        bus = Bus(**{f"_{number}": number for number in range(10, 100)})
        bus.open.clear()
        got: asyncio.Queue[int] = asyncio.Queue()
        intake = Intake(lambda _, uid: got.put_nowait(uid), known(bus))
        for number in range(10, 100):
            intake.put(f":1.{number}".encode(), frame())
        intake.put(b":1.1", frame())
        intake.run(more=False)
        assert got.get_nowait() == 1, "who is known waits for no question"
        await asyncio.sleep(0)
        bus.open.set()
        assert {await got.get() for _ in range(90)} == set(range(10, 100))
        assert bus.most == ASKING

    async def test_so_many_wait_for_the_bus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(intake_module, "ASIDE", 2)
        intake = Intake(lambda *_: None, known(Bus()))
        assert [intake.put(f":1.{number}".encode(), frame()) for number in (7, 7, 8, 9, 7, 1)] == [
            *(True, True, True),
            *(False, True, True),
        ]
        intake.stop()


class TestDeparted:
    async def test_who_has_left_while_it_waited_is_dropped(self) -> None:
        got: asyncio.Queue[int] = asyncio.Queue()
        bus = Bus(_2=2)
        intake = Intake(lambda _, uid: got.put_nowait(uid), known(bus))
        for _ in range(3):
            intake.queue.put(1, b":1.1", frame(), long_ago())
            intake.queue.put(2, b":1.2", frame(), long_ago())
        intake.run(more=False)
        assert [await got.get() for _ in range(3)] == [2] * 3
        await asyncio.gather(*intake._asking)
        assert not intake.queue
        assert sorted(bus.asked) == [":1.1", ":1.2"], "one question for all that it has sent"

    async def test_who_was_forgotten_while_it_waited_is_heard(self) -> None:
        bus, got = Bus(_1=1), asyncio.Queue[Frame]()
        users = known(bus)
        intake = Intake(lambda frame, _: got.put_nowait(frame), users)
        sent = [numbered(number) for number in range(3)]
        intake.pause(1)
        intake.queue.put(1, b":1.1", sent[0], long_ago())
        users._known.clear()
        bus.open.clear()
        intake.put(b":1.1", sent[1])
        intake.resume(1)
        await asyncio.sleep(0)
        bus.open.set()
        assert {await got.get(), await got.get()} == set(sent[:2])
        await asyncio.gather(*intake._asking)
        intake.put(b":1.1", sent[2])
        intake.run(more=False)
        assert await got.get() == sent[2]
        assert (intake.queue._bytes, intake.queue.aside, len(intake.queue)) == (0, 0, 0)

    async def test_its_turn_comes_though_it_waits_long_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever was asked about is heard next, however long everything takes."""
        monkeypatch.setattr(intake_module, "STALE", -1.0)
        got: asyncio.Queue[Frame] = asyncio.Queue()
        bus = Bus(_1=1, _2=2)
        intake = Intake(lambda frame, _: got.put_nowait(frame), known(bus))
        sent = [numbered(number) for number in range(4)]
        for each in sent:
            intake.put(b":1.1", each)
        intake.run(more=False)
        assert [await got.get() for _ in sent] == sent
        assert bus.asked == [":1.1"] * 4

    async def test_who_is_known_stays_so_when_the_bus_is_slow(self) -> None:
        class Slow(Bus):
            async def credentials(self, name: str) -> dict[str, Any]:
                raise errors.Failed(f"the bus did not answer about {name} in time")

        got: asyncio.Queue[int] = asyncio.Queue()
        intake = Intake(lambda _, uid: got.put_nowait(uid), known(Slow()))
        intake.queue.put(1, b":1.1", frame(), long_ago())
        intake.put(b":1.3", frame())
        intake.run(more=False)
        assert {await got.get(), await got.get()} == {1, UNKNOWN}

    def test_a_question_costs_the_sender_no_turn(self) -> None:
        turns = FairQueue()
        turns.put(1, b":1.1", frame())
        for _ in range(3):
            turns.set_aside()
            turns.identify(b":1.1", 1)
        turns.put(1, b":1.2", frame())
        turns.put(1, b":1.2", frame())
        assert [turns.pop().sender for _ in range(3)] == [b":1.1", b":1.2", b":1.2"]

    async def test_what_comes_meanwhile_keeps_its_place(self) -> None:
        bus, got = Bus(_1=1), asyncio.Queue[Frame]()
        intake = Intake(lambda frame, _: got.put_nowait(frame), known(bus))
        sent = [numbered(number) for number in range(3)]
        intake.queue.put(1, b":1.1", sent[0], long_ago())
        intake.run(more=False)
        assert intake.queue.is_aside(b":1.1")
        for each in sent[1:]:
            intake.put(b":1.1", each)
        intake.run(more=False)
        assert [await got.get() for _ in sent] == sent


def long_ago() -> float:
    return asyncio.get_running_loop().time() - 2 * STALE


class TestLimits:
    def test_what_nobody_waits_for_goes_first(self) -> None:
        turns, quiet = FairQueue(), frame(flags=MessageFlag.NO_REPLY_EXPECTED)
        taken = [turns.put(1, b":1.1", quiet) for _ in range(UNANSWERED + 5)]
        assert taken.count(True) == UNANSWERED
        assert turns.put(1, b":1.1", frame())
        assert turns.put(2, b":1.2", quiet)

    def test_one_sender_has_so_many(self) -> None:
        turns = FairQueue()
        assert [turns.put(1, b":1.1", frame()) for _ in range(WAITING + 1)] == [True] * WAITING + [False]

    def test_of_too_long_ones_the_header_is_kept(self) -> None:
        turns, long = FairQueue(), frame(LONG // 2)
        assert [turns.put(1, b":1.1", long) for _ in range(4)] == [True] * 4
        assert [each.whole for each in drain(turns)] == [True, False, False, False]
        assert not turns.put(1, b":1.1", frame(LONG + 1, flags=MessageFlag.NO_REPLY_EXPECTED))

    def test_all_together_have_so_much(self) -> None:
        turns, size = FairQueue(), len(frame(100 << 10).data)
        kept = [turns.put(n, f":1.{n}".encode(), frame(100 << 10)) for n in range(fair_queue.TOTAL // size + 3)]
        assert all(kept)
        assert [each.whole for each in drain(turns)].count(False) == 3
        assert turns.put(1, b":1.1", frame(LONG // 2))
        assert turns.pop().frame.whole


class TestIntake:
    async def test_where_nothing_waits_the_first_short_ones_are_looked_at_at_once(self) -> None:
        got: asyncio.Queue[Frame] = asyncio.Queue()
        intake = Intake(lambda frame, _: got.put_nowait(frame), known())
        intake.run(more=False)
        intake.put(b":1.1", frame(2 * HEAVY))
        assert got.empty()
        intake.run(more=False)
        await got.get()
        intake.run(more=False)
        for _ in range(BATCH + 3):
            intake.put(b":1.1", frame())
        assert (got.qsize(), len(intake.queue)) == (BATCH, 3)
        intake.run(more=False)
        for _ in range(BATCH + 3):
            await got.get()
        intake.pause(2)
        intake.put(b":1.1", frame())
        assert got.empty(), "somebody is held: all have their turns"
        intake.stop()

    async def test_a_long_message_is_for_root_alone(self) -> None:
        got: list[tuple[int, bool]] = []
        intake = Intake(lambda frame, uid: got.append((uid, frame.whole)), known(Bus()))
        intake._users._known[":1.3"] = User(0, 0)
        intake._heavy_at = -LONG_MESSAGE_INTERVAL
        for sender, size in ((b":1.1", MAX_BODY - 4), (b":1.1", MAX_BODY), (b":1.3", MAX_BODY)):
            intake.queue.put(
                intake._users.known(sender.decode()), sender, frame(size), asyncio.get_running_loop().time()
            )
        while intake.queue:
            intake._heavy_at = -LONG_MESSAGE_INTERVAL
            intake._take()
        assert sorted(got) == [(0, True), (1, False), (1, True)]

    async def test_the_loop_has_its_turn_in_between(self) -> None:
        seen: list[str] = []

        def receive(frame: Frame, uid: int) -> None:
            time.sleep(2 * SLICE)  # what parsing does: it holds the loop
            seen.append("message")

        intake = Intake(receive, known())
        for _ in range(3):
            intake.put(b":1.1", frame())
        intake.run(more=False)
        while intake.queue:
            seen.append("others")
            await asyncio.sleep(0)
        assert seen == ["message", "others", "message", "others", "message"]

    async def test_a_long_message_waits_until_no_more_comes(self) -> None:
        got: asyncio.Queue[int] = asyncio.Queue()
        intake = Intake(lambda frame, _: got.put_nowait(len(frame.data)), known())
        intake._heavy_at = asyncio.get_running_loop().time()
        intake.put(b":1.1", frame(2 * HEAVY))
        intake.run(more=True)
        assert got.empty()
        intake.put(b":1.2", frame())
        intake.run(more=True)
        assert await got.get() < HEAVY
        assert await got.get() > HEAVY

    async def test_but_not_for_ever(self) -> None:
        got: list[Frame] = []
        intake = Intake(lambda frame, _: got.append(frame), known())
        intake.put(b":1.1", frame(2 * HEAVY))
        intake._heavy_at = asyncio.get_running_loop().time() - LONG_MESSAGE_INTERVAL
        intake.run(more=True)
        assert got

    async def test_nothing_after_the_end(self) -> None:
        got: list[Frame] = []
        intake = Intake(lambda frame, _: got.append(frame), known())
        for _ in range(3):
            intake.put(b":1.1", frame())
        intake.run(more=True)
        intake.stop()
        await asyncio.sleep(0)
        intake.run(more=False)
        assert len(got) == 1


class TestFrame:
    def test_the_sender_of_both_byte_orders(self) -> None:
        for order in ("<", ">"):
            assert Frame(passed_on(order)).sender == b":1.42"

    def test_no_sender(self) -> None:
        assert frame().sender == b""
        assert Frame(b"", whole=False).sender == b""
        assert Frame(passed_on("<")[:40]).sender == b""

    def test_a_header_field_of_a_type_that_is_not_known(self) -> None:
        assert Frame(passed_on("<", more=[(99, ("as", ["x"]))])).sender == b""

    def test_cut(self) -> None:
        whole = frame(1000)
        cut = whole.cut()
        assert not cut.whole
        assert len(cut.data) < 200
        assert cut.cut() is cut
        assert frame(0).cut().whole is False  # the body is the array's length
        path = "/" + "x" * 5000
        long = Message("a.b", path, "a.b", "M", signature="y", body=[1], serial=1)
        assert Frame(bytes(long._marshall())).cut() == Frame(b"", whole=False)  # type: ignore[no-untyped-call]  # as above


def passed_on(order: str, more: list[tuple[int, tuple[str, object]]] | None = None) -> bytes:
    """A call as the bus passes it on, its sender last."""
    fields = [*(more or []), (7, ("s", ":1.42"))]
    return message(3, "a.b", "/a", "a.b", "M", "s", b"\0" * 5, order=order, more=fields)
