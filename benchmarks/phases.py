"""The measurements, one function a phase: each notes its rounds in the book and leaves everything as it found it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.harness.daemon import READY, Daemon
from tests.harness.polkitd import MEMBER, OTHER

from benchmarks import load, passes, process, tuned
from benchmarks.figures import FLOOR, KERNTUNE, TUNED, Book
from benchmarks.lab import (
    FLOOR_READ,
    OUR_READ,
    SCHEDULERS,
    THEIR_READ,
    Lab,
    Owned,
    get,
    of_tuned,
    release,
    scheduler_file,
    set_scheduler,
)
from benchmarks.load import Call, Load
from kerntune.api import names

ROOT: Final = "root"
USERS: Final = {"root": ROOT, "user": OTHER}
MANY: Final = 32
SETTLED: Final = 10.0  # seconds until a service has done what the start of another one gave it to do
HUNG: Final = 2.0  # seconds after which a single client gives up on a service that hangs with polkitd
CALM: Final = 90.0  # seconds in which a service has to answer again after polkitd goes on
SIMULATED: Final = "nvme0n1"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    rounds: int
    seconds: float  # of one load
    sets: int  # calls of one load
    idle: float  # seconds
    flat: int  # calls


FULL: Final = Scale(rounds=5, seconds=2.0, sets=40, idle=20.0, flat=100_000)
QUICK: Final = Scale(rounds=2, seconds=0.5, sets=8, idle=5.0, flat=5_000)


def starts(lab: Lab, book: Book, scale: Scale) -> None:
    """Start to name owned, and to READY, in turn; the first start of each leaves byte code behind and is not noted."""
    for number in range(scale.rounds + 1):
        owned, ready = start_ours(lab)
        theirs = start_theirs(lab)
        if not number:
            continue
        book.note("start-name", KERNTUNE, owned)
        book.note("start-ready", KERNTUNE, ready)
        if theirs is not None:
            book.note("start-name", TUNED, theirs)
            book.note("start-ready", TUNED, theirs)


def start_ours(lab: Lab) -> tuple[float, float]:
    """Milliseconds to the name, and to READY."""
    daemon = Daemon(lab.bus, env=lab.env, wait=False)
    with Owned(lab.bus.address, names.BUS_NAME) as owner:
        began = time.perf_counter()
        with daemon:
            owned = owner.wait(daemon.journal)
            daemon.wait_for(READY)
            return (owned - began) * 1000, (time.perf_counter() - began) * 1000


def start_theirs(lab: Lab) -> float | None:
    """Milliseconds to the name, which is all that TuneD says."""
    if lab.tuned is None:
        return None
    with Owned(lab.bus.address, tuned.NAME) as owner:
        began = time.perf_counter()
        try:
            lab.tuned.start()
            return (owner.wait(lab.tuned.log) - began) * 1000
        finally:
            lab.tuned.stop()


def idle(subjects: dict[str, int], book: Book, scale: Scale) -> None:
    """Memory and wake-ups of freshly started daemons (name -> pid) that manage nothing."""
    time.sleep(SETTLED)
    before = {name: process.wakeups(pid) for name, pid in subjects.items()}
    began = time.perf_counter()
    time.sleep(scale.idle)
    for name, pid in subjects.items():
        book.note("wakeups", name, (process.wakeups(pid) - before[name]) / (time.perf_counter() - began))
        book.note("rss", name, process.memory(pid).rss)
        book.note("dirty", name, process.memory(pid).private_dirty)


def reads(lab: Lab, book: Book, scale: Scale, *, peer: bool) -> None:
    """One round of reads: with polkitd running, and then stopped while another client's change waits for it."""
    plain: dict[str, Call] = {KERNTUNE: OUR_READ, FLOOR: FLOOR_READ}
    both = {KERNTUNE: OUR_READ, TUNED: THEIR_READ, FLOOR: FLOOR_READ} if peer else plain
    read_all(lab, book, scale, both, "", patience=10.0)
    for row, call in {
        "read-devices": get(names.IO_SCHEDULER, "Devices"),
        "read-pools": get(names.HUGE_PAGES, "Pools"),
    }.items():
        time_of(lab, book, row, {KERNTUNE: call, FLOOR: FLOOR_READ}, Load((), OTHER, seconds=scale.seconds))
    with stopped_polkitd(lab, peer=peer), waiting_change(lab):
        read_all(lab, book, scale, both, "-stopped", patience=HUNG)


def read_all(lab: Lab, book: Book, scale: Scale, calls: dict[str, Call], suffix: str, *, patience: float) -> None:
    """One and many clients, as root and as an ordinary user."""
    for word, user in USERS.items():
        alone = Load((), user, seconds=scale.seconds, patience=patience)
        time_of(lab, book, f"read-{word}{suffix}", calls, alone)
        for name, call in calls.items():
            many = Load((call,), user, MANY, scale.seconds, patience=patience)
            sample = load.apply(lab.bus.address, many, processes=2)
            book.note(f"rate-{word}{suffix}", name, sample.rate)


def time_of(lab: Lab, book: Book, row: str, calls: dict[str, Call], like: Load) -> None:
    """Note p50 and p99 of each subject's call."""
    for name, call in calls.items():
        sample = load.apply(
            lab.bus.address, Load((call,), like.user, seconds=like.seconds, most=like.most, patience=like.patience)
        )
        book.note(row, name, sample.p50, sample.p99)


@contextmanager
def stopped_polkitd(lab: Lab, *, peer: bool) -> Iterator[None]:
    """polkitd silent; afterwards it goes on, and what hung with it has answered again."""
    lab.polkitd.stop()
    try:
        yield
    finally:
        lab.polkitd.cont()
        for call in (OUR_READ, *([THEIR_READ] if peer else [])):
            load.apply(lab.bus.address, Load((call,), most=1, patience=CALM))


@contextmanager
def waiting_change(lab: Lab) -> Iterator[None]:
    """A member of the group asks for a change, again whenever it was refused because polkitd is silent."""
    change = Load((release("*"),), MEMBER, seconds=CALM)
    with ExitStack() as stack:
        load.start(stack, lab.bus.address, change)
        yield


def sets(lab: Lab, book: Book, scale: Scale, *, peer: bool) -> None:
    """One round of changes of real drives: ours, TuneD's, the bare write."""
    if not lab.drives:
        book.remark("set-root", "no three idle loop devices with none and mq-deadline here")
        return
    ours, _theirs, bare = lab.drives
    toggle = tuple(set_scheduler(ours, value) for value in SCHEDULERS)
    load_of = {"set-root": (toggle, ROOT), "set-member": (toggle, MEMBER), "set-same": (toggle[1:], ROOT)}
    for row, (calls, user) in load_of.items():
        note_sets(lab, book, row, KERNTUNE, Load(calls, user, seconds=60.0, most=scale.sets))
    note_sets(lab, book, "set-same", FLOOR, Load((FLOOR_READ,), ROOT, seconds=60.0, most=scale.sets))
    if peer:
        switch = tuple(of_tuned("switch_profile", "s", profile) for profile in (tuned.FIRST, tuned.SECOND))
        note_sets(lab, book, "set-root", TUNED, Load(switch, ROOT, seconds=60.0, most=scale.sets))
        load.apply(lab.bus.address, Load((of_tuned("switch_profile", "s", tuned.IDLE),), most=1, patience=CALM))
    file = scheduler_file(bare)
    took = [passes.timed(partial(file.write_text, value)) for value in SCHEDULERS * (scale.sets // 2)]
    for row in ("set-root", "set-member"):
        book.note(row, FLOOR, statistics.median(took), sorted(took)[len(took) * 99 // 100])
    load.apply(lab.bus.address, Load((release(ours),), most=1, patience=CALM))


def demo(lab: Lab, book: Book, scale: Scale) -> None:
    """One round on the simulated host: reads, and changes that cost the kernel nothing."""
    subjects = {KERNTUNE: OUR_READ, FLOOR: FLOOR_READ}
    time_of(lab, book, "read-demo", subjects, Load((), OTHER, seconds=scale.seconds))
    toggle = tuple(set_scheduler(SIMULATED, value) for value in SCHEDULERS)
    for row, user in {"set-demo-root": ROOT, "set-demo-member": MEMBER}.items():
        note_sets(lab, book, row, KERNTUNE, Load(toggle, user, seconds=60.0, most=scale.sets))
        note_sets(lab, book, row, FLOOR, Load((FLOOR_READ,), user, seconds=60.0, most=scale.sets))


def note_sets(lab: Lab, book: Book, row: str, subject: str, changes: Load) -> None:
    """Note p50 and p99 of changes."""
    sample = load.apply(lab.bus.address, changes)
    book.note(row, subject, sample.p50, sample.p99)


def flat(lab: Lab, book: Book, scale: Scale, subjects: dict[str, int]) -> None:
    """What many reads leave behind in each daemon (name -> pid); TuneD gets a tenth, for it takes that much longer."""
    for name, pid in subjects.items():
        call, most = (OUR_READ, scale.flat) if name == KERNTUNE else (THEIR_READ, scale.flat // 10)
        warm_up, real = (Load((call,), OTHER, MANY, 120.0, number) for number in (most // 10, most))
        load.apply(lab.bus.address, warm_up, processes=2)
        before = process.memory(pid).private_dirty
        made = len(load.apply(lab.bus.address, real, processes=2).times)
        book.note("dirty-grown", name, (process.memory(pid).private_dirty - before) * 1024 / made * 1000)


def many_policies(book: Book, scale: Scale) -> None:
    """Passes over 512 CPU policies, in this process, and a remark on where the time of a pass goes."""
    memory, waiting = passes.in_memory(), passes.in_memory(passes.GRACE)
    ours, kernels = [], []
    with passes.on_tmpfs() as files:
        for _ in range(scale.rounds):
            in_memory, on_files = passes.measure(memory), passes.measure(files)
            waited = passes.measure(waiting)
            for row, times in (("pass-waiting", waited), ("pass-memory", in_memory), ("pass-files", on_files)):
                book.note(row, KERNTUNE, times.changing)
                book.note(row, FLOOR, times.writes)
            book.note("pass-same", KERNTUNE, on_files.satisfied)
            book.note("pass-same", FLOOR, on_files.writes)
            kernels.append((on_files.writes + on_files.reads) / passes.COUNT * 1000)
            ours.append(on_files.changing / passes.COUNT * 1000 - kernels[-1])
    what = "of each policy's time the bare writes and reads take {:.0f} us, the engine {:.0f} us"
    book.remark("pass-files", what.format(statistics.median(kernels), statistics.median(ours)))
