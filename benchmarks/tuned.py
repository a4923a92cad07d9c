"""TuneD, the peer: Debian's package, unpacked and not installed, with a configuration of its own.

Installing it would start it on a host that runs systemd, and it would tune that host. Unpacked it is the same code;
only the folders it works in are others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.harness.polkitd import ACTIONS, MARK, Bus, shared

NAME: Final = "com.redhat.tuned"
PYTHON: Final = "/usr/bin/python3"
PACKAGE: Final = "tuned"
# What it imports that is small and pure enough to be unpacked beside it, and what has to be on the host.
BESIDE: Final = ("python3-linux-procfs",)
IMPORTS: Final = ("dbus", "gi", "pyudev")
LIMIT: Final = 15.0  # seconds
APT: Final = 120.0  # seconds

IDLE, FIRST, SECOND = "bench-idle", "bench-none", "bench-mq-deadline"

# Runs TuneD's own program after its folders were set, before any of its modules is loaded that copies them.
LAUNCH: Final = """\
import json, os, sys
import tuned.consts as consts
vars(consts).update(json.loads(os.environ.pop("TUNED_FOLDERS")))
sys.argv = sys.argv[1:]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {"__name__": "__main__"})
"""


class NoPeer(RuntimeError):
    """TuneD cannot be had here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """The unpacked package."""

    tree: Path
    version: str

    @property
    def bus_policy(self) -> Path:
        return next(self.tree.glob(f"*/**/{NAME}.conf"))

    @property
    def polkit_policy(self) -> Path:
        return self.tree / f"usr/share/polkit-1/actions/{NAME}.policy"


def unpack(folder: Path) -> Package:
    """Fetch the package from the host's own Debian mirror and unpack it below `folder`, once; raises NoPeer."""
    check = subprocess.run(
        [PYTHON, "-c", f"import {', '.join(IMPORTS)}"], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if check.returncode:
        needs = "apt-get install python3-dbus python3-gi python3-pyudev"
        raise NoPeer(f"TuneD needs modules that are missing ({check.stderr.strip().splitlines()[-1]}): {needs}")
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / "tree"
    for package in (PACKAGE, *BESIDE):
        if not list(folder.glob(f"{package}_*.deb")):
            _run("apt-get", "download", "-q", package, cwd=folder)
        _run("dpkg-deb", "-x", str(next(folder.glob(f"{package}_*.deb"))), str(tree), cwd=folder)
    return Package(tree, next(folder.glob(f"{PACKAGE}_*.deb")).name.split("_")[1])


@contextmanager
def known_to_polkit(package: Package) -> Iterator[None]:
    """TuneD's policy file in the host's folder, unless one is there; polkitd must be started inside."""
    place = ACTIONS / package.polkit_policy.name
    text = f"{package.polkit_policy.read_text().rstrip()}\n<!-- {MARK} -->\n"

    def make() -> None:
        if not place.exists():
            place.write_text(text)

    def drop() -> None:
        if place.exists() and MARK in place.read_text():
            place.unlink()

    with shared(ACTIONS.parent, make, drop):
        yield


def _run(*argv: str, cwd: Path) -> None:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=APT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoPeer(f"TuneD cannot be fetched: {error}") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NoPeer(f"TuneD cannot be fetched: {' '.join(argv[:3])}: {why} (is apt-get update needed?)")


class Tuned:
    """TuneD on `bus`, started by `start` and stopped by `stop`; its profiles set `disk`, or nothing."""

    def __init__(self, package: Package, bus: Bus, disk: str, env: Mapping[str, str]) -> None:
        self._package, self._bus, self._env = package, bus, env
        self._folder = tempfile.TemporaryDirectory(prefix="tuned-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._prepare(Path(self._folder.name), disk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with ExitStack() as stack:
            stack.callback(self._folder.cleanup)
            self.stop()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("TuneD was not started")
        return self._process.pid

    def start(self) -> None:
        """Start it, and return at once."""
        folder, tree = Path(self._folder.name), self._package.tree
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-c", LAUNCH, str(tree / "usr/sbin/tuned"), "--no-socket", "--pid", str(folder / "pid")],
                env={
                    **os.environ,
                    **self._env,
                    "DBUS_SYSTEM_BUS_ADDRESS": self._bus.address,
                    "PYTHONPATH": str(tree / "usr/lib/python3/dist-packages"),
                    "TUNED_FOLDERS": json.dumps(self._constants(folder, tree)),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(LIMIT)

    def log(self) -> str:
        """The end of what it has logged."""
        return (Path(self._folder.name) / "log").read_text(errors="replace")[-2000:]

    @staticmethod
    def _constants(folder: Path, tree: Path) -> dict[str, object]:
        """The folders of tuned/consts.py that it would share with the host."""
        etc = folder / "etc"
        return {
            "GLOBAL_CONFIG_FILE": str(etc / "tuned-main.conf"),
            "ACTIVE_PROFILE_FILE": str(etc / "active_profile"),
            "PROFILE_MODE_FILE": str(etc / "profile_mode"),
            "POST_LOADED_PROFILE_FILE": str(etc / "post_loaded_profile"),
            "LOAD_DIRECTORIES": [str(tree / "usr/lib/tuned"), str(etc)],
            "DEFAULT_STORAGE_FILE": str(folder / "save.pickle"),
            "PERSISTENT_STORAGE_DIR": str(folder / "storage"),
            "BOOT_CMDLINE_FILE": str(etc / "bootcmdline"),
            "MODULES_FILE": str(etc / "modules.conf"),
            "LOG_FILE": str(folder / "tuned.log"),
        }

    def _prepare(self, folder: Path, disk: str) -> None:
        """Debian's own main configuration, and three profiles."""
        etc = folder / "etc"
        etc.mkdir()
        (folder / "storage").mkdir()
        shutil.copy(self._package.tree / "etc/tuned/tuned-main.conf", etc)
        (etc / "active_profile").write_text(f"{IDLE}\n")
        (etc / "profile_mode").write_text("manual\n")
        for profile, elevator in ((IDLE, ""), (FIRST, "none"), (SECOND, "mq-deadline")):
            section = f"[disk]\ndevices={disk}\nelevator={elevator}\n" if elevator else ""
            (etc / profile).mkdir()
            (etc / profile / "tuned.conf").write_text(f"[main]\nsummary=benchmark\n\n{section}")
