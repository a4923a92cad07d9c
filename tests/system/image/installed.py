"""From the bare disk to a running machine with kerntune's package installed, kept as a snapshot."""

from __future__ import annotations

import os
import secrets
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
IDENTITY: Final = "identity"
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
    # What decides how a machine looks; its state can be resumed only by the same QEMU with the same devices.
    of_machine = (base.key(), Path(__file__), Path(hardware.__file__), Path(machine.__file__))
    wanted = hardware.accelerators()
    with ExitStack() as stack:
        bare = stack.enter_context(kept(f"{base.SUITE}-base", base.key(), _said("the guest's disk", base.build)))
        # Booting takes most of the time, and what is booted is the same for each package.
        key = key_of(*of_machine, hardware.version(), *wanted)
        boot = _said("a machine that is up", lambda into: _boot(bare, wanted, into))
        booted = _image(bare, stack.enter_context(kept(f"{base.SUITE}-booted", key, boot)))
        # Its disk goes on from that of exactly this one.
        key = key_of(key, booted.disk.parent / IDENTITY, found, *TOOLS)
        install = _said("a machine with the package", lambda into: _install(booted, found, into))
        yield _image(bare, stack.enter_context(kept(f"{base.SUITE}-installed", key, install)))


def _image(bare: Path, where: Path) -> Image:
    """The image of a machine that was saved there."""
    return Image(bare, where / "root.qcow2", (where / "accelerator").read_text(), where / "state")


def _said(what: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, and a line for who waits: making it takes a minute."""

    def saying(into: Path) -> None:
        sys.stdout.write(f"making {what} ...\n")
        sys.stdout.flush()
        make(into)

    return saying


def _boot(bare: Path, wanted: tuple[str, ...], into: Path) -> None:
    """Boot the bare disk with the first accelerator that can, and save the machine when it is up."""
    failures = []
    for accelerator in wanted:
        try:
            with Machine(Image(bare, bare / "disk.img", accelerator)) as fresh:
                fresh.save(into)
        except MachineError as error:
            failures.append(f"with {accelerator}: {error}")
            continue
        (into / "accelerator").write_text(accelerator)
        (into / IDENTITY).write_text(secrets.token_hex())
        return
    raise MachineError("no machine that is up:\n" + "\n".join(failures))


def _install(booted: Image, found: Path, into: Path) -> None:
    """Install the package in a machine that is up, and save it as it then runs."""
    with Machine(booted) as fresh:
        _set_up(fresh, found)
        fresh.save(into)
    (into / "accelerator").write_text(booted.accelerator)


def _set_up(fresh: Machine, found: Path) -> None:
    for tool in TOOLS:
        fresh.write(f"/usr/local/bin/{tool.stem.replace('_', '-')}", tool.read_bytes(), mode="755")
    fresh.write(IN_GUEST, found.read_bytes())
    fresh.check(f"DEBIAN_FRONTEND=noninteractive dpkg -i {IN_GUEST}", limit=120)
    fresh.check("usermod -aG kerntune bob")
    fresh.wait_for("systemctl is-active --quiet kerntuned.service")


if __name__ == "__main__":
    with installed():
        pass
