"""The report as a PNG: the picture of the page, drawn by matplotlib, which only some users install."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kerntune.bench import figures
from kerntune.bench.markup import SHORT, visible
from kerntune.bench.model import Leg, Report
from kerntune.bench.page import question
from kerntune.bench.points import AFTER, AGAIN, BEFORE, Axis, axis, pairs, samples
from kerntune.errors import NotSupported

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN: Final = b"\x89PNG\r\n\x1a\n"
ACROSS: Final = 3  # legs side by side
INCHES: Final = 4.6  # each side of a leg's picture
PAD: Final = 0.12  # inches
DPI: Final = 150
MANY: Final = 60  # pairs; from so many on, lines are thin
LINE: Final = 44  # characters of a line above a picture
INK, QUIET, RULE, STRONG, BAD = "#1c1f22", "#5a6168", "#dfe1dd", "#00626f", "#a33b00"
SHAPES: Final = {AGAIN: ("^", "white", QUIET), BEFORE: ("o", "white", QUIET), AFTER: ("s", STRONG, "white")}


def check() -> None:
    """Raise NotSupported without matplotlib, before anything is measured."""
    try:
        import matplotlib.backends.backend_agg  # noqa: F401, PLC0415  # takes a second, and most users do without it
    except ImportError:
        raise NotSupported("--png needs matplotlib", "apt install python3-matplotlib") from None


def save(report: Report, path: str | Path) -> None:
    """Write the picture of a report. Raise NotSupported without matplotlib, and OSError as open(2) does."""
    Path(path).write_bytes(drawn(report))


def drawn(report: Report) -> bytes:
    """Return the picture of a report as PNG. Raise NotSupported without matplotlib."""
    check()
    import matplotlib  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    with matplotlib.rc_context():
        # A user may have set TeX for pictures of his own; and a name with two $ is no formula.
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        across = min(ACROSS, max(1, len(report.legs)))
        down = max(1, math.ceil(len(report.legs) / across))
        figure = Figure(
            figsize=(INCHES * across, INCHES * down + 0.6),
            dpi=DPI,
            layout=ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD),
        )
        FigureCanvasAgg(figure)
        asked = visible("".join(words for words, _ in question(report.change)), 2 * SHORT)
        figure.suptitle(textwrap.fill(asked, LINE * across), fontsize=13, fontweight="bold", color=INK)
        places = figure.subplots(down, across, squeeze=False).flatten()
        for place in places:
            place.set_axis_off()
        for place, leg in zip(places, report.legs, strict=False):
            _draw(place, leg)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    return content.getvalue()


def _draw(place: Axes, leg: Leg) -> None:
    sides = samples(leg)
    scale = axis(sample.seconds for side in sides.values() for sample in side)
    x_of = {column: number for number, column in enumerate(sides)}
    place.set_axis_on()
    found = pairs(leg.rounds)
    thin: dict[str, Any] = (
        {"linewidth": 0.3, "alpha": 0.3} if len(leg.rounds) > MANY else {"linewidth": 0.8, "alpha": 0.6}
    )
    for column, colour, dashes in ((AGAIN, QUIET, "--"), (AFTER, STRONG, "-")):
        lines = [pair for pair in found if pair.column == column]
        ends = [[scale.place(run.seconds) for run in (pair.before, pair.other)] for pair in lines]
        if ends:
            # Each column of this list is a line.
            across = [[x_of[BEFORE]] * len(ends), [x_of[column]] * len(ends)]
            place.plot(across, list(zip(*ends, strict=True)), dashes, color=colour, **thin)
    medians = {column: figures.median(run.seconds for run in side) for column, side in sides.items()}
    for column, side in sides.items():
        shape, fill, edge = SHAPES[column]
        look: dict[str, Any] = {"linestyle": "none", "markersize": 5}
        good, bad = (
            [scale.place(run.seconds) for run in side if bool(run.trouble) is is_bad] for is_bad in (False, True)
        )
        place.plot([x_of[column]] * len(good), good, marker=shape, markerfacecolor=fill, markeredgecolor=edge, **look)
        place.plot([x_of[column]] * len(bad), bad, marker="x", markeredgecolor=BAD, markeredgewidth=1.8, **look)
        if len(side) > 1:
            y = scale.place(medians[column])
            place.plot([x_of[column] - 0.2, x_of[column] + 0.2], [y, y], color=INK, linewidth=1.8, zorder=3)
    _label(place, leg, scale, medians)


def _label(place: Axes, leg: Leg, scale: Axis, medians: dict[str, float]) -> None:
    said = textwrap.wrap(visible(figures.answer(leg), 3 * LINE), LINE)
    title = "\n".join([f"{visible(leg.name, LINE // 2)}: {figures.VERDICT_WORDS[leg.verdict]}", *said])
    place.set_title(title, fontsize=10, color=INK, loc="left")
    place.set_xlim(-0.5, len(medians) - 0.5)
    place.set_ylim(-0.02, 1.02)
    columns = [f"{column}\n{figures.seconds(middle)}" for column, middle in medians.items()]
    place.set_xticks(range(len(medians)), columns, color=INK)
    ticks = [figures.tick(value, value if scale.is_log else scale.ticks[-1]) for value in scale.ticks]
    place.set_yticks([scale.place(value) for value in scale.ticks], ticks, color=QUIET)
    place.grid(visible=True, axis="y", color=RULE)
    place.set_axisbelow(True)
    place.tick_params(length=0)
    for side in place.spines.values():
        side.set_visible(False)
