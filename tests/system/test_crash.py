"""The service killed and stopped under load: systemd brings it back, and nothing that was answered is lost."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.system.host import Host
from tests.system.machine import Machine

pytestmark = pytest.mark.own_machine

KILLS: Final = 5
KILLS_IN_THE_SOAK: Final = 200
LATEST: Final = 1.0  # seconds from the first call to the kill
LOG: Final = "/run/load.log"
HURRY: Final = "/run/systemd/system/kerntuned.service.d/hurry.conf"
# Every other claim is persistent, too; a line before each call and one after its answer.
LOAD: Final = f"""
number=$1
while :; do
    number=$((number + 1))
    pages=$((8 + number % 40))
    echo "asked $pages" >> {LOG}
    busctl --quiet call {BUS_NAME} {ROOT} {MANAGER} Set 'a(sss)a{{sv}}' 1 hugepages 2M $pages \\
        1 persist b $([ $((number % 2)) = 0 ] && echo true || echo false) && echo "answered $pages" >> {LOG}
done
"""


# What was asked and answered, and the pool, when no call of the load is on its way any more.
LEFT: Final = f"while pgrep -x busctl > /dev/null; do :; done; cat {LOG}; cat /proc/sys/vm/nr_hugepages; : > {LOG}"


def killed_under_load(host: Host, kills: int) -> None:
    """Kill the daemon under load: the pool is what it answered last, or what was asked since without an answer."""
    seed = random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    chance, vm = random.Random(seed), host.vm
    vm.check(f": > {LOG}")
    restarts, former, before = int(host.unit("NRestarts")), host.pid, "0"
    for number in range(kills):
        load = vm.spawn(["bash", "-c", LOAD, "load", str(100 * number)], user="root")
        time.sleep(chance.uniform(0.1, LATEST))  # the moment is what is tried
        vm.check(f"kill -KILL {former}")
        load.kill(signal.SIGKILL)
        load.wait()
        former = host.wait_restarted(former)
        *lines, pages = vm.check(LEFT).splitlines()
        said = [line.split() for line in lines]
        answers = [at for at, (word, _) in enumerate(said) if word == "answered"]
        # Of the round before is what was in force when the first call of this one was not answered. After the kill
        # another may have been begun.
        last, unanswered = (said[answers[-1]][1], said[answers[-1] + 1 :]) if answers else (before, said)
        allowed = {last, *(wanted for _, wanted in unanswered)}
        assert pages in allowed, f"kill {number}: {said[-4:]}, {before} before"
        if answers or before != "0":
            assert host.target("hugepages", "2M")["requested"] == pages
        before = pages
    assert int(host.unit("NRestarts")) - restarts >= kills
    host.release()
    assert host.pages() == 0, "the baseline is still the host's own"


@pytest.mark.timeout(300)
def test_killed_at_random_moments(host: Host) -> None:
    killed_under_load(host, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_killed_very_often(host: Host) -> None:
    killed_under_load(host, KILLS_IN_THE_SOAK)


@pytest.fixture
def impatient(host: Host) -> Iterator[Host]:
    """Give the service a watchdog that waits for 5 seconds instead of 30."""
    host.vm.write(HURRY, "[Service]\nWatchdogSec=5\n")
    host.vm.check("systemctl daemon-reload && systemctl restart kerntuned.service")
    yield host
    host.vm.check(f"rm {HURRY} && systemctl daemon-reload && systemctl restart kerntuned.service")


@pytest.mark.every_system
def test_the_watchdog_ends_a_daemon_that_hangs(impatient: Host, vm: Machine) -> None:
    assert impatient.unit("WatchdogUSec") == "5s"
    assert not impatient.set(("hugepages", "2M", "12"), user="bob").refusal
    former = impatient.pid
    vm.check(f"kill -STOP {former}")
    impatient.wait_restarted(former)
    assert impatient.claims() == {"runtime:hugepages@2M": "12"}
    assert "watchdog" in vm.check("journalctl --output=cat --unit=kerntuned.service").lower()
