"""Work under a time limit, in a bounded number of threads.

A thread cannot be stopped, so work that takes too long goes on after its caller has given up. It must not pile up: the
number of threads is bounded, work that has not begun is dropped, and a call for the same image waits for the work under
way instead of starting it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Workers(Generic[K, V]):
    """Runs work on keyed items, each at most once at a time.

    Args:
        timeout_s: Seconds that a caller waits.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(thread_name_prefix="guardalign")
        self._under_way: dict[K, Future[Mapping[K, V]]] = {}
        self._lock = threading.Lock()

    def run(self, keys: Sequence[K], work: Callable[[Sequence[K]], Mapping[K, V]]) -> dict[K, V]:
        """Results of the keys that are ready within the time limit.

        Args:
            keys: Distinct keys.
            work: Called with those of the keys that are not under way. It keeps what it finds by itself, since its
                caller may have gone by then.

        Raises:
            Exception: What the work raises.
        """
        until = time.monotonic() + self._timeout_s
        with self._lock:
            new = [key for key in keys if key not in self._under_way]
            if new:
                future = self._pool.submit(work, new)
                self._under_way.update(dict.fromkeys(new, future))
            futures = {key: self._under_way[key] for key in keys}
        if new:
            # Outside of the lock: a future that is done already calls back at once.
            future.add_done_callback(lambda _: self._forget(new))
        wait(set(futures.values()), max(0.0, until - time.monotonic()))
        for future in futures.values():
            # What has not begun is dropped; what has begun goes on, and is joined by the next caller.
            future.cancel()
        return {key: future.result()[key] for key, future in futures.items() if _is_ready(future)}

    def close(self) -> None:
        """Let the threads end after the work under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _forget(self, keys: Sequence[K]) -> None:
        with self._lock:
            for key in keys:
                self._under_way.pop(key, None)


def _is_ready(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled()
