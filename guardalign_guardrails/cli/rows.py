"""The contract of ``guardalign scan --json``: one object a line on standard output, and nothing else there.

Other programs read these rows. Add no key, drop no key and change no meaning without saying so in docs/cli.md and the
changelog.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from guardalign_guardrails.verdict import Verdict

Row = dict[str, Any]

# As many as profiles keep: a score and its p-value then always agree.
_SCORE_DIGITS = 7
_PIXEL_DIGITS = 2


def row(path: str, verdict: Verdict, delivered: str | None = None) -> Row:
    """One image's row, with only what JSON can hold.

    Args:
        path: As the user gave it, joined with what was found below a folder.
        verdict: The finding.
        delivered: Where what goes on was written; None if it was not.
    """
    return {
        "path": _text(path),
        "digest": verdict.digest or None,
        "score": _number(verdict.score),
        "p_value": _number(verdict.p_value),
        "action": verdict.action,
        "categories": {
            name: {"score": _number(finding.score), "p_value": _number(finding.p_value)}
            for name, finding in verdict.categories.items()
        },
        "regions": [
            {
                "box": [round(edge, _PIXEL_DIGITS) for edge in region.box],
                "score": _number(region.score),
                "category": region.category,
            }
            for region in verdict.regions
        ],
        "delivery": verdict.delivery,
        "delivery_reasons": list(verdict.delivery_reasons),
        "delivered": _text(path if verdict.delivery == "original" else delivered),
        "error": verdict.uninspectable or verdict.failure,
    }


@contextlib.contextmanager
def rows_only() -> Iterator[Callable[[Row], None]]:
    """Take standard output for rows; whatever else is printed meanwhile, by Python or below it, goes to standard error.

    Yields:
        Writes one row and hands it on at once.
    """
    with _taken_output() as stream, contextlib.redirect_stdout(sys.stderr):

        def write(content: Row) -> None:
            # ASCII only: what a line is and what a character is are then the same for every reader.
            stream.write(json.dumps(content, allow_nan=False, ensure_ascii=True) + "\n")
            stream.flush()

        yield write


@contextlib.contextmanager
def _taken_output() -> Iterator[TextIO]:
    """Standard output under a private descriptor, with its own descriptor turned to standard error.

    It stays turned: C libraries hold text back and write it when the process ends.
    """
    try:
        output, errors = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        # Not a real file (a test's buffer), or closed by the caller.
        yield sys.stdout or io.StringIO()
        return
    sys.stdout.flush()
    stream = os.fdopen(os.dup(output), "w", encoding="ascii", newline="\n")
    os.dup2(errors, output)
    try:
        yield stream
    finally:
        with contextlib.suppress(BrokenPipeError):
            stream.close()


def _text(path: str | None) -> str | None:
    # Names that are not UTF-8 cannot be written as JSON text; their odd bytes are written out.
    return None if path is None else path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, _SCORE_DIGITS)
