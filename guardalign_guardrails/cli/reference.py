"""``guardalign reference``: a folder of benign images becomes a reference profile.

Thresholds of a policy are false-positive rates; this is where they get their meaning for one encoder and policy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guardalign_guardrails.cli.console import CommandError, printable, progress, report
from guardalign_guardrails.cli.files import Found, find
from guardalign_guardrails.cli.options import (
    DeviceOption,
    EncoderOption,
    PolicyOption,
    ScoringOption,
    chosen_encoder,
    chosen_policy,
    chosen_scorer,
)
from guardalign_guardrails.errors import GuardAlignError, ImageDecodeError
from guardalign_guardrails.evaluation.metrics import wilson

if TYPE_CHECKING:
    from guardalign_guardrails.detection.detector import Detector
    from guardalign_guardrails.detection.reference import Profile
    from guardalign_guardrails.images import DecodedImage

RATES: Final = (0.05, 0.02, 0.01, 0.001)
_AT_ONCE: Final = 8
_FEW: Final = 100


@dataclass
class Scored:
    """Scores of one folder's images.

    Attributes:
        scores: Image-level score of the best category and worst view, one for each distinct image.
        tiled: The same with the image's tiles among the views; empty if tiles were not looked at.
        skipped: How many files were left out, by reason.
    """

    scores: list[float] = field(default_factory=list)
    tiled: list[float] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def summary(self, kind: str) -> str:
        """Counts in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{len(self.scores)} {kind} images" + (f"; skipped {reasons}" if reasons else "")


def reference(
    benign: Annotated[Path, typer.Argument(metavar="BENIGN_DIR", help="Folder of harmless images like those to come.")],
    unsafe: Annotated[
        Path | None, typer.Option("--unsafe", metavar="DIR", help="Folder of unsafe images, to measure recall on.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the profile goes; where it is found again if not given."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name for reports; the folder's if not given.")] = None,
    note: Annotated[str, typer.Option("--note", help="Where the images came from.")] = "",
    no_tiles: Annotated[
        bool,
        typer.Option(
            "--no-tiles", help="Do not look at tiles too, which large images are compared with; a fifth of the time."
        ),
    ] = False,
    encoder: EncoderOption = "offline",
    policy: PolicyOption = None,
    scoring: ScoringOption = None,
    device: DeviceOption = None,
) -> None:
    """Make a reference profile from benign images; with --unsafe, say what it would find."""
    images = _found(benign, "BENIGN_DIR")
    others = _found(unsafe, "--unsafe") if unsafe else []
    chosen = chosen_policy(policy, scoring)
    ready = chosen_encoder(encoder, device)
    import platformdirs

    from guardalign_guardrails.detection.detector import Detector
    from guardalign_guardrails.detection.reference import make_profile, profile_file_name, user_profiles

    detector = Detector(chosen, ready, platformdirs.user_cache_path("guardalign"), chosen_scorer(scoring))
    key = detector.profile_key
    scored = _score(detector, images, "benign", tiles=not no_tiles)
    print(scored.summary("benign"))
    profile = make_profile(
        scored.scores,
        key,
        name=name or benign.resolve().name,
        encoder_name=ready.name,
        note=note,
        tiled=scored.tiled,
    )
    target = out or user_profiles() / profile_file_name(key)
    try:
        profile.save(target)
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise CommandError(f"{target}: {why}; choose another place with --out.") from error
    print(f"profile: {printable(str(target))}")
    if len(profile.scores) < _FEW:
        report(f"Only {len(profile.scores)} benign images: give at least {_FEW}, better 1000, for rates to be trusted.")
    smallest = chosen.smallest_rate
    if smallest is not None and smallest < profile.resolution:
        report(
            f"The policy asks for a rate of {smallest:g}, which needs at least {_needed(smallest)} benign images; that "
            "threshold is never met."
        )
    unsafe_scores: list[float] | None = None
    if unsafe:
        found = _score(detector, others, "unsafe", tiles=False)
        print(found.summary("unsafe"))
        unsafe_scores = found.scores
    _print_rates(profile, unsafe_scores)


def _found(folder: Path, what: str) -> list[Found]:
    if not folder.is_dir():
        raise CommandError(f"{what} {folder}: no such folder; give a folder of images.")
    images = find([str(folder)])
    if not images:
        raise CommandError(f"{what} {folder}: there is no image in it; give a folder of images.")
    return images


def _score(detector: Detector, pil_images: Sequence[Found], what: str, *, tiles: bool) -> Scored:
    from guardalign_guardrails.images import decode

    result = Scored()
    seen: set[str] = set()
    with progress(f"scoring {what}", len(pil_images)) as advance:
        for first in range(0, len(pil_images), _AT_ONCE):
            chunk = pil_images[first : first + _AT_ONCE]
            images = []
            for item in chunk:
                try:
                    image = decode(Path(item.path))
                except ImageDecodeError as error:
                    result.skipped[error.reason] += 1
                    continue
                if image.digest in seen:
                    # The same image twice is one observation; counting it twice would fake a finer profile.
                    result.skipped["duplicate"] += 1
                    continue
                seen.add(image.digest)
                images.append(image)
            _add(detector, images, result, tiles=tiles)
            advance(len(chunk))
    return result


def _add(detector: Detector, images: Sequence[DecodedImage], result: Scored, *, tiles: bool) -> None:
    """Score images together, and one by one if that fails, so that one that cannot be scored is left out alone."""
    from guardalign_guardrails.guarding.views import reference_tiles

    if not images:
        return
    try:
        maps, _ = detector.detect([view.pixels for image in images for view in image.views])
        parts = [tile for image in images for tile in reference_tiles(image.flattened)] if tiles else []
        tile_maps, _ = detector.detect(parts)
    except GuardAlignError:
        raise
    except Exception as error:  # noqa: BLE001  whatever an encoder raises, this image cannot be scored
        if len(images) == 1:
            result.skipped[f"failed ({type(error).__name__})"] += 1
        else:
            for image in images:
                _add(detector, [image], result, tiles=tiles)
        return
    scores = iter([float(score_map.image_scores.max()) for score_map in maps])
    for image in images:
        result.scores.append(max(next(scores) for _ in image.views))
    if tiles:
        highest = [float(score_map.image_scores.max()) for score_map in tile_maps]
        each = len(highest) // len(images)
        for place, score in enumerate(result.scores[-len(images) :]):
            result.tiled.append(max(score, *highest[place * each : (place + 1) * each]))


def _print_rates(profile: Profile, unsafe: Sequence[float] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ["false positives", "score above", *(["recall on unsafe", "95 % interval"] if unsafe else [])]
    table = Table(*columns, box=None, pad_edge=False)
    for rate in RATES:
        cells = [f"{rate:.1%}"]
        if rate < profile.resolution:
            table.add_row(*cells, f"needs {_needed(rate)} images")
            continue
        cells.append(f"{profile.threshold(rate):.4f}")
        if unsafe:
            hits = sum(profile.p_value(score) <= rate for score in unsafe)
            low, high = wilson(hits, len(unsafe))
            cells += [f"{hits / len(unsafe):.1%} ({hits} of {len(unsafe)})", f"{low:.1%} to {high:.1%}"]
        table.add_row(*cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"smallest p-value it can give: {profile.resolution:.2g}")
    console.print(table)


def _needed(rate: float) -> int:
    """How many benign images resolve a rate: 1 / (n + 1) must not exceed it."""
    return math.ceil(1 / rate - 1e-9) - 1
