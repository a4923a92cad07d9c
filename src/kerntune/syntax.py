"""The syntax of settings on the command line; it splits text and asks no daemon. The daemon judges each part."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kerntune.errors import Usage
from kerntune.model import Setting
from kerntune.patterns import EVERY, HUGE_PAGES

# A sysctl by itself: vm.swappiness, vm/swappiness or its path. The name of a tunable has no dot and no slash.
SYSCTL: Final = re.compile(r"/proc/sys/.+|[a-z0-9_-]+(?:[./][a-z0-9_*?\[\]!-]+)+", re.ASCII)
SHAPE: Final = "Write TUNABLE[@INSTANCES]=VALUE, for example hugepages=128 or io-scheduler@nvme*=none"


class What(NamedTuple):
    """Targets by name; `instances` is `*` when the text has none."""

    tunable: str
    instances: str


def what(text: str) -> What:
    """Read `TUNABLE[@INSTANCES]`, or a sysctl by itself. Raise Usage."""
    if "=" in _printable(text).partition("@")[0]:
        raise Usage(f"{text} has a value where only a name is expected", f"To set it: kerntune set {text}")
    return _what(text, text)


def setting(text: str) -> Setting:
    """Read `TUNABLE[@INSTANCES]=VALUE`, or `SYSCTL=VALUE`. Raise Usage.

    Without instances all of them are meant, and of huge pages the default size. The value follows the last `=`: names
    below /dev/disk/by-id may contain one (and `@`), values do not.
    """
    name, equals, value = _printable(text).rpartition("=")
    if not equals or not value:
        raise Usage(f"{text} has no value", SHAPE)
    tunable, instances = _what(text, name)
    is_default = "@" not in name and tunable in HUGE_PAGES
    return Setting(tunable, "" if is_default else instances, value)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise Usage(f"{text!a} holds a character that cannot be printed", SHAPE)
    return text


def _what(text: str, name: str) -> What:
    if SYSCTL.fullmatch(name):
        return What("sysctl", name)
    tunable, at, instances = name.partition("@")
    if not tunable:
        raise Usage(f"{text!r} names no tunable", "kerntune list shows those of this host")
    if at and not instances:
        raise Usage(f"{text} names no instances after the @", "Leave the @ out, or write * for all of them")
    return What(tunable, instances if at else EVERY)


def in_utf8(name: str, text: object) -> str:
    """Return a text as the bus takes it. Raise Usage for a value that is no text, or is not UTF-8."""
    if not isinstance(text, str):
        raise Usage(f"{name} is {text!r:.60}", "Give a text, a str")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Usage(f"{name} is {text!r:.60}", "Write it in UTF-8") from None
    return str.__str__(text)
