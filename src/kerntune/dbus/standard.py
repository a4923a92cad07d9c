"""The names, rules and interfaces that every bus has ("Standard Interfaces" and "Message Bus" in the specification)."""

from __future__ import annotations

from typing import Final

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
THE_BUS: Final = (BUS, BUS_PATH, BUS)

PEER: Final = f"{BUS}.Peer"
INTROSPECTABLE: Final = f"{BUS}.Introspectable"
PROPERTIES: Final = f"{BUS}.Properties"
OBJECT_MANAGER: Final = f"{BUS}.ObjectManager"
STATS: Final = f"{BUS}.Debug.Stats"


def signal_rules(service: str, path: str, interface: str | None, member: str | None) -> tuple[str, str]:
    """Return the match rules for signals of an object of a service, and for changes of the service's owner."""
    more = "".join(f",{key}='{name}'" for key, name in (("interface", interface), ("member", member)) if name)
    return f"type='signal',sender='{service}',path='{path}'{more}", owner_rule(service)


def owner_rule(name: str) -> str:
    """Return the match rule for changes of the owner of a name."""
    return f"type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',member='NameOwnerChanged',arg0='{name}'"


INTERFACES: Final = """
<node>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>
"""
