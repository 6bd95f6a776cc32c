"""One point in time by which everything about a URL has ended, also calls that cannot be interrupted.

A timeout per read would let a server that sends one byte at a time go on for ever.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from guardalign_guardrails.fetch.refusals import refusal

T = TypeVar("T")

# Abandoned look-ups live until the system's resolver gives up, half a minute at worst; this many may.
_MAX_LOOKUPS: Final = 32


class Deadline:
    """Counts down from the moment it is made."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds left, more than zero.

        Raises:
            FetchRefused: ``url_timeout`` when there are none.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise refusal("url_timeout")
        return seconds


class Lookups:
    """Runs calls that may hang in threads of their own, a bounded number at a time, and leaves them at the deadline."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(_MAX_LOOKUPS)

    def run(self, call: Callable[[], T], deadline: Deadline) -> T:
        """What ``call`` returns, or raises, if it does so in time.

        Raises:
            FetchRefused: ``url_timeout``; the call may go on in its thread, which ends with the process.
        """
        if not self._slots.acquire(timeout=deadline.left()):
            raise refusal("url_timeout")
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            threading.Thread(target=self._work, args=(call, outcome), name="guardalign-lookup", daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._slots.release()
            raise
        try:
            return outcome.result(timeout=deadline.left())
        except concurrent.futures.TimeoutError:
            raise refusal("url_timeout") from None

    def _work(self, call: Callable[[], T], outcome: concurrent.futures.Future[T]) -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            outcome.set_exception(error)
        finally:
            self._slots.release()
