"""Metrics as text, in the form that Prometheus' own parsers of both formats take; independent of kerntune. Pure.

The two formats differ in how they name a counter's family: OpenMetrics leaves `_total` out, but the text format then
does not know the family. So this module writes `_total`. It writes gauges in place of the types that only OpenMetrics
has. node_exporter's textfile collector, promtool and Prometheus then read the same text.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

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
    def spelt(self) -> str:
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


def text(metrics: Iterable[Metric]) -> str:
    """Return the whole exposition, with a line end after its last line; it leaves out a metric without samples."""
    lines = []
    for metric in metrics:
        if metric.samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += [f"{metric.name}{sample.spelt} {sample.value}" for sample in metric.samples]
    return "\n".join([*lines, END, ""])
