"""Sizes with binary units (`64G`), times (`15m`) and CPU lists (`0-3,8`), read and written: one syntax everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kerntune.errors import InvalidValue

FACTORS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE: Final = re.compile(r"([0-9]{1,18})([KMGT])(?:i?B)?", re.IGNORECASE | re.ASCII)
ENDLESS: Final = re.compile(r"[0-9]{19,}[KMGT](?:i?B)?|[0-9]{21,}", re.IGNORECASE | re.ASCII)
DURATION: Final = re.compile(r"([0-9]{1,9})(us|ms|[smhd]?)", re.ASCII)
SECOND: Final = 10**6  # microseconds
MICROSECONDS: Final = {"us": 1, "ms": 1000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 86_400 * SECOND}
MAX_HOLD: Final = 10 * 366 * MICROSECONDS["d"]  # microseconds that a hold may last
# The limit is CPU 9999: the kernel can be built for 8192.
CPU_LIST: Final = re.compile(r"[0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*", re.ASCII)


def parse_size(text: str) -> int | None:
    """Return the bytes of a size with a binary unit (`64G`, `2MiB`, `512kb`), or None when the text is no such size."""
    found = SIZE.fullmatch(text)
    return int(found[1]) * FACTORS[found[2].upper()] if found else None


def spell_size(count: int) -> str:
    """Return bytes in the largest binary unit that is exact: `2M`, `1536M`, `0`."""
    for unit, factor in reversed(FACTORS.items()):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def parse_duration(text: str, *, unit: str = "s") -> int | None:
    """Return the microseconds of `90s`, `15m`, `2h`, `1d`, `3ms` or `100us`, or None when the text is no such time.

    A number alone counts `unit`.
    """
    found = DURATION.fullmatch(text)
    return int(found[1]) * MICROSECONDS[found[2] or unit] if found else None


def unit_of(text: str) -> str:
    """Return the unit of a size (`G` of `64g`), or "" for any other text."""
    found = SIZE.fullmatch(text)
    return found[2].upper() if found else ""


def is_endless(text: str) -> bool:
    """Return True for a number, with or without a unit, of more digits than anything here can have."""
    return ENDLESS.fullmatch(text) is not None


def spell_alike(counts: Iterable[int], unit: str = "") -> list[str]:
    """Return bytes, rounded down, all in one unit, so that people can compare them.

    Without a unit it is GiB if each count has one, else MiB, or KiB if none of them has that much.
    """
    found = list(counts)
    least, most = min(filter(None, found), default=FACTORS["G"]), max(found, default=0)
    unit = unit or ("G" if least >= FACTORS["G"] else "M" if most >= FACTORS["M"] else "K")
    return [f"{decimals(count, FACTORS[unit])} {unit}iB" for count in found]


def decimals(count: int, factor: int) -> str:
    """Return a number of factors as far as people read it: `12.3` GiB, `819` MiB, and `0.004` rather than 0."""
    places = 3 if count * 10 < factor else 1 if factor > FACTORS["M"] or count < factor else 0
    whole, rest = divmod(count * 10**places // factor, 10**places)
    return f"{whole}.{rest:0{places}}".rstrip("0").rstrip(".") if rest else str(whole)


def gib(count: int) -> str:
    """Return bytes in the form that people compare: `12.3 GiB`, or in MiB where that would be 0.0."""
    tenth = FACTORS["G"] // 10
    return f"{count / FACTORS['G']:.1f} GiB" if count == 0 or abs(count) >= tenth else f"{count // FACTORS['M']} MiB"


def mib(count: float, *, up: bool = False) -> str:
    """Return bytes in MiB, by thousands: `1 024`; rounded up if asked, so that a little is not 0."""
    whole = -(-count // FACTORS["M"]) if up else round(count / FACTORS["M"])
    return f"{int(whole):,}".replace(",", " ")


def in_pages(text: str, page_size: int) -> str:
    """Return a size as a number of pages of `page_size` bytes; return a text that is no size as it is.

    Raise InvalidValue for a size that is not a whole number of pages.
    """
    if (wanted := parse_size(text)) is None:
        return text
    pages, rest = divmod(wanted, page_size)
    if rest:
        below, above = (f"{number} ({spell_size(number * page_size)})" for number in (pages, pages + 1))
        raise InvalidValue(
            f"{text} is not a whole number of {spell_size(page_size)} pages",
            f"The nearest numbers of pages are {below} and {above}",
        )
    return str(pages)


def in_kib(text: str) -> str:
    """Return a size as a number of KiB; return a text that is no size as it is."""
    wanted = parse_size(text)
    return text if wanted is None else str(wanted >> 10)


@dataclass(frozen=True, slots=True)
class CpuList:
    """A CPU list as the kernel writes it (0-3,8): ranges in order that do not touch; its cost is that of its text."""

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> CpuList:
        """Return the list in a text of the form CPU_LIST. Raise InvalidValue for a range that runs backwards."""
        found = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            if int(last or first) < int(first):
                raise InvalidValue(f"{part!r} runs backwards", f"Give the lower number first: {last}-{first}")
            found.append((int(first), int(last or first)))
        return cls.of(found)

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> CpuList:
        """Return the list that has all of these ranges."""
        joined: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
            else:
                joined.append((first, last))
        return cls(tuple(joined))

    @property
    def bits(self) -> int:
        """The list as a number that has a bit for each CPU."""
        return sum(((1 << last - first + 1) - 1) << first for first, last in self.spans)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.spans)


def parse_cpus(text: str) -> frozenset[int]:
    """Return the CPUs of a list; none for a blank text, because the kernel writes an empty list so.

    Raise InvalidValue for a text that is no CPU list, and for a range that runs backwards.
    """
    text = text.strip()
    if not text:
        return frozenset()
    if not CPU_LIST.fullmatch(text):
        raise InvalidValue(f"{text!r} is no list of CPUs", "Give numbers and ranges: 0-3,8")
    return frozenset(cpu for first, last in CpuList.parse(text).spans for cpu in range(first, last + 1))


def spell_cpus(cpus: Iterable[int]) -> str:
    """Return CPU numbers in the kernel's list form."""
    return str(CpuList.of((cpu, cpu) for cpu in cpus))
