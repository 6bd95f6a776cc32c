"""The transport maths against POT (exact, entropic, batched, unbalanced) and against its own invariants."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardalign_guardrails.detection.transport import (
    conditional_cost,
    cosine_cost,
    entropy,
    entropy_weights,
    mass_share,
    replaced_entropies,
    sinkhorn,
)

problems = settings(max_examples=25, deadline=None)


@st.composite
def problem(draw, max_rows=9, max_columns=7, scale=None):
    """A random cost matrix in [0, 2] (times ``scale``) with two positive marginals."""
    rows, columns = draw(st.integers(1, max_rows)), draw(st.integers(1, max_columns))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64)
    row_mass = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.05
    column_mass = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.05
    return cost * (scale or 1.0), row_mass / row_mass.sum(), column_mass / column_mass.sum()


def converged(cost, a, b, epsilon, **kwargs):
    return sinkhorn(cost, a, b, epsilon=epsilon, max_iterations=20_000, tolerance=1e-12, **kwargs)


def iterations(cost, a, b, epsilon, relaxation, tolerance):
    """How many pairs of half-steps it takes, by Sinkhorn's iteration on one problem as in a textbook."""
    kernel = (-cost / epsilon).exp()
    u, v = 1 / (kernel @ b), torch.ones_like(b)
    power = 1.0 if relaxation is None else relaxation / (relaxation + epsilon)
    for count in range(1, 10_000):
        pull = kernel.T @ (a * u)
        new = pull**-power
        change = (v * b * pull - b).abs().sum() if relaxation is None else (new.log() - v.log()).abs().max()
        v = new
        u = 1 / (kernel @ (b * v))
        if change < tolerance:
            return count
    raise AssertionError("does not converge")


@pytest.mark.parametrize("relaxation", [None, 0.05, 0.5])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5, 1e-8])
def test_iteration_stops_as_soon_as_the_plan_is_within_the_tolerance(relaxation, tolerance):
    generator = torch.Generator().manual_seed(9)
    cost = 2 * torch.rand(6, 5, generator=generator, dtype=torch.float64)
    a, b = (torch.softmax(torch.randn(n, generator=generator, dtype=torch.float64), 0) for n in (6, 5))
    count = iterations(cost, a, b, 0.1, relaxation, tolerance)
    found = sinkhorn(cost, a, b, epsilon=0.1, relaxation=relaxation, tolerance=tolerance, max_iterations=1000)
    after = [
        sinkhorn(cost, a, b, epsilon=0.1, relaxation=relaxation, tolerance=0, max_iterations=most)
        for most in (count - 1, count, count + 1)
    ]
    assert [torch.equal(found, plan) for plan in after] == [False, True, False]


def test_a_batch_goes_on_until_its_last_problem_is_within_the_tolerance():
    generator = torch.Generator().manual_seed(10)
    hard = 2 * torch.rand(6, 5, generator=generator, dtype=torch.float64)
    a, b = torch.full((6,), 1 / 6, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    cost = torch.stack([torch.zeros_like(hard), hard])
    for relaxation in (None, 0.5):
        together = sinkhorn(cost, a, b, epsilon=0.05, relaxation=relaxation, tolerance=1e-6, max_iterations=1000)
        alone = sinkhorn(hard, a, b, epsilon=0.05, relaxation=relaxation, tolerance=1e-6, max_iterations=1000)
        torch.testing.assert_close(together[1], alone, rtol=0, atol=1e-12)


@problems
@given(problem())
def test_the_plan_has_the_marginals_it_was_given(case):
    cost, a, b = case
    plan = converged(cost, a, b, 0.1)
    torch.testing.assert_close(plan.sum(-1), a, rtol=0, atol=1e-10)
    torch.testing.assert_close(plan.sum(-2), b, rtol=0, atol=1e-9)
    assert (plan >= 0).all()


@problems
@given(problem())
def test_the_plan_is_the_entropic_plan_of_pot(case):
    cost, a, b = case
    theirs = ot.sinkhorn(
        a.numpy(), b.numpy(), cost.numpy(), 0.1, method="sinkhorn_log", numItermax=20_000, stopThr=1e-13
    )
    np.testing.assert_allclose(converged(cost, a, b, 0.1).numpy(), theirs, atol=1e-8)


@problems
@given(problem())
def test_the_cost_is_the_sinkhorn2_cost_of_pot(case):
    cost, a, b = case
    theirs = ot.sinkhorn2(a.numpy(), b.numpy(), cost.numpy(), 0.2, numItermax=20_000, stopThr=1e-13)
    ours = float((converged(cost, a, b, 0.2) * cost).sum())
    assert ours == pytest.approx(float(theirs), abs=1e-7)


@problems
@given(problem())
def test_little_regularisation_tends_to_the_exact_cost(case):
    cost, a, b = case
    epsilon = 0.01
    plan = sinkhorn(cost, a, b, epsilon=epsilon, max_iterations=50_000, tolerance=1e-10)
    ours, columns = float((plan * cost).sum()), plan.sum(0)
    # Some problems need more iterations than a test can wait for: a plan is held to the optimum for its own columns.
    torch.testing.assert_close(columns, b, rtol=0, atol=1e-3)
    exact = ot.emd2(a.numpy(), columns.numpy(), cost.numpy())
    # The entropy of a plan bounds how far its cost lies above the optimum.
    assert exact - 1e-6 <= ours <= exact + epsilon * math.log(cost.numel() + 1) + 1e-6


@problems
@given(problem())
def test_much_regularisation_tends_to_independence(case):
    cost, a, b = case
    torch.testing.assert_close(converged(cost, a, b, 1e6), a[:, None] * b[None, :], rtol=0, atol=1e-5)


@problems
@given(problem(), st.randoms(use_true_random=False))
def test_permuting_regions_and_anchors_permutes_the_plan(case, random):
    cost, a, b = case
    rows, columns = list(range(len(a))), list(range(len(b)))
    random.shuffle(rows)
    random.shuffle(columns)
    plan = converged(cost, a, b, 0.1)
    permuted = converged(cost[rows][:, columns], a[rows], b[columns], 0.1)
    torch.testing.assert_close(permuted, plan[rows][:, columns], rtol=0, atol=1e-9)


@problems
@given(problem(max_rows=1))
def test_a_single_region_sends_to_each_anchor_what_it_takes(case):
    cost, a, b = case
    torch.testing.assert_close(converged(cost, a, b, 0.1)[0], b, rtol=0, atol=1e-9)


@problems
@given(problem(max_columns=1))
def test_a_single_anchor_takes_everything(case):
    cost, a, b = case
    torch.testing.assert_close(converged(cost, a, b, 0.1)[:, 0], a, rtol=0, atol=1e-12)


@problems
@given(problem())
def test_identical_regions_get_identical_rows(case):
    cost, _, b = case
    same = cost[:1].expand(5, -1)
    plan = converged(same, torch.full((5,), 0.2, dtype=torch.float64), b, 0.1)
    torch.testing.assert_close(plan, plan[:1].expand(5, -1), rtol=0, atol=1e-12)


@problems
@given(problem(), st.sampled_from([1e-8, 1e-3, 1e3, 1e6]))
def test_huge_and_tiny_costs_give_finite_plans_with_exact_rows(case, scale):
    cost, a, b = case
    plan = sinkhorn((cost * scale).float(), a.float(), b.float(), epsilon=0.05, max_iterations=200)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(-1), a.float(), rtol=1e-5, atol=1e-7)


@problems
@given(problem())
def test_a_constant_added_to_all_costs_changes_nothing(case):
    cost, a, b = case
    torch.testing.assert_close(converged(cost + 5, a, b, 0.1), converged(cost, a, b, 0.1), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision_inputs_stay_close_to_float64(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    cost = 2 * torch.rand(4, 6, 9, 5, generator=generator, dtype=torch.float64)
    a, b = torch.full((9,), 1 / 9, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    plan = sinkhorn(cost.to(dtype), a.to(dtype), b.to(dtype), epsilon=0.1, tolerance=1e-6)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan.double(), sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-6), rtol=0, atol=tolerance)


def test_a_batch_gives_what_each_problem_gives_alone_and_what_pots_batch_gives():
    generator = torch.Generator().manual_seed(1)
    cost = 2 * torch.rand(3, 4, 6, 5, generator=generator, dtype=torch.float64)
    a, b = torch.full((6,), 1 / 6, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    plan = converged(cost, a, b, 0.1)
    for image in range(3):
        for category in range(4):
            torch.testing.assert_close(plan[image, category], converged(cost[image, category], a, b, 0.1))
    theirs = ot.batch.solve_batch(
        cost.flatten(0, 1), reg=0.1, a=a.expand(12, 6), b=b.expand(12, 5), max_iter=20_000, tol=1e-12
    )
    torch.testing.assert_close(plan.flatten(0, 1), theirs.plan, rtol=0, atol=1e-7)


@problems
@given(problem(), st.floats(0.01, 1.0))
def test_a_relaxed_plan_keeps_its_rows_and_is_the_semi_relaxed_plan_of_pot(case, relaxation):
    cost, a, b = case
    plan = converged(cost, a, b, 0.1, relaxation=relaxation)
    torch.testing.assert_close(plan.sum(-1), a, rtol=0, atol=1e-10)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(),
        b.numpy(),
        cost.numpy(),
        0.1,
        (float("inf"), relaxation),
        reg_type="kl",
        numItermax=50_000,
        stopThr=1e-14,
    )
    np.testing.assert_allclose(plan.numpy(), theirs, atol=1e-6)


# Fewer: nearly balanced plans take tens of thousands of iterations.
@settings(max_examples=3, deadline=None)
@given(problem())
def test_relaxation_spans_from_a_softmax_to_the_balanced_plan(case):
    cost, a, b = case
    loose = converged(cost, a, b, 0.1, relaxation=1e-9)
    torch.testing.assert_close(loose / a[:, None], torch.softmax(-cost / 0.1 + b.log(), -1), rtol=0, atol=1e-6)
    tight = converged(cost, a, b, 0.1, relaxation=1e7)
    torch.testing.assert_close(tight, converged(cost, a, b, 0.1), rtol=0, atol=1e-4)


def test_anchors_without_mass_get_none_and_change_nothing():
    generator = torch.Generator().manual_seed(2)
    cost = 2 * torch.rand(6, 5, generator=generator, dtype=torch.float64)
    a, b = torch.full((6,), 1 / 6, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    filled = converged(torch.cat([cost, cost[:, :2]], 1), a, torch.cat([b, torch.zeros(2, dtype=torch.float64)]), 0.1)
    assert (filled[:, 5:] == 0).all()
    torch.testing.assert_close(filled[:, :5], converged(cost, a, b, 0.1))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_a_regularisation_or_relaxation_that_is_not_positive_and_finite_is_refused(bad):
    cost, mass = torch.rand(2, 2), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="epsilon"):
        sinkhorn(cost, mass, mass, epsilon=bad)
    with pytest.raises(ValueError, match="relaxation"):
        sinkhorn(cost, mass, mass, epsilon=0.1, relaxation=bad)


@problems
@given(st.integers(1, 8), st.integers(1, 9), st.sampled_from([-1.0, 1.0]), st.floats(0.1, 10))
def test_entropy_weights_are_a_distribution_that_follows_the_sign(regions, categories, sign, temperature):
    generator = torch.Generator().manual_seed(regions * 31 + categories)
    h = entropy(10 * torch.randn(regions, categories, generator=generator))
    assert (h >= -1e-6).all()
    assert (h <= math.log(categories) + 1e-5).all()
    weights = entropy_weights(h, sign, temperature)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert float((sign * h)[weights.argmax()]) == pytest.approx(float((sign * h).max()), abs=1e-4)


def test_replaced_entropies_are_those_of_a_loop_over_anchors():
    generator = torch.Generator().manual_seed(3)
    anchors = torch.nn.functional.normalize(torch.randn(4, 3, 8, generator=generator), dim=-1)
    view = torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=-1)
    centroids = anchors.mean(1)
    found = replaced_entropies(view, centroids, anchors, 7.0)
    for category in range(4):
        for variant in range(3):
            logits = 7.0 * centroids @ view
            logits[category] = 7.0 * anchors[category, variant] @ view
            torch.testing.assert_close(found[category, variant], entropy(logits))


def test_conditional_cost_of_a_constant_cost_is_that_constant_whatever_the_masses():
    cost = torch.full((3, 5, 4), 0.7)
    a = torch.softmax(torch.arange(5.0), 0)
    plan = sinkhorn(cost, a, torch.full((4,), 0.25), epsilon=0.1)
    torch.testing.assert_close(conditional_cost(plan, cost, a), torch.full((3, 5), 0.7))


@problems
@given(problem())
def test_mass_shares_of_groups_that_cover_all_anchors_sum_to_one(case):
    cost, a, b = case
    plan = converged(cost, a, b, 0.1, relaxation=0.05)
    groups = torch.zeros(2, len(b))
    groups[torch.arange(len(b)) % 2, torch.arange(len(b))] = 1
    shares = mass_share(plan, groups)
    assert ((shares >= 0) & (shares <= 1 + 1e-9)).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(len(a), dtype=torch.float64))


def test_cosine_cost_lies_between_zero_and_two():
    x = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    cost = cosine_cost(x, torch.cat([x, -x]))
    torch.testing.assert_close(cost.diagonal(), torch.zeros(5), rtol=0, atol=1e-6)
    assert float(cost.min()) >= 0
    assert float(cost.max()) <= 2


def test_rounding_never_makes_a_cost_less_than_zero_or_more_than_two():
    x = torch.nn.functional.normalize(torch.randn(4, 3, 8), dim=-1) * (1 + 1e-6)
    cost = cosine_cost(x, torch.stack([x[:, 0], -x[:, 0]], 1))
    assert (cost[:, 0, 0] == 0).all()
    assert (cost[:, 0, 1] == 2).all()


def unit(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_a_batch_of_costs_entropies_and_weights_is_what_a_loop_makes_of_it():
    regions, anchors = unit(2, 1, 5, 8), unit(3, 4, 8, seed=6)
    cost = cosine_cost(regions, anchors)
    assert cost.shape == (2, 3, 5, 4)
    logits = torch.randn(2, 3, 4)
    for image in range(2):
        for category in range(3):
            for region in range(5):
                for anchor in range(4):
                    expected = 1 - float(regions[image, 0, region] @ anchors[category, anchor])
                    assert float(cost[image, category, region, anchor]) == pytest.approx(expected)
            p = torch.softmax(logits[image, category], 0)
            assert float(entropy(logits)[image, category]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)
    h = torch.rand(2, 3, 4)
    for sign, temperature in ((-1.0, 1.0), (1.0, 0.5)):
        expected = [[torch.softmax(sign * row / temperature, 0) for row in rows] for rows in h]
        expected = torch.stack([torch.stack(rows) for rows in expected])
        torch.testing.assert_close(entropy_weights(h, sign, temperature), expected)
    torch.testing.assert_close(entropy_weights(h), torch.softmax(-h, -1))


def test_replaced_entropies_of_several_views_are_those_of_each():
    anchors, views = unit(4, 3, 8), unit(2, 5, 8, seed=7)
    found = replaced_entropies(views, anchors.mean(1), anchors, 7.0)
    assert found.shape == (2, 5, 4, 3)
    for row in range(2):
        for column in range(5):
            alone = replaced_entropies(views[row, column], anchors.mean(1), anchors, 7.0)
            torch.testing.assert_close(found[row, column], alone)


def test_conditional_costs_and_shares_of_a_batch_are_sums_over_the_anchors_of_each_region():
    generator = torch.Generator().manual_seed(8)
    cost, plan = torch.rand(2, 3, 5, 4, generator=generator), torch.rand(2, 3, 5, 4, generator=generator)
    mass = torch.rand(2, 5, generator=generator)
    groups = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]])
    found, shares = conditional_cost(plan, cost, mass), mass_share(plan, groups)
    assert (found.shape, shares.shape) == ((2, 3, 5), (2, 3, 5, 3))
    for image in range(2):
        for category in range(3):
            for region in range(5):
                row = plan[image, category, region]
                expected = float(row @ cost[image, category, region] / mass[image, region])
                assert float(found[image, category, region]) == pytest.approx(expected, rel=1e-5)
                own = [float((row * group).sum() / row.sum()) for group in groups]
                assert shares[image, category, region].tolist() == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_as_precise_as_the_most_precise_input_and_never_less_than_float32(dtype):
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    x, single = unit(3, 8), unit(4, 8).float()
    mass = torch.full((3,), 1 / 3)
    cost = cosine_cost(x.to(dtype), single)
    assert cost.dtype == cosine_cost(single, x.to(dtype)).dtype == wanted
    assert entropy(x.to(dtype)).dtype == entropy_weights(x.to(dtype)).dtype == wanted
    assert replaced_entropies(x[0].to(dtype), single, single[:, None], 2.0).dtype == wanted
    plan = sinkhorn(cost, mass.to(dtype), torch.full((4,), 0.25), epsilon=0.1)
    assert plan.dtype == conditional_cost(plan, cost, mass).dtype == mass_share(plan, torch.eye(4)).dtype == wanted


def test_two_hundred_iterations_and_a_tolerance_of_a_ten_thousandth_are_what_is_taken_by_default():
    generator = torch.Generator().manual_seed(11)
    cost = 2 * torch.rand(9, 7, generator=generator, dtype=torch.float64)
    a, b = (torch.softmax(torch.randn(n, generator=generator, dtype=torch.float64), 0) for n in (9, 7))
    for most in (199, 200, 201):
        # Too little regularisation to come to an end.
        other = sinkhorn(cost, a, b, epsilon=0.004, tolerance=0, max_iterations=most)
        assert torch.equal(sinkhorn(cost, a, b, epsilon=0.004, tolerance=0), other) == (most == 200)
    for tolerance in (1e-3, 1e-4, 1e-5):
        other = sinkhorn(cost, a, b, epsilon=0.1, tolerance=tolerance)
        assert torch.equal(sinkhorn(cost, a, b, epsilon=0.1), other) == (tolerance == 1e-4)


def test_without_an_iteration_each_region_shares_its_mass_by_cost_and_weight_of_the_anchors():
    cost, a, b = unit(4, 3).abs(), torch.full((4,), 0.25).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    expected = a[:, None] * torch.softmax(-cost / 0.1 + b.log(), -1)
    torch.testing.assert_close(sinkhorn(cost, a, b, epsilon=0.1, max_iterations=0), expected)


def test_marginals_may_differ_from_problem_to_problem():
    generator = torch.Generator().manual_seed(12)
    cost = 2 * torch.rand(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    a = torch.softmax(torch.randn(2, 1, 5, generator=generator, dtype=torch.float64), -1)
    b = torch.softmax(torch.randn(3, 4, generator=generator, dtype=torch.float64), -1)
    plan = converged(cost, a, b, 0.1)
    for image in range(2):
        for category in range(3):
            alone = converged(cost[image, category], a[image, 0], b[category], 0.1)
            torch.testing.assert_close(plan[image, category], alone, rtol=0, atol=1e-9)


def test_regions_without_mass_get_an_empty_row_and_change_nothing():
    generator = torch.Generator().manual_seed(13)
    cost = 2 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
    a, b = torch.tensor([0.5, 0.0, 0.25, 0.25]).double(), torch.full((3,), 1 / 3).double()
    plan, rest = (
        sinkhorn(*case, b, epsilon=0.1, max_iterations=300, tolerance=1e-10)
        for case in ((cost, a), (cost[[0, 2, 3]], a[[0, 2, 3]]))
    )
    assert (plan[1] == 0).all()
    torch.testing.assert_close(plan[[0, 2, 3]], rest, rtol=0, atol=1e-9)
