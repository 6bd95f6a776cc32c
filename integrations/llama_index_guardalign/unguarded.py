"""Finds the LLMs of agents, engines, tools and memories that are asked past the guard, and warns of them.

LlamaIndex has no place that all calls of LLMs go through: each agent, synthesizer, reranker and memory block holds an
LLM of its own, or takes everybody's. What is found here is what can be reached from a component through its attributes,
and from a tool's function through the names that it uses; an LLM that a function makes when it is called is not.
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from llama_index.core import Settings
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import BaseContentBlock
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.schema import BaseNode
from llama_index.core.storage.chat_store import BaseChatStore
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from guardalign_guardrails.errors import UnguardedWarning
from guardalign_guardrails.guarding.settings import GuardSettings

# Stores hold no LLM, and what users store may be very much.
_LEAVES: Final = (
    *(type(None), bool, int, float, str, bytes, type),
    *(BaseChatStore, BaseContentBlock, BaseDocumentStore, BaseNode, BasePydanticVectorStore, IndexStruct),
)
_FRAMEWORK: Final = ("llama_index", "llama_index_guardalign", "workflows")
_MOST: Final = 50_000


def warn_unguarded(*components: Any) -> None:
    """Warn of every LLM that components ask without a guard in front; for the end of an app's construction.

    Args:
        components: Agents, workflows, query and chat engines, retrievers, postprocessors, memories, tools. Besides
            them, everybody's LLM is looked at, if ``Settings.llm`` was set.
    """
    everybodys = Settings._llm  # noqa: SLF001  its property would make one
    _warn([("Settings.llm", everybodys), *_named(components)], stacklevel=3)


def warn_of_llms_in(component: Any) -> None:
    """`warn_unguarded` of one component alone, for those that are made of it."""
    _warn(_named([component]), stacklevel=4)


def _named(components: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(type(component).__name__, component) for component in components]


def _warn(values: Sequence[tuple[str, Any]], stacklevel: int) -> None:
    """Look through values, breadth first, and warn."""
    seen: dict[int, Any] = {}
    queue = deque(values)
    while queue:
        where, value = queue.popleft()
        if id(value) in seen or isinstance(value, _LEAVES):
            continue
        seen[id(value)] = value
        if len(seen) > _MOST:
            warnings.warn(f"{where} holds too much to be looked through for LLMs.", UnguardedWarning, stacklevel)
            return
        if isinstance(value, BaseLLM) and not isinstance(value, StructuredLLM):
            # A local model may have a guard or none.
            if not isinstance(getattr(value, "guard", None), GuardSettings):
                warnings.warn(
                    f"{where} ({type(value).__name__}) is asked without a guard: images that reach it are not checked. "
                    "Give GuardedLLM(llm=...) there; if no image can reach it, ignore UnguardedWarning.",
                    UnguardedWarning,
                    stacklevel,
                )
        else:
            queue += _inside(where, value)


def _inside(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{where}[{key!r:.40}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple | AbstractSet):
        yield from ((f"{where}[{place}]", item) for place, item in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from ((where, item) for item in (value.func, value.args, value.keywords))
    elif isinstance(value, MethodType):
        yield from ((where, item) for item in (value.__func__, value.__self__))
    elif isinstance(value, FunctionType):
        yield from ((f"{where}.{name}", item) for name, item in _used_by(value))
    elif any(kind.__module__.partition(".")[0] in _FRAMEWORK for kind in type(value).__mro__):
        own = {**getattr(value, "__dict__", {}), **(getattr(value, "__pydantic_private__", None) or {})}
        yield from ((f"{where}.{name}", item) for name, item in own.items())


def _used_by(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The values of a function's names from outside, those of functions within it too."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        # What is named further down in an outer function has no value yet.
        with suppress(ValueError):
            yield name, cell.cell_contents
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        yield from ((name, function.__globals__[name]) for name in code.co_names if name in function.__globals__)
