"""Text of a tool that clients make an image of: checked as an image, in whatever block of LlamaIndex's it stands."""

from __future__ import annotations

import base64
import inspect
import io
from typing import Any

import pytest
from llama_images import data_url, png, said
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, CitableBlock, DocumentBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_models import RecordingLLM, texts_of
from PIL import Image

from guardalign_guardrails.content.payload import read_bytes
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.chats import canary, leaks_of, number_of, shows
from llama_index_guardalign import GuardedLLM, guard_tool

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)

FORMS = {"a data URL": data_url, "base64": lambda image: base64.b64encode(png(image)).decode()}
HOLDERS = {
    "text": lambda text: [TextBlock(text=text)],
    "text beside text": lambda text: [TextBlock(text="a photo"), TextBlock(text=text)],
    "a citable source": lambda text: [CitableBlock(title="t", source="s", content=[TextBlock(text=text)])],
}
ROLES = pytest.mark.parametrize("role", [MessageRole.TOOL, MessageRole.FUNCTION])


def asked(llm: RecordingLLM) -> list[str]:
    """The texts of the tool's message that reached the LLM."""
    (message,) = [message for message in llm.received[-1] if message.role in (MessageRole.TOOL, MessageRole.FUNCTION)]
    inner = [nested for block in message.blocks for nested in getattr(block, "nested_blocks", [block])]
    return texts_of([ChatMessage(blocks=inner)])


def chat(role: MessageRole, blocks: list[Any]) -> list[ChatMessage]:
    return [said("Look"), ChatMessage(role=role, blocks=blocks, additional_kwargs={"tool_call_id": "1"})]


@ROLES
@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
class TestAnImageAsText:
    async def test_is_masked_or_becomes_a_notice_or_stays(self, guard, role, hold, form):
        llm = RecordingLLM()
        guarded = GuardedLLM(llm=llm, guard=guard)
        for call in (guarded.chat, guarded.achat):
            for image in (RED, BLUE, WHITE):
                messages = chat(role, hold(form(image)))
                answer = call(messages)
                if inspect.isawaitable(answer):
                    await answer
                *_, text = asked(llm)
                if image is BLUE:
                    assert text == NOTICE
                else:
                    data = read_bytes(text, 10**7)
                    shown = Image.open(io.BytesIO(data)).convert("RGB")
                    assert (number_of(shown), shows(shown, "red")) == (number_of(image), False)
                if image is WHITE:
                    assert text == form(image)


@ROLES
@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;a={'x' * 1100};base64,{base64.b64encode(png(BLUE)).decode()}",
        f"{data_url(BLUE)}#x",
        f"{data_url(BLUE)}{data_url(BLUE)}",
        data_url(BLUE).replace(",", ",*", 1),
    ],
    ids=["a long header", "a fragment", "two in one", "an asterisk"],
)
def test_what_begins_like_an_image_and_cannot_be_read_is_a_finding(guard, role, text):
    llm = RecordingLLM()
    GuardedLLM(llm=llm, guard=guard).chat(chat(role, [TextBlock(text=text)]))
    assert asked(llm)[0] in (NOTICE, UNCHECKED_NOTICE)
    assert leaks_of("".join(asked(llm)), BLUE) == []


@ROLES
def test_text_of_a_tool_stays_the_very_same(guard, role):
    llm = RecordingLLM()
    messages = chat(role, [TextBlock(text="data: none"), DocumentBlock(data=b"a,b", document_mimetype="text/csv")])
    GuardedLLM(llm=llm, guard=guard).chat(messages)
    assert all(new is old for new, old in zip(llm.received[0], messages, strict=True))


@pytest.mark.parametrize("is_guarded", [False, True], ids=["a bare tool", "a guarded tool"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_a_tool_of_an_agent_that_answers_with_one_shows_the_model_nothing_unchecked(guard, form, is_guarded):
    def photo() -> str:
        """Take a photo."""
        return form(BLUE)

    tool = FunctionTool.from_defaults(photo)
    llm = RecordingLLM(call="photo")
    tools = [guard_tool(tool, guard) if is_guarded else tool]
    await FunctionAgent(tools=tools, llm=GuardedLLM(llm=llm, guard=guard)).run(user_msg="Look")
    assert asked(llm) == [NOTICE]
