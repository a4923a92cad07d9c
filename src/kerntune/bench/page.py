"""The report as one HTML page for people: it contains all that it needs, runs no script and loads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from kerntune.bench import figures, plot
from kerntune.bench.markup import SHORT, Markup, element, joined, visible
from kerntune.bench.model import Change, Leg, Report, Verdict
from kerntune.bench.points import samples
from kerntune.bench.style import POLICY, STYLE
from kerntune.bench.traps import runs_of
from kerntune.units import spell_cpus

BEGIN: Final = b"<!DOCTYPE html>"
BYTES: Final = "_bytes"
SETTINGS: Final = "settings"  # name in the environment: {target: {"before", "after"}}
LONG_ANSWER: Final = 200  # characters; the whole reason stands with its leg
LONG: Final = 80  # characters of settings that still fit into the question

TO_READ: Final = (
    "Every line in a picture joins two runs of one round, which were made in random order, each in a process of its "
    "own.",
    "The dashed lines at the left are the control: the same was measured twice, and what differs there is this host's "
    "noise.",
    "A ratio is the median of after / before over all pairs: 0.50 is half the time, 1 is no difference.",
    "The interval in brackets is where the true ratio lies, but for the chance of error that stands beside each look.",
    "Invalid means that the runs do not answer the question; their figures are shown, and prove nothing.",
)


def page(report: Report) -> str:
    """Return a whole HTML document; `report.without_command` leaves the user's command out of it."""
    asked = question(report.change)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"kerntune bench: {''.join(words for words, _ in asked)}"),
        element("style", Markup(STYLE)),
    )
    heading = element("h1", *(element("code", words) if is_name else words for words, is_name in asked))
    below = element("div", _compared(report), _environment(report.environment), class_="below")
    legs = [_leg(leg, f"leg-{number}") for number, leg in enumerate(report.legs, 1)]
    body = element("body", element("main", _top(report, heading), *legs, _how_to_read(), below))
    return f"{BEGIN.decode()}\n{element('html', head, body, lang='en')}\n"


def question(change: Change) -> list[tuple[str, bool]]:
    """Return the question of the report in pieces; the flag of each says whether it is a name, to be set apart."""
    names = changed(change)
    if not names:
        return [("Do two runs of the same take the same time?", False)]
    if not _fits(names):
        words = f"these {len(names)} changes" if len(names) > 1 else "this change"
        return [(f"Is it faster with {words}?", False)]
    asked = [("Is it faster with ", False)]
    for number, name in enumerate(names):
        between = "" if number == 0 else (" and " if number == len(names) - 1 else ", ")
        asked += [(between, False), (name, True)]
    return [*asked, ("?", False)]


def _fits(names: list[str]) -> bool:
    return len(names) <= 3 and sum(map(len, names)) <= LONG


def changed(change: Change) -> list[str]:
    """Return the changes, each as it is written on the command line or nearly so."""
    names = [*change.settings, *([f"profile {change.profile}"] if change.profile else [])]
    names += [f"slice {change.shield.slice_us} µs"] if change.shield.slice_us else []
    return names + ([f"CPUs {spell_cpus(change.shield.cpus)}"] if change.shield.cpus else [])


def _top(report: Report, heading: Markup) -> Markup:
    names = changed(report.change)
    listed = [] if _fits(names) else [element("p", *(element("code", _short(name)) for name in names), class_="names")]
    measured = f"Measured by kerntune bench, {report.date}" if report.date else "Measured by kerntune bench"
    header = element("header", heading, *listed, element("p", measured, class_="quiet"))
    if not report.legs:
        return element("section", header, element("p", "Nothing was measured."), _notes(report.notes))
    answers = element("ul", *(_answer(leg) for leg in report.legs), class_="answers")
    caption = element("figcaption", "After / before, with intervals; thin lines below: the control.")
    figure = element("figure", plot.ratios(report.legs, "all"), caption)
    return element("section", header, element("div", answers, _notes(report.notes)), figure, class_="top")


def _answer(leg: Leg) -> Markup:
    said = element("span", visible(figures.answer(leg), LONG_ANSWER), class_="said")
    return element("li", element("span", _short(leg.name), class_="name"), _verdict(leg), said)


def _verdict(leg: Leg) -> Markup:
    return element("span", figures.VERDICT_WORDS[leg.verdict], class_=f"verdict {leg.verdict.name.lower()}")


def _leg(leg: Leg, name: str) -> Markup:
    title = element("h2", _short(leg.name), _verdict(leg), id=name)
    header = element("header", title, *([element("p", leg.what, class_="quiet")] if leg.what else []))
    caption = element("figcaption", *_caption(leg), _notes(_remarks(leg)))
    figure = element("figure", plot.runs(leg, f"{name}-runs"), caption)
    tables = element("div", _table(leg), _looks(leg))
    return element("section", header, figure, tables, class_="leg", aria_labelledby=name)


def _caption(leg: Leg) -> list[str]:
    said = [f"{_pairs(len(leg.rounds))}. Bars and numbers: medians."]
    if any(sample.trouble for side in samples(leg).values() for sample in side):
        said.append(" A cross: a run of no use.")
    return said


def _pairs(number: int) -> str:
    return "1 pair" if number == 1 else f"{figures.count(number)} pairs"


def _table(leg: Leg) -> Markup:
    rows: list[Markup] = []
    for line in figures.lines(leg):
        ratio = _ratio(line.ratio, line.interval)
        cells = (element("td", line.before), element("td", line.after), element("td", ratio))
        rows.append(
            element("tr", element("th", line.label, scope="row"), *cells, class_="figure" if rows else "compared")
        )
    return _tabulated("Medians", ("", "before", "after", "ratio"), rows)


def _looks(leg: Leg) -> Markup:
    rows = []
    for looked in leg.looks:
        cells = (
            figures.percent(looked.look.alpha),
            *(_ratio(*figures.estimated(one)) for one in (looked.effect, looked.control)),
        )
        rows.append(
            element(
                "tr",
                element("th", figures.count(looked.look.pairs), scope="row"),
                *(element("td", cell) for cell in cells),
            )
        )
    return _tabulated("Looks", ("pairs", "chance of error", "ratio", "control"), rows) if rows else Markup()


def _ratio(middle: str, interval: str) -> Markup:
    kind = "interval" if interval.startswith("[") else "words"
    return joined(middle, *([element("small", interval, class_=kind)] if interval else []))


def _tabulated(caption: str, names: Iterable[str], rows: Iterable[Markup]) -> Markup:
    heading = (element("th", name, scope="col") if name else element("td") for name in names)
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heading)),
        element("tbody", *rows),
    )


def _remarks(leg: Leg) -> list[str]:
    """Return the remarks about a leg: the reason, the gain it could have found, and what was wrong with runs."""
    runs = runs_of(leg.rounds)
    said = [f"Why: {leg.reason}."] if leg.reason else []
    if leg.verdict is not Verdict.INVALID and leg.detectable is not None:
        said.append(
            f"A gain of {figures.percent(leg.detectable)} or more would have been found in 80 of 100 such measurements."
        )
    for trouble, number in Counter(sample.trouble for sample in runs if sample.trouble).most_common():
        said.append(f"Of no use: {number} of {len(runs)} runs, {trouble}.")
    for cold, number in Counter(sample.cold for sample in runs if sample.cold).most_common():
        said.append(f"Known to be cold: {number} of {len(runs)} runs ({cold}).")
    return [*said, *leg.notes]


def _notes(notes: Iterable[str]) -> Markup:
    items = [element("li", note) for note in notes]
    return element("ul", *items, class_="notes") if items else Markup()


def _how_to_read() -> Markup:
    return element("section", element("h2", "How to read this"), *(element("p", sentence) for sentence in TO_READ))


def _compared(report: Report) -> Markup:
    after = joined(*(joined(element("code", name), element("br")) for name in changed(report.change)))
    rows = {"before": "the host as it was", "after": after or "the same"}
    rows |= _settings(report.environment)
    if report.command:
        rows["command"] = element("code", " ".join(report.command))
    return element("section", element("h2", "What was compared"), _listed(rows))


def _settings(environment: Mapping[str, object]) -> dict[str, str]:
    """Return each target's values before and after, where the report has them."""
    known = environment.get(SETTINGS)
    if not isinstance(known, Mapping):
        return {}
    had = {str(name): value for name, value in known.items() if isinstance(value, Mapping)}
    return {
        name: f"{value.get('before', '')} \N{RIGHTWARDS ARROW} {value.get('after', '')}" for name, value in had.items()
    }


def _environment(environment: Mapping[str, object]) -> Markup:
    rows = {
        name.removesuffix(BYTES).replace("_", " "): _spelt(name, value)
        for name, value in environment.items()
        if name != SETTINGS
    }
    return element("section", element("h2", "Where it was measured"), _listed(rows)) if rows else Markup()


def _listed(rows: Mapping[str, str]) -> Markup:
    return element("dl", *(joined(element("dt", _short(name)), element("dd", text)) for name, text in rows.items()))


def _spelt(name: str, value: object) -> str:
    """Return a fact about the host as text; "" and 0 stand for what is not known, or not there."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spelt(str(key), one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_spelt(name, one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith(BYTES) and isinstance(value, (int, float)) and value:
        return figures.size(value)
    return str(value) if value else figures.NOTHING


def _short(name: str) -> str:
    return visible(name, SHORT)
