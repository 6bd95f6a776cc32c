"""One thread in which a model works, in the order of asking, and the ways to wait for it.

A model's generations do not overlap: two at once would take twice as long each and share one random state. Whoever
stops waiting, sync or async, also stops the work, within one token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
P = TypeVar("P")

Job = Callable[[threading.Event], T]
"""Work that looks at the event now and then and ends early once it is set."""

StreamJob = Callable[[threading.Event, Callable[[P], None]], None]
"""Work that hands on pieces as it goes."""


class Worker:
    """Runs jobs one after the other, first come first served."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guardalign-lvlm")

    def run(self, job: Job[T]) -> T:
        """Wait for a job; an interruption of the waiting cancels it."""
        cancelled = threading.Event()
        future = self._thread.submit(job, cancelled)
        try:
            return future.result()
        finally:
            _release(future, cancelled)

    async def arun(self, job: Job[T]) -> T:
        """`run` without blocking the event loop."""
        cancelled = threading.Event()
        future = self._thread.submit(job, cancelled)
        try:
            return await asyncio.wrap_future(future)
        finally:
            _release(future, cancelled)

    def stream(self, job: StreamJob[P]) -> Iterator[P]:
        """The pieces of a job as they come; closing the iterator cancels it."""
        cancelled = threading.Event()
        pieces: SimpleQueue[P | None] = SimpleQueue()
        future = self._thread.submit(job, cancelled, pieces.put)
        future.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            future.result()
        finally:
            _release(future, cancelled)

    async def astream(self, job: StreamJob[P]) -> AsyncIterator[P]:
        """`stream` without blocking the event loop."""
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[P | None] = asyncio.Queue()

        def put(piece: P | None) -> None:
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future = self._thread.submit(job, cancelled, put)
        future.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await asyncio.wrap_future(future)
        finally:
            _release(future, cancelled)


def _release(future: Future[T], cancelled: threading.Event) -> None:
    """Nobody waits any more: what has not begun never will, what runs ends at the next token."""
    if not future.done():
        cancelled.set()
        future.cancel()
