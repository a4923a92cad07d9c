"""How settings and sizes are written on the command line; turns text into settings and asks nobody."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kerntune.errors import NotSupported, Usage
from kerntune.model import Setting

# What tunables say of their instances (`kind`) and of sizes as values: to import them would take longer than a call.
# Those not named here have names as instances and take no sizes. tests/static/test_tunables.py compares.
KINDS: Final = {
    "hugepages": "pools",
    "hugepages-overcommit": "pools",
    "overcommit": "single",
    "cpu-governor": "cpus",
    "cpu-epp": "cpus",
    "io-scheduler": "drives",
    "read-ahead": "drives",
}
SIZES: Final = {"hugepages": "pages", "hugepages-overcommit": "pages", "read-ahead": "KiB"}


def _of_kind(kind: str) -> frozenset[str]:
    return frozenset(name for name, other in KINDS.items() if other == kind)


# Their instances begin with a page size.
HUGE_PAGES: Final = _of_kind("pools")
# One target and no instances; without `@` every other tunable means all of its instances.
SINGLE: Final = _of_kind("single")
# Their instances may be written as a list of CPUs.
ON_CPUS: Final = _of_kind("cpus")
ON_DRIVES: Final = _of_kind("drives")

UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"([0-9]{1,18})([KMGT])(?:I?B)?", re.IGNORECASE | re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_CPUS: Final = re.compile(r"[0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*", re.ASCII)

SHAPE: Final = "Write TUNABLE[@INSTANCES]=VALUE, for example hugepages=128 or io-scheduler@nvme*=none"


class What(NamedTuple):
    """Targets by name: `instances` is None when none were written."""

    tunable: str
    instances: str | None


class Asked(NamedTuple):
    """A setting as it was written, before defaults are filled in."""

    what: What
    value: str


def size(text: str) -> int | None:
    """Bytes of a size with a binary unit (`64G`, `2MiB`, `512kb`), or None when it is no such size."""
    if found := _SIZE.fullmatch(text):
        return int(found[1]) * UNITS[found[2].upper()]
    return None


def spell_size(count: int) -> str:
    """Bytes in the largest binary unit that is exact: `2M`, `1536M`, `0`."""
    unit = max((unit for unit, factor in UNITS.items() if count % factor == 0), key=UNITS.__getitem__) if count else ""
    return f"{count // UNITS[unit]}{unit}"


def gib(count: int) -> str:
    """Bytes as people compare them: `12.3 GiB`; what would be nothing in that unit in MiB."""
    tenth = UNITS["G"] // 10
    return f"{count / UNITS['G']:.1f} GiB" if count == 0 or abs(count) >= tenth else f"{count // UNITS['M']} MiB"


def cpus(text: str) -> frozenset[int] | None:
    """The CPUs of a list as the kernel writes it (`0-3,8`), or None when it is no such list.

    Raises Usage for a range that runs backwards.
    """
    if not _CPUS.fullmatch(text):
        return None
    found: set[int] = set()
    for span in text.split(","):
        first, _, last = span.partition("-")
        if int(last or first) < int(first):
            raise Usage(f"the CPUs {span} run backwards", f"Write {last}-{first}")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def what(text: str) -> What:
    """Read `TUNABLE[@INSTANCES]`; raises Usage."""
    tunable, at, instances = _printable(text).partition("@")
    if "=" in tunable:
        raise Usage(f"{text} has a value where only a name is expected", f"To set it: kerntune set {text}")
    return _what(text, tunable, instances if at else None)


def asked(text: str) -> Asked:
    """Read `TUNABLE[@INSTANCES]=VALUE`; raises Usage.

    The value follows the last `=`: names below /dev/disk/by-id may contain one (and `@`), values do not.
    """
    name, equals, value = _printable(text).rpartition("=")
    if not equals or not value:
        raise Usage(f"{text} has no value", SHAPE)
    tunable, at, instances = name.partition("@")
    return Asked(_what(text, tunable, instances if at else None), value)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise Usage(f"{text!a} holds a character that cannot be printed", SHAPE)
    return text


def _what(text: str, tunable: str, instances: str | None) -> What:
    if not tunable:
        raise Usage(f"{text!r} names no tunable", "kerntune list shows those of this host")
    if instances == "":
        raise Usage(f"{text} names no instances after the @", "Leave the @ out, or write * for all of them")
    if instances is not None and tunable in HUGE_PAGES:
        instances = _normal_pool(instances)
    if instances is not None and tunable in ON_CPUS:
        cpus(instances)
    return What(tunable, instances)


def _normal_pool(instances: str) -> str:
    """`2048K/node0` -> `2M/node0`; what does not start with a size is left for the daemon to judge."""
    first, slash, rest = instances.partition("/")
    page_size = size(first)
    return instances if page_size is None else f"{spell_size(page_size)}{slash}{rest}"


def needs_default_page_size(request: Asked) -> bool:
    """Whether `setting` has to be told the host's default size of huge pages."""
    return request.what.tunable in HUGE_PAGES and request.what.instances is None


def setting(request: Asked, *, default_page_size: int = 0) -> Setting:
    """What goes on the wire: instances filled in, sizes turned into pages or KiB; `default_page_size` is in bytes.

    Raises Usage for a value of hugepages that is neither a count nor a whole number of pages, NotSupported when
    there is no default page size and one is needed.
    """
    tunable, instances = request.what
    if tunable in HUGE_PAGES:
        if instances is None:
            if not default_page_size:
                raise NotSupported(
                    "this host has no default size of huge pages",
                    "Name one: kerntune list hugepages shows those it has",
                )
            instances = spell_size(default_page_size)
        return Setting(tunable, instances, str(_pages(request.value, tunable, instances)))
    value = _kib(request.value) if SIZES.get(tunable) == "KiB" else request.value
    return Setting(tunable, everything(tunable) if instances is None else instances, value)


def everything(tunable: str) -> str:
    """The instances that stand for all of a tunable."""
    return "" if tunable in SINGLE else "*"


def _kib(value: str) -> str:
    """A size (4M) as a number of KiB; what is none is left for the daemon to judge."""
    wanted = size(value)
    return value if wanted is None else str(wanted >> 10)


def _pages(value: str, tunable: str, instances: str) -> int:
    if _COUNT.fullmatch(value):
        return int(value)
    if (wanted := size(value)) is None:
        raise Usage(
            f"{value} is neither a number of huge pages nor a size",
            f"A bare number counts pages; a size takes one of K, M, G, T: {tunable}=64G",
        )
    page_size = size(instances.partition("/")[0])
    if not page_size:
        raise Usage(
            f"{instances} names no page size to divide {value} by",
            f"Write {tunable}@2M={value}, or a number of pages",
        )
    pages, rest = divmod(wanted, page_size)
    if rest:
        below, above = (f"{spell_size(n * page_size)} ({tunable}@{instances}={n})" for n in (pages, pages + 1))
        raise Usage(
            f"{value} is not a whole number of {spell_size(page_size)} pages",
            f"The nearest sizes are {below} and {above}",
        )
    return pages
