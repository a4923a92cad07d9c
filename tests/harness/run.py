"""What `make run` does: the daemon in the foreground on a bus of its own; at the end all that was made for it goes.

BUS=system in the environment takes the host's system bus instead; KERNTUNE_RUN_ONCE=1 ends after the status was shown.
"""

from __future__ import annotations

import grp
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from kerntune.api import names
from kerntune.api.contract import interface_files
from kerntune.dbus import standard
from tests.harness.daemon import Daemon, DaemonError
from tests.harness.polkitd import GROUP, POLKIT_FILES, Bus, Polkitd, installed
from tests.harness.privatebus import POLICY, package_bus

SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READY_LIMIT: Final = 60.0  # seconds
SIMULATED: Final = "simulated (--demo), nothing real is changed; root gets the real one where /proc/sys is writable"

NAME, ROOT = names.BUS_NAME, names.ROOT

# Interface, busctl's words; shown when the contract has the interface.
READS: Final = (
    (names.HUGE_PAGES, f"get-property {NAME} {ROOT} {NAME}.HugePages Pools"),
    (names.IO_SCHEDULER, f"get-property {NAME} {ROOT} {NAME}.IoScheduler Devices"),
    (names.MEMORY, f"get-property {NAME} {ROOT} {NAME}.Memory OvercommitMode"),
    (names.MANAGER, f"introspect {NAME} {ROOT}"),
    (names.MANAGER, f"--json=short call {NAME} {ROOT} {NAME}.Manager Describe"),
)
CHANGES: Final = (
    (names.HUGE_PAGES, f'call {NAME} {ROOT} {NAME}.HugePages SetCount "tta{{sv}}" 0 128 0'),
    (names.IO_SCHEDULER, f'call {NAME} {ROOT} {NAME}.IoScheduler SetScheduler "ssa{{sv}}" "nvme*" none 0'),
    (names.CPU_GOVERNOR, f'call {NAME} {ROOT} {NAME}.CpuGovernor SetGovernor "ssa{{sv}}" "*" performance 0'),
    (names.MEMORY, f'call {NAME} {ROOT} {NAME}.Memory SetOvercommit "sua{{sv}}" always 95 0'),
    (names.MANAGER, f'call {NAME} {ROOT} {NAME}.Manager Unset "a(ss)a{{sv}}" 1 hugepages "*" 0'),
    (names.MANAGER, f"monitor {NAME}"),
)


@dataclass(frozen=True, slots=True)
class SystemBus:
    """The bus the host has already."""

    address: str = SYSTEM_BUS


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def on_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def leave(number: int, _frame: FrameType | None) -> None:
    """Unwind before the daemon runs, and with that clean up."""
    raise SystemExit(128 + number)


def bus_asked_for(stack: ExitStack) -> Bus:
    """Return the bus asked for; we may own the name there, and as root polkit judges everybody."""
    root = os.geteuid() == 0
    if os.environ.get("BUS") == "system":
        bus: Bus = SystemBus(os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", SYSTEM_BUS))
        if root:
            stack.enter_context(installed({POLICY: Path("/etc/dbus-1/system.d")}))
            stack.enter_context(installed(POLKIT_FILES))
            reload_policy(bus)
        say(f"bus:    the system's, {bus.address}")
        return bus
    bus = stack.enter_context(package_bus())
    say(f"bus:    private, {bus.address}")
    say(f"polkit: {private_polkit(stack, bus)}")
    return bus


def private_polkit(stack: ExitStack, bus: Bus) -> str:
    """Start polkitd where that can be done; says what came of it."""
    only_root = "root alone may change anything"
    if os.geteuid():
        return "none, for it takes root to start; you and root may change everything"
    try:
        stack.enter_context(Polkitd(bus))
    except (OSError, RuntimeError) as error:
        return f"none, {only_root}: {error}"
    return f"a polkitd of its own, with our policy and the rule for group {GROUP}"


def reload_policy(bus: Bus) -> None:
    """Have the bus read its policy now; it would notice by itself, but later."""
    bus_name = standard.BUS
    call = ["busctl", f"--address={bus.address}", "call", bus_name, standard.BUS_PATH, bus_name, "ReloadConfig"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        raise SystemExit(f"no system bus at {bus.address}: {done.stderr.strip()}")


def host_is_real() -> bool:
    """Return True if this machine's kernel can be tuned: in a container its sysctls are read-only, for root too."""
    try:
        os.close(os.open("/proc/sys/vm/overcommit_memory", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return os.geteuid() == 0


def lines(bus: Bus) -> list[str]:
    """Return command lines for a second terminal."""
    there = {file.stem for file in interface_files()}
    user = os.environ.get("SUDO_USER", "")
    sudo = "sudo --preserve-env=DBUS_SYSTEM_BUS_ADDRESS " if user and not is_member(user) else ""
    prefix = f"DBUS_SYSTEM_BUS_ADDRESS={shlex.quote(bus.address)}"
    json = " | jq -r '.data[0] | fromjson'" if shutil.which("jq") else ""
    shown = [f"{prefix} {Path(sys.executable).with_name('kerntune')} status"]
    for interface, words in READS:
        shown += [f"{prefix} busctl {words}{json if '--json' in words else ''}"] if interface in there else []
    for interface, words in CHANGES:
        shown += [f"{prefix} {sudo}busctl {words}"] if interface in there else []
    return shown


def is_member(user: str) -> bool:
    try:
        return user in grp.getgrnam(GROUP).gr_mem
    except KeyError:
        return False


def show_status(daemon: Daemon) -> None:
    say("\n$ kerntune status")
    try:
        done = subprocess.run([sys.executable, "-m", "kerntune.cli", "status"], env=daemon.env, timeout=20, check=False)
        if done.returncode > 1:  # 1 says that not all is well
            say(f"(kerntune status ended with {done.returncode})")
    except subprocess.TimeoutExpired:
        say("(kerntune status did not answer within 20 s)")


def run(stack: ExitStack) -> int:
    """Start everything, show it, follow the daemon to its end; its exit status."""
    bus = bus_asked_for(stack)
    real = host_is_real()
    say(f"host:   {'this machine: values that are set here are really set' if real else SIMULATED}")
    daemon = Daemon(bus, *([] if real else ["--demo"]), stream=True, limit=READY_LIMIT)
    say(f"files:  {daemon.config} stands for /etc/kerntune (kerntune config check {daemon.config})")
    try:
        stack.enter_context(daemon)
    except DaemonError as error:
        say(str(error))
        return exit_status(daemon) or 1
    on_signals(lambda _number, _frame: daemon.process.terminate())
    show_status(daemon)
    say("\nIn a second terminal:")
    for line in lines(bus):
        say(f"  {line}")
    if real:
        say("\nValues that are set STAY after exit: unset them before (`kerntune unset`, Manager.Unset) to get the old")
        say("ones back; this run's record of them ends with it.")
    if os.environ.get("KERNTUNE_RUN_ONCE", "0") not in ("", "0"):
        daemon.process.terminate()
    else:
        say("\nThe daemon's log; Ctrl-C ends it.")
    daemon.process.wait()
    return exit_status(daemon)


def exit_status(daemon: Daemon) -> int:
    """Return the exit status as a shell says it: 128 + N after signal N."""
    code = daemon.process.returncode
    return code if code >= 0 else 128 - code


def main() -> int:
    on_signals(leave)
    with ExitStack() as stack:
        try:
            return run(stack)
        finally:
            # What follows is short, and must not be cut off.
            on_signals(signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
