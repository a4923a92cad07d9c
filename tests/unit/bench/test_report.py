"""A report as JSON, as a page and as a picture, whatever is measured and named; and what it says of the host."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kerntune
from kerntune.bench import figures, host, picture, points
from kerntune.bench.markup import MAX_TEXT, Markup, element, visible
from kerntune.bench.model import Change, Estimate, Leg, Look, Looked, Report, Round, Sample, Verdict
from kerntune.bench.page import page
from kerntune.bench.report import document, without_command
from kerntune.errors import NotSupported
from kerntune.run import prefault
from kerntune.run.shield import Shield
from tests.hosts import lay_out, write_files
from tests.unit.bench import reports

# The JSON: what is in it, what every parser reads, and what it never gives away


SECRET = ("serve", "--token=hunter2", "/srv/private", "-x")


def strictly(found: dict[str, Any]) -> Any:
    """Read it back as the strictest of parsers would."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(json.dumps(found, allow_nan=False).encode(), parse_constant=refuse)


def test_a_report_has_every_sample_pair_and_look() -> None:
    control = Sample(2.1, {"minor_faults": 7})
    first = Round(Sample(2.0, {"minor_faults": 9}, "blocks read"), Sample(1.0, trouble="it was killed"), control)
    looked = Looked(Look(2, 0.05), Estimate(0.5, 0.4, 0.6), Estimate(1.0, 0.9, 1.1))
    leg = Leg("io", "a file", (first, Round(Sample(4.0), Sample(2.0))), (looked,), Verdict.FASTER, "", 0.1, ("a note",))
    change = Change(("hugepages=9",), "inference", Shield(frozenset({3, 1}), 100))
    found = document(Report(change, (leg,), {"cpus": 2}, ("general",), ("true",), "2026-03-14"))

    assert found == {
        "format": 1,
        "date": "2026-03-14",
        "command": ["true"],
        "after": {"settings": ["hugepages=9"], "profile": "inference", "slice_us": 100, "cpus": [1, 3]},
        "legs": [
            {
                "name": "io",
                "what": "a file",
                "before": [
                    {"seconds": 2.0, "cold": "blocks read", "trouble": "", "figures": {"minor_faults": 9}},
                    {"seconds": 4.0, "cold": "", "trouble": "", "figures": {}},
                ],
                "after": [
                    {"seconds": 1.0, "cold": "", "trouble": "it was killed", "figures": {}},
                    {"seconds": 2.0, "cold": "", "trouble": "", "figures": {}},
                ],
                "control": [{"seconds": 2.1, "cold": "", "trouble": "", "figures": {"minor_faults": 7}}],
                "pairs": [[2.0, 1.0], [4.0, 2.0]],
                "aa": [[2.0, 2.1]],
                "looks": [
                    {
                        "pairs": 2,
                        "alpha": 0.05,
                        "ratio": 0.5,
                        "low": 0.4,
                        "high": 0.6,
                        "control": {"ratio": 1.0, "low": 0.9, "high": 1.1},
                    }
                ],
                "verdict": "faster",
                "reason": "",
                "detectable": 0.1,
                "notes": ["a note"],
            }
        ],
        "environment": {"cpus": 2},
        "notes": ["general"],
    }
    assert strictly(found) == found


@pytest.mark.parametrize("report", [reports.everything(), reports.hostile(), reports.report()])
def test_it_is_the_same_once_it_was_read_back(report: Report) -> None:
    found = document(report)
    assert strictly(found) == found
    json.dumps(found, ensure_ascii=False).encode()  # raises for half of a surrogate pair


def test_what_is_no_finite_number_is_null() -> None:
    look = Estimate(math.nan, 0.0, math.inf)
    found = strictly(document(reports.odd((math.inf, math.nan), look=look)))
    (leg,) = found["legs"]
    assert leg["pairs"] == [[None, None]]
    assert leg["looks"][0] | {"control": None} == {
        "pairs": 1,
        "alpha": 0.05,
        "ratio": None,
        "low": 0.0,
        "high": None,
        "control": None,
    }


def test_a_look_without_a_control_says_so() -> None:
    leg = replace(reports.faster(), looks=(Looked(Look(5, 0.05), Estimate(0.5, 0.4, 0.6)),))
    assert document(reports.report(leg))["legs"][0]["looks"][0]["control"] is None


def test_the_environment_may_hold_values_of_any_type() -> None:
    environment = {"path": reports, "set": frozenset({2, 1}), "nested": {"list": (1, math.nan, None, True)}}
    found = strictly(document(Report(Change(), (), environment)))["environment"]
    assert found == {"path": str(reports), "set": [1, 2], "nested": {"list": [1, None, None, True]}}


def told(report: Report) -> Report:
    """The same, with the command wherever a measurement may come to speak of it."""
    said = f"{' '.join(SECRET)} ended with 1"
    sample = Sample(1.0, trouble="/srv/private is not there", cold=said)
    rounds = (Round(sample, sample, sample),)
    cmd = Leg("cmd", "serve with --token=hunter2", rounds, (), Verdict.INVALID, said, notes=(said,))
    environment = {"program": "serve", "nested": [{"words": list(SECRET)}], "cpus": 2}
    return replace(
        report, command=SECRET, legs=(cmd, replace(cmd, name="copy")), notes=(said,), environment=environment
    )


@pytest.mark.parametrize("word", SECRET[:3])
def test_the_command_is_left_out_everywhere(word: str) -> None:
    report = told(reports.report())
    assert word in json.dumps(document(report))
    found = document(report, command=False)
    assert word not in json.dumps(found)
    assert word not in page(without_command(report))
    assert "command" not in found
    assert found["legs"][0]["what"] == "a command"
    assert found["legs"][0]["reason"] == "a command ended with 1"


def test_what_is_no_part_of_the_command_stays() -> None:
    whole, hidden = document(reports.everything()), document(reports.everything(), command=False)
    del whole["command"]
    whole["legs"][-1]["what"] = "a command"
    assert hidden == whole


def test_the_environment_of_the_process_is_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_seen")
    assert "hf_never_to_be_seen" not in json.dumps(document(reports.everything())) + page(reports.everything())


# The page and the picture, and how figures are written


VOID = {"meta", "br"}
TAGS = {"html", "head", "meta", "title", "style", "body", "main", "section", "header", "div", "h1", "h2", "p", "code"}
TAGS |= {"ul", "li", "span", "small", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"}
TAGS |= {"dl", "dt", "dd", "br", "svg", "desc", "line", "path", "circle", "text"}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "id", "scope", "role", "viewbox", "d"}
ATTRIBUTES |= {"aria-labelledby", "aria-describedby", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r"}
NARROW, GAP = "\u202f", "\xa0"


class Walk(HTMLParser):
    """A page as a browser takes it: every element is closed, and what there is of tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str, kind: str | None = None) -> list[dict[str, str]]:
        return [had for name, had in self.tags if name == tag and kind in (None, had.get("class"))]

    def text(self, *tags: str) -> str:
        return "\n".join(data for tag, data in self.texts if not tags or tag in tags)


ODD = {
    "nothing": reports.report(),
    "everything": reports.everything(),
    "hostile": reports.hostile(),
    "one pair": reports.odd((0.5, 0.3), look=Estimate(0.6, 0.0, math.inf)),
    "1000 pairs": reports.odd(*[(0.5 + n / 1e4, 0.4) for n in range(1000)], look=Estimate(0.8, 0.79, 0.81)),
    "identical times": reports.odd(*[(0.5, 0.5)] * 9, look=Estimate(1, 1, 1)),
    "no time": reports.odd((0.0, 0.0), look=Estimate(math.nan, 0.0, math.inf)),
    "infinite": reports.odd((0.0, 1.0), (math.inf, math.nan), look=Estimate(math.inf, math.inf, math.inf)),
    "no rounds": reports.odd(),
    "extremes": reports.odd((1e-300, 1e300), (-1.0, 5e-324), look=Estimate(1e300, 1e-300, 1e308)),
}


@pytest.fixture(params=ODD, name="report")
def any_report(request: pytest.FixtureRequest) -> Report:
    return ODD[request.param]


def test_a_page_runs_nothing_and_asks_for_nothing(report: Report) -> None:
    walk = Walk(page(report))
    assert {tag for tag, _ in walk.tags} <= TAGS
    # No handler, no link, no source, no style of an element.
    assert {name for _, had in walk.tags for name in had} <= ATTRIBUTES
    style = walk.text("style")
    assert not re.search(r"url\(|@import|image-set|src:", style)


def test_the_policy_allows_its_own_style_alone(report: Report) -> None:
    walk = Walk(page(report))
    (policy,) = (had["content"] for had in walk.named("meta") if had.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(walk.text("style").encode()).digest()).decode()
    assert policy == f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    # It holds for what comes after it.
    assert [tag for tag, _ in walk.tags].index("style") > walk.tags.index(
        ("meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    )


def test_every_element_is_closed_and_every_name_is_one(report: Report) -> None:
    text = page(report)
    text.encode()  # raises for half of a surrogate pair
    walk = Walk(text)
    ids = [had["id"] for _, had in walk.tags if "id" in had]
    assert len(set(ids)) == len(ids)
    named = {word for _, had in walk.tags for key in had if key.startswith("aria-") for word in had[key].split()}
    assert named <= set(ids)
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_pictures_are_told_to_those_who_do_not_see_them(report: Report) -> None:
    walk = Walk(page(report))
    assert [had["lang"] for had in walk.named("html")] == ["en"]
    pictures = walk.named("svg")
    assert len(pictures) == (len(report.legs) + 1 if report.legs else 0)
    for had in pictures:
        assert (had["role"], bool(had["aria-labelledby"]), bool(had["aria-describedby"])) == ("img", True, True)


def test_points_stay_in_their_picture(report: Report) -> None:
    for _, had in Walk(page(report)).tags:
        for name in had.keys() & {"x", "y", "x1", "y1", "x2", "y2", "cx", "cy"}:
            assert 0 <= float(had[name]) <= max(360, 30 * len(report.legs) + 60)


@pytest.mark.parametrize("text", reports.HOSTILE)
def test_no_text_does_anything_but_stand_there(text: str) -> None:
    shown = visible(text)
    assert len(shown) <= MAX_TEXT
    assert shown.isprintable()
    assert shown == visible(shown)
    walk = Walk(page(reports.hostile()))
    assert shown in walk.text()
    assert "alert(1)" not in walk.text("script", "style")


def test_an_attribute_ends_where_it_should() -> None:
    made = element("p", "a < b", Markup("<br>"), title="\" onload='x' <>&", data_x=0.5)
    assert made == '<p title="&quot; onload=&#x27;x&#x27; &lt;&gt;&amp;" data-x="0.5">a &lt; b<br></p>'


def test_what_acts_unseen_is_made_visible() -> None:
    assert visible("a\u202eb\x1b[0m\n\tc\udcff") == "a[U+202E]b[U+001B][0m  c[U+DCFF]"
    assert visible("a" + "\u0301" * 9) == "a" + "\u0301" * 4 + "\ufffd"
    assert visible("x" * 30, 10) == "x" * 9 + "…"
    assert visible("1\u202f024\xa0MiB") == "1\u202f024\xa0MiB"


def test_the_question_names_the_changes_or_counts_them() -> None:
    report = reports.everything()
    few = replace(report, change=replace(report.change, settings=("hugepages=600",)))
    assert "Is it faster with \nhugepages=600\n, \nslice 100 µs\n and \nCPUs 1\n?" in Walk(page(few)).text("h1", "code")
    many = Walk(page(report)).text("h1", "code")
    assert many.startswith("Is it faster with these 4 changes?\nhugepages=600\nread-ahead@vda=4096\n")
    assert "Do two runs of the same take the same time?" in page(reports.odd())


@pytest.mark.parametrize(
    ("leg", "said"),
    [
        (reports.faster(), ["faster", "0.50 of the time [0.48, 0.52]"]),
        (reports.slower(), ["slower", "1.40 times the time [1.21, 1.50]"]),
        (reports.same(), ["no difference found", "1.03 times the time [0.97, 1.08]"]),
        (reports.invalid(), ["invalid", "the huge pages were not used: 2 of 1 024 MiB lay on them"]),
        (reports.latency(), ["faster", "0.049 of the latency [0.037, 0.055]"]),
    ],
)
def test_the_answer_stands_first(leg: Leg, said: list[str]) -> None:
    walk = Walk(page(reports.report(leg)))
    assert walk.text("span").split("\n")[:3] == [leg.name, *said]


def test_every_pair_is_a_line_and_every_run_a_point() -> None:
    walk = Walk(page(reports.report(reports.same())))
    assert len(walk.named("line", "pair")) == 30
    # In the picture of ratios the control is a line with an end on either side.
    assert len(walk.named("line", "control")) == 30 + 3
    assert [len(walk.named(*each)) for each in (("circle", "before"), ("path", "after"), ("path", "again"))] == [30] * 3


def test_a_run_of_no_use_is_crossed_out_and_counted() -> None:
    walk = Walk(page(reports.report(reports.invalid())))
    assert len(walk.named("path", "trouble")) == 2, "the run, and the ratio that proves nothing"
    assert "Of no use: 1 of 30 runs, load was above the number of CPUs." in walk.text("li")
    assert "A cross: a run of no use." in walk.text("figcaption")


def test_without_a_control_there_are_two_columns() -> None:
    rounds = tuple(replace(each, control=None) for each in reports.faster().rounds)
    walk = Walk(page(reports.report(replace(reports.faster(), rounds=rounds))))
    assert walk.named("path", "again") == []
    assert "before again" not in walk.text("text")


def test_the_command_and_the_host_are_shown() -> None:
    text = Walk(page(reports.everything())).text("code", "dt", "dd")
    assert "python3 load.py --model /srv/models/llama" in text
    assert f"memory\n23.0{GAP}GiB" in text
    assert "drives\nvda" in text
    assert "hugepages@2M\n0 → 600\nread-ahead@vda\n128 → 4096" in text


def test_the_table_has_the_medians_of_what_was_measured() -> None:
    table = {line.label: line for line in figures.lines(reports.faster())}
    assert list(table)[:2] == ["time", "loaded a second"]
    assert table["time"] == figures.Line("time", f"579{GAP}ms", f"291{GAP}ms", "0.50", "[0.48, 0.52]")
    assert table["minor page faults"] == figures.Line("minor page faults", f"263{NARROW}088", "592", "0.0023")
    assert table["on huge pages"] == figures.Line("on huge pages", f"0{GAP}MiB", f"1{NARROW}028{GAP}MiB", "")
    latency = figures.lines(reports.latency())
    assert latency[0].label == "mean wake-up latency"
    assert next(line for line in latency if line.label == "wake-up latency, p50").after == f"53.0{GAP}µs"


def test_a_figure_may_be_missing_or_new() -> None:
    rounds = (
        Round(Sample(1.0), Sample(1.0, {"pool_taken_bytes": 1 << 30, "idle_seconds": 0.25, "cache_bytes": 5 << 30})),
    )
    table = figures.lines(Leg("cmd", "", rounds, (), Verdict.SAME))
    assert [(line.label, line.before, line.after) for line in table[1:]] == [
        ("taken from the pool", figures.NOTHING, f"1{NARROW}024{GAP}MiB"),
        ("cache", figures.NOTHING, f"5{NARROW}120{GAP}MiB"),
        ("idle", figures.NOTHING, f"250{GAP}ms"),
    ]


def test_every_figure_has_a_label_of_its_own() -> None:
    labels = [figure.label for figure in figures.FIGURES.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (0.2844, "284 ms"),
        (0.9996, "1.00 s"),
        (1.2, "1.20 s"),
        (59.96, "60.0 s"),
        (4321.0, "4 321 s"),
        (0.0031, "3.10 ms"),
        (0.000053, "53.0 µs"),
        (4e-7, "0.400 µs"),
        (math.nan, figures.NOTHING),
    ],
)
def test_seconds_are_for_people(value: float, text: str) -> None:
    assert figures.seconds(value).replace(GAP, " ").replace(NARROW, " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 MiB"), (4096, "4 KiB"), (3 << 19, "1.5 MiB"), (1028 << 20, "1 028 MiB"), (23 << 30, "23.0 GiB")],
)
def test_bytes_are_for_people(value: int, text: str) -> None:
    assert figures.size(value).replace(GAP, " ").replace(NARROW, " ") == text


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(0.52, 0.47, 0.58), ("0.52", "[0.47, 0.58]")),
        (Estimate(0.97, 0.95, 0.998), ("0.970", "[0.950, 0.998]")),
        (Estimate(1.0, 1.0, 1.0), ("1.00", "[1.00, 1.00]")),
        (Estimate(0.04, 0.0023, 12.4), ("0.040", "[0.0023, 12.4]")),
        (Estimate(0.6, 0.0, math.inf), ("0.60", "too few pairs for an interval")),
        (None, (figures.NOTHING, "")),
    ],
)
def test_an_interval_that_leaves_out_1_is_seen_to(estimate: Estimate | None, said: tuple[str, str]) -> None:
    assert figures.estimated(estimate) == said


@given(st.lists(st.floats(min_value=0, allow_nan=False, allow_infinity=False), max_size=20))
def test_an_axis_holds_every_time_with_few_ticks(times: list[float]) -> None:
    scale = points.axis(times)
    assert 2 <= len(scale.ticks) <= 10
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert all(0 <= scale.place(time) <= 1 for time in times)
    assert scale.is_log or scale.ticks[0] == 0
    kept = sorted(time for time in times if points.LEAST <= time <= points.MOST)
    if kept == sorted(times) and kept:
        assert scale.ticks[0] <= kept[0]
        assert kept[-1] <= scale.ticks[-1] * (1 + 1e-6)


@given(st.lists(st.floats(min_value=0), max_size=20))
def test_an_axis_of_ratios_has_1_on_it_and_room_on_both_sides(numbers: list[float]) -> None:
    scale = points.ratio_axis(numbers)
    assert 1.0 in scale.ticks
    assert len(scale.ticks) <= 10
    assert 0.2 <= scale.place(1) <= 0.8
    assert all(0 <= scale.place(number) <= 1 for number in numbers)


def test_a_picture_without_matplotlib_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    for refused in (picture.check, lambda: picture.save(reports.everything(), tmp_path / "a.png")):
        with pytest.raises(NotSupported, match="--png needs matplotlib") as refusal:
            refused()
        assert refusal.value.hint == "apt install python3-matplotlib"
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_drawn_where_there_is_matplotlib(tmp_path: Path, report: Report) -> None:
    place = tmp_path / "without a suffix"
    if importlib.util.find_spec("matplotlib"):
        picture.save(report, place)
        assert place.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    else:
        with pytest.raises(NotSupported):
            picture.save(report, place)


# What a report says of the host, and what makes figures doubtful


MIB = 1 << 20
BARE = ["processor\t: 0", "model name\t: A Processor @ 3 GHz", "flags\t\t: fpu sse2", "", "processor\t: 1"]
GUEST = ["processor\t: 0", "model name\t: A Processor", "flags\t\t: fpu hypervisor sse2"]


def test_where_it_is_measured(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    files = {
        "proc/sys/kernel/osrelease": ["6.12.1-amd64"],
        "proc/sys/kernel/arch": ["x86_64"],
        "proc/cpuinfo": BARE,
        "sys/devices/system/cpu/online": ["0-63,65"],
        "sys/devices/system/node/node0/cpulist": ["0-31"],
        "sys/devices/system/node/node1/cpulist": ["32-63"],
    }
    write_files(tmp_path, files)
    found = host.environment(tmp_path)
    assert found == {
        "kernel": "6.12.1-amd64",
        "architecture": "x86_64",
        "cpu": "A Processor @ 3 GHz",
        "cpus": 65,
        "numa_nodes": 2,
        "memory_bytes": 263921648 * 1024,
        "virtualisation": "",
        "python": platform.python_version(),
        "kerntune": kerntune.__version__,
        "glibc": platform.libc_ver()[1],
    }


def test_of_a_host_that_says_nothing(tmp_path: Path) -> None:
    found = host.environment(tmp_path)
    assert (found["kernel"], found["cpu"], found["cpus"], found["numa_nodes"], found["memory_bytes"]) == (
        "",
        "",
        0,
        0,
        0,
    )
    assert prefault.free_page_reporting(tmp_path) is False
    assert (host.throttled(tmp_path), host.cpu_seconds(tmp_path), host.available_memory(tmp_path)) == (0, 0, 0)
    assert host.free_pages(2 * MIB, tmp_path) == 0


def test_this_host() -> None:
    found = host.environment()
    assert found["kernel"] == platform.release()
    assert found["cpus"] == os.cpu_count()
    assert 0 < host.available_memory() <= int(str(found["memory_bytes"]))
    assert host.cpu_seconds() > 0


@pytest.mark.parametrize(
    ("cpuinfo", "maker", "product", "name"),
    [
        (BARE, "Dell Inc.", "PowerEdge R760", ""),
        (BARE, "", "", ""),
        (GUEST, "", "", "unknown"),
        (GUEST, "QEMU", "Standard PC (Q35 + ICH9, 2009)", "QEMU Standard PC (Q35 + ICH9, 2009)"),
        (["processor\t: 0"], "QEMU", "KVM Virtual Machine", "QEMU KVM Virtual Machine"),
        (["processor\t: 0"], "Microsoft Corporation", "Virtual Machine", "Microsoft Corporation Virtual Machine"),
        (["processor\t: 0"], "Microsoft Corporation", "Surface", ""),
    ],
)
def test_virtual_machines(cpuinfo: list[str], maker: str, product: str, name: str, tmp_path: Path) -> None:
    dmi = "sys/class/dmi/id"
    write_files(tmp_path, {"proc/cpuinfo": cpuinfo, f"{dmi}/sys_vendor": [maker], f"{dmi}/product_name": [product]})
    assert host.environment(tmp_path)["virtualisation"] == name


@pytest.mark.parametrize("cpuinfo", [GUEST, ["processor\t: 0"]])
def test_a_virtual_machine_of_xen(cpuinfo: list[str], tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/cpuinfo": cpuinfo, "sys/hypervisor/type": ["xen"]})
    assert host.environment(tmp_path)["virtualisation"] == "xen"


@pytest.mark.parametrize(
    ("devices", "reports"),
    [
        ([], False),
        ([("0x0005", "0110010100000000")], True),
        ([("0x0005", "0110100100000000")], False),
        ([("0x0005", "0110")], False),
        ([("0x0002", "1111111111111111")], False),
        ([("0x0002", "0000000000000000"), ("0x0005", "0000010000000000")], True),
    ],
)
def test_a_host_that_takes_free_memory_away(devices: list[tuple[str, str]], reports: bool, tmp_path: Path) -> None:
    folder = "sys/bus/virtio/devices/virtio"
    for number, (kind, features) in enumerate(devices):
        write_files(tmp_path, {f"{folder}{number}/device": [kind], f"{folder}{number}/features": [features]})
    assert prefault.free_page_reporting(tmp_path) is reports


def test_how_often_cpus_were_too_hot(tmp_path: Path) -> None:
    for cpu in range(2):
        folder = f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        counts = {"core_throttle_count": [str(3 + cpu)], "package_throttle_count": ["10"]}
        counts |= {"core_throttle_total_time_ms": ["999"], "core_throttle_max_time_ms": ["999"]}
        write_files(tmp_path, {f"{folder}/{name}": lines for name, lines in counts.items()})
    assert host.throttled(tmp_path) == 3 + 4 + 10 + 10


def test_the_work_of_all_cpus_has_that_of_guests_once(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    columns = [
        1,
        2,
        4,
        1000,
        2000,
        8,
        16,
        32,
        64,
        128,
    ]  # user nice system idle iowait irq softirq steal guest guest_nice
    line = " ".join(str(column * tick) for column in columns)
    write_files(tmp_path, {"proc/stat": [f"cpu  {line}", f"cpu0 {line}", "intr 7"]})
    assert host.cpu_seconds(tmp_path) == 1 + 2 + 4 + 8 + 16


def test_memory_and_huge_pages_that_can_still_be_had(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    assert host.available_memory(tmp_path) == 214788100 * 1024
    pool = "sys/kernel/mm/hugepages/hugepages-1048576kB"
    write_files(tmp_path, {f"{pool}/free_hugepages": ["5"], f"{pool}/resv_hugepages": ["2"]})
    assert host.free_pages(1 << 30, tmp_path) == 3
    write_files(tmp_path, {f"{pool}/resv_hugepages": ["7"]})
    assert host.free_pages(1 << 30, tmp_path) == 0


def test_borrowed_pages_are_used_once(tmp_path: Path) -> None:
    # As Linux 6.18 shows a program that borrowed 23 pages: nr_hugepages has them too.
    pool = "sys/kernel/mm/hugepages/hugepages-2048kB"
    write_files(
        tmp_path, {f"{pool}/{name}_hugepages": [n] for name, n in {"nr": "23", "surplus": "23", "free": "0"}.items()}
    )
    assert host.used_pages(2 * MIB, tmp_path) == 23
