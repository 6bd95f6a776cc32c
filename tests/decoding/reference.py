"""The calibrated attention written out in float64, one row at a time in spirit, and a spy that compares with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guardalign_guardrails.decoding.attention import calibration
from guardalign_guardrails.decoding.attention.calibration import Calibration
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans


@dataclass
class Seen:
    """What the spy saw: relative errors by layer and pass, and how far calibration moved the output."""

    errors: list[float] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    window: int | None,
    spans: BatchSpans,
    past: int,
    config: Any,
    *,
    is_edited: bool,
    gamma: Tensor | None = None,
) -> Tensor:
    """[B, L, H, D] in float64; ``gamma`` has one strength for each prompt, if it is not the configured one."""
    batch, heads, length, size = query.shape
    repeats = heads // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(repeats, 1), value.double().repeat_interleave(repeats, 1)
    z = q @ k.transpose(-1, -2) * scaling
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    shift = max(0, past + length - key.shape[2])
    if is_edited:
        for row in range(batch):
            number = row * len(spans.prompts) // batch
            prompt, strength = spans.prompts[number], config.gamma if gamma is None else float(gamma[number])
            for position in range(past, past + length):
                is_asked = any(a <= position < b for a, b in prompt.instruction)
                is_generated = position >= spans.length and config.queries == "instruction+generated"
                if not (is_asked or is_generated):
                    continue
                for column in range(*prompt.prefix):
                    at = column - shift
                    if at < 0 or column > position or (window is not None and position - column >= window):
                        continue
                    old = z[row, :, position - past, at]
                    gain = old.clamp_min(0)
                    gain = gain * strength if config.form == "gate" else gain**2 * strength * size**0.5
                    if config.heads is not None:
                        keep = torch.zeros(heads, dtype=torch.bool)
                        keep[list(config.heads)] = True
                        gain = gain * keep
                    z[row, :, position - past, at] = old + gain
    if mask is not None:
        own = mask[..., : z.shape[-1]]
        z = z.masked_fill(~own, -1e300) if own.dtype == torch.bool else z + own.double()
    elif length > 1:
        seen = torch.arange(z.shape[-1]).view(1, -1) <= (torch.arange(length) + past).view(-1, 1)
        z = z.masked_fill(~seen, -1e300)
    return (z.softmax(-1) @ v).transpose(1, 2)


@contextlib.contextmanager
def spying(calibrator: Calibration, spans: BatchSpans) -> Iterator[Seen]:
    """Within it, every call of the calibrated attention is compared with the reference on the same tensors."""
    from transformers import AttentionInterface

    seen = Seen()
    original = calibration._attention

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        out, weights = original(module, query, key, value, mask, **kwargs)
        layer = module._guardalign_layer
        if not layer.is_chosen:
            return out, weights
        # Counted here, so that a pass whose place calibration gets wrong is an error too.
        past = seen.tokens.get(layer.index, 0)
        seen.tokens[layer.index] = past + query.shape[2]
        plain = (query, key, value, mask, kwargs["scaling"], kwargs.get("softcap"), kwargs.get("sliding_window"))
        args = (spans, past, calibrator.config)
        gamma = calibration._GENERATIONS.get()[calibrator].gamma.get(layer.index)
        want = reference(*plain, *args, is_edited=True, gamma=gamma)
        rows = torch.isfinite(want).all(-1).all(-1)
        if mask is not None and mask.dtype == torch.bool:
            rows &= mask[:, 0].any(-1)
        got = out.double()
        scale = want[rows].abs().max()
        seen.errors.append(float((got - want)[rows].abs().max() / scale))
        seen.effects.append(float((want - reference(*plain, *args, is_edited=False))[rows].abs().max() / scale))
        seen.lengths.append(query.shape[2])
        return out, weights

    for name in calibration._NAMES.values():
        AttentionInterface.register(name, spy)
    try:
        yield seen
    finally:
        for name in calibration._NAMES.values():
            AttentionInterface.register(name, original)
