"""Attention that also returns the log-sum-exp of its rows, by the kernel that PyTorch itself would choose.

The operator's name is private to PyTorch, so its absence is no error, nor is another device: callers ask `has_lse`.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

_DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_KERNEL: Final[Any] = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def has_lse(query: Tensor, value: Tensor) -> bool:
    """Whether there is such a kernel for these queries and values; its name is private to PyTorch."""
    is_plain = query.device.type == "cpu" and query.dtype in _DTYPES and value.shape[-1] == query.shape[-1]
    is_plain = is_plain and value.dtype == query.dtype
    return _KERNEL is not None and is_plain and not (torch.is_grad_enabled() and query.requires_grad)


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention with its log-sum-exp, where `has_lse`.

    Args:
        query: Shape [B, H, L, D].
        key: Shape [B, G, K, D]; each key head serves H / G query heads.
        value: Same shape.
        mask: Additive mask that broadcasts to [B, H, L, K], in float32 or the dtype of ``query``; None for none.
        is_causal: Row i sees column j if j <= i.
        scaling: Factor on q . k.

    Returns:
        Attention, shape [B, H, L, D], and log-sum-exp, shape [B, H, L].
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    if length == 1 and heads > groups:
        # The heads that share a key become rows: keys are then read once instead of once for each head.
        query = query.reshape(batch, groups, heads // groups, size)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(mask.shape[0], groups, heads // groups, mask.shape[3])
    out, lse = _KERNEL(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, length, size), lse.reshape(batch, heads, length)
