"""Runs a model's generations in one thread, in the order of the requests, for sync and async callers.

Generations of one model do not overlap: two at once would take twice as long each and share one random state. A caller
that cancels, sync or async, ends its generation within one token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from guardalign_guardrails.guarding.forks import mark_use

T = TypeVar("T")
C = TypeVar("C")

Job = Callable[[threading.Event], T]
"""Work that ends early once the event is set."""

StreamJob = Callable[[threading.Event, Callable[[C], None]], None]
"""Work that puts chunks as it goes."""


class Worker:
    """Runs jobs one after the other, in the order of the requests.

    Its methods raise `ForkedProcessError` in a process that was forked after PyTorch had worked in its parent.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guardalign-lvlm")

    def run(self, job: Job[T]) -> T:
        """Run a job and wait for it; an interruption cancels it."""
        cancelled = threading.Event()
        future = self._submit(job, cancelled)
        try:
            return future.result()
        finally:
            _release(future, cancelled)

    async def arun(self, job: Job[T]) -> T:
        """`run` without blocking the event loop."""
        cancelled = threading.Event()
        future = self._submit(job, cancelled)
        try:
            return await asyncio.wrap_future(future)
        finally:
            _release(future, cancelled)

    def stream(self, job: StreamJob[C]) -> Iterator[C]:
        """Chunks of a job as they come; closing the iterator cancels it."""
        cancelled = threading.Event()
        chunks: SimpleQueue[C | None] = SimpleQueue()
        future = self._submit(job, cancelled, chunks.put)
        future.add_done_callback(lambda _: chunks.put(None))
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
            future.result()
        finally:
            _release(future, cancelled)

    async def astream(self, job: StreamJob[C]) -> AsyncIterator[C]:
        """`stream` without blocking the event loop."""
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[C | None] = asyncio.Queue()

        def put(chunk: C | None) -> None:
            # Nothing waits in a loop that is closed.
            if not loop.is_closed():
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        future = self._submit(job, cancelled, put)
        future.add_done_callback(lambda _: put(None))
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            await asyncio.wrap_future(future)
        finally:
            _release(future, cancelled)

    def _submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        # After a fork there is no such thread, and PyTorch would hang in a new one.
        mark_use()
        return self._thread.submit(job, *arguments)


def _release(future: Future[T], cancelled: threading.Event) -> None:
    """Cancel a job that is not done: it never begins, or it ends at the next token."""
    if not future.done():
        cancelled.set()
        future.cancel()
