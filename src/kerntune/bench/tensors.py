"""The parts of a model's file that a loader copies into buffers of their own; it imports next to nothing."""

from __future__ import annotations

import json
import os
from typing import Any, Final, NamedTuple

LONGEST_HEADER: Final = 32 << 20
COUNT: Final = 8  # bytes of the header's length
METADATA: Final = "__metadata__"


class Part(NamedTuple):
    """The bytes of a file that go into one buffer."""

    offset: int
    size: int


def parts_of(fd: int, size: int) -> list[Part]:
    """Return the tensors of a safetensors file in the order of its header; of any other file one part with all of it.

    A header that is broken, or that names more bytes than the file has, is no header.
    """
    length = int.from_bytes(os.pread(fd, COUNT, 0), "little")
    if size > COUNT and 2 <= length <= min(LONGEST_HEADER, size - COUNT):
        try:
            header = json.loads(os.pread(fd, length, COUNT))
        except (ValueError, RecursionError, MemoryError):
            header = None
        if parts := _tensors(header, COUNT + length, size):
            return parts
    return [Part(0, size)]


def _tensors(header: Any, start: int, size: int) -> list[Part]:
    """Return the tensors that a header names, none where one of them cannot be in the file."""
    if not isinstance(header, dict):
        return []
    parts = []
    for name, tensor in header.items():
        if name == METADATA:
            continue
        match tensor:
            case {"data_offsets": [int(begin), int(end)]} if 0 <= begin <= end <= size - start:
                parts.append(Part(start + begin, end - begin))
            case _:
                return []
    # Tensors that share their bytes could ask for any amount of memory.
    return [part for part in parts if part.size] if sum(part.size for part in parts) <= size - start else []
