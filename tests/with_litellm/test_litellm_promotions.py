"""Text of which LiteLLM, or the server behind it, makes an image: recorded bytes hold nothing of an unsafe one."""

from __future__ import annotations

import io
import json

import pytest

pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")

import httpx
from litellm_proxies import MASTER_KEY

from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import painted

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
PROSE = "Data: the table has three rows and two columns, and the mean of the second column is four point five."


def base64_of(colour):
    return to_base64(encode_png(painted(colour)))


def trace(colour):
    """A piece of an image's base64 that no other image has: all of them begin alike."""
    return base64_of(colour)[60:120]


# Each is read as an image by a server that LiteLLM speaks to, or by LiteLLM itself.
TEXTS = {
    "plain": lambda b: f"data:image/png;base64,{b}",
    "upper-case": lambda b: f"DATA:image/png;base64,{b}",
    "parameters": lambda b: f"data:image/png;charset=utf-8;base64,{b}",
    "long-header": lambda b: f"data:image/png;a={'x' * 1100};base64,{b}",
    "comma-in-header": lambda b: f"data:image/png,a;base64,{b}",
    "fragment": lambda b: f"data:image/png;base64,{b}#x",
    "star": lambda b: f"data:image/png;base64,{b[:150]}*{b[150:]}",
    "two-joined": lambda b: f"data:image/png;base64,{b}data:image/png;base64,{b}",
    "text-after-a-comma": lambda b: f"data:image/png;base64,{b},and more",
    "no-base64-said": lambda b: f"data:image/png,{b}",
    "another-type": lambda b: f"data:text/plain;base64,{b}",
    "no-type": lambda b: f"data:,{b}",
    "bare": lambda b: b,
}


def chat(model, text, role="tool"):
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "1", "content": text}
    if role == "function":
        asked = {"role": "assistant", "content": None, "function_call": CALL["function"]}
        result = {"role": "function", "name": "look", "content": text}
    return "/v1/chat/completions", {
        "model": model,
        "messages": [{"role": "user", "content": "Look."}, asked, result],
    }


def responses(model, text):
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "1", "output": text}
    return "/v1/responses", {"model": model, "input": [{"role": "user", "content": "Look."}, call, output]}


def messages(model, text, *, is_block=False):
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    content = [{"type": "text", "text": text}] if is_block else text
    result = {"type": "tool_result", "tool_use_id": "1", "content": content}
    chat = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    return "/v1/messages", {"model": model, "max_tokens": 9, "messages": chat}


def embeddings(model, text):
    return "/v1/embeddings", {"model": model, "input": [text]}


WAYS = {
    "chat-tool-gemini": lambda text: chat("gemini", text),
    "chat-function-gemini": lambda text: chat("gemini", text, "function"),
    "chat-tool-openai": lambda text: chat("gpt-4o", text),
    "chat-function-openai": lambda text: chat("gpt-4o", text, "function"),
    "chat-tool-claude": lambda text: chat("claude", text),
    "responses-gemini": lambda text: responses("gemini", text),
    "responses-openai": lambda text: responses("gpt-4o", text),
    "messages-gemini": lambda text: messages("gemini", text),
    "messages-gemini-block": lambda text: messages("gemini", text, is_block=True),
    "messages-claude": lambda text: messages("claude", text),
    "embeddings-jina": lambda text: embeddings("jina", text),
    "embeddings-titan": lambda text: embeddings("titan", text),
    "embeddings-cohere": lambda text: embeddings("cohere", text),
    "embeddings-openai": lambda text: embeddings("other", text),
}


@pytest.fixture
def send(running, upstream, received):
    """Send a text a way through the proxy; the answer, and all bytes that arrived behind it."""

    def send(way, text, *guardrails):
        path, body = WAYS[way](text)
        body |= {"guardrails": list(guardrails)} if guardrails else {}
        headers = {"Authorization": f"Bearer {MASTER_KEY}"}
        answer = httpx.post(running.choosing.url + path, json=body, headers=headers, timeout=60)
        return answer, b"".join(each.raw for each in (*upstream.requests, *received)).decode()

    return send


@pytest.mark.parametrize("way", WAYS)
def test_without_the_guardrail_an_image_arrives(send, way):
    answer, arrived = send(way, TEXTS["plain"](base64_of("red")))
    assert answer.status_code == 200, answer.text
    assert trace("red") in arrived


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", WAYS)
def test_with_it_nothing_of_an_unsafe_image_arrives(send, way, text):
    for colour in ("red", "blue"):
        answer, arrived = send(way, TEXTS[text](base64_of(colour)), "refusing")
        assert trace(colour) not in arrived
        # A tool's image becomes a notice or is masked, and the model answers.
        assert answer.status_code in ((200, 400) if way.startswith("embeddings") else (200,))


@pytest.mark.parametrize("way", WAYS)
def test_a_harmless_image_and_prose_arrive_as_they_are(send, way):
    answer, arrived = send(way, TEXTS["plain"](base64_of("white")), "refusing")
    assert answer.status_code == 200, answer.text
    assert trace("white") in arrived
    answer, arrived = send(way, PROSE, "refusing")
    assert answer.status_code == 200, answer.text
    assert PROSE in arrived


@pytest.mark.parametrize(
    "more",
    [
        lambda b: {"prompt": {"prompt_string": "What?", "multimodal_data": [b]}},
        lambda b: {"image_data": [{"data": b, "id": 1}]},
        lambda b: {"input_image": b},
        lambda b: {"init_image": b},
        lambda b: {"reference_images": [b]},
        lambda b: {"Images": [b]},
    ],
    ids=["multimodal_data", "image_data", "input_image", "init_image", "reference_images", "Images"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_keys_that_only_some_servers_know_bring_no_unsafe_image(running, upstream, received, path, more):
    def post(colour, guardrails):
        text = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
        body = {"model": "other", **text, "extra_body": more(base64_of(colour)), "guardrails": guardrails}
        headers = {"Authorization": f"Bearer {MASTER_KEY}"}
        return httpx.post(running.choosing.url + path, json=body, headers=headers, timeout=60)

    assert post("red", []).status_code == 200
    assert trace("red") in received[-1].raw.decode()
    received.clear()
    for colour in ("red", "blue"):
        post(colour, ["refusing"])
        assert trace(colour) not in b"".join(each.raw for each in received).decode()


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent"])
def test_googles_own_api_is_guarded_too(running, received, verb):
    def post(colour):
        part = {"inlineData": {"mimeType": "image/png", "data": base64_of(colour)}}
        body = {"contents": [{"role": "user", "parts": [part, {"text": "What?"}]}]}
        headers = {"Authorization": f"Bearer {MASTER_KEY}"}
        path = f"{running.guarded.url}/v1beta/models/gemini:{verb}"
        return httpx.post(path, json=body, headers=headers, timeout=60)

    post("white")
    assert trace("white") in received[-1].raw.decode()
    post("red")
    assert trace("red") not in received[-1].raw.decode()
    (content,) = received[-1].body["contents"]
    assert "data" in (content["parts"][0].get("inlineData") or content["parts"][0].get("inline_data"))
    assert post("blue").status_code == 400
    assert len(received) == 2


def test_each_line_of_a_batch_is_checked(running, received):
    def line(number, colour):
        image = {"type": "image_url", "image_url": {"url": to_data_url(encode_png(painted(colour)), "image/png")}}
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": [image]}]}
        return {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}

    def upload(*colours):
        lines = "\n".join(json.dumps(line(number, colour)) for number, colour in enumerate(colours))
        return httpx.post(
            f"{running.guarded.url}/v1/files",
            files={"file": ("batch.jsonl", io.BytesIO(lines.encode()), "application/jsonl")},
            data={"purpose": "batch", "custom_llm_provider": "openai"},
            headers={"Authorization": f"Bearer {MASTER_KEY}"},
            timeout=60,
        )

    answer = upload("red", "white")
    assert answer.status_code == 200, answer.text
    arrived = received[-1].raw.decode()
    assert trace("red") not in arrived
    assert trace("white") in arrived
    upload("white", "blue")
    assert all(trace("blue") not in request.raw.decode() for request in received)
