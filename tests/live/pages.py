"""Huge pages of this machine's kernel for a moment; afterwards it has as many as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.harness import host

THP: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@contextmanager
def reserved(pages: int) -> Iterator[None]:
    """Reserve so many huge pages more, that nobody has; afterwards there are as many as before."""
    before = host.pages()
    pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{host.page_size() >> 10}kB/nr_hugepages")
    pool.write_text(str(before + pages))
    try:
        assert host.pages() == before + pages, "the kernel has no room for them"
        yield
    finally:
        pool.write_text(str(before))


@contextmanager
def transparent(mode: str) -> Iterator[None]:
    """Set the mode of transparent huge pages; afterwards it is as before."""
    before = host.value(THP)
    THP.write_text(mode)
    try:
        yield
    finally:
        THP.write_text(before)
