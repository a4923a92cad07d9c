"""Builds the guest's disk: a Debian with what kerntune depends on, and the agent; kerntune itself is not in it."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.system.image.cache import key_of

HERE: Final = Path(__file__).parent
CHECKOUT: Final = HERE.parents[2]
LIMIT: Final = 480  # seconds for the whole of Debian
SUITES: Final = ("bookworm", "trixie", "forky")  # Debian 12, 13 and testing
SUITE: Final = os.environ.get("SUITE") or "trixie"
# A mirror may not have fetched testing for a while; nothing else is wrong with it.
SUITE_OPTIONS: Final = {"forky": ('--aptopt=Acquire::Check-Valid-Until "false"',)}
PACKAGES: Final = (
    # The cloud kernel has neither nvme nor acpi-cpufreq.
    *("linux-image-amd64", "initramfs-tools", "zstd", "kmod", "udev", "systemd", "systemd-sysv", "libpam-systemd"),
    *("dbus", "polkitd", "python3", "python3-dbus-next", "python3-systemd", "python3-pyudev", "python3-psutil"),
    *("procps", "iproute2", "e2fsprogs", "nvme-cli", "numactl", "python3-pytest"),
    "dmsetup",
)
# What a guest of this kind never uses is left out as dpkg unpacks it.
DRIVERS: Final = (
    *("gpu", "media", "infiniband", "isdn", "staging", "hid", "input/joystick", "input/touchscreen", "iio", "usb"),
    *("bluetooth", "scsi", "ata", "mtd", "comedi", "thunderbolt", "firewire", "video", "w1", "leds"),
    *("platform/surface", "net/ethernet", "net/wireless", "net/can", "net/usb", "net/wwan", "net/fddi"),
    *("net/hamradio", "net/dsa"),
)
FILESYSTEMS: Final = (
    *("xfs", "btrfs", "ocfs2", "gfs2", "f2fs", "ceph", "cifs", "smb", "afs", "jfs", "reiserfs", "nilfs2", "ntfs3"),
    *("ubifs", "coda", "dlm", "orangefs", "ksmbd", "nfs", "nfsd"),
)
LEFT_OUT: Final = (
    *(f"/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")),
    # Below /lib in Debian 12, below /usr/lib from then on.
    "*/lib/modules/*/kernel/sound/*",
    *(f"*/lib/modules/*/kernel/drivers/{name}/*" for name in DRIVERS),
    *(f"*/lib/modules/*/kernel/fs/{name}/*" for name in FILESYSTEMS),
)
SIZE: Final = "2G"


def key() -> str:
    """Return what changes with everything that goes into the disk."""
    if SUITE not in SUITES:
        raise ValueError(f"SUITE={SUITE}: the guests are {', '.join(SUITES)}")
    return key_of(SUITE, Path(__file__), HERE / "customize.sh", *sorted((HERE / "guest").glob("agent.*")))


def build(into: Path) -> None:
    """Make disk.img, vmlinux and initrd in `into`. Needs root: goes through sudo when it is not."""
    if os.geteuid() != 0:
        again = ["sudo", f"SUITE={SUITE}", sys.executable, "-m", "tests.system.image.base", str(into)]
        subprocess.run(again, cwd=CHECKOUT, check=True, timeout=LIMIT + 60)
        return
    tree = into / "tree"
    try:
        left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        customize = f'--customize-hook={HERE / "customize.sh"} "$1" {HERE / "guest"}'
        bootstrap(SUITE, tree, PACKAGES, *left_out, customize)
        (kernel,) = tree.glob("boot/vmlinuz-*")
        (initrd,) = tree.glob("boot/initrd.img-*")
        (into / "vmlinux").write_bytes(unpacked(kernel.read_bytes()))
        shutil.move(initrd, into / "initrd")
        kernel.unlink()
        # Thrown away after each run: no journal.
        ext4 = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0", "-L", "root"]
        subprocess.run(
            [*ext4, "-d", str(tree), str(into / "disk.img"), SIZE], check=True, timeout=120, stdout=subprocess.DEVNULL
        )
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    for path in into.iterdir():
        path.chmod(0o644)


def bootstrap(suite: str, tree: Path, packages: Sequence[str], *options: str) -> None:
    """Make a Debian in a folder."""
    # It sees no process of the host: polkitd, when it is installed, stops all of its name.
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    make = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
    how = ["--aptopt=APT::Install-Recommends false", "--dpkgopt=force-unsafe-io", *SUITE_OPTIONS.get(suite, ())]
    what = [f"--include={','.join(packages)}", *options, suite, str(tree)]
    subprocess.run([*alone, *make, *how, *what], check=True, timeout=LIMIT)


def unpacked(kernel: bytes) -> bytes:
    """Return the ELF file inside a bzImage, which QEMU starts by its PVH note: emulated, unpacking would take seconds.

    The header says where it lies (Documentation/arch/x86/boot.rst); with xz and zstd four bytes follow it, its size.
    """
    (setup,) = struct.unpack_from("<B", kernel, 0x1F1)
    start, length = struct.unpack_from("<II", kernel, 0x248)
    start += (setup + 1) * 512
    payload = kernel[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        found = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        found = zlib.decompressobj(wbits=31).decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        # Python has had zstd since 3.14.
        unpack = ["zstd", "--decompress", "--stdout", "--quiet"]
        found = subprocess.run(unpack, input=payload[:-4], check=True, capture_output=True, timeout=60).stdout
    else:
        raise ValueError(f"the kernel is packed with neither xz, zstd nor gzip: it begins with {payload[:4].hex()}")
    if not found.startswith(b"\x7fELF"):
        raise ValueError("there is no ELF file in the kernel")
    return found


if __name__ == "__main__":
    build(Path(sys.argv[1]))
