"""The examples of the documentation: what stands in it as something to type or to put into a file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import CHECKOUT

TEXTS: Final = tuple(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md"))
PAGES: Final = tuple(sorted((*TEXTS, *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("docs/man/*"))))
MAN: Final = re.compile(r"\.[1-8]$")
# What a line of a shell begins with; other blocks are files, tables of figures and formulas.
COMMANDS: Final = (
    "alias", "busctl", "export", "gdbus", "journalctl", "kerntune", "m=", "make", "sudo", "systemctl", "test",
)  # fmt: skip
PLAIN: Final = ((r"\(dq", '"'), (r"\(aq", "'"), (r"\-", "-"), (r"\e", "\\"), (r"\&", ""))
CLAIM: Final = re.compile(r'^("[^"]+"|[a-z]+) = ')


@dataclass(frozen=True, slots=True)
class Example:
    """Some lines that stand together; `section` is the heading of a manual page above it."""

    page: Path
    lines: tuple[str, ...]
    section: str = ""

    @property
    def is_shell(self) -> bool:
        return self.lines[0].startswith(COMMANDS) and not self.is_said

    @property
    def is_said(self) -> bool:
        """Whether it is what kerntune says on standard error."""
        return self.lines[0].startswith("kerntune: ")

    @property
    def is_of_root(self) -> bool:
        """Whether it is what root types, after a #, and the files of systemd that it makes."""
        return self.lines[0].startswith("# ")

    @property
    def is_python(self) -> bool:
        return self.lines[0].startswith("import ")

    @property
    def is_script(self) -> bool:
        return self.lines[0].startswith("#!")

    @property
    def commands(self) -> list[str]:
        """Each line to type, with what a backslash continues."""
        return re.sub(r"\\\n\s*", "", "\n".join(self.lines)).split("\n")

    @property
    def is_settings(self) -> bool:
        """Whether it is of kerntune.toml or a profile."""
        begin = self.lines[0]
        return (begin.startswith("[") and not begin.startswith(("[Unit]", "[Service]"))) or bool(CLAIM.match(begin))


def examples(page: Path) -> list[Example]:
    found = manual(page) if MAN.search(page.name) else markdown(page)
    return [example for example in found if example.lines]


def markdown(page: Path) -> Iterator[Example]:
    """Yield indented and fenced blocks."""
    text = page.read_text(encoding="utf-8")
    for fenced in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        yield Example(page, filled(fenced.splitlines()))
    for block in re.findall(r"(?:^\n)((?:^(?: {4}.*)?\n)+)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M):
        yield Example(page, filled(line[4:] for line in block.splitlines()))


def manual(page: Path) -> Iterator[Example]:
    """Yield what stands for itself: .Dl, .Bd -literal, .nf."""
    section = ""
    block: list[str] | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line in (".Ed", ".fi") and block is not None:
            yield Example(page, filled(block), section)
            block = None
        elif block is not None:
            block.append(plain(line))
        elif line.startswith((".Bd -literal", ".nf")):
            block = []
        elif line.startswith((".Ss ", ".Sh ", ".SH ")):
            section = line[4:]
        elif line.startswith(".Dl "):
            yield Example(page, (plain(line[4:]),), section)


def plain(line: str) -> str:
    """Return a line as it is shown."""
    for code, shown in PLAIN:
        line = line.replace(code, shown)
    return line


def filled(lines: Sequence[str] | Iterator[str]) -> tuple[str, ...]:
    return tuple(line for line in lines if line.strip())


def table(page: Path) -> list[list[str]]:
    """Return the rows of the first table of a page, without its head."""
    rows = re.findall(r"^\| (.*) \|$", page.read_text(encoding="utf-8"), re.M)
    return [row.split(" | ") for row in rows[2:]]


def code(cell: str) -> str:
    """Return what is marked as code in a cell."""
    found = re.match(r"`([^`]+)`", cell)
    assert found, f"nothing to type in {cell!r}"
    return found[1]
