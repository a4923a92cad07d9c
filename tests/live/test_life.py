"""The daemon's life: ready, told to stop, without a bus, beside another one, killed, and over a reboot."""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from kerntune.api.names import HUGE_PAGES, MANAGER
from kerntune.daemon.app import BUS_WAIT
from kerntune.engine.writer import SIGNAL, Halt, make_endable
from kerntune.journal import TARGET_NOT_SET, TARGET_SET
from kerntune.kernel.files import HostKernel
from kerntune.model import Claim, Origin
from tests.harness import host
from tests.harness.daemon import READY, Daemon
from tests.harness.host import DISKS, make_tree
from tests.harness.privatebus import PrivateBus, package_bus
from tests.live.conftest import saved
from tests.live.users import LIMIT, PERSIST, User

TAKEN: Final = 17
WATCHDOG: Final = {"WATCHDOG_USEC": "100000"}
MakeDaemon = Callable[..., Daemon]


def persistent(tunable: str, instances: str, value: str) -> Claim:
    return Claim(Origin.PERSISTENT, tunable, instances, value, who="somebody", seq=1)


# Start


def test_ready_comes_after_the_boot_pass(daemon_with: MakeDaemon, own_root: User, loops: Sequence[str]) -> None:
    """On the host, where a pass takes time: whoever waits for READY finds every value in place."""
    daemon = daemon_with()
    saved(daemon, persistent("hugepages", host.pool(), "256"), persistent("io-scheduler", "loop[0-3]", "mq-deadline"))
    daemon.started()
    assert host.pages() == 256
    assert [host.scheduler(name) for name in loops] == ["mq-deadline"] * 4
    ready = daemon.messages.index(READY)
    assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in daemon.messages[:ready])
    assert daemon.messages[ready + 1] == "STATUS=5 targets managed"
    assert not any("managed" in line for line in daemon.messages[:ready])
    own_root.release()
    daemon.wait_for("STATUS=0 targets managed")


def test_the_status_says_what_is_not_as_asked(daemon_with: MakeDaemon, own_root: User) -> None:
    daemon = daemon_with("--demo")
    saved(daemon, persistent("overcommit", "", "never:1"))
    daemon.started()
    assert "STATUS=1 targets managed; not as asked: over-limit" in daemon.messages
    own_root.set_count(8)
    daemon.wait_for("STATUS=2 targets managed; not as asked: over-limit")
    own_root.release()
    daemon.wait_for("STATUS=0 targets managed")


def test_a_second_instance_refuses(daemon_with: MakeDaemon, own_root: User) -> None:
    first = daemon_with("--demo").started()
    own_root.set_count(8)
    with package_bus() as elsewhere:
        second = Daemon(elsewhere, "--demo", env={"RUNTIME_DIRECTORY": str(first.runtime)}, wait=False)
        with second:
            assert second.wait() == TAKEN
            assert "another kerntuned runs" in second.journal()
            assert READY not in second.messages
    assert own_root.claims() == {"runtime:hugepages@2M": "8"}


def test_a_name_that_is_taken_ends_it(daemon_with: MakeDaemon, own_root: User) -> None:
    """Before it has written anything."""
    daemon_with("--demo").started()
    before = host.snapshot()
    second = daemon_with()
    saved(second, persistent("hugepages", host.pool(), "8"))
    second.start()
    assert second.wait() == TAKEN
    assert "another owner" in second.journal()
    assert host.snapshot() == before
    assert own_root.claims() == {}


@pytest.mark.parametrize("text", ["", "not JSON", "[]", '{"format": 99}', '{"format": 1, "persistent": [{"x": 1}]}'])
def test_a_broken_file_is_set_aside_and_reported(daemon_with: MakeDaemon, own_root: User, text: str) -> None:
    daemon = daemon_with("--demo")
    for name in (daemon.state / "claims.json", daemon.runtime / "runtime.json"):
        name.write_text(text)
    daemon.started()
    assert own_root.get(MANAGER, "Degraded") == ["state-set-aside"]
    kept = [path for path in (*daemon.state.iterdir(), *daemon.runtime.iterdir()) if path.name.endswith(".bad")]
    assert [path.read_text() for path in kept] == [text, text]
    assert own_root.set_count(8, PERSIST) == 8


def test_a_tree_without_proc_is_a_wrong_argument(daemon_with: MakeDaemon, tmp_path: Path) -> None:
    daemon = daemon_with("--root", str(tmp_path))
    daemon.start()
    assert daemon.wait() == 2


# End


def test_told_to_stop_it_leaves_the_values(daemon_with: MakeDaemon, own_root: User, loops: Sequence[str]) -> None:
    daemon = daemon_with().started()
    own_root.set_count(16)
    own_root.set_scheduler("loop0", "mq-deadline")
    assert daemon.terminate() == 0
    assert "STOPPING=1" in daemon.messages
    assert (host.pages(), host.scheduler("loop0")) == (16, "mq-deadline")
    daemon.started()
    own_root.release()


def test_a_bus_that_dies_ends_it_with_an_error(
    daemon_with: MakeDaemon, own_bus: PrivateBus, public: Path, loops: Sequence[str]
) -> None:
    """systemd starts it again then, and it takes up its claims."""
    daemon = daemon_with().started()
    with User("root", own_bus, public) as user:
        user.set_scheduler("loop0", "mq-deadline")
    own_bus.stop()
    assert daemon.wait() == 1
    assert "bus is lost" in daemon.journal()
    assert host.scheduler("loop0") == "mq-deadline"
    own_bus.start()
    daemon.started()
    with User("root", own_bus, public) as user:
        assert user.claims() == {"runtime:io-scheduler@loop0": "mq-deadline"}
        user.release()


def test_without_a_bus_the_boot_pass_is_done_all_the_same(
    daemon_with: MakeDaemon, own_bus: PrivateBus, public: Path, loops: Sequence[str]
) -> None:
    daemon = daemon_with()
    saved(daemon, persistent("io-scheduler", "loop0", "mq-deadline"), persistent("hugepages", host.pool(), "16"))
    own_bus.stop()
    began = time.monotonic()
    daemon.start()
    assert daemon.wait() == 1
    assert BUS_WAIT <= time.monotonic() - began < BUS_WAIT + 2
    assert (host.scheduler("loop0"), host.pages()) == ("mq-deadline", 16)
    assert READY not in daemon.messages
    assert "no bus for 5 s" in daemon.journal()
    own_bus.start()
    daemon.started()
    with User("root", own_bus, public) as user:
        user.release()


def test_a_bus_that_comes_late_is_waited_for(daemon_with: MakeDaemon, own_bus: PrivateBus) -> None:
    own_bus.stop()
    daemon = daemon_with("--demo")
    daemon.start()
    own_bus.start()
    daemon.wait_for(READY)


# What lasts how long


def test_claims_survive_a_crash(daemon_with: MakeDaemon, own_root: User, loops: Sequence[str]) -> None:
    """Also when something else changed a value while the daemon was away."""
    daemon = daemon_with().started()
    own_root.set_count(16)
    own_root.set_scheduler("loop0", "mq-deadline")
    own_root.set_overcommit("always", 70, PERSIST)
    claims = own_root.claims()
    daemon.kill()
    assert (host.pages(), host.overcommit()) == (16, ("always", 70))
    Path("/sys/block/loop0/queue/scheduler").write_text("none")
    daemon.started()
    assert own_root.claims() == claims
    assert (host.pages(), host.scheduler("loop0"), host.overcommit()) == (16, "mq-deadline", ("always", 70))
    own_root.release()
    assert host.scheduler("loop0") == "none"


def test_over_a_reboot_persistent_claims_last(daemon_with: MakeDaemon, own_root: User, tmp_path: Path) -> None:
    """A reboot: the kernel has its own values again, another boot id, and /run may still hold the old files."""
    tree = make_tree(tmp_path / "tree")
    daemon = daemon_with("--root", str(tree)).started()
    own_root.set(("io-scheduler", "nvme*", "bfq"), ("hugepages", "2M", "512"), options=PERSIST)
    own_root.set(("io-scheduler", "sda", "kyber"), ("hugepages", "2M", "1024"), ("overcommit", "", "always:70"))
    assert host.pages(root=tree) == 1024
    daemon.kill()

    make_tree(tree, boot="second boot")
    booted = host.snapshot(tree)
    daemon.started()
    assert own_root.claims() == {"persistent:io-scheduler@nvme*": "bfq", "persistent:hugepages@2M": "512"}
    assert host.pages(root=tree) == 512
    assert {disk: host.scheduler(disk, tree) for disk in DISKS} == {"nvme0n1": "bfq", "nvme1n1": "bfq", "sda": "bfq"}
    assert host.overcommit(tree) == ("heuristic", 50)
    own_root.release()
    assert host.snapshot(tree) == booted


def test_the_host_s_own_value_is_that_of_this_boot(daemon_with: MakeDaemon, own_root: User, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    daemon = daemon_with("--root", str(tree)).started()
    own_root.set_scheduler("sda", "kyber", PERSIST)
    daemon.terminate()
    make_tree(tree, boot="second boot")
    (tree / "sys/block/sda/queue/scheduler").write_text("mq-deadline\n")
    daemon.started()
    assert host.scheduler("sda", tree) == "kyber"
    own_root.release()
    assert host.scheduler("sda", tree) == "mq-deadline"


# What systemd and the journal are told


def test_it_says_that_it_is_alive(daemon_with: MakeDaemon) -> None:
    daemon = daemon_with("--demo", env=WATCHDOG).started()
    daemon.wait_for("WATCHDOG=1")
    assert daemon.terminate() == 0


@pytest.mark.parametrize("env", [{}, WATCHDOG | {"WATCHDOG_PID": "1"}], ids=["nobody-asks", "somebody-else-is-meant"])
def test_it_says_nothing_where_nobody_asks(daemon_with: MakeDaemon, own_root: User, env: dict[str, str]) -> None:
    daemon = daemon_with("--demo", env=env).started()
    own_root.set_count(8)
    assert daemon.terminate() == 0
    assert "WATCHDOG=1" not in daemon.messages


@contextmanager
def journal(daemon: Daemon, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Give the socket of a journal that only this daemon sees: it runs where /run is another."""
    there = folder / "journal"
    there.mkdir()
    wrapper = folder / "python"
    wrapper.write_text(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs none /run && mkdir -p /run/systemd/journal && "
        f'mount --bind {there} /run/systemd/journal && exec {sys.executable} "$@"\' sh "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    log = daemon.log.stat()
    daemon.env["JOURNAL_STREAM"] = f"{log.st_dev}:{log.st_ino}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(there / "socket"))
        listener.settimeout(LIMIT)
        yield listener


def entry(listener: socket.socket, target: str) -> dict[str, str]:
    """Return the fields of the next entry about a target (Native Journal Protocol; no value has a line break)."""
    while True:
        rows = (line.partition("=") for line in listener.recv(1 << 16).decode().splitlines())
        fields = {name: text for name, _, text in rows}
        if fields.get("KERNTUNE_TARGET") == target:
            return fields


def test_the_journal_gets_fields(
    daemon_with: MakeDaemon, own_root: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_with("--demo")
    saved(daemon, persistent("overcommit", "", "never:1"))
    with journal(daemon, tmp_path, monkeypatch) as listener:
        daemon.start()
        refused = entry(listener, "overcommit")
        daemon.wait_for(READY)
        own_root.set_scheduler("nvme0n1", "mq-deadline")
        made = entry(listener, "io-scheduler@nvme0n1")
    assert daemon.journal() == ""
    assert made["MESSAGE"] == "io-scheduler@nvme0n1 is mq-deadline, was none (SetScheduler)"
    assert (made["MESSAGE_ID"], made["PRIORITY"], made["SYSLOG_IDENTIFIER"]) == (TARGET_SET, "6", "kerntuned")
    fields = {name.removeprefix("KERNTUNE_"): text for name, text in made.items() if name.startswith("KERNTUNE_")}
    assert fields.pop("GENERATION").isdigit()
    assert fields == {
        "TARGET": "io-scheduler@nvme0n1",
        "REQUESTED": "mq-deadline",
        "ACTUAL": "mq-deadline",
        "STATE": "satisfied",
        "REASON": "ok",
        "CAUSE": "SetScheduler",
    }
    assert (refused["MESSAGE_ID"], refused["PRIORITY"]) == (TARGET_NOT_SET, "4")
    assert (refused["KERNTUNE_STATE"], refused["KERNTUNE_REASON"]) == ("refused", "over-limit")
    assert (refused["KERNTUNE_CAUSE"], refused["KERNTUNE_REQUESTED"]) == ("boot", "never:1")


def test_the_log_has_nothing_to_say_twice(daemon_with: MakeDaemon, own_root: User) -> None:
    daemon = daemon_with("--demo").started()
    for _ in range(5):
        own_root.set_count(8)
        own_root.call(MANAGER, "Verify")
        own_root.call(MANAGER, "Describe")
        own_root.get(HUGE_PAGES, "Pools")
    lines = [line for line in daemon.journal().splitlines() if "hugepages" in line]
    asked = re.compile(r"INFO: SetCount hugepages@2M=8, asked by root \(.*\), uid 0: done")
    assert lines[0] == "INFO: hugepages@2M is 8, was 0 (SetCount)"
    assert [bool(asked.fullmatch(line)) for line in lines[1:]] == [True]


BOUND = 10.0  # seconds
PATH = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
PAGES = 448  # less than 1 GiB
ROUNDS = 20


@pytest.fixture
def endable() -> Iterator[None]:
    before = signal.getsignal(SIGNAL)
    make_endable()
    yield
    signal.signal(signal.Signals(SIGNAL), before)


def grown(halt: Halt, kernel: HostKernel) -> int:
    """Write, interrupted from the first moment on, and return the pages there are then; it raised nothing."""
    inside, errors = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            with halt.writing(PATH):
                inside.set()
                kernel.write(PATH, str(PAGES))
        except BaseException as error:  # noqa: BLE001  # for the test's own thread to see
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(BOUND)
    while halt.interrupt():
        thread.join(0.0001)
    thread.join(BOUND)
    assert errors == []
    return host.pages()


def test_a_signal_ends_a_write_to_a_pool(endable: None) -> None:
    kernel = HostKernel()
    before = host.pages()
    found = []
    for _ in range(ROUNDS):
        found.append(grown(Halt(), kernel))
        kernel.write(PATH, str(before))
    # Now and then the kernel is done before the first signal.
    assert min(found) < PAGES, found
    assert host.pages() == before
