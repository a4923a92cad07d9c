"""kerntune run under a real systemd: as a service that says when it is ready, with its users and their limits.

And whichever side stops, crashes or restarts: the pools end as they were.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.system.host import CPUFREQ, UNIT, Host
from tests.system.machine import Machine
from tests.system.shell import Result

MANUAL: Final = Path(__file__).parents[2] / "docs/run.md"
FOLDER: Final = "/run/model"
LLAMA: Final = "llama.service"
SERVER: Final = f"/usr/local/bin/model-server {FOLDER}"
PAGES: Final = 24  # the server takes 16 of them, and one or two for its small blocks
UNITS: Final = "/etc/systemd/system"
REFUSED: Final = 125


def recipe(**changes: str) -> str:
    """Return the drop-in of the manual for our server, which is smaller; `changes` are more lines for the service."""
    found = re.search(r"# systemctl edit llama.service\n((?: {4}.+\n)+)", MANUAL.read_text())
    assert found
    text = textwrap.dedent(found[1])
    for old, new in (("64G", f"{2 * PAGES}M"), ("/usr/bin/llama-server --model /models/llama.gguf", SERVER)):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text + "".join(f"{name}={value}\n" for name, value in changes.items())


def install(vm: Machine, text: str) -> None:
    """Give the server's unit a drop-in."""
    vm.write(f"{UNITS}/{LLAMA}.d/override.conf", text)
    vm.check("systemctl daemon-reload")


@pytest.fixture(scope="module", autouse=True)
def units(vm: Machine) -> Iterator[None]:
    vm.write(f"{UNITS}/{LLAMA}", f"[Service]\nType=notify\nExecStart={SERVER}\n")
    vm.check(f"install -d -m 777 {FOLDER}")
    yield
    vm.check(f"rm -r {FOLDER} {UNITS}/{LLAMA}*; systemctl daemon-reload")


@pytest.fixture(autouse=True)
def nothing_left(host: Host) -> Iterator[None]:
    """Check that a test leaves no page, no hold and no unit."""
    governor = host.governor(0)
    yield
    host.vm.check(f"systemctl start {UNIT}; systemctl stop {LLAMA}; systemctl reset-failed; rm -f {FOLDER}/*")
    host.vm.wait_for("[ $(cat /proc/sys/vm/nr_hugepages) = 0 ]")
    assert holds(host) == []
    assert host.governor(0) == governor


def holds(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.describe()["holds"]
    return found


def facts(vm: Machine) -> dict[str, Any]:
    """Return what the server was given, once it has said so."""
    vm.wait_for(f"[ -s {FOLDER}/facts ]")
    found: dict[str, Any] = json.loads(vm.read(f"{FOLDER}/facts"))
    return found


def pid(host: Host) -> int:
    return int(host.unit("MainPID", LLAMA))


def feed(host: Host) -> None:
    """Have the server feed its watchdog, and wait until systemd has heard of it."""
    look = f"systemctl show --value --property=WatchdogTimestampMonotonic {LLAMA}"
    before = int(host.vm.check(look))
    host.vm.check(f"echo feed > {FOLDER}/ask")
    host.vm.wait_for(f"[ $({look}) -gt {before} ]")


def wait_for_the_next(host: Host, main: int) -> None:
    """Wait until systemd has started the server again, with its pages."""
    look = f"main=$(systemctl show --value --property=MainPID {LLAMA}); [ $main != {main} ]"
    host.vm.wait_for(f'{look} && grep -q "\\"parent\\": $main," {FOLDER}/facts')
    assert host.unit("NRestarts", LLAMA) == "1"
    assert host.pages() == PAGES


def service(vm: Machine, command: str, *properties: str) -> Result:
    """Run a command in a service with these properties to its end."""
    options = " ".join(f"--property={each}" for each in properties)
    return vm.run(f"systemd-run --quiet --pipe --wait --collect {options} {command}")


# Its life as a service


@pytest.mark.every_system
def test_the_drop_in_of_the_manual(host: Host) -> None:
    vm = host.vm
    install(vm, recipe(WatchdogSec="600"))
    vm.check(f"systemctl start --no-block {LLAMA}")
    given = facts(vm)
    main = pid(host)
    assert host.unit("ActiveState", LLAMA) == "activating"
    assert host.pages() == PAGES
    assert PAGES - host.pages(which="free") >= 16
    assert given["parent"] == main
    assert "/usr/bin/kerntune" in vm.check(f"tr '\\0' ' ' < /proc/{main}/cmdline")
    assert given["environment"]["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=2"
    vm.check(f"echo ready > {FOLDER}/ask")
    vm.wait_for(f"[ $(systemctl is-active {LLAMA}) = active ]")
    assert pid(host) == main
    assert int(given["environment"]["WATCHDOG_PID"]) == given["pid"] != main
    feed(host)
    vm.check(f"systemctl stop {LLAMA}")
    assert host.pages() == 0
    assert vm.read(f"{FOLDER}/signals").split() == [str(main)]
    assert host.unit("Result", LLAMA) == "success"
    said = vm.check(f"journalctl --sync; journalctl --quiet --output=cat --unit={LLAMA}")
    assert "held while it runs: hugepages@2M=+48M (24 x 2M)" in said
    assert f"{SERVER.split()[0]} ended with status 0" in said
    assert "of the heap on huge pages" in said


def test_a_server_without_a_handler_for_sigterm_is_stopped_without_a_failure(host: Host) -> None:
    vm = host.vm
    install(vm, recipe(Type="simple").replace(SERVER, "/usr/bin/sleep 600"))
    vm.check(f"systemctl start {LLAMA}")
    vm.wait_for(f"pgrep --parent $(systemctl show --value --property=MainPID {LLAMA}) --exact sleep")
    vm.check(f"systemctl stop {LLAMA}")
    assert (host.unit("ActiveState", LLAMA), host.unit("Result", LLAMA)) == ("inactive", "success")
    said = vm.check(f"journalctl --sync; journalctl --quiet --output=cat --unit={LLAMA}")
    assert "/usr/bin/sleep was killed by SIGTERM" in said
    assert host.pages() == 0


@pytest.mark.every_system
def test_socket_activation(host: Host) -> None:
    vm = host.vm
    install(vm, recipe(Type="simple"))
    vm.write(f"{UNITS}/llama.socket", "[Socket]\nListenStream=127.0.0.1:8123\n")
    try:
        vm.check("systemctl daemon-reload; systemctl start llama.socket")
        assert pid(host) == 0
        meant, process = vm.check(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8123; head -n 1 <&3"]).split()
        given = facts(vm)
        assert int(meant) == int(process) == given["pid"] != pid(host)
        assert given["parent"] == pid(host)
        assert given["environment"]["LISTEN_FDS"] == "1"
        assert host.pages() == PAGES
    finally:
        vm.check(f"systemctl stop llama.socket {LLAMA}; rm {UNITS}/llama.socket")


def test_a_proxy_that_hears_ready_and_feeds_the_watchdog(host: Host) -> None:
    """With --wait-ready notify all messages come from kerntune itself; the server is aborted, and comes back."""
    vm = host.vm
    text = recipe(NotifyAccess="main", WatchdogSec="600", Restart="on-failure", LimitCORE="0")
    waiting = f"--wait-ready notify --read-ahead vda=4M -- {SERVER}"
    install(vm, text.replace(f"-- {SERVER}", waiting))
    ahead = vm.read("/sys/block/vda/queue/read_ahead_kb")
    vm.check(f"systemctl start --no-block {LLAMA}")
    given = facts(vm)
    main = pid(host)
    assert host.unit("ActiveState", LLAMA) == "activating"
    assert vm.read("/sys/block/vda/queue/read_ahead_kb") == "4096"
    assert int(given["environment"]["WATCHDOG_PID"]) == given["pid"] != main
    assert given["environment"]["NOTIFY_SOCKET"].startswith("@")
    vm.check(f"echo ready > {FOLDER}/ask")
    vm.wait_for(f"[ $(systemctl is-active {LLAMA}) = active ]")
    vm.wait_for(f"[ $(cat /sys/block/vda/queue/read_ahead_kb) = {ahead} ]")
    feed(host)
    vm.check(f"echo starve > {FOLDER}/ask")
    wait_for_the_next(host, main)
    said = vm.check(f"journalctl --sync; journalctl --quiet --output=cat --unit={LLAMA}")
    assert "was killed by SIGABRT" in said


# Whoever is killed


@pytest.fixture
def serving(host: Host) -> int:
    """Give the process of kerntune, where a server that is ready at once runs and is restarted when it fails."""
    text = recipe(Restart="on-failure").replace(SERVER, f"{SERVER} ready")
    install(host.vm, text)
    host.vm.check(f"systemctl start {LLAMA}")
    assert host.pages() == PAGES
    return pid(host)


@pytest.mark.parametrize("who", ["kerntune", "server"])
def test_one_of_the_two_is_killed(host: Host, serving: int, who: str) -> None:
    server = facts(host.vm)["pid"]
    host.vm.check(f"kill -9 {serving if who == 'kerntune' else server}")
    wait_for_the_next(host, serving)
    host.vm.wait_for(f"[ ! -e /proc/{server} ]")
    host.vm.check(f"systemctl stop {LLAMA}")
    assert host.pages() == 0


def test_a_server_whose_kerntune_is_killed_is_asked_to_end(host: Host) -> None:
    """Without SendSIGKILL=no, KillMode=mixed has systemd kill it at once, before it can do anything."""
    vm = host.vm
    install(vm, recipe(SendSIGKILL="no").replace(SERVER, f"{SERVER} ready"))
    vm.check(f"systemctl start {LLAMA}")
    main, server = pid(host), facts(vm)["pid"]
    vm.check(f"kill -9 {main}")
    vm.wait_for(f"[ ! -e /proc/{server} ]")
    assert vm.read(f"{FOLDER}/signals").split() == [str(main)]
    assert host.unit("Result", LLAMA) == "signal"
    vm.wait_for("[ $(cat /proc/sys/vm/nr_hugepages) = 0 ]")


@pytest.mark.timeout(300)
def test_it_does_not_mind_the_next_daemon(host: Host, serving: int) -> None:
    """The daemon is killed, restarted, and stopped: the server runs on. Its end calls a daemon for its pages."""
    vm = host.vm
    server, (held,) = facts(vm)["pid"], holds(host)
    for how in (f"kill -9 {host.pid}", f"systemctl restart {UNIT}"):
        daemon = host.pid
        vm.check(how)
        host.wait_restarted(daemon)
        assert [each["hold"] for each in holds(host)] == [held["hold"]]
        assert host.pages() == PAGES
    vm.check(f"systemctl stop {UNIT}")
    assert (pid(host), facts(vm)["pid"], host.pages()) == (serving, server, PAGES)
    assert host.unit("ActiveState") == "inactive"
    vm.check(f"systemctl stop {LLAMA}")
    assert host.unit("Result", LLAMA) == "success"
    # On a slow machine it does not wait for the daemon's start, but leaves the bus, which ends the hold.
    vm.wait_for(f"[ $(systemctl is-active {UNIT}) = active ] && [ $(cat /proc/sys/vm/nr_hugepages) = 0 ]")
    assert holds(host) == []


# Who may hold, and what the limits allow


JOIN: Final = "sudo usermod -aG kerntune alice"
RUN: Final = "kerntune run --hugepages 16M -- cat /proc/sys/vm/nr_hugepages"


def reads_database(vm: Machine) -> bool:
    """Return whether this polkit is an older one, which reads the user database."""
    return float(vm.check("dpkg-query --show --showformat='${Version}' polkitd").split("-")[0]) < 124


@pytest.mark.every_system
def test_a_user_of_a_service(host: Host) -> None:
    vm = host.vm
    unit = f"systemd-run --quiet --wait --unit=refused --property=User=alice {RUN}"
    assert vm.run(unit).status == REFUSED
    assert JOIN in vm.check("journalctl --sync; journalctl --quiet --output=cat --unit=refused")
    lent = service(vm, RUN, "User=alice", "SupplementaryGroups=kerntune")
    if reads_database(vm):
        assert (lent.status, lent.out) == (REFUSED, "")
        assert JOIN in lent.err
    else:
        assert (lent.status, lent.out) == (0, "8\n")
    vm.check("usermod -aG kerntune alice")
    try:
        member = service(vm, RUN, "User=alice")
    finally:
        vm.check("gpasswd --delete alice kerntune")
    assert (member.status, member.out) == (0, "8\n")


@pytest.mark.every_system
def test_a_dynamic_user(host: Host) -> None:
    """It is refused, and needs nobody for the shield: a unit of root's holds the pages beside it."""
    vm = host.vm
    refused = service(vm, RUN, "DynamicUser=yes")
    assert (refused.status, refused.out) == (REFUSED, "")
    assert "Requires=kerntune-hold@PROFILE.service" in refused.err
    profile, hold = "/etc/kerntune/profiles/llama.toml", "kerntune-hold@llama.service"
    vm.write(profile, '[hugepages]\n"2M" = 8\n')
    try:
        command = "kerntune run --slice 100us --json -- cat /proc/sys/vm/nr_hugepages"
        beside = service(vm, command, "DynamicUser=yes", f"Requires={hold}", f"After={hold}")
        assert (beside.status, beside.out) == (0, "8\n")
        summary = json.loads(beside.err)
        assert summary["shield"]["slice_us"] == (100 if keeps_slices(vm) else 0)
        assert any("takes Linux 6.12" in note for note in summary["notes"]) is not keeps_slices(vm)
    finally:
        vm.check(f"systemctl stop {hold}; rm {profile}")


def keeps_slices(vm: Machine) -> bool:
    """Return whether this kernel has slices: Linux 6.12."""
    major, minor = vm.check("uname -r").split(".")[:2]
    return (int(major), int(minor)) >= (6, 12)


@pytest.mark.parametrize(
    ("option", "line", "command", "given"),
    [
        ("--nice -10", "LimitNICE=-10", "nice", "-10"),
        ("--rt", "LimitRTPRIO=1", "chrt --pid 0", "SCHED_FIFO"),
        ("--memlock", "LimitMEMLOCK=infinity", "sh -c 'ulimit -l'", "unlimited"),
    ],
    ids=["nice", "rt", "memlock"],
)
def test_limits(host: Host, option: str, line: str, command: str, given: str) -> None:
    words = f"kerntune run {option} -- {command}"
    allowed = service(host.vm, words, "User=alice", line)
    assert allowed.status == 0
    assert given in allowed.out
    refused = service(host.vm, words, "User=alice")
    if option == "--memlock":  # it goes as far as the limit, and is never refused
        assert refused.status == 0
        assert given not in refused.out
        return
    assert (refused.status, refused.out) == (REFUSED, "")
    assert f"`{line}` into the systemd unit" in refused.err


def test_real_time_that_the_unit_or_the_kernel_forbids(host: Host) -> None:
    vm = host.vm
    refused = service(vm, "kerntune run --rt -- true", "RestrictRealtime=yes")
    assert refused.status == REFUSED
    assert "Its unit has RestrictRealtime=yes" in refused.err
    share = vm.read("/proc/sys/kernel/sched_rt_runtime_us")
    vm.check("sysctl --quiet kernel.sched_rt_runtime_us=-1")
    try:
        forever = vm.run("kerntune run --rt -- true")
    finally:
        vm.check(f"sysctl --quiet kernel.sched_rt_runtime_us={share}")
    assert forever.status == REFUSED
    assert "Set kernel.sched_rt_runtime_us, which is -1" in forever.err


# Hardware that it finds


def test_nodes(host: Host) -> None:
    """Node 0 has more memory than node 1."""
    of_one, in_turn = "preferred", "interleave"
    for asked, policy, cpus in (("1", of_one, "1"), ("auto", of_one, "0"), (in_turn, in_turn, "0 1")):
        command = f"kerntune run --numa {asked} -- numactl --show"
        rows = dict(line.split(":", 1) for line in host.vm.check(command).splitlines() if ":" in line)
        assert rows["policy"].split()[0] == policy
        assert rows["physcpubind"].split() == cpus.split()


def test_pages_and_memory_of_a_node_and_the_fastest_governor(host: Host) -> None:
    """The server takes its memory from the pages of its node, and the CPUs are fast while it runs."""
    vm = host.vm
    options = f"--numa 1 --set hugepages@2M/node1={PAGES} --governor performance"
    install(vm, recipe().replace(f"--hugepages {2 * PAGES}M", options).replace(SERVER, f"{SERVER} ready"))
    vm.check(f"systemctl start {LLAMA}")
    assert [host.pages(0), host.pages(1)] == [0, PAGES]
    assert PAGES - host.pages(1, which="free") >= 16
    assert vm.check(f"cat {CPUFREQ}/policy*/scaling_governor").split() == ["performance"] * 2
    vm.check(f"systemctl stop {LLAMA}")
    assert host.pages() == 0
