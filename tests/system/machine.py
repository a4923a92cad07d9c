"""A virtual machine as an object: it is resumed or booted, runs commands, gets and loses drives, and ends."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.system.hardware import PORTS, SWAP, Drive, argv
from tests.system.qmp import Event, MachineError, Qmp
from tests.system.shell import LIMIT, Job, Result, Shell

BOOT: Final = 150.0  # seconds; 15 on a quiet machine without KVM
KVM_BOOT: Final = 40.0
RESUME: Final = 60.0
POWER_OFF: Final = 60.0
UNPLUG: Final = 30.0
SAVE: Final = 120.0
# From the terminal alone, systemd 262 does not know the seat of the session.
LOGIN: Final = (
    *("--property=PAMName=login", "--property=TTYPath=/dev/tty1"),
    *("--setenv=XDG_SEAT=seat0", "--setenv=XDG_VTNR=1"),
)
# QEMU ends when the tests do, however they end.
WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine starts from: kernel and initrd in `base`, a disk, and the state of a machine to resume, if any."""

    base: Path
    disk: Path
    accelerator: str
    state: Path | None = None


class Machine:
    """A machine of one's own: what happens to its disks is forgotten when it ends, and kept over `reboot`."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._folder = tempfile.TemporaryDirectory(prefix="kerntune-vm-", ignore_cleanup_errors=True)
        self.run_folder = Path(self._folder.name)
        self._drives: dict[str, Drive] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._open = ExitStack()
        disk_format = "qcow2" if image.disk.suffix == ".qcow2" else "raw"
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", disk_format, "-b", str(image.disk)]
        subprocess.run([*make, str(self.run_folder / "root.qcow2")], check=True, timeout=LIMIT)
        with open(self.run_folder / "swap.img", "wb") as swap:
            swap.truncate(SWAP)

    # its life

    def __enter__(self) -> Self:
        try:
            self._start(resume=self.image.state is not None)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def reboot(self) -> None:
        """Shut the guest down in good order, and boot it cold from its disks, drives included."""
        self.power_off()
        self._start(resume=False)

    def power_off(self) -> None:
        """Shut the guest down in good order."""
        with suppress(MachineError):
            self.run("systemctl poweroff")
        try:
            self._qemu.wait(POWER_OFF)
        except subprocess.TimeoutExpired:
            raise MachineError(f"the guest did not shut down:\n{self.console()}") from None
        self._close()

    def save(self, into: Path) -> None:
        """End it, and leave what resumes it in `into`: root.qcow2 and state."""
        self.check("udevadm settle; sync; echo 3 > /proc/sys/vm/drop_caches")
        self.qmp("stop")
        self.qmp("migrate-set-parameters", max_bandwidth=1 << 32)
        self.qmp("migrate", uri=f"exec:cat > '{into / 'state'}'")
        deadline = time.monotonic() + SAVE
        while (status := self.qmp("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise MachineError(f"saving the machine's state: {status}")
            time.sleep(0.1)
        self.qmp("quit")
        self._qemu.wait(POWER_OFF)
        shutil.copyfile(self.run_folder / "root.qcow2", into / "root.qcow2")

    def stop(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT)
        self._close()
        self._folder.cleanup()

    def console(self) -> str:
        """The end of what the guest and QEMU said on their consoles."""
        texts = [self.run_folder / name for name in ("console.log", "qemu.log")]
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in texts if path.exists())

    # commands

    def spawn(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        session: bool = False,
        env: Mapping[str, str] | None = None,
        data: str | bytes = b"",
    ) -> Job:
        """Start a command (a text is for the shell); with `session` in an active logind session of the user's."""
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if session:
            words = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--uid={user}", *LOGIN, "--", *words]
            user = "root"
        data = data.encode() if isinstance(data, str) else data
        return self.shell.spawn(words, user=user, env=env or {}, data=data)

    def run(self, command: str | Sequence[str], *, limit: float = LIMIT, user: str = "root", **how: object) -> Result:
        """Run it to its end; `how` is what `spawn` takes."""
        return self.spawn(command, user=user, **how).wait(limit)  # type: ignore[arg-type]  # the parameters of spawn

    def check(self, command: str | Sequence[str], *, limit: float = LIMIT, user: str = "root", **how: object) -> str:
        """What it prints, less the last newline; MachineError when it fails."""
        result = self.run(command, limit=limit, user=user, **how)
        if result.status:
            raise MachineError(f"{command} ended with {result.status}: {result.out}{result.err}")
        return result.out.removesuffix("\n")

    def wait_for(self, condition: str, limit: float = LIMIT) -> None:
        """Return when the shell's condition holds in the guest."""
        # A read that nobody answers is a pause without a process of its own.
        again = f"exec 9<> <(:); while ! {{ {condition}; }} 2>/dev/null; do [ $SECONDS -lt {limit:.0f} ] || exit 124; "
        if self.run(["bash", "-c", f"{again} read -rt 0.05 -u 9 || :; done"], limit=limit + LIMIT).status:
            raise MachineError(f"not so within {limit:.0f} s: {condition}\n{self.run(condition).out}")

    def read(self, path: str) -> str:
        """What a file holds, less the white space around it."""
        return self.check(["cat", path]).strip()

    def write(self, path: str, data: str | bytes, *, mode: str = "644") -> None:
        """Make a file, and the folders on the way to it."""
        self.check(["install", "-D", "-m", mode, "/dev/stdin", path], data=data)

    def push(self, source: Path, path: str) -> None:
        """Copy a folder of ours into the guest."""
        pack = ["tar", "-C", str(source), "--exclude=__pycache__", "-cf", "-", "."]
        packed = subprocess.run(pack, check=True, capture_output=True, timeout=LIMIT).stdout
        self.check(f"mkdir -p '{path}' && tar -C '{path}' --no-same-owner -xf -", data=packed)

    # drives

    def nvme_add(self, name: str, *, megabytes: int = 64) -> None:
        """Plug an NVMe drive in; the guest finds it in its own time. A name has the same, kept contents each time."""
        taken = {drive.port for drive in self._drives.values()}
        port = next((port for port in range(PORTS) if port not in taken), None)
        if port is None:
            raise MachineError("no port is free")
        drive = Drive(name, port, self.run_folder / f"{name}.img")
        with open(drive.image, "ab") as image:
            image.truncate(megabytes << 20)
        self.qmp(
            "blockdev-add", driver="raw", node_name=drive.node, file={"driver": "file", "filename": str(drive.image)}
        )
        self.qmp("device_add", driver="nvme", id=name, serial=name, drive=drive.node, bus=drive.bus)
        self._drives[name] = drive

    def nvme_del(self, name: str) -> None:
        """Pull it out, and return when the guest has let it go."""

        def gone(event: Event) -> bool:
            return event["event"] == "DEVICE_DELETED" and bool(event["data"].get("device") == name)

        self.qmp.forget(gone)
        deadline = time.monotonic() + UNPLUG
        while True:
            # A guest overlooks a request that comes while another for the port is pending.
            with suppress(MachineError):
                self.qmp("device_del", id=name)
            if self.qmp.wait_event(gone, UNPLUG / 3):
                break
            if time.monotonic() > deadline:
                raise MachineError(f"the guest does not let {name} go")
        self.qmp("blockdev-del", node_name=self._drives.pop(name).node)

    # starting

    def _start(self, *, resume: bool) -> None:
        state = self.image.state if resume else None
        line = argv(self.image.accelerator, self.image.base, self.run_folder, list(self._drives.values()), state)
        limit = RESUME if resume else KVM_BOOT if self.image.accelerator == "kvm" else BOOT
        deadline = time.monotonic() + limit
        with open(self.run_folder / "qemu.log", "wb") as log:
            self._process = subprocess.Popen(
                [*WITH_US, *line], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self.qmp = self._open.enter_context(Qmp(self.run_folder / "qmp.sock"))
            if resume:
                self._wait_until(self._is_loaded, deadline)
                self.qmp("cont")
            self.shell = self._open.enter_context(Shell(self.run_folder / "agent.sock"))
            self._wait_until(lambda: self.shell.answers(2), deadline)
        except MachineError as error:
            raise MachineError(f"the machine does not start ({error}):\n{self.console()}") from None
        if resume:
            self.check(f"date -s @{time.time():.2f}")
        else:
            self.run("systemctl is-system-running --wait", limit=BOOT)

    def _is_loaded(self) -> bool:
        return bool(self.qmp("query-status")["status"] != "inmigrate")

    def _wait_until(self, condition: Callable[[], bool], deadline: float) -> None:
        while not condition():
            if self._qemu.poll() is not None:
                raise MachineError("QEMU ended")
            if time.monotonic() > deadline:
                raise MachineError("no answer in time")
            time.sleep(0.02)

    @property
    def _qemu(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise MachineError("the machine was not started")
        return self._process

    def _close(self) -> None:
        self._open.close()
        self._process = None
        for name in ("qmp.sock", "agent.sock"):
            (self.run_folder / name).unlink(missing_ok=True)
