"""OpenAI's client, LiteLLM's proxy with our guardrail, a server: what arrives there, and what comes back."""

from __future__ import annotations

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("litellm", reason="LiteLLM has its own virtual environment: make test-litellm")

import httpx
import openai
from litellm_proxies import MASTER_KEY

from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import images_in
from guardalign_guardrails.testing.colours import CELL, colour_policy, painted
from litellm_guardalign.version import litellm_version
from with_langchain.openai_server import digest, opened

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PREFIX = "Be careful."
REFUSAL = colour_policy().refusal


def masked(shade: int = 0):
    image = painted(shade=shade)
    image.paste("black", (0, 0, CELL, CELL))
    return image


def url(*colours, shade=0):
    return to_data_url(encode_png(painted(*colours, shade=shade)), "image/png")


def image_url(*colours, shade=0):
    return {"type": "image_url", "image_url": {"url": url(*colours, shade=shade)}}


def input_image(*colours):
    return {"type": "input_image", "image_url": url(*colours)}


def source(*colours):
    data = to_base64(encode_png(painted(*colours)))
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def user(*content):
    return {"role": "user", "content": list(content)}


def ask(client, *messages, **more):
    return client.chat.completions.create(model="gpt-4o", messages=list(messages), **more)


def naming(guardrail):
    return {"extra_body": {"guardrails": [guardrail]}}


def post(proxy, path, body, **headers):
    """A request that no client library tidied up."""
    return httpx.post(proxy.url + path, json=body, headers={"Authorization": f"Bearer {MASTER_KEY}"}, timeout=60)


def arrived(request):
    return [digest(image) for image in images_in(request.body)]


class TestChatCompletions:
    @pytest.mark.parametrize("stream", [False, True])
    def test_only_the_masked_image_arrives_equal_to_the_pixel(self, client, upstream, stream):
        answer = ask(
            client, user({"type": "text", "text": "What?"}, image_url("red"), image_url("white")), stream=stream
        )
        if stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices) == "one two three"
        else:
            assert answer.choices[0].message.content == "one two three"
        assert arrived(upstream.last) == [digest(masked()), digest(painted())]
        assert url("red") not in upstream.last.raw.decode()
        assert upstream.last.body["messages"][0] == {"role": "system", "content": PREFIX}

    def test_a_message_of_an_image_alone_is_no_exception(self, client, upstream):
        ask(client, user(image_url("red")))
        assert arrived(upstream.last) == [digest(masked())]

    def test_a_tools_image_is_masked_or_a_notice(self, client, upstream):
        call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "1", "content": [image_url("red"), image_url("blue")]}
        ask(client, user({"type": "text", "text": "Look."}), asked, result)
        # Newer versions of LiteLLM move a tool's images to the message after it.
        assert arrived(upstream.last) == [digest(masked())]
        assert upstream.last.raw.decode().count(NOTICE) == 1

    def test_so_is_one_that_is_all_of_a_tools_words(self, client, upstream):
        call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        ask(
            client,
            user({"type": "text", "text": "Look."}),
            asked,
            {"role": "tool", "tool_call_id": "1", "content": url("red")},
        )
        assert digest(opened(upstream.last.body["messages"][-1]["content"])) == digest(masked())

    def test_a_blocked_image_is_status_400_and_no_request(self, client, upstream):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, user(image_url("blue")))
        assert "safety policy blocked" in str(caught.value)
        assert "blue" not in str(caught.value)
        assert upstream.requests == []

    def test_an_image_elsewhere_is_not_fetched_and_the_client_is_told_what_to_do(self, client, upstream):
        block = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        with pytest.raises(openai.BadRequestError, match=r"of this request: remote_reference\. Send images inline"):
            ask(client, user(block))
        assert upstream.requests == []

    def test_a_routed_chat_is_answered_by_the_other_model(self, client, upstream):
        ask(client, user(image_url("yellow"), image_url("red")))
        assert upstream.last.body["model"] == "careful"
        assert upstream.last.texts == [PREFIX, NOTICE]
        assert arrived(upstream.last) == [digest(masked())]

    def test_words_alone_are_passed_on_as_they_are(self, client, upstream):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        ask(client, *messages, temperature=0.5)
        assert upstream.last.body["messages"] == messages
        assert upstream.last.body["temperature"] == 0.5

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/deployments/gpt-4o/chat/completions"])
    def test_messages_that_would_replace_those_of_the_body_are_masked_too(self, running, upstream, path):
        body = {"model": "gpt-4o", "messages": [user(image_url("white"))]}
        answer = post(running.guarded, path, {**body, "extra_body": {"messages": [user(image_url("red"))]}})
        assert answer.status_code == 200
        assert arrived(upstream.last) == [digest(masked())]

    def test_twenty_at_once_keep_their_own_images(self, client, upstream):
        def answer(request):
            return {"words": [digest(request.images[0])]}

        upstream.answer, before = answer, upstream.answer
        try:
            with ThreadPoolExecutor(20) as pool:
                answers = list(pool.map(lambda shade: ask(client, user(image_url("red", shade=shade))), range(20)))
        finally:
            upstream.answer = before
        assert [a.choices[0].message.content for a in answers] == [digest(masked(shade)) for shade in range(20)]

    def test_the_answer_names_the_guardrail(self, running, upstream):
        answer = post(
            running.guarded, "/v1/chat/completions", {"model": "gpt-4o", "messages": [user(image_url("red"))]}
        )
        assert answer.headers["x-litellm-applied-guardrails"] == "images"


class TestResponses:
    def test_only_the_masked_image_arrives(self, client, upstream):
        words = {"type": "input_text", "text": "What?"}
        answer = client.responses.create(
            model="gpt-4o", input=[user(words, input_image("red"))], instructions="Be brief."
        )
        assert answer.output_text == "one two three"
        assert upstream.last.path.endswith("/responses")
        assert arrived(upstream.last) == [digest(masked())]
        assert upstream.last.body["instructions"] == f"{PREFIX}\n\nBe brief."

    def test_a_tools_image_is_masked_or_a_notice(self, client, upstream):
        call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "1", "output": [input_image("red"), input_image("blue")]}
        client.responses.create(model="gpt-4o", input=[user({"type": "input_text", "text": "Look."}), call, output])
        assert arrived(upstream.last) == [digest(masked())]
        assert upstream.last.raw.decode().count(NOTICE) == 1

    def test_a_blocked_image_is_status_400_and_no_request(self, client, upstream):
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="gpt-4o", input=[user(input_image("blue"))])
        assert upstream.requests == []

    def test_a_routed_one_is_answered_by_the_other_model(self, client, upstream):
        client.responses.create(model="gpt-4o", input=[user(input_image("yellow"))])
        assert upstream.last.body["model"] == "careful"
        assert arrived(upstream.last) == []

    def test_a_string_is_passed_on_as_it_is(self, client, upstream):
        client.responses.create(model="gpt-4o", input="Hi", instructions="Be brief.")
        assert upstream.last.body["input"] == "Hi"
        assert upstream.last.body["instructions"] == "Be brief."


class TestMessages:
    def send(self, running, *messages, model="claude", **more):
        return post(
            running.guarded, "/v1/messages", {"model": model, "max_tokens": 16, "messages": list(messages), **more}
        )

    def test_only_the_masked_image_arrives(self, running, received):
        assert self.send(running, user(source("red")), system="Be brief.").status_code == 200
        (request,) = received
        assert arrived(request) == [digest(masked())]
        assert PREFIX in json.dumps(request.body["system"])

    def test_an_image_within_a_tools_result_is_masked_or_a_notice(self, running, received):
        call = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "look", "input": {}}]}
        result = {"type": "tool_result", "tool_use_id": "1", "content": [source("red"), source("blue")]}
        asked = user({"type": "text", "text": "Look."})
        assert self.send(running, asked, call, user(result)).status_code == 200
        (request,) = received
        assert arrived(request) == [digest(masked())]
        assert NOTICE in json.dumps(request.body)

    def test_it_is_the_same_for_a_model_behind_another_api(self, running, upstream):
        assert self.send(running, user(source("red")), model="gpt-4o").status_code == 200
        assert arrived(upstream.last) == [digest(masked())]

    @pytest.mark.parametrize(
        "block",
        [source("blue"), {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}],
        ids=["blocked", "elsewhere"],
    )
    def test_one_that_may_not_pass_is_status_400_and_no_request(self, running, received, block):
        answer = self.send(running, user(block))
        assert answer.status_code == 400
        assert "GuardAlign" in answer.text or "safety policy" in answer.text
        assert received == []

    def test_a_routed_one_is_answered_by_the_other_model(self, running, received, upstream):
        assert self.send(running, user(source("yellow"))).status_code == 200
        assert received == []
        assert upstream.last.body["model"] == "careful"


class TestOtherEndpoints:
    def test_a_prompt_is_text_unless_it_is_an_image(self, client, received):
        client.completions.create(model="other", prompt="Say hi.")
        assert received[0].body["prompt"] == "Say hi."
        client.completions.create(model="other", prompt=url("red"))
        assert digest(opened(received[1].body["prompt"])) == digest(masked())
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="other", prompt=url("blue"))
        assert len(received) == 2

    def test_unless_it_brings_messages_for_the_chat_that_litellm_makes_of_it(self, running, upstream):
        body = {"model": "gpt-4o", "prompt": "Hi", "extra_body": {"messages": [user(image_url("red"))]}}
        assert post(running.guarded, "/v1/completions", body).status_code == 200
        assert arrived(upstream.last) == [digest(masked())]

    def test_an_image_to_be_embedded_is_masked_or_an_error(self, client, received):
        client.embeddings.create(model="other", input=[url("red")], encoding_format="float")
        assert [digest(opened(each)) for each in received[0].body["input"]] == [digest(masked())]
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="other", input=[url("blue")], encoding_format="float")
        assert len(received) == 1

    def test_texts_to_be_embedded_may_be_many_numbers(self, client, received):
        tokens = [[1] * 500] * 300
        client.embeddings.create(model="other", input=tokens, encoding_format="float")
        assert received[0].body["input"] == tokens

    def test_an_image_to_be_edited_is_masked_or_an_error(self, client, received):
        def edit(*colours):
            files = [(f"{colour}.png", io.BytesIO(encode_png(painted(colour))), "image/png") for colour in colours]
            client.images.edit(model="other", prompt="a hat", image=files)

        edit("red", "white")
        assert [digest(image) for image in received[0].files] == [digest(masked()), digest(painted())]
        with pytest.raises(openai.BadRequestError):
            edit("white", "blue")
        assert len(received) == 1

    def test_who_asks_for_moderation_has_the_image_looked_at_as_it_is(self, client, received):
        client.moderations.create(model="other", input=[image_url("blue")])
        assert arrived(received[0]) == [digest(painted("blue"))]

    def test_a_request_that_is_passed_through_is_guarded_too(self, running, received):
        body = {"model": "m", "messages": [user(image_url("red"))]}
        assert post(running.guarded, "/through", body).status_code == 200
        assert arrived(received[0]) == [digest(masked())]
        assert received[0].body.keys() == body.keys()
        assert post(running.guarded, "/through", {**body, "messages": [user(image_url("blue"))]}).status_code == 400
        assert len(received) == 1


class TestSettings:
    def test_a_refusal_reads_like_a_models_answer(self, choosing, upstream):
        answer = ask(choosing, user(image_url("blue")), **naming("refusing"))
        assert answer.choices[0].message.content == REFUSAL
        assert answer.choices[0].finish_reason == "content_filter"
        assert upstream.requests == []

    @pytest.mark.skipif(litellm_version() < (1, 93), reason="this LiteLLM fails to stream a refusal")
    def test_a_streamed_refusal_is_a_stream(self, choosing, upstream):
        chunks = list(ask(choosing, user(image_url("blue")), stream=True, **naming("refusing")))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REFUSAL
        # LiteLLM makes "stop" of the reason that it gives in a whole answer.
        assert chunks[-1].choices[0].finish_reason is not None
        assert upstream.requests == []

    @pytest.mark.skipif(litellm_version() < (1, 105), reason="this LiteLLM writes a refusal that clients cannot read")
    def test_in_responses_it_does_so_too(self, choosing, upstream):
        asked = {"model": "gpt-4o", "input": [user(input_image("blue"))], **naming("refusing")}
        assert choosing.responses.create(**asked).output_text == REFUSAL
        with choosing.responses.create(**asked, stream=True) as events:
            deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == REFUSAL
        assert upstream.requests == []

    @pytest.mark.skipif(litellm_version() >= (1, 105), reason="this LiteLLM can refuse everywhere")
    @pytest.mark.parametrize("stream", [False, True])
    def test_where_a_refusal_cannot_be_read_it_is_status_400(self, choosing, upstream, stream):
        asked = {"model": "gpt-4o", "input": [user(input_image("blue"))], **naming("refusing")}
        with pytest.raises(openai.BadRequestError):
            choosing.responses.create(**asked, stream=stream)
        assert upstream.requests == []

    def test_in_anthropics_api_it_does_but_in_no_stream(self, running, received):
        body = {"model": "claude", "max_tokens": 16, "messages": [user(source("blue"))], "guardrails": ["refusing"]}
        answer = post(running.choosing, "/v1/messages", body)
        assert answer.json()["content"] == [{"type": "text", "text": REFUSAL}]
        # LiteLLM makes one event of it, of a kind that clients do not know.
        assert post(running.choosing, "/v1/messages", {**body, "stream": True}).status_code == 400
        assert received == []

    def test_a_model_may_answer_with_a_notice_in_the_images_place(self, choosing, upstream):
        ask(choosing, user(image_url("blue"), image_url("white")), **naming("noting"))
        assert upstream.last.texts == [NOTICE]
        assert arrived(upstream.last) == [digest(painted())]

    def test_the_prefix_may_go_to_the_users_words(self, choosing, upstream):
        ask(choosing, user(image_url("green")), **naming("for-users"))
        assert upstream.last.body["messages"][0]["content"][0] == {"type": "text", "text": PREFIX}

    def test_monitoring_lets_everything_pass_and_tells_the_loggers(self, running, choosing, upstream):
        ask(choosing, user(image_url("blue"), image_url("red")), **naming("monitoring"))
        assert arrived(upstream.last) == [digest(painted("blue")), digest(painted("red"))]
        assert "'proposed': 'block'" in told(running.choosing, "'proposed': 'block'")

    def test_the_proxy_warns_of_guardrails_that_not_every_request_has(self, running):
        assert "does not guard every request. default_on: is not true" in running.choosing.log.read_text()
        assert "does not guard every request" not in running.guarded.log.read_text()

    def test_without_a_guardrail_nothing_is_checked(self, choosing, upstream):
        ask(choosing, user(image_url("blue")))
        assert arrived(upstream.last) == [digest(painted("blue"))]


class TestFailures:
    def test_a_guard_that_fails_closes_the_door(self, choosing, upstream):
        with pytest.raises(openai.InternalServerError, match="could not check") as caught:
            ask(choosing, user(image_url("white")), **naming("broken"))
        assert caught.value.status_code == 503
        assert upstream.requests == []

    def test_or_refuses_for_another_reason_than_an_unsafe_image(self, choosing, upstream):
        answer = ask(choosing, user(image_url("white")), **naming("broken-refusing"))
        assert answer.choices[0].message.content == colour_policy().refusal_unchecked != REFUSAL
        assert upstream.requests == []

    def test_unless_the_policy_says_that_it_may_stay_open(self, choosing, upstream):
        ask(choosing, user(image_url("blue")), **naming("broken-open"))
        assert arrived(upstream.last) == [digest(painted("blue"))]

    def test_bytes_that_are_no_image_are_status_400(self, client, upstream):
        block = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"no").decode()}}
        with pytest.raises(openai.BadRequestError, match="could not open"):
            ask(client, user(block))
        assert upstream.requests == []


def told(proxy, words, patience_s=20):
    """What loggers were told, once some words are in it; they are told after a client has its answer."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        text = proxy.told.read_text() if proxy.told.exists() else ""
        if words in text:
            return text
        time.sleep(0.1)
    raise AssertionError(f"no logger was told {words!r}")


class TestLogs:
    def test_they_have_the_findings_and_no_unsafe_image(self, running, client, upstream, received):
        unsafe = painted("red", "blue", shade=7)
        encoded = to_base64(encode_png(unsafe))
        block = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
        for call in (
            lambda: ask(client, user(block)),
            lambda: client.responses.create(
                model="gpt-4o", input=[user({"type": "input_image", "image_url": block["image_url"]["url"]})]
            ),
            lambda: client.images.generate(model="other", prompt="a hat", extra_body={"image": [encoded]}),
        ):
            with pytest.raises(openai.BadRequestError):
                call()
        post(running.guarded, "/through", {"model": "m", "messages": [user(block)]})
        ask(client, user(image_url("red", shade=8)))
        text = told(running.guarded, "'guardrail_status': 'guardrail_intervened'")
        time.sleep(2)
        text = running.guarded.told.read_text()
        assert encoded not in text
        assert to_base64(encode_png(painted("red", shade=8))) not in text
        assert "'policy_template': 'colours'" in text
        assert "'masked_entity_count': {'red_things': 1}" in text
        assert encoded not in running.guarded.log.read_text()
