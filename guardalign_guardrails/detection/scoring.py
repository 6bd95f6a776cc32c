"""From features to scores: which regions are unsafe, in which category, how strongly.

Each scoring turns one image's regions and a policy's anchors into evidence, shape [regions, categories], higher being
more unsafe. "joint" and "conditional" pool evidence of overlapping regions on the finest grid; the image's score is
its hottest region's. The paper's own scoring is kept as it is, for comparison. A detector takes any `Scorer`; the one
for a policy is `TransportScorer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from guardalign_guardrails.detection.anchors import AnchorBank
from guardalign_guardrails.detection.encoders.base import Encoder
from guardalign_guardrails.detection.reference import ScoringKey
from guardalign_guardrails.detection.regions import Regions
from guardalign_guardrails.detection.transport import (
    conditional_cost,
    cosine_cost,
    entropy,
    entropy_weights,
    mass_share,
    replaced_entropies,
    sinkhorn,
)
from guardalign_guardrails.policy.detection import RegionConfig, Scoring, ScoringConfig

_PAPER_EPSILON = 0.1
_LOGIT_LIMIT = 1e-6


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """Scores of one image's regions.

    Attributes:
        boxes: Left, top, right, bottom as fractions of the image, shape [R, 4].
        scores: Higher is more unsafe, shape [R, C].
        grid: (rows, columns) if the regions tile the image in reading order, else None.
    """

    boxes: Tensor
    scores: Tensor
    grid: tuple[int, int] | None

    @property
    def image_scores(self) -> Tensor:
        """Score of the whole image per category: its hottest region's, shape [C]."""
        return self.scores.amax(0)


@dataclass(frozen=True)
class Pair:
    """A region and an anchor that the transport joins.

    Attributes:
        box: The region, as fractions of the image.
        anchor: The anchor's text.
        category: The anchor's category, None for a benign anchor.
        share: Share of the region's mass that goes to the anchor, in [0, 1].
    """

    box: tuple[float, float, float, float]
    anchor: str
    category: str | None
    share: float


class Scorer(Protocol):
    """One way to score.

    Attributes:
        key: Identifies this way to score; part of a reference profile's key.
        is_share: Whether scores are shares of mass in (0, 1), which mean the same for every encoder.
    """

    @property
    def key(self) -> ScoringKey:
        """Identifies this way to score."""

    @property
    def is_share(self) -> bool:
        """Whether scores are shares of mass."""

    def regions_for(self, encoder: Encoder, wanted: RegionConfig | None) -> RegionConfig:
        """How to cut images: as wanted, else what suits the scoring and the encoder."""

    def score(self, regions: Regions, bank: AnchorBank, logit_scale: float) -> ScoreMap:
        """Scores of one image."""

    def pairs(self, regions: Regions, bank: AnchorBank, logit_scale: float, count: int) -> list[Pair]:
        """The region-anchor pairs that explain the scores, strongest first."""


@dataclass(frozen=True)
class TransportScorer:
    """Scores by optimal transport, as a policy's scoring says.

    Attributes:
        config: The scoring and its constants.
    """

    config: ScoringConfig

    @property
    def key(self) -> ScoringKey:
        """The settings."""
        return ScoringKey.model_validate(self.config.model_dump())

    @property
    def is_share(self) -> bool:
        """True for "joint"."""
        return self.config.method == "joint"

    def regions_for(self, encoder: Encoder, wanted: RegionConfig | None) -> RegionConfig:
        """See `regions_for`."""
        return regions_for(self.config.method, encoder, wanted)

    def score(self, regions: Regions, bank: AnchorBank, logit_scale: float) -> ScoreMap:
        """See `score`."""
        return score(regions, bank, self.config, logit_scale)

    def pairs(self, regions: Regions, bank: AnchorBank, logit_scale: float, count: int) -> list[Pair]:
        """See `top_pairs`."""
        return top_pairs(regions, bank, self.config, logit_scale, count)


def regions_for(scoring: Scoring, encoder: Encoder, wanted: RegionConfig | None) -> RegionConfig:
    """How to cut images for a scoring: as wanted, else what suits the scoring and the encoder."""
    if wanted is not None:
        return wanted
    if scoring == "paper":
        return RegionConfig(method="grid", scales=(4,))
    return encoder.default_regions


def score(regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float) -> ScoreMap:
    """Score one image.

    Args:
        regions: The image's regions.
        bank: The policy's anchors.
        config: Which scoring, with which constants.
        logit_scale: The encoder's inverse softmax temperature.

    Returns:
        The scores. "joint": share of mass sent to the category, in (0, 1). "conditional": 1 - cost, in [-1, 1].
        "paper": minus the raw cost d(m) of eq. 9.
    """
    layout = regions.layout
    if config.method == "joint":
        share = joint_share(regions, bank, config, logit_scale)
        pooled = layout.fusion @ torch.logit(share, eps=_LOGIT_LIMIT)
        return ScoreMap(layout.cells, torch.sigmoid(pooled), (layout.rows, layout.columns))
    if config.method == "conditional":
        pooled = layout.fusion @ (1.0 - conditional_costs(regions, bank, config, logit_scale))
        return ScoreMap(layout.cells, pooled, (layout.rows, layout.columns))
    raw, per_category = paper_costs(regions, bank, config, logit_scale)
    # d(m) sums over categories; the category that is closest gets it, the others stay as much behind as they are.
    behind = per_category - per_category.amin(-1, keepdim=True)
    return ScoreMap(layout.boxes, -(raw.unsqueeze(-1) + behind), layout.grid)


def top_pairs(regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float, count: int) -> list[Pair]:
    """The unsafe region-anchor pairs that the transport joins most strongly, strongest first, one per anchor.

    Args:
        regions: The image's regions.
        bank: The policy's anchors.
        config: Which scoring.
        logit_scale: The encoder's inverse softmax temperature.
        count: How many pairs at most.
    """
    if config.method == "joint":
        plan = joint_plan(regions, bank, config, logit_scale)
        strength = (plan / plan.sum(-1, keepdim=True))[:, : bank.unsafe_count]
    else:
        sign = 1.0 if config.method == "paper" else -1.0
        _, plans, rows = _category_transports(regions, bank, config, logit_scale, sign)
        strength = torch.cat([plan[:, :size] for plan, size in zip(plans, bank.sizes, strict=True)], dim=1)
        strength = strength / rows.unsqueeze(-1)
    return strongest(strength, regions, bank, count)


def strongest(strength: Tensor, regions: Regions, bank: AnchorBank, count: int) -> list[Pair]:
    """The pairs of the strongest anchors, each with the region that is strongest for it.

    Args:
        strength: How strongly each region and unsafe anchor are joined, shape [M, unsafe anchors].
        regions: The image's regions.
        bank: The policy's anchors.
        count: How many pairs at most.
    """
    best, where = strength.max(0)
    owners = [name for name, size in zip(bank.names, bank.sizes, strict=True) for _ in range(size)]
    pairs = []
    for anchor in best.argsort(descending=True)[:count].tolist():
        left, top, right, bottom = regions.layout.boxes[where[anchor]].tolist()
        pairs.append(Pair((left, top, right, bottom), bank.texts[anchor], owners[anchor], float(best[anchor])))
    return pairs


def joint_plan(regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float) -> Tensor:
    """One unbalanced transport from all regions to unsafe and benign anchors together.

    Regions weigh the same and their mass must all be sent; anchors take what comes, drawn towards equal shares by
    ``config.relaxation``. A clean region sends its mass to benign anchors, which the balanced problems of GuardAlign
    eq. 8 do not have.

    Returns:
        Transport plan, shape [M, A], rows summing to 1 / M.
    """
    cost = cosine_cost(regions.features, bank.features)
    rows, columns = cost.shape
    return sinkhorn(
        cost,
        torch.full((rows,), 1.0 / rows),
        torch.full((columns,), 1.0 / columns),
        epsilon=config.epsilon or 1.0 / logit_scale,
        relaxation=config.relaxation,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
    )


def joint_share(regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float) -> Tensor:
    """Share of each region's mass that `joint_plan` sends to each category, in [0, 1], shape [M, C]."""
    return mass_share(joint_plan(regions, bank, config, logit_scale), bank.groups)


def conditional_costs(regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float) -> Tensor:
    """Cost per unit of region mass of one balanced transport per category, shape [M, C].

    Confident regions and anchors weigh more (eq. 7 as the text describes it).
    """
    cost, plan, rows = _category_transports(regions, bank, config, logit_scale, sign=-1.0)
    return conditional_cost(plan, cost, rows).T


def paper_costs(regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float) -> tuple[Tensor, Tensor]:
    """GuardAlign eqs. 6-9 exactly as printed: softmax(+h) weights, raw sum over anchors and categories.

    Returns:
        Cost of each region d(m), shape [M], and its terms d_i(m) by category, shape [M, C]; lower is more unsafe.
    """
    cost, plan, _ = _category_transports(regions, bank, config, logit_scale, sign=1.0)
    per_category = (plan * cost).sum(-1).T
    return per_category.sum(-1), per_category


def _category_transports(
    regions: Regions, bank: AnchorBank, config: ScoringConfig, logit_scale: float, sign: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Balanced transports of the regions to each category's anchors, all categories in one batch.

    Categories with fewer anchors are filled up with anchors of no mass.

    Returns:
        Costs [C, M, N], plans [C, M, N] and the region marginal [M].
    """
    width = max(bank.sizes)
    anchors = torch.stack([_filled(group, width) for group in bank.categories])
    is_real = torch.arange(width) < torch.tensor(bank.sizes).unsqueeze(-1)
    region_entropy = entropy(logit_scale * regions.features @ bank.centroids.T)
    rows = entropy_weights(region_entropy, sign)
    anchor_entropy = replaced_entropies(regions.whole, bank.centroids, anchors, logit_scale)
    columns = entropy_weights(torch.where(is_real, sign * anchor_entropy, -torch.inf), 1.0)
    cost = cosine_cost(regions.features, anchors)
    plan = sinkhorn(
        cost,
        rows,
        columns,
        epsilon=config.epsilon or _PAPER_EPSILON,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
    )
    return cost, plan, rows


def _filled(anchors: Tensor, width: int) -> Tensor:
    return torch.cat([anchors, anchors[:1].expand(width - len(anchors), -1)])
