"""Debian's power-profiles-daemon on a private bus with its fake driver: it writes no file of this host.

`make test` fetches it by `python -m tests.harness.power_profiles`: that of each Debian, with all its libraries, so
that both run on any Debian.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from kerntune.dbus.blocking import BlockingClient, Variant, connect
from tests.harness import CHECKOUT
from tests.harness.polkitd import ACTIONS, Bus, installed
from tests.harness.privatebus import SYSTEM_POLICIES, PrivateBus

FOLDER: Final = CHECKOUT / "build/power-profiles"
# Debian -> the name on the bus that its version is asked by: 0.12 has the old one only, 0.30 has both.
NAMES: Final = {"bookworm": "net.hadess.PowerProfiles", "trixie": "org.freedesktop.UPower.PowerProfiles"}
PACKAGE: Final = "power-profiles-daemon"
LIBRARIES: Final = ("libgudev-1.0-0", "libpolkit-gobject-1-0")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
FETCH: Final = 120.0  # seconds
LIMIT: Final = 10.0
NOTHING: Final[Mapping[str, str]] = {}


def missing() -> str:
    """Return what has to be done before they can be used, or ""."""
    return "" if (FOLDER / ".ready").exists() else f"{FOLDER} is empty: `make test` fills it"


def fetch() -> None:
    """Fetch all versions. Raise CalledProcessError, or ValueError on a host that has no packages of Debian."""
    rows = _output("apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages")
    mirrors = [uri for uri, _, label in (row.partition(" ") for row in rows.splitlines()) if label == "Debian"]
    if not mirrors:
        raise ValueError("apt knows no mirror of Debian")
    for suite in NAMES:
        _fetch(suite, mirrors[0], FOLDER / suite)
    (FOLDER / ".ready").touch()


def _fetch(suite: str, mirror: str, tree: Path) -> None:
    """Unpack the daemon and its libraries into a folder; apt keeps what it knows of that Debian in one of its own."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="kerntune-apt-") as name:
        own = Path(name)
        (own / "lists/partial").mkdir(parents=True)
        (own / "cache/archives/partial").mkdir(parents=True)
        (own / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
        settings = {
            "Dir::Etc::sourcelist": own / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::Lists": own / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": own / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
            "Debug::NoLocking": "true",
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        _output("apt-get", *options, "update", "-qq")
        kinds = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
        known = _output("apt-cache", *options, "depends", "--recurse", *(f"--no-{kind}" for kind in kinds), *LIBRARIES)
        libraries = sorted({word for word in known.splitlines() if re.match(r"lib|zlib", word)})
        _output("apt-get", *options, "download", "-qq", PACKAGE, *libraries, cwd=own)
        for package in own.glob("*.deb"):
            _output("dpkg-deb", "--extract", str(package), str(tree))
    # The loader of that Debian runs the daemon. The kernel names a process after the file that it starts.
    (loader,) = {path.resolve() for path in tree.glob("**/ld-linux*.so.*") if path.exists() and not path.is_symlink()}
    (tree / PACKAGE).symlink_to(loader.relative_to(tree.resolve()))


def _output(*argv: str, cwd: Path = CHECKOUT) -> str:
    done = subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, text=True, timeout=FETCH, check=True)
    return done.stdout


@contextmanager
def bus_and_actions(suite: str) -> Iterator[PrivateBus]:
    """Give a bus with the policy of that Debian's daemon; polkit knows the actions of all meanwhile. Needs root."""
    actions = dict.fromkeys(FOLDER.glob("*/usr/share/polkit-1/actions/*.policy"), ACTIONS)
    policies = sorted(FOLDER.glob(f"{suite}/usr/share/dbus-1/system.d/*.conf"))
    with (
        installed(actions, users=ACTIONS.parent),
        PrivateBus(include=policies, include_dirs=[SYSTEM_POLICIES]) as bus,
    ):
        yield bus


CPU: Final = "sys/devices/system/cpu"
# A CPU whose frequency an Intel processor chooses by itself, and to which it gives no turbo now.
HOT: Final = {
    f"{CPU}/intel_pstate/status": "active\n",
    f"{CPU}/intel_pstate/no_turbo": "1\n",
    f"{CPU}/intel_pstate/turbo_pct": "10\n",
    f"{CPU}/cpufreq/policy0/scaling_governor": "powersave\n",
    f"{CPU}/cpufreq/policy0/energy_performance_preference": "balance_performance\n",
}
EPP: Final = f"{CPU}/cpufreq/policy0/energy_performance_preference"


class PowerProfiles:
    """The daemon of a Debian, started on entry and stopped on exit.

    Without `fake` it knows only the hardware that `files` show below its `root`, in place of /sys.
    """

    def __init__(self, bus: Bus, suite: str, *, fake: bool = True, files: Mapping[str, str] = NOTHING) -> None:
        self.bus, self.name = bus, NAMES[suite]
        self.path = "/" + self.name.replace(".", "/")
        self._tree, self._fake, self._files = FOLDER / suite, fake, files
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # In place of /sys, and of the file in which it keeps the profile that was chosen.
            empty = stack.enter_context(tempfile.TemporaryDirectory(prefix="kerntune-profiles-"))
            log = stack.enter_context(tempfile.TemporaryFile())
            for path, text in self._files.items():
                (Path(empty) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(empty) / path).write_text(text)
            self.root = Path(empty)
            self._process = self._started(empty, log)
            stack.callback(self._end, self._process)
            self.client: BlockingClient = stack.enter_context(connect(self.name, self.bus.address))
            limit = time.monotonic() + LIMIT
            while not self.client.running():
                try:
                    self._process.wait(0.02)
                except subprocess.TimeoutExpired:
                    if time.monotonic() < limit:
                        continue
                log.seek(0)
                raise RuntimeError(f"{PACKAGE} does not come up: {log.read().decode(errors='replace').strip()}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def _started(self, empty: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        folders = {path.parent for path in self._tree.glob("**/lib*.so.*")}
        # Each library lies beside libc or, in Debian 12, in the folder of the same name below /usr.
        libraries = ":".join(sorted(str(folder) for folder in folders if folder.name.endswith("-gnu")))
        return subprocess.Popen(
            [self._tree / PACKAGE, "--library-path", libraries, self._tree / "usr/libexec" / PACKAGE],
            env={
                **os.environ,
                "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address,
                "POWER_PROFILE_DAEMON_FAKE_DRIVER": str(int(self._fake)),
                "UMOCKDEV_DIR": empty,
            },
            stdin=subprocess.DEVNULL,  # the fake driver takes keys, and needs one that is open
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def get(self, name: str) -> Any:
        """Return a property."""
        return self.client.get(self.path, self.name, name)

    @property
    def holds(self) -> Sequence[Mapping[str, str]]:
        """What programs hold now."""
        found: list[Mapping[str, str]] = self.get("ActiveProfileHolds")
        return found

    def hold(self, profile: str) -> None:
        """Hold a profile as another program does, until the end."""
        self.client.call(self.path, self.name, "HoldProfile", "sss", profile, "a game", "org.example.game")

    def choose(self, profile: str) -> None:
        """Choose a profile as the user does."""
        choice = Variant("s", profile)
        self.client.call(self.path, PROPERTIES, "Set", "ssv", self.name, "ActiveProfile", choice)

    def wait_for(self, name: str, value: object) -> None:
        """Wait until a property has a value."""
        limit = time.monotonic() + LIMIT
        while self.get(name) != value:
            assert time.monotonic() < limit, f"{name} is {self.get(name)}"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, as systemctl stop does."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(LIMIT)

    def suspend(self) -> None:
        """Have it answer nothing; return when it has stopped."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Have it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(LIMIT)


if __name__ == "__main__":
    try:
        fetch()
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        sys.exit(f"{error}")
