"""Calls that anybody may make, as expensive as can be, on a host with 512 CPUs: others are served meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from kerntune.api import names
from kerntune.daemon.demo import demo_host
from kerntune.dbus.messages import MessageFlag, Variant
from kerntune.kernel.simulated import Policy, SimulatedKernel
from tests.hostile.conftest import FIGURES
from tests.hostile.test_fuzz import Call, play

LONGEST = 1.0  # seconds that nobody else is served

SETTINGS = {
    "CPU lists that cover all": [["cpu-governor", f"0-{last}", "performance"] for last in range(1, 1000)],
    "CPU lists that cover few": [["cpu-governor", f"{n},{n + 1}", "performance"] for n in range(195)],
    "globs": [["io-scheduler", f"*{'?' * (n % 50)}{n}*", "none"] for n in range(1000)],
    "too many": [["io-scheduler", f"*a*b*c*d*e*f*{n}*", "none"] for n in range(6000)],
    "stars": [["io-scheduler", "*" * 250, "none"]],
    "a long range": [["cpu-governor", "0-99999999", "performance"]],
}


def large_host() -> SimulatedKernel:
    kernel = demo_host()
    kernel.policies = {f"policy{cpu}": Policy((cpu,)) for cpu in range(512)}
    for number in range(64):
        kernel.plug(f"nvme{number}n2")
    return kernel


@pytest.mark.parametrize("options", [{}, {"unset": True}, {"persist": True}], ids=["set", "unset", "persist"])
@pytest.mark.parametrize("what", SETTINGS)
def test_a_plan_of(what: str, options: dict[str, bool]) -> None:
    gaps: list[float] = []

    async def beat() -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    async def run() -> None:
        beating = asyncio.create_task(beat())
        wanted = {key: Variant("b", value) for key, value in options.items()}
        call = Call(names.MANAGER, "Plan", [SETTINGS[what], wanted], MessageFlag.NONE)
        await play(frozenset(), 1000, [call], large_host())
        beating.cancel()

    asyncio.run(run())
    FIGURES.append(f"a plan of {what}, {options or 'no options'}: nobody else is served for {max(gaps) * 1e3:.0f} ms")
    assert max(gaps) < LONGEST
