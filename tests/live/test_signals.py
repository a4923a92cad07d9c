"""What listeners hear of a pass: Changed once, PropertiesChanged once for each interface whose values differ."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence

from kerntune.api import names
from tests.harness.daemon import Daemon
from tests.live.users import LIMIT, User


def test_a_pass_is_announced_once(daemon: Daemon, member: User, other: User, loops: Sequence[str]) -> None:
    """To everybody who listens: one Changed, and one PropertiesChanged for each interface whose values differ."""
    start = other.get(names.MANAGER, "Generation")
    ear = other.listen()
    member.set(
        ("io-scheduler", "loop0", "mq-deadline"), ("io-scheduler", "loop1", "mq-deadline"), ("overcommit", "", "always")
    )
    before_marker = other.get(names.MANAGER, "Generation")
    member.set_scheduler("loop3", "mq-deadline")
    last = before_marker + 1
    # Of one pass, Changed comes last.
    heard = other.heard(ear, lambda so_far: any(h.signal == "Changed" and h.args[0] == last for h in so_far))

    announced = [h.args for h in heard if h.signal == "Changed" and h.args[0] > start]
    assert [generation for generation, _cause, _outcomes in announced] == list(range(start + 1, last + 1))
    assert [cause for _generation, cause, _outcomes in announced] == ["Set", "Set", "SetScheduler"]
    rows = {(row[0], row[1]): row[2:7] for _g, cause, outcomes in announced if cause == "Set" for row in outcomes}
    assert rows["io-scheduler", "loop0"] == ["mq-deadline", "none", "mq-deadline", "satisfied", "ok"]
    assert rows["io-scheduler", "loop1"] == ["mq-deadline", "none", "mq-deadline", "satisfied", "ok"]
    assert rows["overcommit", ""][0] == "always:95"

    properties = [h.args[:2] for h in heard if h.signal == "PropertiesChanged"]
    devices = [values["Devices"] for interface, values in properties if interface == names.IO_SCHEDULER]
    assert [(row["loop1"][0], row["loop3"][0]) for row in devices] == [("mq-deadline", "none"), ("mq-deadline",) * 2]
    assert devices[-1] == other.get(names.IO_SCHEDULER, "Devices")
    # The guard begins to watch with it, and says so when it does.
    memory = [values for interface, values in properties if interface == names.MEMORY]
    assert [values["OvercommitMode"] for values in memory if "OvercommitMode" in values] == ["always"]


def test_root_can_monitor_with_busctl(daemon: Daemon, member: User, root: User, loops: Sequence[str]) -> None:
    monitor = subprocess.Popen(
        ["busctl", "monitor", names.BUS_NAME],
        env=root.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1,
    )  # fmt: skip
    assert monitor.stdout is not None
    deadline = threading.Timer(LIMIT, monitor.kill)
    deadline.start()
    try:
        until(monitor.stdout.readline, "Monitoring bus message stream")
        member.set_scheduler("loop0", "mq-deadline")
        until(monitor.stdout.readline, "Member=Changed")
        until(monitor.stdout.readline, '"io-scheduler"')
    finally:
        deadline.cancel()
        monitor.kill()
        monitor.wait(LIMIT)
        monitor.stdout.close()


def until(read: Callable[[], str], wanted: str) -> None:
    """Read lines up to the one that holds the text."""
    seen = []
    while text := read():
        seen.append(text)
        if wanted in text:
            return
    raise AssertionError(f"no {wanted} in {''.join(seen)}")
