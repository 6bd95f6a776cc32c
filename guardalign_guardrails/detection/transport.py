"""The optimal-transport maths of detection: weights, costs, plans.

Pure functions over torch tensors; leading dimensions are batch dimensions throughout, so all images and categories go
through one call. Nothing here knows what a region or a category is. Work is done in float32 or float64 whatever the
input, because bfloat16 cannot hold a marginal to any useful tolerance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _working(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Promote half-precision inputs to float32; leave float32 and float64 alone."""
    wanted = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(wanted) for t in tensors)


def cosine_cost(regions: Tensor, anchors: Tensor) -> Tensor:
    """Cost matrix C = 1 - cos(region, anchor) (GuardAlign eq. 8).

    Args:
        regions: Unit-length region features, shape [..., M, d].
        anchors: Unit-length anchor features, shape [..., N, d]; batch dimensions broadcast.

    Returns:
        Cosine costs in [0, 2], shape [..., M, N].
    """
    regions, anchors = _working(regions, anchors)
    return (1.0 - regions @ anchors.transpose(-1, -2)).clamp(0.0, 2.0)


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats of softmax(logits) over the last dimension.

    Args:
        logits: Any real scores, shape [..., K].

    Returns:
        Shape [...], in [0, log K].
    """
    log_p = torch.log_softmax(_working(logits)[0], dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy_weights(entropies: Tensor, sign: float = -1.0, temperature: float = 1.0) -> Tensor:
    """Marginal from entropies: softmax(sign * h / temperature) over the last dimension.

    The paper prints sign +1 (eq. 7) and describes sign -1 (confident regions weigh more); both are wanted.

    Args:
        entropies: Entropy of each region or anchor, in nats, shape [..., M].
        sign: +1 as printed, -1 as worded.
        temperature: Positive; larger is closer to uniform (AWT uses 0.5, the paper none).

    Returns:
        Positive weights that sum to 1 over the last dimension, same shape.
    """
    return torch.softmax(sign * _working(entropies)[0] / temperature, dim=-1)


def replaced_entropies(view: Tensor, centroids: Tensor, anchors: Tensor, logit_scale: float) -> Tensor:
    """Entropy of the category distribution of one view when one anchor stands in for its category's mean.

    How AWT (Zhu et al. 2024) weighs text variants; GuardAlign says "analogously" for its b_i^n.

    Args:
        view: Unit-length feature of the whole image, shape [..., d].
        centroids: Mean anchor of each category, shape [C, d].
        anchors: Unit-length anchors, shape [C, N, d].
        logit_scale: Inverse softmax temperature.

    Returns:
        Entropies in nats, shape [..., C, N].
    """
    view, centroids, anchors = _working(view, centroids, anchors)
    base = logit_scale * torch.einsum("...d,cd->...c", view, centroids)
    own = logit_scale * torch.einsum("...d,cnd->...cn", view, anchors)
    categories, variants = anchors.shape[0], anchors.shape[1]
    logits = base[..., None, None, :].expand(*own.shape, categories).clone()
    index = torch.arange(categories, device=logits.device).view(categories, 1, 1).expand(categories, variants, 1)
    logits.scatter_(-1, index.expand(*own.shape, 1), own.unsqueeze(-1))
    return entropy(logits)


def sinkhorn(
    cost: Tensor,
    row_mass: Tensor,
    column_mass: Tensor,
    *,
    epsilon: float,
    relaxation: float | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-4,
) -> Tensor:
    """Entropic transport plans by Sinkhorn iteration in the log domain, for a whole batch at once.

    Minimises <T, C> + epsilon * KL(T | a b^T) with row sums equal to ``row_mass``. Column sums equal ``column_mass``
    when ``relaxation`` is None, else they are only drawn to it by relaxation * KL(T^T 1 | b) (unbalanced transport,
    Chizat et al. 2018). The last half-step fixes the rows, so row sums are exact to rounding whatever the stop.

    Args:
        cost: Costs, shape [..., M, N].
        row_mass: Row marginal a, positive or zero, shape broadcastable to [..., M].
        column_mass: Column marginal b, positive or zero, shape broadcastable to [..., N].
        epsilon: Entropic regularisation, > 0, in the units of ``cost``; towards 0 the plan tends to the exact one,
            towards infinity to a b^T.
        relaxation: Strength (rho) of the column marginal, > 0, or None for a balanced problem. Towards 0 each row is a
            softmax over columns, weighted by b.
        max_iterations: At most so many pairs of half-steps.
        tolerance: Stop when the largest change of the scaled column potential (balanced: L1 error of the column sums)
            is below it in every problem of the batch.

    Returns:
        Plans T, shape [..., M, N]; float64 if any input is, else float32.

    Raises:
        ValueError: ``epsilon`` or ``relaxation`` is not positive and finite.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError("epsilon must be positive and finite")
    if relaxation is not None and not (relaxation > 0 and math.isfinite(relaxation)):
        raise ValueError("relaxation must be positive and finite, or None")
    cost, row_mass, column_mass = _working(cost, row_mass, column_mass)
    kernel = -cost / epsilon
    log_a = row_mass.log().expand(cost.shape[:-1])
    log_b = column_mass.log().expand(*cost.shape[:-2], cost.shape[-1])
    damping = 1.0 if relaxation is None else relaxation / (relaxation + epsilon)

    # Potentials are those of the densities with respect to a and b, so that a zero mass needs no special case.
    rows_log_b = kernel + log_b.unsqueeze(-2)
    columns_log_a = kernel + log_a.unsqueeze(-1)
    g = torch.zeros_like(log_b)
    f = -torch.logsumexp(rows_log_b, dim=-1)
    for _ in range(max_iterations):
        pull = torch.logsumexp(columns_log_a + f.unsqueeze(-1), dim=-2)
        updated = -damping * pull
        change = _column_error(g, updated, pull, log_b, relaxation)
        g = updated
        f = -torch.logsumexp(rows_log_b + g.unsqueeze(-2), dim=-1)
        if change < tolerance:
            break
    # As a softmax, so that rows are exact even where the potentials are too large for float32.
    return log_a.exp().unsqueeze(-1) * torch.softmax(rows_log_b + g.unsqueeze(-2), dim=-1)


def _column_error(g: Tensor, updated: Tensor, pull: Tensor, log_b: Tensor, relaxation: float | None) -> float:
    """How far the plan before this half-step was from its fixed point; the stopping rule of `sinkhorn`."""
    if relaxation is None:
        return float(((g + pull).exp() * log_b.exp() - log_b.exp()).abs().sum(-1).max())
    return float((updated - g).abs().max())


def conditional_cost(plan: Tensor, cost: Tensor, row_mass: Tensor) -> Tensor:
    """Transport cost per unit of region mass, for each category.

    d_i(m) / a(m) with d_i(m) = sum_n T_i(m, n) C_i(m, n) (GuardAlign eq. 9 before its sum over categories). Dividing
    by the mass makes regions comparable whatever their number or weight.

    Args:
        plan: Transport plans, shape [..., C, M, N], rows summing to ``row_mass``.
        cost: Cosine costs in [0, 2], same shape.
        row_mass: Region marginal, shape [..., M], positive, summing to 1.

    Returns:
        Shape [..., C, M], in the units of ``cost``; lower is closer to the category.
    """
    plan, cost, row_mass = _working(plan, cost, row_mass)
    return (plan * cost).sum(-1) / row_mass.unsqueeze(-2)


def mass_share(plan: Tensor, groups: Tensor) -> Tensor:
    """Share of each region's mass that goes to each group of anchors.

    Args:
        plan: Transport plans, shape [..., M, A].
        groups: Membership of the anchors, one row a group, shape [G, A], 0 or 1.

    Returns:
        Shares in [0, 1], shape [..., M, G]; they sum to 1 over groups that cover all anchors.
    """
    plan, groups = _working(plan, groups)
    return (plan / plan.sum(-1, keepdim=True)) @ groups.transpose(-1, -2)
