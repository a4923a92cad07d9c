"""`kerntune metrics`: the daemon's knowledge as metrics for Prometheus, printed or put in a file in one step.

The text is what Prometheus' own parsers of both formats take. The two differ in how they name a counter's family:
OpenMetrics leaves `_total` out, but the text format then does not know the family. So this module writes `_total`. It
writes gauges in place of the types that only OpenMetrics has. node_exporter's textfile collector, promtool and
Prometheus then read the same text. https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from kerntune.api.document import Document, Pool, waiting_claims
from kerntune.cli.commands import Namespace
from kerntune.cli.health import judged, judged_claim, of_document
from kerntune.cli.output import Answer
from kerntune.cli.output_file import replace_file
from kerntune.cli.remote import Connect
from kerntune.errors import Unreachable
from kerntune.model import GuardState, Origin, State
from kerntune.results import Condition

COUNTERS: Final = {
    "hotplug_events": "Events of drives and CPUs that kerntuned has acted on since it started.",
    "drift_repairs": "Values that others had changed and that kerntuned has put back since it started.",
    "guard_caps": "How often the memory guard has begun to cap what the kernel commits since kerntuned started.",
}
POOL_COUNTS: Final = {
    "pages": ("total", "Huge pages there are"),
    "free_pages": ("free", "Huge pages that no program uses"),
    "reserved_pages": ("reserved", "Free huge pages that are reserved for programs"),
    "surplus_pages": ("surplus", "Huge pages in use beyond those that were asked for"),
    "requested_pages": ("requested", "Huge pages requested, or those there are where nobody requests any"),
}
CONDITIONS: Final = tuple(each for each in Condition if each is not Condition.PLANNED)  # plans are not kept
END: Final = "# EOF"
ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


class Kind(StrEnum):
    """The type of a metric: a current value, or a count that only grows until its source starts anew."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Sample:
    """A number, and the labels that distinguish it from the others of its metric."""

    value: int
    labels: Mapping[str, str]

    @property
    def label_text(self) -> str:
        """The labels as they follow the name."""
        pairs = [f'{name}="{value.translate(ESCAPES)}"' for name, value in self.labels.items()]
        return f"{{{','.join(pairs)}}}" if pairs else ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A name, one line of help (it needs no escapes), and its samples."""

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]


def metrics(connect: Connect, args: Namespace) -> Answer:
    """Ask the daemon for its knowledge; start none."""
    with connect() as manager:
        if not manager.running():
            raise Unreachable("kerntuned does not run, and is not started to be measured", "systemctl start kerntuned")
        pools = manager.pools()  # first: the daemon then reads the memory in the document anew
        found = [metric for metric in measured(manager.describe(), pools) if metric.samples]
    if args.output is None:
        return Answer({"metrics": [asdict(metric) for metric in found]}, [text(found).rstrip("\n")])
    replace_file(Path(args.output), text(found))
    return Answer({"file": args.output}, [])


def measured(document: Document, pools: Sequence[Pool]) -> Iterator[Metric]:
    """Yield every metric. Pure."""
    guard = document["guard"]
    yield gauge("build_info", "The version of kerntuned, as a label.", Sample(1, {"version": document["version"]}))
    yield number("generation", "Passes of kerntuned that changed an outcome or a claim.", document["generation"])
    yield number("well", "1 where kerntune status says that all is well, else 0.", int(of_document(document).is_well))
    degraded = [Sample(1, {"reason": reason}) for reason in document["degraded"]]
    yield gauge("degraded", "The reason slugs of Degraded, a sample each.", *degraded)
    yield from of_targets(document)
    yield from of_holds(document)
    yield from of_pools(pools)
    # A query for a state that is not in force should get a 0.
    states = dict.fromkeys([*GuardState, guard["state"]])
    in_force = [Sample(int(state == guard["state"]), {"state": state}) for state in states]
    yield gauge("guard_state", "What the memory guard does: 1 for the state it is in.", *in_force)
    culprit = [Sample(1, {"culprit": guard["culprit"]})] if guard.get("culprit") else []
    yield gauge("guard_culprit", "Who has made memory short, as a label; none when there is enough.", *culprit)
    yield number("memory_warning_level", "How short memory is: 0, 50, 100 or 255 (below the floor).", guard["level"])
    left = "Memory that programs can still take before the kernel has to kill one."
    yield number("memory_headroom_bytes", left, guard["headroom"])
    yield number("memory_floor_bytes", "Memory that the guard keeps free; 0 when it does not watch.", guard["floor"])
    for name, about in COUNTERS.items():
        # A daemon of another version may count other things.
        if name in (counters := document.get("counters", {})):
            yield Metric(f"kerntune_{name}_total", Kind.COUNTER, about, (Sample(counters[name], {}),))


def of_targets(document: Document) -> Iterator[Metric]:
    """Yield the number of managed targets, by their outcome."""
    managed = [row for row in document["targets"] if row["claim"] or row["requested"]]
    pairs = [(row["tunable"], judged(row).condition) for row in managed]
    pairs += [(claim["tunable"], judged_claim(document, claim).condition) for claim in waiting_claims(document)]
    # A condition that no target is in now is a 0, so that a rule about it is never without data.
    kinds = dict.fromkeys([*((row["name"], str(each)) for row in document["tunables"] for each in CONDITIONS), *pairs])
    counts = [Sample(pairs.count(pair), {"tunable": pair[0], "state": pair[1]}) for pair in kinds]
    yield gauge("targets", "Managed targets by what became of them; waiting: also claims that wait for one.", *counts)
    satisfied = [
        Sample(int(row["state"] == State.SATISFIED), {"tunable": row["tunable"], "target": row["instance"]})
        for row in managed
    ]
    yield gauge("target_satisfied", "Whether the kernel holds the desired value of a managed target.", *satisfied)
    origins = [claim["origin"] for claim in document["claims"]]
    words = [origin.word for origin in Origin if origin is not Origin.BASELINE]
    claims = [Sample(origins.count(word), {"origin": word}) for word in dict.fromkeys([*words, *origins])]
    yield gauge("claims", "Claims, those that wait for a target included, by where they come from.", *claims)


def of_holds(document: Document) -> Iterator[Metric]:
    """Yield the number of holds, and their owners."""
    holds = document.get("holds", [])
    yield number("holds", "Holds: values that are claimed for as long as a client lives.", len(holds))
    rows = [Sample(1, {"hold": str(each["hold"]), "who": each["who"], "uid": str(each["uid"])}) for each in holds]
    yield gauge("hold_info", "A hold, with its number and whose it is as labels.", *rows)


def of_pools(pools: Sequence[Pool]) -> Iterator[Metric]:
    """Yield the host's pools, and the nodes' pools under other names, so that a sum counts no page twice."""
    for suffix, (field, about) in POOL_COUNTS.items():
        whole = [pool_sample(pool, field) for pool in pools if not pool.node]
        yield gauge(f"hugepages_{suffix}", f"{about}; page_size in bytes.", *whole)
    for suffix, (field, about) in POOL_COUNTS.items():
        nodes = [pool_sample(pool, field, node=pool.node) for pool in pools if pool.node]
        yield gauge(f"hugepages_node_{suffix}", f"{about}, on one NUMA node; page_size in bytes.", *nodes)


def pool_sample(pool: Pool, field: str, **labels: str) -> Sample:
    """Return one count of a pool."""
    return Sample(getattr(pool, field), {"page_size": str(pool.page_size), **labels})


def gauge(name: str, about: str, *samples: Sample) -> Metric:
    """Return a metric that goes up and down."""
    return Metric(f"kerntune_{name}", Kind.GAUGE, about, samples)


def number(name: str, about: str, value: int) -> Metric:
    """Return a gauge of one number."""
    return gauge(name, about, Sample(value, {}))


def text(metrics: Iterable[Metric]) -> str:
    """Return the whole exposition, with a line end after its last line; it leaves out a metric without samples."""
    lines = []
    for metric in metrics:
        if metric.samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [f"{metric.name}{sample.label_text} {sample.value}" for sample in metric.samples]
    return "\n".join([*lines, END, ""])
