"""The options that put a command behind a shield, as `run` and `bench` read them."""

from __future__ import annotations

import os
import re
from typing import Final

from kerntune.errors import Usage
from kerntune.run import scheduling
from kerntune.run.scheduling import RealTime
from kerntune.units import parse_cpus, parse_duration, spell_cpus

NICE: Final = re.compile(r"[+-]?[0-9]{1,6}", re.ASCII)


def cpus_of(text: str | None) -> frozenset[int]:
    """Return the CPUs of a list, all of which are allowed; none for None. Raise Usage."""
    if text is None:
        return frozenset()
    if not (cpus := parse_cpus(text)):
        raise Usage("--cpus names no CPU", "Write 2, 0-3 or 0-3,8")
    allowed = os.sched_getaffinity(0)
    if others := cpus - allowed:
        raise Usage(f"CPU {spell_cpus(others)} is none that it may run on", f"It may run on {spell_cpus(allowed)}")
    return cpus


def slice_of(text: str | None) -> int:
    """Return the microseconds of `100us`, `3ms` or `100`. Raise Usage, and InvalidValue for those out of range."""
    if text is None:
        return 0
    microseconds = parse_duration(text, unit="us") if text.isdecimal() or text.endswith(("us", "ms")) else None
    if not microseconds:
        raise Usage(f"{text!r} is no slice of time", "Write 100us or 3ms")
    scheduling.check(microseconds, None, RealTime.NO)
    return microseconds


def nice_of(text: str | None) -> int | None:
    """Return the number of `-10` or `5`, None for None. Raise Usage, and InvalidValue for one out of range."""
    if text is None:
        return None
    if not NICE.fullmatch(text):
        raise Usage(f"{text!r} is no nice value", "Give -20, which gets most of a CPU, to 19, which gets least")
    scheduling.check(0, int(text), RealTime.NO)
    return int(text)
