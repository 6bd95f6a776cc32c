"""Scorings on features made by hand, where the right answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from guardalign_guardrails.detection.anchors import AnchorBank
from guardalign_guardrails.detection.regions import Regions, _layout
from guardalign_guardrails.detection.scoring import (
    conditional_costs,
    joint_plan,
    joint_share,
    paper_costs,
    score,
    top_pairs,
)
from guardalign_guardrails.detection.transport import entropy, entropy_weights, replaced_entropies, sinkhorn
from guardalign_guardrails.policy.detection import ScoringConfig

SCALE = 20.0
METHODS = ("joint", "conditional", "paper")


def bank(sizes=(3, 5), benign=4, dimensions=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = functional.normalize(torch.randn(sum(sizes) + benign, dimensions, generator=generator), dim=-1)
    names = tuple(f"c{i}" for i in range(len(sizes)))
    return AnchorBank(features, names, sizes, tuple(f"text {i}" for i in range(len(features))))


def regions_of(features, rows, columns):
    features = functional.normalize(features, dim=-1)
    return Regions(features, functional.normalize(features.mean(0), dim=-1), _layout(((rows, columns, 1),)))


def scene(anchors, hot, side=4, seed=1):
    """Regions that look like benign anchors, and one, ``hot``, that looks like an anchor of the second category."""
    generator = torch.Generator().manual_seed(seed)
    benign = anchors.features[anchors.unsafe_count :]
    features = benign[torch.randint(len(benign), (side * side,), generator=generator)].clone()
    features[hot] = anchors.categories[1][2]
    return regions_of(features + 0.05 * torch.randn(features.shape, generator=generator), side, side)


@pytest.mark.parametrize("method", ["joint", "conditional"])
@pytest.mark.parametrize("hot", [0, 6, 15])
def test_the_planted_region_and_category_score_highest(method, hot):
    anchors = bank()
    found = score(scene(anchors, hot), anchors, ScoringConfig(method=method), SCALE)
    assert divmod(int(found.scores.argmax()), 2) == (hot, 1)
    assert float(found.image_scores[1]) == pytest.approx(float(found.scores[hot, 1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from(METHODS))
def test_permuting_regions_permutes_scores(seed, method):
    anchors = bank()
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(9, 16, generator=generator)
    order = torch.randperm(9, generator=generator)
    config = ScoringConfig(method=method, tolerance=1e-7, max_iterations=5000)
    one = score(regions_of(features, 3, 3), anchors, config, SCALE)
    other = score(regions_of(features[order], 3, 3), anchors, config, SCALE)
    torch.testing.assert_close(other.scores, one.scores[order], rtol=1e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_permuting_anchors_within_a_category_changes_nothing(seed):
    anchors = bank()
    order = torch.cat([torch.tensor([2, 0, 1]), torch.arange(3, len(anchors.features))])
    shuffled = AnchorBank(anchors.features[order], anchors.names, anchors.sizes, anchors.texts)
    regions = regions_of(torch.randn(9, 16, generator=torch.Generator().manual_seed(seed)), 3, 3)
    for method in METHODS:
        config = ScoringConfig(method=method, tolerance=1e-7, max_iterations=5000)
        one, other = score(regions, anchors, config, SCALE), score(regions, shuffled, config, SCALE)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)


def test_joint_shares_lie_between_zero_and_one_and_leave_the_rest_to_benign_anchors():
    anchors = bank()
    share = joint_share(scene(anchors, 3), anchors, ScoringConfig(), SCALE)
    assert (share >= 0).all()
    assert (share.sum(-1) <= 1 + 1e-6).all()
    assert share.sum(-1).argmax() == 3
    assert float(share[3, 1]) > 0.8


def test_the_paper_scoring_is_equations_6_to_9_written_out():
    anchors = bank(sizes=(4, 4, 4))
    regions = scene(anchors, 5)
    raw, _ = paper_costs(regions, anchors, ScoringConfig(tolerance=1e-9, max_iterations=5000), SCALE)
    weights = entropy_weights(entropy(SCALE * regions.features @ anchors.centroids.T), sign=1.0)
    expected = torch.zeros(16)
    stacked = torch.stack(anchors.categories)
    columns = entropy_weights(replaced_entropies(regions.whole, anchors.centroids, stacked, SCALE), sign=1.0)
    for category in range(3):
        cost = 1 - regions.features @ stacked[category].T
        plan = sinkhorn(cost, weights, columns[category], epsilon=0.1, tolerance=1e-9, max_iterations=5000)
        expected += (plan * cost).sum(-1)
    torch.testing.assert_close(raw, expected, rtol=1e-4, atol=1e-6)


def test_the_paper_score_of_a_region_is_minus_its_raw_cost():
    anchors = bank()
    regions = scene(anchors, 5)
    raw, _ = paper_costs(regions, anchors, ScoringConfig(method="paper"), SCALE)
    found = score(regions, anchors, ScoringConfig(method="paper"), SCALE)
    torch.testing.assert_close(found.scores.amax(-1), -raw)


def test_categories_of_unequal_size_are_not_mixed_up_by_filling():
    anchors = bank(sizes=(2, 7))
    alone = AnchorBank(anchors.features[:2], ("c0",), (2,), anchors.texts[:2])
    regions = scene(bank(sizes=(2, 7)), 1)
    config = ScoringConfig(tolerance=1e-9, max_iterations=5000)
    cost, columns = 1 - regions.features @ alone.features.T, None
    together = conditional_costs(regions, anchors, config, SCALE)
    weights = entropy_weights(entropy(SCALE * regions.features @ anchors.centroids.T), sign=-1.0)
    base = SCALE * regions.whole @ anchors.centroids.T
    entropies = [entropy(torch.stack([own, base[1]])) for own in SCALE * alone.features @ regions.whole]
    columns = entropy_weights(torch.stack(entropies), sign=-1.0)
    plan = sinkhorn(cost, weights, columns, epsilon=0.1, tolerance=1e-9, max_iterations=5000)
    torch.testing.assert_close(together[:, 0], (plan * cost).sum(-1) / weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "sizes"), [(1, (1,)), (1, (3, 5)), (3, (1, 1))])
def test_one_region_and_one_anchor_are_no_special_case(method, rows, sizes):
    anchors = bank(sizes=sizes)
    found = score(regions_of(torch.randn(rows * rows, 16), rows, rows), anchors, ScoringConfig(method=method), SCALE)
    assert torch.isfinite(found.scores).all()
    assert found.scores.shape == (rows * rows, len(sizes))


@pytest.mark.parametrize("method", METHODS)
def test_identical_regions_score_the_same(method):
    anchors = bank()
    found = score(regions_of(torch.ones(9, 16), 3, 3), anchors, ScoringConfig(method=method), SCALE)
    torch.testing.assert_close(found.scores, found.scores[:1].expand(9, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["joint", "conditional"])
def test_the_top_pair_names_the_planted_anchor_and_region(method):
    anchors = bank()
    pairs = top_pairs(scene(anchors, 6), anchors, ScoringConfig(method=method), SCALE, 3)
    assert (pairs[0].anchor, pairs[0].category, pairs[0].box) == ("text 5", "c1", (0.5, 0.25, 0.75, 0.5))
    assert [pair.share for pair in pairs] == sorted((pair.share for pair in pairs), reverse=True)


@pytest.mark.parametrize(("epsilon", "taken"), [(None, 1 / SCALE), (0.3, 0.3)])
def test_the_joint_plan_is_as_soft_as_the_encoders_own_softmax_unless_a_policy_says_otherwise(epsilon, taken):
    anchors = bank()
    regions = scene(anchors, 3)
    count, texts = len(regions.features), len(anchors.features)
    expected = sinkhorn(
        1 - regions.features @ anchors.features.T,
        torch.full((count,), 1 / count),
        torch.full((texts,), 1 / texts),
        epsilon=taken,
        relaxation=ScoringConfig().relaxation,
    )
    plan = joint_plan(regions, anchors, ScoringConfig(epsilon=epsilon), SCALE)
    torch.testing.assert_close(plan, expected, rtol=1e-3, atol=1e-5)
