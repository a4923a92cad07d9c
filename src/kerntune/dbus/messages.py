"""The used parts of dbus_next: messages, their marshalling, addresses. No other module imports dbus_next."""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec, module_from_spec
from typing import Any, Final

if package := find_spec("dbus_next"):
    # Skip its __init__, which imports loops, services and GLib: half a MiB and some milliseconds for nothing used here.
    sys.modules.setdefault("dbus_next", module_from_spec(package))

from dbus_next._private.address import parse_address
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.errors import InvalidAddressError
from dbus_next.message import Message
from dbus_next.signature import SignatureTree, Variant

from kerntune import errors
from kerntune.dbus import standard

__all__ = ["InvalidAddressError", "Message", "MessageFlag", "MessageType", "Variant"]

ADDRESS: Final = "DBUS_SYSTEM_BUS_ADDRESS"  # in the environment
SYSTEM_BUS: Final = "unix:path=/var/run/dbus/system_bus_socket"
GONE: Final = frozenset(
    errors.FREEDESKTOP + name for name in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "TimedOut")
)
MAX_SENT: Final = 4 << 20  # bytes; the system bus disconnects a client that sends more than 32 MiB
UNPARSEABLE: Final = (ValueError, TypeError, LookupError, EOFError, RecursionError, struct.error)
MAX_TEXT: Final = 4096  # characters of an error; some quote what a client has sent
MAX_SIGNATURES: Final = 8192  # characters of the signatures that are kept; each character costs about 160 bytes
REMEMBERED: Final = 64  # calls
SHORT: Final = 512  # bytes of a call that is remembered
TEXTS: Final = frozenset({"", "s", "ss"})  # signatures of bodies that nobody can change


class BusError(errors.Failed):
    """An error reply with a name that is not one of ours; `name` has it, and the text starts with it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}" if text else name)
        self.name = name


class TimedOut(errors.Failed):
    """No reply came in time; the other side may still be at work."""


class _Signatures(dict[str, SignatureTree]):
    """A limited cache of signatures. dbus_next keeps every one that clients send; this cache forgets all when full."""

    size = 0

    def __setitem__(self, signature: str, tree: SignatureTree) -> None:
        self.size += len(signature) + 1
        if self.size > MAX_SIGNATURES:
            self.clear()
            self.size = len(signature) + 1
        super().__setitem__(signature, tree)


SignatureTree._cache = _Signatures(SignatureTree._cache)


def method_call(
    where: tuple[str, str, str, str],
    signature: str,
    args: Sequence[Any],
    *,
    interactive: bool = False,
    start: bool = True,
    answered: bool = True,
) -> Message:
    """Return a call of `where`: destination, path, interface and member.

    `interactive` lets polkit ask for a password. Without `start` no service is started, without `answered` no reply is
    sent.
    """
    flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
    if not start:
        flags |= MessageFlag.NO_AUTOSTART
    if not answered:
        flags |= MessageFlag.NO_REPLY_EXPECTED
    return Message(*where, flags=flags, signature=signature, body=list(args))


def error_reply(call: Message, name: str, text: str) -> Message:
    """Return the error reply to `call`. The text is made fit for the bus, which disconnects the sender of a NUL."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]} ... {text[-MAX_TEXT // 2 :]}"
    return Message.new_error(call, name, text.replace("\0", "").encode(errors="replace").decode())


def marshalled(message: Message) -> bytes:
    """Return the message as bytes. Raise ValueError or TypeError if the body does not fit its signature."""
    return bytes(message._marshall())  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


def parse(data: bytes) -> Message:
    """Return the message. Raise one of UNPARSEABLE where dbus_next is stricter than the bus, which has validated it."""
    unmarshaller = Unmarshaller(io.BytesIO(data))  # type: ignore[no-untyped-call]  # as above
    try:
        message: Message | None = unmarshaller.unmarshall()  # type: ignore[no-untyped-call]  # as above
    finally:
        unmarshaller.readers.clear()  # a cycle, which would keep the message until the garbage is collected
    if message is None:
        raise ValueError(f"{len(data)} bytes are not enough")
    return message


class ParseCache:
    """A parser that remembers the last short calls: a client that polls sends one again with another serial."""

    def __init__(self) -> None:
        self._known: dict[bytes, Message] = {}

    def parse(self, data: bytes) -> Message:
        """Return the same as `parse`, which costs more than all the rest of a read."""
        key = data[:8] + data[12:]
        known = self._known.get(key)
        if known is None:
            message = parse(data)
            if len(data) <= SHORT and message.message_type is MessageType.METHOD_CALL and message.signature in TEXTS:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[key] = message
            return message
        message = Message.__new__(Message)
        vars(message).update(vars(known))
        message.serial = int.from_bytes(data[8:12], "little" if data[0] == ord("l") else "big")
        return message


def sockets(address: str) -> Iterator[str]:
    """Yield the unix sockets in a bus address ("Server Addresses" in the specification). Raise InvalidAddressError."""
    for transport, options in parse_address(address):  # type: ignore[no-untyped-call]  # as above
        if transport == "unix" and "path" in options:
            yield options["path"]
        elif transport == "unix" and "abstract" in options:
            yield "\0" + options["abstract"]


def address_of(address: str | None) -> str:
    """Return the address of the bus: this one, else that of the environment, else the system bus."""
    return address or os.environ.get(ADDRESS) or SYSTEM_BUS


def unreachable(address: str, what: str) -> errors.Unreachable:
    """Return the error of a bus that cannot be used."""
    hint = "Is dbus running? systemctl status dbus"
    if address == os.environ.get(ADDRESS):
        hint = f"The environment names this bus ({ADDRESS}). Is it the one that is meant, and does it run?"
    return errors.Unreachable(f"the bus at {address} {what}", hint)


def may_reply(sender: str, destination: str) -> bool:
    """Return whether a sender may reply to a call: the bus answers for names that are not there.

    The owner of a well-known name is not known here. The bus lets no client reply that was not asked; this check
    comes on top.
    """
    is_known = destination.startswith(":") or destination == standard.BUS
    return not is_known or sender in (destination, standard.BUS)


def is_reply(message: Message, call: Message) -> bool:
    """Return whether a message is the reply to a call, also one that says why there is none."""
    is_answer = message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR)
    return is_answer and message.reply_serial == call.serial and may_reply(message.sender, call.destination)


def exception(reply: Message) -> errors.KerntuneError:
    """Return the exception for an error reply, with or without a text in its body."""
    name = reply.error_name
    text = str(reply.body[0]) if reply.body else ""
    # systemd sends this error when it cannot start the service: the service is masked, or fails.
    if name in GONE or name.startswith((errors.FREEDESKTOP + "Spawn.", "org.freedesktop.systemd1.")):
        return errors.Unreachable(text or name)
    cls = errors.by_name().get(name)
    return cls(text or name) if cls else BusError(name, text)


def unwrap(value: Any) -> Any:
    """Return a D-Bus value as plain Python: the content of each Variant replaces the Variant."""
    if isinstance(value, Variant):
        return unwrap(value.value)
    if isinstance(value, list):
        return [unwrap(item) for item in value]
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    return value
