"""The cutting of a D-Bus byte stream into messages; this module parses nothing and touches no socket.

It follows "Message Format" in the D-Bus Specification: 16 fixed bytes, the header fields padded to 8, the body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

FIXED: Final = 16
MAX_MESSAGE: Final = 128 << 20
METHOD_CALL: Final = 1
SIGNAL: Final = 4
NO_REPLY_EXPECTED: Final = 0x1
SENDER: Final = 7  # code of the header field
LONG_HEADER: Final = 4096  # bytes; the longest header that a cut message keeps


class StreamError(ValueError):
    """The bytes are not D-Bus: the start of the next message is not known any more."""


class Frame(NamedTuple):
    """One message.

    If it is not `whole`, its body was above the limit and was left out. `data` is then the header with a body length
    of 0, or nothing at all if the header alone was above the limit.
    """

    data: bytes
    whole: bool = True

    @property
    def unanswered(self) -> bool:
        """Return True if this is neither a reply nor a method call that its sender waits for."""
        kind = self.data[1:2]
        return kind == bytes([SIGNAL]) or (kind == bytes([METHOD_CALL]) and bool(self.data[2] & NO_REPLY_EXPECTED))

    @property
    def is_reply(self) -> bool:
        """Return True for a method return or an error, and for a message of a later D-Bus that has another type."""
        return self.data[1:2] not in (bytes([METHOD_CALL]), bytes([SIGNAL]))

    @property
    def sender(self) -> bytes:
        """The header field that the bus has filled in; nothing if only a parser could find it."""
        try:
            return _sender(self.data)
        except (IndexError, struct.error):
            return b""

    @property
    def body(self) -> int:
        """The number of bytes in the body."""
        return _sizes(self.data)[1] if self.data else 0

    def header(self) -> Frame:
        """Return the frame without its body; a frame without a body stays whole."""
        if not self.body:
            return self
        head, _ = _sizes(self.data)
        return Frame(self.data[:4] + bytes(4) + self.data[8:head], whole=False)

    def cut(self) -> Frame:
        """Return the part of a too large frame that is kept: its header, or nothing if the header is long."""
        if not self.body or _sizes(self.data)[0] <= LONG_HEADER:
            return self.header()
        return Frame(b"", whole=False)

    def bodyless(self) -> Frame:
        """Return what a refusal needs: the same as `cut`, but not whole, even if the frame never had a body."""
        return Frame(self.cut().data, whole=False)


class Cutter:
    """The part of the next message that has come; at most `limit` bytes of header and `limit` of body are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._skip = 0

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the messages that `chunk` completes. Raise StreamError."""
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


def _sender(data: bytes) -> bytes:
    """Return the sender from the header fields, a(yv) from byte 16 on. The specification knows only s, o, u or g."""
    number = struct.Struct("<I" if data[0] == ord("l") else ">I").unpack_from
    at, end = FIXED, FIXED + number(data, 12)[0]
    while at < end:
        at += -at % 8
        code, kind = data[at], data[at + 1 : at + 4]
        at += 4
        if kind in (b"\1s\0", b"\1o\0"):
            size = number(data, at)[0]
            if code == SENDER:
                return data[at + 4 : at + 4 + size]
            at += 4 + size + 1
        elif kind == b"\1u\0":
            at += 4
        elif kind == b"\1g\0":
            at += 1 + data[at] + 1
        else:
            return b""
    return b""


def _sizes(held: bytes | bytearray) -> tuple[int, int]:
    """Return the size of the header, with its padding, and the size of the body."""
    order = {ord("l"): "<", ord("B"): ">"}.get(held[0])
    if order is None or held[3] != 1:
        raise StreamError(f"a message starts with {bytes(held[:4])!r}")
    body, _serial, fields = struct.unpack_from(f"{order}III", held, 4)
    head = FIXED + fields + -fields % 8
    if head + body > MAX_MESSAGE:
        raise StreamError(f"a message of {head + body} bytes")
    return head, body
