"""What unprivileged clients, and a bus that stops or dies, do to the daemon: nothing that others notice for long."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from kerntune.dbus.backpressure import CLIENT, USER
from tests.harness.daemon import READY, Daemon
from tests.harness.polkitd import MEMBER, OTHER, Polkitd, as_user
from tests.harness.privatebus import POLICY, PrivateBus
from tests.hostile.attacker import CROWDED, HOARDED, STRANGERS
from tests.hostile.conftest import ANSWERED, FIGURES, Victim
from tests.hostile.raw import BUS_PATH, SIGNAL, THE_BUS, Raw

SET: Final = (BUS_NAME, ROOT, MANAGER, "Set")
UNSET: Final = (BUS_NAME, ROOT, MANAGER, "Unset")
AT_ONCE: Final = 0.2  # seconds a bystander's read may take
CHANGED: Final = 0.5  # seconds a change of root's may take
LEFT: Final = 4 << 10  # KiB of memory that clients who come once may leave
NOBODY: Final = "nobody"
PACE: Final = 0.1  # seconds between two changes of root's
BUSY: Final = 2  # times as long, where attackers, bus and bystander compete for two CPUs
SEEN: Final = 20  # reads of a bystander while a crowd calls
STOPPED: Final = 2.0  # seconds for which the bus does nothing
PLUGGED: Final = 60
ENDS: Final = 8.0  # seconds in which the daemon ends without a bus: it looks for one for 5
MAX_INCOMING: Final = 133169152  # bytes; dbus-daemon's max_incoming_bytes


class TestClients:
    def test_a_thousand_connections(self, victim: Victim) -> None:
        with victim.under("connections") as result:
            assert (result.replies, result.errors) == (500, {})

    def test_signatures_nobody_has_seen(self, victim: Victim) -> None:
        with victim.under("signatures") as result:
            assert result.errors == {"InvalidArgs": 10_000}

    def test_descriptors(self, victim: Victim) -> None:
        """The bus refuses them: the daemon has not said that it takes any."""
        with victim.under("descriptors") as result:
            assert sum(result.errors.values()) == 300

    def test_long_bodies(self, victim: Victim) -> None:
        """Those of 31 MiB are refused unread; of those that are short enough, some, when they all come at once."""
        with victim.under("bodies") as result:
            assert result.errors.keys() == {"LimitsExceeded", "InvalidArgs"}
            assert sum(result.errors.values()) == 6 + 32
            assert result.errors["LimitsExceeded"] >= 6

    @pytest.mark.parametrize("name", ["heavy", "flood", "signals", "spoofs"])
    def test_more_than_can_be_looked_at(self, victim: Victim, name: str) -> None:
        with victim.under(name):
            pass

    def test_sixty_connections_of_one_user(self, victim: Victim) -> None:
        """They have the share of one user; a single wait may be that of a busy machine."""
        with victim.under("crowd") as result:
            assert set(result.errors) <= {"LimitsExceeded", "NoSuchTarget"}
            assert len(result.waits) >= SEEN
            waits = sorted(result.waits)
            FIGURES.append(
                f"crowd: median {waits[len(waits) // 2] * 1e3:.0f} ms, worst of nine in ten {nine(waits):.0f} ms"
            )
            assert waits[len(waits) // 2] < AT_ONCE
            assert nine(waits) < BUSY * AT_ONCE * 1e3

    def test_two_users_with_many_connections(self, victim: Victim) -> None:
        """A third user's reads, and root's changes, come between whatever the two send.

        Where there are CPUs for all of them, the reads are within AT_ONCE.
        """
        changes: list[float] = []
        with (
            victim.beside("crowd", OTHER) as crowd,
            victim.beside("patterns", NOBODY) as patterns,
            victim.beside("reads", MEMBER) as reads,
        ):
            until = time.monotonic() + CROWDED
            while time.monotonic() < until:
                changes.append(changed(victim))
                time.sleep(PACE)
            waits = sorted(reads()["facts"]["waits"])
            assert crowd()["replies"] >= SEEN
            assert patterns()["replies"] >= SEEN
        changes.sort()
        FIGURES.append(
            f"crowd and patterns: nine in ten of {len(waits)} reads of a third user within {nine(waits):.0f} ms, "
            f"median {waits[len(waits) // 2] * 1e3:.0f}, worst {waits[-1] * 1e3:.0f}; "
            f"of {len(changes)} changes of root's {nine(changes):.0f}, worst {changes[-1] * 1e3:.0f}"
        )
        assert len(waits) >= SEEN
        assert waits[len(waits) // 2] < AT_ONCE
        assert nine(waits) < BUSY * AT_ONCE * 1e3
        assert nine(changes) < CHANGED * 1e3

    @pytest.mark.timeout(240)
    def test_clients_who_come_once_leave_nothing(self, victim: Victim) -> None:
        with victim.under("strangers", growth=LEFT, limit=150.0) as result:
            assert result.errors == {}
            assert result.replies == STRANGERS

    @pytest.mark.soak
    @pytest.mark.timeout(3600)
    def test_a_hundred_thousand_of_them_neither(self, victim: Victim) -> None:
        with victim.under("a_hundred_thousand", growth=LEFT, limit=3000.0) as result:
            assert result.replies == 20 * STRANGERS

    def test_calls_of_those_who_have_left(self, victim: Victim) -> None:
        with victim.under("burst") as result:
            assert nine(sorted(result.waits)) < AT_ONCE * 1e3
            took = changed(victim)
            FIGURES.append(f"burst: a change of root's took {took * 1e3:.0f} ms")
            assert took < CHANGED

    def test_replies_that_nobody_reads(self, victim: Victim) -> None:
        """Who reads nothing gets no more, and the bus goes on reading from the daemon; the user's others are served."""
        assert HOARDED > MAX_INCOMING
        with victim.under("hoard"):
            kept = victim.kept()
            FIGURES.append(f"hoard: {HOARDED >> 20} MiB of replies were asked for, the bus keeps {kept >> 20} MiB")
            assert CLIENT < kept < 2 * USER
            ask = [
                "busctl",
                f"--address={victim.bus.address}",
                "call",
                *SET[:2],
                f"{THE_BUS}.Properties",
                "GetAll",
                "s",
                "",
            ]
            done = subprocess.run(as_user(OTHER, ask), capture_output=True, text=True, timeout=10, check=False)
            assert done.returncode == 0, done.stderr

    def test_the_longest_answers(self, victim: Victim) -> None:
        with victim.under("overlong") as result:
            assert result.facts == {"plan": 128}
            assert result.longest < 5000

    def test_what_is_not_so(self, victim: Victim) -> None:
        with victim.under("wrong") as result:
            expected = {
                "signature": "InvalidArgs",
                "member": "UnknownMethod",
                "path": "UnknownObject",
                "interface": "UnknownMethod",
                "read-only": "PropertyReadOnly",
                "property": "UnknownProperty",
                "unknown interface": "UnknownInterface",
            }
            assert result.facts == {what: [f"{THE_BUS}.Error.{name}"] for what, name in expected.items()}

    def test_depths(self, victim: Victim) -> None:
        """60 variants in each other pass the bus, and are refused; what is deeper the bus does not let through."""
        with victim.under("deep") as result:
            assert result.errors.keys() == {"InvalidArgs", "PropertyReadOnly"}
            assert result.facts["refused"] > 0

    def test_the_other_byte_order(self, victim: Victim) -> None:
        with victim.under("big_endian") as result:
            assert result.facts["big"] == result.facts["little"]
            assert [error.rpartition(".")[2] for error, _ in result.facts["big"]] == [
                "",
                "",
                "InvalidArgs",
                "InvalidValue",
            ]

    def test_questions_for_a_silent_polkit(self, victim: Victim, polkitd: Polkitd) -> None:
        """One user's calls do not take up all that may wait for polkit: another's is heard when it answers again."""
        call = [*SET[:2], f"{BUS_NAME}.IoScheduler", "SetScheduler", "ssa{sv}", "sda", "none", "0"]
        polkitd.stop()
        try:
            with victim.under("questions") as result:
                assert result.errors == {"LimitsExceeded": 31}
                busctl = as_user(MEMBER, ["busctl", f"--address={victim.bus.address}", "call", *call])
                with subprocess.Popen(busctl, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as member:
                    with pytest.raises(subprocess.TimeoutExpired):
                        member.wait(0.5)
                    polkitd.cont()
                    output, _ = member.communicate(timeout=ANSWERED)
                    assert member.returncode == 0, output
        finally:
            polkitd.cont()
        with Raw(victim.bus.address) as root:
            assert not root.call(*UNSET, signature="a(ss)a{sv}", args=[[["io-scheduler", "*"]], {}]).error


class TestBus:
    def test_it_stops_while_signals_are_sent(self, victim: Victim) -> None:
        """Nothing of what was announced meanwhile is lost, and it comes in order."""
        names = [f"nvme{number}n1" for number in range(100, 100 + PLUGGED)]
        with Raw(victim.bus.address) as root, Raw(victim.bus.address) as listener:
            assert not root.call(
                *SET, signature="a(sss)a{sv}", args=[[["io-scheduler", "nvme1??n1", "mq-deadline"]], {}]
            ).error
            rule = f"type='signal',sender='{BUS_NAME}',member='Changed'"
            assert not listener.call(THE_BUS, BUS_PATH, THE_BUS, "AddMatch", signature="s", args=[rule]).error
            os.kill(victim.bus.pid, signal.SIGSTOP)
            began = time.monotonic()
            try:
                with (victim.daemon.runtime / "demo").open("w") as drives:
                    for name in names:
                        drives.write(f"add {name}\n")
                        drives.flush()
                        wait_for(lambda: f"@{name} " in victim.daemon.journal())  # noqa: B023  # called here only
                select.select([], [], [], max(0.0, began + STOPPED - time.monotonic()))
            finally:
                os.kill(victim.bus.pid, signal.SIGCONT)
            missing, generations = set(names), []
            while missing:
                got = listener.next()
                if got.kind == SIGNAL and got.member == "Changed":
                    generation, _cause, outcomes = got.body
                    generations.append(generation)
                    missing -= {outcome[1] for outcome in outcomes}
            assert generations == sorted(set(generations))
            FIGURES.append(
                f"the bus stopped for {STOPPED:g} s: {PLUGGED} drives announced in {len(generations)} signals"
            )
            with (victim.daemon.runtime / "demo").open("w") as drives:
                for name in names:
                    drives.write(f"remove {name}\n")
                    drives.flush()
            assert not root.call(*UNSET, signature="a(ss)a{sv}", args=[[["io-scheduler", "*"]], {}]).error
        assert victim.answer() < ANSWERED

    def test_it_is_killed(self) -> None:
        with PrivateBus(include=[POLICY]) as bus, Daemon(bus, "--demo") as daemon:
            with Raw(bus.address) as client:
                for _ in range(20):
                    client.send(client.make(BUS_NAME, ROOT, MANAGER, "Describe"))
                os.kill(bus.pid, signal.SIGKILL)
                began, before = time.monotonic(), cpu_of_children()
                assert daemon.wait() == 1
            took, cpu = time.monotonic() - began, cpu_of_children() - before
            FIGURES.append(f"the bus was killed: the daemon ended after {took:.2f} s and {cpu:.2f} s of CPU in all")
            assert took < ANSWERED
            assert cpu < 2.0
            assert "Traceback" not in daemon.journal()

    def test_it_dies_while_we_authenticate(self, tmp_path: Path) -> None:
        """Whatever it had said by then, the boot pass is done and the daemon ends."""
        before = cpu_of_children()
        with ExitStack() as stack:
            buses = [
                stack.enter_context(dying(tmp_path / f"socket{number}", words)) for number, words in enumerate(DEATHS)
            ]
            daemons = [stack.enter_context(Daemon(bus, "--demo", wait=False)) for bus in buses]
            began = time.monotonic()
            codes = [daemon.wait() for daemon in daemons]
            took = time.monotonic() - began
            journals = [daemon.journal() for daemon in daemons]
        cpu = (cpu_of_children() - before) / len(DEATHS)
        FIGURES.append(f"a bus that dies during authentication: {took:.1f} s to the end, {cpu:.2f} s of CPU a daemon")
        assert codes == [1] * len(DEATHS)
        assert took < ENDS
        assert cpu < 2.0
        assert not any("Traceback" in journal or READY in journal for journal in journals)


OK: Final = b"OK 0123456789abcdef0123456789abcdef\r\n"
# What a bus says before it hangs up; None is one that says nothing and stays.
DEATHS: Final = ((), (b"",), (b"OK",), (b"REJECTED EXTERNAL\r\n",), (OK,), (OK, b"l\2\1\1"), (None,))


class Dying:
    """Where a bus should be."""

    def __init__(self, address: str) -> None:
        self.address = address


@contextmanager
def dying(path: Path, words: tuple[bytes | None, ...]) -> Iterator[Dying]:
    """Something that listens, takes what the daemon says, answers with these words, one each time, and hangs up."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    served, _ = listening.accept()
                    held.append(served)
                    for word in words:
                        served.recv(1000)
                        served.sendall(word or b"")
                    if None not in words:
                        served.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield Dying(f"unix:path={path}")
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for served in held:
                served.close()


def changed(victim: Victim) -> float:
    """Return the seconds that a change of root's took; it is withdrawn again."""
    with Raw(victim.bus.address) as root:
        began = time.monotonic()
        assert not root.call(*SET, signature="a(sss)a{sv}", args=[[["io-scheduler", "sda", "none"]], {}]).error
        took = time.monotonic() - began
        assert not root.call(*UNSET, signature="a(ss)a{sv}", args=[[["io-scheduler", "*"]], {}]).error
    return took


def nine(waits: list[float]) -> float:
    """Milliseconds that nine in ten of the waits, which are sorted, are within."""
    return waits[(len(waits) * 9 - 1) // 10] * 1e3


def wait_for(true: Callable[[], bool], limit: float = 10.0) -> None:
    until = time.monotonic() + limit
    while not true():
        assert time.monotonic() < until, "waited in vain"
        select.select([], [], [], 0.02)


def cpu_of_children() -> float:
    """Seconds that all ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
