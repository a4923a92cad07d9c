"""The daemon's life: ready, told to stop, without a bus, beside another one, killed, over a reboot, and told to reload.

It reads its configuration files at its start, at Reload and at SIGHUP; one may not be in order.
"""

from __future__ import annotations

import os
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

from kerntune import errors
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
from tests.live.users import LIMIT, PERSIST, RUNTIME, User

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
    assert daemon.messages[ready + 1] == "STATUS=5 of 5 targets in the desired state"
    assert not any("in the desired state" in line for line in daemon.messages[:ready])
    own_root.release()
    daemon.wait_for("STATUS=0 of 0 targets in the desired state")


def test_the_status_says_what_is_not_as_asked(daemon_with: MakeDaemon, own_root: User) -> None:
    daemon = daemon_with("--demo")
    saved(daemon, persistent("overcommit", "", "never:1"))
    daemon.started()
    assert "STATUS=0 of 1 targets in the desired state; degraded: over-limit" in daemon.messages
    own_root.set_count(8)
    daemon.wait_for("STATUS=1 of 2 targets in the desired state; degraded: over-limit")
    own_root.release()
    daemon.wait_for("STATUS=0 of 0 targets in the desired state")


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


# Its configuration files


RELOAD: Final = (MANAGER, "Reload", "a{sv}")


def write(daemon: Daemon, text: str, name: str = "kerntune.toml") -> Path:
    path = daemon.config / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def scheduling(**devices: str) -> str:
    return "[io-scheduler]\n" + "".join(f'"{name}" = "{value}"\n' for name, value in devices.items())


@pytest.fixture
def own(daemon_with: MakeDaemon, own_root: User) -> Iterator[Daemon]:
    """Give a daemon on the host, not started yet; afterwards it has no configuration and no claims."""
    daemon = daemon_with()
    yield daemon
    for path in (*daemon.config.glob("*.toml"), *daemon.config.glob("kerntune.d/*.toml")):
        path.unlink()
    own_root.release()
    own_root.call(*RELOAD, {})
    assert own_root.claims() == {}
    assert own_root.get(MANAGER, "Degraded") == []


def test_the_configuration_is_in_force_at_ready(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    main = write(own, f'[hugepages]\n"{host.pool()}" = 16\n' + scheduling(**{"loop[0-1]": "mq-deadline"}))
    extra = write(own, scheduling(loop0="none"), "kerntune.d/50-local.toml")
    own.started()
    assert host.pages() == 16
    assert [host.scheduler(name) for name in loops[:2]] == ["none", "mq-deadline"]
    claims = {claim["id"]: claim for claim in own_root.describe()["claims"]}
    assert {name: (claim["origin"], claim["who"], claim["why"]) for name, claim in claims.items()} == {
        f"config:hugepages@{host.pool()}": ("config", "config", f"{main}:2"),
        "config:io-scheduler@loop[0-1]": ("config", "config", f"{main}:4"),
        "config:io-scheduler@loop0": ("config", "config", f"{extra}:2"),
    }
    assert f"config, {main.name}:4" in own_root.kerntune("status", "io-scheduler").stdout


def test_a_reload_is_answered_when_the_values_are_in_force(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    own.started()
    before = host.pages(), host.scheduler("loop0")
    write(own, f'[hugepages]\n"{host.pool()}" = 16\n' + scheduling(loop0="mq-deadline"))
    assert (host.pages(), host.scheduler("loop0")) == before
    ear = own_root.listen()
    assert own_root.call(*RELOAD, {}) == []
    assert (host.pages(), host.scheduler("loop0")) == (16, "mq-deadline")
    changes = own_root.heard(ear, lambda so_far: sum(one.signal == "Changed" for one in so_far) >= 2)
    assert {one.args[1] for one in changes if one.signal == "Changed"} == {"reload"}
    # What is taken out has its own value again, and nothing is written for what stays.
    write(own, scheduling(loop0="mq-deadline"))
    own_root.call(*RELOAD, {})
    assert (host.pages(), host.scheduler("loop0")) == (before[0], "mq-deadline")


def test_sighup_does_the_same_and_systemd_is_told(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    own.started()
    write(own, scheduling(**{"loop[0-2]": "mq-deadline"}))
    os.kill(own.pid, signal.SIGHUP)
    own.wait_for("STATUS=3 of 3 targets in the desired state")
    assert [host.scheduler(name) for name in loops[:3]] == ["mq-deadline"] * 3
    # Answered after it: so the reload has ended.
    own_root.call(*RELOAD, {})
    told = [line.partition("=")[0] for line in own.messages if line.startswith(("RELOADING", "MONOTONIC", "READY"))]
    assert told == ["READY", *["RELOADING", "MONOTONIC_USEC", "READY"] * 2]


def test_a_typo_takes_nothing_away(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    """Not on reload, and not on a restart in between; until the file is in order again."""
    good = f'[hugepages]\n"{host.pool()}" = 16\n'
    write(own, good)
    own.started()
    path = write(own, good + "[io-scheduler]\nloop* = none\n")
    with pytest.raises(errors.InvalidValue) as refusal:
        own_root.call(*RELOAD, {})
    assert f"{path}:4: this is not TOML" in str(refusal.value)
    assert "last good claims" in str(refusal.value)
    for _ in range(2):
        assert (host.pages(), own_root.get(MANAGER, "Degraded")) == (16, ["config-invalid"])
        assert list(own_root.claims()) == [f"config:hugepages@{host.pool()}"]
        own.restart()
        own.wait_for(READY)
    assert "STATUS=1 of 1 targets in the desired state; degraded: config-invalid" in own.messages
    assert f"ERROR: {path}:4: " in own.journal()

    ear = own_root.listen()
    write(own, good + scheduling(loop0="mq-deadline"))
    own_root.call(*RELOAD, {})
    own_root.heard(ear, lambda so_far: any("Degraded" in str(one.args) for one in so_far))
    assert own_root.get(MANAGER, "Degraded") == []
    assert (host.pages(), host.scheduler("loop0")) == (16, "mq-deadline")


def test_callers_win_over_the_configuration_and_unset_gives_it_back(
    own: Daemon, own_root: User, loops: Sequence[str]
) -> None:
    write(own, scheduling(loop0="mq-deadline"))
    own.started()
    for options in (PERSIST, RUNTIME):
        own_root.set(("io-scheduler", "loop0", "none"), options=options)
        assert host.scheduler("loop0") == "none"
    own_root.unset(("io-scheduler", "*"))
    own_root.call(*RELOAD, {})
    assert host.scheduler("loop0") == "none"
    own_root.unset(("io-scheduler", "*"), options=PERSIST)
    assert host.scheduler("loop0") == "mq-deadline"
    assert own_root.claims() == {"config:io-scheduler@loop0": "mq-deadline"}


def test_nothing_of_the_configuration_is_saved_as_a_callers(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    saved(own, Claim(Origin.PERSISTENT, "io-scheduler", "loop1", "mq-deadline", seq=5))
    write(own, scheduling(loop0="mq-deadline"))
    own.started()
    own_root.set_scheduler("loop2", "mq-deadline", PERSIST)
    write(own, "")
    own.restart()
    own.wait_for(READY)
    assert list(own_root.claims()) == ["persistent:io-scheduler@loop1", "persistent:io-scheduler@loop2"]
    assert host.scheduler("loop0") == "none"


def test_what_would_endanger_the_host_is_not_done_at_boot(daemon_with: MakeDaemon, own_root: User) -> None:
    """On the simulated host: far too many pages, and a limit that would lock everybody out."""
    daemon = daemon_with("--demo")
    write(daemon, '[limits]\nhugepages-percent = 10\n[hugepages]\n"2M" = "9999G"\n[overcommit]\n"*" = "never:1"\n')
    daemon.started()
    rows = {row["tunable"]: row for row in own_root.describe()["targets"] if row["instance"] in ("2M", "")}
    assert (rows["hugepages"]["value"], rows["hugepages"]["reason"]) == (str((128 << 10) // 10 // 2), "over-limit")
    assert (rows["overcommit"]["state"], rows["overcommit"]["reason"]) == ("refused", "over-limit")
    assert own_root.get(MANAGER, "Degraded") == ["over-limit"]
    with pytest.raises(errors.OverLimit, match="10 % of RAM"):
        own_root.set_count(9999)
    write(daemon, "")
    own_root.call(*RELOAD, {})
    assert own_root.get(MANAGER, "Degraded") == []
    assert own_root.set_count(9999) == 9999


def test_only_administrators_reload(daemon: Daemon, member: User, other: User, root: User) -> None:
    """`daemon` is the shared one, where polkit decides."""
    before = daemon.messages
    for user in (member, other):
        with pytest.raises(errors.InteractiveAuthorizationRequired):
            user.call(*RELOAD, {})
        assert user.kerntune("reload").returncode == errors.Exit.NOT_AUTHORISED
    with pytest.raises(errors.InvalidArgs, match="no option"):
        root.call(*RELOAD, {"persist": ["b", True]})
    assert daemon.messages == before
    assert root.kerntune("reload").returncode == 0
    assert daemon.messages[-1] == READY


def test_the_command_line_says_what_is_wrong(own: Daemon, own_root: User) -> None:
    path = write(own, "[limits]\nclaims = 0\n")
    own.started()
    done = own_root.kerntune("reload")
    assert done.returncode == errors.Exit.USAGE
    assert f"{path}:2: claims is 0. Give a whole number from 1 to 100000" in " ".join(done.stderr.split())
    checked = own_root.kerntune("config", "check", str(own.config))
    assert (checked.returncode, checked.stdout.splitlines()[0]) == (
        1,
        f"{path}:2: claims is 0. Give a whole number from 1 to 100000; the default is 1000",
    )


def test_reloads_beside_calls_are_all_answered(own: Daemon, own_root: User, loops: Sequence[str]) -> None:
    write(own, scheduling(loop0="mq-deadline"))
    own.started()
    calls = [
        own_root.send(*RELOAD, {}, client=number)
        if number % 2
        else own_root.send(
            MANAGER, "Set", "a(sss)a{sv}", [["io-scheduler", f"loop{number % 3}", "none"]], {}, client=number
        )
        for number in range(16)
    ]
    assert {reply.result(20).error for reply in calls} == {""}
    assert host.scheduler("loop0") == "none"
    own_root.unset(("io-scheduler", "*"))
    assert host.scheduler("loop0") == "mq-deadline"
