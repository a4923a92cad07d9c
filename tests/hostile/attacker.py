"""The attacks, as a program that any user of the host could write; uses the standard library only.

`python -m tests.hostile.attacker ADDRESS NAME` prints one line of JSON when it has done its worst, and keeps its
connections until its standard input ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import struct
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.hostile.raw import ERROR, NO_REPLY, SIGNAL, THE_BUS, Got, Raw, Writer, frame_size, message

NAME: Final = "org.kerntune.Tuner1"
ROOT: Final = "/org/kerntune/Tuner1"
MANAGER: Final = f"{NAME}.Manager"
PROPERTIES: Final = f"{THE_BUS}.Properties"
DESCRIBE: Final = (NAME, ROOT, MANAGER, "Describe")
SET: Final = (NAME, ROOT, MANAGER, "Set")
GET_ALL: Final = (NAME, ROOT, PROPERTIES, "GetAll")
PING: Final = (NAME, ROOT, f"{THE_BUS}.Peer", "Ping")

BURST: Final = 8  # calls sent together
PACE: Final = 4000  # calls a second
WINDOW: Final = 16  # calls that wait for their reply at a time
IN_FLIGHT: Final = 32  # calls of one connection that the daemon lets be under way
CROWD: Final = 60  # connections
CROWDED: Final = 4.0  # seconds
STRANGERS: Final = 5000  # clients
TOO_LONG: Final = 31 << 20
PARSED: Final = 60_000  # bytes of a body, of the 64 KiB that are looked at
HOARDED: Final = 160 << 20  # bytes; dbus-daemon lets nobody have more than 127 MiB under way (max_incoming_bytes)


@dataclass(slots=True)
class Tally:
    """What came back: replies, errors by name, the longest and any suspicious error text, and facts of the attack."""

    replies: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    longest: int = 0
    leaks: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def take(self, got: Got) -> Got:
        self.replies += 1
        if got.error:
            self.errors[got.error.rpartition(".")[2]] += 1
            self.longest = max(self.longest, len(got.text))
            if any(mark in got.text for mark in ("Traceback", ".py", 'File "', "internal error", "site-packages")):
                self.leaks.append(got.text[:500])
        return got

    def line(self) -> str:
        return json.dumps(
            {
                "replies": self.replies,
                "errors": self.errors,
                "longest": self.longest,
                "leaks": self.leaks[:5],
                "facts": self.facts,
            }
        )


def pipeline(raw: Raw, frames: Iterator[bytes], tally: Tally, window: int = WINDOW) -> None:
    """Send all, with at most `window` replies outstanding."""
    waiting = 0
    for frame in frames:
        raw.send(frame)
        waiting += 1
        if waiting == window:
            tally.take(raw.next_reply())
            waiting -= 1
    for _ in range(waiting):
        tally.take(raw.next_reply())


def connections(address: str, stack: ExitStack) -> Tally:
    """Connect, call, hang up, a thousand times: every second one without waiting for the reply."""
    tally = Tally()
    for number in range(1000):
        with Raw(address) as raw:
            if number % 2:
                tally.take(raw.call(*GET_ALL, signature="s", args=[""]))
            else:
                raw.send(raw.make(*DESCRIBE))
    return tally


def signatures(address: str, stack: ExitStack) -> Tally:
    """10 000 signatures nobody has seen, half of them inside an option: about ten times what is kept."""
    raw, tally = stack.enter_context(Raw(address)), Tally()

    def frames() -> Iterator[bytes]:
        for number, kinds in enumerate(itertools.islice(itertools.product("bdinqstuxy", repeat=8), 10_000)):
            odd = f"a({''.join(kinds)})"
            if number % 2:
                yield raw.make(*SET, signature=odd, args=[[]])
            else:
                yield raw.make(*SET, signature="a(sss)a{sv}", args=[[], {"odd": (odd, [])}])

    pipeline(raw, frames(), tally)
    return tally


def descriptors(address: str, stack: ExitStack) -> Tally:
    """4 800 descriptors, sixteen to a message, as many as a bus lets through."""
    raw, tally = stack.enter_context(Raw(address, descriptors=True)), Tally()
    for _ in range(300):
        raw.serial += 1
        body = struct.pack("<I", 0)
        frame = message(raw.serial, *SET, "h", body, more=[(9, ("u", 16))])
        socket.send_fds(raw.socket, [frame], [0] * 16)
        tally.take(raw.next_reply())
    return tally


def bodies(address: str, stack: ExitStack) -> Tally:
    """Bodies of 31 MiB, with and without somebody waiting; then the most that is looked at at all."""
    raw, tally = stack.enter_context(Raw(address)), Tally()
    long = struct.pack("<I", TOO_LONG - 8) + bytes(TOO_LONG - 8)
    for signature in ("ay", "ai"):
        for _ in range(3):
            raw.send(raw.frame(*SET, signature=signature, body=long))
            tally.take(raw.next_reply())
        raw.send(raw.frame(*SET, signature=signature, body=long, flags=NO_REPLY))
    legal = bytes(Writer().all("a(sss)a{sv}", [[], {"odd": ("ai", range(PARSED // 4))}]))
    pipeline(raw, (raw.frame(*SET, signature="a(sss)a{sv}", body=legal) for _ in range(32)), tally)
    return tally


def heavy(address: str, stack: ExitStack) -> Tally:
    """The longest bodies that are still parsed, as many as the bus queues, from several connections at once."""
    body = bytes(Writer().all("a(sss)a{sv}", [[], {"odd": ("ai", range(PARSED // 4))}]))
    tally = Tally()
    for _ in range(4):
        raw = stack.enter_context(Raw(address))
        for _ in range(100):
            raw.send(raw.frame(*SET, signature="a(sss)a{sv}", body=body))
    return tally


def flood(address: str, stack: ExitStack) -> Tally:
    """Calls that ask for no reply, from four connections, as fast as the bus takes them."""
    frames = 200 * message(1, *DESCRIBE, flags=NO_REPLY)
    tally = Tally()
    raws = [stack.enter_context(Raw(address)) for _ in range(4)]
    for _ in range(150):
        for raw in raws:
            raw.send(frames)
    tally.facts["sent"] = 150 * 4 * 200
    return tally


def signals(address: str, stack: ExitStack) -> Tally:
    """Signals sent to the daemon alone, some of them lies about who has left the bus."""
    raw, tally = stack.enter_context(Raw(address)), Tally()
    body = bytes(Writer().all("sss", [raw.name, raw.name, ""]))
    lie = message(1, NAME, "/org/freedesktop/DBus", THE_BUS, "NameOwnerChanged", "sss", body, kind=SIGNAL)
    for _ in range(300):
        raw.send(100 * lie)
    tally.facts["sent"] = 30_000
    return tally


def spoofs(address: str, stack: ExitStack) -> Tally:
    """Replies to calls that the daemon may have made of somebody else; the bus lets none through."""
    raw, tally = stack.enter_context(Raw(address)), Tally()
    for serial in range(1, 2000):
        for kind in (2, ERROR):
            name = [(4, ("s", f"{THE_BUS}.Error.Failed"))] if kind == ERROR else []
            raw.send(message(serial, NAME, "", "", "", kind=kind, more=[(5, ("u", serial)), *name]))
    return tally


def hoard(address: str, stack: ExitStack) -> Tally:
    """Ask for the longest reply there is from many connections, no faster than it is given, and read none.

    Twice as fast, and the bus itself refuses most of it (max_replies_per_connection).
    """
    tally = Tally()
    raws = [stack.enter_context(Raw(address)) for _ in range(40)]
    size = len(raws[0].call(*DESCRIBE).body[0])
    for raw in raws:
        raw.socket.settimeout(0.05)
    for number in range(HOARDED // size // BURST):
        raw = raws[number % len(raws)]
        with contextlib.suppress(TimeoutError):
            raw.send(b"".join(raw.make(*DESCRIBE) for _ in range(BURST)))
        time.sleep(BURST / PACE)
    tally.facts["asked"] = HOARDED
    return tally


def overlong(address: str, stack: ExitStack) -> Tally:
    """The longest answers there are to get: many patterns, and error texts that repeat what they were told."""
    raw, tally = stack.enter_context(Raw(address)), Tally()
    patterns = [[t, f"*{'?' * 200}{n}", v] for t, v in (("io-scheduler", "none"),) for n in range(128)]
    plan = (NAME, ROOT, MANAGER, "Plan")
    got = tally.take(raw.call(*plan, signature="a(sss)a{sv}", args=[patterns, {}]))
    tally.facts["plan"] = len(got.body[1]) if not got.error else got.error
    every = [["io-scheduler", f"[{'n' * n}]*", "none"] for n in range(1, 200)]
    tally.take(raw.call(*plan, signature="a(sss)a{sv}", args=[every, {}]))
    for odd in ("x" * 200_000, "\U000e0001" * 50_000, "'\"\\\n" * 50_000):
        for setting in (
            [odd, "", ""],
            ["io-scheduler", odd, "none"],
            ["io-scheduler", "*", odd],
            ["overcommit", "", odd],
        ):
            tally.take(raw.call(*plan, signature="a(sss)a{sv}", args=[[setting], {}]))
            tally.take(raw.call(*SET, signature="a(sss)a{sv}", args=[[setting], {}]))
        tally.take(raw.call(*plan, signature="a(sss)a{sv}", args=[[], {odd: ("s", odd[:9])}]))
        tally.take(raw.call(NAME, ROOT, PROPERTIES, "Get", signature="ss", args=[odd, odd]))
        tally.take(raw.call(NAME, ROOT, PROPERTIES, "Get", signature="ss", args=[MANAGER, odd]))
        tally.take(raw.call(NAME, ROOT, PROPERTIES, "Set", signature="ssv", args=[MANAGER, odd, ("s", "")]))
    long = "/" + "x" * 100_000
    tally.take(raw.call(NAME, long, MANAGER, "Describe"))
    tally.take(raw.call(NAME, long, PROPERTIES, "GetAll", signature="s", args=[MANAGER]))
    return tally


def wrong(address: str, stack: ExitStack) -> Tally:
    """Every method and property of the contract with something about it that is not so."""
    raw, tally = stack.enter_context(Raw(address)), Tally()
    seen: dict[str, set[str]] = {}

    def expect(what: str, where: Sequence[str], signature: str = "", args: Sequence[Any] = ()) -> None:
        got = tally.take(raw.call(*where, signature=signature, args=args))
        seen.setdefault(what, set()).add(got.error)

    for interface in introspected(raw):
        name = interface.get("name", "")
        for method in interface.iterfind("method"):
            member = method.get("name", "")
            takes = "".join(a.get("type", "") for a in method.iterfind("arg") if a.get("direction", "in") == "in")
            for signature, args in (
                ("", []),
                ("s", [""]),
                ("ay", [b"\0"]),
                ("v", [("s", "")]),
                ("(sss)", [("", "", "")]),
            ):
                if signature != takes:
                    expect("signature", (NAME, ROOT, name, member), signature, args)
            expect("member", (NAME, ROOT, name, f"{member}s"))
            if not name.startswith(THE_BUS):
                expect("path", (NAME, f"{ROOT}/hold/1", name, member))
                expect("interface", (NAME, ROOT, f"{THE_BUS}.Peer", member))
        for prop in interface.iterfind("property"):
            known = prop.get("name", "")
            expect("read-only", (NAME, ROOT, PROPERTIES, "Set"), "ssv", [name, known, ("s", "x")])
            expect("property", (NAME, ROOT, PROPERTIES, "Get"), "ss", [name, f"{known}s"])
            expect("property", (NAME, ROOT, PROPERTIES, "Set"), "ssv", [name, f"{known}s", ("s", "x")])
            expect("unknown interface", (NAME, ROOT, PROPERTIES, "Get"), "ss", [f"{name}s", known])
    tally.facts = {what: sorted(names) for what, names in seen.items()}
    return tally


def deep(address: str, stack: ExitStack) -> Tally:
    """Variants in variants, as deep as the bus passes them on and deeper; arrays and structs likewise."""
    tally, refused = Tally(), 0
    for depth in (5, 30, 55, 60, 61, 62, 63, 64, 65, 200):
        nested: tuple[str, Any] = ("s", "bottom")
        for _ in range(depth):
            nested = ("v", nested)
        for signature, args in (
            ("a(sss)a{sv}", [[], {"persist": nested}]),
            ("v", [nested]),
            ("a" * min(depth, 32) + "s", [[]]),
            ("(" * min(depth, 32) + "s" + ")" * min(depth, 32), [wrapped(min(depth, 32))]),
        ):
            with Raw(address) as raw:
                try:
                    tally.take(raw.call(*SET, signature=signature, args=args))
                    tally.take(
                        raw.call(NAME, ROOT, PROPERTIES, "Set", signature="ssv", args=[MANAGER, "Version", nested])
                    )
                except ConnectionError:
                    refused += 1  # the bus itself does not take it, and hangs up
    tally.facts["refused"] = refused
    return tally


def wrapped(depth: int) -> Any:
    """A string in so many structs."""
    value: Any = "bottom"
    for _ in range(depth):
        value = (value,)
    return value


def big_endian(address: str, stack: ExitStack) -> Tally:
    """What a client on a machine of the other byte order sends is answered like anybody's."""
    tally = Tally()
    with Raw(address) as raw:
        for order, name in (("<", "little"), (">", "big")):
            plan = (NAME, ROOT, MANAGER, "Plan")
            settings = [["io-scheduler", "nvme0n1", "mq-deadline"], ["hugepages", "2M", "16"]]
            answers = [
                raw.call(NAME, ROOT, PROPERTIES, "Get", signature="ss", args=[MANAGER, "Version"], order=order),
                raw.call(*plan, signature="a(sss)a{sv}", args=[settings, {"persist": ("b", 1)}], order=order),
                raw.call(*plan, signature="a(sss)a{sv}", args=[settings, {"persist": ("u", 1)}], order=order),
                raw.call(
                    NAME, ROOT, f"{NAME}.HugePages", "SetCount", signature="tta{sv}", args=[5, 258, {}], order=order
                ),
            ]
            tally.facts[name] = [[answer.error, answer.body] for answer in map(tally.take, answers)]
    return tally


def questions(address: str, stack: ExitStack) -> Tally:
    """Ask for what polkit must be asked about, from many connections at once; wait for the first refusals only."""
    tally = Tally()
    raws = [stack.enter_context(Raw(address)) for _ in range(8)]
    for raw in raws:
        for _ in range(31):
            raw.send(raw.make(*SET, signature="a(sss)a{sv}", args=[[["io-scheduler", "sda", "none"]], {}]))
        if raw is not raws[-1]:
            raw.call(NAME, ROOT, f"{NAME}.Manager", "Describe")  # answered once those before it wait
    for _ in range(31):
        tally.take(raws[-1].next_reply())
    return tally


def given(address: str, stack: ExitStack) -> Tally:
    """Calls that somebody else has made up, in a file beside this one."""
    raw, tally = stack.enter_context(Raw(address)), Tally()

    def frames() -> Iterator[bytes]:
        data, at = Path(__file__).with_name("calls").read_bytes(), 0
        while size := frame_size(data[at : at + 16]):
            yield data[at : at + size]
            at += size

    pipeline(raw, frames(), tally)
    return tally


def crowd(address: str, stack: ExitStack) -> Tally:
    """Plans of a drive that is not there from 60 connections, each with as many under way as it may have."""
    tally = Tally()
    raws = {raw.socket: raw for raw in (stack.enter_context(Raw(address)) for _ in range(CROWD))}
    for raw in raws.values():
        raw.send(b"".join(plan_of_nothing(raw) for _ in range(IN_FLIGHT)))
    until = time.monotonic() + CROWDED
    while time.monotonic() < until:
        for readable in select.select(list(raws), [], [], 0.1)[0]:
            raw = raws[readable]
            tally.take(raw.next_reply())
            raw.send(plan_of_nothing(raw))
    return tally


def burst(address: str, stack: ExitStack) -> Tally:
    """The same from 24 connections at once, and away: nobody is there any more to read the replies."""
    tally = Tally()
    with ExitStack() as gone:
        for raw in [gone.enter_context(Raw(address)) for _ in range(24)]:
            raw.send(b"".join(plan_of_nothing(raw) for _ in range(IN_FLIGHT)))
    tally.facts["sent"] = 24 * IN_FLIGHT
    return tally


def patterns(address: str, stack: ExitStack) -> Tally:
    """Plans of as many costly patterns as a plan may have, no two alike, from 20 connections."""
    tally, number = Tally(), itertools.count()
    raws = {raw.socket: raw for raw in (stack.enter_context(Raw(address)) for _ in range(20))}

    def plan(raw: Raw) -> bytes:
        settings = [["io-scheduler", "*" * 120 + f"{next(number)}" + "*?" * 50, "none"] for _ in range(128)]
        return raw.make(NAME, ROOT, MANAGER, "Plan", signature="a(sss)a{sv}", args=[settings, {}])

    for raw in raws.values():
        raw.send(plan(raw) + plan(raw))
    until = time.monotonic() + CROWDED
    while time.monotonic() < until:
        for readable in select.select(list(raws), [], [], 0.1)[0]:
            tally.take(raws[readable].next_reply())
            raws[readable].send(plan(raws[readable]))
    return tally


def strangers(address: str, stack: ExitStack, clients: int = STRANGERS) -> Tally:
    """Clients who come once, each with a pattern that nobody has seen."""
    tally = Tally()
    for number in range(clients):
        with Raw(address) as raw:
            settings = [["io-scheduler", "*?" * 100 + f"{number}", "none"]]
            tally.take(raw.call(NAME, ROOT, MANAGER, "Plan", signature="a(sss)a{sv}", args=[settings, {}]))
    return tally


def a_hundred_thousand(address: str, stack: ExitStack) -> Tally:
    """The same, for an hour and more of a busy host."""
    return strangers(address, stack, 20 * STRANGERS)


def reads(address: str, stack: ExitStack) -> Tally:
    """No attack: a user who asks for all properties again and again, while others attack."""
    tally, waits = Tally(), []
    until = time.monotonic() + CROWDED
    while time.monotonic() < until:
        began = time.monotonic()
        with Raw(address) as raw:
            tally.take(raw.call(*GET_ALL, signature="s", args=[""]))
        waits.append(time.monotonic() - began)
        time.sleep(0.02)
    tally.facts["waits"] = waits
    return tally


def plan_of_nothing(raw: Raw) -> bytes:
    settings = [["io-scheduler", "nvme9n9", "none"]]
    return raw.make(NAME, ROOT, MANAGER, "Plan", signature="a(sss)a{sv}", args=[settings, {}])


def introspected(raw: Raw) -> list[ET.Element]:
    got = raw.call(NAME, ROOT, f"{THE_BUS}.Introspectable", "Introspect")
    return list(ET.fromstring(got.body[0]).iter("interface"))


ATTACKS: Final[dict[str, Callable[[str, ExitStack], Tally]]] = {
    attack.__name__: attack
    for attack in (
        connections,
        signatures,
        descriptors,
        bodies,
        heavy,
        flood,
        signals,
        spoofs,
        hoard,
        overlong,
        wrong,
        deep,
        big_endian,
        questions,
        crowd,
        burst,
        patterns,
        strangers,
        a_hundred_thousand,
        reads,
        given,
    )
}


def main(address: str, name: str) -> None:
    with ExitStack() as stack:
        tally = ATTACKS[name](address, stack)
        sys.stdout.write(tally.line() + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
