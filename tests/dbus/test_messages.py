"""Messages: how a stream is cut into them, what is remembered of them, and how their values and errors are read."""

from __future__ import annotations

import itertools
import random
import struct
from collections import Counter

import pytest
from dbus_next.signature import SignatureTree

from kerntune import errors
from kerntune.dbus import messages
from kerntune.dbus.framing import Cutter, Frame, StreamError
from kerntune.dbus.messages import (
    MAX_SIGNATURES,
    REMEMBERED,
    Message,
    MessageFlag,
    MessageType,
    ParseCache,
    Variant,
    exception,
    marshalled,
    parse,
    unwrap,
)
from tests.hostile.raw import Writer, message


def call(
    *body: object,
    serial: int = 1,
    signature: str = "s",
    sender: str = ":1.7",
    member: str = "Get",
    flags: MessageFlag = MessageFlag.NONE,
) -> bytes:
    fields = {"signature": signature, "body": list(body), "serial": serial, "sender": sender, "flags": flags}
    return marshalled(Message("a.b", "/", "a.b", member, **fields))  # type: ignore[arg-type]  # of different types


def passed_on(order: str = "<", text: str = "", serial: int = 3, more: tuple[int, str, object] | None = None) -> bytes:
    """Return a call as the bus passes it on, its sender last; `more` is a header field before it."""
    fields = [(more[0], more[1:])] if more else []
    body = bytes(Writer(order).all("s", [text]))
    return message(serial, "a.b", "/a", "a.b", "M", "s", body, order=order, more=[*fields, (7, ("s", ":1.42"))])


class TestCutter:
    def test_any_chunks_give_the_same_messages(self) -> None:
        sent = [call("x" * size) for size in (0, 1, 7, 500)]
        stream = b"".join(sent)
        dice = random.Random(1)
        for _ in range(50):
            cutter, at = Cutter(1000), 0
            got: list[Frame] = []
            while at < len(stream):
                size = dice.randint(1, 300)
                got += cutter.feed(stream[at : at + size])
                at += size
            assert got == [Frame(each) for each in sent]

    @pytest.mark.parametrize("size", [1, 16, 100, 100_000])
    def test_a_long_body_is_left_out_and_the_next_message_is_found(self, size: int) -> None:
        stream = call("x" * 50_000) + call("short")
        cutter = Cutter(1000)
        got = [frame for at in range(0, len(stream), size) for frame in cutter.feed(stream[at : at + size])]
        assert [frame.whole for frame in got] == [False, True]
        assert struct.unpack_from("<I", got[0].data, 4) == (0,)
        assert got[1].data == call("short")

    def test_a_message_with_a_long_header_is_left_out(self) -> None:
        long = marshalled(Message("a.b", "/" + "x" * 5000, "a.b", "M", serial=1))
        assert list(Cutter(1000).feed(long + call(""))) == [Frame(b"", whole=False), Frame(call(""))]

    @pytest.mark.parametrize("start", [b"x\1\0\1", b"l\1\0\2"])
    def test_a_stream_that_is_no_dbus_ends(self, start: bytes) -> None:
        with pytest.raises(StreamError):
            list(Cutter(1000).feed(start + bytes(12)))

    def test_a_message_longer_than_the_protocol_allows_ends_the_stream(self) -> None:
        with pytest.raises(StreamError, match="bytes"):
            list(Cutter(1000).feed(b"l\1\0\1" + struct.pack("<III", 0xFFFFFFFF, 1, 0)))


class TestFrame:
    def test_a_call_without_a_reply_is_unanswered(self) -> None:
        assert Frame(call("", flags=MessageFlag.NO_REPLY_EXPECTED)).unanswered
        assert not Frame(call("")).unanswered
        assert not Frame(b"", whole=False).unanswered

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_the_sender_is_found_in_both_byte_orders(self, order: str) -> None:
        assert Frame(passed_on(order)).sender == b":1.42"

    def test_a_frame_may_have_no_sender(self) -> None:
        assert Frame(marshalled(Message("a.b", "/", "a.b", "M", serial=1))).sender == b""
        assert Frame(b"", whole=False).sender == b""
        assert Frame(passed_on()[:40]).sender == b""

    def test_no_sender_is_found_behind_a_field_of_an_unknown_type(self) -> None:
        assert Frame(passed_on(more=(99, "as", ["x"]))).sender == b""

    def test_a_cut_frame_has_its_header_or_nothing(self) -> None:
        cut = Frame(call("x" * 1000)).cut()
        assert not cut.whole
        assert len(cut.data) < 200
        assert cut.cut() is cut
        assert not Frame(call("")).cut().whole, "the body is the length of the text"
        long = Message("a.b", "/" + "x" * 5000, "a.b", "M", signature="y", body=[1], serial=1)
        assert Frame(marshalled(long)).cut() == Frame(b"", whole=False)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count how often each message is parsed."""
    counts: Counter[bytes] = Counter()

    def counted(data: bytes) -> Message:
        counts[data] += 1
        return parse(data)

    monkeypatch.setattr(messages, "parse", counted)
    return counts


class TestParseCache:
    @pytest.mark.parametrize(
        ("signature", "body"), [("ss", ("a", "b")), ("s", ("a",)), ("", ()), ("as", (["a"],)), ("u", (1,))]
    )
    def test_it_returns_what_parsing_gives(self, signature: str, body: tuple[object, ...]) -> None:
        cache = ParseCache()
        for serial in (1, 2, 0x01020304, 2**32 - 1):
            data = call(*body, serial=serial, signature=signature)
            assert vars(cache.parse(data)) == vars(parse(data))

    def test_it_tells_senders_members_bodies_and_flags_apart(self) -> None:
        cache = ParseCache()
        for data in (
            call("a"), call("a", serial=2, sender=":1.8"), call("a", serial=3, member="Set"), call("b", serial=4),
            call("a", serial=5, flags=MessageFlag.NO_REPLY_EXPECTED),
        ):  # fmt: skip
            assert vars(cache.parse(data)) == vars(parse(data))

    def test_two_calls_share_nothing_that_can_change(self) -> None:
        cache = ParseCache()
        first, second = cache.parse(call("a")), cache.parse(call("a", serial=2))
        assert (first.serial, second.serial) == (1, 2)
        lists = [cache.parse(call(["a"], serial=serial, signature="as")) for serial in (1, 2)]
        assert lists[0].body[0] is not lists[1].body[0]

    def test_it_reads_serials_in_both_byte_orders(self, parsed: Counter[bytes]) -> None:
        cache = ParseCache()
        for order in ("<", ">"):
            found = [cache.parse(passed_on(order, serial=serial)) for serial in (3, 0x01020304)]
            assert [each.serial for each in found] == [3, 0x01020304]
        assert parsed.total() == 2, "the second of each is remembered"

    def test_it_remembers_a_limited_number_of_short_calls(self, parsed: Counter[bytes]) -> None:
        cache = ParseCache()
        short = [call(str(number)) for number in range(REMEMBERED + 1)]
        long = call("x" * 10_000)
        for data in (*short[:REMEMBERED], *short[:REMEMBERED], long, long):
            cache.parse(data)
        assert {parsed[data] for data in short[:REMEMBERED]} == {1}
        assert parsed[long] == 2
        cache.parse(short[REMEMBERED])
        for data in short:
            cache.parse(data)
        assert parsed[short[0]] == 2, "one too many, and all are forgotten"


def test_a_limited_number_of_signatures_is_kept() -> None:
    kinds = ["".join(dice) for dice in itertools.islice(itertools.product("bdinqstuxy", repeat=5), MAX_SIGNATURES // 4)]
    kinds += ["".join(dice) for dice in itertools.islice(itertools.product("uxt", repeat=250), 100)]
    for each in kinds:
        parse(call([], signature=f"a({each})"))
        assert sum(len(kept) for kept in SignatureTree._cache) <= MAX_SIGNATURES


def test_unwrapped_values_have_no_variants() -> None:
    nested = {"a": Variant("a{sv}", {"b": Variant("v", Variant("as", ["c"]))}), "d": [[Variant("u", 1)]]}
    assert unwrap(nested) == {"a": {"b": ["c"]}, "d": [[1]]}


@pytest.mark.parametrize(
    "name", ["org.freedesktop.systemd1.UnitMasked", "org.freedesktop.DBus.Error.Spawn.ChildExited"]
)
def test_a_service_that_cannot_be_started_is_not_reachable(name: str) -> None:
    text = "Unit kerntuned.service is masked."
    refused = Message(message_type=MessageType.ERROR, error_name=name, reply_serial=1, signature="s", body=[text])
    found = exception(refused)
    assert isinstance(found, errors.Unreachable)
    assert text in str(found)
