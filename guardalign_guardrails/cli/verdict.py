"""``guardalign verdict``: what a verdict looks like as JSON. Loads no model."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from guardalign_guardrails.verdict import Verdict

verdicts = typer.Typer(help="Describe verdicts.", no_args_is_help=False)


@verdicts.callback()
def _commands() -> None:
    """Describe verdicts."""


@verdicts.command()
def schema() -> None:
    """Print the JSON schema of a verdict, for programs that read logs, events and message metadata."""
    json.dump(verdict_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")


def verdict_schema() -> dict[str, Any]:
    """The schema of a dumped verdict; a summary leaves out ``regions`` and what is null."""
    described = Verdict.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}
