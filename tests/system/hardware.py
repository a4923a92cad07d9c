"""The machine that QEMU is asked for: memory in two nodes, CPUs with P-states, ports for drives; starts nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.system.qmp import MachineError

QEMU: Final = "qemu-system-x86_64"
# MiB. Each node gets a page of 1 GiB at boot, which needs another beside it: the kernel has its tables at the end, and
# of the first 2 GiB QEMU keeps the end.
NODES: Final = (4096, 2048)
CPUS: Final = 2
PORTS: Final = 16  # eight functions a slot
SWAP: Final = 512 << 20
# The emulated CPU by itself is an AMD K8, which acpi-cpufreq leaves to another driver. With `erms` the kernel clears
# pages byte by byte, which takes three times as long when emulated.
CPU: Final = {"tcg": "max,la57=off,svm=off,erms=off,family=6,model=6,stepping=3", "kvm": "host"}
# One thread for all CPUs: what two of them do for each other costs more than the second gives, as machines run side by
# side.
ACCELERATOR: Final = {"tcg": "tcg,thread=single,tb-size=512", "kvm": "kvm"}
# One byte each of the DMA controller's page registers: the chipset keeps what is written there, and nothing uses it.
SCRATCH: Final = (0x481, 0x482)
KHZ: Final = (3_000_000, 2_000_000, 1_000_000)
# The last two lines are what the kernel does for its safety only, which costs much when emulated: above all that it
# clears all memory as it is taken, that of huge pages too, and gives each program addresses of its own, for QEMU
# translates code again at each other address.
COMMAND_LINE: Final = (
    "root=/dev/vda rw rootfstype=ext4 console=ttyS0 quiet systemd.show_status=0 panic=-1 psi=1 mitigations=off "
    "cryptomgr.notests hugepagesz=1G hugepages=0:1,1:1 "
    "modprobe.blacklist=iTCO_wdt,psmouse,pcspkr,i2c_i801,lpc_ich,serio_raw,evdev "
    "init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off apparmor=0 audit=0 nowatchdog "
    "norandmaps"
)


@dataclass(frozen=True, slots=True)
class Drive:
    """An NVMe drive: its name is its serial number too."""

    name: str
    port: int
    image: Path

    @property
    def node(self) -> str:
        return f"disk-{self.name}"

    @property
    def bus(self) -> str:
        return f"port{self.port}"


def accelerators() -> tuple[str, ...]:
    """What to try, the best first. KERNTUNE_VM_ACCEL (kvm, tcg or kvm,tcg) says otherwise."""
    if chosen := os.environ.get("KERNTUNE_VM_ACCEL"):
        return tuple(chosen.split(","))
    # PVM offers /dev/kvm without the hardware's help, and a stock kernel does not boot on it.
    if os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").exists():
        return ("kvm", "tcg")
    return ("tcg",)


def version() -> str:
    """QEMU's version; MachineError with what to do when it is not there."""
    if shutil.which(QEMU) is None or shutil.which("iasl") is None:
        raise MachineError(f"{QEMU} or iasl is not installed: `make test-vm` installs what the virtual machine needs")
    return subprocess.run([QEMU, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout


def argv(accelerator: str, base: Path, run: Path, drives: Sequence[Drive], state: Path | None) -> list[str]:
    """QEMU's command line: the root disk, swap and sockets lie in `run`; with `state` it resumes that snapshot."""
    line = [
        QEMU, "-name", "kerntune", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35", "-accel", ACCELERATOR[accelerator], "-cpu", CPU[accelerator],
        "-m", str(sum(NODES)), "-smp", str(CPUS), *_nodes(), "-acpitable", f"file={_p_states(run)}",
        "-kernel", str(base / "vmlinux"), "-initrd", str(base / "initrd"), "-append", COMMAND_LINE,
        "-drive", f"if=none,id=root,format=qcow2,cache=unsafe,file={run / 'root.qcow2'}",
        "-device", "virtio-blk-pci,drive=root",
        "-drive", f"if=none,id=swap,format=raw,cache=unsafe,file={run / 'swap.img'}",
        "-device", "virtio-blk-pci,drive=swap,serial=swap",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,server=on,wait=off,path={run / 'agent.sock'}",
        "-device", "virtserialport,chardev=agent,name=testbed.agent",
        "-chardev", f"socket,id=qmp,server=on,wait=off,path={run / 'qmp.sock'}", "-mon", "chardev=qmp,mode=control",
        "-serial", f"file:{run / 'console.log'}",
    ]  # fmt: skip
    for port in range(PORTS):
        slot, function = divmod(port, 8)
        place = f"addr={0x10 + slot:x}.{function}" + (",multifunction=on" if function == 0 else "")
        line += ["-device", f"pcie-root-port,id=port{port},chassis={port + 1},slot={port + 1},{place}"]
    for drive in drives:
        line += ["-blockdev", f"driver=raw,node-name={drive.node},file.driver=file,file.filename={drive.image}"]
        line += ["-device", f"nvme,id={drive.name},serial={drive.name},drive={drive.node},bus={drive.bus}"]
    return line + (["-incoming", f"exec:cat '{state}'"] if state else [])


def _nodes() -> list[str]:
    line = []
    for node, size in enumerate(NODES):
        line += ["-object", f"memory-backend-ram,id=memory{node},size={size}M"]
        line += ["-numa", f"node,nodeid={node},memdev=memory{node},cpus={node}"]
    return line


def _p_states(run: Path) -> Path:
    """The ACPI table that gives each CPU three frequencies (ACPI 6.4, 8.4.5), so that acpi-cpufreq loads."""
    states = ", ".join(
        f"Package () {{ {khz // 1000}, {khz // 100_000}, 10, 10, {number}, {number} }}"
        for number, khz in enumerate(KHZ)
    )
    scopes = ""
    for cpu, port in zip(range(CPUS), SCRATCH, strict=True):
        register = f"ResourceTemplate () {{ Register (SystemIO, 8, 0, {port:#x}, 1) }}"
        scopes += f"""
  External (\\_SB.CPUS.C{cpu:03X}, DeviceObj)
  Scope (\\_SB.CPUS.C{cpu:03X}) {{
    Name (_PCT, Package () {{ {register}, {register} }})
    Name (_PSS, Package () {{ {states} }})
    Method (_PPC, 0) {{ Return (0) }}
    Name (_PSD, Package () {{ Package () {{ 5, 0, {cpu}, 0xFC, 1 }} }})
  }}"""
    source, table = run / "cpufreq.asl", run / "cpufreq.aml"
    source.write_text(f'DefinitionBlock ("", "SSDT", 2, "TUNE", "CPUFREQ", 1)\n{{{scopes}\n}}\n')
    made = subprocess.run(
        ["iasl", "-p", str(table), str(source)], capture_output=True, text=True, timeout=20, check=False
    )
    if made.returncode:
        raise MachineError(f"iasl: {made.stdout}{made.stderr}")
    return table
