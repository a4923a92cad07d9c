"""Turns the results file into docs/benchmarks.md. Pure: the same JSON gives the same text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.figures import FLOOR, KERNTUNE, TUNED

HEAD: Final = """\
# Benchmarks

Written by `make bench`; do not edit. kerntuned, TuneD and the floor were measured in turn in the same run, on one
private bus with a real polkitd. A figure is the median over the rounds; of times it is p50, with p99 behind the
slash. The ratio is the median of the rounds' ratios, kerntuned to TuneD (to the floor, in italics, where TuneD has
nothing alike): compare ratios, for the figures are those of one machine.
"""

FOOT: Final = """\
What is measured how:

- **Reads.** kerntuned: `Properties.Get` of `OvercommitMode`. TuneD: `active_profile`. Floor: a process that
  answers any call with a reply made beforehand, on the same bus. Clients send messages made beforehand over a plain
  socket, each with one call in flight, in two processes for 32 clients. While polkitd is stopped (SIGSTOP), a change
  asked of kerntuned by another client waits for it, and a client that was not answered within 2 s gives up
  ("no answer").
- **Sets.** The scheduler of a loop device, to and fro. TuneD: `switch_profile` between two profiles that set
  nothing else. Floor: the bare write. The simulated drive has no kernel behind it and shows what we add to the write.
- **Start.** From the start of the process; byte code is in place, as in a package. TuneD has no READY: its name stands
  for it.
- **Memory, wake-ups.** /proc/PID/smaps_rollup, and voluntary context switches of all threads.
- **Passes.** One pass that changes all policies, beside as many bare writes through the same kernel interface in the
  same process, one after the other (the floor). A real policy that leaves schedutil waits in its write for an RCU grace
  period, 18 to 23 ms in the virtual machine of the tests; a pass writes 32 policies at a time, and they wait together.
  Where a write costs nothing, as on tmpfs, what is left are the reads before and after it, and the engine.
"""


PLUGGED: Final = """\
## A drive that is plugged

`make bench-vm`, {date}: from an NVMe drive's appearance in sysfs to its scheduler, in one virtual machine (emulated, so
only the ratios mean anything), one service after the other, ten plugs at a time.

| | plugs | median / worst (ms) | ratio to the udev rule |
| --- | --- | --- | --- |"""


GUARDED: Final = """\
## The memory guard

`make bench-vm`, {date}: a program takes all the memory it gets, in steps, in a virtual machine. How far
past its own threshold each acts (12 % of RAM less huge pages, 10 % of RAM), as percent of RAM, median and worst; what
was left at least; and percent of a core that watching costs on this host, with room to spare. earlyoom kills the
program; what the guard refuses is up to the program, and it lets some more be promised after it has acted.

| | rounds | past its threshold (% of RAM) | left at least (% of RAM) | the program is | core (%) |
| --- | --- | --- | --- | --- | --- |"""
COMMANDS: Final = """\
## The command line

`python -m benchmarks.commands`, {date}: from the start of a process to its end, where nobody is asked; the median of
{runs} runs in turn, and of their ratios. `kerntune --help` imports neither the bus nor what knows the kernel; most of
its time is that of Python itself.

| | ms | ratio to `true` | ratio to `busctl --version` |
| --- | --- | --- | --- |"""


def render(
    results: Mapping[str, Any],
    plugs: Mapping[str, Any] | None = None,
    commands: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
) -> str:
    """The whole document; `plugs` are the results of benchmarks.hotplug, `commands` of benchmarks.commands,
    `guard` of benchmarks.guard.
    """
    rows = [line(row) for row in results["rows"]]
    table = ["| | kerntuned | TuneD | floor | ratio | target |", "| --- | --- | --- | --- | --- | --- |", *rows]
    notes = [f"- {row['title']}: {row['note']}" for row in results["rows"] if row["note"]]
    parts = [HEAD, machine(results), "\n".join(table) + "\n"]
    parts += ["\n".join(notes) + "\n"] if notes else []
    parts += [FOOT, *([plugged(plugs)] if plugs else []), *([typed(commands)] if commands else [])]
    parts += [guarded(guard)] if guard else []
    return "\n".join(parts)


def plugged(plugs: Mapping[str, Any]) -> str:
    """The table of benchmarks.hotplug."""
    floor = plugs["rows"]["udev rule"]["median_ms"]
    rows = [
        f"| {name} | {row['plugs']} | {number(row['median_ms'])} / {number(row['worst_ms'])} | "
        f"{number(row['median_ms'] / floor)} |"
        for name, row in plugs["rows"].items()
    ]
    return "\n".join([PLUGGED.format(date=plugs["date"]), *rows]) + "\n"


def typed(commands: Mapping[str, Any]) -> str:
    """The table of benchmarks.commands."""
    rows = [
        f"| {name} | {number(row['median_ms'])} | {number(row['to true'])} | {number(row['to busctl --version'])} |"
        for name, row in commands["rows"].items()
    ]
    return "\n".join([COMMANDS.format(date=commands["date"], runs=commands["runs"]), *rows]) + "\n"


def guarded(guard: Mapping[str, Any]) -> str:
    """The table of benchmarks.guard."""
    rows = [
        f"| {name} | {row['rounds']} | {number(row['past_median'])} / {number(row['past_worst'])} | "
        f"{number(row['least'])} | {row['ended']} | {number(row['core'])} |"
        for name, row in guard["rows"].items()
    ]
    return "\n".join([GUARDED.format(date=guard["date"]), *rows]) + "\n"


def machine(results: Mapping[str, Any]) -> str:
    """What it ran on, and whether it was alone there."""
    what, run = results["machine"], results["run"]
    kind = "quick run" if run["quick"] else "full run"
    idle = 100 * min(run["idle_before_rounds"], default=1.0)
    quiet = "" if run["quiet"] else " **The machine was not quiet: take the ratios only.**"
    versions = ", ".join(f"{name} {version}" for name, version in what["versions"].items())
    return (
        f"{run['date']}, {kind} of {run['rounds']} rounds, {run['seconds']:.0f} s. {what['cpus']} CPUs "
        f"({what['cpu']}), {what['memory_gib']} GiB, kernel {what['kernel']}. {versions}.\n"
        f"Load average {run['load'][0]:.2f} before; the CPUs were {idle:.0f} % idle or more before each round.{quiet}\n"
    )


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    cells = [row["title"] + f" ({row['unit']})"]
    cells += [cell(row["subjects"].get(subject)) for subject in (KERNTUNE, TUNED, FLOOR)]
    return f"| {' | '.join([*cells, ratio(row['ratios']), target(row)])} |"


def cell(spread: Mapping[str, Any] | None) -> str:
    """The figure of one subject."""
    if spread is None:
        return ""
    if spread["median"] is None:
        return "no answer"
    worst = f" / {number(spread['p99'])}" if spread.get("p99") is not None else ""
    return number(spread["median"]) + worst


def ratio(ratios: Mapping[str, float]) -> str:
    """Ours to the peer's, or to the floor."""
    if TUNED in ratios:
        return number(ratios[TUNED])
    return f"*{number(ratios[FLOOR])}*" if FLOOR in ratios else ""


def target(row: Mapping[str, Any]) -> str:
    """The design's target, and whether it was reached."""
    most, least = row["target"]["most"], row["target"]["least"]
    if most is None and least is None:
        return ""
    bound = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    if floors := row["target"].get("floors"):
        bound += f", ≤ {floors:g} floors ({number(row['ratios'][FLOOR])})" if FLOOR in row["ratios"] else ""
    return f"{bound} {'met' if row['met'] else '**missed**'}"


def number(value: float) -> str:
    """Three digits, or the whole number where it has more."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
