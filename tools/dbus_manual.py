"""org.kerntune.Tuner1(5): the contract in dbus/interfaces as a manual page, with the comments in front of its members.

`python -m tools.dbus_manual` writes it into the checkout, and `make generated` runs it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final
from xml.dom import minidom
from xml.dom.minidom import Element, Node

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.errors import FREEDESKTOP, OURS, by_name

CHECKOUT: Final = Path(__file__).parents[1]
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
.\" Written by python -m tools.dbus_manual from dbus/interfaces/*.xml; do not edit.
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
offers these interfaces on one object, and that of a hold on an object for each.
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
    """Return the whole manual page, made from the files of the contract."""
    # The manager is first: it can do all that the others can.
    files = sorted(files, key=lambda file: (file.stem != names.MANAGER, file.stem))
    lines = [TYPES, *(line for file in files for line in interface(file)), *errors()]
    return HEAD + "".join(f"{line}\n" for line in wrapped(lines)) + TAIL


def interface(file: Path) -> Iterator[str]:
    """Yield the section of one interface."""
    document = minidom.parse(str(file))
    (found,) = document.getElementsByTagName("interface")
    yield f".Sh {found.getAttribute('name').removeprefix(f'{names.BUS_NAME}.').upper()}"
    yield f"The interface is {found.getAttribute('name')}."
    for comment in comments(document):
        yield from prose(re.sub(r"^org\.kerntune\.Tuner1\.\w+, at \S+?[:.](?=\s)", "", comment))
    # A comment `Name: text` is in front of every member.
    texts = {name: text for name, _, text in (comment.partition(":") for comment in comments(found))}
    for kind, title in KINDS.items():
        members = [node for node in found.childNodes if isinstance(node, Element) and node.tagName == kind]
        for place, member in enumerate(members):
            name = member.getAttribute("name")
            yield ".Pp" if place else f".Ss {title}"
            yield f".Ic {name}"
            yield f'.Dl "{signature(member)}"'
            yield ".Pp"
            yield from prose(texts[name], [arg.getAttribute("name") for arg in member.getElementsByTagName("arg")])
            yield from prose(emits(member))


def comments(node: Node) -> list[str]:
    """Return the comments right below a node."""
    return [child.data.strip() for child in node.childNodes if isinstance(child, minidom.Comment)]


def signature(member: Element) -> str:
    """Return a member with the names and types of what goes in and out."""
    name = member.getAttribute("name")
    if member.tagName == "property":
        return f"{name} {member.getAttribute('type')}"
    taken: list[str] = []
    given: list[str] = []
    for arg in member.getElementsByTagName("arg"):
        side = given if arg.getAttribute("direction") == "out" else taken
        side.append(f"{arg.getAttribute('type')} {arg.getAttribute('name')}")
    return f"{name}({', '.join(taken)})" + (f" -> ({', '.join(given)})" if given else "")


def emits(member: Element) -> str:
    """Return how changes of a property are told; nothing where the signal has the new value, as is usual."""
    notes = [note.getAttribute("value") for note in member.getElementsByTagName("annotation")]
    return " ".join(EMITS[note] for note in notes if note in EMITS)


def errors() -> Iterator[str]:
    """Yield every error that a call may end in."""
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


def prose(text: str, verbatim: Container[str] = ()) -> Iterator[str]:
    """Yield one sentence to a line, as mdoc(7) wants them; the name of an argument gets no capital."""
    if text := " ".join(text.split()):
        first = re.split(r"\W", text)[0]
        if first not in verbatim and "_" not in first:
            text = text[0].upper() + text[1:]
        yield from re.split(r"(?<=\.) (?=[A-Z\"])", text)


def wrapped(lines: list[str]) -> Iterator[str]:
    """Yield lines that are not too long, with no text that troff would take for a macro or an escape."""
    for line in lines:
        if line.startswith("."):
            yield line
        else:
            for part in textwrap.wrap(line.replace("\\", "\\e"), WIDTH, break_on_hyphens=False, break_long_words=False):
                yield f"\\&{part}" if part[0] in ".'" else part


def main() -> None:
    """Write the page into the checkout."""
    (CHECKOUT / MANUAL).write_text(page(interface_files()))


if __name__ == "__main__":
    main()
