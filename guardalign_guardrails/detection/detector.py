"""From pixels to scores: the one place that joins encoder, anchors, regions and scoring.

It knows no thresholds and takes no action. Loading is lazy and happens once; afterwards it may be used by several
threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from guardalign_guardrails.detection.anchors import AnchorBank, build_bank
from guardalign_guardrails.detection.encoders.base import Encoder
from guardalign_guardrails.detection.reference import ProfileKey
from guardalign_guardrails.detection.regions import cut, reach
from guardalign_guardrails.detection.scoring import Pair, ScoreMap, Scorer, TransportScorer
from guardalign_guardrails.policy import Policy
from guardalign_guardrails.policy.detection import RegionConfig

_IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class Timings:
    """Milliseconds spent on a batch.

    Attributes:
        encode: Cutting and encoding.
        score: Weights, costs, transport, pooling.
    """

    encode: float
    score: float


class Detector:
    """Scores images under one policy and encoder.

    Args:
        policy: Anchors, regions and scoring.
        encoder: Any encoder.
        cache_dir: Folder for anchor features; None for none.
        scorer: How to score; None for what the policy says.
    """

    def __init__(
        self, policy: Policy, encoder: Encoder, cache_dir: Path | None = None, scorer: Scorer | None = None
    ) -> None:
        self.policy = policy
        self.encoder = encoder
        self.scorer: Scorer = TransportScorer(policy.scoring) if scorer is None else scorer
        self._cache_dir = cache_dir
        self._bank: AnchorBank | None = None
        self._loading = threading.Lock()

    @property
    def bank(self) -> AnchorBank:
        """The policy's anchors, encoded on first use."""
        if self._bank is None:
            with self._loading:
                if self._bank is None:
                    self._bank = build_bank(self.policy, self.encoder, self._cache_dir)
        return self._bank

    @property
    def regions(self) -> RegionConfig:
        """How images are cut."""
        return self.scorer.regions_for(self.encoder, self.policy.regions)

    @property
    def reach(self) -> int:
        """Longest side in pixels up to which one look at an image sees it in full detail; may load the encoder."""
        return reach(self.encoder, self.regions)

    @property
    def profile_key(self) -> ProfileKey:
        """What a reference profile must have been made with."""
        return ProfileKey(
            encoder=self.encoder.fingerprint,
            anchors=self.policy.anchor_fingerprint,
            regions=self.regions,
            scoring=self.scorer.key,
        )

    def detect(self, images: Sequence[Image.Image]) -> tuple[list[ScoreMap], Timings]:
        """Score images, several through the encoder at once.

        Args:
            images: RGB images of any sizes.

        Returns:
            One `ScoreMap` per image, in order, and the time it took.

        Raises:
            ArithmeticError: A score is not finite. Compared with a threshold, a NaN would pass for safe.
        """
        maps: list[ScoreMap] = []
        encode = score = 0.0
        for first in range(0, len(images), _IMAGES_AT_ONCE):
            started = time.perf_counter()
            cut_images = cut(self.encoder, images[first : first + _IMAGES_AT_ONCE], self.regions)
            encoded = time.perf_counter()
            maps += [self.scorer.score(regions, self.bank, self.encoder.logit_scale) for regions in cut_images]
            encode += encoded - started
            score += time.perf_counter() - encoded
        if not all(bool(score_map.scores.isfinite().all()) for score_map in maps):
            raise ArithmeticError("scores are not finite")
        return maps, Timings(encode * 1e3, score * 1e3)

    def pairs(self, image: Image.Image, count: int) -> list[Pair]:
        """The region-anchor pairs that explain one image's scores, strongest first."""
        (regions,) = cut(self.encoder, [image], self.regions)
        return self.scorer.pairs(regions, self.bank, self.encoder.logit_scale, count)
