"""Whose message is looked at next, and what is not kept at all."""

from __future__ import annotations

import asyncio
import time

from kerntune.bus import turns as turns_module
from kerntune.bus.frames import Frame
from kerntune.bus.messages import Message, MessageFlag
from kerntune.bus.turns import HEAVY, LONG, OVERHEAD, PATIENCE, SLICE, UNANSWERED, WAITING, Intake, Turns
from tests.hostile.raw import message


def frame(size: int = 0, *, flags: MessageFlag = MessageFlag.NONE) -> Frame:
    message = Message("a.b", "/", "a.b", "M", flags=flags, signature="ay", body=[bytes(size)], serial=1)
    return Frame(bytes(message._marshall()))  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


def drain(turns: Turns) -> list[Frame]:
    return [turns.take() for _ in range(len(turns))]


class TestOrder:
    def test_one_sender_keeps_its_order(self) -> None:
        turns, sent = Turns(), [frame(size) for size in (5000, 1, 300, 0)]
        for each in sent:
            assert turns.put(b":1.1", each)
        assert drain(turns) == sent

    def test_a_late_comer_waits_for_one_message_of_a_greedy_sender(self) -> None:
        turns = Turns()
        for _ in range(100):
            turns.put(b":1.1", frame(1000))
        turns.take()
        late = frame()
        turns.put(b":1.2", late)
        assert turns.take() is late

    def test_work_is_shared_by_bytes_and_not_by_messages(self) -> None:
        turns, long, short = Turns(), frame(20 * OVERHEAD), frame()
        for _ in range(5):
            turns.put(b":1.1", long)
        for _ in range(15):
            turns.put(b":1.2", short)
        assert drain(turns)[:10] == [short] * 10

    def test_who_was_idle_has_saved_nothing_up(self) -> None:
        turns, one, two = Turns(), frame(), frame(flags=MessageFlag.NO_AUTOSTART)
        for _ in range(50):
            turns.put(b":1.1", one)
            turns.take()
        for _ in range(3):
            turns.put(b":1.2", two)
            turns.put(b":1.1", one)
        assert drain(turns) == [two, one] * 3


class TestLimits:
    def test_what_nobody_waits_for_goes_first(self) -> None:
        turns, quiet = Turns(), frame(flags=MessageFlag.NO_REPLY_EXPECTED)
        taken = [turns.put(b":1.1", quiet) for _ in range(UNANSWERED + 5)]
        assert taken.count(True) == UNANSWERED
        assert turns.put(b":1.1", frame())
        assert turns.put(b":1.2", quiet)

    def test_one_sender_has_so_many(self) -> None:
        turns = Turns()
        assert [turns.put(b":1.1", frame()) for _ in range(WAITING + 1)] == [True] * WAITING + [False]

    def test_of_too_long_ones_the_header_is_kept(self) -> None:
        turns, long = Turns(), frame(LONG // 2)
        assert [turns.put(b":1.1", long) for _ in range(4)] == [True] * 4
        assert [each.whole for each in drain(turns)] == [True, False, False, False]
        assert not turns.put(b":1.1", frame(LONG + 1, flags=MessageFlag.NO_REPLY_EXPECTED))

    def test_all_together_have_so_much(self) -> None:
        turns, size = Turns(), len(frame(100 << 10).data)
        kept = [turns.put(f":1.{n}".encode(), frame(100 << 10)) for n in range(turns_module.TOTAL // size + 3)]
        assert all(kept)
        assert [each.whole for each in drain(turns)].count(False) == 3
        assert turns.put(b":1.1", frame(LONG // 2))
        assert turns.take().whole


class TestIntake:
    async def test_the_loop_has_its_turn_in_between(self) -> None:
        seen: list[str] = []

        def receive(frame: Frame) -> None:
            time.sleep(2 * SLICE)  # what parsing does: it holds the loop
            seen.append("message")

        intake = Intake(receive)
        for _ in range(3):
            intake.turns.put(b":1.1", frame())
        intake.run(more=False)
        while intake.turns:
            seen.append("others")
            await asyncio.sleep(0)
        assert seen == ["message", "others", "message", "others", "message"]

    async def test_a_long_message_waits_until_no_more_comes(self) -> None:
        got: asyncio.Queue[int] = asyncio.Queue()
        intake = Intake(lambda frame: got.put_nowait(len(frame.data)))
        intake._heavy_at = asyncio.get_running_loop().time()
        intake.turns.put(b":1.1", frame(2 * HEAVY))
        intake.run(more=True)
        assert got.empty()
        intake.turns.put(b":1.2", frame())
        intake.run(more=True)
        assert await got.get() < HEAVY
        assert await got.get() > HEAVY

    async def test_but_not_for_ever(self) -> None:
        got: list[Frame] = []
        intake = Intake(got.append)
        intake.turns.put(b":1.1", frame(2 * HEAVY))
        intake._heavy_at = asyncio.get_running_loop().time() - PATIENCE
        intake.run(more=True)
        assert got

    async def test_nothing_after_the_end(self) -> None:
        got: list[Frame] = []
        intake = Intake(got.append)
        for _ in range(3):
            intake.turns.put(b":1.1", frame())
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
