"""What is remembered of calls: the same message as parsing gives, and no more than a little."""

from __future__ import annotations

import pytest

from kerntune.dbus.messages import REMEMBERED, Message, MessageFlag, ParseCache, marshalled, parse


def call(serial: int, *body: object, signature: str = "ss", sender: str = ":1.7", member: str = "Get") -> bytes:
    message = Message("a.b", "/", "a.b", member, signature=signature, body=list(body), serial=serial, sender=sender)
    return marshalled(message)


@pytest.mark.parametrize(
    ("signature", "body"), [("ss", ("a", "b")), ("s", ("a",)), ("", ()), ("as", (["a"],)), ("u", (1,))]
)
def test_it_is_what_parsing_gives(signature: str, body: tuple[object, ...]) -> None:
    memo = ParseCache()
    for serial in (1, 2, 0x01020304, 2**32 - 1):
        data = call(serial, *body, signature=signature)
        assert vars(memo.parse(data)) == vars(parse(data))


def test_senders_members_and_flags_are_told_apart() -> None:
    memo = ParseCache()
    quiet = Message("a.b", "/", "a.b", "Get", flags=MessageFlag.NO_REPLY_EXPECTED, serial=1, sender=":1.7")
    for data in (
        call(1, signature=""), call(2, signature="", sender=":1.8"), call(3, signature="", member="Set"),
        marshalled(quiet), call(4, "a", "b"), call(5, "a", "c"),
    ):  # fmt: skip
        assert vars(memo.parse(data)) == vars(parse(data))


def test_two_calls_in_flight_share_nothing_that_can_change() -> None:
    memo = ParseCache()
    first, second = memo.parse(call(1, "a", "b")), memo.parse(call(2, "a", "b"))
    assert (first.serial, second.serial) == (1, 2)
    lists = [memo.parse(call(serial, ["a"], signature="as")) for serial in (1, 2)]
    assert lists[0].body[0] is not lists[1].body[0]


def test_a_big_endian_serial() -> None:
    data = bytearray(call(1, "a", "b"))
    data[0:1] = b"B"
    data[4:8], data[8:12], data[12:16] = (bytes(reversed(data[at : at + 4])) for at in (4, 8, 12))
    memo = ParseCache()
    memo._known[bytes(data[:8] + data[12:])] = parse(call(1, "a", "b"))
    assert memo.parse(bytes(data)).serial == 1


def test_it_is_bounded() -> None:
    memo = ParseCache()
    for number in range(10 * REMEMBERED):
        memo.parse(call(1, "a", str(number)))
    memo.parse(call(1, "a", "x" * 10_000))
    assert len(memo._known) <= REMEMBERED
    assert all(len(key) < 1000 for key in memo._known)
