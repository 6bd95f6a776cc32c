"""What a session of tests makes when one of them first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

Made = TypeVar("Made")


@contextmanager
def made_once(make: Callable[[str], AbstractContextManager[Made]]) -> Iterator[Callable[[str], Made]]:
    """Things by name, each made once and let go when the block ends."""
    made: dict[str, Made] = {}
    with ExitStack() as stack:

        def named(name: str) -> Made:
            if name not in made:
                made[name] = stack.enter_context(make(name))
            return made[name]

        yield named
