"""The strength that gives the prefix a share of attention, against the share itself in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from guardalign_guardrails.decoding.attention.scores import corrected, gamma_for, increment, share


def _mean(shares: Tensor) -> Tensor:
    return shares.mean((1, 2))


def _scores(seed: int, spread: float, batch: int) -> tuple[Tensor, Tensor]:
    """Scores of six prefix keys, and log-sum-exp over these and forty others."""
    torch.manual_seed(seed)
    z = torch.randn(batch, 3, 5, 46) * spread
    return z[..., :6], torch.logsumexp(z, -1)


@given(
    seed=st.integers(0, 2**16),
    spread=st.floats(0, 12),
    target=st.floats(0, 1),
    largest=st.floats(1e-3, 20),
    form=st.sampled_from(["gate", "paper"]),
)
@example(seed=488, spread=0.33203125, target=0.34765625, largest=3.0, form="paper").via("a share met to the bit")
@example(seed=6317, spread=11.059242105920736, target=0.734375, largest=3.0, form="paper").via("sums past float32")
@example(seed=27472, spread=11.7, target=0.8671875, largest=4.0, form="gate").via("a share that hardly grows")
@settings(deadline=None, max_examples=200)
def test_the_strength_found_is_the_least_that_reaches_the_target(seed, spread, target, largest, form):
    z, lse = _scores(seed, spread, 2)
    push = increment(z, 1.0, form, 16)
    found = gamma_for(torch.full((2,), target), largest, z, lse, push, _mean)
    assert found.shape == (2,)
    assert bool(((found >= 0) & (found <= largest)).all())

    def share_at(gamma: Tensor) -> Tensor:
        extra = push.double() * gamma.double().view(-1, 1, 1, 1)
        return _mean(share(z.double(), lse.double(), extra))

    step = 1e-3 * largest
    beyond, short = share_at(found + step), share_at((found - step).clamp_min(0))
    assert bool(((beyond >= target - 1e-4) | (found > largest - step)).all())
    assert bool(((short <= target + 1e-4) | (found < step)).all())


@given(seed=st.integers(0, 2**16), spread=st.floats(0.5, 6), target=st.floats(0.05, 0.9))
@settings(deadline=None, max_examples=50)
def test_each_sample_of_a_batch_gets_what_it_would_get_alone(seed, spread, target):
    z, lse = _scores(seed, spread, 3)
    push = increment(z, 1.0, "gate", 16)
    wanted = torch.full((3,), target)
    together = gamma_for(wanted, 4.0, z, lse, push, _mean)
    for row in range(3):
        one = slice(row, row + 1)
        alone = gamma_for(wanted[one], 4.0, z[one], lse[one], push[one], _mean)
        assert torch.allclose(together[one], alone, atol=2e-3)


def test_scores_too_large_for_an_exponential_still_give_a_strength():
    z = torch.full((1, 1, 1, 2), 90.0)
    lse = torch.logsumexp(torch.tensor([[[[90.0, 90.0, 95.0, 95.0]]]]), -1)
    found = gamma_for(torch.tensor([0.99]), 50.0, z, lse, increment(z, 1.0, "paper", 128), _mean)
    assert bool(((found > 0) & (found < 50)).all())


def test_a_prefix_that_no_score_speaks_for_gets_the_largest_strength_and_no_error():
    z = torch.full((1, 2, 3, 4), -5.0)
    found = gamma_for(torch.tensor([0.3]), 4.0, z, torch.zeros(1, 2, 3), increment(z, 1.0, "gate", 8), _mean)
    assert found.tolist() == [4.0]


@pytest.mark.parametrize("raised", [-2000.0, 0.0, 20.0, 700.0, 5000.0])
@pytest.mark.parametrize("score", [-2000.0, -20.0, 3.0, 800.0])
def test_corrected_rows_are_those_of_a_softmax_however_large_the_scores_and_what_is_added(score, raised):
    torch.manual_seed(0)
    z = torch.randn(2, 4, 3, 9)
    z[..., :3] += score
    value = torch.randn(2, 2, 9, 8)
    extra = (torch.rand(2, 4, 3, 3) * raised).relu()
    wide = value.double().repeat_interleave(2, 1)
    added = z.double()
    added[..., :3] += extra.double()
    out = (z.double().softmax(-1) @ wide).float()
    found = corrected(out, torch.logsumexp(z, -1), z[..., :3], extra, value[:, :, :3])
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), added.softmax(-1) @ wide, rtol=0, atol=1e-4)
