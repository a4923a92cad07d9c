"""The terminal of a screen that is kept up to date: it is taken, and given back at any end and while it is stopped."""

from __future__ import annotations

import os
import select
import signal
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

from kerntune.streams import STDIN, Unwritten, written

# xterm's other screen, which every other terminal knows too, and the cursor.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
LOCAL_FLAGS: Final = 3  # place in the list of tcgetattr
QUIT: Final = frozenset(b"qQ")
MAX_TYPED: Final = 1024  # bytes


class Screen:
    """The other screen of a terminal; keys are not shown, and come one by one, where standard input is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._keyboard = [STDIN] if os.isatty(STDIN) else []
        self._modes: list[Any] = []  # of the keyboard, as they were

    @property
    def keyboard(self) -> Sequence[int]:
        """The descriptor that is readable when somebody types; there may be none."""
        return self._keyboard

    def take(self) -> None:
        """Show the other screen. In the background the kernel stops the process here, until it is in front."""
        try:
            for descriptor in self._keyboard:
                self._modes = termios.tcgetattr(descriptor)
                modes = termios.tcgetattr(descriptor)
                modes[LOCAL_FLAGS] &= ~(termios.ICANON | termios.ECHO)
                termios.tcsetattr(descriptor, termios.TCSANOW, modes)
        except termios.error:  # the terminal has gone, or nobody is left who could bring us to the front
            self._keyboard = []
        self._put(ENTER)

    def give_back(self) -> None:
        """Show the terminal as it was before; it may have gone."""
        with suppress(Unwritten):
            self._put(LEAVE)
        if self._modes:
            with suppress(termios.error):
                termios.tcsetattr(STDIN, termios.TCSANOW, self._modes)
            self._modes = []

    def stop(self) -> None:
        """Stop the process, as Ctrl-Z does, with the terminal as it was."""
        self.give_back()
        signal.raise_signal(signal.SIGSTOP)
        self.take()

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in place of those before. Raise Unwritten."""
        self._put(HOME + "\r\n".join(f"{line}{CLEAR_LINE}" for line in lines) + CLEAR_REST)

    def has_quit(self) -> bool:
        """Return whether somebody has typed a q."""
        if not select.select(self._keyboard, (), (), 0)[0]:
            return False
        typed = b""
        with suppress(OSError):
            typed = os.read(STDIN, MAX_TYPED)
        if not typed:  # nobody can type any more, and the descriptor would be readable for ever
            self._keyboard = []
        return bool(QUIT & set(typed))

    def _put(self, text: str) -> None:
        with written(self._stream):
            self._stream.write(text)


@contextmanager
def shown(stream: TextIO) -> Iterator[Screen]:
    """Give the other screen of a terminal, and leave it at any end."""
    screen = Screen(stream)
    try:
        screen.take()
        yield screen
    finally:
        screen.give_back()
