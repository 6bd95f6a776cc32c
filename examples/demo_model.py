"""A chat model for demos: local, instant, streaming.

It says what it received, which is the one thing that a guard in front of it changes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from demo_image import described
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult


class ReportingModel(BaseChatModel):
    """Answers with what it was given; it understands v1 image blocks.

    Attributes:
        opening: First words of every answer.
    """

    opening: str = "I received"

    @property
    def _llm_type(self) -> str:
        return "reporting"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._answer(messages)))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for word in self._answer(messages).split(" "):
            chunk = ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk

    def _answer(self, messages: list[BaseMessage]) -> str:
        blocks = [block for message in messages if isinstance(message.content, list) for block in message.content]
        images = [
            described(base64.b64decode(block["base64"]))
            for block in blocks
            if isinstance(block, dict) and block.get("type") == "image"
        ]
        notices = [block["text"] for block in blocks if isinstance(block, dict) and "removed" in block.get("text", "")]
        parts = [f"an image of {image}" for image in images] + [f"the words '{notice}'" for notice in notices]
        prefix = "".join(f", after '{m.content}'" for m in messages if isinstance(m, SystemMessage))
        return f"{self.opening} {' and '.join(parts) or 'no image'}{prefix}."
