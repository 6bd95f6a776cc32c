"""A filter behind a tool: what it returns is checked before an agent, its memory or a stream of events is given it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from llama_index.core.base.llms.types import BaseContentBlock, TextBlock
from llama_index.core.schema import BaseNode
from llama_index.core.tools.function_tool import FunctionTool
from llama_index.core.tools.types import AsyncBaseTool, BaseTool, ToolMetadata, ToolOutput

from guardalign_guardrails import UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from llama_index_guardalign.chat.blocks import plain_of, restored
from llama_index_guardalign.events import announce
from llama_index_guardalign.nodes.filter import FilteredNodes, NodeFilter
from llama_index_guardalign.nodes.leaves import mapped
from llama_index_guardalign.spans import not_spanned

_COMPONENT: Final = "guard_tool"


def guard_tool(
    tool: BaseTool,
    guard: GuardLike = None,
    *,
    on_violation: Literal["notice", "raise"] = "notice",
) -> AsyncBaseTool:
    """A tool like another one, whose results are checked.

    Images in the result's blocks and in its ``raw_output`` (nodes, responses with sources, blocks, messages, PIL
    images, bytes, data URLs, within lists, mappings, dataclasses and pydantic objects) are masked, or replaced by a
    notice. Agents put blocks into the chat and stream ``raw_output`` to whoever listens.

    Args:
        tool: Any tool. A `FunctionTool` stays one, so that agents give it their context.
        guard: A ready guard, a policy or settings; None for the policy that ships with the package.
        on_violation: ``notice`` puts a short text in a blocked image's place, ``raise`` raises `UnsafeContentError`,
            of which agents show the model the text: a digest, and not why.

    Returns:
        The guarded tool. The other one is left as it is.
    """
    node_filter = _ToolGate(GuardSettings.of(guard), on_violation)
    if isinstance(tool, FunctionTool):
        guarded = _GuardedFunctionTool.__new__(_GuardedFunctionTool)
        guarded.__dict__.update(tool.__dict__)
        guarded.node_filter = node_filter
        return guarded
    return _GuardedTool(tool, node_filter)


class _GuardedFunctionTool(FunctionTool):
    """A function tool; it is made of another one's attributes, and has a filter."""

    node_filter: _ToolGate

    @not_spanned
    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """The other tool's, checked."""
        return self.node_filter.checked(super().call(*args, **kwargs))

    @not_spanned
    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`call` without blocking the event loop."""
        return await self.node_filter.achecked(await super().acall(*args, **kwargs))


class _GuardedTool(AsyncBaseTool):
    """Any other tool with a filter."""

    def __init__(self, tool: BaseTool, node_filter: _ToolGate) -> None:
        self._tool = tool
        self._filter = node_filter

    @property
    def metadata(self) -> ToolMetadata:
        """The other tool's."""
        return self._tool.metadata

    @not_spanned
    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """The other tool's, checked."""
        return self._filter.checked(self._tool(*args, **kwargs))

    @not_spanned
    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`call` without blocking the event loop."""
        if isinstance(self._tool, AsyncBaseTool):
            return await self._filter.achecked(await self._tool.acall(*args, **kwargs))
        return await self._filter.achecked(await asyncio.to_thread(self._tool, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if "_tool" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._tool, name)


@dataclass(frozen=True)
class _Found:
    """What of a tool's output may hold an image; kept, so that each can be known by its identity.

    Attributes:
        output: The tool's, without what is nested too deeply to be looked at.
        blocks: Its blocks, and those of its raw output.
        nodes: Of its raw output.
        bare: Images that are neither.
    """

    output: ToolOutput
    blocks: list[BaseContentBlock] = field(default_factory=list)
    nodes: list[BaseNode] = field(default_factory=list)
    bare: list[Any] = field(default_factory=list)

    def add(self, leaf: Any) -> Any:
        kind = self.nodes if isinstance(leaf, BaseNode) else self.blocks if _is_block(leaf) else self.bare
        if all(leaf is not known for known in kind):
            kind.append(leaf)
        return leaf

    def turns(self, max_bytes: int) -> list[Turn]:
        return [Turn(plain_of(self.blocks, max_bytes), "tool"), Turn(list(self.bare), "tool", is_loose=True)]


@dataclass(frozen=True)
class _ToolGate:
    """Checks what tools return."""

    settings: GuardSettings = field(repr=False)
    on_violation: Literal["notice", "raise"]

    def checked(self, output: ToolOutput) -> ToolOutput:
        """The output without what the policy forbids; itself if nothing changed."""
        found = _found(output)
        turns = found.turns(self._max_bytes)
        screened = screen(self.settings.guard, turns)
        return self._rewritten(found, turns, screened, self._node_gate().filter(found.nodes))

    async def achecked(self, output: ToolOutput) -> ToolOutput:
        """`checked` without blocking the event loop."""
        found = _found(output)
        turns = await asyncio.to_thread(found.turns, self._max_bytes)
        screened = await ascreen(self.settings.guard, turns)
        return self._rewritten(found, turns, screened, await self._node_gate().afilter(found.nodes))

    @property
    def _max_bytes(self) -> int:
        return self.settings.guard.limits.max_bytes

    def _node_gate(self) -> NodeFilter:
        # A notice for a node would break whatever counts on nodes.
        return NodeFilter(_COMPONENT, self.settings, "tool", withhold="image")

    def _rewritten(
        self, found: _Found, turns: Sequence[Turn], screened: Sequence[Screened], filtered: FilteredNodes
    ) -> ToolOutput:
        (plain, _), (blocks, bare) = turns, screened
        verdicts: list[Verdict] = [*blocks.verdicts, *bare.verdicts]
        announce(_COMPONENT, verdicts)
        violation = first_violation([*verdicts, *filtered.verdicts])
        if self.on_violation == "raise" and violation is not None:
            raise _untold(violation)
        is_pinned = self.settings.policy.mode == "enforce"
        new = {
            **_replacements(found.blocks, restored(found.blocks, plain.content, blocks.content, is_pinned=is_pinned)),
            **_replacements(found.nodes, filtered.places),
            **_replacements(found.bare, bare.content),
        }
        return _with_replacements(found.output, new) if new else found.output


def _untold(verdict: Verdict) -> UnsafeContentError:
    """The error with a text for a model to read: the category would help to probe the policy."""
    error = UnsafeContentError(verdict)
    error.args = (f"The safety policy blocked an image of this result (digest {verdict.digest[:12]}).",)
    return error


def _is_block(leaf: Any) -> bool:
    return isinstance(leaf, BaseContentBlock)


def _found(output: ToolOutput) -> _Found:
    shallow = mapped(output.raw_output, lambda leaf: leaf)
    if shallow is not output.raw_output:
        output = output.model_copy(update={"raw_output": shallow})
    found = _Found(output)
    mapped(output.blocks, found.add)
    mapped(output.raw_output, found.add)
    return found


def _replacements(old: Sequence[Any], new: Sequence[Any]) -> dict[int, Any]:
    return {id(a): b for a, b in zip(old, new, strict=True) if a is not b}


def _with_replacements(output: ToolOutput, new: dict[int, Any]) -> ToolOutput:
    def change(leaf: Any) -> Any:
        return new.get(id(leaf), leaf)

    blocks, raw = mapped(output.blocks, change), mapped(output.raw_output, change)
    if raw is not output.raw_output:
        # What is neither block nor node, a function tool shows the model as text: images, and objects with all bytes.
        told = str(output.raw_output)
        blocks = [TextBlock(text=str(raw)) if getattr(block, "text", None) == told else block for block in blocks]
    return output.model_copy(update={"blocks": blocks, "raw_output": raw})
