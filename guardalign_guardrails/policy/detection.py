"""Settings of regions and scoring: frozen, no maths.

Apart from the maths so that a policy file can be read, checked and fingerprinted without importing torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Scoring = Literal["joint", "conditional", "paper"]
"""How costs become scores."""


class RegionConfig(BaseModel):
    """How an image is cut into regions.

    Attributes:
        method: ``grid``: crops, each through the encoder on its own; ``dense``: cells of the encoder's feature map.
        scales: For ``grid`` the number of crops per side, one entry a scale, 1 being the whole image. For ``dense``
            the side in pixels the image is resized to, one forward pass a scale; 0 for the encoder's own.
        windows: For ``dense``: cells are also averaged over windows of this many cells per side, one set of regions
            each, from the same forward pass; 1 is the cell itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["grid", "dense"] = "grid"
    scales: tuple[int, ...] = Field(default=(1, 4), min_length=1)
    windows: tuple[int, ...] = Field(default=(1,), min_length=1)

    @field_validator("scales")
    @classmethod
    def _scales_are_counts(cls, scales: tuple[int, ...]) -> tuple[int, ...]:
        if min(scales) < 0 or len(set(scales)) != len(scales):
            raise ValueError("scales must be distinct and not negative")
        return scales

    @field_validator("windows")
    @classmethod
    def _windows_are_counts(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if min(windows) < 1 or len(set(windows)) != len(windows):
            raise ValueError("windows must be distinct and at least 1")
        return windows


class ScoringConfig(BaseModel):
    """How region and anchor features become scores.

    Attributes:
        method: See `Scoring`.
        epsilon: Entropic regularisation in units of cosine cost; None for 1 / logit scale of the encoder ("joint") or
            0.1 (the others; AWT's value, the paper gives none).
        relaxation: Strength of the anchor marginal in "joint" (rho of the KL term).
        max_iterations: Sinkhorn iterations at most.
        tolerance: Marginal error at which Sinkhorn stops.
        paper_tau: Threshold on the raw cost of "paper" (GuardAlign section 4.1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Scoring = "joint"
    epsilon: float | None = Field(default=None, gt=0)
    relaxation: float = Field(default=0.02, gt=0)
    max_iterations: int = Field(default=100, ge=1)
    tolerance: float = Field(default=1e-3, gt=0)
    paper_tau: float = 0.42
