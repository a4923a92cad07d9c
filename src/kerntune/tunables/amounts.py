"""The numbers of huge pages in a message, all in the unit that was asked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kerntune.units import spell_alike


class Bound(NamedTuple):
    """Bytes that may still be taken (below 0: too many are taken already), and what the bound is.

    `why` is prose with a {} for each of the `figures`, which are bytes.
    """

    spare: int
    why: str
    figures: tuple[int, ...] = ()

    def pages(self, size: int) -> int:
        """Return how many pages of that many bytes."""
        return max(0, self.spare // size)


def amounts(
    unit: str, size: int, pages: Sequence[int], figures: Sequence[int] = (), *, noun: str = "pages"
) -> list[str]:
    """Return numbers of pages, and then figures in bytes, as prose in one unit.

    With a `unit` all are sizes. Without one it was pages that were asked: each number has its size in brackets, and
    the first of them also the noun.
    """
    sizes = spell_alike((*(count * size for count in pages), *figures), unit)
    own, others = sizes[: len(pages)], sizes[len(pages) :]
    if unit:
        first = f"{own[0]}{noun.removeprefix('pages')}"
        return [first, *own[1:], *others]
    counts = [str(count) for count in pages]
    counts[0] += f" {noun}"
    return [*(f"{said} ({of})" if count else said for said, of, count in zip(counts, own, pages, strict=True)), *others]


def refused(
    unit: str, size: int, pages: tuple[int, int, int], name: str, bound: Bound, *, plus: str = "", noun: str = "pages"
) -> str:
    """Return why fewer `pages` are possible than were asked: the numbers asked, possible and there now, and the bound.

    Those of a hold, with a `plus`, come on top of what there is.
    """
    asked, possible, now, *figures = amounts(unit, size, pages, bound.figures, noun=noun)
    return f"{plus}{asked} asked for {name}, {plus}{possible} possible, {now} there now: {bound.why.format(*figures)}"
