"""What a process is called, for logs and for `who`; the only module that imports psutil."""

from __future__ import annotations


def describe(pid: int, uid: int) -> str:
    """`alice (busctl)`: the user's name and the program's, as far as they can be found. Never used to authorise."""
    import psutil  # noqa: PLC0415  (its import costs more than the start of the daemon may)

    try:
        user = psutil.Process(pid).username()
        command = psutil.Process(pid).name()
    except psutil.Error:
        return f"uid {uid}"
    return f"{user} ({printable(command)})"


def printable(name: str) -> str:
    """A name that its process chose, without what would break a log line, a terminal or a file of text."""
    return "".join(char if char.isprintable() else "?" for char in name)
