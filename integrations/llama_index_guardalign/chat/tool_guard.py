"""A filter behind a tool: its results are checked before they reach an agent, its memory or a stream of events."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from llama_index.core.base.llms.types import BaseContentBlock, TextBlock
from llama_index.core.schema import BaseNode
from llama_index.core.tools.function_tool import FunctionTool
from llama_index.core.tools.types import AsyncBaseTool, BaseTool, ToolMetadata, ToolOutput

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.content.documents.filter import FilterRule
from guardalign_guardrails.content.screen import Turn, screen
from guardalign_guardrails.content.walk import MediaBlock, find_loose
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from llama_index_guardalign.chat.blocks import plain_of, restored
from llama_index_guardalign.events import announce
from llama_index_guardalign.leaves import mapped
from llama_index_guardalign.nodes.filter import announced, node_filter
from llama_index_guardalign.spans import not_spanned
from llama_index_guardalign.unguarded import warn_of_llms_in

_COMPONENT: Final = "guard_tool"


def guard_tool(tool: BaseTool, guard: GuardLike = None, *, on_violation: FilterRule = "notice") -> AsyncBaseTool:
    """A tool like another one, whose results are checked.

    Images in the result's blocks and in its ``raw_output`` (nodes, responses with sources, blocks, messages, PIL
    images, bytes, data URLs, within lists, mappings, dataclasses and pydantic objects) are masked, or replaced by a
    notice. Agents put blocks into the chat, and stream ``raw_output`` to everything that listens.

    An `UnsafeContentError` of the tool itself, such as of a guarded LLM in it, gets a text that a model may read. LLMs
    in the tool that are not guarded are warned of with `UnguardedWarning`.

    Args:
        tool: Any tool. A `FunctionTool` stays one, so that agents give it their context.
        guard: A ready guard, a policy, the path of one, or settings; None for the policy that ships with the package.
        on_violation: ``notice`` puts a short text in a blocked image's place, ``raise`` raises `UnsafeContentError`,
            of which agents show the model the text, which does not say why. ``refuse`` is for components that answer.

    Returns:
        The guarded tool. The other one is left as it is.

    Raises:
        SettingsError: A tool cannot do what ``on_violation`` says.
    """
    if on_violation not in ("notice", "raise"):
        raise SettingsError(f"A tool passes content on: on_violation is 'notice' or 'raise', not '{on_violation}'.")
    warn_of_llms_in(tool)
    kind = _GuardedFunctionTool if isinstance(tool, FunctionTool) else _GuardedTool
    return kind(tool, _ResultFilter(GuardSettings.of(guard), on_violation))


class _GuardedTool(AsyncBaseTool):
    """Another tool with a filter behind it; what it is asked for beside results, it gives as it is."""

    def __init__(self, tool: BaseTool, result_filter: _ResultFilter) -> None:
        self._tool = tool
        self._filter = result_filter

    @property
    def metadata(self) -> ToolMetadata:
        """The other tool's."""
        return self._tool.metadata

    @not_spanned
    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """The other tool's result, checked."""
        with _told_to_models():
            return self._filter.checked(self._tool(*args, **kwargs))

    @not_spanned
    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        """`call` without blocking the event loop."""
        with _told_to_models():
            if isinstance(self._tool, AsyncBaseTool):
                output = await self._tool.acall(*args, **kwargs)
            else:
                output = await asyncio.to_thread(self._tool, *args, **kwargs)
            return await asyncio.to_thread(self._filter.checked, output)

    def to_langchain_tool(self, **langchain_tool_kwargs: Any) -> Any:
        """Refuse: LangChain would call the function itself, and nobody would check what it returns.

        Raises:
            SettingsError: Always.
        """
        raise SettingsError(
            "A guarded tool cannot become a LangChain tool, which would call its function past the guard; convert the "
            "tool itself and put GuardAlignMiddleware into the LangChain agent."
        )

    to_langchain_structured_tool = to_langchain_tool

    def __getattr__(self, name: str) -> Any:
        if "_tool" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._tool, name)

    def __reduce__(self) -> tuple[Any, ...]:
        check_pickles("guard", self._filter.settings)
        check_pickles("tool", self._tool)
        return type(self), (self._tool, self._filter)

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncBaseTool:
        return type(self)(copy.deepcopy(self._tool, memo), self._filter)


class _GuardedFunctionTool(_GuardedTool, FunctionTool):
    """One that agents take for a function tool, and give their context."""


class _MediaInResult:
    """Everything of a tool's output that may hold an image, each once, by its identity.

    Args:
        output: Any output.

    Attributes:
        output: The output without what is nested too deeply to be looked at.
        blocks: Its blocks, and those of its raw output.
        nodes: The nodes of its raw output.
        bare: Images that are neither.
    """

    def __init__(self, output: ToolOutput) -> None:
        self.blocks: dict[int, BaseContentBlock] = {}
        self.nodes: dict[int, BaseNode] = {}
        self.bare: dict[int, tuple[Any, MediaBlock]] = {}
        mapped(output.blocks, self._add)
        shallow = mapped(output.raw_output, self._add)
        is_same = shallow is output.raw_output
        self.output = output if is_same else output.model_copy(update={"raw_output": shallow})

    def _add(self, leaf: Any) -> Any:
        if isinstance(leaf, BaseNode):
            self.nodes[id(leaf)] = leaf
        elif isinstance(leaf, BaseContentBlock):
            self.blocks[id(leaf)] = leaf
        elif id(leaf) not in self.bare:
            for image in find_loose(leaf):
                self.bare[id(leaf)] = leaf, MediaBlock((len(self.bare),), image.reading)
        return leaf

    def turns(self, max_bytes: int) -> list[Turn]:
        """The blocks and the bare images as turns."""
        bare = self.bare.values()
        return [
            Turn(plain_of(list(self.blocks.values()), max_bytes), "tool"),
            _BareImages([leaf for leaf, _ in bare], "tool", is_loose=True, images=tuple(image for _, image in bare)),
        ]

    def rewritten(self, new: Mapping[int, Any]) -> ToolOutput:
        """The output with other things in it; itself if there are none."""
        if not new:
            return self.output

        def change(leaf: Any) -> Any:
            return new.get(id(leaf), leaf)

        blocks, raw = mapped(self.output.blocks, change), mapped(self.output.raw_output, change)
        if raw is not self.output.raw_output:
            # A function tool shows the model as text what is neither block nor node: images, objects with all bytes.
            text = str(self.output.raw_output)
            blocks = [TextBlock(text=str(raw)) if getattr(block, "text", None) == text else block for block in blocks]
        return self.output.model_copy(update={"blocks": blocks, "raw_output": raw})


@dataclass
class _BareImages(Turn):
    """Images that were found already."""

    images: tuple[MediaBlock, ...] = ()

    def find(self) -> list[MediaBlock]:
        return list(self.images)


@dataclass(frozen=True)
class _ResultFilter:
    """Checks what tools return."""

    settings: GuardSettings = field(repr=False)
    on_violation: FilterRule

    def checked(self, output: ToolOutput) -> ToolOutput:
        """The output without what the policy forbids; itself if nothing changed."""
        guard, media = self.settings.guard, _MediaInResult(output)
        plain, bare = screen(guard, media.turns(guard.limits.max_bytes))
        # A notice for a node would break everything that counts on nodes.
        nodes = node_filter(self.settings, source="tool", withhold="image")
        filtered = announced(_COMPONENT, nodes.filter(list(media.nodes.values())))
        verdicts = [*plain.verdicts, *bare.verdicts]
        announce(_COMPONENT, verdicts)
        violation = first_violation([*verdicts, *filtered.verdicts])
        if self.on_violation == "raise" and violation is not None:
            raise UnsafeContentError(violation)
        blocks = list(media.blocks.values())
        is_pinned = guard.policy.mode == "enforce"
        pairs = [
            *zip(blocks, restored(blocks, plain.turn.content, plain.content, is_pinned=is_pinned), strict=True),
            *zip(media.nodes.values(), filtered.places, strict=True),
            *zip(bare.turn.content, bare.content, strict=True),
        ]
        return media.rewritten({id(old): new for old, new in pairs if new is not old})


@contextmanager
def _told_to_models() -> Iterator[None]:
    """Give violations a text for a model to read, and a user: category and digest would help to probe the policy."""
    try:
        yield
    except UnsafeContentError as error:
        told = UnsafeContentError(error.verdict)
        what = "could not check a part" if error.verdict.finding == "unchecked" else "blocked an image"
        told.args = (f"The safety policy {what} of this result.",)
        raise told from error
