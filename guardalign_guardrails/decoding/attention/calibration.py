"""Amplifies attention to the safety prefix while a model reads and answers (GuardAlign eqs. 12-14).

The stock kernel runs untouched; the rows of instruction and generated tokens are then corrected exactly for what was
added to their prefix scores. So no mask of prompt length squared is ever made, and with calibration off the very same
code runs as without this package. It uses transformers' attention registry, or an adapter for models with code of their
own: no class is patched, and the model is as before when calibration ends.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from guardalign_guardrails.decoding.attention.adapter import AttentionAdapter
from guardalign_guardrails.decoding.attention.correction import (
    CalibrationReport,
    ForwardPass,
    Generation,
    Layer,
    attended,
)
from guardalign_guardrails.decoding.attention.interception import intercepted, stop_intercepting
from guardalign_guardrails.decoding.attention.layers import (
    Decoder,
    cross_attention,
    find_decoder,
    is_split,
    tensor_parallel_group,
)
from guardalign_guardrails.decoding.attention.token_spans import BatchSpans, PromptSpans, positions_in_pass
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.errors import CalibrationError

__all__ = ["Calibration", "CalibrationReport", "calibrate"]

# Without "sdpa", "flash" or "/" in them: transformers looks for these within names. The mask registry must know them
# too, or models are given no mask at all and padded rows go wrong.
_NAMES: Final = {"sdpa": "guardalign_calibration", "eager": "guardalign_calibration_eager"}
# What some models add to scores or to the softmax; rows would be corrected without it.
_UNKNOWN: Final = ("s_aux", "position_bias")
_RESPONSE_GAMMA: Final = 0.5
_ATTRIBUTE: Final = "_guardalign_layer"


@dataclass(frozen=True, eq=False)
class _Registered(Layer):
    """An attention module of a transformers model."""

    stock: Callable[..., tuple[Tensor, Tensor | None]]


# Of this context: threads and tasks that share a model do not share spans, nor do models that share a thread.
_GENERATIONS: ContextVar[Mapping[Calibration, Generation]] = ContextVar(
    "guardalign_generations", default=MappingProxyType({})
)
_FORWARD_PASS: ContextVar[ForwardPass | None] = ContextVar("guardalign_pass", default=None)


def calibrate(
    model: Any,
    config: CalibrationConfig = CalibrationConfig(),  # noqa: B008  frozen
    *,
    adapter: AttentionAdapter | None = None,
) -> Calibration:
    """The calibration of a model, by transformers' registry or by an adapter.

    Args:
        model: A model of transformers, or with an adapter any other.
        config: Settings of the calibration.
        adapter: Needed for models whose attention does not go through the registry, such as those of
            ``trust_remote_code``; see docs/decoding/remote-code.md.

    Raises:
        CalibrationError: The model cannot be calibrated this way, or has not the layers or heads asked for.
    """
    if adapter is None:
        try:
            find_decoder(model)
        except CalibrationError as error:
            raise CalibrationError(
                f"{error} If its attention is code of its own, calibrate it with adapter=AttentionAdapter.find(model); "
                "see docs/decoding/remote-code.md."
            ) from error
    return Calibration(model, config, adapter)


def calibration_for(
    model: Any, config: CalibrationConfig | None, prefix: SafetyPrefix, adapter: AttentionAdapter | None = None
) -> Calibration | None:
    """`calibrate` for a prefix; None if nothing is calibrated.

    For a prefix at the start of the answer, the default settings become a fixed gamma for generated tokens.

    Raises:
        CalibrationError: See `calibrate`; or no token that is calibrated can attend to the prefix.
    """
    if config is None or config.gamma == 0 or not prefix.text.strip():
        return None
    if prefix.placement == "response" and config == CalibrationConfig():
        # The defaults were measured for other placements.
        config = CalibrationConfig.fixed(_RESPONSE_GAMMA)
    if prefix.placement == "response" and (config.queries == "instruction" or config.target is not None):
        raise CalibrationError(
            "The user's tokens cannot attend to a prefix at the start of the answer, so no target can be reached; "
            "calibrate generated tokens, by CalibrationConfig.fixed(0.5)."
        )
    return calibrate(model, config, adapter=adapter)


class Calibration:
    """Attention calibration of one model.

    As a context manager, or with `install` and `remove`, it switches the model's text attention to a calibrated one.
    The output does not change until `generation` says where prefix and instruction are.

    Args:
        model: A transformers model whose attention goes through the registry, or the model of the adapter.
        config: Settings of the calibration.
        adapter: Where the parts of a model with code of its own are; None for models of transformers.

    Raises:
        CalibrationError: The model has no decoder that can be calibrated, or not the layers or heads asked for.
    """

    def __init__(self, model: Any, config: CalibrationConfig, adapter: AttentionAdapter | None = None) -> None:
        self.model = model
        self.config = config
        self._decoder: Decoder | AttentionAdapter = find_decoder(model) if adapter is None else adapter
        if adapter is not None and all(module is not adapter.text_model for module in model.modules()):
            raise CalibrationError("The adapter is of another model.")
        try:
            chosen = config.chosen(self._decoder.depth)
        except ValueError as error:
            raise CalibrationError(str(error)) from None
        self.layers = tuple(index for index in chosen if index in self._decoder.attention)
        if not self.layers:
            raise CalibrationError(f"None of the layers {chosen} has attention scores that could be calibrated.")
        heads = self._decoder.heads
        if config.heads is not None and max(config.heads) >= heads:
            raise CalibrationError(f"Head {max(config.heads)} is not there: the model has {heads} heads.")
        if config.heads is not None and is_split(model):
            raise CalibrationError("Heads cannot be chosen in a model that is split by heads over processes.")
        self._group = tensor_parallel_group(model)
        self._installing = threading.Lock()
        self._depth = 0
        self._undo = contextlib.ExitStack()
        self._fired: set[int] = set()

    def install(self) -> None:
        """Switch the model's text attention; installing it again only counts.

        Raises:
            CalibrationError: Another calibration is installed on the model, or its attention gives no scores (flash,
                flex).
        """
        with self._installing:
            if self._depth == 0:
                self._undo = self._switched()
            self._depth += 1

    def remove(self) -> None:
        """Undo one `install`; after the last one the model is as before."""
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
        """Calibrate forward passes of the model in this thread or task.

        Args:
            spans: Prefix and instruction of each prompt.
            is_reported: Whether shares of attention are measured for the report, which costs a little.

        Yields:
            A report, filled in as the generation goes.
        """
        report = CalibrationReport(self.layers)
        generation = Generation(spans, report if is_reported else None)
        token = _GENERATIONS.set({**_GENERATIONS.get(), self: generation})
        try:
            yield report
        finally:
            _GENERATIONS.reset(token)
            # The hooks that end a forward pass are not called when it ends by KeyboardInterrupt.
            _forget()

    def self_test(self) -> None:
        """Check on a few tokens that calibration works.

        Raises:
            CalibrationError: A chosen layer did not take part, the output without calibration is not the model's own,
                or calibration gave no numbers.
        """
        text = self._decoder.text_model
        ids = torch.arange(1, 9, device=next(text.parameters()).device).unsqueeze(0)

        def hidden() -> Tensor:
            out = text(input_ids=ids, use_cache=False)
            return cast("Tensor", out[0] if isinstance(out, tuple) else out.last_hidden_state)

        with torch.no_grad():
            stock = hidden()
            self._fired.clear()
            with self:
                idle = hidden()
                with self.generation(_probe(ids.shape[1])):
                    changed = hidden()
                    if isinstance(self._decoder, AttentionAdapter):
                        self._continue(ids)
        if not torch.equal(stock, idle):
            raise CalibrationError("The model's output changes although nothing is calibrated.")
        missing = sorted(set(self.layers) - self._fired) if self.config.gamma else []
        if missing:
            raise CalibrationError(f"Layers {missing} took no part in calibration.")
        if not bool(changed.isfinite().all()):
            raise CalibrationError("Calibration gives numbers that are not finite; choose a smaller gamma.")

    def _continue(self, ids: Tensor) -> None:
        """Run one step with a cache, so that an adapter that misreads caches fails before it is used."""
        text = self._decoder.text_model
        out = text(input_ids=ids, use_cache=True)
        cache = out[1] if isinstance(out, tuple) else out.past_key_values
        step = {"input_ids": ids[:, :1], "past_key_values": cache, "use_cache": True}
        if self._decoder.past_length((), step) != ids.shape[1]:
            raise CalibrationError("The adapter's past_length is not the number of tokens in the model's cache.")
        text(**step)

    def _switched(self) -> contextlib.ExitStack:
        decoder = self._decoder
        if any(hasattr(module, _ATTRIBUTE) for module in decoder.attention.values()):
            raise CalibrationError("The model is calibrated already; remove that calibration first.")
        undo = contextlib.ExitStack()
        with contextlib.ExitStack() as on_failure:
            on_failure.push(undo.__exit__)
            undo.callback(decoder.text_model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            undo.callback(decoder.text_model.register_forward_hook(_forget, always_call=True).remove)
            if isinstance(decoder, AttentionAdapter):
                self._intercept(decoder, undo)
            else:
                self._register(decoder, undo)
            on_failure.pop_all()
        return undo

    def _intercept(self, adapter: AttentionAdapter, undo: contextlib.ExitStack) -> None:
        for index, module in adapter.attention.items():
            layer = Layer(self, index, index in self.layers, self._is_measured(index))
            setattr(module, _ATTRIBUTE, layer)
            undo.callback(delattr, module, _ATTRIBUTE)
            if layer.is_chosen or layer.is_measured:
                undo.enter_context(intercepted(module, layer, adapter, _FORWARD_PASS.get))

    def _register(self, decoder: Decoder, undo: contextlib.ExitStack) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        stock = decoder.config._attn_implementation  # noqa: SLF001  no public reader
        if stock not in _NAMES:
            raise CalibrationError(
                f"Attention '{stock}' gives no scores; load the model with attn_implementation='sdpa'."
            )
        name = _NAMES[stock]
        AttentionInterface.register(name, _attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[stock])
        indices = {module: index for index, module in decoder.attention.items()}
        for module in [*indices, *cross_attention(decoder)]:
            index = indices.get(module, -1)
            is_chosen, is_measured = index in self.layers, self._is_measured(index)
            setattr(module, _ATTRIBUTE, _Registered(self, index, is_chosen, is_measured, _stock(module, stock)))
            undo.callback(delattr, module, _ATTRIBUTE)
        undo.callback(self._use, decoder, stock)
        self._use(decoder, name)

    def _is_measured(self, index: int) -> bool:
        return self.config.target == "shallow" and 0 <= index < self.layers[0]

    def _use(self, decoder: Decoder, implementation: str) -> None:
        key = decoder.key
        self.model.set_attn_implementation(implementation if key is None else {key: implementation})
        if decoder.config._attn_implementation != implementation:  # noqa: SLF001  no public reader
            raise CalibrationError(f"{type(self.model).__name__} does not let its attention be switched.")

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _forget()
        generation = _GENERATIONS.get().get(self)
        if generation is None or self.config.gamma == 0:
            return
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        tokens = next(value for value in given if isinstance(value, Tensor))
        past = self._decoder.past_length(args, kwargs)
        if past == 0 and tokens.shape[1] == 1 < generation.spans.length:
            raise CalibrationError("A step after the prompt came without a cache that is known; it is not calibrated.")
        found = positions_in_pass(
            generation.spans,
            past=past,
            length=tokens.shape[1],
            batch=tokens.shape[0],
            with_generated=self.config.queries == "instruction+generated",
            device=tokens.device,
        )
        if found is not None:
            _FORWARD_PASS.set(
                ForwardPass(self, self.config, generation, found, past, tokens.shape[1], self._fired, self._group)
            )


def _forget(*_: object) -> None:
    """End the current forward pass, if any."""
    stop_intercepting()
    _FORWARD_PASS.set(None)


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
    """Attention by transformers' interface: [B, H, L, D] in, [B, L, H, D] out."""
    layer: _Registered = getattr(module, _ATTRIBUTE)
    forward_pass = _FORWARD_PASS.get()

    def stock() -> tuple[Tensor, Tensor | None]:
        return layer.stock(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)

    if forward_pass is None or not layer.is_in(forward_pass):
        return stock()
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise CalibrationError(f"The scores of this model cannot be calibrated: it adds {', '.join(unknown)} to them.")
    out = attended(
        forward_pass,
        layer,
        query,
        key,
        value,
        attention_mask,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        lambda: stock()[0].transpose(1, 2),
        softcap=kwargs.get("softcap"),
        window=kwargs.get("sliding_window"),
        dropout=dropout,
    )
    return out.transpose(1, 2).contiguous(), None


def _stock(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that a module had before."""
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
    return BatchSpans((PromptSpans((1, 3), ((3, length),)),), length)
