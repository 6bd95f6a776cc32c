"""Outcomes of images seen before, and those under way.

A chat sends its whole history each turn; an image in it must cost a look-up, not an encoder pass. Calls that ask for
the same image at once share one pass.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class VerdictCache(Generic[V]):
    """A thread-safe least-recently-used map.

    Keys are (pixel digest, rule of the source, identity of policy, encoder and profile), so that one cache may serve
    several guards. Values hold scores and boxes, about 50 kB each, never pixels.

    Args:
        max_entries: Entries kept at most; 0 keeps none.
    """

    def __init__(self, max_entries: int = 1024) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, ...], V] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, key: tuple[str, ...]) -> V | None:
        """The value of a key, which becomes the most recent one; None if it is not known."""
        with self._lock:
            value = self._entries.get(key)
            if value is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return value

    def put(self, key: tuple[str, ...], value: V) -> None:
        """Keep a value, dropping the least recent ones over the limit."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Outcomes stay in the process that found them.
        return type(self), (self._max_entries,)

    def __len__(self) -> int:
        return len(self._entries)


class UnderWay(Generic[K, V]):
    """Work on keyed items, of which none is worked on twice at once."""

    def __init__(self) -> None:
        self._futures: dict[K, Future[Mapping[K, V]]] = {}
        self._lock = threading.Lock()

    def run(
        self, keys: Sequence[K], work: Callable[[Sequence[K]], Mapping[K, V]], until: float | None = None
    ) -> dict[K, V]:
        """Work on items here, but wait for those that another thread works on.

        Args:
            keys: Distinct keys.
            work: Called with those of the keys that are not under way.
            until: When waiting for other threads ends, by `time.monotonic`; None for no limit.

        Returns:
            What was found, without keys that were waited for in vain.

        Raises:
            Exception: What the work raises, here or there.
        """
        own: Future[Mapping[K, V]] = Future()
        with self._lock:
            futures = {key: self._futures.setdefault(key, own) for key in keys}
        new = [key for key, future in futures.items() if future is own]
        if new:
            # Own work first: threads that waited for each other would wait for ever.
            self._run_own(own, new, work)
        wait(set(futures.values()), None if until is None else max(0.0, until - time.monotonic()))
        return {key: future.result()[key] for key, future in futures.items() if future.done()}

    def _run_own(
        self, own: Future[Mapping[K, V]], keys: Sequence[K], work: Callable[[Sequence[K]], Mapping[K, V]]
    ) -> None:
        try:
            own.set_result(work(keys))
        except BaseException as error:  # noqa: BLE001  raised by `run`, in every thread that waits
            own.set_exception(error)
        finally:
            with self._lock:
                for key in keys:
                    del self._futures[key]
