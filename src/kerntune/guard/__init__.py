"""The memory guard: what makes the ratio of `overcommit=always:RATIO` real."""
