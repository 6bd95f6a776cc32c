"""LlamaIndex's messages become the chats that a local model takes, and may be traced without their images."""

from __future__ import annotations

import pytest
from llama_images import KINDS, ask, png, said
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.schema import ImageDocument
from pydantic import BaseModel

from guardalign_guardrails.decoding.chat.messages import messages_of
from guardalign_guardrails.errors import PromptError
from guardalign_guardrails.testing.chats import canary, leaks
from guardalign_guardrails.testing.colours import painted
from llama_index_guardalign.chat.messages import chat_of, role_of, without_images

MAX = 1 << 20


class _Function(BaseModel):
    name: str = "look"
    arguments: str = '{"at": "it"}'


class _OpenAICall(BaseModel):
    id: str = "call_1"
    type: str = "function"
    function: _Function = _Function()


CALLS = {
    "a block": ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_call_id="call_1", tool_name="look", tool_kwargs={"at": "it"})]
    ),
    "a block with text": ChatMessage(
        role="assistant", blocks=[ToolCallBlock(tool_call_id="call_1", tool_name="look", tool_kwargs='{"at": "it"}')]
    ),
    "OpenAI's object": ChatMessage(role="assistant", additional_kwargs={"tool_calls": [_OpenAICall()]}),
    "OpenAI's mapping": ChatMessage(role="assistant", additional_kwargs={"tool_calls": [_OpenAICall().model_dump()]}),
    "Anthropic's mapping": ChatMessage(
        role="assistant",
        additional_kwargs={"tool_calls": [{"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": "it"}}]},
    ),
    "a selection": ChatMessage(
        role="assistant",
        additional_kwargs={"tool_calls": [ToolSelection(tool_id="call_1", tool_name="look", tool_kwargs={"at": "it"})]},
    ),
}


class TestRoles:
    def test_everyone_who_speaks_is_known(self):
        roles = {role.value: role_of(ChatMessage(role=role, content="x")) for role in MessageRole}
        assert roles == {
            "system": "system",
            "developer": "system",
            "user": "user",
            "assistant": "assistant",
            "chatbot": "assistant",
            "model": "assistant",
            "tool": "tool",
            "function": "tool",
        }


class TestToolCalls:
    @pytest.mark.parametrize("message", CALLS.values(), ids=CALLS)
    def test_are_read_wherever_they_are(self, message):
        (call,) = messages_of(chat_of([message], MAX))[0].tool_calls
        assert (call.name, call.arguments, call.id) == ("look", {"at": "it"}, "call_1")

    @pytest.mark.parametrize("message", CALLS.values(), ids=CALLS)
    def test_give_their_name_to_what_came_of_them(self, message):
        result = ChatMessage(role="tool", content="a cat", additional_kwargs={"tool_call_id": "call_1"})
        told = messages_of(chat_of([message, result], MAX))[1]
        assert (told.role, told.name, told.tool_call_id) == ("tool", "look", "call_1")

    def test_that_cannot_be_read_are_a_clear_error(self):
        message = ChatMessage(role="assistant", additional_kwargs={"tool_calls": ["look at it"]})
        with pytest.raises(PromptError, match="tool call"):
            chat_of([message], MAX)
        with pytest.raises(PromptError, match="tool call"):
            messages_of(
                chat_of([ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="x", tool_kwargs="{")])], MAX)
            )


class TestTraces:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_show_no_image_of_any_block(self, kind, tmp_path):
        secret = canary("red", number=3)
        message = ChatMessage(blocks=[TextBlock(text="Look"), kind(secret, tmp_path)])
        told = without_images([message])
        assert leaks(repr(told), secret) == []
        assert str(tmp_path) not in repr(told)
        assert told[0].blocks[0].text == "Look"

    def test_show_none_of_what_hides_beside_the_blocks(self, tmp_path):
        secret = canary("red", number=3)
        message = ChatMessage(
            content="Look",
            additional_kwargs={
                "images": [ImageDocument(image=ImageBlock(image=png(secret)).image)],
                "more": {"deep": [png(secret), {"type": "image", "image": png(secret)}]},
                "tool_call_id": "call_1",
            },
        )
        (told,) = without_images([message])
        assert leaks(repr(told), secret) == []
        assert told.additional_kwargs["tool_call_id"] == "call_1"

    def test_show_messages_of_words_as_they_are(self):
        message = said("Hello")
        assert without_images([message])[0] is message

    def test_change_no_message(self):
        message = ask(painted("red"))
        before = message.model_dump()
        without_images([message])
        assert message.model_dump() == before
