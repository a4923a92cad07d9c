"""Interfaces as data, read from XML ("Introspection Data Format" in the D-Bus Specification)."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from xml.parsers import expat

EMITS: Final = "org.freedesktop.DBus.Property.EmitsChangedSignal"


class Emits(StrEnum):
    """The content of PropertiesChanged for a property, by its annotation EmitsChangedSignal."""

    TRUE = "true"
    INVALIDATES = "invalidates"
    CONST = "const"
    FALSE = "false"


@dataclass(frozen=True, slots=True)
class Property:
    """A property: its signature, `read` or `readwrite`, and the way in which its changes are published."""

    type: str
    access: str
    emits: Emits


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface by member name: for a method the signatures in and out, and the names of its in arguments.

    `xml` is the element as it stands in the file. `annotations` has those of each method, by their names.
    """

    name: str
    methods: Mapping[str, tuple[str, str]]
    takes: Mapping[str, tuple[str, ...]]
    signals: Mapping[str, str]
    properties: Mapping[str, Property]
    annotations: Mapping[str, Mapping[str, str]]
    xml: str

    def missing(self, impl: object) -> list[str]:
        """Return what `impl` lacks for this interface: handlers `async def member(self, caller, *args)`, attributes."""
        lacking = [snake(name) for name in self.properties if not _has(impl, snake(name))]
        for member, takes in self.takes.items():
            name = snake(member)
            if not _takes(getattr(impl, name, None), 1 + len(takes)):
                lacking.append(f"async {name}({', '.join(['caller', *takes])})")
        return lacking


def load(paths: Iterable[Path]) -> dict[str, Interface]:
    """Return the interfaces by name. Raise OSError or xml.parsers.expat.ExpatError."""
    return {found.name: found for path in paths for found in parse(path.read_text("utf-8"))}


def parse(text: str) -> list[Interface]:
    """Return the interfaces in an XML document. Raise xml.parsers.expat.ExpatError."""
    return [_interface(element) for element in _elements(text, "interface")]


def snake(member: str) -> str:
    """Return the Python name of a D-Bus member: SetCount -> set_count, SinceUSec -> since_usec."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", member).lower()


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: Mapping[str, str]
    children: list[_Element] = field(default_factory=list)
    xml: str = ""

    def all(self, tag: str) -> list[_Element]:
        return [child for child in self.children if child.tag == tag]

    def get(self, attribute: str, default: str = "") -> str:
        return self.attributes.get(attribute, default)

    @property
    def name(self) -> str:
        return self.get("name")


def _elements(text: str, tag: str) -> list[_Element]:
    """Return the elements with a tag, each with its own text; xml.etree would cost the daemon 0.2 MiB."""
    found: list[_Element] = []
    above: list[tuple[_Element, int]] = []
    source = text.encode()
    parser = expat.ParserCreate("utf-8")

    def start(name: str, attributes: dict[str, str]) -> None:
        element = _Element(name, attributes)
        if above:
            above[-1][0].children.append(element)
        above.append((element, parser.CurrentByteIndex))

    def end(name: str) -> None:
        element, began = above.pop()
        if name == tag:
            # The parser is at the end tag, or behind an element that has none.
            at = parser.CurrentByteIndex
            ended = source.index(b">", at) + 1 if source.startswith(b"</", at) else at
            element.xml = source[began:ended].decode()
            found.append(element)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.ParseFile(io.BytesIO(source))
    return found


def _interface(element: _Element) -> Interface:
    default = _emits(element, Emits.TRUE)
    methods, signals = element.all("method"), element.all("signal")
    return Interface(
        element.name,
        {each.name: (_signature(each, "in"), _signature(each, "out")) for each in methods},
        {each.name: tuple(arg.get("name", "arg") for arg in _arguments(each, "in")) for each in methods},
        {each.name: _signature(each, "") for each in signals},
        {
            each.name: Property(each.get("type"), each.get("access", "read"), _emits(each, default))
            for each in element.all("property")
        },
        {each.name: _annotations(each) for each in methods},
        element.xml,
    )


def _arguments(member: _Element, direction: str) -> list[_Element]:
    """Return the arguments of one direction. A method's arguments go in by default; a signal's have no direction."""
    return [arg for arg in member.all("arg") if not direction or arg.get("direction", "in") == direction]


def _signature(member: _Element, direction: str) -> str:
    """Return the types of all arguments of one direction as one signature."""
    return "".join(arg.get("type") for arg in _arguments(member, direction))


def _emits(element: _Element, default: Emits) -> Emits:
    said = _annotations(element).get(EMITS)
    return default if said is None else Emits(said)


def _annotations(element: _Element) -> dict[str, str]:
    """Return the values of an element's own annotations, by their names."""
    return {each.name: each.get("value") for each in element.all("annotation")}


def _has(impl: object, name: str) -> bool:
    """Return whether `impl` has the attribute, without running the property behind it."""
    try:
        inspect.getattr_static(impl, name)
    except AttributeError:
        return False
    return True


def _takes(handler: object, count: int) -> bool:
    """Return whether `handler` is a coroutine function that can be called with `count` positional arguments."""
    if not inspect.iscoroutinefunction(handler):
        return False
    try:
        inspect.signature(handler).bind(*range(count))
    except TypeError:
        return False
    return True
