"""Cuts the byte stream of a D-Bus connection into messages; parses nothing and touches no socket.

Rests on "Message Format" in the D-Bus Specification: 16 fixed bytes, the header fields padded to 8, the body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

FIXED: Final = 16
MAX_MESSAGE: Final = 128 << 20
METHOD_CALL: Final = 1
NO_REPLY_EXPECTED: Final = 0x1


class StreamError(ValueError):
    """The bytes are not D-Bus: where the next message starts is not known any more."""


class Frame(NamedTuple):
    """One message.

    When it is not `whole` its body was above the limit and was left out: `data` is the header with a body length
    of 0, or nothing at all when the header alone was above the limit.
    """

    data: bytes
    whole: bool = True

    @property
    def unanswered(self) -> bool:
        """A method call whose sender waits for no reply."""
        return self.data[1:2] == bytes([METHOD_CALL]) and bool(self.data[2] & NO_REPLY_EXPECTED)


class Cutter:
    """Holds what has come of the next message; at most `limit` bytes of header and `limit` of body are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._skip = 0

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the messages that `chunk` completes; raises StreamError."""
        skipped = min(self._skip, len(chunk))
        self._skip -= skipped
        self._held += chunk[skipped:]
        while len(self._held) >= FIXED:
            head, body = _sizes(self._held)
            if head > self._limit:
                keep = 0
            elif body > self._limit:
                keep = head
            else:
                keep = head + body
            if len(self._held) < keep:
                return
            data = bytes(self._held[:keep])
            whole = keep == head + body
            if data and not whole:
                data = data[:4] + bytes(4) + data[8:]
            gone = min(head + body, len(self._held))
            del self._held[:gone]
            self._skip = head + body - gone
            yield Frame(data, whole)


def _sizes(held: bytearray) -> tuple[int, int]:
    """The header's size, its padding included, and the body's."""
    order = {ord("l"): "<", ord("B"): ">"}.get(held[0])
    if order is None or held[3] != 1:
        raise StreamError(f"a message starts with {bytes(held[:4])!r}")
    body, _serial, fields = struct.unpack_from(f"{order}III", held, 4)
    head = FIXED + fields + -fields % 8
    if head + body > MAX_MESSAGE:
        raise StreamError(f"a message of {head + body} bytes")
    return head, body
