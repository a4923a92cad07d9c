"""Captured hosts: one text file a host, laid out as a tree of files for HostKernel(root).

A line is `path<TAB>text`; the same path again is one line more of that file. `path -> target` is a symbolic link, a
path that ends in a slash is an empty folder, `#` begins a comment, and a path that ends in `.gz` is packed.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

from kerntune.kernel.files import HostKernel

HERE = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in HERE.glob("*.txt")))


def lay_out(name: str, root: Path) -> HostKernel:
    """The kernel of the captured host `name`, its files below `root`."""
    return plant(root, (HERE / f"{name}.txt").read_text())


def plant(root: Path, listing: str) -> HostKernel:
    """The files of a listing below `root`."""
    files: dict[str, list[str]] = {}
    for line in listing.splitlines():
        path, tab, text = line.partition("\t")
        if tab:
            files.setdefault(path, []).append(text)
        elif " -> " in line:
            link, _, target = line.partition(" -> ")
            place = root / link
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
        elif line.endswith("/"):
            (root / line).mkdir(parents=True)
        elif line and not line.startswith("#"):
            raise ValueError(f"neither a file, a link, a folder nor a comment: {line!r}")
    write_files(root, files)
    return HostKernel(root)


def write_files(root: Path, files: Mapping[str, list[str]]) -> None:
    """Each file with its lines, each ended by a newline as the kernel does."""
    for path, lines in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(f"{line}\n" for line in lines).encode()
        place.write_bytes(gzip.compress(data) if path.endswith(".gz") else data)
