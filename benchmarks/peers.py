"""The services that kerntuned is compared with in a guest: packages of the guest's own Debian, by way of apt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.system.image.base import SUITE
from tests.system.machine import Machine

from benchmarks.load import CHECKOUT

KEPT: Final = CHECKOUT / "build/peers" / SUITE
LIMIT: Final = 120  # seconds
IN_GUEST: Final = 300  # emulated, and a service starts as it is installed
# The host may be another Debian: none of its lists, packages and locks is used. A mirror may not have fetched testing
# for a while.
SETTINGS: Final = (
    *("Dir::Etc::sourcelist={kept}/sources.list", "Dir::Etc::sourceparts=-", "Dir::State={kept}/state"),
    *("Dir::State::status={kept}/status", "Dir::Cache={kept}", "Debug::NoLocking=true", "APT::Sandbox::User=root"),
    "Acquire::Check-Valid-Until=false",
)


def install(vm: Machine, *names: str) -> None:
    """Install packages in the guest, and what they need that it has not; what they only recommend is left out."""
    for package in lacking(vm, *names):
        vm.write(f"/root/peer/{package.name}", package.read_bytes())
    # What another has to find ready before it is unpacked (Pre-Depends) is ready at the second time.
    vm.check("dpkg --install /root/peer/*.deb || dpkg --install /root/peer/*.deb", limit=IN_GUEST)


def lacking(vm: Machine, *names: str) -> list[Path]:
    """Fetch the packages that a guest lacks of these and of what they need."""
    archives = KEPT / "archives"
    shutil.rmtree(archives, ignore_errors=True)
    for folder in (archives / "partial", KEPT / "state/lists/partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (KEPT / "sources.list").write_text(vm.check("cat /etc/apt/sources.list") + "\n")  # from where it was made
    (KEPT / "status").write_text(vm.check("cat /var/lib/dpkg/status") + "\n\n")
    _apt("update")
    _apt("--download-only", "--yes", "--no-install-recommends", "install", *names)
    return sorted(archives.glob("*.deb"))


def unpacked(name: str) -> Path:
    """Return the folder of a package that was fetched for a guest just before, to be run on this host."""
    (package,) = (KEPT / "archives").glob(f"{name}_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, KEPT / name], check=True, timeout=LIMIT)
    return KEPT / name


def _apt(*words: str) -> None:
    settings = [word for each in SETTINGS for word in ("-o", each.format(kept=KEPT))]
    command = ["apt-get", "-qq", *settings, *words]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
