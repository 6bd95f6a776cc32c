"""``guardalign evaluate``: what safety settings of a local model do, measured on labelled prompts of your own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, get_args

import typer

from guardalign_guardrails.cli.console import CommandError, printable, progress, report
from guardalign_guardrails.cli.local_model import (
    MOST_GAMMA,
    ModelDeviceOption,
    ModelOption,
    Placement,
    Queries,
    band,
    chosen_model,
    listed,
    number,
    target,
)
from guardalign_guardrails.cli.rows import rows_only

if TYPE_CHECKING:
    from guardalign_guardrails.evaluation.report import ReportRow

evaluations = typer.Typer(help="Measure what safety settings of a local model do.", no_args_is_help=False)

ANSWERS: Final = "answers.jsonl"


@evaluations.command()
def refusal(
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS.jsonl", help="One object a line: prompt, label (safe|unsafe), source.")
    ],
    model: ModelOption = "smollm2",
    gammas: Annotated[str, typer.Option("--gammas", metavar="LIST", help="Fixed strengths to compare.")] = "0.5,1",
    targets: Annotated[
        str, typer.Option("--targets", metavar="LIST", help="Shares of attention to reach, or 'shallow'.")
    ] = "0.3",
    placements: Annotated[
        str, typer.Option("--placements", metavar="LIST", help="Places of the prefix, of user, system and response.")
    ] = "user",
    layers: Annotated[
        str, typer.Option("--layers", metavar="LIST", help="Bands of layers, LOW-HIGH as fractions of the depth.")
    ] = "1/3-2/3",
    queries: Annotated[
        str,
        typer.Option(
            "--queries", metavar="LIST", help="Tokens to calibrate, of instruction and instruction+generated."
        ),
    ] = "instruction,instruction+generated",
    prefix: Annotated[
        list[str] | None,
        typer.Option("--prefix", metavar="TEXT", help="A prefix in place of the default one; repeatable."),
    ] = None,
    most_gamma: Annotated[
        float, typer.Option("--most-gamma", min=0, metavar="G", help="The largest strength that a target takes.")
    ] = MOST_GAMMA,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 48,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Most prompts of each label; the default is all.")
    ] = None,
    sources: Annotated[
        str | None, typer.Option("--sources", metavar="LIST", help="Use only prompts of these sources.")
    ] = None,
    half: Annotated[
        str | None,
        typer.Option(
            "--half",
            metavar="first|second",
            help="Use one half of the prompts, to choose settings on one and confirm them on the other.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Choose other prompts where there is a limit.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts in one generation.")] = 16,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Folder of answers and reports; a run that was interrupted goes on there."
        ),
    ] = Path("out/refusal"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object a condition to standard output.")
    ] = False,
    device: ModelDeviceOption = None,
) -> None:
    """Compare no prefix, the prefix alone, and calibrated attention: which prompts are refused, and at what price."""
    chosen_gammas = [g for g in listed(gammas, lambda text: number(text, "--gammas")) if g]
    chosen_targets = listed(targets, target)
    chosen_bands = listed(layers, band)
    chosen_places = listed(placements, lambda text: _one_of(text, get_args(Placement), "--placements"))
    chosen_rows = listed(queries, lambda text: _one_of(text, get_args(Queries), "--queries"))
    chosen_half = None if half is None else _one_of(half, ("first", "second"), "--half")
    from guardalign_guardrails.decoding.config import SafetyPrefix
    from guardalign_guardrails.detection.encoders.offline import OfflineEncoder
    from guardalign_guardrails.evaluation import report as reports
    from guardalign_guardrails.evaluation.frontier import draw_frontier
    from guardalign_guardrails.evaluation.grid import AnswerFile, conditions, run
    from guardalign_guardrails.evaluation.prompts import load_prompts, sample
    from guardalign_guardrails.evaluation.refusals import RefusalClassifier

    asked = sample(
        load_prompts(prompts),
        limit=limit,
        sources=None if sources is None else listed(sources, str),
        half=chosen_half,  # type: ignore[arg-type]
        seed=seed,
    )
    grid = conditions(
        prefixes=prefix or [SafetyPrefix().text],
        placements=chosen_places,  # type: ignore[arg-type]
        gammas=chosen_gammas,
        targets=chosen_targets,
        bands=chosen_bands,
        queries=chosen_rows,  # type: ignore[arg-type]
        most_gamma=most_gamma,
    )
    with rows_only() if as_json else contextlib.nullcontext() as write:
        encoder = OfflineEncoder()
        # A missing package is reported now, not after an hour of work.
        encoder.encode_texts(["ready"])
        file = AnswerFile(out / ANSWERS)
        ready = chosen_model(model, device, calibration=None)
        with progress("answering", len(asked) * len(grid)) as advance:
            answers = list(
                run(ready, asked, grid, file, max_new_tokens=max_new_tokens, batch_size=batch_size, advance=advance)
            )
        rows = reports.tabulated(grid, asked, answers, RefusalClassifier(encoder))
        about = {
            "model": ready.name,
            "prompts": len(asked),
            "limit": limit,
            "half": chosen_half,
            "seed": seed,
            "max_new_tokens": max_new_tokens,
        }
        try:
            reports.write_json(rows, about, out / "report.json")
            reports.write_csv(rows, out / "report.csv")
            draw_frontier(rows, f"{ready.name}, {len(asked)} prompts").save(out / "frontier.png")
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise CommandError(f"{out}: {why}; choose another place with --out.") from error
        if write is not None:
            for row in rows:
                write(row.payload)
        else:
            _show(rows)
    report(
        f"{printable(str(out))}: report.json, report.csv, frontier.png; {ANSWERS} holds the answers: keep it private."
    )


def _one_of(text: str, known: tuple[str, ...], flag: str) -> str:
    if text not in known:
        raise CommandError(f"{flag} takes {', '.join(known)}.")
    return text


def _show(rows: Sequence[ReportRow]) -> None:
    from rich.console import Console

    from guardalign_guardrails.evaluation.report import best, names, tables

    console = Console(highlight=False, soft_wrap=True)
    for table in tables(rows):
        console.print(table)
        console.print()
    chosen = best(rows)
    console.print(
        "no calibration gains refusals of unsafe prompts at a rise of at most 5 points for safe ones"
        if chosen is None
        else f"most gained at a rise of at most 5 points for safe prompts: {names(rows)[rows.index(chosen)]}"
    )
