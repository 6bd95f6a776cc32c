"""Attention that also tells the log-sum-exp of its rows, by the kernel that PyTorch itself would choose.

The operator's name is private to PyTorch, so that its absence, or another device, is an answer (None) and no error.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

_DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool, scaling: float
) -> tuple[Tensor, Tensor] | None:
    """Scaled dot-product attention with its log-sum-exp.

    Args:
        query: Shape [B, H, L, D].
        key: Shape [B, G, K, D]; each key head serves H / G query heads.
        value: Same shape.
        mask: Additive mask that broadcasts to [B, H, L, K], or None.
        is_causal: Row i sees column j if j <= i.
        scaling: Factor on q . k.

    Returns:
        Attention, shape [B, H, L, D], and log-sum-exp, shape [B, H, L]; None if there is no such kernel here.
    """
    kernel: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    is_plain = query.device.type == "cpu" and query.dtype in _DTYPES and value.shape[-1] == query.shape[-1]
    if kernel is None or not is_plain or (torch.is_grad_enabled() and query.requires_grad):
        return None
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    is_packed = length == 1 and heads > groups and (mask is None or mask.shape[1] == 1)
    if is_packed:
        # The heads that share a key become rows: keys are then read once instead of once for each head.
        query = query.reshape(batch, groups, heads // groups, size)
    out, lse = kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, length, size), lse.reshape(batch, heads, length)
