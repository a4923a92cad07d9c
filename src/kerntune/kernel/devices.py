"""What udev knows of block devices; the only module that imports pyudev."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyudev import Context

HOST = Path("/")
# What ctypes.util would find, for the pyudev that asks it. It brings shutil and tempfile with it, a quarter MiB.
LIBRARIES: Final = {"udev": "libudev.so.1", "c": "libc.so.6"}


@cache
def _context() -> Context:
    finder = ModuleType("ctypes.util")
    vars(finder)["find_library"] = LIBRARIES.get
    ours = sys.modules.setdefault("ctypes.util", finder) is finder
    try:
        import pyudev  # noqa: PLC0415  (libudev is loaded only where there is a host to ask)
    finally:
        if ours:
            del sys.modules["ctypes.util"]
    return pyudev.Context()


def links(root: Path, device: str) -> Sequence[str]:
    """The names a block device has below /dev/disk, without that prefix.

    On the host udev's database is asked (the service's own /dev has no links: PrivateDevices=); in a tree the
    symbolic links below dev/disk are read. A device that udev does not know has none.
    """
    if root == HOST:
        context = _context()
        import pyudev  # noqa: PLC0415  (after the context, which imports it in its own way)

        try:
            found = pyudev.Devices.from_name(context, "block", device).device_links
            return sorted(link.removeprefix("/dev/disk/") for link in found if link.startswith("/dev/disk/"))
        except pyudev.DeviceNotFoundError:
            return ()
    disk = root / "dev/disk"
    return sorted(str(p.relative_to(disk)) for p in disk.glob("*/*") if p.is_symlink() and p.readlink().name == device)
