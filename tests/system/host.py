"""Asks kerntune on a machine, and the kernel beside it, as the users of that machine do; decides nothing.

It also brings the machine's memory into states that are hard to reach: fragmented, and huge pages in use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from kerntune.api.document import Outcome
from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.harness.host import TUNED, chosen
from tests.system.machine import Machine
from tests.system.qmp import MachineError
from tests.system.shell import LIMIT, Job

UNIT: Final = "kerntuned.service"
TWO_MIB: Final = 2048  # kB, as in the names of the kernel's directories
ONE_GIB: Final = 1 << 20
CPUFREQ: Final = "/sys/devices/system/cpu/cpufreq"
DRIVE: Final = "/sys/block/nvme0n1/queue"  # of the first drive that is plugged in
RESET: Final = "Reset 'a{sv}' 0"
RELOAD: Final = "Reload 'a{sv}' 0"
BEGUN: Final = "Begun"
Setting = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call: outcomes, or the words of the refusal."""

    changed: bool
    outcomes: tuple[Outcome, ...]
    refusal: str

    @property
    def short(self) -> list[tuple[str, str, str]]:
        """Return instance, state and reason of each outcome."""
        return [(row.instance, row.state, row.reason) for row in self.outcomes]


def listening(vm: Machine, interface: str) -> Job:
    """Start to hear the signals of one interface: the job prints each as a line of JSON, as busctl has it."""
    ear = vm.spawn(f"exec busctl --json=short --match=\"type='signal',interface='{interface}'\" monitor 2>&1")
    # It hears when it has heard a signal of ours: where it prints JSON, systemd 257 does not say that it has begun.
    deadline = time.monotonic() + LIMIT
    while BEGUN not in ear.out:
        if ear.ended or time.monotonic() > deadline:
            raise MachineError(f"busctl does not hear: {ear.out}")
        vm.check(["busctl", "emit", "/", interface, BEGUN])
    return ear


def call(member: str, *options: str) -> str:
    """Return the shell's line that calls a method of the manager; `member` may have signature and arguments."""
    return " ".join(["busctl", *options, "call", BUS_NAME, ROOT, MANAGER, member])


def plug(vm: Machine, name: str) -> None:
    """Plug the machine's first NVMe drive in, and return when the guest offers its settings."""
    vm.nvme_add(name)
    vm.wait_for(f"[ -e {DRIVE}/scheduler ] && [ -e {DRIVE}/read_ahead_kb ]")


class Host:
    """Asks the machine's daemon through busctl, and reads the kernel's files without it."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm

    # what a user of it asks

    def set(self, *settings: Setting, user: str = "root", session: bool = False, **options: bool) -> Answer:
        """Set claims; an option is written as `persist=True`, `allow_partial=True`."""
        return self._change("Set", settings, 3, user=user, session=session, options=options)

    def plan(self, *settings: Setting, user: str = "root", **options: bool) -> Answer:
        """Ask what `set` would do."""
        return self._change("Plan", settings, 3, user=user, session=False, options=options)

    def unset(self, *what: tuple[str, str], user: str = "root", session: bool = False, **options: bool) -> Answer:
        """Withdraw the claims of these tunables and instances."""
        return self._change("Unset", what, 2, user=user, session=session, options=options)

    def describe(self, *, user: str = "root") -> dict[str, Any]:
        """Return the daemon's description of the host."""
        text = self.vm.check(["busctl", "--json=short", "call", BUS_NAME, ROOT, MANAGER, "Describe"], user=user)
        document: dict[str, Any] = json.loads(json.loads(text)["data"][0])
        return document

    def get(self, interface: str, name: str, *, user: str = "root") -> Any:
        """Return a property of the bus object."""
        words = ["busctl", "--json=short", "get-property", BUS_NAME, ROOT, interface, name]
        return json.loads(self.vm.check(words, user=user))["data"]

    def target(self, tunable: str, instance: str = "") -> dict[str, Any]:
        """Return one target of the description."""
        rows = self.describe()["targets"]
        (row,) = (row for row in rows if (row["tunable"], row["instance"]) == (tunable, instance))
        found: dict[str, Any] = row
        return found

    def reload(self) -> None:
        """Have the daemon read its configuration again; `kerntune reload` would take seconds to start."""
        self.vm.check(call(RELOAD))

    def claims(self) -> dict[str, str]:
        """Return the value of each claim by the claim's id."""
        return {claim["id"]: claim["value"] for claim in self.describe()["claims"]}

    def release(self) -> dict[str, Any]:
        """Withdraw every claim, the persistent ones too; return the description that is left."""
        text = self.vm.check(f"{call(RESET)} > /dev/null && {call('Describe', '--json=short')}")
        document: dict[str, Any] = json.loads(json.loads(text)["data"][0])
        assert document["claims"] == [] or {claim["origin"] for claim in document["claims"]} == {"config"}
        return document

    def _change(
        self,
        member: str,
        rows: Sequence[Sequence[str]],
        width: int,
        *,
        user: str,
        session: bool,
        options: dict[str, bool],
    ) -> Answer:
        given = [word for name, value in options.items() for word in (name.replace("_", "-"), "b", str(value).lower())]
        settings = [word for row in rows for word in row]
        words = ["busctl", "--json=short", "--", "call", BUS_NAME, ROOT, MANAGER, member, f"a({'s' * width})a{{sv}}"]
        words += [str(len(rows)), *settings, str(len(options)), *given]
        result = self.vm.run(words, user=user, session=session)
        if result.status:
            return Answer(changed=False, outcomes=(), refusal=result.err.strip() or f"status {result.status}")
        changed, outcomes = json.loads(result.out)["data"]
        return Answer(changed=changed, outcomes=tuple(Outcome(*row) for row in outcomes), refusal="")

    # its service

    def unit(self, name: str, unit: str = UNIT) -> str:
        """Return a property of a unit, as systemd shows it."""
        return self.vm.check(["systemctl", "show", "--value", f"--property={name}", unit])

    @property
    def pid(self) -> int:
        """Return the daemon's process id, 0 when it does not run."""
        return int(self.unit("MainPID"))

    def wait_restarted(self, former: int, limit: float = 60) -> int:
        """Wait until the daemon is ready as another process than `former`; return its process id."""
        # By their names, for the order in which systemd tells them differs.
        look = f'eval "$(systemctl show --property=MainPID,ActiveState {UNIT})"'
        # Once systemd starts it by itself, another start only waits for that; asking over and over would slow it down.
        join = f"[ $ActiveState != activating ] || {{ systemctl start {UNIT}; false; }}"
        self.vm.wait_for(f"{look}; {join} && [ $MainPID -ne {former} ] && [ $ActiveState = active ]", limit)
        return self.pid

    def journal(self, after: str = "") -> str:
        """Return what the daemon has logged in this boot, or since a place that `journal_end` gave."""
        since = f"--after-cursor='{after}'" if after else ""
        # What was sent to the journal's socket may still wait there.
        return self.vm.check(f"journalctl --sync && journalctl --output=cat --quiet --unit={UNIT} {since}")

    def journal_end(self) -> str:
        """Return the place where the journal ends now: other tests may have used the machine before."""
        said = self.vm.check("journalctl --sync && journalctl --quiet --lines=1 --show-cursor --output=cat")
        return said.rpartition("-- cursor: ")[2]

    # the kernel

    def pages(self, node: int | None = None, *, size: int = TWO_MIB, which: str = "nr") -> int:
        """Count the huge pages of a size in kB, of the host or of one node; `which` may be free or surplus too."""
        where = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
        return int(self.vm.read(f"{where}/hugepages/hugepages-{size}kB/{which}_hugepages"))

    def pools(self) -> dict[str, int]:
        """Return the number and the surplus of 2 MiB pages, of the host and each node, by the path in /sys."""
        folders = ("kernel/mm", "devices/system/node/node*")
        files = [f"{folder}/hugepages/hugepages-2048kB/{which}_hugepages"
                 for folder in folders for which in ("nr", "surplus")]  # fmt: skip
        lines = self.vm.check(f"cd /sys && grep . {' '.join(files)}")
        return {path: int(number) for path, number in (line.split(":") for line in lines.splitlines())}

    def snapshot(self) -> dict[str, str]:
        """Return what each file that kerntuned may write holds, by its path below the root."""
        lines = self.vm.check(f"cd / && grep -s . {' '.join(TUNED)} || :").splitlines()
        return {path: chosen(text) for path, text in (line.split(":", 1) for line in lines)}

    def governor(self, policy: int) -> str:
        """Return the CPU governor of one policy."""
        return self.vm.read(f"{CPUFREQ}/policy{policy}/scaling_governor")

    def scheduler(self, device: str) -> str:
        """Return the I/O scheduler that a drive uses."""
        words = self.vm.read(f"/sys/block/{device}/queue/scheduler").split()
        return next((word.strip("[]") for word in words if word.startswith("[")), " ".join(words))

    def overcommit(self) -> tuple[int, int]:
        """Return the kernel's number of the overcommit mode, and the ratio."""
        mode, ratio = self.vm.check("cat /proc/sys/vm/overcommit_memory /proc/sys/vm/overcommit_ratio").split()
        return int(mode), int(ratio)

    def meminfo(self) -> dict[str, int]:
        """Return the rows of /proc/meminfo in bytes, or as counts where a row has no unit."""
        rows = (line.split() for line in self.vm.read("/proc/meminfo").splitlines())
        return {row[0].rstrip(":"): int(row[1]) * (1024 if row[2:] else 1) for row in rows}

    def set_online(self, cpu: int, *, online: bool) -> None:
        """Take a CPU offline, or bring it back."""
        self.vm.check(f"echo {int(online)} > /sys/devices/system/cpu/cpu{cpu}/online")
        state = self.vm.read("/sys/devices/system/cpu/online")
        if (str(cpu) in state) is not online:
            raise MachineError(f"CPUs online: {state}")


SPOILT: Final = 600  # MiB: more than the node keeps for what runs there
BESIDE: Final = 100  # MiB that stay as they are


def fragment(host: Host, node: int) -> Job:
    """Leave a node with some 700 MiB free of which few make huge pages; kill the job to undo that.

    The rest of the node goes to the pool of 2 MiB pages, whose number is then the host's own.
    """
    where = f"/sys/devices/system/node/node{node}"
    # From Linux 6.7 on, the lists of the CPUs keep up to an eighth of the memory when much of it is freed. It counts as
    # free nowhere, and comes back by some MiB a second.
    host.vm.check("sysctl --quiet vm.percpu_pagelist_high_fraction=100000")
    free = int(host.vm.check(f"awk '/MemFree/ {{print int($4 / 1024)}}' {where}/meminfo"))
    pages = host.pages(node) + (free - SPOILT - BESIDE) // 2
    host.vm.check(f"echo {pages} > {where}/hugepages/hugepages-2048kB/nr_hugepages")
    spoiler = host.vm.spawn(f"exec numactl --membind={node} fragment {SPOILT}")
    spoiler.wait_output("ready")
    return spoiler


# For the shell: `hold take NODE NUMBER` and `hold give NODE NUMBER` print how many pages the program then has there.
HOLDER: Final = "/run/holder"
HOLD: Final = f'hold() {{ echo "$@" > {HOLDER}/ask; read -r had < {HOLDER}/answer; echo "holds $had"; }}'


@contextmanager
def holder(vm: Machine) -> Iterator[Job]:
    """Run a program of alice's that holds huge pages on the nodes that `hold` names; it ends with the context."""
    vm.check(f"install -d -o alice {HOLDER}")
    program = vm.spawn(["hold-pages", HOLDER], user="alice")
    program.wait_output("ready")
    try:
        yield program
    finally:
        program.kill(9)
        program.wait()
