"""An LLM of LlamaIndex for demos: local, instant, with tools. It says what it received, and calls the tool it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from demo_image import described
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
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import BaseTool


class ReportingLLM(FunctionCallingLLM):
    """Answers with the images of its last message, and with what a guard put there in place of them.

    With a tool, it first calls that, with the user's last word as its only argument.
    """

    @property
    def metadata(self) -> LLMMetadata:
        """What agents and engines ask for."""
        return LLMMetadata(model_name="reporting", is_chat_model=True, is_function_calling_model=True)

    def chat(self, messages: Sequence[ChatMessage], tool: BaseTool | None = None, **kwargs: Any) -> ChatResponse:
        """The answer."""
        last = messages[-1]
        if tool is not None and last.role == MessageRole.USER:
            (argument,) = tool.metadata.get_parameters_dict()["properties"]
            asked = {argument: str(last.content).split()[-1].strip("?.")}
            name = tool.metadata.get_name()
            call = ToolCallBlock(tool_call_id=f"call_{len(messages)}", tool_name=name, tool_kwargs=asked)
            return ChatResponse(message=ChatMessage(role="assistant", blocks=[call]))
        images = [block for block in last.blocks if isinstance(block, ImageBlock)]
        texts = [block.text for block in last.blocks if isinstance(block, TextBlock)]
        parts = [f"an image of {described(image.resolve_image().read())}" for image in images]
        parts += [f"the words '{text}'" for text in texts if "removed" in text]
        words = f"I received {' and '.join(parts) or 'no image'}."
        return ChatResponse(message=ChatMessage(role="assistant", content=words))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`."""
        return self.chat(messages, **kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """The answer, all at once."""
        answer = self.chat(messages, **kwargs)
        yield answer.model_copy(update={"delta": answer.message.content or ""})

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """As `stream_chat`."""

        async def pieces() -> AsyncGenerator[ChatResponse, None]:
            for piece in self.stream_chat(messages, **kwargs):
                yield piece

        return pieces()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to words alone."""
        return CompletionResponse(text=str(self.chat([ChatMessage(prompt)]).message.content))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As `complete`."""
        return self.complete(prompt)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """The answer to words alone, all at once."""
        yield self.complete(prompt)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        """As `stream_complete`."""

        async def pieces() -> AsyncGenerator[CompletionResponse, None]:
            yield self.complete(prompt)

        return pieces()

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in an answer."""
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        return [
            ToolSelection(tool_id=str(call.tool_call_id), tool_name=call.tool_name, tool_kwargs=dict(call.tool_kwargs))
            for call in calls
            if isinstance(call.tool_kwargs, dict)
        ]

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        added = [] if user_msg is None else [ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg]
        return {"messages": [*(chat_history or []), *added], "tool": tools[0] if tools else None, **kwargs}
