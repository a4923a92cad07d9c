"""The kernel of the system tests' guests comes out of its image, whatever Debian has packed it with."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable

import pytest

from tests.system.image.base import unpacked

ELF = b"\x7fELF" + bytes(range(256)) * 400
SIZE = struct.pack("<I", len(ELF))  # what the kernel's build leaves behind what is packed, but for gzip
SETUP = 3  # sectors of 512 bytes, and the first
OFFSET = 100


def image(payload: bytes) -> bytes:
    """Return a bzImage as boot.rst has it, with the fields that lead to the payload."""
    head = bytearray((SETUP + 1) * 512 + OFFSET)
    struct.pack_into("<B", head, 0x1F1, SETUP)
    struct.pack_into("<II", head, 0x248, OFFSET, len(payload))
    return bytes(head) + payload + b"what follows in the file"


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "--stdout", "-q"], input=data, capture_output=True, check=True, timeout=20).stdout


@pytest.mark.parametrize("pack", [lambda data: lzma.compress(data, check=lzma.CHECK_CRC32) + SIZE, gzip.compress,
                                  lambda data: zstd(data) + SIZE], ids=["xz", "gzip", "zstd"])  # fmt: skip
def test_the_kernel_comes_out_whole(pack: Callable[[bytes], bytes]) -> None:
    assert unpacked(image(pack(ELF))) == ELF


@pytest.mark.parametrize(
    ("payload", "why"),
    [(b"BZh91AY&SY", "neither xz, zstd nor gzip"), (gzip.compress(b"a script"), "no ELF file")],
    ids=["bzip2", "no-kernel"],
)
def test_what_is_no_kernel_is_told(payload: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpacked(image(payload))
