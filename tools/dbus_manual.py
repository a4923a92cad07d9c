"""org.kerntune.Tuner1(5): the contract's XML as a manual page, members with the text that stands with them there.

`python -m kerntune.bus.manual` writes it into a checkout; a test tells when that is due.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Final
from xml.dom import minidom
from xml.dom.minidom import Element, Node

from kerntune.bus import names
from kerntune.errors import FREEDESKTOP, OURS, by_name

MANUAL: Final = f"docs/man/{names.BUS_NAME}.5"
WIDTH: Final = 110
KINDS: Final = {"method": "Methods", "property": "Properties", "signal": "Signals"}
EMITS: Final = {
    "false": "No signal tells of changes.",
    "const": "It never changes.",
    "invalidates": "Its signal tells that it has changed, and not to what.",
}
# The types that the contract uses, as mdoc text.
TYPES: Final = (
    "s string, b boolean, y byte, u and t numbers of 32 and 64 bits, a array, (...) structure, a{..} dictionary, "
    "v variant."
)

HEAD: Final = r"""
.\" Written by python -m kerntune.bus.manual from dbus/interfaces/*.xml; do not edit.
.Dd November 28, 2026
.\" groff has BSD in the heading otherwise.
.ds doc-volume-operating-system kerntune
.Dt ORG.KERNTUNE.TUNER1 5
.Os kerntune
.Sh NAME
.Nm org.kerntune.Tuner1
.Nd the D-Bus interfaces of kerntuned
.Sh SYNOPSIS
.Bl -tag -width "object" -compact
.It bus
the system bus
.It name
.Li org.kerntune.Tuner1
.It object
.Li /org/kerntune/Tuner1
.El
.Sh DESCRIPTION
.Xr kerntuned 8
offers these interfaces on one object.
A call that sets something is answered when the kernel holds the value, and with what was read back.
Reading is open to everybody; to change something
.Xr polkit 8
has to allow the action that is named with the method.
.Pp
The words
.Pq tunable, target, claim, outcome ,
the values and instances of each tunable, the states and the reasons are those of
.Xr kerntuned 8 .
.Pp
Types are written as D-Bus signatures:
""".lstrip()

TAIL: Final = r"""
.Sh EXAMPLES
128 huge pages of the default size, and 64 on node 0:
.Bd -literal -offset indent
busctl call org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.HugePages SetCount "tta{sv}" 0 128 0
busctl call org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.HugePages SetCount "tta{sv}" 0 64 1 node u 0
.Ed
.Pp
A scheduler for every NVMe drive, also after a reboot and for those plugged later:
.Bd -literal -offset indent
busctl call org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.IoScheduler SetScheduler "ssa{sv}" "nvme*" none 1 persist b true
.Ed
.Pp
A governor for every CPU, and overcommit:
.Bd -literal -offset indent
busctl call org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.CpuGovernor SetGovernor "ssa{sv}" "*" performance 0
busctl call org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.Memory SetOvercommit "sua{sv}" always 95 0
.Ed
.Pp
What there is, and what is managed and for whom:
.Bd -literal -offset indent
busctl get-property org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.HugePages Pools
busctl --json=short call org.kerntune.Tuner1 /org/kerntune/Tuner1 \e
    org.kerntune.Tuner1.Manager Describe | jq -r '.data[0] | fromjson'
.Ed
.Pp
Everything that happens; the second line is for ordinary users:
.Bd -literal -offset indent
busctl monitor org.kerntune.Tuner1
gdbus monitor --system --dest org.kerntune.Tuner1
.Ed
.Sh SEE ALSO
.Xr busctl 1 ,
.Xr gdbus 1 ,
.Xr kerntune 1 ,
.Xr kerntune.toml 5 ,
.Xr kerntuned 8 ,
.Xr polkit 8
""".lstrip()


def page(files: list[Path]) -> str:
    """The whole manual page, from the files of the contract."""
    lines = [TYPES]
    for file in sorted(files, key=order):
        lines += interface(file)
    lines += errors()
    return HEAD + "".join(f"{line}\n" for line in wrapped(lines)) + TAIL


def order(file: Path) -> tuple[bool, str]:
    """The manager first: it can do all that the others can."""
    return file.stem != names.MANAGER, file.stem


def interface(file: Path) -> Iterator[str]:
    """The section of one interface."""
    document = minidom.parse(str(file))
    (found,) = document.getElementsByTagName("interface")
    yield f".Sh {found.getAttribute('name').removeprefix(f'{names.BUS_NAME}.').upper()}"
    yield f"The interface is {found.getAttribute('name')}."
    for comment in comments(document.childNodes):
        yield from prose(re.sub(r"^org\.kerntune\.Tuner1\.\w+, at \S+?[:.](?=\s)", "", comment.strip()))
    members = [node for node in found.childNodes if isinstance(node, Element)]
    said = dict(member_text(comment) for comment in comments(found.childNodes))
    for kind, title in KINDS.items():
        if these := [member for member in members if member.tagName == kind]:
            yield f".Ss {title}"
            for place, member in enumerate(these):
                if place:
                    yield ".Pp"
                yield f".Ic {member.getAttribute('name')}"
                yield f'.Dl "{signature(member)}"'
                yield ".Pp"
                yield from prose(said[member.getAttribute("name")], names_in(member))
                yield from prose(emits(member))


def comments(nodes: Iterable[Node]) -> list[str]:
    return [node.data for node in nodes if isinstance(node, minidom.Comment)]


def member_text(comment: str) -> tuple[str, str]:
    """`Name: text`, as every member has it in front of it."""
    name, _, text = comment.strip().partition(":")
    return name, text


def signature(member: Element) -> str:
    """A member with the names and types of what goes in and out."""
    name = member.getAttribute("name")
    if member.tagName == "property":
        return f"{name} {member.getAttribute('type')}"
    args = [
        (arg.getAttribute("direction"), f"{arg.getAttribute('type')} {arg.getAttribute('name')}")
        for arg in member.getElementsByTagName("arg")
    ]
    taken = ", ".join(text for direction, text in args if direction != "out")
    given = ", ".join(text for direction, text in args if direction == "out")
    return f"{name}({taken}) -> ({given})" if given else f"{name}({taken})"


def names_in(member: Element) -> set[str]:
    return {arg.getAttribute("name") for arg in member.getElementsByTagName("arg")}


def emits(member: Element) -> str:
    """How changes of a property are told; nothing where the new value is sent, as is usual."""
    notes = [note.getAttribute("value") for note in member.getElementsByTagName("annotation")]
    return " ".join(EMITS[note] for note in notes if note in EMITS)


def errors() -> Iterator[str]:
    """Every error a call may end in."""
    yield ".Sh ERROR NAMES"
    yield f"The names begin with {OURS.rstrip('.')}, and where so noted with {FREEDESKTOP.rstrip('.')}."
    yield "The message says what happened, then the likely cause and what to try."
    yield '.Bl -tag -width "PartiallyAllocated"'
    for name, error in sorted(by_name().items(), key=lambda item: (not item[0].startswith(OURS), item[0])):
        about = (error.__doc__ or "").strip()
        if about.startswith("Only in"):
            continue
        yield f".It Li {name.rpartition('.')[2]}" + ("" if name.startswith(OURS) else " Pq freedesktop")
        yield from prose(about)
    yield ".El"


def prose(text: str, arguments: Container[str] = ()) -> Iterator[str]:
    """One sentence to a line, as mdoc(7) wants them; one that begins with an argument's name leaves it as it is."""
    if said := " ".join(text.split()):
        first = re.split(r"\W", said)[0]
        if first not in arguments and "_" not in first:
            said = said[0].upper() + said[1:]
        yield from re.split(r"(?<=\.) (?=[A-Z\"])", said)


def wrapped(lines: list[str]) -> Iterator[str]:
    """No line too long; no text that would be taken for a macro or an escape."""
    for line in lines:
        if line.startswith("."):
            yield line
        else:
            for part in textwrap.wrap(line.replace("\\", "\\e"), WIDTH, break_on_hyphens=False, break_long_words=False):
                yield f"\\&{part}" if part[0] in ".'" else part


def main() -> int:
    """Write it into the checkout."""
    (Path(__file__).parents[3] / MANUAL).write_text(page(names.interface_files()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
