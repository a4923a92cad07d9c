"""Kernel settings for as long as a program needs them: `kerntune.hold`, for programs, plain or with asyncio.

It needs no privilege but membership in the group kerntune, and of other packages dbus-next alone. The daemon ends a
hold with the connection of its client, so a crash leaves nothing behind (org.kerntune.Tuner1.Hold(5)).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kerntune import errors, syntax
from kerntune.api import names
from kerntune.api.document import Outcome
from kerntune.api.names import BACK_SECONDS, EDIT_SECONDS, LOOK_SECONDS
from kerntune.dbus import standard
from kerntune.syntax import in_utf8
from kerntune.units import MAX_HOLD, MICROSECONDS

if TYPE_CHECKING:
    from kerntune.dbus.client import Client

MAX_TTL: Final = MAX_HOLD // MICROSECONDS["s"]  # seconds

T = TypeVar("T")


class AsyncHold:
    """A hold granted to `async with`; it lives until its block or the process ends."""

    def __init__(self, client: Client, path: str, outcomes: Iterable[Iterable[str]]) -> None:
        self._client, self.path = client, path
        self._outcomes = tuple(Outcome(*row) for row in outcomes)
        self._pid = os.getpid()
        self._is_over = False

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcome of each target, in the words of kerntuned(8). For huge pages `requested` is +N."""
        return self._outcomes

    @property
    def number(self) -> int:
        """The number of the hold, as `kerntune holds` shows it."""
        return names.hold_number(self.path)

    async def release(self) -> None:
        """End the hold if it has not ended, and return when the kernel has the values without it.

        Raise Usage in a forked child.
        """
        self.check_process()
        if not self._is_over:
            with suppress(errors.UnknownObject):
                await self._client.call(self.path, names.HOLD, "Release", "a{sv}", {}, timeout=EDIT_SECONDS)

    async def ended(self) -> None:
        """Return when the hold has ended: somebody released it, its time was over, or its block has ended.

        The call survives a restart of the daemon. Raise Unreachable when the bus is lost, or the daemon does not come
        back; Usage in a forked child.
        """
        self.check_process()
        while not self._is_over:
            with suppress(errors.Unreachable):
                async with self._client.listen(names.ROOT, standard.OBJECT_MANAGER, restarts=False) as signals:
                    if await self.has_ended():
                        return
                    async for signal in signals:
                        if signal.member == "InterfacesRemoved" and signal.args[0] == self.path:
                            return
            if not self._is_over:
                await self._daemon_is_back()

    async def has_ended(self) -> bool:
        """Return True if the daemon does not know the hold any more. Raise Unreachable."""
        self.check_process()
        return self._is_over or self.path not in await self._client.get(names.ROOT, names.MANAGER, "Holds")

    async def leave(self) -> None:
        """Release the hold at the end of its block; without bus or daemon it ends by itself."""
        try:
            with suppress(errors.Unreachable):
                await self.release()
        finally:
            self._is_over = True

    def check_process(self) -> None:
        """Raise Usage in a forked child."""
        if os.getpid() != self._pid:
            raise errors.Usage("this hold is of another process", "Call kerntune.hold(...) in the child for its own")

    async def _daemon_is_back(self) -> None:
        """Wait for the next daemon. Raise Unreachable when the bus is gone, or none comes."""
        try:
            async with asyncio.timeout(BACK_SECONDS):
                while not await self._client.running():  # noqa: ASYNC110  # no event says that the daemon does not come
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise errors.Unreachable("kerntuned has left the bus", "systemctl status kerntuned") from None


class Hold:
    """A hold granted to a plain `with`; its methods block, and any thread may call them."""

    def __init__(self, held: AsyncHold, thread: _Thread) -> None:
        self._held, self._thread = held, thread

    @property
    def path(self) -> str:
        """The path of its object on the bus."""
        return self._held.path

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcome of each target, in the words of kerntuned(8). For huge pages `requested` is +N."""
        return self._held.outcomes

    @property
    def number(self) -> int:
        """The number of the hold, as `kerntune holds` shows it."""
        return self._held.number

    def release(self) -> None:
        """End the hold as AsyncHold.release does."""
        self._held.check_process()
        self._thread.call(self._held.release(), otherwise=None)

    def ended(self, timeout: float | None = None) -> bool:
        """Wait for the hold's end as AsyncHold.ended does, and return True, or False after `timeout` seconds.

        A timeout of 0 looks once.
        """
        self._held.check_process()
        return self._thread.call(self._ended(timeout), otherwise=True)

    async def _ended(self, timeout: float | None) -> bool:
        with suppress(errors.Unreachable):  # the daemon may be restarting
            if await self._held.has_ended():
                return True
        try:
            async with asyncio.timeout(timeout):
                await self._held.ended()
        except TimeoutError:
            return False
        return True


class Holding:
    """The result of `hold`: enter it with `with` or `async with`, once at a time.

    Entering it again before its end raises Usage. After its end a program may enter it again, for another hold.
    """

    def __init__(self, settings: tuple[str, ...], body: tuple[str, str], options: dict[str, Any]) -> None:
        self._settings, self._body, self._options = settings, body, options
        self._entered = threading.Lock()
        self._stack: AsyncExitStack | None = None
        self._thread: _Thread | None = None
        self._pid = 0

    async def __aenter__(self) -> AsyncHold:
        with self._entering():
            self._stack, held = await self._begin()
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a forked child: the hold belongs to its parent
            return
        stack, self._stack = self._stack, None
        if stack:
            with self._leaving(error):
                await stack.aclose()

    def __enter__(self) -> Hold:
        with self._entering():
            self._thread = _Thread(self._begin)
            return self._thread.entered()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if os.getpid() != self._pid:  # as above
            return
        thread, self._thread = self._thread, None
        if thread:
            with self._leaving(error):
                thread.end()

    @contextmanager
    def _entering(self) -> Iterator[None]:
        if not self._entered.acquire(blocking=False):
            raise errors.Usage("this hold is entered already", "Call kerntune.hold(...) again for another one")
        self._pid = os.getpid()
        try:
            yield
        except BaseException:
            self._stack = self._thread = None
            self._entered.release()
            raise

    @contextmanager
    def _leaving(self, error: BaseException | None) -> Iterator[None]:
        """Keep an error at the end from hiding `error`, the error of the block."""
        try:
            yield
        except errors.KerntuneError as other:
            if error is None:
                raise
            error.add_note(f"the hold was not released in order: {other}")
        finally:
            self._entered.release()

    async def _begin(self) -> tuple[AsyncExitStack, AsyncHold]:
        """Connect and ask for the hold; to close the stack ends both."""
        from kerntune.dbus.client import connect  # noqa: PLC0415  # importing kerntune alone should cost nothing

        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(connect(names.BUS_NAME, hint=names.HINT, late=names.LATE))
                held = await begin(client, self._settings, *self._body, **self._options)
                stack.push_async_callback(held.leave)
                return stack.pop_all(), held
        except errors.REFUSALS as error:
            from kerntune.membership import for_this_user  # noqa: PLC0415  # as above

            raise await asyncio.to_thread(for_this_user, error) from error
        raise AssertionError  # an exit stack does not suppress errors


class _Thread:
    """The connection of a plain `with`, in a thread: it answers the bus while the program is busy."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, tuple[AsyncExitStack, AsyncHold]]]) -> None:
        self._begin = begin
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._held: AsyncHold | None = None
        self._error: BaseException | None = None
        self._calls, self._closing = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kerntune hold", daemon=True)
        self._thread.start()

    def entered(self) -> Hold:
        """Wait for the daemon's answer. Raise the error of the attempt."""
        try:
            self._ready.wait()
        except BaseException:
            self.end()
            raise
        if self._held is None:
            self._thread.join()
            raise self._error or errors.Failed("the hold was not made")
        return Hold(self._held, self)

    def call(self, work: Coroutine[Any, Any, T], *, otherwise: T) -> T:
        """Run the coroutine in the thread and wait for its answer; return `otherwise` if the block has ended."""
        with self._calls:
            if self._closing:
                work.close()
                return otherwise
            answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            return otherwise
        except BaseException:
            answer.cancel()
            raise

    def end(self) -> None:
        """Release the hold, and raise an error of the release."""
        with self._calls:
            self._closing = True
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        if self._error:
            raise self._error

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._hold())
            except BaseException as error:  # noqa: BLE001  # the thread of the block raises it
                self._error = error
            finally:
                self._ready.set()

    async def _hold(self) -> None:
        entering = asyncio.ensure_future(self._begin())
        over = asyncio.ensure_future(self._over.wait())
        await asyncio.wait([entering, over], return_when=asyncio.FIRST_COMPLETED)
        if not entering.done():
            entering.cancel()
            await asyncio.wait([entering])
            return
        stack, self._held = await entering
        self._ready.set()
        await over
        await stack.aclose()


async def begin(client: Client, settings: Iterable[str], who: str, why: str, **options: Any) -> AsyncHold:
    """Ask the daemon for a hold over a connection that lives as long as the hold; settings as on the command line."""
    from kerntune.dbus.client import Variant  # noqa: PLC0415  # as above

    rows = [list(syntax.setting(text)) for text in settings]
    kinds = {bool: "b", int: "t", str: "s"}
    chosen = {name: Variant(kinds[type(value)], value) for name, value in options.items() if value}
    path, outcomes = await client.call(
        names.ROOT, names.MANAGER, "Hold", "a(sss)ssa{sv}", rows, who.strip(), why.strip(), chosen,
        interactive=True, timeout=EDIT_SECONDS,
    )  # fmt: skip
    return AsyncHold(client, path, outcomes)


def hold(
    *settings: str, who: str = "", why: str = "", profile: str = "", allow_partial: bool = False, ttl: float = 0
) -> Holding:
    """Hold kernel settings while a block runs: `with kerntune.hold("hugepages=64G"): ...`, or `async with`.

    Settings are written as on the command line: "hugepages=64G", "cpu-governor=performance". Huge pages are added to
    what the host has. Of the governors of several holds the fastest is in force, of other values the newest. Other
    users see `who` and `why`, at most 256 bytes each. `profile` adds what a profile asks for. With `allow_partial` the
    hold keeps fewer huge pages than asked. `ttl`: seconds after which the hold ends by itself, 0 for never.

    Entering blocks until the kernel has the values. It returns a Hold, or with `async with` an AsyncHold, with the
    outcomes. A program enters a Holding once at a time; a forked child has no part in it.

    Raise Usage, here or at entering, for arguments without a meaning. Entering raises other KerntuneErrors
    (kerntune.errors): OverLimit and PartiallyAllocated without enough memory, NotAuthorized, NotSupported, Unreachable
    without a daemon.
    """
    asked = tuple(in_utf8("a setting", each) for each in settings)
    body = in_utf8("who", who), in_utf8("why", why)
    named = in_utf8("profile", profile)
    if not asked and not named:
        raise errors.Usage("there is nothing to hold", 'Name settings, such as "hugepages=64G", or a profile')
    options = {"profile": named, "allow-partial": bool(allow_partial), "ttl-usec": _microseconds(ttl)}
    return Holding(asked, body, options)


def _microseconds(ttl: float) -> int:
    is_number = isinstance(ttl, int | float)
    if is_number and ttl == 0:
        return 0
    if not is_number or not 1e-6 <= ttl <= MAX_TTL:
        raise errors.Usage(f"ttl is {ttl!r:.60}", f"Give seconds, at most {MAX_TTL}, or 0 for a hold without")
    return round(ttl * 1e6)
