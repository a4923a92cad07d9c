"""The contract as data: what the interface files (dbus/interfaces/*.xml) say of each interface; serves nothing."""

from __future__ import annotations

import inspect
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

EMITS: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"
ACTION: Final = "org.kerntune.Action"


class Emits(StrEnum):
    """What PropertiesChanged says of a property ("Introspection Data Format" in the D-Bus Specification)."""

    TRUE = "true"
    INVALIDATES = "invalidates"
    CONST = "const"
    FALSE = "false"


@dataclass(frozen=True, slots=True)
class Property:
    """A property: its signature, `read` or `readwrite`, and how a change of it is announced."""

    type: str
    access: str
    emits: Emits


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface: signatures by member name (for a method in and out), and the XML element, annotations kept.

    `actions` says of a method what its caller needs (bus/gate.py); a method without the annotation is not in it.
    """

    name: str
    methods: Mapping[str, tuple[str, str]]
    signals: Mapping[str, str]
    properties: Mapping[str, Property]
    element: ET.Element
    actions: Mapping[str, str]

    def missing(self, impl: object) -> list[str]:
        """What `impl` lacks to serve this interface: handlers `async def member(self, caller, *args)`, attributes."""
        lacking = [snake(name) for name in self.properties if not _has(impl, snake(name))]
        for method in self.element.iterfind("method"):
            name = snake(method.get("name", ""))
            takes = [arg.get("name", "arg") for arg in method.iterfind("arg") if arg.get("direction", "in") == "in"]
            if not _takes(getattr(impl, name, None), 1 + len(takes)):
                lacking.append(f"async {name}({', '.join(['caller', *takes])})")
        return lacking


def load(paths: Iterable[Path]) -> dict[str, Interface]:
    """Interfaces by name; raises OSError or xml.etree.ElementTree.ParseError."""
    return {found.name: found for path in paths for found in parse(ET.parse(path).getroot())}


def parse(root: ET.Element) -> Iterable[Interface]:
    """The interfaces in a `<node>`."""
    return map(_interface, root.iter("interface"))


def snake(member: str) -> str:
    """The Python name of a D-Bus member: SetCount -> set_count, SinceUSec -> since_usec."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", member).lower()


def _interface(element: ET.Element) -> Interface:
    default = _emits(element, Emits.TRUE)
    return Interface(
        element.get("name", ""),
        {_name(each): (_signature(each, "in"), _signature(each, "out")) for each in element.iterfind("method")},
        {_name(each): _signature(each, "") for each in element.iterfind("signal")},
        {
            _name(each): Property(each.get("type", ""), each.get("access", "read"), _emits(each, default))
            for each in element.iterfind("property")
        },
        element,
        {_name(each): action for each in element.iterfind("method") if (action := _annotation(each, ACTION))},
    )


def _name(element: ET.Element) -> str:
    return element.get("name", "")


def _signature(member: ET.Element, direction: str) -> str:
    """The arguments of one direction together; a method's go in when they do not say, a signal's have none."""
    wanted = [arg for arg in member.iterfind("arg") if not direction or arg.get("direction", "in") == direction]
    return "".join(arg.get("type", "") for arg in wanted)


def _emits(element: ET.Element, default: Emits) -> Emits:
    said = _annotation(element, EMITS)
    return default if said is None else Emits(said)


def _annotation(element: ET.Element, name: str) -> str | None:
    """Return the value of an element's own annotation; None where there is none."""
    found = (each.get("value", "") for each in element.iterfind("annotation") if each.get("name") == name)
    return next(found, None)


def _has(impl: object, name: str) -> bool:
    """Whether there is such an attribute, without running the property behind it."""
    try:
        inspect.getattr_static(impl, name)
    except AttributeError:
        return False
    return True


def _takes(handler: object, count: int) -> bool:
    """Whether `handler` is a coroutine function that can be called with `count` positional arguments."""
    if not inspect.iscoroutinefunction(handler):
        return False
    try:
        inspect.signature(handler).bind(*range(count))
    except TypeError:
        return False
    return True
