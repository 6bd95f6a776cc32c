"""Admits work: a bounded number of calls decode and score at once, a bounded number waits, and no work is forgotten.

Decoding takes hundreds of megabytes for a large image, so what runs at once bounds a guard's memory. A thread cannot be
stopped: work that takes too long keeps its place until it really ends, so late work cannot pile up either.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeAlias, TypeVar

from guardalign_guardrails.errors import GuardAlignError
from guardalign_guardrails.guarding.steps import Steps, Wait

T = TypeVar("T")

Refusal: TypeAlias = Literal["overloaded", "timeout"]
"""Why work was not waited for: it was not admitted, or it took too long."""


class Allowance:
    """The time that admitted work has.

    Args:
        timeout_s: Seconds from now; None for no limit.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.until = None if timeout_s is None else time.monotonic() + timeout_s
        self._is_abandoned = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the work any more: what has not begun should not begin."""
        return self._is_abandoned.is_set() or (self.until is not None and time.monotonic() >= self.until)

    def abandon(self) -> None:
        """Say that nobody waits any more."""
        self._is_abandoned.set()


class AdmissionQueue:
    """A number of places at work, each with a thread, and a queue in front of them, first come, first served.

    Args:
        places: Work under way at once, at least 1.
        max_waiting: Calls that wait for a place at once; 0 lets none wait.
        max_wait_s: Seconds that a call waits for a place.
        timeout_s: Seconds that a call waits for its work, from when it has a place; None for no limit.
    """

    def __init__(self, places: int, *, max_waiting: int, max_wait_s: float, timeout_s: float | None) -> None:
        if places < 1:
            raise ValueError(f"at least one call must be able to work, not {places}")
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._timeout_s = timeout_s
        self._free = places
        self._queue: deque[_Ticket] = deque()
        self._lock = threading.Lock()
        # Threads start with the first work, not before: a guard that was not used survives a fork.
        self._threads = ThreadPoolExecutor(places, thread_name_prefix="guardalign")

    def run(self, work: Callable[[Allowance], object]) -> Steps[Refusal | None]:
        """Run work in a thread of its own when there is a place, and wait for it.

        Args:
            work: Keeps what it finds by itself, since its caller may have gone by then, and should begin nothing new
                once its allowance is over.

        Returns:
            None if the work is done. ``overloaded`` if it was not admitted and never begins; ``timeout`` if it is
            still under way.

        Raises:
            GuardAlignError: The guard was closed while the call waited.
            Exception: What the work raises.
        """
        ticket = self._enter()
        if ticket is None:
            return "overloaded"
        allowance: Allowance | None = None
        try:
            if not ticket.admitted.done():
                yield Wait(ticket.admitted, time.monotonic() + self._max_wait_s)
            if not ticket.admitted.done():
                return "overloaded"
            allowance = Allowance(self._timeout_s)
            done = self._begin(ticket, work, allowance)
            yield Wait(done, allowance.until)
            if not done.done():
                return "timeout"
            done.result()
            return None
        finally:
            # Also when the caller was interrupted or cancelled.
            if allowance is not None:
                allowance.abandon()
            self._leave(ticket)

    def close(self) -> None:
        """Let the threads end after the work under way."""
        self._threads.shutdown(wait=False)

    def _enter(self) -> _Ticket | None:
        """A ticket, admitted if there is a place; None if too many wait."""
        ticket = _Ticket()
        with self._lock:
            if self._free:
                self._free -= 1
                ticket.holds_place = True
                ticket.admitted.set_result(None)
            elif len(self._queue) < self._max_waiting:
                self._queue.append(ticket)
            else:
                return None
        return ticket

    def _begin(self, ticket: _Ticket, work: Callable[[Allowance], T], allowance: Allowance) -> Future[T]:
        def run() -> T:
            try:
                return work(allowance)
            finally:
                self._pass_on()

        try:
            done = self._threads.submit(run)
        except RuntimeError as error:
            raise GuardAlignError("The guard was closed.") from error
        # From here on the work holds the place, not its caller.
        ticket.holds_place = False
        return done

    def _leave(self, ticket: _Ticket) -> None:
        """Give up the place in the queue, or a place in which no work has begun."""
        with self._lock:
            if not ticket.admitted.done():
                self._queue.remove(ticket)
                return
        if ticket.holds_place:
            ticket.holds_place = False
            self._pass_on()

    def _pass_on(self) -> None:
        """Give a place to the call that waits longest, or set it free."""
        with self._lock:
            if not self._queue:
                self._free += 1
                return
            ticket = self._queue.popleft()
            ticket.holds_place = True
            # Under the lock: the call may be leaving the queue just now, and then gives the place back.
            ticket.admitted.set_result(None)


class _Ticket:
    """A call's claim to a place.

    Attributes:
        admitted: Done once it has one.
        holds_place: Whether the place has to be given up by its caller.
    """

    def __init__(self) -> None:
        self.admitted: Future[None] = Future()
        self.holds_place = False
