"""An LLM that keeps what it is given and answers by rule, for tests of what a guard lets through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_images import image_of
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from PIL import Image
from pydantic import Field

WORDS = ("one ", "two ", "three")


class RecordingLLM(FunctionCallingLLM):
    """Answers ``words``, one at a time, and keeps all that it is given.

    Attributes:
        received: The messages of each call.
        options: Its keyword arguments.
        prompts: Of completions.
        name: Its model name.
        call: Name of a tool that it calls without arguments, whenever the last message is a user's; None for none.
        answer: What it answers instead of ``words``.
    """

    received: list[list[ChatMessage]] = Field(default_factory=list, exclude=True)
    options: list[dict[str, Any]] = Field(default_factory=list, exclude=True)
    prompts: list[str] = Field(default_factory=list, exclude=True)
    call: str | None = None
    answer: str | None = None
    name: str = "recording"
    context: int = 32000
    system_role: MessageRole = MessageRole.SYSTEM

    @classmethod
    def class_name(cls) -> str:
        return "recording_llm"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.context,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.name,
            system_role=self.system_role,
        )

    @property
    def images(self) -> list[Image.Image]:
        """All images it was given, in order."""
        return [
            image_of(block)
            for messages in self.received
            for message in messages
            for block in message.blocks
            if block.block_type in ("image", "citable", "citation", "document")
        ]

    def _said(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> ChatMessage:
        self.received.append(list(messages))
        self.options.append(options)
        if self.call is not None and messages[-1].role == MessageRole.USER:
            call = ToolCallBlock(tool_call_id=f"call_{len(self.received)}", tool_name=self.call, tool_kwargs={})
            return ChatMessage(role="assistant", blocks=[call])
        return ChatMessage(role="assistant", content=self.answer or "".join(WORDS))

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        return ChatResponse(message=self._said(messages, kwargs), raw={"finish_reason": "stop"})

    @llm_chat_callback()
    async def achat(self, messages, **kwargs):
        return ChatResponse(message=self._said(messages, kwargs), raw={"finish_reason": "stop"})

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        yield from self._pieces(self._said(messages, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages, **kwargs):
        said = self._said(messages, kwargs)

        async def pieces():
            for piece in self._pieces(said):
                yield piece

        return pieces()

    def _pieces(self, said: ChatMessage):
        if said.content is None:
            yield ChatResponse(message=said, delta="")
            return
        text = ""
        for word in said.content.split(" "):
            delta = word if not text else f" {word}"
            text += delta
            yield ChatResponse(message=ChatMessage(role="assistant", content=text), delta=delta)

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        self.prompts.append(prompt)
        return CompletionResponse(text="done")

    @llm_completion_callback()
    async def acomplete(self, prompt, formatted=False, **kwargs):
        self.prompts.append(prompt)
        return CompletionResponse(text="done")

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        self.prompts.append(prompt)
        yield CompletionResponse(text="done", delta="done")

    @llm_completion_callback()
    async def astream_complete(self, prompt, formatted=False, **kwargs):
        self.prompts.append(prompt)

        async def pieces():
            yield CompletionResponse(text="done", delta="done")

        return pieces()

    def _prepare_chat_with_tools(
        self, tools, user_msg=None, chat_history=None, verbose=False, allow_parallel_tool_calls=False,
        tool_required=False, **kwargs,
    ):  # fmt: skip
        messages = list(chat_history or [])
        if user_msg:
            messages.append(user_msg if isinstance(user_msg, ChatMessage) else ChatMessage(content=user_msg))
        names = [tool.metadata.name for tool in tools]
        return {"messages": messages, "tools": names, "tool_required": tool_required, **kwargs}

    def get_tool_calls_from_response(self, response, error_on_no_tool_call=True, **kwargs):
        return [
            ToolSelection(tool_id=block.tool_call_id, tool_name=block.tool_name, tool_kwargs=block.tool_kwargs)
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]


class WordsLLM(CustomLLM):
    """A plain LLM without tools."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="words")

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text="done")

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield CompletionResponse(text="done", delta="done")


def texts_of(messages: Sequence[ChatMessage]) -> list[str]:
    return [block.text for message in messages for block in message.blocks if isinstance(block, TextBlock)]


def urls_of(messages: Sequence[ChatMessage]) -> list[Any]:
    """What still leads elsewhere."""
    blocks = [block for message in messages for block in message.blocks if isinstance(block, ImageBlock)]
    return [place for block in blocks for place in (block.url, block.path) if place is not None]


def as_json(**values: Any) -> str:
    return json.dumps(values)
