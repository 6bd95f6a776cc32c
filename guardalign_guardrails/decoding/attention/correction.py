"""Corrects the rows of one attention call.

It works on the tensors of the call and on what is known of its forward pass; how the call was intercepted does not
matter here. Rows are corrected after the stock kernel ran, so no mask of prompt length squared is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from guardalign_guardrails.decoding.attention.kernels import attend_with_lse, has_lse
from guardalign_guardrails.decoding.attention.positions import Positions
from guardalign_guardrails.decoding.attention.scores import corrected, gamma_for, increment, scores, share
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PassPositions
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import CalibrationError

# Most scores of all keys computed at a time where the kernel gives no log-sum-exp; 64 MiB of them.
_MOST_SCORES: Final = 2**24


@dataclass
class CalibrationReport:
    """Strengths and shares of attention of one generation.

    Attributes:
        layers: The chosen layers.
        gamma: Strength in each layer, one for each prompt; found by a search when there is a target.
        before: Share of attention that instruction tokens give to the prefix without calibration, by layer, mean over
            heads and tokens.
        after: The same with calibration.
    """

    layers: tuple[int, ...]
    gamma: dict[int, list[float]] = field(default_factory=dict)
    before: dict[int, list[float]] = field(default_factory=dict)
    after: dict[int, list[float]] = field(default_factory=dict)


@dataclass(eq=False)
class Generation:
    """State of one generation.

    Attributes:
        spans: Its prefixes and instructions.
        report: Filled in as the generation goes; None if no report was asked for.
        gamma: Strengths found for a target, by layer, shape [prompts].
        shallow: Shares of attention in the layers before the first chosen one, shape [prompts] each.
    """

    spans: BatchSpans
    report: CalibrationReport | None
    gamma: dict[int, Tensor] = field(default_factory=dict)
    shallow: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass of a generation.

    Attributes:
        owner: The calibration it belongs to.
        config: Of that calibration.
        generation: The generation it is part of.
        positions: Rows and columns to calibrate.
        past: Tokens before this pass, which are in the cache.
        length: Tokens in this pass.
        fired: Layers that took part in a pass of this calibration; this pass adds its own.
        group: Processes that the model's heads are split over, so that a share is the mean over all heads; None if they
            are not split.
    """

    owner: object
    config: CalibrationConfig
    generation: Generation
    positions: PassPositions
    past: int
    length: int
    fired: set[int]
    group: ProcessGroup | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether it reads tokens of the prompt."""
        return self.past < self.generation.spans.length


@dataclass(frozen=True, eq=False)
class Layer:
    """What calibration does in one attention module.

    Attributes:
        owner: The calibration it belongs to.
        index: Number of the decoder layer.
        is_chosen: Whether it is calibrated.
        is_measured: Whether the prefix's share of attention in it is the target of other layers.
    """

    owner: object
    index: int
    is_chosen: bool
    is_measured: bool

    def is_in(self, forward_pass: ForwardPass) -> bool:
        """Whether it takes part in a forward pass."""
        return forward_pass.owner is self.owner and (self.is_chosen or (self.is_measured and forward_pass.is_prompt))


def attended(
    forward_pass: ForwardPass,
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    stock: Callable[[], Tensor],
    *,
    softcap: float | None = None,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention, calibrated.

    Args:
        forward_pass: The pass.
        layer: A layer that takes part in it.
        query: Shape [B, H, L, D].
        key: Shape [B, G, K, D]; each key head serves H / G query heads.
        value: Same shape.
        mask: Boolean or additive, shape [B or 1, H or 1, L, at least K]; None for a causal one.
        scaling: Factor on q . k.
        stock: Computes the model's own attention, of the shape of ``query``.
        softcap: See `scores`.
        window: Keys a query sees in a sliding window, itself included.
        dropout: Probability of dropout.

    Returns:
        Shape [B, H, L, D].
    """
    forward_pass.fired.add(layer.index)
    rows, columns, pairs = _placed(forward_pass, query.device, key.shape[2], window)
    mask = None if mask is None else mask[..., : key.shape[2]]
    is_fused = softcap is None and dropout == 0 and has_lse(query, value)
    if is_fused and forward_pass.length == 1 and not forward_pass.is_prompt:
        return _step(forward_pass, layer, query, key, value, mask, scaling, columns, pairs)
    known = _with_lse(query, key, value, mask, scaling, forward_pass.past) if is_fused else None
    out, lse = (stock(), None) if known is None else known

    chosen = rows.taken(query, 2)
    # Scores are those that go into the softmax, so that what a mask hides stays hidden.
    own = None if mask is None else rows.taken(mask.expand(query.shape[0], -1, -1, -1), 2)
    z = scores(chosen, columns.taken(key, 2), scaling, softcap)
    if own is not None:
        z = _masked(z, columns.taken(own, 3))
    if lse is None:
        positions = rows.at + min(forward_pass.past, key.shape[2] - forward_pass.length)
        row_lse = _row_lse(chosen, key, positions, own, scaling, softcap, window)
    else:
        row_lse = rows.taken(lse, 2)
    z, is_real = _paired(z, pairs)
    extra = _extra(forward_pass, layer, z, row_lse, is_real, query.shape[-1])
    if extra is None:
        return out
    new = corrected(rows.taken(out, 2), row_lse, z, extra, columns.taken(value, 2))
    # The backward pass needs the output as it is.
    return rows.put(out.clone() if out.requires_grad else out, new, is_real)


def reweighted(forward_pass: ForwardPass, layer: Layer, logits: Tensor, weights: Tensor, size: int) -> Tensor:
    """Attention weights, calibrated, of a model that computes the whole matrix of them anyway.

    Args:
        forward_pass: The pass.
        layer: A layer that takes part in it.
        logits: What goes into the softmax, masks added, shape [B, H, L, K].
        weights: What comes out of it, same shape; calibrated rows are overwritten.
        size: Head size D.

    Returns:
        ``weights``.
    """
    forward_pass.fired.add(layer.index)
    rows, columns, pairs = _placed(forward_pass, logits.device, logits.shape[3], None)
    chosen = rows.taken(logits, 2)
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    z, is_real = _paired(columns.taken(chosen, 3), pairs)
    extra = _extra(forward_pass, layer, z, torch.logsumexp(chosen, -1), is_real, size)
    if extra is None:
        return weights
    new = columns.add(chosen.clone(), extra).softmax(-1).to(weights.dtype)
    return rows.put(weights, new, is_real)


def _step(
    forward_pass: ForwardPass,
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    columns: Positions,
    pairs: Tensor | None,
) -> Tensor:
    """Attention of one generated token, calibrated by a row of the mask, which costs less here."""
    z = scores(query, columns.taken(key, 2), scaling)
    if mask is None:
        bias = z.new_zeros(*z.shape[:3], key.shape[2])
    else:
        bias = _additive(mask, z.dtype).expand(*z.shape[:3], -1).clone()
        z = z + columns.taken(bias, 3)
    z, _ = _paired(z, pairs)
    columns.add(bias, _increased(forward_pass, z, _found_gamma(forward_pass, layer, z), query.shape[-1]))
    return attend_with_lse(query, key, value, mask=bias, is_causal=False, scaling=scaling)[0]


def _placed(
    forward_pass: ForwardPass, device: torch.device, keys: int, window: int | None
) -> tuple[Positions, Positions, Tensor | None]:
    """Rows, columns and pairs to calibrate among ``keys`` keys."""
    found = forward_pass.positions
    # Sliding caches drop their first columns.
    shift = max(0, forward_pass.past + forward_pass.length - keys)
    rows, columns = found.rows.on(device), found.columns.on(device)
    pairs = None if found.pairs is None else found.pairs.to(device)
    if not shift and (window is None or found.distance < window):
        return rows, columns, pairs
    at = columns.at - shift
    seen = (at >= 0).unsqueeze(1)
    if window is not None:
        seen = seen & (rows.at.unsqueeze(-1) + forward_pass.past - shift - at.unsqueeze(1) < window)
    pairs = seen.expand(-1, rows.at.shape[1], -1) if pairs is None else pairs & seen
    return rows, Positions(at.clamp_min(0), columns.is_uniform), pairs


def _paired(z: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores with minus infinity for all other pairs, and which rows have a pair."""
    if pairs is None:
        return z, None
    return z.masked_fill(~pairs.unsqueeze(1), float("-inf")), pairs.any(-1)


def _extra(
    forward_pass: ForwardPass, layer: Layer, z: Tensor, lse: Tensor, is_real: Tensor | None, size: int
) -> Tensor | None:
    """Increments of the scores ``z`` [B, H, I, P]; None in a layer that is only measured."""
    if layer.is_measured:
        forward_pass.generation.shallow.append(_mean(forward_pass, share(z, lse), is_real))
        return None
    gamma = _gamma(forward_pass, layer, z, lse, is_real, size)
    extra = _increased(forward_pass, z, gamma, size)
    _report(forward_pass, layer.index, gamma, z, lse, extra, is_real)
    return extra


def _increased(forward_pass: ForwardPass, z: Tensor, gamma: Tensor | float, size: int) -> Tensor:
    """`increment` in the chosen heads."""
    extra = increment(z, gamma, forward_pass.config.form, size)
    if forward_pass.config.heads is None:
        return extra
    is_head = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
    is_head[list(forward_pass.config.heads)] = True
    return extra * is_head.view(1, -1, 1, 1)


def _gamma(
    forward_pass: ForwardPass, layer: Layer, z: Tensor, lse: Tensor, is_real: Tensor | None, size: int
) -> Tensor | float:
    """The strength in this layer, of shape [B, 1, 1, 1] when there is a target."""
    config, generation = forward_pass.config, forward_pass.generation
    if config.target is not None and forward_pass.is_prompt and layer.index not in generation.gamma:
        batch = z.shape[0]
        if config.target != "shallow":
            target = torch.full((batch,), config.target, dtype=z.dtype, device=z.device)
        elif generation.shallow:
            target = torch.stack([s.to(z.device) for s in generation.shallow]).mean(0)
        else:
            raise CalibrationError("target 'shallow' needs a layer before the first chosen one.")

        push = _increased(forward_pass, z, 1.0, size)
        generation.gamma[layer.index] = gamma_for(
            target, config.gamma, z, lse, push, lambda shares: _mean(forward_pass, shares, is_real)
        )
    return _found_gamma(forward_pass, layer, z)


def _found_gamma(forward_pass: ForwardPass, layer: Layer, z: Tensor) -> Tensor | float:
    gamma = forward_pass.generation.gamma.get(layer.index)
    if gamma is None:
        # Without an instruction there is no share to measure, and gamma is only an upper bound.
        return forward_pass.config.gamma if forward_pass.config.target is None else 0.0
    return gamma.repeat_interleave(z.shape[0] // gamma.shape[0]).to(z.device).view(-1, 1, 1, 1)


def _with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, past: int
) -> tuple[Tensor, Tensor] | None:
    length = query.shape[2]
    if mask is not None:
        additive = _additive(mask, query.dtype)
        return attend_with_lse(query, key, value, mask=additive, is_causal=False, scaling=scaling)
    if length > 1:
        if past:
            return None
        # A static cache is longer than its content.
        key, value = key[:, :, :length], value[:, :, :length]
    return attend_with_lse(query, key, value, mask=None, is_causal=length > 1, scaling=scaling)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _row_lse(
    chosen: Tensor,
    key: Tensor,
    positions: Tensor,
    own: Tensor | None,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Log-sum-exp of the calibrated rows over all keys, shape [B, H, I]; ``own`` is their part of the mask."""
    if own is None:
        at, column = positions.unsqueeze(-1), torch.arange(key.shape[2], device=key.device).view(1, 1, -1)
        seen = column <= at if window is None else (column <= at) & (at - column < window)
        own = seen.unsqueeze(1)
    step = max(1, _MOST_SCORES // (chosen.shape[0] * chosen.shape[1] * key.shape[2]))
    parts = zip(torch.split(chosen, step, 2), torch.split(own, step, 2), strict=True)
    found = [torch.logsumexp(_masked(scores(part, key, scaling, softcap), mask), -1) for part, mask in parts]
    return torch.cat(found, -1)


def _masked(z: Tensor, mask: Tensor) -> Tensor:
    return z.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else z + mask.to(z.dtype)


def _mean(forward_pass: ForwardPass, shares: Tensor, is_real: Tensor | None) -> Tensor:
    """Mean over heads and rows, [B, H, I] to [B]."""
    if is_real is None:
        mean = shares.mean((1, 2))
    else:
        kept = is_real.unsqueeze(1).to(shares.dtype)
        mean = (shares.nan_to_num() * kept).sum((1, 2)) / (kept.sum((1, 2)) * shares.shape[1]).clamp_min(1)
    if forward_pass.group is not None:
        dist.all_reduce(mean, group=forward_pass.group)
        mean /= dist.get_world_size(forward_pass.group)
    return mean


def _report(
    forward_pass: ForwardPass,
    index: int,
    gamma: Tensor | float,
    z: Tensor,
    lse: Tensor,
    extra: Tensor,
    is_real: Tensor | None,
) -> None:
    report, batch = forward_pass.generation.report, z.shape[0]
    if report is None or not forward_pass.is_prompt:
        return
    report.gamma[index] = gamma.flatten().tolist() if isinstance(gamma, Tensor) else [gamma] * batch
    report.before[index] = _mean(forward_pass, share(z, lse), is_real).tolist()
    report.after[index] = _mean(forward_pass, share(z, lse, extra), is_real).tolist()
