"""The modules that the kernel loads by itself when a word is written that needs one.

The service sees no folder of modules (ProtectKernelModules=). So the kernel's own build configuration says which there
are: distributions ship both in one package.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from kerntune.kernel.files import KernelView, read_or_none
from kerntune.kernel.kconfig import built_as_modules

# modprobe.d(5): `blacklist` takes a module its other names, `install` runs a command in place of loading it.
BARRED: Final = re.compile(r"^[ \t]*(blacklist|install)[ \t]+(\S+)", re.MULTILINE)
FOLDERS: Final = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d")


class Module(NamedTuple):
    """A module by its name, the option of the build configuration that makes it, and the name the kernel asks for."""

    name: str
    option: str
    asked: str

    def is_barred(self, lines: Collection[tuple[str, str]]) -> bool:
        """Return True if these lines of modprobe's files, each a word and a name, keep it from being loaded."""
        by_alias = self.asked != self.name
        return (by_alias and ("blacklist", self.name) in lines) or any(
            ("install", name) in lines for name in (self.name, self.asked)
        )


def loadable(kernel: KernelView, modules: Mapping[str, Module]) -> frozenset[str]:
    """Return the words, of those with a module, for which the kernel loads it when they are written."""
    if read_or_none(kernel, "proc/sys/kernel/modules_disabled") == "1":
        return frozenset()
    if read_or_none(kernel, "proc/sys/kernel/modprobe") == "":
        return frozenset()
    built, lines = built_as_modules(kernel, [module.option for module in modules.values()]), barring(kernel)
    return frozenset(word for word, one in modules.items() if one.option in built and not one.is_barred(lines))


def barring(kernel: KernelView) -> frozenset[tuple[str, str]]:
    """Return the lines of modprobe's files that keep modules from being loaded: a word, and a name with `_` for `-`."""
    files = [path for folder in FOLDERS for path in kernel.glob(f"{folder}/*.conf")]
    texts = filter(None, (read_or_none(kernel, path) for path in files))
    return frozenset((found[1], found[2].replace("-", "_")) for text in texts for found in BARRED.finditer(text))
