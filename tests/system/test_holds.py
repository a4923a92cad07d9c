"""Holds on a real host: two users who both want everything, and whoever is killed leaves what the claims say."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Iterator

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.system.host import UNIT, Host
from tests.system.machine import Machine
from tests.system.shell import Job

pytestmark = pytest.mark.own_machine

PART = float(os.environ.get("KERNTUNE_SOAK", "1"))
SEQUENCES, EVENTS = int(20 * PART), 7
PAGES = (8, 24, 40)
GOVERNORS = ("powersave", "schedutil", "performance")  # the slowest first
DUST = 60.0  # seconds, emulated
BUS = "dbus.service"
COUNT = f"busctl get-property {BUS_NAME} {ROOT} {MANAGER} Holds"


@pytest.fixture(scope="module", autouse=True)
def members(vm: Machine) -> Iterator[None]:
    vm.check("for user in alice bob; do adduser --quiet $user kerntune; done")
    yield
    vm.check("gpasswd --delete alice kerntune")


class Scene:
    """Keeps the clients that hold something on a host, and the pages and governor of each."""

    def __init__(self, host: Host, vm: Machine) -> None:
        self.host, self.vm = host, vm
        self.own = host.pages(), host.governor(0)
        self.clients: dict[Job, tuple[int, str]] = {}

    def hold(self, user: str, pages: int, governor: str) -> None:
        words = ["kerntune", "hold", "--json", f"hugepages@2M={pages}", f"cpu-governor={governor}"]
        job = self.vm.spawn(words, user=user)
        job.wait_output('"event": "held"')
        self.clients[job] = pages, governor

    def kill_client(self) -> None:
        job = next(iter(self.clients))
        del self.clients[job]
        job.kill(9)
        job.wait()

    def kill_daemon(self) -> None:
        pid = self.host.pid
        self.vm.check(f"kill -9 {pid}")
        self.host.wait_restarted(pid)

    def kill_both(self) -> None:
        pid, job = self.host.pid, next(iter(self.clients))
        del self.clients[job]
        self.vm.check(f"kill -9 {pid} {job.pid}")
        self.host.wait_restarted(pid)

    def kill_bus(self) -> None:
        pid = self.host.pid
        self.vm.check(f"systemctl kill --signal=KILL {BUS}")
        self.clients.clear()
        self.host.wait_restarted(pid)

    def settle(self) -> float:
        """Wait until values and holds are those of the clients that are left; return the seconds that took."""
        began = time.monotonic()
        pages, governor = self.own
        pages += sum(held for held, _ in self.clients.values())
        governor = max((held for _, held in self.clients.values()), key=GOVERNORS.index, default=governor)
        look = "cat /proc/sys/vm/nr_hugepages /sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
        there = f'[ "$({look} | xargs)" = "{pages} {governor}" ]'
        self.vm.wait_for(f'{there} && [ "$({COUNT} | cut -d " " -f 2)" = {len(self.clients)} ]', DUST)
        return time.monotonic() - began


def play(scene: Scene, chance: random.Random, events: int) -> list[str]:
    """Let random events happen, and wait after each until the values are right."""
    story = []
    for _ in range(events):
        what = ["hold", *(["hold"] if not scene.clients else ["kill_client", "kill_daemon", "kill_both"])]
        event = chance.choice(what)
        if event == "hold":
            scene.hold(chance.choice(["alice", "bob", "root"]), chance.choice(PAGES), chance.choice(GOVERNORS))
        else:
            getattr(scene, event)()
        story.append(f"{event} {scene.settle():.1f} s")
    return story


@pytest.mark.timeout(300)
def test_whoever_is_killed_the_values_are_those_of_who_is_left(host: Host, vm: Machine) -> None:
    """Three clients hold at once; then the test kills a client, the daemon, both, and the bus."""
    scene = Scene(host, vm)
    for user, pages, governor in (("bob", 8, "performance"), ("alice", 24, "powersave"), ("root", 40, "schedutil")):
        scene.hold(user, pages, governor)
        scene.settle()
    for event in (scene.kill_client, scene.kill_daemon, scene.kill_both):
        event()
        scene.settle()
    scene.hold("bob", 8, "performance")
    scene.kill_bus()
    scene.settle()
    vm.check(f"systemctl restart systemd-logind polkit; systemctl is-active {UNIT}")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_sequences(host: Host, vm: Machine) -> None:
    chance = random.Random(
        seed := int(os.environ.get("KERNTUNE_TEST_SEED", "0")) or random.SystemRandom().getrandbits(32)
    )
    sys.stdout.write(f"KERNTUNE_TEST_SEED={seed}\n")
    for number in range(SEQUENCES):
        scene = Scene(host, vm)
        sys.stdout.write(f"{number}: {', '.join(play(scene, chance, EVENTS))}\n")
        while scene.clients:
            scene.kill_client()
        scene.settle()


@pytest.mark.timeout(300)
def test_two_users_who_both_want_everything(host: Host, vm: Machine) -> None:
    """One user gets half of what can be held, so the second has pages too, whoever comes first."""
    everything = host.meminfo()["MemTotal"] >> 21
    for users in (("alice", "bob"), ("bob", "alice")):
        scene = Scene(host, vm)
        for user in users:
            asked = vm.run(["kerntune", "hold", f"hugepages@2M={everything << 1}M"], user=user)
            assert asked.status == 1
            possible = re.search(r"(\d+) MiB possible: uid \d+ holds 0 MiB, and one user may hold", asked.err)
            assert possible, asked.err
            # A page or two less: what else runs takes some memory meanwhile.
            scene.hold(user, (int(possible[1]) >> 1) - 8, "performance")
            scene.settle()
        first, second = (pages for pages, _ in scene.clients.values())
        assert second > first // 2 > 32
        while scene.clients:
            scene.kill_client()
        scene.settle()
