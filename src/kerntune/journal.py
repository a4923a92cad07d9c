"""The destination of the daemon's messages, and the structured fields of journal entries (kerntuned(8) lists them)."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Final

from kerntune.model import Outcome, Reason, Report, State

log = logging.getLogger("kerntune")

# One id per kind of event, for `journalctl MESSAGE_ID=`.
TARGET_SET: Final = "6f3c1f0e5f0a4a6f9c0e2c1d7f6a4b10"
TARGET_NOT_SET: Final = "0b9a8f1c3f6d4f52b5d7b0a95d3f1c22"
CONFIG_PROBLEM: Final = "4d1f0a7be2a94d0c8c1b6f5e93a7d208"
MAX_RECORDS: Final = 2000  # records that wait for the journal, about 2 MiB
FLUSH: Final = 0.3  # seconds
GOOD: Final = frozenset({State.SATISFIED, State.UNMANAGED})


def set_up() -> None:
    """Log to the journal if standard error is connected to it (JOURNAL_STREAM names it), else to standard error."""
    handler: logging.Handler
    if to_journal():
        from systemd.journal import JournalHandler  # noqa: PLC0415  (only where there is a journal)

        journal = JournalHandler(SYSLOG_IDENTIFIER="kerntuned")
        journal.setFormatter(logging.Formatter("%(message)s"))
        handler = Aside(journal)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class Aside(logging.Handler):
    """A handler with a thread that gives records to `target`: sd_journal_send(3) waits while journald does not read.

    Records that do not fit any more are dropped, and their number is logged when there is room again.
    """

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._records, self._lost = SimpleQueue[logging.LogRecord](), 0
        self._counting = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        # The thread is made now: while memory is short there may be no room for it.
        threading.Thread(target=self._work, name="journal", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, without waiting and without raising an exception."""
        if self._records.qsize() >= MAX_RECORDS:
            with self._counting:
                self._lost += 1
            return
        try:
            # The text is made now: the objects that it names may change before the journal has it.
            record.msg, record.args = record.getMessage(), None
        except Exception:  # noqa: BLE001  # as other handlers do: a text that does not fit its arguments ends nothing
            self.handleError(record)
            return
        self._idle.clear()
        self._records.put(record)

    def flush(self) -> None:
        """Wait until all records are handed over, but not for long."""
        self._idle.wait(FLUSH)

    def _work(self) -> None:
        while True:
            record = self._records.get()
            # The thread goes on after any error with one record: memory may be short.
            with contextlib.suppress(Exception):
                # Do not take the lock of `target`: the end of the program would wait for it.
                self._target.emit(record)
            if self._records.empty():
                with contextlib.suppress(Exception):
                    self._report_lost()
                with self.lock or nullcontext():  # logging holds this lock while it calls emit
                    if self._records.empty():
                        self._idle.set()

    def _report_lost(self) -> None:
        with self._counting:
            count, self._lost = self._lost, 0
        if count:
            self._target.emit(lost(count))


def lost(count: int) -> logging.LogRecord:
    """Return a record with the number of dropped messages."""
    words = "%d messages were dropped, for the journal did not take them"
    return logging.LogRecord(log.name, logging.WARNING, __file__, 0, words, (count,), None)


def to_journal() -> bool:
    """Return whether JOURNAL_STREAM names the device and inode of our standard error (systemd.exec(5))."""
    stat = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def recorder() -> Callable[[Report], None]:
    """Return a listener that logs a pass's changes: set values as info, targets not in the desired state as warnings.

    A claim that waits for a device to be plugged is in the desired state.
    """

    def record(report: Report) -> None:
        for outcome in report.outcomes:
            good = outcome.state in GOOD or outcome.reason is Reason.NO_SUCH_TARGET
            fields = {
                "MESSAGE_ID": TARGET_SET if good else TARGET_NOT_SET,
                "KERNTUNE_TARGET": str(outcome.target),
                "KERNTUNE_REQUESTED": outcome.requested,
                "KERNTUNE_ACTUAL": outcome.actual,
                "KERNTUNE_STATE": outcome.state.value,
                "KERNTUNE_REASON": outcome.reason.value,
                "KERNTUNE_CAUSE": report.cause,
                "KERNTUNE_GENERATION": str(report.generation),
            }
            log.log(logging.INFO if good else logging.WARNING, "%s", sentence(outcome, report.cause), extra=fields)

    return record


def log_problem(text: str, *, is_error: bool) -> None:
    """Log a problem of the configuration as an error or as a warning."""
    log.log(logging.ERROR if is_error else logging.WARNING, "%s", text, extra={"MESSAGE_ID": CONFIG_PROBLEM})


def sentence(outcome: Outcome, cause: str) -> str:
    """Return an outcome as a sentence for people who read the journal."""
    if outcome.state is State.UNMANAGED:
        return f"{outcome.target} is no longer managed and is {outcome.actual or 'unknown'} ({cause})"
    if outcome.state is State.SATISFIED:
        was = f", was {outcome.before}" if outcome.before != outcome.actual else ""
        return f"{outcome.target} is {outcome.actual}{was} ({cause})"
    detail = f": {outcome.detail}" if outcome.detail else ""
    wanted = f"wanted {outcome.requested}, is {outcome.actual or 'unknown'}"
    return f"{outcome.target} {outcome.state}, {outcome.reason}, {wanted} ({cause}){detail}"
