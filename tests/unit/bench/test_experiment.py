"""Rounds of before and after with real processes: their order, what ends them, and what is made of trouble."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from kerntune.bench import experiment, runs, statistics
from kerntune.bench.experiment import Bench, Command
from kerntune.bench.file import ModelFile, open_model
from kerntune.bench.legs import Workload
from kerntune.bench.model import Leg, Verdict
from kerntune.bench.runs import Arm
from kerntune.run.shield import Shield

ARM = Arm(Shield(), dict(os.environ))
SIZE = 1 << 20
COPY = Workload("copy", "copy it")
CMD = Workload("cmd", "run it")


class Host:
    """A host with one setting; `log` has each run's side, and `now` what the kernel has."""

    def __init__(self) -> None:
        self.now = "0"
        self.log: list[str] = []
        self.looks = 0

    @asynccontextmanager
    async def on(self) -> AsyncIterator[None]:
        self.now = "1"
        try:
            yield
        finally:
            self.now = "0"

    async def values(self) -> Mapping[str, str]:
        self.looks += 1
        if self.looks % 2:  # before a run; the other one is after it
            self.log.append("after" if self.now == "1" else "before")
        return {"knob": self.now}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    path = tmp_path / "model"
    path.write_bytes(os.urandom(SIZE))
    with open_model(str(path)) as opened:
        yield opened


async def measured(
    host: Host,
    leg: Workload,
    *,
    file: ModelFile | None = None,
    command: Command | None = None,
    has_control: bool = True,
    pairs: int = 6,
    warn: Callable[[str], object] = lambda _: None,
    progress: experiment.Progress = lambda *_: None,
) -> Leg:
    bench = Bench(
        before=ARM,
        after=ARM,
        switch=host,
        values={False: {"knob": "0"}, True: {"knob": "1"}},
        file=file,
        command=command,
        cpu=min(os.sched_getaffinity(0)),
        page_size=0,
        touched=0,
        looks=statistics.planned(pairs),
        has_control=has_control,
        random=Random(1),
        warn=warn,
    )
    return await experiment.measure(leg, bench, progress)


def sh(script: str, until: str = "") -> Command:
    return Command(("sh", "-c", script), until)


async def test_each_round_has_its_sides_in_an_order_of_its_own(file: ModelFile) -> None:
    host = Host()
    leg = await measured(host, COPY, file=file)
    warm, rounds = host.log[:2], [host.log[start : start + 3] for start in range(2, len(host.log), 3)]
    assert warm == ["after", "before"]
    assert len(rounds) == len(leg.rounds) == 6
    assert all(sorted(sides) == ["after", "before", "before"] for sides in rounds)
    assert len({sides.index("after") for sides in rounds}) > 1
    assert all(each.control and each.control.seconds > 0 for each in leg.rounds)
    assert all(run.figures["loaded_bytes"] == SIZE for each in leg.rounds for run in (each.before, each.after))


async def test_without_a_control_there_are_two(file: ModelFile) -> None:
    host = Host()
    leg = await measured(host, COPY, file=file, has_control=False)
    assert len(host.log) == 2 + 2 * 6
    assert leg.detectable is None
    assert all(each.control is None for each in leg.rounds)


async def test_the_first_run_has_a_bar_already(file: ModelFile) -> None:
    host, looks = Host(), list[tuple[object, ...]]()
    await measured(host, COPY, file=file, progress=lambda *told: looks.append((*told[1:], len(host.log))))
    assert looks[0] == (0, 18, 0.0, 0)


async def test_pages_that_the_first_run_does_not_use_are_told_at_once(file: ModelFile) -> None:
    host = Host()
    leg = await measured(host, Workload("copy", "copy it", "hugetlb_bytes"), file=file)
    assert (leg.verdict, leg.reason) == (Verdict.INVALID, "huge pages not used: 0 of 1 MiB lay on them")
    assert (leg.rounds, host.log) == ((), ["after"])


async def test_what_somebody_else_sets_meanwhile_is_drift(file: ModelFile) -> None:
    class Moved(Host):
        async def values(self) -> Mapping[str, str]:
            return {"knob": "7"} if self.looks == 11 else await super().values()

        @asynccontextmanager
        async def on(self) -> AsyncIterator[None]:
            self.looks += self.looks == 10
            async with super().on():
                yield

    leg = await measured(Moved(), COPY, file=file)
    assert leg.verdict == Verdict.INVALID
    assert leg.reason.startswith("settings drifted: knob is 7 ")


@pytest.mark.parametrize("number", [5, 6])
async def test_trouble_in_any_round_is_told(file: ModelFile, number: int) -> None:
    """Also in that of a look: nothing can be compared with a run that did not end."""

    class Falling(Host):
        held = 0

        @asynccontextmanager
        async def on(self) -> AsyncIterator[None]:
            self.held += 1
            if self.held == 1 + number:  # after the warm-up
                os.truncate(f"/proc/self/fd/{file.fd}", 0)
            async with super().on():
                yield

    leg = await measured(Falling(), COPY, file=file)
    assert (leg.verdict, leg.reason) == (Verdict.INVALID, "the file has become shorter while it was read")
    assert len(leg.rounds) == number
    assert leg.looks == ()


async def test_a_file_that_shrinks_is_told(file: ModelFile) -> None:
    class Shrinking(Host):
        @asynccontextmanager
        async def on(self) -> AsyncIterator[None]:
            async with super().on():
                if self.looks > 4:
                    os.truncate(f"/proc/self/fd/{file.fd}", SIZE // 2)
                yield

    for name in ("copy", "mmap", "io"):
        os.truncate(f"/proc/self/fd/{file.fd}", SIZE)
        leg = await measured(Shrinking(), Workload(name, ""), file=file)
        assert (leg.verdict, leg.reason) == (Verdict.INVALID, "the file has become shorter while it was read")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (sh("echo no memory; exit 3"), "the command failed: it ended with status 3; its last line: no memory"),
        (sh("kill -9 $$"), "the command failed: it was killed by SIGKILL"),
        (Command(("/no/such/program",)), "the command failed: it ended with status 127"),
        (sh("echo nearly", "ready"), "the command ended before it printed 'ready'; its last line: nearly"),
        (Command(("cat",)), ""),  # there is nothing to read
        (sh("echo ready; exit 7", "ready"), ""),
        (sh("printf re; sleep 0.05; printf 'ady\\n'; sleep 60", "ready"), ""),
        (sh("head -c 20000000 /dev/zero; echo ready; sleep 60", "ready"), ""),
        (sh("sleep 60 &"), ""),
        (sh("read x </dev/tty || true"), ""),  # a session of its own has no terminal to wait for
        (sh("setsid sleep 5 &"), ""),
    ],
)
async def test_what_a_command_does(command: Command, reason: str) -> None:
    leg = await measured(Host(), CMD, command=command, has_control=False)
    assert leg.reason.startswith(reason) if reason else "command" not in leg.reason
    if not reason:
        assert len(leg.rounds) == 6
        assert max(each.after.seconds for each in leg.rounds) < 4


async def test_a_text_that_does_not_come_is_told_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "LATE_SECONDS", 0.1)
    told: list[str] = []
    command = sh("echo loading; sleep 1; echo Ready", "ready")
    leg = await measured(Host(), CMD, command=command, warn=told.append)
    (said,) = told
    assert said.startswith("the command has run for 0 s, and has not printed 'ready'")
    assert leg.reason == "the command ended before it printed 'ready'; its last line: Ready"


async def test_who_is_waited_for_to_the_end_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "LATE_SECONDS", 0.05)
    told: list[str] = []
    await measured(Host(), CMD, command=sh("sleep 0.3; exit 3"), warn=told.append)
    assert told == []


async def test_what_goes_on_beside_a_command_ends_when_the_text_has_come() -> None:
    """Else the time that a server takes to end would count."""
    over: list[float] = []

    async def beside(said: Callable[[], str]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            over.append(time.monotonic())

    slow = ("sh", "-c", "trap 'sleep 1; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    ended = await runs.command(ARM, slow, until="ready", meanwhile=beside)
    assert time.monotonic() - over[0] > 0.9
    assert (ended.found, ended.status) == (True, 0)


@pytest.mark.parametrize(
    "command",
    [
        sh("kill -9 $PPID; while :; do :; done"),
        sh("trap 'kill -9 $PPID' TERM; echo ready; while :; do sleep 0.05; done", "ready"),
    ],
)
async def test_a_keeper_that_is_killed_is_told(command: Command) -> None:
    leg = await measured(Host(), CMD, command=command)
    assert (leg.verdict, leg.reason, leg.rounds) == (Verdict.INVALID, experiment.LOST, ())


async def test_a_command_that_is_refused_has_printed_nothing() -> None:
    """Also when the refusal has the text that is waited for."""
    ended = await runs.command(Arm(Shield(frozenset({9999})), ARM.environment), ["true"], until="no CPU")
    assert (ended.found, ended.seconds) == (False, 0)


async def test_what_a_daemon_of_the_command_does_is_its_own() -> None:
    spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    leg = await measured(Host(), CMD, command=sh(f"setsid sh -c '{spin}; echo ready; exec sleep 60' & wait", "ready"))
    assert min(one.after.figures["user_seconds"] for one in leg.rounds) > 0.01
    assert all("others_cpus" in one.after.figures for one in leg.rounds)


async def test_a_command_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerntune.bench.runs.END_SECONDS", 0.05)
    leg = await measured(
        Host(), CMD, command=sh("trap '' TERM; echo ready; while :; do sleep 1; done", "ready"), has_control=False
    )
    assert len(leg.rounds) == 6


async def test_a_command_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerntune.bench.runs.RUN_SECONDS", 0.2)
    leg = await measured(Host(), CMD, command=sh("sleep 60"), has_control=False)
    assert leg.reason.startswith("the command failed: ")


async def test_nothing_that_was_started_stays_open(file: ModelFile) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    await measured(Host(), COPY, file=file)
    await measured(Host(), CMD, command=sh("setsid sleep 1 & echo ready; sleep 60", "ready"))
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_the_busy_loops_end_with_their_leg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "WAKES", 5)
    leg = await measured(Host(), Workload("cpu", "wake"), has_control=False)
    assert len(leg.rounds) == 6
    assert not hogs()


def hogs() -> list[str]:
    """Return the busy loops that are this process's children."""
    found = []
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        for pid in file.read().split():
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                found += [pid] if b"hog" in line.read() else []
    return found
