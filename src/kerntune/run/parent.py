"""The parent of a command: it starts the command, passes signals on, stops and goes on with it, and sees it end.

The command stays in the process group of its parent, as with nice(1) and time(1). So Ctrl-C, Ctrl-Z and the foreground
are the same for both, also in a pipeline. What a terminal sends, the kernel sends to both; the rest is passed on.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from kerntune.errors import Failed, KerntuneError, by_name
from kerntune.run.launch import NOT_FOUND, NOT_RUN, PR_SET_PDEATHSIG, not_run
from kerntune.run.shield import Shield
from kerntune.run.signals import Signal, Signals

# Passed on to the command. systemd's watchdog sends SIGABRT, and reloads and logs are often ordered by the others.
PASSED_ON: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGABRT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTERM,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
HELD_BACK: Final = PASSED_ON | {signal.SIGCHLD}
# Where these stop the command, its parent stops too, so that the shell takes the terminal back.
JOB_CONTROL: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
# When a terminal hangs up, the kernel sends these to the session's leader alone (__tty_hangup of drivers/tty/tty_io.c).
# All else that a terminal sends is for the process group in the foreground, and a hang-up too, when the leader ends.
OF_A_LEADER: Final = frozenset({signal.SIGHUP, signal.SIGCONT})
# Variables that name the process they are meant for: sd_listen_fds(3), sd_watchdog_enabled(3), systemd.exec(5).
LISTEN_PID: Final = "LISTEN_PID"
EXEC_PID: Final = "SYSTEMD_EXEC_PID"
ADDRESSED: Final = (LISTEN_PID, "WATCHDOG_PID", EXEC_PID)
# The inode of a pidfd of the process in LISTEN_PID, from systemd 258 on; sd_listen_fds(3) does without it.
OF_A_PIDFD: Final = "LISTEN_PIDFDID"
MAX_TEXT: Final = 2000  # characters that the new process tells of an error
LAST_SECONDS: Final = 1.0  # for what came just before the end of the command


class NotStarted(Failed):
    """The command cannot be run. `status` is the exit status of a shell for it: 127 not found, 126 not runnable."""

    def __init__(self, what: str, hint: str, status: int) -> None:
        super().__init__(what, hint)
        self.status = status


@dataclass(slots=True)
class Beside:
    """Work beside a command: at the moment `due` (of time.monotonic), and whenever its descriptor is readable.

    `work` takes the present moment, and returns the next one at which it is due, or None when nothing is left to do.
    """

    work: Callable[[float], float | None]
    due: float | None = math.inf
    descriptor: int | None = None


def start(
    argv: Sequence[str], environ: Mapping[str, str], shield: Shield, signals: Signals, *, outlives: bool = False
) -> int:
    """Start a command behind a shield, and return its process id. Raise NotStarted, or the shield's error.

    It gets SIGTERM when this process ends before it, except when it `outlives` this process. The environment is given
    as it is; only variables that were addressed to this process are addressed to the command.
    """
    parent = os.getpid()
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise _no_process(error) from error
    try:
        try:
            child = os.fork()
            if not child:
                _become(argv, environ, shield, signals, parent=0 if outlives else parent, asker=parent, failure=writer)
        except OSError as error:
            raise _no_process(error) from error
        finally:
            os.close(writer)
        said = _said(child, reader, signals)
    finally:
        os.close(reader)
    if not said:
        return child
    os.waitpid(child, 0)
    raise _error(argv[0], json.loads(said))


def _said(child: int, reader: int, signals: Signals) -> bytes:
    """Return what the new process says about its failure; nothing when it has become the command.

    Meanwhile it can be signalled already. A Ctrl-Z that stops it just before execve(2) must stop this process too.
    """
    waiting = select.poll()
    waiting.register(reader, select.POLLIN)
    waiting.register(signals, select.POLLIN)
    said = b""
    while True:
        if reader in dict(waiting.poll()):
            if not (piece := os.read(reader, select.PIPE_BUF)):
                return said
            said += piece
        _pass_on_all(child, signals)
        with suppress(ChildProcessError):  # it has ended: `attend` takes its status
            _followed(child, os.WSTOPPED)


def attend(child: int, signals: Signals, beside: Sequence[Beside] = ()) -> int:
    """Wait for the end of a command, and do the work beside it; return its status as in subprocess.

    What descriptors of that work have to say by then is still heard, unless a signal comes after the command's end.
    """
    left = list(beside)
    while (status := _followed(child)) is None:
        _work(left, signals)
        _pass_on_all(child, signals)
    left = [replace(each, due=math.inf) for each in left if each.descriptor is not None]
    for _ in signals.take():  # they were for the command
        pass
    deadline = time.monotonic() + LAST_SECONDS
    while _work(left, signals, until=0) and time.monotonic() < deadline and not signals.has_come():
        pass
    return status


def _work(left: list[Beside], signals: Signals, until: float = math.inf) -> bool:
    """Do the work that is due or has something to read, and drop what is done with. Return whether there was any.

    Wait for it until a moment of time.monotonic, or until a signal comes.
    """
    waiting = select.poll()
    waiting.register(signals, select.POLLIN)
    for each in left:
        if each.descriptor is not None:
            waiting.register(each.descriptor, select.POLLIN)
    soonest = min((until, *(each.due for each in left if each.due is not None)))
    ready = {descriptor for descriptor, _ in waiting.poll(_milliseconds(soonest - time.monotonic()))}
    has_worked = False
    for each in left:
        now = time.monotonic()
        if each.descriptor in ready or (each.due is not None and each.due <= now):
            each.due = each.work(now)
            has_worked = True
    left[:] = [each for each in left if each.due is not None]
    return has_worked


def _milliseconds(seconds: float) -> int | None:
    """Return a time for poll(2), rounded up, so that it does not end just before the moment; None for no end."""
    return None if seconds == math.inf else max(0, math.ceil(seconds * 1000))


def _followed(child: int, kinds: int = os.WEXITED | os.WSTOPPED) -> int | None:
    """Return the status of a command that has ended; stop where it was stopped by its terminal, and go on with it."""
    while found := os.waitid(os.P_PID, child, kinds | os.WNOHANG):
        if found.si_code == os.CLD_EXITED:
            return found.si_status
        if found.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            return -found.si_status
        # Where no shell could give it the terminal, a command that has left the group and reads there would be stopped
        # again at once. It stays stopped.
        stop = found.si_status
        if stop in JOB_CONTROL and (_stop(stop) or stop == signal.SIGTSTP):
            _go_on(child)
    return None


def _stop(number: int) -> bool:
    """Stop as the command did, so that the shell takes the terminal back. Return True when the shell lets us go on.

    Return False if there was no stop: the kernel ignores it in a process group that no shell looks after (setpgid(2)).
    """
    os.kill(os.getpid(), number)
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # The signal that ends a stop was for this moment, and is not passed on.
    return signal.sigtimedwait({signal.SIGCONT}, 0) is not None


def _go_on(child: int) -> None:
    """Let a stopped command go on, if nobody has done so: a shell lets the whole process group go on."""
    with suppress(ProcessLookupError, ChildProcessError, PermissionError):
        if not os.waitid(os.P_PID, child, os.WCONTINUED | os.WNOHANG):
            os.kill(child, signal.SIGCONT)


def _pass_on_all(child: int, signals: Signals) -> None:
    """Pass on to the command the signals that came for it."""
    for came in signals.take():
        with suppress(ProcessLookupError, PermissionError):
            if came.number != signal.SIGCHLD and not _has_it(child, came):
                os.kill(child, came.number)


def _has_it(child: int, came: Signal) -> bool:
    """Return whether the command was sent this signal too: by the kernel or by itself, through its process group."""
    if os.getpgid(child) != os.getpgrp():
        return False
    if came.from_kernel:
        return came.number not in OF_A_LEADER or os.getsid(0) != os.getpid()
    return came.pid == child


def _become(
    argv: Sequence[str],
    environ: Mapping[str, str],
    shield: Shield,
    signals: Signals,
    *,
    parent: int,
    asker: int,
    failure: int,
) -> NoReturn:
    """Become the command, in the new process; write to `failure` why that is refused."""
    try:
        if parent:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(NOT_RUN)
        shield.apply()
        told = addressed(environ, asker, os.getpid())
        # Python ignores these two signals. systemd does too, for its services (IgnoreSIGPIPE= of systemd.exec(5)).
        if environ.get(EXEC_PID) != str(asker):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if signals.ignores_children:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # A signal that has come meanwhile does from here on what it would do to the command.
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals.before)
        said: dict[str, Any] = {"errno": _executed(argv, told)}
    except KerntuneError as error:
        said = {"class": error.dbus_name, "what": error.what[:MAX_TEXT], "hint": error.hint[:MAX_TEXT]}
    except BaseException as error:  # noqa: BLE001  # this process must not go on as a second kerntune
        said = {"class": "", "what": f"the command cannot be started: {error}"[:MAX_TEXT], "hint": ""}
    with suppress(OSError):
        os.write(failure, json.dumps(said).encode())
    os._exit(NOT_RUN)


def _executed(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Become the command, or return the errno that says why not."""
    if not argv[0]:
        return errno.ENOENT
    try:
        os.execvpe(argv[0], [*argv], environ)
    except OSError as error:
        return error.errno or errno.EINVAL


def addressed(environ: Mapping[str, str], old: int, new: int) -> dict[str, str]:
    """Return an environment in which what was meant for the process `old` is meant for `new`."""
    meant = {name: str(new) for name in ADDRESSED if environ.get(name) == str(old)}
    left_out = {OF_A_PIDFD} if LISTEN_PID in meant else set()
    return {name: text for name, text in environ.items() if name not in left_out} | meant


def _error(name: str, said: Mapping[str, Any]) -> KerntuneError:
    """Return the error that the new process has told."""
    if "errno" not in said:
        return by_name().get(said["class"], Failed)(said["what"], said["hint"])
    return not_started(name, said["errno"])


def not_started(name: str, number: int) -> NotStarted:
    """Return the error for a command that execve(2) refuses with this errno."""
    status, what = not_run(name, number)
    if status == NOT_FOUND:
        return NotStarted(what, "Is it installed, and is its folder in PATH?", status)
    return NotStarted(what, "Is it a program that may be executed? A script begins with #! and its interpreter", status)


def _no_process(error: OSError) -> Failed:
    hint = "A limit may be used up: of processes (`ulimit -u`, TasksMax=), of open files, or of memory"
    return Failed(f"no process can be started for the command ({error.strerror})", hint)
