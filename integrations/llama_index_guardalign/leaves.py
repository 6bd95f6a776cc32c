"""Everything of LlamaIndex's that may hold an image, wherever it is in a value, and other things in its place.

A value is whatever an app, a tool or a tracer handles: lists, mappings, dataclasses, pydantic objects. What is rebuilt
is only what leads to something that changed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from llama_index.core.base.llms.types import BaseContentBlock
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseComponent, BaseNode, NodeWithScore
from llama_index.core.workflow import Event
from PIL import Image
from pydantic import BaseModel

Change: TypeAlias = Callable[[Any], Any]
"""From a node, a block, a text, bytes or a PIL image to what takes its place; the very same object if it stays."""

TOO_DEEP: Final = "[left out: nested too deeply to be looked at]"
"""What takes the place of what is nested too deeply, or without end."""

_MAX_DEPTH: Final = 24
_MAX_VALUES: Final = 100_000


def mapped(value: Any, change: Change) -> Any:
    """A value with ``change`` applied to everything in it that may hold an image; itself if nothing changes.

    These are nodes and blocks, and whatever may be an image without either: texts, bytes and PIL images. What is nested
    too deeply is replaced by `TOO_DEEP`.
    """
    return _mapped(value, change, 0, [_MAX_VALUES])


def _mapped(value: Any, change: Change, depth: int, left: list[int]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        # Not counted: a table may have very many of them.
        return value
    left[0] -= 1
    if depth > _MAX_DEPTH or left[0] < 0:
        return TOO_DEEP
    if isinstance(value, BaseNode | BaseContentBlock | str | bytes | Image.Image):
        return change(value)

    def inner(item: Any) -> Any:
        return _mapped(item, change, depth + 1, left)

    if isinstance(value, Mapping):
        items = {key: inner(item) for key, item in value.items()}
        return value if all(items[key] is item for key, item in value.items()) else items
    if isinstance(value, list | tuple):
        return _sequence(value, [inner(item) for item in value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, inner)
    if isinstance(value, BaseModel) and _is_data(value):
        return _model(value, inner)
    return value


def _is_data(value: BaseModel) -> bool:
    """Whether it is something that is passed around, rather than a component with a life of its own."""
    return not isinstance(value, BaseComponent) or isinstance(value, NodeWithScore | BasePromptTemplate)


def _sequence(old: Any, new: list[Any]) -> Any:
    if all(a is b for a, b in zip(old, new, strict=True)):
        return old
    if isinstance(old, tuple):
        return type(old)(*new) if hasattr(old, "_fields") else tuple(new)
    return new


def _dataclass(value: Any, inner: Change) -> Any:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    changed = {name: new for name, old in fields.items() if (new := inner(old)) is not old}
    if not changed:
        return value
    # Not `replace`: responses are dataclasses whose construction begins something.
    rebuilt = copy.copy(value)
    for name, new in changed.items():
        object.__setattr__(rebuilt, name, new)
    return rebuilt


def _model(value: BaseModel, inner: Change) -> Any:
    fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
    changed = {name: new for name, old in fields.items() if (new := inner(old)) is not old}
    # Events of workflows keep what they have no field for beside their fields.
    loose = value.to_dict() if isinstance(value, Event) else None
    if (new_loose := inner(loose)) is not loose:
        private = {**(value.__pydantic_private__ or {}), "_data": new_loose}
        value = value.model_copy()
        # Their own way of setting an attribute would put it into what the copy still shares.
        object.__setattr__(value, "__pydantic_private__", private)
    return value.model_copy(update=changed) if changed else value
