#!/usr/bin/python3
"""memory-hog MIB SECONDS: touches so much memory over and over.

Under `systemd-run -p MemoryMax=` with less than that, and with swap, it makes pressure (/proc/pressure/memory).
"""

from __future__ import annotations

import mmap
import os
import sys
import time

size = int(sys.argv[1]) << 20
end = time.monotonic() + float(sys.argv[2])
memory = mmap.mmap(-1, size)
noise = os.urandom(4096)
while time.monotonic() < end:
    for start in range(0, size, 1 << 20):
        for page in range(start, start + (1 << 20), 4096):
            memory[page : page + 4096] = noise
        if time.monotonic() > end:
            break
