"""Keeps the safety prefix in attention while a model reads and answers (GuardAlign eqs. 12-14).

The stock kernel runs untouched; the rows of instruction and generated tokens are then corrected exactly for what was
added to their prefix scores. So no mask of prompt length squared is ever made, and with calibration off the very same
code runs as without this package. Goes through transformers' attention registry: no class is patched, and everything is
as before when it ends.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from guardalign_guardrails.decoding.config import CalibrationConfig
from guardalign_guardrails.decoding.kernels import attend_with_lse
from guardalign_guardrails.decoding.layers import cross_attention, find_decoder
from guardalign_guardrails.decoding.scores import corrected, gamma_for, increment, scores, share
from guardalign_guardrails.decoding.token_spans import BatchSpans, Places, places
from guardalign_guardrails.errors import CalibrationError

# Without "sdpa", "flash" or "/" in them: transformers looks for these within names. The mask registry must know them
# too, or models are given no mask at all and padded rows go wrong.
_NAMES: Final = {"sdpa": "guardalign_calibration", "eager": "guardalign_calibration_eager"}
_ATTRIBUTE: Final = "_guardalign_layer"


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
class _Generation:
    """One generation under way: its spans and what has been found out about it."""

    spans: BatchSpans
    report: CalibrationReport | None
    gamma: dict[int, Tensor] = field(default_factory=dict)
    shallow: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Pass:
    """One forward pass of it."""

    owner: Calibration
    generation: _Generation
    places: Places
    past: int
    is_prompt: bool


@dataclass(frozen=True, eq=False)
class _Layer:
    """What a module needs to know when its attention is asked for."""

    owner: Calibration
    index: int
    is_chosen: bool
    is_measured: bool
    stock: Callable[..., tuple[Tensor, Tensor | None]]


# Of this context, so that threads and tasks that share a model do not share spans.
_GENERATION: ContextVar[_Generation | None] = ContextVar("guardalign_generation", default=None)
_PASS: ContextVar[_Pass | None] = ContextVar("guardalign_pass", default=None)


class Calibration:
    """Attention calibration of one model.

    As a context manager, or with `install` and `remove`, it switches the model's text attention to a calibrated one;
    nothing is changed until `generation` says where prefix and instruction are.

    Args:
        model: A transformers model whose attention goes through the registry.
        config: How strongly, where and for whom.

    Raises:
        CalibrationError: The model has no decoder that can be calibrated, or not the layers or heads asked for.
    """

    def __init__(self, model: Any, config: CalibrationConfig) -> None:
        self.model = model
        self.config = config
        self._decoder = find_decoder(model)
        try:
            chosen = config.chosen(self._decoder.depth)
        except ValueError as error:
            raise CalibrationError(str(error)) from None
        self.layers = tuple(index for index in chosen if index in self._decoder.attention)
        if not self.layers:
            raise CalibrationError(f"None of the layers {chosen} has attention scores that could be calibrated.")
        heads = self._decoder.config.num_attention_heads
        if config.heads is not None and max(config.heads) >= heads:
            raise CalibrationError(f"Head {max(config.heads)} is not there: the model has {heads} heads.")
        self._installing = threading.Lock()
        self._depth = 0
        self._undo = contextlib.ExitStack()
        self._fired: set[int] = set()

    def install(self) -> None:
        """Switch the model's text attention; again and again is once.

        Raises:
            CalibrationError: Another calibration is installed on the model, or its attention is of a kind whose scores
                cannot be had (flash, flex).
        """
        with self._installing:
            if self._depth == 0:
                self._undo = self._switched()
            self._depth += 1

    def remove(self) -> None:
        """Undo one `install`; after the last one the model is as it was."""
        with self._installing:
            self._depth -= 1
            if self._depth == 0:
                self._undo.close()

    def __enter__(self) -> Calibration:
        """Install it."""
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it, also after an exception."""
        self.remove()

    @contextlib.contextmanager
    def generation(self, spans: BatchSpans, *, is_reported: bool = False) -> Iterator[CalibrationReport]:
        """Within it, forward passes of the model are calibrated; in this thread or task only.

        Args:
            spans: Prefix and instruction of each prompt.
            is_reported: Whether shares of attention are measured for the report, which costs a little.

        Yields:
            A report, filled in as the generation goes.
        """
        report = CalibrationReport(self.layers)
        token = _GENERATION.set(_Generation(spans, report if is_reported else None))
        try:
            yield report
        finally:
            _GENERATION.reset(token)

    def self_test(self) -> None:
        """Check on a few tokens that the model is calibrated at all.

        Raises:
            CalibrationError: A chosen layer did not take part, the output without calibration is not the model's own,
                or calibration changed nothing or gave no numbers.
        """
        ids = torch.arange(1, 9, device=self.model.device).unsqueeze(0)
        text = self._decoder.text_model

        def hidden() -> Tensor:
            out: Tensor = text(input_ids=ids, use_cache=False).last_hidden_state
            return out

        with torch.no_grad():
            stock = hidden()
            self._fired.clear()
            with self:
                idle = hidden()
                with self.generation(_probe(ids.shape[1])):
                    changed = hidden()
        if not torch.equal(stock, idle):
            raise CalibrationError("The model's output changes although nothing is calibrated; it cannot be trusted.")
        missing = sorted(set(self.layers) - self._fired) if self.config.gamma else []
        if missing:
            raise CalibrationError(f"Layers {missing} took no part in calibration.")
        if not bool(changed.isfinite().all()):
            raise CalibrationError("Calibration makes numbers that are not finite; choose a smaller gamma.")

    def _switched(self) -> contextlib.ExitStack:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        decoder, stock = self._decoder, self._decoder.config._attn_implementation  # noqa: SLF001  no public reader
        modules = [*decoder.attention.values(), *cross_attention(decoder)]
        if stock not in _NAMES:
            is_ours = stock in _NAMES.values()
            raise CalibrationError(
                "The model is calibrated already; remove that calibration first."
                if is_ours
                else f"Attention '{stock}' tells no scores; load the model with attn_implementation='sdpa'."
            )
        name = _NAMES[stock]
        AttentionInterface.register(name, _attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[stock])
        undo = contextlib.ExitStack()
        with contextlib.ExitStack() as on_failure:
            on_failure.push(undo.__exit__)
            for module in modules:
                setattr(module, _ATTRIBUTE, self._layer(module, stock))
                undo.callback(delattr, module, _ATTRIBUTE)
            undo.callback(decoder.text_model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            undo.callback(decoder.text_model.register_forward_hook(_after, always_call=True).remove)
            undo.callback(self._use, stock)
            self._use(name)
            on_failure.pop_all()
        return undo

    def _use(self, implementation: str) -> None:
        key = self._decoder.key
        self.model.set_attn_implementation(implementation if key is None else {key: implementation})
        if self._decoder.config._attn_implementation != implementation:  # noqa: SLF001  no public reader
            raise CalibrationError(f"{type(self.model).__name__} does not let its attention be switched.")

    def _layer(self, module: nn.Module, stock: str) -> _Layer:
        index = next((i for i, known in self._decoder.attention.items() if known is module), -1)
        is_measured = self.config.target == "shallow" and 0 <= index < self.layers[0]
        return _Layer(self, index, index in self.layers, is_measured, _stock(module, stock))

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        generation = _GENERATION.get()
        if generation is None or self.config.gamma == 0:
            return
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        tokens = next(value for value in given if isinstance(value, Tensor))
        # By what it can do: transformers 5.24 renamed the argument, and a cache not found would end calibration there.
        cache = next((value for value in (*kwargs.values(), *args) if hasattr(value, "get_seq_length")), None)
        past = 0 if cache is None else int(cache.get_seq_length())
        found = places(
            generation.spans,
            past=past,
            length=tokens.shape[1],
            batch=tokens.shape[0],
            with_generated=self.config.queries == "instruction+generated",
            device=tokens.device,
        )
        is_prompt = past < generation.spans.length
        _PASS.set(None if found is None else _Pass(self, generation, found, past, is_prompt))


def _after(*_: object) -> None:
    _PASS.set(None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers asks for it: [B, H, L, D] in, [B, L, H, D] out."""
    layer: _Layer = getattr(module, _ATTRIBUTE)
    now = _PASS.get()
    is_touched = now is not None and now.owner is layer.owner and (layer.is_chosen or layer.is_measured)
    if now is None or not is_touched or (layer.is_measured and not now.is_prompt):
        return layer.stock(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap = kwargs.get("softcap")
    known = None
    if softcap is None and dropout == 0:
        known = _with_lse(query, key, value, attention_mask, factor, now.past)
    if known is None:
        out, _ = layer.stock(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        out, lse = out.transpose(1, 2), None
    else:
        out, lse = known
    window = kwargs.get("sliding_window")
    out = _calibrated(now, layer, query, key, value, attention_mask, out, lse, factor, softcap, window)
    layer.owner._fired.add(layer.index)  # noqa: SLF001  its own module
    return out.transpose(1, 2).contiguous(), None


def _with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, past: int
) -> tuple[Tensor, Tensor] | None:
    length = query.shape[2]
    if mask is None:
        if length > 1:
            if past:
                return None
            # A static cache is longer than what is in it.
            key, value = key[:, :, :length], value[:, :, :length]
        return attend_with_lse(query, key, value, mask=None, is_causal=length > 1, scaling=scaling)
    if length > 1:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    return attend_with_lse(query, key, value, mask=mask, is_causal=False, scaling=scaling)


def _calibrated(
    now: _Pass,
    layer: _Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """``out`` [B, H, L, D] with the rows in question corrected, in place."""
    config, found = layer.owner.config, now.places
    # Sliding caches drop their first columns.
    shift = max(0, now.past + query.shape[2] - key.shape[2])
    rows, columns = found.rows.to(query.device), found.columns.to(query.device) - shift
    pairs = None if found.pairs is None else found.pairs.to(query.device)
    if shift or window is not None:
        seen = (columns >= 0).unsqueeze(1)
        if window is not None:
            seen = seen & (rows.unsqueeze(-1) + now.past - shift - columns.unsqueeze(1) < window)
        pairs = seen.expand(-1, rows.shape[1], -1) if pairs is None else pairs & seen
        columns = columns.clamp_min(0)
    chosen = _taken(query, rows, found.is_uniform)
    prefix_key, prefix_value = _taken(key, columns, found.is_uniform), _taken(value, columns, found.is_uniform)
    z = scores(chosen, prefix_key, scaling, softcap)
    if lse is None:
        row_lse = _row_lse(chosen, key, rows, mask, scaling, softcap, now.past, window)
    else:
        row_lse = _taken(lse, rows, found.is_uniform)
    if pairs is not None:
        z = z.masked_fill(~pairs.unsqueeze(1), float("-inf"))
    is_real = None if pairs is None else pairs.any(-1)
    if layer.is_measured:
        now.generation.shallow.append(_mean(share(z, row_lse), is_real))
        return out
    gamma = _gamma(now, layer, z, row_lse, is_real, query.shape[-1])
    extra = increment(z, gamma, config.form, query.shape[-1])
    if config.heads is not None:
        is_head = torch.zeros(query.shape[1], dtype=torch.bool, device=query.device)
        is_head[list(config.heads)] = True
        extra = extra * is_head.view(1, -1, 1, 1)
    if now.generation.report is not None and now.is_prompt:
        _report(now.generation.report, layer.index, gamma, z, row_lse, extra, is_real)
    new = corrected(_taken(out, rows, found.is_uniform), row_lse, z, extra, prefix_value)
    return _put(out, rows, new, found.is_uniform, is_real)


def _gamma(now: _Pass, layer: _Layer, z: Tensor, lse: Tensor, is_real: Tensor | None, size: int) -> Tensor | float:
    """The strength in this layer, of shape [B, 1, 1, 1] when there is a target."""
    config, generation = layer.owner.config, now.generation
    if config.target is None:
        return config.gamma
    if now.is_prompt and layer.index not in generation.gamma:
        batch = z.shape[0]
        if config.target != "shallow":
            target = torch.full((batch,), config.target, dtype=z.dtype, device=z.device)
        elif generation.shallow:
            target = torch.stack([s.to(z.device) for s in generation.shallow]).mean(0)
        else:
            raise CalibrationError("target 'shallow' needs a layer before the first chosen one.")

        def share_at(gamma: Tensor) -> Tensor:
            extra = increment(z, gamma.view(-1, 1, 1, 1), config.form, size)
            return _mean(share(z, lse, extra), is_real)

        generation.gamma[layer.index] = gamma_for(target, config.gamma, share_at)
    gamma = generation.gamma.get(layer.index)
    if gamma is None:
        return config.gamma
    return gamma.repeat_interleave(z.shape[0] // gamma.shape[0]).to(z.device).view(-1, 1, 1, 1)


def _row_lse(
    chosen: Tensor,
    key: Tensor,
    rows: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    past: int,
    window: int | None,
) -> Tensor:
    """Log-sum-exp over all keys of the rows in question only, shape [B, H, I]."""
    z = scores(chosen, key, scaling, softcap)
    if mask is not None:
        index = rows.view(rows.shape[0], 1, -1, 1).expand(-1, mask.shape[1], -1, mask.shape[-1])
        own = mask.expand(rows.shape[0], -1, -1, -1).gather(2, index)[..., : z.shape[-1]]
        z = z.masked_fill(~own, float("-inf")) if own.dtype == torch.bool else z + own.to(z.dtype)
    else:
        at = (rows + past).unsqueeze(-1)
        column = torch.arange(key.shape[2], device=key.device).view(1, 1, -1)
        seen = column <= at if window is None else (column <= at) & (at - column < window)
        z = z.masked_fill(~seen.unsqueeze(1), float("-inf"))
    return torch.logsumexp(z, -1)


def _taken(tensor: Tensor, index: Tensor, is_uniform: bool) -> Tensor:
    """Entries of dimension 2 by an index of shape [B, N]."""
    if is_uniform:
        return tensor.index_select(2, index[0])
    shape = (index.shape[0], 1, index.shape[1]) + (1,) * (tensor.dim() - 3)
    return tensor.gather(2, index.view(shape).expand(-1, tensor.shape[1], -1, *tensor.shape[3:]))


def _put(out: Tensor, rows: Tensor, new: Tensor, is_uniform: bool, is_real: Tensor | None) -> Tensor:
    if is_uniform and is_real is None:
        return out.index_copy_(2, rows[0], new)
    if is_real is None:
        is_real = torch.ones_like(rows, dtype=torch.bool)
    # Rows that only fill up the batch point to row 0 and must not write there.
    batch, place = is_real.nonzero(as_tuple=True)
    out[batch, :, rows[batch, place]] = new[batch, :, place]
    return out


def _mean(shares: Tensor, is_real: Tensor | None) -> Tensor:
    """Mean over heads and rows, [B, H, I] to [B]."""
    if is_real is None:
        return shares.mean((1, 2))
    kept = is_real.unsqueeze(1).to(shares.dtype)
    return (shares.nan_to_num() * kept).sum((1, 2)) / (kept.sum((1, 2)) * shares.shape[1]).clamp_min(1)


def _report(
    report: CalibrationReport,
    index: int,
    gamma: Tensor | float,
    z: Tensor,
    lse: Tensor,
    extra: Tensor,
    is_real: Tensor | None,
) -> None:
    batch = z.shape[0]
    report.gamma[index] = gamma.flatten().tolist() if isinstance(gamma, Tensor) else [gamma] * batch
    report.before[index] = _mean(share(z, lse), is_real).tolist()
    report.after[index] = _mean(share(z, lse, extra), is_real).tolist()


def _stock(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention a module had before."""
    from transformers import AttentionInterface

    if name != "eager":
        found: Callable[..., tuple[Tensor, Tensor | None]] = AttentionInterface()[name]
        return found
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise CalibrationError(f"{type(module).__name__} has no eager attention; load with attn_implementation='sdpa'.")
    plain: Callable[..., tuple[Tensor, Tensor | None]] = eager
    return plain


def _probe(length: int) -> BatchSpans:
    from guardalign_guardrails.decoding.token_spans import PromptSpans

    return BatchSpans((PromptSpans((1, 3), ((3, length),)),), length)
