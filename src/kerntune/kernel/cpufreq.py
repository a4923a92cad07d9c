"""Why this host has no CPU frequency policy: one cause, decided by what it says of itself; not asked where it has."""

from __future__ import annotations

from typing import Final, NamedTuple

from kerntune.kernel import support
from kerntune.kernel.files import KernelView, find

VIRTIO: Final = "sys/bus/virtio/devices"
OFF: Final = frozenset({"intel_pstate=disable", "amd_pstate=disable"})


class Lacking(NamedTuple):
    """The cause in a few words, what was read that says so (if anything), and what to do about it."""

    why: str
    evidence: tuple[str, ...]
    fix: str


def lacking(kernel: KernelView) -> Lacking:
    """The cause, in the order in which one makes the next idle: in a virtual machine no driver would help."""
    if support.settling(kernel):
        evidence = f"/{support.QUEUE} is there: udev is still looking at devices"
        return Lacking("no frequency driver is loaded yet", (evidence,), "The values are set when the driver comes")
    flags = cpu_flags(kernel)
    if guest := virtual(kernel, flags):
        fix = "Choose the governor on its host, where one is to be chosen; nothing is missing here"
        return Lacking("this is a virtual machine, so its host decides on CPU frequencies", (guest,), fix)
    built = support.configured(kernel, "CPU_FREQ")
    if "does not set" in built:
        why = "this kernel was built without frequency scaling"
        return Lacking(why, (built,), "Use a kernel with CONFIG_CPU_FREQ=y (every distribution's own has it)")
    if word := turned_off(kernel):
        fix = f"To have it, take {word} out of GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub and a reboot"
        return Lacking("the kernel command line turns it off", (f"/proc/cmdline has {word}",), fix)
    # Documentation/admin-guide/pm/cpufreq.rst, acpi/cppc_sysfs.rst: the driver for firmware of x86, and of others.
    driver = "acpi_cpufreq" if flags or not find(kernel, "proc/cpuinfo") else "cppc_cpufreq"
    return Lacking(
        "no frequency driver is loaded",
        (built,) if built else (),
        f"Try sudo modprobe {driver}; if that fails, the firmware controls power, and its setup may leave it to the "
        "operating system",
    )


def cpu_flags(kernel: KernelView) -> frozenset[str]:
    """The flags of the first CPU; none where /proc/cpuinfo has no such line (only x86 has)."""
    for line in (find(kernel, "proc/cpuinfo") or "").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return frozenset(flags.split())
    return frozenset()


def virtual(kernel: KernelView, flags: frozenset[str]) -> str:
    """What says that this is a virtual machine, or ""."""
    if "hypervisor" in flags:
        return "/proc/cpuinfo has the flag hypervisor"
    devices = kernel.glob(f"{VIRTIO}/*")
    return f"/{VIRTIO} has {devices[0].rpartition('/')[2]}" if devices else ""


def turned_off(kernel: KernelView) -> str:
    """The word of the kernel command line that turns frequency scaling off, or ""."""
    for word in (find(kernel, "proc/cmdline") or "").split():
        name, _, value = word.replace("-", "_").partition("=")
        if word in OFF or (name == "cpufreq.off" and value != "0"):
            return word
    return ""
