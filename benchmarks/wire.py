"""The least of the D-Bus protocol that a load generator needs: sends messages made beforehand, matches serials.

Rests on "Message Format" and "Authentication Protocol" in the D-Bus Specification; imports nothing but the standard
library, so that what is measured is the service and not the client. Little-endian only, as our messages are.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

FIXED: Final = 16
SERIAL_AT: Final = 8
LENGTHS: Final = struct.Struct("<III")
NUMBER: Final = struct.Struct("<I")
# A header field as it stands in a message: its code and the signature of its value. No valid name contains these bytes.
REPLY_SERIAL: Final = b"\x05\x01u\0"
SENDER: Final = b"\x07\x01s\0"
METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
SIGNAL: Final = 4


class WireError(RuntimeError):
    """The bus did not do what the protocol says, or not in time."""


class Connection:
    """One connection to a bus at `unix:path=...`, Hello said; every wait ends after `timeout` seconds."""

    def __init__(self, address: str, *, timeout: float) -> None:
        self._held = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        self._socket.connect(address.removeprefix("unix:path=").partition(",")[0])
        self._socket.sendall(f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode())
        if not self._socket.recv(256).startswith(b"OK "):
            raise WireError("the bus did not let us in")
        self._socket.sendall(b"BEGIN\r\n" + hello())
        self.await_reply(1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: bytes | bytearray) -> None:
        self._socket.sendall(message)

    def receive(self) -> list[bytes]:
        """The messages that one recv(2) completes; TimeoutError when nothing comes."""
        chunk = self._socket.recv(1 << 16)
        if not chunk:
            raise WireError("the bus has closed the connection")
        self._held += chunk
        return list(cut(self._held))

    def await_reply(self, serial: int) -> bytes:
        """The reply to the call with that serial; WireError when it is an error."""
        while True:
            for message in self.receive():
                if reply_serial(message) == serial:
                    if message[1] == ERROR:
                        raise WireError(said(message))
                    return message


def hello() -> bytes:
    """The call that a connection starts with, serial 1."""
    bus = "org.freedesktop.DBus"
    texts = ((1, b"o", "/org/freedesktop/DBus"), (2, b"s", bus), (3, b"s", "Hello"), (6, b"s", bus))
    fields = b""
    for code, signature, text in texts:
        fields += bytes(-len(fields) % 8)
        fields += struct.pack("<B3sI", code, b"\1" + signature + b"\0", len(text)) + text.encode() + b"\0"
    return struct.pack("<4BIII", ord("l"), METHOD_CALL, 0, 1, 0, 1, len(fields)) + fields + bytes(-len(fields) % 8)


def cut(held: bytearray) -> Iterator[bytes]:
    """Take the complete messages off what has come."""
    while len(held) >= FIXED:
        body, _serial, fields = LENGTHS.unpack_from(held, 4)
        size = FIXED + fields + -fields % 8 + body
        if len(held) < size:
            return
        message = bytes(held[:size])
        del held[:size]
        yield message


def reply_serial(message: bytes) -> int:
    """The serial of the call that a message answers, 0 when it answers none."""
    if message[1] not in (METHOD_RETURN, ERROR):
        return 0
    return int(NUMBER.unpack_from(message, message.index(REPLY_SERIAL) + len(REPLY_SERIAL))[0])


def sender(message: bytes) -> str:
    """The unique name of who sent a message."""
    start = message.index(SENDER) + len(SENDER)
    (length,) = NUMBER.unpack_from(message, start)
    return message[start + 4 : start + 4 + length].decode()


def said(message: bytes) -> str:
    """The printable part of an error reply, for people."""
    return "".join(chr(byte) if 32 <= byte < 127 else " " for byte in message[FIXED:]).strip()
