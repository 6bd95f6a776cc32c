"""Cosine baselines: the same anchors and encoder as a policy's, without transport. To compare with, not to guard with.

``global-cosine`` compares the whole image, as ETA does; ``best-region-cosine`` takes the hottest region.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from guardalign_guardrails.detection.anchors import AnchorBank
from guardalign_guardrails.detection.encoders import Encoder
from guardalign_guardrails.detection.reference import ScoringKey
from guardalign_guardrails.detection.regions import Regions
from guardalign_guardrails.detection.scoring import Pair, ScoreMap, strongest
from guardalign_guardrails.policy import RegionConfig

Baseline = Literal["best-region-cosine", "global-cosine"]


@dataclass(frozen=True)
class CosineScorer:
    """Scores a region by its largest cosine to an anchor of a category.

    Attributes:
        method: Which baseline.
    """

    method: Baseline

    @property
    def key(self) -> ScoringKey:
        """The method."""
        return ScoringKey(method=self.method)

    @property
    def is_share(self) -> bool:
        """False: scores are cosines in [-1, 1]."""
        return False

    def regions_for(self, encoder: Encoder, wanted: RegionConfig | None) -> RegionConfig:
        """The whole image for ``global-cosine``; else as wanted, or what suits the encoder."""
        if self.method == "global-cosine":
            return RegionConfig(method="grid", scales=(1,))
        return wanted or encoder.default_regions

    def score(self, regions: Regions, bank: AnchorBank, logit_scale: float) -> ScoreMap:
        """The largest cosine to an anchor of each category."""
        cosines = torch.stack([(regions.features @ anchors.T).amax(-1) for anchors in bank.categories], dim=-1)
        return ScoreMap(regions.layout.boxes, cosines, regions.layout.grid)

    def pairs(self, regions: Regions, bank: AnchorBank, logit_scale: float, count: int) -> list[Pair]:
        """The pairs with the largest cosines, which are their ``share``."""
        return strongest(regions.features @ bank.features[: bank.unsafe_count].T, regions, bank, count)
