"""The links of devices as udev knows them, and the events of devices; the only module that imports pyudev."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pyudev import Context

HOST = Path("/")
UDEVD: Final = Path("/run/udev/control")  # systemd-udevd's socket
DATABASE: Final = Path("/run/udev/data")  # udev writes one file for each device, anew at each event of the device
# Block devices and CPUs. The controllers of NVMe drives, because the hidden paths of a multipath drive have no events.
# Modules, because the policies of a cpufreq driver have no events either.
SUBSYSTEMS: Final = ("block", "nvme", "nvme-subsystem", "cpu", "module")
MIN_DEVICES: Final = 1024  # devices from which on `Links` looks which of them have gone


@cache
def _context() -> Context:
    import pyudev  # noqa: PLC0415  (load libudev only where there is a host to ask)

    return pyudev.Context()


def _written(device: str) -> int:
    """Return when udev last wrote what it knows of a block device (ns), or 0 if it knows nothing of it."""
    try:
        with open(f"/sys/class/block/{device}/dev", "rb", buffering=0) as file:
            return os.stat(b"%s/b%s" % (os.fsencode(DATABASE), file.read().strip())).st_mtime_ns
    except OSError:
        return 0


def _links(device: str) -> Sequence[str]:
    """Return the links that udev knows now."""
    context = _context()
    import pyudev  # noqa: PLC0415  (as above)

    try:
        found = pyudev.Devices.from_name(context, "block", device).device_links
        return sorted(link.removeprefix("/dev/disk/") for link in found if link.startswith("/dev/disk/"))
    except pyudev.DeviceNotFoundError:
        return ()


class Links:
    """The last answer of udev on the links of each device; a question costs as much as all the rest of a pass.

    The answer stays the same until udev writes again. Only the last one stays here, for events of drives have no end.
    """

    def __init__(self, ask: Callable[[str], Sequence[str]], written: Callable[[str], int]) -> None:
        self._ask, self._written = ask, written
        self._known: dict[str, tuple[int, Sequence[str]]] = {}
        self._full = MIN_DEVICES

    def __len__(self) -> int:
        return len(self._known)

    def of(self, device: str) -> Sequence[str]:
        written, known = self._written(device), self._known.get(device)
        if known and known[0] == written:
            return known[1]
        if len(self._known) >= self._full:
            # Other threads may add to them meanwhile.
            self._known = {name: last for name, last in list(self._known.items()) if self._written(name)}
            self._full = max(MIN_DEVICES, 2 * len(self._known))
        # Ask after the look: if udev writes in between, the next call asks again.
        found = self._ask(device)
        self._known[device] = written, found
        return found


_of_udev: Final = Links(_links, _written)


def links(root: Path, device: str) -> Sequence[str]:
    """Return the names of a block device below /dev/disk, without that prefix.

    On the host, ask udev's database: the service's own /dev has no links (PrivateDevices=). In a tree, read the
    symbolic links below dev/disk. A device that udev does not know has none.
    """
    if root == HOST:
        return _of_udev.of(device) if DATABASE.is_dir() else _links(device)
    disk = root / "dev/disk"
    return sorted(str(p.relative_to(disk)) for p in disk.glob("*/*") if p.is_symlink() and p.readlink().name == device)


class Event(NamedTuple):
    """A device came, changed or went: `block`, `add`, `nvme1n1`."""

    subsystem: str
    action: str
    device: str

    def __str__(self) -> str:
        return f"{self.action} {self.device}"


class Overrun(Exception):
    """More events came than the socket could hold: nobody knows what happened to which device."""


class Monitor:
    """Events of the host's devices: from the `kernel` at once, from `udev` when it has dealt with them.

    `fileno` is readable when events have come (netlink(7), NETLINK_KOBJECT_UEVENT). libudev asks for the largest
    receive buffer that it may have.
    """

    def __init__(self, source: str) -> None:
        context = _context()
        import pyudev  # noqa: PLC0415  (as above)

        self._monitor = pyudev.Monitor.from_netlink(context, source)
        for subsystem in SUBSYSTEMS:
            self._monitor.filter_by(subsystem)
        self._monitor.start()
        self._socket = socket.socket(fileno=os.dup(self.fileno()))

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def events(self) -> Iterator[Event]:
        """Yield the events that have come, without waiting for more; raise Overrun if some are lost."""
        while True:
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                # pyudev's poll gives no errno, and leaves the error on the socket; to read the error clears it.
                if (error.errno or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) != errno.ENOBUFS:
                    raise
                raise Overrun from error
            if device is None:
                return
            # A partition has no queue of its own.
            if device.device_type != "partition":
                yield Event(device.subsystem, device.action, device.sys_name)


def monitors() -> list[Monitor]:
    """Return the monitors that this host can have.

    The kernel's monitor is as early as a udev rule. udev's monitor knows by-id names, and is the last word. Values in
    sysfs need nothing that udev makes, so the caller can use the kernel's events at once.
    """
    return [Monitor("kernel"), *([Monitor("udev")] if UDEVD.exists() else [])]
