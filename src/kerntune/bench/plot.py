"""The pictures of a page, as SVG that needs no colour: the runs of each pair, and the ratios of all legs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from kerntune.bench import figures
from kerntune.bench.markup import Markup, element, visible
from kerntune.bench.model import Estimate, Leg, Sample, Verdict
from kerntune.bench.points import AFTER, AGAIN, BEFORE, Axis, axis, pairs, ratio_axis, samples

WIDTH: Final = 360  # of all pictures: that of a small telephone, which then never has to shrink their text
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 62, 348, 12, 250
NAMES: Final = 92  # where ratios begin, to the right of the names of the legs
MAX_NAME: Final = 10  # characters of a name
ROW: Final = 30
MANY: Final = 60  # pairs; from so many on, lines are thin

Place = tuple[float, float]


def runs(leg: Leg, name: str) -> Markup:
    """Draw the runs of a leg, joined in their pairs; no other picture on the page may have the same `name`."""
    sides = samples(leg)
    scale = axis(sample.seconds for side in sides.values() for sample in side)
    room = (RIGHT - LEFT) / len(sides)
    x_of = {column: LEFT + room * (number + 0.5) for number, column in enumerate(sides)}

    def at(column: str, sample: Sample) -> Place:
        return x_of[column], _height(scale, sample.seconds)

    drawn = _grid(scale)
    for pair in pairs(leg.rounds):
        told = f"{BEFORE} {figures.seconds(pair.before.seconds)}, {pair.column} {figures.seconds(pair.other.seconds)}"
        kind = "control" if pair.column == AGAIN else "pair"
        drawn.append(_line(at(BEFORE, pair.before), at(pair.column, pair.other), kind, told))
    for column, side in sides.items():
        drawn += [_point(at(column, sample), column, sample) for sample in side]
    medians = {column: figures.median(sample.seconds for sample in side) for column, side in sides.items()}
    for column, middle in medians.items():
        drawn += _labels(x_of[column], column, middle)
        if len(sides[column]) > 1:
            x, y = x_of[column], _height(scale, middle)
            drawn.append(_line((x - 24, y), (x + 24, y), "median"))
    kind = "logarithmic" if scale.is_log else "linear, from 0"
    said = ", ".join(f"{column} {figures.seconds(middle)}" for column, middle in medians.items())
    told = f"{len(leg.rounds)} rounds. The axis of times is {kind}. Medians: {said}."
    look = "runs many" if len(leg.rounds) > MANY else "runs"
    return _picture(name, (f"Runs of {visible(leg.name, MAX_NAME)}", told), HEIGHT, look, drawn)


def _height(scale: Axis, value: float) -> float:
    return BOTTOM - scale.place(value) * (BOTTOM - TOP)


def _grid(scale: Axis) -> list[Markup]:
    drawn = []
    for value in scale.ticks:
        y = _height(scale, value)
        label = figures.tick(value, value if scale.is_log else scale.ticks[-1])
        drawn += [_line((LEFT, y), (RIGHT, y), "grid"), _text((LEFT - 8, y + 4), label, "tick")]
    return drawn


def _point(at: Place, column: str, sample: Sample) -> Markup:
    """Draw a run: a circle before, a square after, a triangle for the control, a cross for a useless one."""
    x, y = at
    if sample.trouble:
        return _path((x - 5, y - 5), "l10 10m0 -10l-10 10", "trouble")
    if column == BEFORE:
        return element("circle", cx=round(x, 1), cy=round(y, 1), r=3.5, class_="before")
    if column == AFTER:
        return _path((x - 3.5, y - 3.5), "h7v7h-7z", "after")
    return _path((x, y - 4.5), "l4.5 8h-9z", "again")


def _labels(x: float, column: str, middle: float) -> list[Markup]:
    return [_text((x, BOTTOM + 22), column, "name"), _text((x, BOTTOM + 40), figures.seconds(middle), "value")]


def ratios(legs: Sequence[Leg], name: str) -> Markup:
    """Draw each leg's ratio and interval on one logarithmic axis, and below it those of the control."""
    looked = [leg.looks[-1] if leg.looks else None for leg in legs]
    estimates = [one for look in looked if look for one in (look.effect, look.control) if one]
    scale = ratio_axis(number for one in estimates for number in (one.ratio, one.low, one.high))
    bottom = 4 + ROW * len(legs)
    drawn = []
    for value in scale.ticks:
        x = _along(scale, value)
        label = figures.ratio(value).rstrip("0").rstrip(".")
        drawn += [_line((x, 4), (x, bottom), "grid"), _text((x, bottom + 17), label, "name")]
    one = _along(scale, 1)
    drawn += [
        _line((one, 4), (one, bottom), "one"),
        _text((one - 8, bottom + 35), "\N{LEFTWARDS ARROW} faster", "tick"),
    ]
    drawn.append(_text((one + 8, bottom + 35), "slower \N{RIGHTWARDS ARROW}", "right"))
    for number, (leg, look) in enumerate(zip(legs, looked, strict=True)):
        y = 4 + ROW * (number + 0.5)
        drawn.append(_text((NAMES - 12, y + 4), visible(leg.name, MAX_NAME), "leg"))
        if look:
            drawn += [
                *_interval(look.effect, scale, y - 3, f"effect {leg.verdict.name.lower()}"),
                *_middle(leg.verdict, look.effect, scale, y - 3),
            ]
            drawn += _interval(look.control, scale, y + 7, "control") if look.control else []
    told = "; ".join(
        f"{visible(leg.name, MAX_NAME)} {' '.join(figures.estimated(figures.effect(leg)))}" for leg in legs
    )
    return _picture(name, ("Ratios of after to before", f"{told}."), bottom + 44, "ratios", drawn)


def _along(scale: Axis, value: float) -> float:
    return NAMES + scale.place(value) * (RIGHT - NAMES - 6)


def _interval(estimate: Estimate, scale: Axis, y: float, kind: str) -> list[Markup]:
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return []
    low, high = _along(scale, estimate.low), _along(scale, estimate.high)
    if math.isinf(estimate.high):
        return [_line((low, y), (high, y), f"{kind} open")]
    return [_line((low, y), (high, y), kind), *(_line((x, y - 3), (x, y + 3), kind) for x in (low, high))]


def _middle(verdict: Verdict, estimate: Estimate, scale: Axis, y: float) -> list[Markup]:
    """Draw the ratio: the diamond is full where there is a difference, else hollow; a cross stands for invalid."""
    if math.isnan(estimate.ratio):
        return []
    x = _along(scale, estimate.ratio)
    if verdict is Verdict.INVALID:
        return [_path((x - 4, y - 4), "l8 8m0 -8l-8 8", "trouble")]
    return [_path((x, y - 5), "l4.5 5l-4.5 5l-4.5 -5z", "hollow" if verdict is Verdict.SAME else "after")]


def _picture(name: str, said: tuple[str, str], height: float, look: str, drawn: Iterable[Markup]) -> Markup:
    title, told = said
    known = (element("title", title, id=f"{name}-title"), element("desc", told, id=f"{name}-desc"))
    labels = {"aria_labelledby": f"{name}-title", "aria_describedby": f"{name}-desc"}
    return element("svg", *known, *drawn, viewBox=f"0 0 {WIDTH} {height:g}", role="img", class_=look, **labels)


def _line(start: Place, end: Place, kind: str, told: str = "") -> Markup:
    ends = {key: round(value, 1) for key, value in zip(("x1", "y1", "x2", "y2"), (*start, *end), strict=True)}
    return element("line", *([element("title", told)] if told else []), class_=kind, **ends)


def _path(start: Place, steps: str, kind: str) -> Markup:
    return element("path", d=f"M{start[0]:.1f} {start[1]:.1f}{steps}", class_=kind)


def _text(at: Place, text: str, kind: str) -> Markup:
    return element("text", text, x=round(at[0], 1), y=round(at[1], 1), class_=kind)
