"""Outcomes of images seen before.

A chat sends its whole history each turn; an image in it must cost a look-up, not an encoder pass.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Generic, TypeVar

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
