"""The least a service on this bus can cost: a process that answers every call with a reply made beforehand.

`python -m benchmarks.floor ADDRESS` owns FLOOR and says so on its output; it parses nothing but who asked and with
which serial.
"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks.load import Call
from benchmarks.wire import LENGTHS, METHOD_CALL, NUMBER, REPLY_SERIAL, SERIAL_AT, Connection, sender
from kerntune.dbus.messages import Message, MessageType, Variant

FLOOR: Final = "org.kerntune.Benchmark.Floor"
VALUE: Final = Variant("s", "heuristic")

# The same as ours: everybody may call it, root may own it.
POLICY: Final = f"""\
<busconfig>
  <policy context="default"><allow send_destination="{FLOOR}"/></policy>
  <policy user="root"><allow own="{FLOOR}"/></policy>
</busconfig>
"""


def reply_to(name: str) -> bytearray:
    """A reply to that client, its two serials to be filled in."""
    reply = Message(
        destination=name, message_type=MessageType.METHOD_RETURN, reply_serial=1, signature="v", body=[VALUE], serial=1
    )
    return bytearray(reply._marshall())  # type: ignore[no-untyped-call]  # dbus_next has no annotation here


def serve(connection: Connection) -> None:
    """Answer until the bus ends."""
    replies: dict[str, tuple[bytearray, int]] = {}
    serial = 2
    while True:
        for message in connection.receive():
            if message[1] != METHOD_CALL:
                continue
            name = sender(message)
            if name not in replies:
                made = reply_to(name)
                replies[name] = made, made.index(REPLY_SERIAL) + len(REPLY_SERIAL)
            reply, place = replies[name]
            serial += 1
            NUMBER.pack_into(reply, SERIAL_AT, serial)
            NUMBER.pack_into(reply, place, LENGTHS.unpack_from(message, 4)[1])
            connection.send(reply)


def main(address: str) -> None:
    """Own the name and serve; waits for calls as long as the benchmark lasts."""
    connection = Connection(address, timeout=3600.0)
    bus = "org.freedesktop.DBus"
    connection.send(Call(bus, "/org/freedesktop/DBus", bus, "RequestName", "su", (FLOOR, 4)).marshalled(2))
    connection.await_reply(2)
    print("ready", flush=True)
    serve(connection)


if __name__ == "__main__":
    main(sys.argv[1])
