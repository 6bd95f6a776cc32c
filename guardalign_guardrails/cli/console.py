"""What a person sees of a command: messages, progress, and text that a terminal cannot be tricked with.

Everything here goes to standard error, because standard output belongs to a command's result.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

from guardalign_guardrails.errors import GuardAlignError

PROGRAM: Final = "guardalign"


class CommandError(GuardAlignError):
    """A command cannot do what it was asked for; the message says what to change."""


def printable(text: str) -> str:
    """Text in which control characters and bytes that are no text are written out, so that it stays on its line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


def report(message: object) -> None:
    """One line on standard error."""
    with contextlib.suppress(BrokenPipeError):
        print(f"{PROGRAM}: {printable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, on a terminal only.

    Yields:
        Called with how many more are done.
    """
    if not sys.stderr.isatty() or total < 1:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
