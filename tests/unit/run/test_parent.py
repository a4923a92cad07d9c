"""The parent of a command: start, signals, job control, environment, descriptors, and the end; with real processes."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kerntune.run.parent import addressed
from tests.harness.workers import LIMIT
from tests.unit.run.lab import attended, counter, seen, until, words
from tests.unit.run.terminal import BASH, CTRL_BACKSLASH, CTRL_C, CTRL_D, CTRL_Z, PROMPT, Terminal

KERNTUNE = [sys.executable, "-m", "kerntune.cli", "run"]
# Many starts in one process, for what does not need a parent of its own.
IN_ONE = """\
import json, os, sys
from kerntune.errors import KerntuneError
from kerntune.run import parent
from kerntune.run.shield import Shield
from kerntune.run.signals import held_back
answers, had = [], len(os.listdir("/proc/self/fd"))
with held_back(parent.HELD_BACK) as signals:
    for argv in json.loads(sys.argv[1]):
        try:
            answers.append(parent.attend(parent.start(argv, os.environ, Shield(), signals), signals))
        except KerntuneError as error:
            answers.append([type(error).__name__, getattr(error, "status", 0), error.what])
    try:
        os.waitpid(-1, os.WNOHANG)
        answers.append("a child is left")
    except ChildProcessError:
        pass
print(json.dumps([answers, len(os.listdir("/proc/self/fd")) - had]))
"""
# glibc keeps these two for itself, and posix_spawn(3) of make leaves them ignored.
LIBC_OWN = {32, 33}
# A shell notices a stopped job a moment later than /proc shows it.
UNTIL_STOPPED = "while ! jobs | grep -q Stopped; do sleep 0.05; done; echo is stopped"
STATUS = [sys.executable, "-c", "print(open('/proc/self/status').read())"]


def run(*command: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    asked = {name: options.pop(name) for name in ("shield", "outlives") if name in options}
    env = None if env is None else {**os.environ, **env}
    return subprocess.run(
        words(*command, **asked), capture_output=True, text=True, timeout=LIMIT, check=False, env=env, **options
    )


def in_one(*commands: list[str], **options: Any) -> list[Any]:
    """Return what came of commands that one process has started, one after the other."""
    argv = [sys.executable, "-c", IN_ONE, json.dumps(commands)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=2 * LIMIT, check=True, **options)
    answers, descriptors = json.loads(done.stdout)
    assert descriptors == 0
    return list(answers)


def dying_by(number: int) -> list[str]:
    return ["sh", "-c", f"ulimit -c 0; kill -{number} $$"]


def mask(text: str, name: str) -> set[int]:
    """Return the signals in a row of /proc/PID/status."""
    row = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    bits = int(row.split()[1], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1} - LIBC_OWN


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# The end


def test_every_exit_status_comes_back() -> None:
    assert in_one(*(["sh", "-c", f"exit {status}"] for status in range(256))) == [*range(256)]


def test_every_deadly_signal_comes_back() -> None:
    deadly = [*range(1, 17), 24, 25, 26, 27, 29, 30, 31, signal.SIGRTMIN, signal.SIGRTMAX]
    assert in_one(*map(dying_by, deadly)) == [-number for number in deadly]


def test_the_end_of_the_parent_is_that_of_the_command() -> None:
    assert run("sh", "-c", "exit 3").returncode == 3
    assert run(*dying_by(signal.SIGKILL)).returncode == 128 + 9


def test_a_core_dump_is_a_death_by_its_signal(tmp_path: Path) -> None:
    dumping = 'cd "$0"; ulimit -c unlimited; kill -SEGV $$'
    assert run("sh", "-c", dumping, str(tmp_path)).returncode == 128 + signal.SIGSEGV


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("no-such-program", 127, "no-such-program cannot be found (No such file or directory)"),
        ("/etc/passwd/x", 127, "/etc/passwd/x cannot be found (Not a directory)"),
        ("", 127, " cannot be found (No such file or directory)"),
        ("/", 126, "/ cannot be run (Permission denied)"),
        ("/etc/passwd", 126, "/etc/passwd cannot be run (Permission denied)"),
        ("\udcff" * 10_000, 126, f"{'?' * 200}... cannot be run (File name too long)"),
        ("a\nb\x1b[31m", 127, "a?b?[31m cannot be found (No such file or directory)"),
    ],
    ids=["absent", "no folder", "empty", "folder", "not executable", "long", "control characters"],
)
def test_a_command_that_cannot_be_run(name: str, status: int, why: str) -> None:
    assert in_one([name]) == [["NotStarted", status, why]]


def test_a_script_without_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{tmp_path}/absent\n")
    script.chmod(0o755)
    assert in_one([str(script)]) == [["NotStarted", 127, f"{script} cannot be found (No such file or directory)"]]


def test_path_is_that_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "own").symlink_to("/bin/true")
    asked = "import os, sys; os.environ['PATH'] = sys.argv[2];" + IN_ONE
    argv = [sys.executable, "-c", asked, json.dumps([["own"]]), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, timeout=LIMIT, check=True)
    assert json.loads(done.stdout)[0] == [0]


@pytest.mark.parametrize(
    ("shield", "kind"),
    [({"cpus": [9999]}, "NoSuchTarget"), ({"slice_us": 7}, "InvalidValue")],
    ids=["cpu", "slice"],
)
def test_a_shield_that_is_refused_is_its_error(shield: dict[str, Any], kind: str) -> None:
    done = run("echo", "started", shield=shield)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"{kind} :")


def test_no_process_can_be_started() -> None:
    # The limit of processes does not hold for root. That of descriptors leaves room for the signals, not for a pipe.
    limit = "    import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (signals.descriptor + 2, 64))\n"
    limited = IN_ONE.replace("    for argv in", f"{limit}    for argv in").replace(
        "print(", "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); print("
    )
    argv = [sys.executable, "-c", limited, json.dumps([["true"]])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=True)
    why = "no process can be started for the command (Too many open files)"
    assert json.loads(done.stdout) == [[["Failed", 0, why]], 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="it becomes another user, who has processes of its own")
def test_no_process_is_left_of_the_limit() -> None:
    nobody = 54_321
    become = f"import os; os.setgid({nobody}); os.setuid({nobody})\n"
    limit = "    import resource; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n    for argv in"
    argv = [sys.executable, "-c", become + IN_ONE.replace("    for argv in", limit), json.dumps([["true"]])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=True)
    why = "no process can be started for the command (Resource temporarily unavailable)"
    assert json.loads(done.stdout) == [[["Failed", 0, why]], 0]


# Work beside the command

BESIDE = """\
import math, os, sys, time
from kerntune.run import parent
from kerntune.run.shield import Shield
from kerntune.run.signals import held_back
reader, writer = os.pipe()
os.set_inheritable(writer, True)
begun, told = os.pipe()
os.dup2(begun, 0)
moments = []
def read(now):
    print("read", os.read(reader, 1).decode(), flush=True)
    return math.inf
def tick(now):
    moments.append(now)
    print("tick", flush=True)
    if len(moments) < 3:
        return now + 0.01
    os.write(told, b"\\n")
with held_back(parent.HELD_BACK) as signals:
    began = time.monotonic()
    child = parent.start(["sh", "-c", sys.argv[1].replace("WRITER", str(writer))], os.environ, Shield(), signals)
    {before}
    print(parent.attend(child, signals, [parent.Beside(read, descriptor=reader), *{more}]))
print(all(later - sooner >= 0.01 for sooner, later in zip(moments, moments[1:])))
"""


def beside(script: str, *, before: str = "", more: str = "[]") -> list[str]:
    """Return what work says beside a shell script, which may write to a descriptor that the work reads."""
    argv = ["bash", "-c", 'exec "$@"', "bash", sys.executable, "-c"]
    text = BESIDE.replace("{before}", before).replace("{more}", more)
    shell = script.replace("WRITE", 'bash -c "echo -n x >&WRITER"')
    done = subprocess.run([*argv, text, shell], capture_output=True, text=True, timeout=LIMIT, check=True)
    return done.stdout.splitlines()


def test_work_is_done_when_it_is_due_and_when_there_is_something_to_read() -> None:
    assert beside("WRITE; exit 3", more="[parent.Beside(tick, 0.0)]")[-2:] == ["3", "True"]
    said = beside("read word; WRITE; exit 3", more="[parent.Beside(tick, 0.0)]")  # until the third tick
    assert said == ["tick", "tick", "tick", "read x", "3", "True"]


def test_what_comes_in_the_last_moment_is_still_read() -> None:
    has_ended = "os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)"
    assert beside("WRITE; exit 3", before=has_ended) == ["read x", "3", "True"]


def test_work_that_is_due_is_not_done_after_the_end() -> None:
    has_ended = "os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)"
    more = "[parent.Beside(tick, 0.0), parent.Beside(tick, 0.0, reader)]"
    assert beside("exit 3", before=has_ended, more=more) == ["3", "True"]


# The end of the parent


def test_the_command_gets_sigterm_when_the_parent_is_killed() -> None:
    with attended(*counter(signal.SIGTERM)) as (process, _):
        seen(process.stdout, "<go>")
        process.kill()
        seen(process.stdout, "<SIGTERM>")


def test_a_command_that_outlives_its_parent_gets_nothing() -> None:
    with attended(*counter(signal.SIGTERM, signal.SIGUSR1), outlives=True) as (process, child):
        seen(process.stdout, "<go>")
        process.kill()
        process.wait(LIMIT)
        os.kill(child, signal.SIGUSR1)
        assert seen(process.stdout, "<SIGUSR1>") == "<SIGUSR1>"


def test_a_parent_that_dies_before_the_command_is_tied_to_it() -> None:
    # The new process kills its parent before it does anything else, and waits for its end.
    kills = """\
import os, signal, sys, time
from tests.unit.run import lab
def orphaned():
    parent = os.getppid()
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
os.register_at_fork(after_in_child=orphaned)
lab.main("{}", "echo", "started")
"""
    with subprocess.Popen([sys.executable, "-c", kills], stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=LIMIT)  # to the end of all that have standard output
    assert (process.returncode, said) == (-signal.SIGKILL, b"")


# Signals

SENT = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGCONT,
    signal.SIGWINCH,
    signal.SIGTTIN,
    signal.SIGRTMIN,
    signal.SIGRTMAX,
)


def test_what_is_sent_to_the_parent_reaches_the_command_once() -> None:
    with attended(*counter(*SENT)) as (process, _):
        seen(process.stdout, "<go>")
        names = [f"<{number.name}>" if number < 34 else f"<RT{int(number)}>" for number in SENT]
        said = ""
        for number, name in zip(SENT, names, strict=True):
            process.send_signal(number)
            said += seen(process.stdout, name)
        rest, _ = process.communicate(b"x", timeout=LIMIT)
    assert said + rest.decode() == "".join(names)
    assert process.returncode == 7


def test_a_signal_ends_the_command_and_the_parent_says_so() -> None:
    with attended(*counter(signal.SIGUSR1)) as (process, _):
        seen(process.stdout, "<go>")
        process.terminate()
        assert process.wait(LIMIT) == 128 + signal.SIGTERM


def test_a_command_that_signals_its_group_is_not_sent_it_again() -> None:
    script = """\
import os, signal, time
def say(number, _): os.write(1, b"<%d>" % number)
signal.signal(signal.SIGTERM, say)
signal.signal(signal.SIGUSR2, say)
os.kill(0, signal.SIGTERM)
os.write(1, b"<go>")
os.read(0, 1)
"""
    # A group of its own: the signal must not reach the tests.
    with attended(sys.executable, "-c", script, preexec_fn=os.setpgrp) as (process, _):
        said = seen(process.stdout, "<go>")
        process.send_signal(signal.SIGUSR2)
        said += seen(process.stdout, ">")
        said += process.communicate(b"x", timeout=LIMIT)[0].decode()
    assert said == "<15><go><12>"


def test_a_command_of_another_group_can_signal_its_parent() -> None:
    script = """\
import os, signal
os.setpgrp()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getppid(), signal.SIGUSR1)
signal.sigwait({signal.SIGUSR1})
"""
    assert run(sys.executable, "-c", script).returncode == 0


def test_signals_wait_until_the_command_can_take_them() -> None:
    """One that comes before execve(2) does to the new process what it would do to the command: it ends it."""
    early = """\
import os, signal, sys
from tests.unit.run import lab
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
sys.exit(lab.main("{}", "echo", "started"))
"""
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")


def test_a_signal_that_comes_while_the_command_is_started() -> None:
    """A slow start: the parent passes the signal on meanwhile, and the new process waits here until it has it."""
    slow = """\
import os, signal, sys, time
from tests.unit.run import lab
def wait():
    os.posix_spawnp("sh", ["sh", "-c", f"kill -TERM {os.getppid()}"], os.environ)
    deadline = time.monotonic() + 20
    while signal.SIGTERM not in signal.sigpending() and time.monotonic() < deadline:
        pass
os.register_at_fork(after_in_child=wait)
sys.exit(lab.main("{}", "echo", "started"))
"""
    done = subprocess.run([sys.executable, "-c", slow], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")


@contextmanager
def inheriting(*numbers: int) -> Iterator[Any]:
    """Give a function that has the process ignore signals and block SIGUSR1."""

    def prepare() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})

    yield prepare


def test_ignored_signals_and_the_mask_are_those_that_kerntune_was_started_with() -> None:
    with inheriting(signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGTSTP) as prepare:
        found = run(*STATUS, preexec_fn=prepare).stdout
        plain = subprocess.run(STATUS, preexec_fn=prepare, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert mask(found, "SigBlk") == {signal.SIGUSR1}
    assert mask(found, "SigIgn") == mask(plain.stdout, "SigIgn")
    assert {signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGTSTP} <= mask(found, "SigIgn")


def test_the_command_ignores_nothing_of_pythons() -> None:
    assert mask(run("grep", "SigIgn", "/proc/self/status").stdout, "SigIgn") == set()
    assert mask(run("grep", "SigBlk", "/proc/self/status").stdout, "SigBlk") == set()


def test_a_broken_pipe_is_ignored_where_systemd_has_started_kerntune() -> None:
    as_systemd = 'export SYSTEMD_EXEC_PID=$$; exec "$@"'
    argv = ["sh", "-c", as_systemd, "sh", *words("grep", "SigIgn", "/proc/self/status")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert mask(done.stdout, "SigIgn") == {signal.SIGPIPE}


def test_a_parent_that_was_started_with_sigchld_ignored() -> None:
    with inheriting(signal.SIGCHLD) as prepare:
        assert in_one(["sh", "-c", "exit 3"], ["no-such-program"], preexec_fn=prepare) == [
            3,
            ["NotStarted", 127, "no-such-program cannot be found (No such file or directory)"],
        ]


def test_the_parent_leaves_signals_as_they_were() -> None:
    script = """\
import signal
from kerntune.run.parent import HELD_BACK
from kerntune.run.signals import held_back
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1})
with held_back(HELD_BACK):
    pass
print(signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == f"True {{{signal.SIGUSR1!r}}}\n"


# A terminal


@pytest.mark.parametrize(("key", "name"), [(CTRL_C, "SIGINT"), (CTRL_BACKSLASH, "SIGQUIT")], ids=["ctrl-c", "ctrl-\\"])
def test_a_key_reaches_the_command_once(key: str, name: str) -> None:
    command = counter(signal.SIGINT, signal.SIGQUIT, signal.SIGUSR2)
    with Terminal(words(*command)) as terminal:
        terminal.wait_for("<go>")
        for _ in range(2):  # the command ignores the first
            terminal.type(key)
            terminal.wait_for(f"^<{name}>")
            terminal.process.send_signal(signal.SIGUSR2)  # a second one would come before this
            terminal.wait_for("^<SIGUSR2>")
        terminal.type("")
        assert terminal.process.wait(LIMIT) == 7


def test_ctrl_c_that_ends_the_command_ends_the_parent_in_order() -> None:
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(line(*words("sh", "-c", "echo '<go>'; exec sleep 100")))
        terminal.wait_for("<go>")
        terminal.type(CTRL_C)
        shown = terminal.wait_for(f"(?s)(.*){PROMPT}")[1]
        terminal.type("echo status $?")
        assert terminal.wait_for(r"status (\d+)")[1] == "130"
    assert "Traceback" not in shown
    assert "KeyboardInterrupt" not in shown


def test_a_key_reaches_a_command_in_a_group_of_its_own() -> None:
    script = "import os, signal; os.setpgrp(); os.write(1, b'<go>'); signal.pause()"
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(line(*words(sys.executable, "-c", script)))
        terminal.wait_for("<go>")
        terminal.type(CTRL_C)
        terminal.prompt()
        terminal.type("echo status $?")
        assert terminal.wait_for(r"status (\d+)")[1] == "130"


def test_the_end_of_the_terminal_reaches_the_command_once() -> None:
    """The kernel tells the leader of the session alone; it is the parent here."""
    reader, writer = os.pipe()
    quiet, held = os.pipe()  # the command would read the end of the terminal otherwise
    counting = words(*counter(signal.SIGHUP, signal.SIGCONT, signal.SIGUSR2))
    argv = ["bash", "-c", f'exec "$@" <&{quiet} >&{writer}', "bash", *counting]
    with open(reader, "rb") as told, open(held, "wb"), Terminal(argv, pass_fds=(quiet, writer)) as terminal:
        os.close(quiet)
        os.close(writer)
        seen(told, "<go>")
        terminal.hang_up()
        said = seen(told, "<SIGCONT>")
        terminal.process.send_signal(signal.SIGUSR2)
        assert said + seen(told, "<SIGUSR2>") == "<SIGHUP><SIGCONT><SIGUSR2>"


def line(*argv: str) -> str:
    """Return a line for a shell."""
    return shlex.join(argv)


def test_ctrl_z_stops_both_and_fg_and_bg_go_on() -> None:
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(line(*words(*counter(signal.SIGCONT, signal.SIGUSR2), tell=2)))
        child, parent = running(terminal)
        for _ in range(2):
            terminal.type(CTRL_Z)
            terminal.prompt()
            assert (state(parent), state(child)) == ("T", "T")
            terminal.type("jobs")
            terminal.wait_for(r"\[1\]\+  Stopped .*lab")
            terminal.prompt()
            terminal.type("fg")
            terminal.wait_for("<SIGCONT>")
            os.kill(parent, signal.SIGUSR2)  # a second SIGCONT would come before this
            assert terminal.wait_for(r"(.*)<SIGUSR2>")[1] == ""
        terminal.type(CTRL_Z)
        terminal.prompt()
        terminal.type("bg")
        terminal.wait_for("<SIGCONT>")
        # It reads the terminal, in the background: the kernel stops the process group, and the shell tells.
        wait_for_state(parent, "T")
        wait_for_state(child, "T")
        terminal.type(UNTIL_STOPPED)
        terminal.wait_for("is stopped")
        terminal.type("fg")
        terminal.wait_for("<SIGCONT>")
        os.kill(parent, signal.SIGUSR2)
        assert terminal.wait_for(r"(.*)<SIGUSR2>")[1] == ""
        terminal.type("x")
        terminal.prompt()
        terminal.type("echo status $?")
        assert terminal.wait_for(r"status (\d+)")[1] == "7"


def wait_for_state(pid: int, wanted: str) -> None:
    """Wait until a process is stopped or goes on."""
    until(lambda: state(pid) == wanted)


def test_a_background_command_that_reads_the_terminal() -> None:
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(f"{line(*words('sh', '-c', 'read word; echo got $word; exit 9'))} &")
        terminal.prompt()
        terminal.type(UNTIL_STOPPED)
        terminal.wait_for("is stopped")
        terminal.type("fg")
        terminal.type("word")
        terminal.wait_for("got word")
        terminal.prompt()
        terminal.type("echo status $?")
        assert terminal.wait_for(r"status (\d+)")[1] == "9"


def test_the_parent_alone_is_let_go_on() -> None:
    reader, writer = os.pipe()  # for a command in the background, which must not read the terminal
    with Terminal(pass_fds=(reader,)) as terminal:
        terminal.prompt()
        terminal.type(f"{line(*words(*counter(signal.SIGCONT, signal.SIGUSR2), tell=2))} <&{reader}")
        child, parent = running(terminal)
        os.kill(parent, signal.SIGTSTP)  # it is passed on; then both are stopped
        wait_for_state(parent, "T")
        assert state(child) == "T"
        os.kill(parent, signal.SIGCONT)
        terminal.wait_for("<SIGCONT>")
        os.kill(parent, signal.SIGUSR2)
        assert terminal.wait_for(r"([^%]*)<SIGUSR2>")[1] == ""
    os.close(reader)
    os.close(writer)


def running(terminal: Terminal) -> tuple[int, int]:
    """Wait for a command that counts signals; return its number and that of its parent."""
    child = int(terminal.wait_for(r"(\d+)\r\n")[1])
    terminal.wait_for("<go>")
    return child, int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_command_of_another_group_that_reads_a_terminal_without_a_shell() -> None:
    """Nobody could give it the terminal: it stays stopped, and is not woken to be stopped again."""
    script = """\
import os, signal
os.setpgrp()
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"<SIGCONT>"))
os.write(1, b"<go>")
os.read(0, 1)
"""
    with Terminal(words(sys.executable, "-c", script, tell=2)) as terminal:
        child, parent = running(terminal)
        wait_for_state(child, "T")
        time.sleep(0.3)  # the parent has seen it by then; a late one proves nothing, and fails nothing
        os.kill(parent, signal.SIGTERM)
        until(lambda: signal.SIGTERM in mask(Path(f"/proc/{child}/status").read_text(), "ShdPnd"))
        assert state(child) == "T"
        os.kill(child, signal.SIGCONT)
        assert terminal.process.wait(LIMIT) == 128 + signal.SIGTERM


def test_the_command_alone_is_stopped_and_goes_on() -> None:
    with attended(*counter(signal.SIGUSR1)) as (process, child):
        seen(process.stdout, "<go>")
        os.kill(child, signal.SIGSTOP)
        wait_for_state(child, "T")
        process.send_signal(signal.SIGUSR1)
        assert state(process.pid) != "T"
        os.kill(child, signal.SIGCONT)
        seen(process.stdout, "<SIGUSR1>")
        process.communicate(b"x", timeout=LIMIT)
        assert process.returncode == 7


def test_a_stop_just_before_the_command_is_executed() -> None:
    """The new process has Ctrl-Z's signal before execve(2): parent and shell must not wait for it in vain."""
    stops = """\
import os, signal, sys
from tests.unit.run import lab
os.register_at_fork(after_in_child=lambda: os.kill(0, signal.SIGTSTP))
sys.exit(lab.main("{}", "echo", "started"))
"""
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(line(sys.executable, "-c", stops))
        terminal.wait_for(r"\[1\]\+  Stopped")
        terminal.prompt()
        terminal.type("fg")
        terminal.wait_for("\nstarted")
        terminal.prompt()


def test_a_pipeline_in_the_foreground() -> None:
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type("set -o pipefail")
        terminal.prompt()
        terminal.type(f"{line(*words(*counter(signal.SIGUSR2)))} | cat")
        terminal.wait_for("<go>")
        terminal.type(CTRL_Z)
        terminal.wait_for(r"\[1\]\+  Stopped")
        terminal.prompt()
        terminal.type("fg")
        terminal.type("x")
        terminal.prompt()
        terminal.type("echo status $?")
        assert terminal.wait_for(r"status (\d+)")[1] == "7"


def test_a_shell_as_the_command() -> None:
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(f"PS1='inner> ' {line(*words(*BASH))}")
        terminal.wait_for("inner> ")
        terminal.type("sh -c 'echo began; exec sleep 100'")
        terminal.wait_for("began")
        terminal.type(CTRL_C)
        terminal.wait_for("inner> ")
        terminal.type("sh -c 'echo run; kill -TSTP $$; echo again'")
        terminal.wait_for(r"\[1\]\+  Stopped")
        terminal.wait_for("inner> ")
        terminal.type("fg")
        terminal.wait_for("\nagain")
        terminal.wait_for("inner> ")
        terminal.type("exit 5")
        terminal.prompt()
        terminal.type("echo status $?")
        assert terminal.wait_for(r"status (\d+)")[1] == "5"


def test_a_shell_as_the_command_in_the_background() -> None:
    with Terminal() as terminal:
        terminal.prompt()
        terminal.type(f"PS1='inner> ' {line(*words(*BASH))} &")
        terminal.prompt()
        terminal.type(UNTIL_STOPPED)
        terminal.wait_for("is stopped")
        terminal.prompt()
        terminal.type("fg")
        terminal.wait_for("inner> ")
        terminal.type(CTRL_D)
        terminal.prompt()


# Environment and descriptors


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LISTEN_PID": "10", "LISTEN_FDS": "1"}, {"LISTEN_PID": "20", "LISTEN_FDS": "1"}),
        ({"LISTEN_PID": "11", "LISTEN_FDS": "1"}, {"LISTEN_PID": "11", "LISTEN_FDS": "1"}),
        ({"LISTEN_PID": "10", "LISTEN_PIDFDID": "99"}, {"LISTEN_PID": "20"}),
        (
            {"LISTEN_PID": "11", "LISTEN_PIDFDID": "99", "SYSTEMD_EXEC_PID": "10"},
            {"LISTEN_PID": "11", "LISTEN_PIDFDID": "99", "SYSTEMD_EXEC_PID": "20"},
        ),
        ({"WATCHDOG_PID": "10", "WATCHDOG_USEC": "10"}, {"WATCHDOG_PID": "20", "WATCHDOG_USEC": "10"}),
        ({"WATCHDOG_PID": "100"}, {"WATCHDOG_PID": "100"}),
        ({"MAINPID": "10", "MANAGERPID": "10"}, {"MAINPID": "10", "MANAGERPID": "10"}),
    ],
    ids=["listen", "another listens", "pidfd", "pidfd of another", "watchdog", "another's watchdog", "others"],
)
def test_variables_that_name_a_process(environ: dict[str, str], expected: dict[str, str]) -> None:
    assert addressed(environ, 10, 20) == expected


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="it comes with systemd's tools")
def test_a_socket_of_systemd_reaches_the_command(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    script = """\
import os, socket, sys
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
with socket.socket(fileno=3) as own, own.accept()[0] as peer:
    peer.sendall(b"served")
"""
    # It passes nearly nothing of the environment on.
    where = os.pathsep.join(filter(os.path.isabs, sys.path))
    argv = ["systemd-socket-activate", "-l", path, "-E", f"PYTHONPATH={where}", *words(sys.executable, "-c", script)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            assert b"Listening" in process.stderr.readline()
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(LIMIT)
                client.connect(path)
                assert client.recv(100) == b"served"
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


def descriptors(*command: str, **options: Any) -> dict[str, str]:
    """Return the descriptors of a command, without the one with which it looks."""
    script = """\
import json, os
there = {}
for name in os.listdir("/proc/self/fd"):
    try:
        there[name] = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        pass
os.write(1, json.dumps(there).encode())
"""
    done = subprocess.run(
        [*command, sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=LIMIT, check=True, **options
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_the_command_has_the_descriptors_that_kerntune_was_given(tmp_path: Path) -> None:
    with open(os.devnull, "rb") as quiet, socket.socket() as given, open(tmp_path / "own", "wb") as own:
        options: dict[str, Any] = {"stdin": quiet, "pass_fds": (given.fileno(), own.fileno())}
        plain = descriptors(**options)
        # As with `--wait-ready notify`, which opens most.
        found = descriptors(*words(ready="notify"), **options)
        ours = {str(given.fileno()), str(own.fileno())}
    for each in (plain, found):
        assert each.pop("1").startswith("pipe:")  # one for each
    assert found == plain
    assert ours < found.keys()


def test_a_closed_standard_input() -> None:
    closing = 'exec "$@" <&-'
    assert "0" not in descriptors("sh", "-c", closing, "sh", *words())
    with_all_closed = 'exec "$@" <&- 2>&-'
    assert descriptors("sh", "-c", with_all_closed, "sh", *words()).keys() == {"1"}


def test_the_verb_opens_a_closed_standard_input() -> None:
    script = 'exec "$@" <&-'
    assert descriptors("sh", "-c", script, "sh", *KERNTUNE, "--", stderr=subprocess.DEVNULL)["0"] == "/dev/null"


def test_limits_are_left_alone() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert run("sh", "-c", "ulimit -Sn; ulimit -Hn").stdout.split() == [str(soft), str(hard)]
