"""A polkitd on a private bus, with our policy, rule and accounts on the host; it leaves the host as it found it."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from tests.harness import CHECKOUT

ACTIONS: Final = Path("/usr/share/polkit-1/actions")
RULES: Final = Path("/etc/polkit-1/rules.d")
POLKIT_FILES: Final = {
    CHECKOUT / "dbus/org.kerntune.Tuner1.policy": ACTIONS,
    CHECKOUT / "dbus/50-kerntune.rules": RULES,
}
POLKITD: Final = "/usr/lib/polkit-1/polkitd"
POLKIT_NAME: Final = "org.freedesktop.PolicyKit1"

GROUP: Final = "kerntune"
MEMBER: Final = "kt-member"
OTHER: Final = "kt-other"

# Tells a file or a user of ours from a package's or an administrator's, also after a run that was killed.
MARK: Final = "kerntune test harness"
MARK_WITH_GROUP: Final = f"{MARK} made the group too"

LIMIT: Final = 10.0


class Bus(Protocol):
    """A message bus: all that is needed of it is where it listens."""

    @property
    def address(self) -> str: ...


@contextmanager
def shared(folder: Path, make: Callable[[], None], drop: Callable[[], None]) -> Iterator[None]:
    """Share a host-wide thing between runs: `make` on every entry, `drop` by the last to leave.

    The users are counted by shared locks (flock(2)) on `folder`, which must exist: a killed run lets go of its own.
    """
    users = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _mutex():
            fcntl.flock(users, fcntl.LOCK_SH)
            make()
        try:
            yield
        finally:
            with _mutex():
                fcntl.flock(users, fcntl.LOCK_UN)
                if _last(users):
                    drop()
    finally:
        os.close(users)


def _last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _mutex() -> Iterator[None]:
    """Let one run at a time make or drop, and only for as long as that takes."""
    lock = os.open("/etc/polkit-1", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def installed(files: Mapping[Path, Path], users: Path = ACTIONS) -> Iterator[None]:
    """Copy files (file -> folder) into the host's folders; one that a package put there stays as it is.

    Runs that share these files count by a lock on the folder `users`: other files need another folder.
    """
    copies = {folder / file.name: _marked(file) for file, folder in files.items()}

    def make() -> None:
        for path, text in copies.items():
            found = path.read_text() if path.exists() else MARK
            if MARK in found and found != text:
                half = path.with_name(f".{path.name}.half")
                half.write_text(text)
                half.chmod(0o644)
                half.rename(path)

    def drop() -> None:
        for path in copies:
            if path.exists() and MARK in path.read_text():
                path.unlink()
            path.with_name(f".{path.name}.half").unlink(missing_ok=True)

    with shared(users, make, drop):
        yield


def _marked(file: Path) -> str:
    """Return the file's text with the mark in a comment at its end."""
    comment = f"// {MARK}" if file.suffix == ".rules" else f"<!-- {MARK} -->"
    return f"{file.read_text().rstrip()}\n{comment}\n"


@contextmanager
def accounts() -> Iterator[None]:
    """Make the group `kerntune`, kt-member in it and kt-other not; what was made here goes at the end."""
    with shared(Path("/etc"), _make_accounts, _drop_accounts):
        yield


def as_user(name: str, argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` as that user, with the user's groups and our environment."""
    user = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--", *argv]


def _make_accounts() -> None:
    # The mark is set before the group is made, so that a run killed in between loses no trace of it.
    if GROUP not in _groups():
        _make_user(MEMBER, MARK_WITH_GROUP)
        _command("groupadd", "--system", GROUP)
    _make_user(MEMBER, MARK)
    _make_user(OTHER, MARK)
    if MEMBER not in grp.getgrnam(GROUP).gr_mem:
        _command("usermod", "--append", "--groups", GROUP, MEMBER)


def _drop_accounts() -> None:
    users = {name: mark for name, mark in _users().items() if name in (MEMBER, OTHER) and mark.startswith(MARK)}
    if users.get(MEMBER) == MARK_WITH_GROUP and GROUP in _groups():
        _command("groupdel", GROUP)
    for name in users:
        _command("userdel", name)


def _make_user(name: str, mark: str) -> None:
    found = _users().get(name)
    if found is None:
        home = ("--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
        _command("useradd", "--system", *home, "--no-user-group", "--gid", "nogroup", "--comment", mark, name)
    elif found == MARK and mark == MARK_WITH_GROUP:
        _command("usermod", "--comment", mark, name)


def _users() -> dict[str, str]:
    return {user.pw_name: user.pw_gecos for user in pwd.getpwall()}


def _groups() -> set[str]:
    return {group.gr_name for group in grp.getgrall()}


def _command(*argv: str) -> None:
    # /usr/sbin is not in everybody's PATH, root by way of su included.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        argv, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")


class Polkitd:
    """polkitd on `bus`, with our policy and rule installed before it starts; needs root."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(installed(POLKIT_FILES))
            log = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                [POLKITD, "--no-debug"],
                env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Out of reach of the terminal's Ctrl-C: it goes when we say so.
                start_new_session=True,
            )
            stack.callback(self._end, self._process)
            if not self._owns_its_name(self._process):
                log.seek(0)
                raise RuntimeError(f"polkitd does not come up: {log.read().decode(errors='replace').strip()}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("polkitd was not started")
        return self._process.pid

    def stop(self) -> None:
        """Make it silent: it keeps its name and answers nothing; returns when it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def cont(self) -> None:
        """Let it go on, and answer what was asked meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    def _owns_its_name(self, process: subprocess.Popen[bytes]) -> bool:
        bus = "org.freedesktop.DBus"
        ask = ["busctl", f"--address={self.bus.address}", "--timeout=2", "call"]
        ask += [bus, "/org/freedesktop/DBus", bus, "NameHasOwner", "s", POLKIT_NAME]
        limit = time.monotonic() + LIMIT
        while time.monotonic() < limit:
            answer = subprocess.run(ask, capture_output=True, text=True, timeout=LIMIT, check=False)
            if answer.stdout.strip() == "b true":
                return True
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            return False
        return False

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(LIMIT)
