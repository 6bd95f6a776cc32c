"""Intercepts the softmax or the fused attention call inside an attention module, while that module runs.

It is for models whose attention is not in transformers' registry. No code of theirs is changed: a hook before the
module switches PyTorch's own interception on (`TorchFunctionMode`), a hook after it switches it off and checks that
there was exactly one call. Kernels that PyTorch does not dispatch (flash_attn) are an error, not a no-op.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from guardalign_guardrails.decoding.attention.adapter import AttentionAdapter
from guardalign_guardrails.decoding.attention.correction import ForwardPass, Layer, attended, reweighted
from guardalign_guardrails.errors import CalibrationError

_SOFTMAX: Final = (functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
_FUSED: Final = functional.scaled_dot_product_attention


class _Interception(TorchFunctionMode):
    """Calibrates the one attention call of a module."""

    def __init__(self, forward_pass: ForwardPass, layer: Layer, adapter: AttentionAdapter) -> None:
        super().__init__()
        self.calls = 0
        self._forward_pass, self._layer, self._size = forward_pass, layer, adapter.head_size
        batch, length = forward_pass.positions.rows.at.shape[0], forward_pass.length
        self._shape = (batch, adapter.heads, length, forward_pass.past + length)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _FUSED:
            return self._fused(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            self._softmax(result, *args, **kwargs)
        return result

    def _softmax(self, weights: Tensor, *args: Any, **kwargs: Any) -> None:
        logits = args[0] if args else kwargs["input"]
        dim = args[1] if len(args) > 1 else kwargs["dim"]
        if tuple(logits.shape) == self._shape and dim in (-1, 3):
            self.calls += 1
            reweighted(self._forward_pass, self._layer, logits, weights, self._size)

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        def stock() -> Tensor:
            return _FUSED(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

        batch, heads, length, total = self._shape
        if tuple(query.shape[:-1]) != (batch, heads, length) or key.dim() != 4 or key.shape[2] != total:
            return stock()
        is_plain = length == total if is_causal else length == 1
        if attn_mask is None and not is_plain:
            raise CalibrationError(
                f"Layer {self._layer.index} attends without a mask and not causally; only decoders can be calibrated."
            )
        self.calls += 1
        mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.dim())]
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        return attended(self._forward_pass, self._layer, query, key, value, mask, factor, stock, dropout=dropout_p)


# Of this context, like its forward pass; one attention module does not run inside another.
_RUNNING: ContextVar[tuple[_Interception, contextlib.ExitStack] | None] = ContextVar(
    "guardalign_interception", default=None
)


@contextlib.contextmanager
def intercepted(
    module: nn.Module, layer: Layer, adapter: AttentionAdapter, current: Callable[[], ForwardPass | None]
) -> Iterator[None]:
    """Calibrate the attention of a module in the forward passes that its layer takes part in.

    Args:
        module: The attention module.
        layer: What calibration does in it.
        adapter: Of its model.
        current: Returns the current forward pass.
    """

    def before(*_: object) -> None:
        forward_pass = current()
        if forward_pass is not None and layer.is_in(forward_pass):
            running, undo = _Interception(forward_pass, layer, adapter), contextlib.ExitStack()
            undo.enter_context(running)
            _RUNNING.set((running, undo))

    def after(_module: nn.Module, _args: object, output: object) -> None:
        calls = stop_intercepting()
        # Without an output the module raised, and its error is the one to report.
        if calls is not None and output is not None and calls != 1:
            raise CalibrationError(_MISSED.format(layer.index, calls))

    hooks = (module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def stop_intercepting() -> int | None:
    """End interception in this context and return the number of calls intercepted; None if none was running."""
    current = _RUNNING.get()
    if current is None:
        return None
    _RUNNING.set(None)
    running, undo = current
    undo.close()
    return running.calls


_MISSED: Final = (
    "Layer {} made {} attention calls that can be calibrated instead of one. If the model runs flash_attn or a kernel "
    "of its own, load it with attn_implementation='eager' (or 'sdpa') in its config; if not, the adapter's heads or "
    "past_length are wrong, or the cache is static or sliding."
)
