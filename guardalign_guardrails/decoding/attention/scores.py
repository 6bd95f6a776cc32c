"""The maths of attention calibration, on pre-softmax scores. No model and no state.

B batch, H query heads, G key heads (H a multiple of G), I query rows, P prefix columns, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

_STEPS: Final = 24
# How near a share must be to its target, and how short a step as a part of the largest strength, for it to be the last;
# about the square of it is left then.
_CLOSE: Final = 1e-3
# Shares are not taken for less, or for more than all but that.
_LEAST: Final = 1e-7
# All the share there is; in float32 with room for a sum, and for what is multiplied by it to see how fast it grows.
_LARGEST_EXPONENT: Final = 60.0


def scores(query: Tensor, key: Tensor, scaling: float, softcap: float | None = None) -> Tensor:
    """Pre-softmax scores z = scaling * q . k in float32, or in float64 if that is what comes in.

    Low precision is not enough here: an increment is exponentiated, and a bfloat16 score of 40 is off by 0.1.

    Args:
        query: Shape [B, H, I, D].
        key: Shape [B, G, P, D]; each key head serves H / G query heads in a row.
        scaling: Usually 1 / sqrt(D).
        softcap: Bound c of models that take ``c * tanh(z / c)``; None for others.

    Returns:
        Shape [B, H, I, P].
    """
    batch, heads, rows, size = query.shape
    groups = key.shape[1]
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    stacked = query.to(kind).reshape(batch, groups, heads // groups * rows, size)
    z = stacked @ key.to(kind).transpose(-1, -2)
    z = z.mul_(scaling).reshape(batch, heads, rows, key.shape[2])
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def increment(z: Tensor, gamma: Tensor | float, form: Literal["gate", "paper"], size: int) -> Tensor:
    """What calibration adds to scores of (query, prefix key) pairs, never negative.

    Args:
        z: Pre-softmax scores, any shape.
        gamma: Strength, a number or a shape that broadcasts to that of ``z``.
        form: ``gate`` for gamma * relu(z), ``paper`` for gamma * sqrt(D) * relu(z)^2 (GuardAlign eqs. 13-14 with
            M = relu(q . k), unscaled).
        size: Head size D.

    Returns:
        The shape of ``z``.
    """
    positive = z.relu()
    return positive * gamma if form == "gate" else positive.square() * gamma * size**0.5


def corrected(out: Tensor, lse: Tensor, z: Tensor, extra: Tensor, value: Tensor) -> Tensor:
    """Attention rows as they are with ``extra`` added to some scores, from those without.

    With e_j added to score z_j, the softmax gains the mass u_j = exp(z_j - lse) * (exp(e_j) - 1), so
    out' = (out + sum_j u_j v_j) / (1 + sum_j u_j). Exact, and nothing cancels since e_j >= 0. Shifted by the largest
    exponent, so that it stays finite.

    Args:
        out: Attention rows, shape [B, H, I, D].
        lse: Their log-sum-exp over all keys, shape [B, H, I].
        z: Scores of the edited columns, shape [B, H, I, P].
        extra: What is added to them, same shape, at least 0.
        value: Values of these columns, shape [B, G, P, D].

    Returns:
        Shape [B, H, I, D] in the dtype of ``out``.
    """
    raised = (z + extra).sub_(lse.unsqueeze(-1))
    shift = raised.amax(-1, keepdim=True).clamp_min(0)
    # exp(e) - 1 = exp(e) (1 - exp(-e)) overflows no sooner than the exponential itself.
    gained = torch.exp(raised - shift) * -torch.expm1(-extra)
    kept = torch.exp(-shift)
    total = gained.sum(-1, keepdim=True) + kept
    return weighted(gained / total, value).addcmul_(out.to(z.dtype), kept / total).to(out.dtype)


def weighted(weights: Tensor, value: Tensor) -> Tensor:
    """Sum of values by weight, [B, H, I, P] and [B, G, P, D] to [B, H, I, D], in the dtype of the weights."""
    batch, heads, rows, columns = weights.shape
    groups = value.shape[1]
    stacked = weights.reshape(batch, groups, heads // groups * rows, columns)
    return (stacked @ value.to(weights.dtype)).reshape(batch, heads, rows, value.shape[-1])


def share(z: Tensor, lse: Tensor, extra: Tensor | None = None) -> Tensor:
    """Share of each row's attention that the columns get.

    Args:
        z: Scores of the columns, shape [B, H, I, P]; minus infinity for pairs that do not see each other.
        lse: Log-sum-exp of each row over all keys before anything was added, shape [B, H, I].
        extra: What is added to ``z``; None for nothing.

    Returns:
        Shape [B, H, I], in [0, 1].
    """
    before = torch.logsumexp(z, -1) - lse.to(z.dtype)
    if extra is None:
        return before.exp().clamp(max=1)
    # Odds of the columns against the rest; the rest does not change.
    rest = torch.log1p(-before.exp().clamp(max=1 - _LEAST))
    after = torch.logsumexp(z + extra, -1) - lse.to(z.dtype)
    return torch.sigmoid(after - rest)


def gamma_for(
    target: Tensor, largest: float, z: Tensor, lse: Tensor, push: Tensor, mean: Callable[[Tensor], Tensor]
) -> Tensor:
    """The smallest strength at which the columns get a share of attention, for each sample.

    Newton's method on the log-odds of the share, which are nearly linear in the strength where one column leads, kept
    within a bracket that it halves whenever a step would leave it. A handful of steps, where bisection takes twenty.

    Args:
        target: The shares wanted, shape [B], in [0, 1].
        largest: The largest strength to return, also when the target is out of reach.
        z: Scores of the columns, shape [B, H, I, P].
        lse: Log-sum-exp of each row over all keys, shape [B, H, I].
        push: What strength 1 adds to ``z``, at least 0, same shape; strengths scale it.
        mean: Shares of all rows, [B, H, I], to one for each sample, [B].

    Returns:
        Shape [B], in [0, largest].
    """
    weight = z - lse.to(z.dtype).unsqueeze(-1)
    grown = weight.exp()
    rest = (1 - grown.sum(-1)).clamp_min_(_LEAST)
    searches = [_Search(wanted, largest) for wanted in target.tolist()]
    for _ in range(_STEPS):
        inside = grown.sum(-1)
        total = inside + rest
        growth = mean(grown.mul_(push).sum(-1).mul_(rest).div_(total).div_(total))
        for search, share_now, slope in zip(searches, mean(inside.div_(total)).tolist(), growth.tolist(), strict=True):
            search.go_on(share_now, slope)
        gamma = torch.tensor([search.gamma for search in searches], dtype=z.dtype, device=z.device)
        if all(search.is_done for search in searches):
            break
        grown = torch.addcmul(weight, push, gamma.view(-1, 1, 1, 1)).clamp_(max=_LARGEST_EXPONENT).exp_()
    return gamma


class _Search:
    """The strength of one sample, step by step."""

    def __init__(self, target: float, largest: float) -> None:
        self.gamma, self.is_done = 0.0, False
        self._target, self._shortest = target, _CLOSE * largest
        self._low, self._high, self._is_reached = 0.0, largest, False

    def go_on(self, share: float, growth: float) -> None:
        """Take a step from ``gamma``, where the share of attention, and how fast it grows, are as given."""
        if self.is_done:
            return
        before = self.gamma
        if share < self._target:
            self._low = before
        else:
            self._high, self._is_reached = before, True
        slope = growth / max(share * (1 - share), _LEAST)
        step = before + (_log_odds(self._target) - _log_odds(share)) / slope if slope > 0 else math.inf
        # A share that is met to the bit is a step to where it stands, which is an end of the bracket.
        is_inside = self._low <= step <= self._high
        if is_inside:
            self.gamma = step
        else:
            # Strength 0 and the largest close their own bracket, and the search with it.
            self.gamma = (self._low + self._high) / 2 if self._is_reached else self._high
        is_close = abs(share - self._target) <= _CLOSE and abs(self.gamma - before) <= self._shortest
        self.is_done = self.gamma == before or (is_inside and is_close)


def _log_odds(share: float) -> float:
    kept = min(max(share, _LEAST), 1 - _LEAST)
    return math.log(kept / (1 - kept))
