"""Text of tools in LlamaIndex's chats is read as those clients read it that make images of it."""

from __future__ import annotations

import pytest
from llama_images import data_url, png
from llama_index.core.base.llms.types import ChatMessage, CitationBlock, DocumentBlock, MessageRole, TextBlock
from llama_index.core.tools import FunctionTool
from llama_models import texts_of

from guardalign_guardrails.content.payload import to_base64
from guardalign_guardrails.content.redaction import OMITTED
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.chats import canary, shows
from llama_index_guardalign import ascreen_chat, guard_tool, screen_chat
from llama_index_guardalign.chat.messages import without_images
from with_langchain.openai_server import opened

FORMS = {"a data URL": data_url, "base64": lambda image: to_base64(png(image))}
SHAPES = {
    "a text": lambda said: [TextBlock(text=said)],
    "the second of two": lambda said: [TextBlock(text="It says:"), TextBlock(text=said)],
    "a citation": lambda said: [
        CitationBlock(cited_content=TextBlock(text=said), source="s", title="t", additional_location_info={})
    ],
    "a file": lambda said: [DocumentBlock(data=said.encode(), document_mimetype="text/plain")],
}


def texts(blocks) -> list[str]:
    return [inner.text for block in blocks for inner in [getattr(block, "cited_content", block)]]


@pytest.mark.parametrize("role", [MessageRole.TOOL, MessageRole.FUNCTION])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "a file"])
class TestATextOfATool:
    async def test_that_is_an_image_is_masked_or_a_notice(self, guard, role, form, shape):
        for colour in ("red", "blue"):
            message = ChatMessage(role=role, blocks=SHAPES[shape](FORMS[form](canary(colour))))
            for chat in (screen_chat(guard, [message]), await ascreen_chat(guard, [message])):
                text = texts(chat.messages[0].blocks)[-1]
                if colour == "blue":
                    assert text == NOTICE
                else:
                    assert text.startswith("data:image/png") == (form == "a data URL")
                    assert not shows(opened(f",{text.rpartition(',')[2]}"), "red")

    async def test_that_is_a_harmless_image_stays(self, guard, role, form, shape):
        message = ChatMessage(role=role, blocks=SHAPES[shape](FORMS[form](canary("white"))))
        assert screen_chat(guard, [message]).messages[0] is message

    async def test_that_cannot_be_read_is_a_notice(self, guard, role, form, shape):
        said = f"{FORMS[form](canary('white'))}*"
        message = ChatMessage(role=role, blocks=SHAPES[shape](said))
        assert texts(screen_chat(guard, [message]).messages[0].blocks)[-1] == UNCHECKED_NOTICE

    async def test_is_in_no_trace(self, guard, role, form, shape):
        message = ChatMessage(role=role, blocks=SHAPES[shape](FORMS[form](canary("white"))))
        (traced,) = without_images([message])
        assert texts(traced.blocks)[-1] == OMITTED


@pytest.mark.parametrize("form", FORMS)
def test_an_attached_text_file_that_is_an_image_is_a_finding(guard, form):
    message = ChatMessage(role="user", blocks=SHAPES["a file"](FORMS[form](canary("blue"))))
    assert screen_chat(guard, [message]).violation is not None


def test_a_users_sentence_about_an_image_stays(guard):
    message = ChatMessage(role="user", content=f"What is {data_url(canary('blue'))}?")
    assert screen_chat(guard, [message]).messages[0] is message
    assert without_images([message])[0] is message


@pytest.mark.parametrize("form", FORMS)
def test_the_text_of_a_tools_result_is_one_too(guard, form):
    said = FORMS[form](canary("blue"))
    tool = guard_tool(FunctionTool.from_defaults(lambda: said, name="look", description="Look."), guard)
    output = tool.call()
    assert said not in texts_of([ChatMessage(role="tool", blocks=output.blocks)])
    assert said not in str(output.raw_output)
