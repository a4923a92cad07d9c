"""`kerntune run` on the real kernel: each option, each refusal, and each way to end; nothing is left afterwards."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from kerntune.kernel.disk import disk_of
from tests.harness import host, skip
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus
from tests.harness.workers import MIB
from tests.live.pages import transparent
from tests.live.users import LIMIT, User, until

MakeDaemon = Callable[..., Daemon]

COUNT: Final = 32  # pages of 2 MiB
SIZE: Final = "64M"
ASK: Final = f"--hugepages={SIZE}"
ARGUMENT: Final = "--api-key=hunter2"
PYTHON: Final = str(Path(sys.executable).resolve())
# Says that it has begun, and ends with 7 when its standard input ends.
SERVER: Final = ("sh", "-c", "echo $$; read -r _; exit 7", "server", ARGUMENT)
BLOCK: Final = 8 * MIB
LOAD: Final = f"import time; data = [bytearray(b'x') * {BLOCK} for _ in range({{blocks}})]; time.sleep(1.5)"


class Run:
    """A `kerntune run` beside the test: its process, the process of its command, and what it has written."""

    def __init__(self, process: subprocess.Popen[str], command: int) -> None:
        self.process, self.command = process, command
        self._pidfd = os.pidfd_open(command)

    def close(self) -> None:
        os.close(self._pidfd)

    def finish(self) -> None:
        """Have the command end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def ended(self) -> tuple[int, str]:
        """Wait for the end of kerntune and of its command; return the exit status and standard error."""
        code = self.process.wait(LIMIT)
        assert self.process.stderr is not None
        assert self.command_has_ended()
        return code, self.process.stderr.read()

    def command_has_ended(self) -> bool:
        """Return True when the command ends in time."""
        return bool(select.select([self._pidfd], (), (), LIMIT)[0])

    def command_runs(self) -> bool:
        return not select.select([self._pidfd], (), (), 0)[0]

    def until_it_says(self, text: str) -> None:
        """Wait for a line of standard error that holds this text."""
        assert self.process.stderr is not None
        while text not in (line := self.process.stderr.readline()):
            assert line, f"{text!r} did not come"


@contextmanager
def started(user: User, *words: str, command: Sequence[str] = SERVER) -> Iterator[Run]:
    """Run a command that says its process id, and is killed at the end in any case."""
    argv = user.python("kerntune.cli", "run", *words, "--", *command)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, env=user.environment, cwd="/", stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        run = None
        try:
            assert process.stdout is not None
            run = Run(process, int(process.stdout.readline()))
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            if run:
                run.close()


def run(user: User, *words: str) -> subprocess.CompletedProcess[str]:
    return user.kerntune("run", *words)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found


def read(path: str) -> str:
    return host.value(Path(path))


def has_socket(pid: int) -> bool:
    """Return True if a process has a connection."""
    with suppress(FileNotFoundError):  # it has just closed another file
        return any("socket:" in os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return False


def pool(name: str) -> Path:
    return Path(f"/sys/kernel/mm/hugepages/hugepages-{host.page_size() >> 10}kB/{name}")


def kept() -> int:
    """Return the number of huge pages without those that the kernel takes back when the command gives them up.

    A command may have pages when its hold ends: then they are surplus (Documentation/admin-guide/mm/hugetlbpage.rst).
    """
    return int(pool("nr_hugepages").read_text()) - int(pool("surplus_hugepages").read_text())


@pytest.fixture
def before(daemon: Daemon, kernel_as_found: dict[str, str]) -> Iterator[int]:
    """Give the number of huge pages; after the test there are as many, and nobody holds anything."""
    found = host.pages()
    yield found
    assert host.pages() == found


# Each option


def test_the_command_has_the_pages_it_asked_for(before: int, root: User) -> None:
    done = run(root, ASK, "--json", "--", "cat", str(pool("nr_hugepages")))
    assert int(done.stdout) == before + COUNT
    (row,) = summary(done)["outcomes"]
    assert (row["requested"], int(row["actual"])) == (f"+{COUNT}", before + COUNT)


def test_borrowed_pages_are_not_reserved(before: int, root: User) -> None:
    most = int(pool("nr_overcommit_hugepages").read_text())
    with started(root, ASK, "--borrow") as running:
        assert (int(pool("nr_overcommit_hugepages").read_text()), kept()) == (most + COUNT, before)
        running.finish()
        assert running.ended()[0] == 7
    assert int(pool("nr_overcommit_hugepages").read_text()) == most


@pytest.mark.parametrize(("mode", "within"), [("always", "always"), ("madvise", "madvise"), ("never", "madvise")])
def test_thp_never_takes_them_from_others(before: int, root: User, mode: str, within: str) -> None:
    enabled = "/sys/kernel/mm/transparent_hugepage/enabled"
    with transparent(mode):
        done = run(root, "--thp", "--", "cat", enabled)
        assert host.chosen(done.stdout) == within
        assert read(enabled) == mode


def test_a_drive_by_its_name(before: int, root: User, loops: Sequence[str]) -> None:
    drive = f"/sys/block/{loops[0]}/queue"
    words = [f"--scheduler={loops[0]}=mq-deadline", f"--read-ahead=/dev/{loops[0]}=4M"]
    done = run(root, *words, "--", "cat", f"{drive}/scheduler", f"{drive}/read_ahead_kb")
    scheduler, ahead = done.stdout.splitlines()
    assert (host.chosen(scheduler), ahead) == ("mq-deadline", "4096")


def test_read_ahead_of_the_drives_below_a_folder(before: int, root: User) -> None:
    fd = os.open("/", os.O_PATH)
    drives = disk_of(fd).drives
    os.close(fd)
    if not drives:
        skip("/ lies on no drive of this host")
    files = [f"/sys/block/{drive}/queue/read_ahead_kb" for drive in drives]
    done = run(root, "--read-ahead=/=2M", "--", "cat", *files)
    assert set(done.stdout.split()) == {"2048"}


def test_other_values(before: int, root: User) -> None:
    file = "/proc/sys/vm/swappiness"
    assert run(root, "--set", "vm.swappiness=13", "--", "cat", file).stdout == "13\n"
    done = run(root, "--profile", "ai-inference", "--json", "--", "cat", file)
    found = summary(done)
    wanted = {row["tunable"] + row["instance"]: row["requested"] for row in found["outcomes"]}["sysctlvm.swappiness"]
    assert done.stdout.strip() == wanted
    assert found["profile"] == "ai-inference"


def test_the_shield(before: int, root: User) -> None:
    cpu = max(os.sched_getaffinity(0))
    words = ["--cpus", str(cpu), "--nice", "5", "--slice", "3ms", "--memlock", "--json"]
    code = "import os; from resource import *; limits = getrlimit(RLIMIT_MEMLOCK)"
    code += "; print(*os.sched_getaffinity(0), os.nice(0), len(set(limits)))"
    done = run(root, *words, "--", PYTHON, "-c", code)
    assert done.stdout.split() == [str(cpu), "5", "1"]
    found = summary(done)
    assert (found["shield"]["cpus"], found["shield"]["nice"]) == (str(cpu), 5)
    assert f"it stays on CPU {cpu}; others may run there too" in found["notes"]


def test_memory_of_a_node_first(before: int, root: User) -> None:
    done = run(root, "--numa", "auto", "--json", "--", "cat", "/proc/self/numa_maps")
    assert " prefer:" in done.stdout
    assert any(note.startswith("--numa: memory first from node ") for note in summary(done)["notes"])


def test_memory_in_turn_from_all_nodes_goes_with_cpus(before: int, root: User) -> None:
    cpu = max(os.sched_getaffinity(0))
    done = run(root, "--numa", "interleave", "--cpus", str(cpu), "--json", "--", "cat", "/proc/self/numa_maps")
    assert " interleave:" in done.stdout
    assert f"it stays on CPU {cpu}; others may run there too" in summary(done)["notes"]


def test_real_time(before: int, root: User) -> None:
    code = "import os; print(os.sched_getscheduler(0) & 0xff, flush=True)"
    code += "; os.fork() or os._exit(os.sched_getscheduler(0)); print(os.waitstatus_to_exitcode(os.wait()[1]))"
    fifo, usual = str(os.SCHED_FIFO), str(os.SCHED_OTHER)
    assert run(root, "--rt", "--", PYTHON, "-c", code).stdout.split() == [fifo, usual]
    assert run(root, "--rt=all", "--", PYTHON, "-c", code).stdout.split() == [fifo, fifo]


def test_prefault_touches_what_was_added_and_no_more(before: int, root: User) -> None:
    assert summary(run(root, ASK, "--prefault", "--json", "--", "true"))["prefaulted_bytes"] == COUNT * host.page_size()


def test_what_only_loading_needs_ends_when_it_is_ready(
    before: int, root: User, loops: Sequence[str], tmp_path: Path
) -> None:
    ahead = f"/sys/block/{loops[0]}/queue/read_ahead_kb"
    usual, is_ready = read(ahead), tmp_path / "ready"
    words = [ASK, f"--read-ahead={loops[0]}=4M", "--wait-ready", f"test -e {is_ready}"]
    with started(root, *words) as running:
        assert (read(ahead), host.pages()) == ("4096", before + COUNT)
        is_ready.touch()
        until(lambda: read(ahead) == usual)
        assert host.pages() == before + COUNT
        running.finish()
        code, said = running.ended()
    assert code == 7
    assert re.search(r"ended with status 7 after [0-9.]+ s, ready after [0-9.]+ s\n", said)


def test_a_member_of_the_group_may_run(before: int, member: User) -> None:
    with started(member, ASK) as running:
        assert host.pages() == before + COUNT
        running.finish()
        assert running.ended()[0] == 7


# The memory


def test_a_pool_that_is_too_small_is_told_with_the_size_that_holds_it(before: int, root: User) -> None:
    """With the size that was suggested, all lies on huge pages. The program takes more than there is already."""
    free = int(pool("free_hugepages").read_text()) + COUNT
    load = LOAD.format(blocks=8 + free * host.page_size() // BLOCK)
    done = run(root, ASK, "--", PYTHON, "-c", load)
    assert done.returncode == 0
    assert "Ask for more, at least --hugepages " in done.stderr
    found = re.search(r"kerntune: --hugepages ([0-9]+M) would have held all of it\n", done.stderr)
    assert found, done.stderr
    done = run(root, f"--hugepages={found[1]}", "--json", "--", PYTHON, "-c", load)
    memory = summary(done)["memory"]
    assert memory["private_hugetlb_bytes"] >= 0.9 * memory["heap_bytes"] >= 64 * MIB
    assert "would have held" not in done.stderr


def test_memory_is_not_spoken_of_where_no_huge_pages_were_asked_for(before: int, root: User) -> None:
    done = run(root, "--set", "vm.swappiness=13", "--", PYTHON, "-c", LOAD.format(blocks=16))
    assert re.fullmatch(r"kerntune: held .*\nkerntune: \S+ ended with status 0 after [0-9.]+ s\n", done.stderr)


# What is refused


def test_without_a_daemon_nothing_starts(own_root: User, tmp_path: Path) -> None:
    done = run(own_root, ASK, "--", "touch", str(tmp_path / "begun"))
    assert (done.returncode, list(tmp_path.iterdir())) == (125, [])
    assert "org.kerntune.Tuner1 cannot be reached" in done.stderr
    assert run(own_root, "--nice", "5", "--", "true").returncode == 0  # this needs none


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([ASK], "kerntune"),
        (["--nice", "-5"], "nice"),
        (["--nice", "-5", "--slice", "1ms"], "nice"),
        (["--rt"], "rtprio"),
        (["--rt=all"], "rtprio"),
    ],
    ids=" ".join,
)
def test_who_may_not_is_told_what_to_do(before: int, other: User, words: list[str], said: str) -> None:
    done = run(other, *words, "--", "echo", "begun")
    assert (done.returncode, done.stdout) == (125, "")
    what, _, hint = done.stderr.partition("\n  ")
    assert what.startswith("kerntune: ")
    assert said in hint, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hugepages=100T"], "possible"),
        (["--profile=nosuch"], "there is no profile 'nosuch'"),
        (["--scheduler=nosuch=none"], "nosuch"),
        (["--set=vm.swappiness=999"], "0 to 200"),
        (["--hugepages=3M"], "not a whole number of"),
        (["--overcommit=never"], "ratio"),
        ([ASK, "--read-ahead=nosuch=4M", "--wait-ready=true"], "nosuch"),
    ],
    ids=" ".join,
)
def test_what_the_host_does_not_take(before: int, root: User, words: list[str], said: str) -> None:
    """Of two holds, the first ends where the second is refused."""
    done = run(root, *words, "--", "echo", "begun")
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    assert said in done.stderr


# The end


def test_a_command_that_is_killed(before: int, root: User) -> None:
    with started(root, ASK) as running:
        os.kill(running.command, signal.SIGKILL)
        code, said = running.ended()
    assert (code, "sh was killed by SIGKILL" in said) == (137, True)


def test_kerntune_that_is_killed(before: int, root: User) -> None:
    """The command is told to end, and the hold ends with the connection."""
    with started(root, ASK) as running:
        running.process.kill()
        assert running.command_has_ended()
        until(lambda: host.pages() == before)


def test_a_command_may_outlive_kerntune(before: int, root: User) -> None:
    with started(root, ASK, "--detach") as running:
        running.process.kill()
        running.process.wait(LIMIT)
        until(lambda: kept() == before)
        assert running.command_runs()
        running.finish()
        assert running.command_has_ended()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_a_signal_ends_the_command_first(before: int, root: User, number: signal.Signals) -> None:
    with started(root, ASK) as running:
        running.process.send_signal(number)
        assert running.ended()[0] == 128 + number


def test_ctrl_c_twice(before: int, root: User) -> None:
    """The first one the command ignores, as a server that shuts down; no second one leaves anything behind."""
    ignores = ("sh", "-c", "trap 'trap - INT; echo once' INT; echo $$; while :; do sleep 0.05; done")
    with started(root, ASK, command=ignores) as running:
        assert running.process.stdout is not None
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.stdout.readline() == "once\n"
        assert host.pages() == before + COUNT
        os.killpg(running.process.pid, signal.SIGINT)
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.ended()[0] == 130


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_the_hold_survives_a_restart_of_kerntuned(daemon_with: MakeDaemon, own_root: User, end: str) -> None:
    daemon = daemon_with().started()
    before = host.pages()
    with started(own_root, ASK) as running:
        getattr(daemon, end)()
        daemon.started()
        until(lambda: host.pages() == before + COUNT)
        assert '"who": "sh' in own_root.kerntune("holds", "--json").stdout
        running.finish()
        code, said = running.ended()
    assert code == 7
    assert "hold" not in said.replace("held while it runs", "")
    assert host.pages() == before
    assert json.loads(own_root.kerntune("holds", "--json").stdout)["holds"] == []


def test_a_hold_that_an_administrator_ends(before: int, root: User) -> None:
    with started(root, ASK) as running:
        (held,) = json.loads(root.kerntune("holds", "--json").stdout)["holds"]
        assert ARGUMENT not in str(held)
        assert root.kerntune("release", str(held["hold"])).returncode == 0
        running.until_it_says(f"kerntune: hold {held['hold']} was ended by somebody else")
        assert kept() == before
        assert running.command_runs()
        running.finish()
        assert running.ended()[0] == 7


def test_kerntuned_is_stopped_for_good(daemon_with: MakeDaemon, own_root: User) -> None:
    """The command is told nothing; its hold ends when kerntuned runs again."""
    daemon = daemon_with().started()
    before = host.pages()
    with started(own_root, ASK) as running:
        daemon.terminate()
        assert running.command_runs()
        running.finish()
        code, said = running.ended()
    assert code == 7
    assert re.search(r"kerntune: hold [0-9]+ has not ended yet: org\.kerntune\.Tuner1 cannot be reached", said)
    assert "  kerntuned ends it as soon as it can, and when it is started again" in said
    daemon.started()
    until(lambda: host.pages() == before)


def test_kerntuned_that_does_not_answer_keeps_nobody_waiting(daemon_with: MakeDaemon, own_root: User) -> None:
    daemon = daemon_with().started()
    before = host.pages()
    with started(own_root, ASK) as running:
        daemon.process.send_signal(signal.SIGSTOP)
        running.finish()
        code, said = running.ended()
    daemon.process.send_signal(signal.SIGCONT)
    assert code == 7
    assert re.search(r"kerntune: hold [0-9]+ has not ended yet: \S+ did not answer Release within 5 s", said)
    until(lambda: host.pages() == before)


def test_the_bus_is_lost(daemon_with: MakeDaemon, own_bus: PrivateBus, own_root: User) -> None:
    daemon = daemon_with().started()
    before = host.pages()
    with started(own_root, ASK) as running:
        own_bus.stop()
        assert daemon.wait() == 1
        running.until_it_says("kerntune: the holds have ended: ")
        own_bus.start()
        daemon.started()
        until(lambda: kept() == before)
        assert running.command_runs()
        running.finish()
        assert running.ended()[0] == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
def test_a_signal_during_the_reservation(
    daemon_with: MakeDaemon, own_root: User, tmp_path: Path, number: signal.Signals
) -> None:
    """kerntuned is stopped by SIGSTOP meanwhile, as if the kernel took minutes for the pages."""
    daemon = daemon_with().started()
    before = host.pages()
    argv = own_root.python("kerntune.cli", "run", ASK, "--", "touch", str(tmp_path / "begun"))
    daemon.process.send_signal(signal.SIGSTOP)
    with subprocess.Popen(argv, env=own_root.environment, cwd="/", stderr=subprocess.PIPE, text=True) as process:
        until(lambda: has_socket(process.pid))
        process.send_signal(number)
        assert process.wait(LIMIT) == (130 if number == signal.SIGINT else -number)
        assert process.stderr is not None
        assert ("The command was not started" in process.stderr.read()) == (number == signal.SIGINT)
    daemon.process.send_signal(signal.SIGCONT)
    until(lambda: json.loads(own_root.kerntune("holds", "--json").stdout)["holds"] == [])
    assert host.pages() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--prefault"], ["--cpus=auto"]], ids=" ".join)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_a_signal_between_the_reservation_and_the_start(
    before: int, root: User, words: list[str], number: signal.Signals
) -> None:
    """Where the machine is slow, it comes to the command, and that ends by it."""
    seconds = f"60.{os.getpid()}"
    argv = root.python("kerntune.cli", "run", ASK, *words, "--", "sleep", seconds)
    with subprocess.Popen(argv, env=root.environment, cwd="/", stderr=subprocess.DEVNULL) as process:
        until(lambda: host.pages() == before + COUNT)
        process.send_signal(number)
        assert process.wait(LIMIT) in (128 + number, -number)
    until(lambda: host.pages() == before)
    assert subprocess.run(["pgrep", "-f", f"sleep {seconds}"], check=False, timeout=LIMIT).returncode == 1


# What the command gets


@pytest.fixture
def setuid() -> Iterator[Callable[[str], str]]:
    """Give a function that copies a program so that it runs as root for everybody."""
    with tempfile.TemporaryDirectory(prefix="kerntune-setuid-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if os.statvfs(folder).f_flag & os.ST_NOSUID:
            skip(f"{folder} is mounted with nosuid")

        def copied(program: str) -> str:
            copy = folder / Path(program).name
            shutil.copy(program, copy)
            copy.chmod(0o4755)
            assert copy.stat().st_mode & stat.S_ISUID
            return str(copy)

        yield copied


def test_nothing_of_ours_reaches_a_setuid_program(before: int, member: User, setuid: Callable[[str], str]) -> None:
    """The loader takes GLIBC_TUNABLES away from it, and so from what it starts."""
    copy = setuid("/usr/bin/env")
    usual = run(member, ASK, "--", "env").stdout.splitlines()
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=2" in usual
    for command in ([copy], [copy, "/usr/bin/env"], ["sh", "-c", copy]):
        done = run(member, ASK, "--json", "--", *command)
        assert "PATH=" in done.stdout
        assert "hugetlb" not in done.stdout
        assert summary(done)["environment"] == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}
