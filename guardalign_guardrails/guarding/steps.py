"""One core for a sync function and its async twin: a generator that yields where it has to wait.

The sync driver waits in the caller's thread. The async driver runs each step in a thread and waits on the event loop,
so a call that waits for its turn or for its scores holds no thread of the loop's executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Wait:
    """Something to wait for.

    Attributes:
        future: Waited for until it is done, whatever it holds.
        until: When waiting ends all the same, by `time.monotonic`; None for no limit.
    """

    future: Future[Any]
    until: float | None = None

    @property
    def seconds(self) -> float | None:
        """How long waiting may still take, at least 0; None for no limit."""
        return None if self.until is None else max(0.0, self.until - time.monotonic())


Steps: TypeAlias = Generator[Wait, None, T]
"""Work in steps: it yields what it waits for, and looks for itself whether that is done."""


def finish(steps: Steps[T]) -> T:
    """Take all steps in this thread.

    Raises:
        BaseException: What a step raises; the steps are closed when waiting is interrupted.
    """
    with contextlib.closing(steps):
        while True:
            try:
                pause = next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            wait([pause.future], pause.seconds)


async def afinish(steps: Steps[T]) -> T:
    """Take each step in a thread of the loop's executor, and wait without one.

    Raises:
        BaseException: What a step raises; the steps are closed when the task is cancelled, at once or when the step
            under way ends.
    """
    held = HeldSteps(steps)
    try:
        while (pause := await asyncio.to_thread(held.advance)) is not None:
            await _done(pause)
        return held.results[0]
    except BaseException:
        held.abandon()
        raise


class HeldSteps(Generic[T]):
    """Steps that may be abandoned while a thread takes one: a generator cannot be closed while it runs."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self._lock = threading.Lock()
        self._is_running = self._is_abandoned = False
        self.results: list[T] = []

    def advance(self) -> Wait | None:
        """Take one step; None after the last one."""
        with self._lock:
            if self._is_abandoned:
                return None
            self._is_running = True
        try:
            return next(self._steps)
        except StopIteration as end:
            self.results.append(end.value)
            return None
        finally:
            with self._lock:
                self._is_running = False
                is_abandoned = self._is_abandoned
            if is_abandoned:
                self._steps.close()

    def abandon(self) -> None:
        """Close the steps, or let the thread that takes one close them."""
        with self._lock:
            self._is_abandoned = True
            if self._is_running:
                return
        self._steps.close()


async def _done(pause: Wait) -> None:
    """Wait on the event loop."""
    loop = asyncio.get_running_loop()
    # Not `asyncio.wrap_future`, which cancels the work with the waiting, and logs errors that nobody asks it for.
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: Future[Any]) -> None:
        # The loop may have ended by then.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_wake, waiter)

    pause.future.add_done_callback(wake)
    await asyncio.wait({waiter}, timeout=pause.seconds)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
