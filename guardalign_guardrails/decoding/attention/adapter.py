"""Adapters to models with code of their own, whose attention is not in transformers' registry.

Such models (`trust_remote_code`: InternLM-XComposer, InternVL-Chat) have no common names, so their parts are either
found by their shape or named; an ambiguous shape is an error. It knows nothing of calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

from guardalign_guardrails.decoding.attention.layers import cached_length
from guardalign_guardrails.errors import CalibrationError

_LAYERS: Final = ("layers", "h", "blocks")
_ATTENTION: Final = ("attention", "self_attn", "attn", "self_attention")
_HEADS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_HEAD_SIZE: Final = ("head_dim", "head_size")


@dataclass(frozen=True, eq=False)
class AttentionAdapter:
    """The parts of a model that calibration works on.

    Attention must be computed inside the attention modules, by a softmax over scores [B, heads, L, K] or by PyTorch's
    scaled dot-product attention, with keys of all tokens so far.

    Attributes:
        text_model: The module whose forward runs all decoder layers, called with ``input_ids`` or ``inputs_embeds`` of
            shape [B, L, ...] and with the cache.
        attention: Its self-attention modules by layer.
        depth: Number of decoder layers.
        heads: Query heads of a layer.
        head_size: Their size.
        past_length: Tokens before a call of the text model, from its positional and its keyword arguments.

    Raises:
        CalibrationError: The parts do not belong together.
    """

    text_model: nn.Module = field(repr=False)
    attention: Mapping[int, nn.Module] = field(repr=False)
    depth: int
    heads: int
    head_size: int
    past_length: Callable[[tuple[Any, ...], Mapping[str, Any]], int] = field(default=cached_length, repr=False)

    def __post_init__(self) -> None:
        if not self.attention or not all(0 <= index < self.depth for index in self.attention):
            raise CalibrationError(f"An adapter needs attention modules of layers 0 to {self.depth - 1}.")
        if self.heads < 1 or self.head_size < 1:
            raise CalibrationError("An adapter needs a positive number of heads and a positive head size.")
        parts = set(self.text_model.modules())
        if not parts.issuperset(self.attention.values()):
            raise CalibrationError("The attention modules of an adapter must be parts of its text model.")

    @classmethod
    def find(cls, model: nn.Module) -> AttentionAdapter:
        """Find the adapter of a model whose text model has a common shape.

        That is a module with a list of layers (``layers``, ``h`` or ``blocks``), each with an attention module
        (``attention``, ``self_attn``, ``attn`` or ``self_attention``), and an embedding of tokens beside the list,
        which vision towers do not have.

        Raises:
            CalibrationError: There is not exactly one such module, or the number of its heads is unknown.
        """
        found = [
            (path, layers, attention)
            for path, module in model.named_modules()
            for layers in _LAYERS
            for attention in _ATTENTION
            if any(isinstance(child, nn.Embedding) for child in module.children())
            and _is_stack(getattr(module, layers, None), attention)
        ]
        if len(found) != 1:
            names = ", ".join(f"{path or '(the model)'}.{layers}" for path, layers, _ in found) or "none"
            raise CalibrationError(
                f"The text model of {type(model).__name__} cannot be found by its shape (candidates: {names}); name "
                "its parts with AttentionAdapter.named."
            )
        return cls.named(model, *found[0])

    @classmethod
    def named(
        cls,
        model: nn.Module,
        text_model: str,
        layers: str = "layers",
        attention: str = "attention",
        *,
        heads: int | None = None,
        head_size: int | None = None,
        past_length: Callable[[tuple[Any, ...], Mapping[str, Any]], int] = cached_length,
    ) -> AttentionAdapter:
        """The adapter of a model whose parts are named.

        Args:
            model: The model.
            text_model: Dotted name of the text model within the model, such as ``language_model.model``; empty for the
                model itself.
            layers: Dotted name of the list of layers within the text model.
            attention: Dotted name of the attention module within a layer. Layers without it are left out.
            heads: Query heads of a layer; None to read it off the attention modules or the text model's config.
            head_size: Their size; None likewise.
            past_length: See the class.

        Raises:
            CalibrationError: A part does not exist, or the number of heads is unknown.
        """
        text = _part(model, text_model)
        stack = _part(text, layers)
        if not isinstance(stack, nn.ModuleList):
            raise CalibrationError(f"'{layers}' of {type(text).__name__} is no list of layers.")
        modules = {index: _part(layer, attention) for index, layer in enumerate(stack) if _has(layer, attention)}
        if not modules:
            raise CalibrationError(f"No layer in '{layers}' of {type(text).__name__} has a part '{attention}'.")
        config = getattr(text, "config", None)
        heads = heads or _number(modules, config, _HEADS)
        if heads is None:
            raise CalibrationError(f"The heads of {type(text).__name__} are unknown; give heads and head_size.")
        width = getattr(config, "hidden_size", None)
        head_size = head_size or _number(modules, config, _HEAD_SIZE) or (width // heads if width else None)
        if head_size is None:
            raise CalibrationError(f"The size of a head of {type(text).__name__} is unknown; give head_size.")
        return cls(text, modules, len(stack), heads, head_size, past_length)


def _is_stack(layers: object, attention: str) -> bool:
    return isinstance(layers, nn.ModuleList) and any(_has(layer, attention) for layer in layers)


def _has(module: nn.Module, name: str) -> bool:
    try:
        _part(module, name)
    except CalibrationError:
        return False
    return True


def _part(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise CalibrationError(f"{type(module).__name__} has no part '{name}'.") from None


def _number(modules: Mapping[int, nn.Module], config: object, names: tuple[str, ...]) -> int | None:
    """A number on which all attention modules agree, else the config's; None if they differ or neither has it."""
    for name in names:
        stated = {getattr(module, name, None) for module in modules.values()}
        if stated != {None}:
            number = stated.pop() if len(stated) == 1 else None
            return number if isinstance(number, int) else None
    numbers = (getattr(config, name, None) for name in names)
    return next((number for number in numbers if isinstance(number, int)), None)
