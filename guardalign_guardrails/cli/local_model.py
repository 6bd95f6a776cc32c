"""Flags of local models, which chat and evaluate share, and the model that they describe."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, TypeVar

import typer

from guardalign_guardrails.cli.console import CommandError
from guardalign_guardrails.cli.options import check_device

if TYPE_CHECKING:
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM

T = TypeVar("T")

# Those of decoding.config, which needs torch; a test keeps them equal.
Placement: TypeAlias = Literal["system", "user", "response"]
Queries: TypeAlias = Literal["instruction", "instruction+generated"]

MOST_GAMMA: Final = 4.0
"""The largest strength that a target takes by default; more only breaks text."""

ModelOption: TypeAlias = Annotated[
    str, typer.Option("--model", metavar="NAME", help="smollm2 | REPOSITORY | FOLDER | FILE.gguf")
]
ModelDeviceOption: TypeAlias = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ...; the default is the CPU.")
]


def band(text: str) -> tuple[float, float]:
    """Read layers as ``LOW-HIGH``, fractions of the depth such as ``0.33-0.67`` or ``1/3-2/3``.

    Raises:
        CommandError: It is not that.
    """
    low, _, high = text.partition("-")
    try:
        found = float(Fraction(low.strip())), float(Fraction(high.strip()))
    except (ValueError, ZeroDivisionError):
        found = (1.0, 0.0)
    if not 0 <= found[0] < found[1] <= 1:
        raise CommandError("--layers is LOW-HIGH as fractions of the depth, such as 0.33-0.67 or 1/3-2/3.")
    return found


def target(text: str) -> float | Literal["shallow"]:
    """Read a share of attention, or ``shallow``.

    Raises:
        CommandError: It is neither.
    """
    if text == "shallow":
        return "shallow"
    return number(text, "--target", most=1.0)


def number(text: str, flag: str, most: float = float("inf")) -> float:
    """Read a number from 0 to ``most``.

    Raises:
        CommandError: It is none.
    """
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= most or found == float("inf"):
        limit = "0 or more" if most == float("inf") else f"from 0 to {most:g}"
        raise CommandError(f"{flag} takes numbers, {limit}" + (", or 'shallow'." if flag == "--target" else "."))
    return found


def listed(text: str, read: Callable[[str], T]) -> list[T]:
    """Read the items of a list with commas."""
    return [read(part.strip()) for part in text.split(",") if part.strip()]


def chosen_model(name: str, device: str | None, **settings: Any) -> CalibratedLVLM:
    """Load a model by name.

    Args:
        name: See `guardalign_guardrails.decoding.loading.load`.
        device: Where it runs; None for the CPU.
        **settings: Of `CalibratedLVLM`.

    Raises:
        CommandError: The device cannot be used.
        ModelUnavailable: It cannot be loaded.
        CalibrationError: It cannot be calibrated.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if device is not None:
        check_device(device)
    from guardalign_guardrails.decoding.lvlm import CalibratedLVLM

    _quieten()
    return CalibratedLVLM.from_pretrained(name, device_map=device, **settings)


def _quieten() -> None:
    """Switch off transformers' progress bars, which it draws even if standard error is no terminal."""
    try:
        from transformers.utils import logging
    except ImportError:
        # Loading reports the missing package.
        return
    logging.disable_progress_bar()
    logging.set_verbosity_error()
