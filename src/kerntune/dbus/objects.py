"""The published objects, and the answers of the org.freedesktop.DBus interfaces about them. It sends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kerntune import errors
from kerntune.dbus import standard
from kerntune.dbus.introspection import Emits, Interface, Property, parse, snake
from kerntune.dbus.messages import Variant

DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

Values = dict[str, Variant]


class Objects:
    """The objects, with the implementation of each of their interfaces.

    Its methods `ping`, `get` and so on are the handlers of the standard interfaces; they take the object path first.
    """

    def __init__(self, interfaces: Mapping[str, Interface], root: str) -> None:
        self.root, self.bus_name = root, ""  # the name is for hints only
        self.interfaces = {found.name: found for found in parse(standard.INTERFACES)} | dict(interfaces)
        self._objects: dict[str, dict[str, object]] = {}
        self._published: dict[str, dict[str, dict[str, Any]]] = {}  # of properties whose changes are published

    def add(self, path: str, impls: Mapping[str, object]) -> None:
        """Add an object. Raise TypeError that names what an implementation lacks of its interface."""
        for name, impl in impls.items():
            if lacking := self.interfaces[name].missing(impl):
                raise TypeError(f"{type(impl).__name__} lacks {', '.join(lacking)} to be {name}")
        # A getter may fail: then nothing is added.
        published = {name: self._emitting(name, impl) for name, impl in impls.items()}
        self._objects.setdefault(path, {}).update(impls)
        self._published.setdefault(path, {}).update(published)

    def remove(self, path: str) -> list[str]:
        """Remove an object, and return the names of its interfaces."""
        self._published.pop(path, None)
        return list(self._objects.pop(path, {}))

    def resolve(self, path: str, interface: str | None, member: str) -> tuple[Interface, object]:
        """Return the interface that has `member` at `path`, and its implementation.

        Without an interface, return the first that fits. Raise UnknownObject, UnknownInterface or UnknownMethod.
        """
        offered = self._offered(path)
        if interface is not None and interface not in offered:
            if path in self._objects:
                raise errors.UnknownInterface(f"{path:.200} has no interface {interface}")
            raise self._unknown_object(path)
        for name in offered if interface is None else [interface]:
            if member in self.interfaces[name].methods:
                return self.interfaces[name], offered[name]
        raise errors.UnknownMethod(
            f"{path:.200} has no method {f'{interface}.' if interface else ''}{member}",
            f"busctl introspect {self.bus_name} {self.root} lists what there is",
        )

    def values(self, path: str, interface: str) -> Values:
        """Return every property of one interface of an object."""
        model, impl = self.interfaces[interface], self._objects[path][interface]
        return {name: _variant(impl, name, prop) for name, prop in model.properties.items()}

    def changes(self, path: str) -> Iterator[tuple[str, Values, list[str]]]:
        """Yield what has changed of an object since the last time, for each interface that has changes.

        These are the contents of PropertiesChanged: the interface, new values, and names without a value.
        """
        for interface, impl in self._objects.get(path, {}).items():
            before, now = self._published[path][interface], self._emitting(interface, impl)
            self._published[path][interface] = now
            properties = self.interfaces[interface].properties
            changed = {name: properties[name] for name, value in now.items() if value != before[name]}
            if changed:
                new = {
                    name: Variant(prop.type, now[name]) for name, prop in changed.items() if prop.emits is Emits.TRUE
                }
                yield interface, new, [name for name in changed if name not in new]

    def _emitting(self, interface: str, impl: object) -> dict[str, Any]:
        """Return the values of those properties of an interface whose changes are published."""
        properties = self.interfaces[interface].properties
        emits = (name for name, prop in properties.items() if prop.emits in (Emits.TRUE, Emits.INVALIDATES))
        return {name: getattr(impl, snake(name)) for name in emits}

    async def ping(self, _path: str) -> None:
        """Answer Peer.Ping, for any path."""

    async def get_machine_id(self, _path: str) -> str:
        """Answer Peer.GetMachineId with machine-id(5)."""
        try:
            return (await asyncio.to_thread(Path("/etc/machine-id").read_text, "ascii")).strip()
        except OSError as error:
            raise errors.Failed(f"/etc/machine-id cannot be read: {error.strerror}") from error

    async def introspect(self, path: str) -> str:
        """Answer Introspectable.Introspect, also for paths above the objects: else `busctl tree` finds nothing."""
        below = path.rstrip("/") + "/"
        children = sorted({other[len(below) :].split("/")[0] for other in self._objects if other.startswith(below)})
        # The name of an object has letters, digits and "_" only: XML need not escape any of them.
        inside = [self.interfaces[name].xml for name in self._offered(path)]
        inside += [f'<node name="{child}"/>' for child in children]
        return f"{DOCTYPE}<node>\n" + "".join(f"  {each}\n" for each in inside) + "</node>\n"

    async def get(self, path: str, interface: str, name: str) -> Variant:
        """Answer Properties.Get. Raise UnknownProperty."""
        for found in self._with_properties(path, interface):
            if prop := self.interfaces[found].properties.get(name):
                impl = self._objects[path][found]
                if prop.emits is not Emits.CONST and (waiting := _refresh(impl)):
                    await waiting
                return _variant(impl, name, prop)
        raise errors.UnknownProperty(f"{interface or path} has no property {name:.200}")

    async def get_all(self, path: str, interface: str) -> Values:
        """Answer Properties.GetAll."""
        wanted = self._with_properties(path, interface)
        if waiting := [waits for name in wanted if (waits := _refresh(self._objects[path][name]))]:
            await asyncio.gather(*waiting)
        values: Values = {}
        for name in wanted:
            values |= self.values(path, name)
        return values

    async def set(self, path: str, interface: str, name: str, _value: Variant) -> None:
        """Refuse Properties.Set: every property of the contract is read-only."""
        if any(name in self.interfaces[found].properties for found in self._with_properties(path, interface)):
            raise errors.PropertyReadOnly(f"{name} cannot be set", "Use the method that goes with it")
        raise errors.UnknownProperty(f"{interface or path} has no property {name:.200}")

    async def get_managed_objects(self, _path: str) -> dict[str, dict[str, Values]]:
        """Answer ObjectManager.GetManagedObjects with the objects below the root."""
        below = [other for other in self._objects if other != self.root]
        return {other: {name: self.values(other, name) for name in self._objects[other]} for other in below}

    def _offered(self, path: str) -> dict[str, object]:
        """Return the implementations at `path`, by interface; ours come first, so a call without one means ours."""
        ours = self._objects.get(path)
        below = path.rstrip("/") + "/"
        offered = dict(ours or {})
        offered[standard.PEER] = self
        if ours is not None or any(other.startswith(below) for other in self._objects):
            offered[standard.INTROSPECTABLE] = self
        if ours is not None:
            offered[standard.PROPERTIES] = self
            if path == self.root:
                offered[standard.OBJECT_MANAGER] = self
        return offered

    def _with_properties(self, path: str, interface: str) -> list[str]:
        """Return the named interface, or all of the object if the name is empty, as the specification allows."""
        ours = self._objects.get(path, {})
        if interface and interface not in ours:
            if interface in self._offered(path):
                return []  # a standard interface: it has no properties
            raise errors.UnknownInterface(f"{path:.200} has no interface {interface:.200}")
        return [interface] if interface else list(ours)

    def _unknown_object(self, path: str) -> errors.UnknownObject:
        return errors.UnknownObject(f"there is no object {path:.200}", f"The main one is {self.root}")


def _variant(impl: object, name: str, prop: Property) -> Variant:
    return Variant(prop.type, getattr(impl, snake(name)))


def _refresh(impl: object) -> Awaitable[None] | None:
    """Let an implementation read again what others may have changed, if it can. Return what to await, or None."""
    refresh: Callable[[], Awaitable[None] | None] | None = getattr(impl, "refresh", None)
    return refresh() if refresh else None
