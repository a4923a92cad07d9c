"""From the bare disk to a running machine with kerntune's package installed, kept as a snapshot."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.system import hardware, machine
from tests.system.image import base
from tests.system.image.cache import kept, key_of
from tests.system.machine import Image, Machine
from tests.system.qmp import MachineError

PACKAGES: Final = base.CHECKOUT / "build/deb"
TOOLS: Final = tuple(path for path in sorted((base.HERE / "tools").glob("*")) if path.stem != "__init__")
IN_GUEST: Final = "/root/kerntune.deb"  # stays there, to be installed again


def package() -> Path:
    """The package to test: the newest that `make deb` has left, or $KERNTUNE_VM_DEB."""
    if chosen := os.environ.get("KERNTUNE_VM_DEB"):
        return Path(chosen)
    found = sorted(PACKAGES.glob("kerntune_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MachineError(f"there is no package in {PACKAGES}: `make deb` makes it")
    return found[-1]


@contextmanager
def installed() -> Iterator[Image]:
    """The image of a machine on which the package is installed and runs; made when there is none yet."""
    found = package()
    wanted = hardware.accelerators()
    # What decides how the machine looks; its state can be resumed only by the same QEMU with the same devices.
    inputs: tuple[str | Path, ...] = (
        base.key(),
        found,
        *TOOLS,
        Path(__file__),
        Path(hardware.__file__),
        Path(machine.__file__),
    )
    with ExitStack() as stack:
        bare = stack.enter_context(kept(f"{base.SUITE}-base", base.key(), _said("the guest's disk", base.build)))
        key = key_of(*inputs, hardware.version(), *wanted)
        make = _said("a machine with the package", lambda into: _install(bare, found, wanted, into))
        kept_here = stack.enter_context(kept(f"{base.SUITE}-installed", key, make))
        accelerator = (kept_here / "accelerator").read_text()
        yield Image(bare, kept_here / "root.qcow2", accelerator, kept_here / "state")


def _said(what: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, and a line for who waits: making it takes a minute."""

    def saying(into: Path) -> None:
        sys.stdout.write(f"making {what} ...\n")
        sys.stdout.flush()
        make(into)

    return saying


def _install(bare: Path, found: Path, wanted: tuple[str, ...], into: Path) -> None:
    """Boot the bare disk with the first accelerator that can, install, and save the machine as it then runs."""
    failures = []
    for accelerator in wanted:
        try:
            with Machine(Image(bare, bare / "disk.img", accelerator)) as fresh:
                _set_up(fresh, found)
                fresh.save(into)
        except MachineError as error:
            failures.append(f"with {accelerator}: {error}")
            continue
        (into / "accelerator").write_text(accelerator)
        return
    raise MachineError("no machine with the package:\n" + "\n".join(failures))


def _set_up(fresh: Machine, found: Path) -> None:
    for tool in TOOLS:
        fresh.write(f"/usr/local/bin/{tool.stem.replace('_', '-')}", tool.read_bytes(), mode="755")
    fresh.write(IN_GUEST, found.read_bytes())
    fresh.check(f"DEBIAN_FRONTEND=noninteractive dpkg -i {IN_GUEST}", limit=120)
    fresh.check("usermod -aG kerntune bob")
    fresh.wait_for("systemctl is-active --quiet kerntuned.service")
