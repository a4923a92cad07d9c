"""The setting that tells glibc's malloc(3) to use the huge pages of some settings; the module reads no host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from kerntune.patterns import HUGE_PAGES
from kerntune.units import parse_size

VARIABLE: Final = "GLIBC_TUNABLES"
# 1: ask for transparent huge pages. 2: take huge pages of the default size. More: take huge pages of that size in bytes
# (glibc's manual, "Memory Allocation Tunables"; from 2.35).
TUNABLE: Final = "glibc.malloc.hugetlb"
TRANSPARENT: Final = 1
DEFAULT_SIZE: Final = 2
NOTHING: Final = re.compile(r"\+?0+[A-Za-z]*")


def environment(
    environ: Mapping[str, str], settings: Iterable[str], *, default_page_size: int = 2 << 20
) -> dict[str, str]:
    """Return the environment in which a program uses the pages of `settings`, written as on the command line.

    If the user has set the tunable, that value wins. With pools of several sizes the default size wins, else the first.
    """
    given = environ.get(VARIABLE, "")
    value = hugetlb(settings, default_page_size)
    if not value or is_told(environ):
        return dict(environ)
    return {**environ, VARIABLE: ":".join(filter(None, (given, f"{TUNABLE}={value}")))}


def is_told(environ: Mapping[str, str]) -> bool:
    """Return whether an environment says what malloc does about huge pages."""
    return told(environ) is not None


def told(environ: Mapping[str, str]) -> int | None:
    """Return the value of glibc.malloc.hugetlb in an environment, None where that says nothing; the last one counts."""
    words = [word.partition("=") for word in environ.get(VARIABLE, "").split(":")]
    values = [value for name, _, value in words if name == TUNABLE]
    return (int(values[-1]) if values[-1].isdecimal() else 0) if values else None


def hugetlb(settings: Iterable[str], default_page_size: int) -> int:
    """Return the value of glibc.malloc.hugetlb for these settings, 0 where malloc needs none."""
    sizes, transparent = [], False
    for setting in settings:
        name, _, value = setting.partition("=")
        tunable, _, instance = name.partition("@")
        if tunable in HUGE_PAGES and value and not NOTHING.fullmatch(value):
            sizes.append(_page_size(instance, default_page_size))
        transparent |= tunable == "thp" and instance in ("", "enabled") and value in ("madvise", "always")
    if not sizes:
        return TRANSPARENT if transparent else 0
    return DEFAULT_SIZE if default_page_size in sizes else sizes[0]


def _page_size(instance: str, default: int) -> int:
    """Return the page size of a pool such as `1G` or `2M/node0`; the default where the pool names none."""
    return parse_size(instance.partition("/")[0]) or default
