"""What LiteLLM makes of texts in a screened body: its own functions, which turn texts into images for some models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")

from litellm.litellm_core_utils.prompt_templates.factory import convert_to_gemini_tool_call_result
from litellm.llms.bedrock.embed.amazon_nova_transformation import AmazonNovaEmbeddingConfig
from litellm.llms.bedrock.embed.amazon_titan_multimodal_transformation import AmazonTitanMultimodalEmbeddingG1Config
from litellm.llms.jina_ai.embedding.transformation import JinaAIEmbeddingConfig
from litellm.responses.litellm_completion_transformation.transformation import LiteLLMCompletionResponsesConfig

from guardalign_guardrails.content.bodies import Body, Form, screen_body
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

CALL = {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}


def png(colour: str) -> bytes:
    return encode_png(painted(colour))


def masked() -> bytes:
    """What is left of a red square."""
    image = painted()
    image.paste("black", (0, 0, CELL, CELL))
    return with_mark(encode_png(image))


def url(data: bytes, parameters: str = "") -> str:
    return to_data_url(data, f"image/png{parameters}")


TEXTS = {
    "a data URL": url,
    "one with a long header": lambda data: url(data, f";a={'x' * 2000}"),
    "one with a comma in its header": lambda data: url(data, ';a=","'),
    "one with a fragment": lambda data: url(data) + "#x",
    "one with a star": lambda data: f"{url(data)[:90]}*{url(data)[90:]}",
    "two of them": lambda data: url(data) * 2,
    "one in capitals": lambda data: url(data).replace("data:", "DATA:"),
}


@pytest.fixture
def screened(cache_dir):
    guard = colour_guard(cache_dir)

    def screen(body: Body, form: Form) -> Body:
        return screen_body(guard, body, form).body

    return screen


def of_chat(screened: Any, said: Any) -> dict[str, Any]:
    body = screened({"messages": [{"role": "tool", "tool_call_id": "call_1", "content": said}]}, "chat")
    return body["messages"][-1]


def of_responses(screened: Any, said: Any) -> dict[str, Any]:
    output = {"type": "function_call_output", "call_id": "call_1", "output": said}
    item = screened({"input": [output]}, "responses")["input"][-1]
    transform = LiteLLMCompletionResponsesConfig._transform_responses_api_tool_call_output_to_chat_completion_message
    return next(dict(message) for message in transform(item) if dict(message)["role"] == "tool")


def for_gemini(message: dict[str, Any]) -> list[str]:
    """The images that LiteLLM sends to Gemini of a tool's message."""
    return [image["data"] for image in inlined(convert_to_gemini_tool_call_result(message, CALL))]


def inlined(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "inline_data" in value:
        yield value["inline_data"]
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from inlined(each)


@pytest.mark.parametrize("way", [of_chat, of_responses])
class TestForGemini:
    def test_it_makes_an_image_of_these_texts_if_nobody_looks(self, way):
        for write in TEXTS.values():
            (image,) = for_gemini(way(lambda body, _: body, write(png("red"))))
            assert to_base64(png("red"))[100:] in image

    @pytest.mark.parametrize("text", TEXTS)
    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_no_unsafe_image_is_made_of_a_tools_text(self, screened, way, text, colour):
        message = way(screened, TEXTS[text](png(colour)))
        assert to_base64(png(colour))[100:] not in json.dumps([message, for_gemini(message)])

    def test_a_masked_one_is(self, screened, way):
        assert for_gemini(way(screened, url(png("red")))) == [to_base64(masked())]

    def test_a_harmless_one_is(self, screened, way):
        assert for_gemini(way(screened, url(png("magenta")))) == [to_base64(png("magenta"))]

    @pytest.mark.parametrize("size", [2, 5, 22, 100])
    def test_none_is_made_of_texts_that_it_joins(self, screened, way, size):
        whole = url(png("blue"))
        kind = "input_text" if way is of_responses else "text"
        parts = [{"type": kind, "text": whole[:size]}, {"type": kind, "text": whole[size:]}]
        assert for_gemini(way(screened, parts)) == []


def to_jina(said: list[str]) -> Any:
    return JinaAIEmbeddingConfig().transform_embedding_request("m", said, {}, {})


def to_titan(said: list[str]) -> Any:
    return [AmazonTitanMultimodalEmbeddingG1Config()._transform_request(text, {}) for text in said]


def to_nova(said: list[str]) -> Any:
    return [AmazonNovaEmbeddingConfig()._transform_request(text, {}) for text in said]


@pytest.mark.parametrize("send", [to_jina, to_titan, to_nova])
class TestForEmbeddings:
    def test_it_makes_an_image_of_a_data_url_and_that_is_the_masked_one(self, screened, send):
        before, after = ({"input": ["Look.", url(data)]} for data in (png("red"), masked()))
        sent = send(screened(before, "other")["input"])
        assert sent == send(after["input"])
        assert to_base64(masked()) in json.dumps(sent)

    @pytest.mark.parametrize("text", [*TEXTS, "one of no media type"])
    def test_it_makes_none_of_an_unsafe_one(self, cache_dir, send, text):
        write = {**TEXTS, "one of no media type": lambda data: f"data:,{to_base64(data)}"}[text]
        result = screen_body(colour_guard(cache_dir), {"input": ["Look.", write(png("blue"))]}, "other")
        assert result.decision.handled_by == "error"
        assert to_base64(png("blue"))[100:] not in json.dumps(send(result.body["input"]))
