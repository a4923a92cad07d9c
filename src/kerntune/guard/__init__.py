"""The memory guard: it enforces the ratio of `overcommit=always:RATIO`."""
