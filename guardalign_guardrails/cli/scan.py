"""``guardalign scan``: many images, a row each, as they are done.

Memory holds one chunk of images, however many there are.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from guardalign_guardrails.actions import Source
from guardalign_guardrails.cli.console import printable, progress, report
from guardalign_guardrails.cli.files import Found, OutputFolder, find
from guardalign_guardrails.cli.options import (
    DeviceOption,
    EncoderOption,
    PolicyOption,
    ProfileOption,
    ScoringOption,
    SourceOption,
    chosen_guard,
)
from guardalign_guardrails.cli.rows import row, rows_only
from guardalign_guardrails.errors import ImageDecodeError
from guardalign_guardrails.verdict import Verdict

if TYPE_CHECKING:
    from guardalign_guardrails import CheckResult, Guard

Show = Callable[[str, Verdict, str | None], None]

ACTED: Final = 1
_AT_ONCE: Final = 8
_SECONDS_EACH: Final = 5
_COLOURS: Final = {
    "allow": "green",
    "flag": "yellow",
    "prefix": "yellow",
    "mask": "red",
    "route": "red",
    "block": "red",
}


def scan(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Image files and folders.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write heat maps and what goes on in an image's place below this folder."
        ),
    ] = None,
    encoder: EncoderOption = "offline",
    policy: PolicyOption = None,
    profile: ProfileOption = None,
    scoring: ScoringOption = None,
    source: SourceOption = "user",
    device: DeviceOption = None,
) -> None:
    """Check images and folders of images. Exits with 1 if any image gets another action than allow."""
    with rows_only() if as_json else contextlib.nullcontext() as write:
        found = find(paths, leave_out=out)
        output = OutputFolder(out, [item.path for item in found]) if out else None
        guard = chosen_guard(encoder, policy, profile, scoring, device)
        actions: Counter[str] = Counter()
        unread = 0
        with (
            _lines() if write is None else contextlib.nullcontext(_json(write)) as show,
            progress("scanning", len(found)) as advance,
        ):
            for item, checked in _checked(guard, found, source, advance):
                actions[checked.verdict.action] += 1
                unread += checked.verdict.score is None
                delivered = _save(guard, output, item, checked, source) if output else None
                show(item.path, checked.verdict, delivered)
    if not as_json:
        counts = ", ".join(f"{count} {action}" for action, count in sorted(actions.items()))
        report(
            f"{len(found)} images" + (f": {counts}" if counts else "") + (f"; {unread} not scored" if unread else "")
        )
    if set(actions) - {"allow"}:
        raise typer.Exit(ACTED)


def _checked(
    guard: Guard, found: Sequence[Found], source: Source, advance: Callable[[int], None]
) -> Iterator[tuple[Found, CheckResult]]:
    # A time limit holds for a whole call, so a slow image must not take its neighbours with it.
    timeout_s = guard.policy.failure.timeout_s
    size = _AT_ONCE if timeout_s is None else max(1, min(_AT_ONCE, int(timeout_s // _SECONDS_EACH)))
    if (most := guard.policy.failure.max_images) is not None:
        size = min(size, most)
    remaining = iter(found)
    while chunk := list(islice(remaining, size)):
        results = guard.check_batch([Path(item.path) for item in chunk], source=source)
        for item, checked in zip(chunk, results, strict=True):
            yield item, checked
            advance(1)


def _save(guard: Guard, output: OutputFolder, item: Found, checked: CheckResult, source: Source) -> str | None:
    """Write the heat map of an image that was scored, and what goes on in its place; say where the latter is."""
    from guardalign_guardrails.explain import heat_map, heat_scale, scored_view
    from guardalign_guardrails.images import decode

    verdict = checked.verdict
    delivered = None
    if verdict.delivery in ("canonical", "masked"):
        data = cast("bytes", checked.output)
        delivered = str(output.save_encoded(data, item.place, "delivered"))
        if verdict.delivery == "masked":
            output.save_encoded(data, item.place, "masked")
    if verdict.score is None:
        return delivered
    try:
        # The guard keeps no pixels, so they are read again.
        image = scored_view(decode(Path(item.path), guard.limits), verdict)
    except ImageDecodeError:
        report(f"{item.path}: changed or gone since it was scored; no heat map.")
        return delivered
    scale = heat_scale(guard.policy, guard.profile, source, guard.detector.scorer)
    output.save(heat_map(image, verdict, scale), item.place, "heat")
    return delivered


def _json(write: Callable[[dict[str, object]], None]) -> Show:
    return lambda path, verdict, delivered: write(row(path, verdict, delivered))


@contextlib.contextmanager
def _lines() -> Iterator[Show]:
    """A table once all is done on a terminal; elsewhere tab-separated lines as they come."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        yield _print_line
        return
    table = Table("action", "score", "p-value", "category", "image", box=None, pad_edge=False)

    def add(path: str, verdict: Verdict, _: str | None) -> None:
        action, *others, name = _cells(path, verdict)
        table.add_row(Text(action, style=_COLOURS[verdict.action]), *map(Text, others), Text(name, overflow="fold"))

    try:
        yield add
    finally:
        # Also what was done before an interruption.
        if table.row_count:
            console.print(table)


def _print_line(path: str, verdict: Verdict, _: str | None) -> None:
    sys.stdout.write("\t".join(_cells(path, verdict)) + "\n")
    sys.stdout.flush()


def _cells(path: str, verdict: Verdict) -> list[str]:
    action: str = verdict.action
    if verdict.proposed != verdict.action:
        action += f" (monitoring; else {verdict.proposed})"
    if verdict.uninspectable or verdict.failure:
        why = f"cannot be opened: {verdict.uninspectable}" if verdict.uninspectable else f"failed: {verdict.failure}"
    else:
        why = verdict.category or "-"
    score = "-" if verdict.score is None else f"{verdict.score:.3f}"
    p_value = "-" if verdict.p_value is None else f"{verdict.p_value:.3g}"
    return [action, score, p_value, why, printable(path)]
