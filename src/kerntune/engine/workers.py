"""The engine's threads, and the queue of each lane: callers who come while a pass runs share the next one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeVar, TypeVarTuple

from kerntune.engine.claims import PassInput
from kerntune.engine.hung import Crew
from kerntune.engine.passes import PassRunner
from kerntune.engine.results import Result
from kerntune.engine.retry import LONGEST_WAIT, SOON
from kerntune.engine.writer import WRITERS, Halt, Progress
from kerntune.errors import Failed, KerntuneError
from kerntune.model import ClaimId, Lane, Target

log = logging.getLogger(__name__)


@dataclass(slots=True)
class PassRequest:
    """One caller's request for a pass."""

    cause: str
    released: Collection[ClaimId] = ()
    enforce: bool = False
    progress: Progress | None = None
    waited: bool = False  # whether a caller waits for the result
    result: asyncio.Future[Result] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class LaneQueue:
    """The passes of one kernel subsystem, one after the other in a thread of `threads`.

    `given` says what a pass works on when it starts; `publish` takes over its result before anybody is answered. The
    lane asks for a pass by itself when a write that was in vain is worth another try, when a pass has failed, and when
    a device that hung answers again.
    """

    def __init__(
        self,
        runner: PassRunner,
        threads: Executor,
        given: Callable[[Sequence[PassRequest]], PassInput],
        publish: Callable[[Result, Sequence[PassRequest]], Awaitable[None]],
    ) -> None:
        self.runner = runner
        self._threads, self._input, self._publish = threads, given, publish
        self._requests: asyncio.Queue[PassRequest] = asyncio.Queue()
        self.halt: Halt | None = None  # of the pass that runs
        self._running: Sequence[PassRequest] = ()  # what that pass is made for
        self.closed = False  # whether passes that begin write nothing
        self._stopped = False  # whether no pass is made that nobody waits for
        self._passed = False  # whether a pass has ended
        self._failures = 0  # passes that failed in a row
        self.due: float | None = None  # the time on the lane's clock at which it asks for a pass by itself
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while there is one
        runner.hung.ended = self._hangs_no_more

    def put(self, request: PassRequest) -> None:
        """Ask for a pass and do not wait for it."""
        self._requests.put_nowait(request)

    def look_again(self, cause: str) -> None:
        """Ask for a pass that nobody waits for."""
        if not self._stopped:
            self.put(PassRequest(cause))

    def stop(self) -> None:
        """Make no pass any more that nobody waits for."""
        self._stopped = True
        self._retry_at(None)

    def end(self) -> None:
        """Have the pass that runs write nothing more."""
        if self.halt:
            self.halt.ask()

    def end_for(self, request: PassRequest, why: str) -> Halt | None:
        """Have the pass that runs for this request write nothing more, unless somebody else waits for it.

        Return its halt: a thread that is inside a write is to be interrupted until the pass is over.
        """
        others = [other for other in self._running if other.waited and other is not request]
        if self.halt is None or others or not any(request is own for own in self._running):
            return None
        self.halt.ask(why)
        for other in self._running:
            if other is not request:
                self.look_again(other.cause)  # nobody waits for it, and what has come is to be set all the same
        return self.halt

    def close(self) -> None:
        """Have the pass that runs, and passes that begin later, write nothing more."""
        self.closed = True
        self.end()

    def interrupt(self) -> list[str]:
        """Signal the threads of a pass that is to end and are inside a write; return the paths of those writes."""
        return self.halt.interrupt() if self.halt and self.halt.asked else []

    @property
    def idle(self) -> bool:
        """Return whether no pass runs, and none is asked for."""
        return self.halt is None and self._requests.empty()

    async def result(self, request: PassRequest) -> Result:
        """Return the result of the first pass that starts after now."""
        request.waited = True
        self.put(request)
        return await asyncio.shield(request.result)

    async def work(self) -> None:
        """Serve the queue until cancelled; a pass that fails fails its callers, not the lane."""
        self._loop = asyncio.get_running_loop()
        while True:
            requests = [await self._requests.get()]
            while not self._requests.empty():
                requests.append(self._requests.get_nowait())
            try:
                result = await self._pass(requests)
            except KerntuneError as error:
                self._pass_failed()
                fail(requests, error)
            except Exception:
                log.exception("a pass failed")
                self._pass_failed()
                fail(requests, Failed("internal error", "The daemon's journal says more"))
            else:
                for request in requests:
                    request.result.set_result(result)

    async def _pass(self, requests: Sequence[PassRequest]) -> Result:
        loop = asyncio.get_running_loop()
        interested = [request.progress for request in requests if request.progress]

        def progress(target: Target, done: int, wanted: int) -> None:
            for callback in interested:
                loop.call_soon_threadsafe(callback, target, done, wanted)

        self.halt = halt = Halt()
        self._running = requests
        if self.closed:
            halt.ask()
        try:
            work = partial(self.runner.run, self._input(requests), progress, halt)
            result = await loop.run_in_executor(self._threads, work)
            await self._publish(result, requests)
        finally:
            self.halt, self._running = None, ()
        self._passed, self._failures = True, 0
        self._retry_at(self.runner.retries.due)
        return result

    def _pass_failed(self) -> None:
        """Have a later pass do the work of one that raised."""
        self.runner.writing.clear()
        self._retry_at(self.runner.clock() + min(SOON * 2**self._failures, LONGEST_WAIT))
        self._failures = min(self._failures + 1, 12)

    def _retry_at(self, due: float | None) -> None:
        """Ask for a pass at that time of the lane's clock, and at no other."""
        if self._timer:
            self._timer.cancel()
        self.due, self._timer = None if self._stopped else due, None
        if self.due is not None:
            wait = max(SOON, self.due - self.runner.clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._retry)

    def _retry(self) -> None:
        self.due = self._timer = None
        self.look_again("retry")

    def _hangs_no_more(self, wait: float) -> None:
        """Have a pass look at a device after `wait` seconds; called in the thread that the kernel has returned to."""
        if self._loop:
            # There is nobody to ask when the loop is closed.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._answers_again, wait)

    def _answers_again(self, wait: float) -> None:
        if wait:
            asyncio.get_running_loop().call_later(wait, self.look_again, "retry")
        # The boot pass is the first; one that runs has left the device out.
        elif self._passed or not self.idle:
            self.look_again("retry")


def fail(requests: Sequence[PassRequest], error: KerntuneError) -> None:
    """Answer every caller of a pass with the error."""
    log.error("%s", error)
    for request in requests:
        request.result.set_exception(error)
        request.result.exception()  # seen, for nobody may be waiting


Found = TypeVar("Found")
Given = TypeVarTuple("Given")
READERS: Final = 2
LOOKING: Final = READERS + 3  # who may read a lane at the same time: these, a pass, a look, and the open calls
CLOSE_SECONDS: Final = 1.0  # seconds


class Run(Protocol):
    """Runs something that only looks in some thread."""

    def __call__(self, work: Callable[[*Given], Found], *given: *Given) -> Awaitable[Found]: ...


class Threads:
    """Pools of threads, each for one kind of work: passes, the devices of a lane, the looks of a lane, saves, dry runs.

    The pool for what anybody may ask for is small. Where one lane hangs, the looks of the others go on.
    """

    def __init__(self) -> None:
        self.passes = ThreadPoolExecutor(len(Lane), "pass")
        self.crews = {lane: Crew(WRITERS + LOOKING, f"devices {lane}") for lane in Lane}
        self._looks = {lane: ThreadPoolExecutor(1, f"look {lane}") for lane in Lane}
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._open = ThreadPoolExecutor(1, "open")
        self._savers = ThreadPoolExecutor(1, "save")

    def look(self, lane: Lane, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run a look at a lane."""
        return asyncio.get_running_loop().run_in_executor(self._looks[lane], work, *given)

    def read(self, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run something that only looks, for a caller who was authorised."""
        return asyncio.get_running_loop().run_in_executor(self._readers, work, *given)

    def open(self, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run something that only looks and that anybody may ask for: no authorised call waits behind it."""
        return asyncio.get_running_loop().run_in_executor(self._open, work, *given)

    def save(self, work: Callable[[*Given], Found], *given: *Given) -> asyncio.Future[Found]:
        """Run something that writes to disk; in the order in which it is asked for."""
        return asyncio.get_running_loop().run_in_executor(self._savers, work, *given)

    def prepare(self) -> None:
        """Make the threads that any call may need: while memory is short there may be no room for them."""
        gate = threading.Event()
        # Where the host has no room even now, the engine works with the threads that it has.
        with contextlib.suppress(RuntimeError):
            pools: list[tuple[ThreadPoolExecutor | Crew, int]] = [
                (self.passes, len(Lane)),
                (self._readers, READERS),
                (self._open, 1),
                (self._savers, 1),
                *((pool, 1) for pool in self._looks.values()),
                # A pass and a look; memory has no devices.
                *((self.crews[lane], 2) for lane in (Lane.CPU, Lane.BLOCK)),
            ]
            for pool, count in pools:
                for _ in range(count):
                    # One that waits for the gate makes the pool start another.
                    pool.submit(gate.wait, CLOSE_SECONDS)
        gate.set()

    def close(self) -> None:
        """Let go of the threads; a write that has begun is finished by the kernel."""
        for pool in (
            self.passes,
            self._readers,
            self._open,
            self._savers,
            *self._looks.values(),
        ):
            pool.shutdown(wait=False, cancel_futures=True)
        for crew in self.crews.values():
            crew.close()
