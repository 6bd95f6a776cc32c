"""Detects that a process was forked after PyTorch had worked in its parent.

PyTorch's threads do not survive a fork: the first forward pass in the child would wait for them for ever. Python
cannot repair that, so the child gets an error with the remedy. The state is the whole process's, as PyTorch's is.
"""

from __future__ import annotations

import os

from guardalign_guardrails.errors import ForkedProcessError

_used_in: int | None = None


def mark_use() -> None:
    """Record that PyTorch is about to work in this process.

    Raises:
        ForkedProcessError: It has worked in the parent of this process.
    """
    global _used_in
    if _used_in is None:
        _used_in = os.getpid()
    elif _used_in != os.getpid():
        raise ForkedProcessError
