"""FairQueue the results file into docs/benchmarks.md. Pure: the same JSON gives the same text."""

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

`make bench-vm`, {date}: a program takes all the memory it gets, in steps of 8 MiB, in a virtual machine of 6 GiB,
where 1.2 GiB are left to begin with. Each in turn has the machine to itself, with mode `always` and the defaults of its
package (Debian's {versions}; kerntuned with `always:95`).
systemd-oomd is told to act on the program's slice (ManagedOOMMemoryPressure=kill, ManagedOOMSwap=kill), by itself it
does nothing. "Nobody" has the kernel alone.

Sizes are percent of RAM, free swap being part of what is left. "Acts at" is what each promises, "acted at" what was
left when it did, median and worst. "Longest pause" is that of a small program beside it, which wants to run every 5 ms.
A neighbour is a process in the same cgroup that needs nothing. Three other programs ask for something when the first
has ended or was refused: one with 64 GiB of reserved addresses, as CUDA makes, for 64 MiB, one of 48 MiB forks, one
writes 32 MiB to /dev/shm. The times until they have it, in seconds, are the worst of all rounds; "nothing" is who was
refused for 20 s, or ended. The machine is emulated, on a host with a load average of {load:.1f}: times are long.
"""
GUARDED_ROWS: Final = """\
### {title}

| {rounds} rounds each | acts at | acted at | left at least | longest pause (s) | the program | its neighbour | CUDA-like | fork | /dev/shm |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""  # noqa: E501
GUARDED_NOTE: Final = """\
Where there is swap, earlyoom and systemd-oomd (ManagedOOMSwap) wait until it is short too, and then no memory is left.
Without swap systemd-oomd has pressure alone to go by, more than 60 % for 20 s (Debian's), and the OOM killer comes
first. systemd-oomd kills the whole cgroup. Of a cgroup in which the OOM killer has struck, systemd ends the rest
(OOMPolicy=stop, the default also for such a scope). The guard ends nobody: what becomes of a program that is refused
is up to the program.
"""
WATCHED: Final = """\
### The price of watching

Percent of a core at rest. On this host kerntuned and earlyoom ran at once, with room to spare, then kerntuned alone,
just above where it caps, where it looks as often as it ever does; in the virtual machine, which is emulated, all three
at once, and then kerntuned with 14 % of RAM left. A look after a pause finds nothing in the CPU's caches and takes two
to three times as long as the next one would. systemd-oomd runs only where systemd does: it has no figure for this host.

| | looks a second | core (%) | core for one look a second (%) | target | emulated core (%) |
| --- | --- | --- | --- | --- | --- |"""
COMMANDS: Final = """\
## The command line

`python -m benchmarks.commands`, {date}: from the start of a process to its end, where nobody is asked; the median of
{runs} runs in turn, and of their ratios. `kerntune --help` imports neither the bus nor what knows the kernel; most of
its time is that of Python itself.

| | ms | ratio to `true` | ratio to `busctl --version` |
| --- | --- | --- | --- |"""

GAINED: Final = """\
## kerntune run

`make bench-run`, {date}: commands that `kerntune run` starts, with the options and without, {rounds} times each in an
order that changes each round. {cpus} CPUs ({cpu}), {memory_gib} GiB, kernel {kernel}; load average {load:.2f} before.
Transparent huge pages are {thp}. The ratio is the median of with / without over the rounds; the interval holds the true
median in 95 of 100 cases and does not rest on the shape of the noise.
"""
GAINED_HOW: Final = """\
The loads time themselves, in the process, from the page cache into memory; memory was touched before each run.
Private_Hugetlb is what the summary of `kerntune run` says. The program that wakes up works 0.2 ms each 3 ms. Without
the options and with `--slice` it is pinned to the CPU of the busy loops; with `--cpus=auto` all CPUs are allowed. p99
is shown, and not promised: the slowest wake-ups wait for the scheduler's tick.
"""


def render(
    results: Mapping[str, Any],
    plugs: Mapping[str, Any] | None = None,
    commands: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
    gains: Mapping[str, Any] | None = None,
) -> str:
    """The whole document; `plugs` are the results of benchmarks.hotplug, `commands` of benchmarks.commands,
    `guard` of benchmarks.guard, `gains` of benchmarks.gains.
    """
    rows = [line(row) for row in results["rows"]]
    table = ["| | kerntuned | TuneD | floor | ratio | target |", "| --- | --- | --- | --- | --- | --- |", *rows]
    notes = [f"- {row['title']}: {row['note']}" for row in results["rows"] if row["note"]]
    parts = [HEAD, machine(results), "\n".join(table) + "\n"]
    parts += ["\n".join(notes) + "\n"] if notes else []
    parts += [FOOT, *([plugged(plugs)] if plugs else []), *([typed(commands)] if commands else [])]
    parts += [*([guarded(guard)] if guard else []), *([gained(gains)] if gains else [])]
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
    """The tables of benchmarks.guard."""
    parts = [GUARDED.format(date=guard["date"], load=guard["load"], versions=" and ".join(guard["versions"]))]
    for title, key in (("Without swap", "rows"), ("With 384 MiB of swap", "with_swap")):
        rows = guard[key]
        rounds = max(row["rounds"] for row in rows.values())
        head = GUARDED_ROWS.format(title=title, rounds=rounds)
        parts.append("\n".join([head, *(harm(name, row) for name, row in rows.items())]) + "\n")
    head = WATCHED.format()
    parts += [GUARDED_NOTE, "\n".join([head, *(price(name, row) for name, row in guard["watching"].items())]) + "\n"]
    return "\n".join(parts)


def harm(name: str, row: Mapping[str, Any]) -> str:
    """One row: who acted when, what was left, who was harmed."""
    threshold = row["threshold"] if isinstance(row["threshold"], str) else number(row["threshold"])
    times = (asked(found["worst"], found["nothing"]) for found in row["bystanders"].values())
    acted = f"{number(row['acted_median'])} / {number(row['acted_worst'])}"
    cells = (threshold, acted, number(row["least"]), number(row["pause"]), row["ended"], row["neighbour"], *times)
    return f"| {' | '.join([name, *cells])} |"


def asked(worst: float | None, nothing: int) -> str:
    """How a bystander has fared: the longest time, and in how many rounds it got nothing."""
    said = [] if worst is None else [number(worst)]
    return ", ".join([*said, f"{nothing} x nothing"] if nothing else said)


def price(name: str, row: Mapping[str, Any]) -> str:
    """One row: what it costs to watch."""
    figures = ["" if row[key] is None else number(row[key]) for key in ("looks", "core", "each", "guest")]
    bounds = (
        f"≤ {row[most]:g} {what}{verdict(met=row[key] <= row[most])}"
        for key, most, what in (("each", "most_each", "for one look "), ("core", "most_core", ""))
        if row[most] is not None
    )
    return f"| {' | '.join([name, *figures[:3], ', '.join(bounds), figures[3]])} |"


def gained(gains: Mapping[str, Any]) -> str:
    """The tables of benchmarks.gains."""
    facts = {name: gains[name] for name in ("date", "rounds", "load", "thp")}
    parts = [GAINED.format(**facts, **gains["machine"])]
    for group in gains["groups"]:
        head = f"| {group['what']} | without (ms) | with (ms) | ratio, interval | target |"
        rows = [head, "| --- | --- | --- | --- | --- |", *map(gain, group["rows"])]
        rows += [on_huge_pages(group["hugetlb"])] if "hugetlb" in group else []
        parts.append("\n".join(rows) + "\n")
        parts += ["\n".join(f"- {note}" for note in group["notes"]) + "\n"] if group.get("notes") else []
    torch = f"PyTorch {gains['torch']}" if gains["torch"] else "PyTorch was not there, so `torch.load` is left out"
    return "\n".join([*parts, f"{GAINED_HOW}{torch}.\n"])


def gain(row: Mapping[str, Any]) -> str:
    """One row: a figure of the runs without the options and with them, and the ratio."""
    cells = [row["title"], *(number(1000 * row[side]) for side in ("before", "now")), interval(row)]
    bound = "no difference" if row["same"] else "" if row["most"] is None else f"≤ {row['most']:g}, interval below 1"
    cells.append(f"{bound} {verdict(met=row['met'])}" if bound else "")
    return f"| {' | '.join(cells)} |"


def interval(row: Mapping[str, Any]) -> str:
    """A ratio, and where the true one may lie."""
    low, high = (number(row[end]) for end in ("low", "high"))
    return f"{number(row['ratio'])} [{low}, {high}]"


def on_huge_pages(found: Mapping[str, Any]) -> str:
    """One row: Private_Hugetlb of the runs without the options, and the least of those with them."""
    bound = f"≥ {found['target']} {verdict(met=found['met'])}"
    figures = " | ".join(str(int(found[name])) for name in ("without", "least"))
    return f"| Private_Hugetlb, the least of all runs (MiB) | {figures} | | {bound} |"


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
    return f"{bound} {verdict(met=row['met'])}"


def verdict(*, met: bool) -> str:
    return "met" if met else "**missed**"


def number(value: float) -> str:
    """Three digits, or the whole number where it has more."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
