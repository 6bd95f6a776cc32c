"""The rows of one attention call made what calibration wants them to be, however the call was caught.

Takes the tensors of the call and what is known of the forward pass it belongs to; knows no model and no way to get at
its attention. Rows are corrected after the stock kernel ran, so no mask of prompt length squared is ever made.
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
from guardalign_guardrails.decoding.attention.positions import Entries
from guardalign_guardrails.decoding.attention.scores import corrected, gamma_for, increment, scores, share
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, Places
from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.errors import CalibrationError

# Scores of all keys that are made at a time where the kernel tells no log-sum-exp; 64 MiB of them.
_MOST_SCORES: Final = 2**24


@dataclass
class CalibrationReport:
    """What calibration did in one generation.

    Attributes:
        layers: The chosen layers.
        gamma: Strength taken in each, a list with one for each prompt; found by bisection when there is a target.
        before: Share of attention that instruction tokens gave to the prefix, by layer, mean over heads and tokens.
        after: The same with calibration; equal in layers that were only measured.
    """

    layers: tuple[int, ...]
    gamma: dict[int, list[float]] = field(default_factory=dict)
    before: dict[int, list[float]] = field(default_factory=dict)
    after: dict[int, list[float]] = field(default_factory=dict)


@dataclass(eq=False)
class Generation:
    """One generation under way.

    Attributes:
        spans: Its prefixes and instructions.
        report: To be filled in; None if nobody asked.
        gamma: Strengths found for a target, by layer, shape [prompts].
        shallow: Shares of attention in the layers before the first chosen one, shape [prompts] each.
    """

    spans: BatchSpans
    report: CalibrationReport | None
    gamma: dict[int, Tensor] = field(default_factory=dict)
    shallow: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass of it.

    Attributes:
        owner: The calibration it belongs to.
        config: Of that calibration.
        generation: The generation it is part of.
        places: Rows and columns to change.
        past: Tokens before this pass, those in the cache.
        length: Tokens in this pass.
        fired: Layers that took part in a pass of this calibration, to be added to.
        group: Processes that the model's heads are split over, so that a share is the mean over all heads; None if they
            are not split.
    """

    owner: object
    config: CalibrationConfig
    generation: Generation
    places: Places
    past: int
    length: int
    fired: set[int]
    group: ProcessGroup | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether tokens of the prompt are read."""
        return self.past < self.generation.spans.length


@dataclass(frozen=True, eq=False)
class Layer:
    """What is to be done in one attention module.

    Attributes:
        owner: The calibration it belongs to.
        index: Number of the decoder layer.
        is_chosen: Whether it is calibrated.
        is_measured: Whether the share of attention that the prefix has in it is the target of others.
    """

    owner: object
    index: int
    is_chosen: bool
    is_measured: bool

    def is_in(self, now: Pass) -> bool:
        """Whether it takes part in a forward pass."""
        return now.owner is self.owner and (self.is_chosen or (self.is_measured and now.is_prompt))


def attended(
    now: Pass,
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
        now: The pass.
        layer: A layer that takes part in it.
        query: Shape [B, H, L, D].
        key: Shape [B, G, K, D]; each key head serves H / G query heads.
        value: Same shape.
        mask: Boolean or additive, shape [B or 1, H or 1, L, at least K]; None for a causal one.
        scaling: Factor on q . k.
        stock: Makes the attention that the model would have, of the shape of ``query``.
        softcap: See `scores`.
        window: Keys a query sees in a sliding window, itself included.
        dropout: Probability of dropout.

    Returns:
        Shape [B, H, L, D].
    """
    now.fired.add(layer.index)
    rows, columns, pairs = _placed(now, query.device, key.shape[2], window)
    mask = None if mask is None else mask[..., : key.shape[2]]
    is_fused = softcap is None and dropout == 0 and has_lse(query, value)
    if is_fused and now.length == 1 and not now.is_prompt:
        return _step(now, layer, query, key, value, mask, scaling, columns, pairs)
    known = _with_lse(query, key, value, mask, scaling, now.past) if is_fused else None
    out, lse = (stock(), None) if known is None else known

    chosen = rows.taken(query, 2)
    # Scores are taken as they go into the softmax, so that what a mask hides stays hidden.
    own = None if mask is None else rows.taken(mask.expand(query.shape[0], -1, -1, -1), 2)
    z = scores(chosen, columns.taken(key, 2), scaling, softcap)
    if own is not None:
        z = _masked(z, columns.taken(own, 3))
    if lse is None:
        positions = rows.at + min(now.past, key.shape[2] - now.length)
        row_lse = _row_lse(chosen, key, positions, own, scaling, softcap, window)
    else:
        row_lse = rows.taken(lse, 2)
    z, is_real = _paired(z, pairs)
    extra = _extra(now, layer, z, row_lse, is_real, query.shape[-1])
    if extra is None:
        return out
    new = corrected(rows.taken(out, 2), row_lse, z, extra, columns.taken(value, 2))
    # What the backward pass needs must not be overwritten.
    return rows.put(out.clone() if out.requires_grad else out, new, is_real)


def reweighted(now: Pass, layer: Layer, logits: Tensor, weights: Tensor, size: int) -> Tensor:
    """Attention weights, calibrated, of a model that makes the whole matrix of them anyway.

    Args:
        now: The pass.
        layer: A layer that takes part in it.
        logits: What goes into the softmax, masks added, shape [B, H, L, K].
        weights: What comes out of it, same shape; the rows in question are overwritten.
        size: Head size D.

    Returns:
        ``weights``.
    """
    now.fired.add(layer.index)
    rows, columns, pairs = _placed(now, logits.device, logits.shape[3], None)
    chosen = rows.taken(logits, 2)
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    z, is_real = _paired(columns.taken(chosen, 3), pairs)
    extra = _extra(now, layer, z, torch.logsumexp(chosen, -1), is_real, size)
    if extra is None:
        return weights
    new = columns.add(chosen.clone(), extra).softmax(-1).to(weights.dtype)
    return rows.put(weights, new, is_real)


def _step(
    now: Pass,
    layer: Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    columns: Entries,
    pairs: Tensor | None,
) -> Tensor:
    """Attention of one generated token, by a mask row with what is added to its scores, which costs less here."""
    z = scores(query, columns.taken(key, 2), scaling)
    if mask is None:
        bias = z.new_zeros(*z.shape[:3], key.shape[2])
    else:
        bias = _additive(mask, z.dtype).expand(*z.shape[:3], -1).clone()
        z = z + columns.taken(bias, 3)
    z, _ = _paired(z, pairs)
    columns.add(bias, _increased(now, z, _found_gamma(now, layer, z), query.shape[-1]))
    return attend_with_lse(query, key, value, mask=bias, is_causal=False, scaling=scaling)[0]


def _placed(now: Pass, device: torch.device, keys: int, window: int | None) -> tuple[Entries, Entries, Tensor | None]:
    """Rows and columns to change, and which pairs of them are meant, among ``keys`` keys."""
    found = now.places
    # Sliding caches drop their first columns.
    shift = max(0, now.past + now.length - keys)
    rows, columns = found.rows.on(device), found.columns.on(device)
    pairs = None if found.pairs is None else found.pairs.to(device)
    if not shift and (window is None or found.distance < window):
        return rows, columns, pairs
    at = columns.at - shift
    seen = (at >= 0).unsqueeze(1)
    if window is not None:
        seen = seen & (rows.at.unsqueeze(-1) + now.past - shift - at.unsqueeze(1) < window)
    pairs = seen.expand(-1, rows.at.shape[1], -1) if pairs is None else pairs & seen
    return rows, Entries(at.clamp_min(0), columns.is_uniform), pairs


def _paired(z: Tensor, pairs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores without the pairs that are not meant, and which rows have any that are."""
    if pairs is None:
        return z, None
    return z.masked_fill(~pairs.unsqueeze(1), float("-inf")), pairs.any(-1)


def _extra(now: Pass, layer: Layer, z: Tensor, lse: Tensor, is_real: Tensor | None, size: int) -> Tensor | None:
    """What is added to the scores ``z`` [B, H, I, P]; None in a layer that is only measured."""
    if layer.is_measured:
        now.generation.shallow.append(_mean(now, share(z, lse), is_real))
        return None
    gamma = _gamma(now, layer, z, lse, is_real, size)
    extra = _increased(now, z, gamma, size)
    _report(now, layer.index, gamma, z, lse, extra, is_real)
    return extra


def _increased(now: Pass, z: Tensor, gamma: Tensor | float, size: int) -> Tensor:
    """`increment` in the chosen heads."""
    extra = increment(z, gamma, now.config.form, size)
    if now.config.heads is None:
        return extra
    is_head = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device)
    is_head[list(now.config.heads)] = True
    return extra * is_head.view(1, -1, 1, 1)


def _gamma(now: Pass, layer: Layer, z: Tensor, lse: Tensor, is_real: Tensor | None, size: int) -> Tensor | float:
    """The strength in this layer, of shape [B, 1, 1, 1] when there is a target."""
    config, generation = now.config, now.generation
    if config.target is not None and now.is_prompt and layer.index not in generation.gamma:
        batch = z.shape[0]
        if config.target != "shallow":
            target = torch.full((batch,), config.target, dtype=z.dtype, device=z.device)
        elif generation.shallow:
            target = torch.stack([s.to(z.device) for s in generation.shallow]).mean(0)
        else:
            raise CalibrationError("target 'shallow' needs a layer before the first chosen one.")

        push = _increased(now, z, 1.0, size)
        generation.gamma[layer.index] = gamma_for(
            target, config.gamma, z, lse, push, lambda shares: _mean(now, shares, is_real)
        )
    return _found_gamma(now, layer, z)


def _found_gamma(now: Pass, layer: Layer, z: Tensor) -> Tensor | float:
    gamma = now.generation.gamma.get(layer.index)
    if gamma is None:
        # Without instruction there is nothing to measure a share by, and gamma is only a cap then.
        return now.config.gamma if now.config.target is None else 0.0
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
        # A static cache is longer than what is in it.
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
    """Log-sum-exp over all keys of the rows in question only, shape [B, H, I]; ``own`` is their part of the mask."""
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


def _mean(now: Pass, shares: Tensor, is_real: Tensor | None) -> Tensor:
    """Mean over heads and rows, [B, H, I] to [B]."""
    if is_real is None:
        mean = shares.mean((1, 2))
    else:
        kept = is_real.unsqueeze(1).to(shares.dtype)
        mean = (shares.nan_to_num() * kept).sum((1, 2)) / (kept.sum((1, 2)) * shares.shape[1]).clamp_min(1)
    if now.group is not None:
        dist.all_reduce(mean, group=now.group)
        mean /= dist.get_world_size(now.group)
    return mean


def _report(
    now: Pass,
    index: int,
    gamma: Tensor | float,
    z: Tensor,
    lse: Tensor,
    extra: Tensor,
    is_real: Tensor | None,
) -> None:
    report, batch = now.generation.report, z.shape[0]
    if report is None or not now.is_prompt:
        return
    report.gamma[index] = gamma.flatten().tolist() if isinstance(gamma, Tensor) else [gamma] * batch
    report.before[index] = _mean(now, share(z, lse), is_real).tolist()
    report.after[index] = _mean(now, share(z, lse, extra), is_real).tolist()
