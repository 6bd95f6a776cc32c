"""``guardalign explain``: one image, and why it got its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardalign_guardrails.cli.console import CommandError, printable
from guardalign_guardrails.cli.files import write_png
from guardalign_guardrails.cli.options import (
    DeviceOption,
    EncoderOption,
    PolicyOption,
    ProfileOption,
    ScoringOption,
    SourceOption,
    chosen_guard,
)

if TYPE_CHECKING:
    from guardalign_guardrails import Guard
    from guardalign_guardrails.actions import Source
    from guardalign_guardrails.explain import Explanation
    from guardalign_guardrails.images.consumers import Consumer


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.png", help="Where the image goes; IMAGE.explained.png here if not given."),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="How many region-anchor pairs to list.")] = 8,
    consumer: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Also write what is delivered as this consumer sees it: llava-1.5."),
    ] = None,
    encoder: EncoderOption = "offline",
    policy: PolicyOption = None,
    profile: ProfileOption = None,
    scoring: ScoringOption = None,
    source: SourceOption = "user",
    device: DeviceOption = None,
) -> None:
    """Show why an image gets its verdict: scores per category, the strongest region-anchor pairs, and a heat map."""
    target = out or Path(f"{image.name}.explained.png")
    if not image.exists():
        raise CommandError(f"{image}: no such file; give an image that exists.")
    if target.exists() and target.samefile(image):
        raise CommandError(f"--out {target}: that is the image itself; give another name.")
    seen_by = None if consumer is None else _consumer(consumer)
    guard = chosen_guard(encoder, policy, profile, scoring, device)
    from guardalign_guardrails.explain import explanation

    found = explanation(guard, image, source, count=pairs)
    write_png(found.image, target)
    _print(str(image), found)
    print(f"\nheat map: {printable(str(target))}")
    if seen_by is not None:
        _write_as(seen_by, guard, image, source, target)


def _consumer(name: str) -> Consumer:
    from guardalign_guardrails.images.consumers import load_consumers

    return load_consumers([name])[0]


def _write_as(consumer: Consumer, guard: Guard, image: Path, source: Source, beside: Path) -> None:
    """Write the delivered image as a consumer sees it, beside the heat map; say so if none is delivered."""
    result = guard.check(image, source=source)
    if result.is_blocked:
        print(f"{consumer.name}: sees nothing, the image is blocked")
        return
    rendering = consumer.render(result.pixels)
    target = beside.with_name(f"{image.name}.{consumer.name}.png")
    write_png(rendering, target)
    size = f"{rendering.width} x {rendering.height}"
    print(f"{consumer.name}: sees {size} by {consumer.sampler}: {printable(str(target))}")


def _print(path: str, found: Explanation) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from guardalign_guardrails.explain import headline

    verdict = found.verdict
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"{printable(path)}: {headline(verdict)}"))
    for reason in verdict.reasons:
        console.print(Text(f"  {reason}"))
    if verdict.after_masking:
        after = verdict.after_masking
        state = "clean" if after.is_clean else "still unsafe"
        console.print(Text(f"  after masking {after.coverage:.0%} of the image: {state}"))
    console.print(
        Text(f"  scored on {verdict.view}; profile {verdict.profile or 'none'}; digest {verdict.digest[:12]}")
    )
    why = f" ({', '.join(verdict.delivery_reasons)})" if verdict.delivery_reasons else ""
    looked = "" if verdict.looked_at is None else f"; looked at up to {verdict.looked_at} px"
    console.print(Text(f"  goes on: {verdict.delivery}{why}{looked}"))
    categories = Table("category", "score", "p-value", "calls for", box=None, pad_edge=False)
    for name, finding in sorted(verdict.categories.items(), key=lambda item: -item[1].score):
        p_value = "-" if finding.p_value is None else f"{finding.p_value:.3g}"
        categories.add_row(Text(name), f"{finding.score:.3f}", p_value, finding.action)
    links = Table("share", "region (pixels)", "category", "anchor", box=None, pad_edge=False)
    width, height = found.size
    for pair in found.pairs:
        left, top, right, bottom = pair.box
        box = f"{left * width:.0f},{top * height:.0f} - {right * width:.0f},{bottom * height:.0f}"
        links.add_row(f"{pair.share:.3f}", box, Text(pair.category or "benign"), Text(pair.anchor))
    for table in (categories, links):
        if table.row_count:
            console.print()
            console.print(table)
