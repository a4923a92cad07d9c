"""The one cause why a host has no CPU frequency policy, by what the host says of itself; callers ask no other host."""

from __future__ import annotations

from typing import Final, NamedTuple

from kerntune.kernel import kconfig
from kerntune.kernel.files import KernelView, read_or_none

VIRTIO: Final = "sys/bus/virtio/devices"
OFF: Final = frozenset({"intel_pstate=disable", "amd_pstate=disable"})


class Lacking(NamedTuple):
    """The cause in a few words, the texts on the host that say so (if any), and what to do about it."""

    why: str
    evidence: tuple[str, ...]
    fix: str


def why_no_cpufreq(kernel: KernelView) -> Lacking:
    """Return the first cause that applies; it makes those after it idle: in a virtual machine no driver would help."""
    if kconfig.settling(kernel):
        evidence = f"/{kconfig.QUEUE} is there: udev is still looking at devices"
        return Lacking("no frequency driver is loaded yet", (evidence,), "The values are set when the driver comes")
    flags = cpu_flags(kernel)
    if guest := virtual(kernel, flags):
        fix = "Choose the governor on its host, where one is to be chosen; nothing is missing here"
        return Lacking("this is a virtual machine, so its host decides on CPU frequencies", (guest,), fix)
    built = kconfig.configured(kernel, "CPU_FREQ")
    if "does not set" in built:
        why = "this kernel was built without frequency scaling"
        return Lacking(why, (built,), "Use a kernel with CONFIG_CPU_FREQ=y (every distribution's own has it)")
    if word := turned_off(kernel):
        fix = f"To have it, take {word} out of GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub and a reboot"
        return Lacking("the kernel command line turns it off", (f"/proc/cmdline has {word}",), fix)
    # Documentation/admin-guide/pm/cpufreq.rst, acpi/cppc_sysfs.rst: the drivers for firmware of x86, and of others.
    driver = "acpi_cpufreq" if flags or not read_or_none(kernel, "proc/cpuinfo") else "cppc_cpufreq"
    return Lacking(
        "no frequency driver is loaded",
        (built,) if built else (),
        f"Try sudo modprobe {driver}; if that fails, the firmware controls power, and its setup may leave it to the "
        "operating system",
    )


def cpu_flags(kernel: KernelView) -> frozenset[str]:
    """Return the flags of the first CPU; none if /proc/cpuinfo has no such line (only x86 has one)."""
    for line in (read_or_none(kernel, "proc/cpuinfo") or "").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return frozenset(flags.split())
    return frozenset()


def virtual(kernel: KernelView, flags: frozenset[str]) -> str:
    """Return the evidence that this is a virtual machine, or "" without any."""
    if "hypervisor" in flags:
        return "/proc/cpuinfo has the flag hypervisor"
    devices = kernel.glob(f"{VIRTIO}/*")
    return f"/{VIRTIO} has {devices[0].rpartition('/')[2]}" if devices else ""


def turned_off(kernel: KernelView) -> str:
    """Return the word of the kernel command line that turns frequency scaling off, or "" if none does."""
    for word in (read_or_none(kernel, "proc/cmdline") or "").split():
        name, _, value = word.replace("-", "_").partition("=")
        if word in OFF or (name == "cpufreq.off" and value != "0"):
            return word
    return ""
