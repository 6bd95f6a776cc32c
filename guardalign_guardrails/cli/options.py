"""The flags that scan, explain and reference share, and what they make: a policy, an encoder, a guard.

Torch and the encoders are imported when they are asked for, so that help and policy commands stay quick.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, cast, get_args

import typer

from guardalign_guardrails.actions import Source
from guardalign_guardrails.cli.console import CommandError
from guardalign_guardrails.errors import GuardAlignError
from guardalign_guardrails.policy import Policy

if TYPE_CHECKING:
    from guardalign_guardrails.detection.encoders import Encoder
    from guardalign_guardrails.detection.scoring import Scorer
    from guardalign_guardrails.guarding.guard import Guard

Baseline = Literal["best-region-cosine", "global-cosine"]
"""As `guardalign_guardrails.evaluation.baselines`, which cannot be imported without torch; a test keeps them alike."""

ScoringName = Literal["joint", "conditional", "paper", "best-region-cosine", "global-cosine"]
"""A policy's scoring or a baseline."""

# The registry's own FORMS cannot be imported without torch; a test keeps the two alike.
ENCODER_FORMS: Final = (
    "offline | open_clip:MODEL/TAG | open_clip:MODEL/PATH_TO_WEIGHTS | transformers:REPO_OR_FOLDER | FOLDER"
)

EncoderOption: TypeAlias = Annotated[str, typer.Option("--encoder", metavar="NAME", help=ENCODER_FORMS)]
PolicyOption: TypeAlias = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Policy file; the shipped policy if not given.")
]
ProfileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="Reference profile; looked up by encoder and policy otherwise."),
]
ScoringOption: TypeAlias = Annotated[
    ScoringName | None, typer.Option("--scoring", help="How to score, in place of the policy's own.")
]
SourceOption: TypeAlias = Annotated[
    Source, typer.Option("--source", help="Where the images come from; policies have rules for sources.")
]
DeviceOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ...; the encoder's choice if not given."),
]


def chosen_policy(file: Path | None, scoring: ScoringName | None) -> Policy:
    """The policy of a file, or the shipped one, with its scoring replaced if another one was given."""
    policy = Policy.load(file) if file else Policy.default()
    if scoring is None or scoring in get_args(Baseline):
        return policy
    return policy.model_copy(update={"scoring": policy.scoring.model_copy(update={"method": scoring})})


def chosen_scorer(scoring: ScoringName | None) -> Scorer | None:
    """The scorer of a baseline; None if the policy says how to score."""
    if scoring not in get_args(Baseline):
        return None
    from guardalign_guardrails.evaluation.baselines import CosineScorer

    return CosineScorer(cast("Baseline", scoring))


def chosen_encoder(name: str, device: str | None) -> Encoder:
    """The encoder of a name.

    Raises:
        CommandError: The device cannot be used.
        EncoderUnavailable: The name has none of the known forms.
    """
    # Read when the library is imported; its bars are drawn whether standard error is a terminal or not.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from guardalign_guardrails.detection.encoders import load_encoder

    if device is not None:
        check_device(device)
    return load_encoder(name, device=device)


def chosen_guard(
    encoder: str, policy: Path | None, profile: Path | None, scoring: ScoringName | None, device: str | None
) -> Guard:
    """A guard that is ready to check, so that whatever is missing is said before the first image."""
    chosen = chosen_policy(policy, scoring)
    ready = chosen_encoder(encoder, device)
    from guardalign_guardrails.guarding.guard import Guard

    guard = Guard(chosen, ready, profile=profile, scorer=chosen_scorer(scoring))
    guard.prepare()
    _look_once(ready)
    return guard


def _look_once(encoder: Encoder) -> None:
    """Load the image side of an encoder, which `Guard.prepare` leaves out when anchors are cached."""
    from PIL import Image

    from guardalign_guardrails.detection.encoders import Crop

    try:
        encoder.encode_crops([Crop(Image.new("RGB", (32, 32)), (0.0, 0.0, 32.0, 32.0))])
    except GuardAlignError:
        raise
    except Exception as error:
        raise CommandError(
            f"The encoder '{encoder.name}' fails on this machine ({type(error).__name__}); try --device cpu or another "
            "--encoder."
        ) from error


def check_device(device: str) -> None:
    """Use a device once: encoders cache anchors, so a missing one would only show in the middle of a scan.

    Raises:
        CommandError: It cannot be used.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {device}: it cannot be used here; try --device cpu.") from error
