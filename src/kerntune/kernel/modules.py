"""The modules that the kernel loads by itself when a word is written that needs one.

The service sees no folder of modules (ProtectKernelModules=). So the kernel's own build configuration says which there
are: distributions ship both in one package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from kerntune.kernel.files import KernelView, read_or_none
from kerntune.kernel.kconfig import built_as_modules

# modprobe.d(5): `blacklist` takes a module its other names, `install` runs a command in place of loading it.
BARRED: Final = re.compile(r"^\s*(?:blacklist|install)\s+(\S+)", re.MULTILINE)
FOLDERS: Final = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d")


class Module(NamedTuple):
    """A module by its name, and the option of the build configuration that makes it."""

    name: str
    option: str


def loadable(kernel: KernelView, modules: Mapping[str, Module]) -> frozenset[str]:
    """Return the words, of those with a module, for which the kernel loads it when they are written."""
    if read_or_none(kernel, "proc/sys/kernel/modules_disabled") == "1":
        return frozenset()
    if read_or_none(kernel, "proc/sys/kernel/modprobe") == "":
        return frozenset()
    built, barred = built_as_modules(kernel, [module.option for module in modules.values()]), barred_by(kernel)
    return frozenset(word for word, module in modules.items() if module.option in built and module.name not in barred)


def barred_by(kernel: KernelView) -> frozenset[str]:
    """Return the modules that the files of modprobe keep from being loaded."""
    files = [path for folder in FOLDERS for path in kernel.glob(f"{folder}/*.conf")]
    texts = filter(None, (read_or_none(kernel, path) for path in files))
    return frozenset(found[1].replace("-", "_") for text in texts for found in BARRED.finditer(text))
