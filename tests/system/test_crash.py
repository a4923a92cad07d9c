"""The service killed and stopped under load: systemd brings it back, and nothing that was answered is lost."""

from __future__ import annotations

import random
import signal
import sys
import time
from typing import Final

import pytest

from kerntune.bus.names import BUS_NAME, MANAGER, ROOT
from tests.system.host import Host
from tests.system.machine import Machine

KILLS: Final = 20
KILLS_IN_THE_SOAK: Final = 200
LATEST: Final = 2.0  # seconds from the first call to the kill
LOG: Final = "/run/load.log"
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


def killed_under_load(host: Host, kills: int) -> None:
    """After each restart the pool is what was answered last, or what was asked after it and not answered."""
    seed = random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    chance, vm = random.Random(seed), host.vm
    vm.check(f": > {LOG}")
    restarts = int(host.unit("NRestarts"))
    for number in range(kills):
        former = host.pid
        load = vm.spawn(["bash", "-c", LOAD, "load", str(100 * number)], user="root")
        time.sleep(chance.uniform(0.1, LATEST))  # the moment is what is tried
        vm.check(f"kill -KILL {former}")
        load.kill(signal.SIGKILL)
        load.wait()
        host.wait_restarted(former)
        said = [line.split() for line in vm.read(LOG).splitlines()]
        answered = [pages for word, pages in said if word == "answered"]
        allowed = {*answered[-1:], said[-1][1]} if said else set()
        vm.wait_for("! pgrep -x busctl")
        assert str(host.pages()) in allowed | (set() if answered else {"0"}), f"kill {number}: {said[-4:]}"
        wished = host.target("hugepages", "2M")["requested"]
        assert wished == (str(host.pages()) if answered else wished)
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


@pytest.mark.timeout(180)
def test_the_watchdog_ends_a_daemon_that_hangs(host: Host, vm: Machine) -> None:
    assert not host.set(("hugepages", "2M", "12"), user="bob").refusal
    former = host.pid
    vm.check(f"kill -STOP {former}")
    host.wait_restarted(former, 90)
    assert host.claims() == {"runtime:hugepages@2M": "12"}
    assert "watchdog" in vm.check("journalctl --output=cat --unit=kerntuned.service").lower()
