"""D-Bus by hand over a blocking socket, for messages that no library would send; uses the standard library only.

Rests on "Type System" and "Message Protocol" in the D-Bus Specification.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY: Final = 1
LIMIT: Final = 20.0  # seconds a socket may keep us waiting

THE_BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
FIXED: Final = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
ALIGNMENT: Final = {kind: struct.calcsize(code) for kind, code in FIXED.items()} | dict.fromkeys("soa", 4)
FIELDS: Final = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u"}


def alignment(signature: str) -> int:
    return ALIGNMENT.get(signature[0], 8 if signature[0] in "({" else 1)


def split(signature: str) -> list[str]:
    """The complete types in a signature."""
    found, at = [], 0
    while at < len(signature):
        end = at
        while signature[end] == "a":
            end += 1
        depth = 0
        while True:
            depth += (signature[end] in "({") - (signature[end] in ")}")
            end += 1
            if not depth:
                break
        found.append(signature[at:end])
        at = end
    return found


class Writer:
    """Marshals in either byte order; a variant is written (signature, value), and a dictionary is a dict."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.data = bytearray()

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def all(self, signature: str, values: Iterable[Any]) -> bytearray:
        for kind, value in zip(split(signature), values, strict=True):
            self.one(kind, value)
        return self.data

    def one(self, kind: str, value: Any) -> None:
        self.align(alignment(kind))
        match kind[0]:
            case "s" | "o":
                text = value.encode()
                self.one("u", len(text))
                self.data += text + b"\0"
            case "g":
                self.data += bytes([len(value)]) + value.encode() + b"\0"
            case "v":
                signature, inner = value
                self.one("g", signature)
                self.one(signature, inner)
            case "a":
                self.array(kind[1:], value.items() if isinstance(value, dict) else value)
            case "(" | "{":
                self.all(kind[1:-1], value)
            case _:
                self.data += struct.pack(self.order + FIXED[kind], value)

    def array(self, inner: str, items: Iterable[Any]) -> None:
        at = len(self.data)
        self.one("u", 0)
        self.align(alignment(inner))
        start = len(self.data)
        if inner == "y" and isinstance(items, bytes):
            self.data += items
        else:
            for item in items:
                self.one(inner, item)
        struct.pack_into(f"{self.order}I", self.data, at, len(self.data) - start)


class Reader:
    """Unmarshals; variants lose their signature."""

    def __init__(self, data: bytes, order: str = "<") -> None:
        self.data, self.order, self.at = data, order, 0

    def all(self, signature: str) -> list[Any]:
        return [self.one(kind) for kind in split(signature)]

    def one(self, kind: str) -> Any:
        self.at += -self.at % alignment(kind)
        match kind[0]:
            case "s" | "o":
                return self.text(self.one("u"))
            case "g":
                return self.text(self.one("y"))
            case "v":
                return self.one(self.one("g"))
            case "a":
                size = self.one("u")
                self.at += -self.at % alignment(kind[1:])
                end, found = self.at + size, []
                if kind == "ay":
                    self.at = end
                    return self.data[end - size : end]
                while self.at < end:
                    found.append(self.one(kind[1:]))
                return dict(found) if kind[1] == "{" else found
            case "(" | "{":
                return self.all(kind[1:-1])
        (value,) = struct.unpack_from(self.order + FIXED[kind], self.data, self.at)
        self.at += struct.calcsize(FIXED[kind])
        return value

    def text(self, size: int) -> str:
        found = self.data[self.at : self.at + size].decode()
        self.at += size + 1
        return found


@dataclass(frozen=True, slots=True)
class Got:
    """A message that came; `error` is the name of the error, "" when it is none."""

    kind: int
    serial: int
    sender: str
    member: str
    error: str
    body: list[Any]

    @property
    def text(self) -> str:
        return str(self.body[0]) if self.error and self.body else ""


def message(  # noqa: PLR0917  # the fields in the order of the specification
    serial: int,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: bytes = b"",
    *,
    flags: int = 0,
    order: str = "<",
    kind: int = CALL,
    more: Sequence[tuple[int, tuple[str, Any]]] = (),
) -> bytes:
    """One message; empty fields are left out, `more` are header fields that are added."""
    named = {1: path, 2: interface, 3: member, 6: destination, 8: signature}
    fields = [(code, (FIELDS[code], value)) for code, value in named.items() if value]
    head = Writer(order)
    first = ord("l" if order == "<" else "B")
    head.all("yyyyuua(yv)", (first, kind, flags, 1, len(body), serial, [*fields, *more]))
    head.align(8)
    return bytes(head.data) + body


class Raw:
    """A connection to the bus as the user who runs us; nothing is read but what is asked for."""

    def __init__(self, address: str, *, descriptors: bool = False) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT)
        self.socket.connect(address.removeprefix("unix:path="))
        self.serial = 0
        self._held = bytearray()
        self.socket.sendall(f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode())
        self._line()
        if descriptors:
            self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            self._line()
        self.socket.sendall(b"BEGIN\r\n")
        self.name = str(self.call(THE_BUS, BUS_PATH, THE_BUS, "Hello").body[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def make(
        self, *where: str, signature: str = "", args: Sequence[Any] = (), order: str = "<", flags: int = 0
    ) -> bytes:
        """A call to (destination, path, interface, member) with the next serial."""
        body = bytes(Writer(order).all(signature, args))
        return self.frame(*where, signature=signature, body=body, order=order, flags=flags)

    def frame(self, *where: str, signature: str, body: bytes, order: str = "<", flags: int = 0) -> bytes:
        """The same with a body that is marshalled already."""
        self.serial += 1
        destination, path, interface, member = where
        return message(self.serial, destination, path, interface, member, signature, body, flags=flags, order=order)

    def send(self, data: bytes) -> int:
        """The serial of the last message that was made."""
        self.socket.sendall(data)
        return self.serial

    def call(self, *where: str, signature: str = "", args: Sequence[Any] = (), order: str = "<") -> Got:
        """Call, and wait for the reply."""
        return self.reply(self.send(self.make(*where, signature=signature, args=args, order=order)))

    def stats(self, name: str) -> dict[str, int]:
        """Return the figures that the bus has of a connection; it gives them to root."""
        where = (THE_BUS, BUS_PATH, f"{THE_BUS}.Debug.Stats", "GetConnectionStats")
        return dict(self.call(*where, signature="s", args=[name]).body[0])

    def reply(self, serial: int) -> Got:
        """The reply to a call; what comes before it is lost."""
        while (got := self.next_reply()).serial != serial:
            pass
        return got

    def next_reply(self) -> Got:
        """The next method return or error."""
        while (got := self.next()).kind not in (RETURN, ERROR):
            pass
        return got

    def next(self) -> Got:
        """The next message; ConnectionError when the bus hangs up."""
        while (size := frame_size(self._held)) is None or len(self._held) < size:
            self._read()
        data = bytes(self._held[:size])
        del self._held[:size]
        return parse(data)

    def _read(self) -> None:
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise ConnectionError("the bus hung up")
        self._held += chunk

    def _line(self) -> bytes:
        while b"\r\n" not in self._held:
            self._read()
        line, _, rest = bytes(self._held).partition(b"\r\n")
        self._held[:] = rest
        return line


def frame_size(held: bytes | bytearray) -> int | None:
    """How long the message at the start is, if enough of it is there to tell."""
    if len(held) < 16:
        return None
    order = "<" if held[0] == ord("l") else ">"
    body, _, fields = struct.unpack_from(f"{order}III", held, 4)
    return int(16 + fields + -fields % 8 + body)


def parse(data: bytes) -> Got:
    order = "<" if data[0] == ord("l") else ">"
    head = Reader(data, order)
    _, kind, _, _, size, _, rows = head.all("yyyyuua(yv)")
    fields = dict(rows)
    body = Reader(data[len(data) - size :], order).all(fields.get(8, ""))
    return Got(kind, fields.get(5, 0), fields.get(7, ""), fields.get(3, ""), fields.get(4, ""), body)
