"""``guardalign policy``: show, check and describe policy files. Loads no model."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from guardalign_guardrails.policy import Policy

policies = typer.Typer(help="Show, check and describe policy files.", no_args_is_help=False)


@policies.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Policy file; the shipped one if not given.")
    ] = None,
) -> None:
    """Print a policy as YAML: the shipped one with its comments, or a file's with 'extends' filled in."""
    if file is None:
        text = resources.files("guardalign_guardrails").joinpath("policy/default.yaml").read_text(encoding="utf-8")
    else:
        text = Policy.load(file).to_yaml()
    sys.stdout.write(text)


@policies.command()
def check(file: Annotated[Path, typer.Argument(metavar="FILE", help="Policy file.")]) -> None:
    """Say whether a policy file is valid; exit code 2 if it is not."""
    policy = Policy.load(file)
    anchors = sum(len(category.texts) for category in policy.categories.values())
    print(
        f"ok: {policy.name} ({len(policy.categories)} categories, {anchors} unsafe and {len(policy.benign.texts)} "
        f"benign anchors, mode {policy.mode}), fingerprint {policy.fingerprint}"
    )


@policies.command()
def schema() -> None:
    """Print the JSON schema of policy files, for editors."""
    json.dump(file_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")


def file_schema() -> dict[str, Any]:
    """The schema of a policy file, which unlike a policy may leave things out when it extends the shipped one."""
    described = Policy.model_json_schema()
    required = described.pop("required", [])
    extends = {"const": "default", "description": "Start from the policy that ships with the package."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **described,
        "properties": {"extends": extends, **described["properties"]},
        "anyOf": [{"required": ["extends"]}, {"required": required}],
    }
