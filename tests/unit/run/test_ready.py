"""The moment at which a server is ready, with real ports, processes and sockets."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kerntune.errors import Failed, Usage
from kerntune.run import ready
from kerntune.run.ready import NOTIFY, Readiness, awaited, takes_connections
from kerntune.run.signals import Signals
from tests.harness.workers import LIMIT, gone
from tests.unit.run.lab import attended, seen, until, words

NOBODY = 54_321
UNUSED = Signals(-1)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="it becomes another user, or has a network of its own")
# It sends a message to the socket in NOTIFY_SOCKET, and ends at once.
SEND = """\
import os, socket, sys
own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = os.environ["NOTIFY_SOCKET"]
for text in sys.argv[1:]:
    own.sendto(text.encode(), "\\0" + name[1:] if name[0] == "@" else name)
"""


@dataclass
class Told:
    """How often it was told that the server is ready."""

    times: int = 0

    def __call__(self) -> None:
        self.times += 1


# Ports


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_a_port_that_takes_connections(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    told = Told()
    with socket.socket(family) as server:
        server.bind((address, 0))
        port = server.getsockname()[1]
        with awaited(str(port), UNUSED, told) as waiting:
            assert (waiting.environment(), waiting.descriptor) == ({}, None)
            assert waiting.look(100.0) == 100.0 + ready.PORT_SECONDS
            assert told.times == 0
            server.listen()
            assert waiting.look(200.0) is None
    assert told.times == 1


def test_a_port_that_another_program_serves_already() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Failed, match=f"port {port} takes connections before"), awaited(str(port), UNUSED, Told()):
            pass


@pytest.mark.parametrize("text", ["0", "65536", "99999999999999999999"])
def test_a_number_that_is_no_port(text: str) -> None:
    with pytest.raises(Usage, match="is no port"), awaited(text, UNUSED, Told()):
        pass


@needs_root
@pytest.mark.skipif(not shutil.which("ip"), reason="it takes ip(8) to make a network")
def test_a_connection_to_itself_is_no_server() -> None:
    """On a network with one port to choose from, a connection would come from the very port it goes to."""
    script = """\
ip link set lo up && echo 40000 40000 >/proc/sys/net/ipv4/ip_local_port_range && exec "$@"
"""
    look = "from kerntune.run.ready import takes_connections; print(takes_connections('127.0.0.1', 40000))"
    argv = ["unshare", "-n", "sh", "-c", script, "sh", sys.executable, "-c", look]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == "False\n"


def test_no_such_address_takes_connections() -> None:
    assert not takes_connections("192.0.2.1", 80)


# A command line


def test_a_command_line_that_ends_with_0(tmp_path: Path) -> None:
    told = Told()
    with awaited(f"test -e {tmp_path}/ready", UNUSED, told) as waiting:
        assert ended(waiting, 0.0) == 0.0 + ready.COMMAND_SECONDS
        assert told.times == 0
        (tmp_path / "ready").touch()
        assert ended(waiting, 1.0) is None
    assert told.times == 1


def ended(waiting: Readiness, now: float) -> float | None:
    """Look until a run has ended; return what the last look said."""
    said: list[float | None] = []

    def has_ended() -> bool:
        said.append(waiting.look(now))
        return said[-1] != now + ready.LOOK_SECONDS

    until(has_ended)
    return said[-1]


def writes_pid(path: Path) -> str:
    """Return a command line that says its number in a file, and that of a process it has forked, and hangs."""
    return f"sleep 1000 & echo $$ $! >{path}.new; mv {path}.new {path}; wait"


def pidfds(path: Path, look: Callable[[], object]) -> list[int]:
    """Return descriptors for the processes that a file names."""
    until(lambda: (look(), path.exists())[1])
    return [os.pidfd_open(int(word)) for word in path.read_text().split()]


def all_gone(descriptors: list[int]) -> bool:
    """Wait for the end of processes."""
    try:
        return all(map(gone, descriptors))
    finally:
        for each in descriptors:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(each, signal.SIGKILL)
            os.close(each)


def test_a_command_line_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    told = Told()
    with awaited(writes_pid(tmp_path / "pids"), UNUSED, told) as waiting:
        processes = pidfds(tmp_path / "pids", lambda: waiting.look(0.0))
        now = ready.LONGEST_SECONDS
        assert waiting.look(now - 0.1) == now - 0.1 + ready.LOOK_SECONDS
        assert ended(waiting, now) == now + ready.COMMAND_SECONDS
        assert all_gone(processes)
    assert told.times == 0


def test_nothing_is_left_of_a_command_line_at_the_end(tmp_path: Path) -> None:
    with awaited(writes_pid(tmp_path / "pids"), UNUSED, Told()) as waiting:
        processes = pidfds(tmp_path / "pids", lambda: waiting.look(0.0))
    assert all_gone(processes)
    with pytest.raises(ChildProcessError):
        os.waitpid(int((tmp_path / "pids").read_text().split()[0]), os.WNOHANG)


def test_what_a_command_line_leaves_in_the_background_is_killed(tmp_path: Path) -> None:
    line = (
        f"sleep 1000 & echo $! >{tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids; read word <{tmp_path}/go"
    )
    os.mkfifo(tmp_path / "go")
    with awaited(line, UNUSED, told := Told()) as waiting:
        processes = pidfds(tmp_path / "pids", lambda: waiting.look(0.0))
        (tmp_path / "go").write_text("word\n")
        assert ended(waiting, 0.0) is None
        assert all_gone(processes)
    assert told.times == 1


def test_the_end_of_the_command_ends_a_command_line(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with attended("sh", "-c", "read word; exit 4", ready=writes_pid(pids)) as (process, _):
        processes = pidfds(pids, lambda: None)
        process.communicate(b"word\n", timeout=LIMIT)
        assert process.returncode == 4
        assert all_gone(processes)


@pytest.mark.parametrize("first", ["", "trap '' TERM; "])
def test_a_kill_of_the_parent_ends_a_command_line_with_what_it_has_started(first: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with attended("sleep", "1000", ready=f"{first}{writes_pid(pids)}") as (process, _):
        processes = pidfds(pids, lambda: None)
        process.kill()
        assert all_gone(processes)


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def block_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


@pytest.mark.parametrize("prepare", [ignore_sigterm, block_sigterm])
def test_it_ends_also_where_the_parent_was_started_deaf_to_sigterm(prepare: Callable[[], None], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with attended("sleep", "1000", ready=writes_pid(pids), preexec_fn=prepare) as (process, _):
        processes = pidfds(pids, lambda: None)
        process.kill()
        assert all_gone(processes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_command_line_can_be_interrupted(number: signal.Signals) -> None:
    """As by timeout(1); a shell has what it starts in the background ignore these."""
    with awaited(f"kill -{number} $$", UNUSED, told := Told()) as waiting:
        assert ended(waiting, 0.0) == 0.0 + ready.COMMAND_SECONDS
    assert told.times == 0


def test_a_command_line_reads_and_writes_nothing_of_the_commands() -> None:
    line = "read word; ls -l /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 | grep -c ' /dev/null$' | grep -x 2"
    with awaited(line, UNUSED, told := Told()) as waiting:  # the second one is the pipe
        assert ended(waiting, 0.0) is None
    assert told.times == 1


# sd_notify(3)


@dataclass
class Notifying:
    """A wait for READY=1, a service manager above it, and a program that sends messages."""

    waiting: Readiness
    manager: socket.socket
    told: Told
    own: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))

    @property
    def name(self) -> str:
        """The name of the socket, in the form for a program."""
        return self.waiting.environment()["NOTIFY_SOCKET"]

    def send(self, text: str, *descriptors: int) -> None:
        """Send a message as the program does, and look at it."""
        self.own.connect(f"\0{self.name[1:]}")
        socket.send_fds(self.own, [text.encode()], descriptors)

    def received(self) -> tuple[str, list[int]]:
        """Return what the service manager gets next, "" if there is nothing."""
        try:
            text, descriptors, _, _ = socket.recv_fds(self.manager, 65_536, 16)
        except BlockingIOError:
            return "", []
        return text.decode(), descriptors


@contextmanager
def notifying(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifying]:
    """Give a wait below a service manager that listens at `path`; @ stands for a zero byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(f"\0{path[1:]}" if path[0] == "@" else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        with awaited(NOTIFY, UNUSED, told := Told()) as waiting:
            lab = Notifying(waiting, manager, told)
            with lab.own:
                yield lab


@pytest.fixture
def notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifying]:
    before = set(tmp_path.iterdir())
    with notifying(str(tmp_path / "manager"), monkeypatch) as lab:
        yield lab
        name = lab.name
    assert set(tmp_path.iterdir()) == before | {tmp_path / "manager"}
    assert name not in Path("/proc/net/unix").read_text().split()


def test_ready_is_told_once_and_goes_on(notify: Notifying) -> None:
    for text in ("STATUS=loading 1/2", "STATUS=READY=1", "READY=1\nSTATUS=serving", "READY=1"):
        notify.send(text)
        before = notify.told.times
        assert notify.waiting.look(0.0) == float("inf")
        assert notify.received() == (text, [])
        assert notify.told.times == (1 if before or text.startswith("READY") else 0)


def test_a_manager_with_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with notifying(f"@kerntune-test-{os.getpid()}", monkeypatch) as lab:
        lab.send("READY=1")
        lab.waiting.look(0.0)
        assert lab.received() == ("READY=1", [])


@pytest.mark.parametrize("name", ["", "/no/such/folder/socket", "vsock:2:1", "nonsense"])
def test_nobody_to_pass_it_on_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with awaited(NOTIFY, UNUSED, told := Told()) as waiting, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.sendto(b"READY=1", f"\0{waiting.environment()['NOTIFY_SOCKET'][1:]}")
        waiting.look(0.0)
    assert told.times == 1


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_for_the_store_go_on(notify: Notifying, tmp_path: Path) -> None:
    before = open_descriptors()
    with open(tmp_path / "first", "wb") as first, open(tmp_path / "second", "wb") as second:
        notify.send("FDSTORE=1\nFDNAME=weights", first.fileno(), second.fileno())
        wanted = [os.fstat(first.fileno()).st_ino, os.fstat(second.fileno()).st_ino]
    assert open_descriptors() == before
    notify.waiting.look(0.0)
    text, descriptors = notify.received()
    try:
        assert text == "FDSTORE=1\nFDNAME=weights"
        assert [os.fstat(each).st_ino for each in descriptors] == wanted
        assert open_descriptors() == before + 2
    finally:
        for each in descriptors:
            os.close(each)
        for name in ("first", "second"):
            (tmp_path / name).unlink()


def test_a_barrier_falls_when_the_manager_lets_go(notify: Notifying) -> None:
    reader, writer = os.pipe()
    try:
        notify.send("BARRIER=1", writer)
        os.close(writer)
        poll = select.poll()
        poll.register(reader, 0)
        notify.waiting.look(0.0)
        assert poll.poll(0) == []  # the manager has it
        text, descriptors = notify.received()
        assert text == "BARRIER=1"
        os.close(*descriptors)
        assert poll.poll(0) == [(reader, select.POLLHUP)]
    finally:
        os.close(reader)


def test_a_barrier_falls_where_there_is_no_manager(notify: Notifying) -> None:
    notify.manager.close()
    reader, writer = os.pipe()
    try:
        notify.send("BARRIER=1", writer)
        os.close(writer)
        notify.waiting.look(0.0)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


@contextmanager
def another_user(name: str, *, orphaned: bool) -> Iterator[None]:
    """Have another user send READY=1, as a descendant or as nobody's child, and live until the end."""
    script = f"""\
import os, sys, time
while {orphaned} and os.getppid() == int(os.environ["SHELL_PID"]):
    time.sleep(0.01)
os.setgid({NOBODY}); os.setuid({NOBODY})
{SEND}
os.write(1, b"sent")
sys.stdin.read()
"""
    start = "exec 3<&0; SHELL_PID=$$; export SHELL_PID; "
    start += '"$@" <&3 & exit' if orphaned else 'exec "$@"'
    with subprocess.Popen(
        ["sh", "-c", start, "sh", sys.executable, "-c", script, "READY=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "NOTIFY_SOCKET": name},
    ) as process:
        seen(process.stdout, "sent")
        yield
        process.communicate(timeout=LIMIT)  # to the end of all that have its standard output


@needs_root
@pytest.mark.parametrize("orphaned", [False, True], ids=["descendant", "stranger"])
def test_messages_of_another_user(notify: Notifying, orphaned: bool) -> None:
    with another_user(notify.name, orphaned=orphaned):
        notify.waiting.look(0.0)
    assert notify.told.times == (0 if orphaned else 1)
    assert notify.received() == (("", []) if orphaned else ("READY=1", []))


def fill(manager: socket.socket) -> int:
    """Send to the service manager until it has no more room; return how many messages it has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.setblocking(False)
        own.connect(manager.getsockname())
        count = 0
        with suppress(BlockingIOError):
            while True:
                own.send(b"x")
                count += 1
    return count


def test_a_full_manager_gets_the_message_when_it_has_room(notify: Notifying) -> None:
    fill(notify.manager)
    notify.send("READY=1")
    assert notify.waiting.look(10.0) == 10.0  # it has a turn again at once, after signals
    assert notify.told.times == 1
    assert notify.received() == ("x", [])
    assert notify.waiting.look(10.1) == float("inf")
    assert notify.told.times == 1
    texts = iter(lambda: notify.received()[0], "")
    assert list(texts)[-1] == "READY=1"


def test_a_message_is_lost_where_the_manager_stays_full(notify: Notifying) -> None:
    count = fill(notify.manager)
    reader, writer = os.pipe()
    try:
        notify.send("READY=1", writer)
        os.close(writer)
        assert notify.waiting.look(10.0) == 10.0
        assert notify.waiting.look(10.0 + ready.FORWARD_SECONDS) == float("inf")
        assert notify.told.times == 1
        assert os.read(reader, 1) == b""  # what came with it is closed
    finally:
        os.close(reader)
    assert list(iter(lambda: notify.received()[0], "")) == ["x"] * count


def test_a_wait_that_ends_closes_what_waits_to_go_on(notify: Notifying) -> None:
    fill(notify.manager)
    before = open_descriptors()
    with open(os.devnull, "rb") as given, awaited(NOTIFY, UNUSED, Told()) as second:
        notify.own.connect(f"\0{second.environment()['NOTIFY_SOCKET'][1:]}")
        socket.send_fds(notify.own, [b"FDSTORE=1"], [given.fileno()])
        assert second.look(10.0) == 10.0
    assert open_descriptors() == before


def test_a_wait_that_ends_tries_once_more_to_pass_a_message_on(notify: Notifying) -> None:
    fill(notify.manager)
    with awaited(NOTIFY, UNUSED, Told()) as second:
        notify.own.sendto(b"STOPPING=1", f"\0{second.environment()['NOTIFY_SOCKET'][1:]}")
        assert second.look(10.0) == 10.0
        assert notify.received() == ("x", [])
    assert list(iter(lambda: notify.received()[0], ""))[-1] == "STOPPING=1"


def test_a_flood_of_messages_leaves_room_for_signals(notify: Notifying) -> None:
    notify.own.setblocking(False)
    sent = 0
    while True:
        try:
            notify.send("STATUS=again")
        except BlockingIOError:
            break
        sent += 1
    taken = looks = 0
    while taken < sent:
        notify.waiting.look(0.0)
        looks += 1
        taken += (got := len(list(iter(lambda: notify.received()[0], ""))))
        assert got <= ready.MESSAGES
    assert looks >= sent / ready.MESSAGES


def test_a_message_of_the_last_moment_goes_on(tmp_path: Path) -> None:
    """The parent is stopped while the command sends its messages and ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(LIMIT)
        manager.bind(str(tmp_path / "manager"))
        script = f"import os; os.write(1, b'<go>'); os.read(0, 1)\n{SEND}"
        command = (sys.executable, "-c", script, "READY=1", "STOPPING=1")
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "manager")}
        with attended(*command, ready="notify", env=env) as (process, child):
            seen(process.stdout, "<go>")
            process.send_signal(signal.SIGSTOP)
            descriptor = os.pidfd_open(child)
            assert process.stdin is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            assert gone(descriptor)
            os.close(descriptor)
            process.send_signal(signal.SIGCONT)
            said, _ = process.communicate(timeout=LIMIT)
        assert (said, process.returncode) == (b"<ready>", 0)
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_a_full_manager_does_not_keep_the_parent_from_its_work(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "manager"))
        script = f"""\
import signal
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"<USR1>"))
{SEND}
own.sendto(b"READY=1", "\\0" + name[1:])
os.write(1, b"<go>")
sys.stdin.read()
"""
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "manager")}
        fill(manager)
        with attended(sys.executable, "-c", script, ready="notify", env=env) as (process, _):
            said = seen(process.stdout, "<go>")
            process.send_signal(signal.SIGUSR1)
            said += seen(process.stdout, "<USR1>")
            rest, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0
        assert "<ready>" in said + rest.decode()


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="it comes with systemd")
def test_systemd_notify_waits_for_its_barrier() -> None:
    done = subprocess.run(
        words("systemd-notify", "--ready", ready="notify"), capture_output=True, timeout=LIMIT, check=True
    )
    assert done.stdout == b"<ready>"
