"""The queue of a lane: callers queue for passes, and those who come while a pass runs share the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from kerntune.engine.halt import Halt
from kerntune.engine.passes import PassInput, PassRunner, Result
from kerntune.engine.progress import Progress
from kerntune.errors import Failed, KerntuneError
from kerntune.model import ClaimId, Target

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

    `given` says what a pass works on when it starts; `publish` takes over its result before anybody is answered, and
    `failed` is called in its place when there is none.
    """

    def __init__(
        self,
        runner: PassRunner,
        threads: Executor,
        given: Callable[[Sequence[PassRequest]], PassInput],
        publish: Callable[[Result, Sequence[PassRequest]], Awaitable[None]],
        failed: Callable[[], None],
    ) -> None:
        self.runner = runner
        self._threads, self._input, self._publish, self._failed = threads, given, publish, failed
        self._requests: asyncio.Queue[PassRequest] = asyncio.Queue()
        self.halt: Halt | None = None  # of the pass that runs
        self._running: Sequence[PassRequest] = ()  # what that pass is made for
        self.closed = False  # whether passes that begin write nothing

    def put(self, request: PassRequest) -> None:
        """Ask for a pass and do not wait for it."""
        self._requests.put_nowait(request)

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
        return self.halt

    def close(self) -> None:
        """Have the pass that runs, and those that begin later, write nothing more."""
        self.closed = True
        self.end()

    def interrupt(self) -> list[str]:
        """Signal the threads of a pass that is to end and are inside a write; the paths of those writes."""
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
        while True:
            requests = [await self._requests.get()]
            while not self._requests.empty():
                requests.append(self._requests.get_nowait())
            try:
                result = await self._pass(requests)
            except KerntuneError as error:
                self._failed()
                fail(requests, error)
            except Exception:
                log.exception("a pass failed")
                self._failed()
                fail(requests, Failed("internal error", "The daemon's journal says more"))
            else:
                for request in requests:
                    request.result.set_result(result)

    async def _pass(self, requests: Sequence[PassRequest]) -> Result:
        loop = asyncio.get_running_loop()
        interested = [request.progress for request in requests if request.progress]

        def progress(target: Target, done: int, wanted: int) -> None:
            for tell in interested:
                loop.call_soon_threadsafe(tell, target, done, wanted)

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
        return result


def fail(requests: Sequence[PassRequest], error: KerntuneError) -> None:
    """Tell every caller of a pass that it failed."""
    log.error("%s", error)
    for request in requests:
        request.result.set_exception(error)
        request.result.exception()  # seen, for nobody may be waiting


def merge(results: Iterable[Result]) -> Result:
    """Return the results of several lanes as one."""
    whole = Result()
    for result in results:
        whole.before |= result.before
        whole.readings |= result.readings
        whole.desired_states |= result.desired_states
        whole.outcomes |= result.outcomes
        whole.wrote |= result.wrote
        whole.restored |= result.restored
        whole.missing |= result.missing
        whole.refused |= result.refused
        whole.memory = result.memory or whole.memory
    return whole
