"""From scores to p-values, against benign images scored the same way.

A score's p-value is its conformal rank among the scores of benign reference images (Vovk et al. 2005), so a threshold
on it is a false-positive rate and means the same for every encoder. The reference holds each image's best category:
a rank in it is valid for all categories at once (single-step maxT, Westfall and Young 1993).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guardalign_guardrails.errors import ProfileError, ProfileMissing
from guardalign_guardrails.policy.detection import RegionConfig, ScoringConfig

_DIGITS = 7


class ScoringKey(BaseModel):
    """Identifies a way to score; scores with different keys cannot be compared.

    Attributes:
        method: Name of the way.
        epsilon: See `guardalign_guardrails.policy.ScoringConfig`, as all that follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    epsilon: float | None = None
    relaxation: float = 0.02
    max_iterations: int = 100
    tolerance: float = 1e-3
    paper_tau: float = 0.42


class ProfileKey(BaseModel):
    """What a profile is valid for.

    Attributes:
        encoder: Encoder fingerprint.
        anchors: Anchor fingerprint of the policy.
        regions: How images were cut.
        scoring: How they were scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    anchors: str
    regions: RegionConfig
    scoring: ScoringKey

    @field_validator("scoring", mode="before")
    @classmethod
    def _scoring_is_a_key(cls, scoring: Any) -> Any:
        return scoring.model_dump() if isinstance(scoring, ScoringConfig) else scoring

    @property
    def digest(self) -> str:
        """SHA-256 of the key; a profile's file name begins with it."""
        data = self.model_dump(mode="json")
        # tau decides what to do with a score, not the score.
        data["scoring"].pop("paper_tau")
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Looks:
    """How often an image was looked at: each look is another chance for a benign image to score high.

    Attributes:
        readings: How many different images readers may make of it, frames included, at least 1.
        tiles: In how many tiles one of them was looked at in detail, beside the whole.
    """

    readings: int = 1
    tiles: int = 0


ONE_LOOK: Final = Looks()
"""The whole image, which has one reading."""

TILES: Final = 4
"""How many tiles the reference images were looked at in."""


class Profile(BaseModel):
    """Scores of benign images under one encoder, policy and scoring.

    Attributes:
        name: For reports.
        encoder_name: For reports; the key holds the fingerprint.
        key: What the profile is valid for.
        note: Where the images came from.
        scores: Image-level score of the best category of each benign image, ascending.
        tiled: The same where each image was looked at as a whole and in four tiles, and the highest score counts; empty
            if that was not done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    encoder_name: str
    key: ProfileKey
    note: str = ""
    scores: tuple[float, ...] = Field(min_length=1)
    tiled: tuple[float, ...] = ()

    @field_validator("scores", "tiled")
    @classmethod
    def _scores_ascend(cls, scores: tuple[float, ...]) -> tuple[float, ...]:
        if any(not (a <= b) for a, b in itertools.pairwise(scores)):
            raise ValueError("scores must be finite and ascending")
        return scores

    @cached_property
    def resolution(self) -> float:
        """Smallest p-value the profile can give, 1 / (n + 1); rates below it can never be met."""
        return 1.0 / (len(self.scores) + 1)

    def p_value(self, score: float, looks: Looks = ONE_LOOK) -> float:
        """Probability that a benign image scores at least as high when it is looked at as often, in (0, 1].

        It is the share of benign images that score at least as high, the image itself counted among them, times the
        number of looks that the reference does not have (Bonferroni): of several readings the highest score counts.

        Args:
            score: Image-level score, the highest over all looks.
            looks: How often the image was looked at.
        """
        scores, factor = self._reference(looks)
        at_least = len(scores) - bisect.bisect_left(scores, round(score, _DIGITS))
        return min(1.0, factor * (1 + at_least) / (len(scores) + 1))

    def threshold(self, rate: float, looks: Looks = ONE_LOOK) -> float:
        """The score from which the p-value is at most ``rate``; infinity if the profile cannot resolve the rate."""
        scores, factor = self._reference(looks)
        allowed = int(rate / factor * (len(scores) + 1) + 1e-9) - 1
        if allowed < 0:
            return float("inf")
        if allowed >= len(scores):
            return float("-inf")
        return round(scores[len(scores) - 1 - allowed] + 0.1**_DIGITS, _DIGITS)

    def most_readings(self, rate: float, tiles: int = 0) -> int:
        """The most readings of an image with which a p-value can still be as small as ``rate``; 0 for none."""
        scores, factor = self._reference(Looks(1, tiles))
        return int(rate * (len(scores) + 1) / factor + 1e-9)

    def _reference(self, looks: Looks) -> tuple[tuple[float, ...], int]:
        """The benign scores to compare with, and how many times as many looks the image had."""
        if looks.tiles and self.tiled:
            return self.tiled, looks.readings * math.ceil(looks.tiles / TILES)
        return self.scores, looks.readings * (1 + looks.tiles)

    def save(self, path: Path) -> None:
        """Write the profile as JSON; parent folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target and renamed, so that a guard that starts meanwhile never reads half a profile.
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(self.model_dump(mode="json"), separators=(",", ":")) + "\n", encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read a profile.

        Raises:
            ProfileError: The file cannot be read or is no profile.
        """
        path = Path(path)
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(
                f"Cannot read the profile {path} ({type(error).__name__}); make one with 'guardalign reference'."
            ) from error
        except ValidationError as error:
            raise ProfileError(f"{path} is not a reference profile; make one with 'guardalign reference'.") from error


def make_profile(
    scores: Iterable[float],
    key: ProfileKey,
    *,
    name: str,
    encoder_name: str,
    note: str = "",
    tiled: Iterable[float] = (),
) -> Profile:
    """A profile from the image-level scores of benign images; ``tiled`` as in `Profile`.

    Raises:
        ProfileError: There are no scores.
    """
    whole, both = (tuple(sorted(round(score, _DIGITS) for score in each)) for each in (scores, tiled))
    if not whole:
        raise ProfileError("No benign image could be scored; give a folder with readable images.")
    return Profile(name=name, encoder_name=encoder_name, key=key, note=note, scores=whole, tiled=both)


def user_profiles() -> Path:
    """Folder where ``guardalign reference`` keeps profiles and where they are found again."""
    return platformdirs.user_data_path("guardalign") / "profiles"


def profile_file_name(key: ProfileKey) -> str:
    """File name under which a profile is found again."""
    return f"{key.digest[:24]}.json"


def find_profile(key: ProfileKey, *, encoder_name: str) -> Profile:
    """The profile for a key: the user's own, else one that ships with the package.

    Raises:
        ProfileMissing: There is none; the message says how to make one.
        ProfileError: There is one and it cannot be read.
    """
    file_name = profile_file_name(key)
    shipped: Any = resources.files("guardalign_guardrails.detection").joinpath("profiles")
    for folder in (user_profiles(), Path(str(shipped))):
        if (folder / file_name).is_file():
            return Profile.load(folder / file_name)
    raise ProfileMissing(
        f"No reference profile fits encoder '{encoder_name}', these anchors and scoring '{key.scoring.method}'. "
        "Make one: guardalign reference BENIGN_FOLDER (with the same --encoder, --policy and --scoring), "
        "or give the policy thresholds of 'kind: score'."
    )
