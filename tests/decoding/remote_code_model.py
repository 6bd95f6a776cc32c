"""A small model of the shape that remote code has: InternLM2 as in XComposer and InternVL-Chat, on torch alone.

Fused query, key and value weights, grouped heads, rotary positions, caches of tuples, and attention written out in the
module: nothing that transformers' registry could switch. Beside it a vision tower, so that there are two lists of
layers. Each attention module keeps what it attended to in ``seen``, for a reference to be computed afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCAB, WIDTH, HEADS, GROUPS, DEPTH = 99, 32, 4, 2, 4
SIZE = WIDTH // HEADS

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def repeated(key: Tensor) -> Tensor:
    return key.repeat_interleave(HEADS // GROUPS, 1)


def visible(mask: Tensor, length: int, window: int) -> Tensor:
    """Who sees whom by a padding mask [B, K], shape [B, 1, L, K]."""
    total = mask.shape[1]
    distance = torch.arange(total - length, total).unsqueeze(-1) - torch.arange(total)
    return (distance >= 0) & (distance < window) & mask.bool()[:, None, None, :]


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def eager(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, softmax: Any = functional.softmax) -> Tensor:
    scores = query @ repeated(key).transpose(2, 3) / math.sqrt(SIZE) + additive(seen, query.dtype)
    return softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ repeated(value)


def fused(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Without a mask where none is needed, else with a boolean one."""
    length, total = seen.shape[2:]
    is_causal = length == total and length > 1 and bool(seen[:, 0, -1].all())
    mask = None if is_causal or bool(seen.all()) else seen
    key, value = repeated(key), repeated(value)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)


def fused_with_grouped_keys(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """With an additive mask always, of two dimensions if it is the same for the whole batch."""
    mask = additive(seen if len(seen) > 1 else seen[0, 0], query.dtype)
    return functional.scaled_dot_product_attention(query, key, value, mask, scale=SIZE**-0.5, enable_gqa=True)


def own_kernel(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Like flash_attn: neither a softmax nor PyTorch's attention is called."""
    scores = query @ repeated(key).transpose(2, 3) / math.sqrt(SIZE) + additive(seen, query.dtype)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ repeated(value)


class Attention(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, SIZE
        self.attend = attend
        self.wqkv = nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * SIZE, bias=False)
        self.wo = nn.Linear(HEADS * SIZE, WIDTH, bias=False)
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, hidden_states, seen, position_ids, past_key_value=None, use_cache=False):
        batch, length, _ = hidden_states.shape
        states = self.wqkv(hidden_states).view(batch, length, GROUPS, HEADS // GROUPS + 2, SIZE)
        query = states[..., :-2, :].reshape(batch, length, HEADS, SIZE).transpose(1, 2)
        key, value = states[..., -2, :].transpose(1, 2), states[..., -1, :].transpose(1, 2)
        query, key = rotated(query, position_ids), rotated(key, position_ids)
        if past_key_value is not None:
            key, value = torch.cat([past_key_value[0], key], 2), torch.cat([past_key_value[1], value], 2)
        out = self.attend(query, key, value, seen)
        self.seen.append((query, key, value, seen, out))
        return self.wo(out.transpose(1, 2).flatten(2)), (key, value) if use_cache else None


def rotated(states: Tensor, position_ids: Tensor) -> Tensor:
    angles = position_ids[:, None, :, None] / 10000 ** (torch.arange(0, SIZE, 2) / SIZE)
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    first, second = states.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Layer(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attention = Attention(attend)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 48), nn.SiLU(), nn.Linear(48, WIDTH))
        self.attention_norm, self.ffn_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden_states, **inputs):
        out, cache = self.attention(self.attention_norm(hidden_states), **inputs)
        hidden_states = hidden_states + out
        return hidden_states + self.feed_forward(self.ffn_norm(hidden_states)), cache


class TextModel(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, WIDTH, 0)
        self.layers = nn.ModuleList(Layer(attend) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.window = 1000

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=True,
    ):
        hidden_states = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length, _ = hidden_states.shape
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        if attention_mask is None:
            attention_mask = torch.ones(batch, past + length)
        if position_ids is None:
            position_ids = torch.arange(past, past + length).unsqueeze(0)
        seen, caches = visible(attention_mask, length, self.window), ()
        for index, layer in enumerate(self.layers):
            cache = None if past_key_values is None else past_key_values[index]
            hidden_states, cache = layer(
                hidden_states, seen=seen, position_ids=position_ids, past_key_value=cache, use_cache=use_cache
            )
            caches += (cache,)
        return (self.norm(hidden_states), caches) if use_cache else (self.norm(hidden_states),)


class VisionTower(nn.Module):
    """Never run here; it has attention in layers, like the text model."""

    def __init__(self) -> None:
        super().__init__()
        self.position_embeddings = nn.ModuleList([nn.Embedding(4, WIDTH)])
        self.layers = nn.ModuleList(Layer(eager) for _ in range(2))


class RemoteCodeModel(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.model = TextModel(attend)
        self.output = nn.Linear(WIDTH, VOCAB, bias=False)
        self.vit = VisionTower()

    def forward(self, **inputs):
        hidden_states, *rest = self.model(**inputs)
        return self.output(hidden_states), *rest

    @torch.no_grad()
    def generate(self, input_ids, attention_mask, new: int, chunk: int | None = None) -> Tensor:
        """Greedy decoding; the prompt in one pass, or in passes of ``chunk`` tokens."""
        length = input_ids.shape[1]
        cache, step = None, chunk or length
        for start in [*range(0, length, step), *range(length, length + new - 1)]:
            stop = min(start + step, length) if start < length else start + 1
            positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
            logits, cache = self(
                input_ids=input_ids[:, start:stop],
                attention_mask=attention_mask[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            if stop == input_ids.shape[1]:
                input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], 1)
                attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], 1)
        return input_ids


def remote_code_model(attend: Attend, dtype: torch.dtype = torch.float32) -> RemoteCodeModel:
    """The model, seeded. With larger weights, bfloat16 attention of this kind is itself off by 1%."""
    torch.manual_seed(0)
    return RemoteCodeModel(attend).eval().to(dtype)
