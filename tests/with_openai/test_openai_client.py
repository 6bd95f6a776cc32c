"""What a guarded OpenAI client sends over the wire, read where it arrives, and what it gives back."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, ContentFilterFinishReasonError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from openai_ways import (
    HTTPX,
    MASKED,
    REFUSAL,
    Answer,
    chat_block,
    client_of,
    images,
    item_block,
    prefixes,
    same,
    url,
    user,
)

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import painted
from openai_guardalign import guard_client
from with_langchain.openai_server import say

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


def of(way, server):
    """What the model says in answer, of which the SDK can make an object if it is to."""
    server.answer = say('{"word": ', '"cat"}')
    return way.client(server)


def awaited(value):
    """The value itself, or what is awaited for it; pages are read."""

    async def of_awaitable():
        return await value

    return asyncio.run(of_awaitable()) if inspect.isawaitable(value) else value


def ended(manager, method):
    """What a stream of the SDK, sync or async, ends with."""
    if hasattr(manager, "__enter__"):
        with manager as stream:
            return getattr(stream, method)()

    async def read():
        async with manager as stream:
            return await getattr(stream, method)()

    return asyncio.run(read())


def azure(server, kind, **options):
    endpoint = server.base_url.removesuffix("/v1")
    return client_of(server, kind, base_url=None, azure_endpoint=endpoint, api_version="2025-01-01", **options)


class TestEveryWayOfAsking:
    def test_an_unsafe_image_never_arrives_and_the_masked_one_does(self, way, server, checks):
        client = guard_client(of(way, server), checks)
        said = way.ask(client, [user(way.content(painted("red"), painted("white")))])
        masked, safe = images(server.last)
        assert same(masked, MASKED)
        assert same(safe, painted("white"))
        assert url(painted("red")).encode() not in server.last.raw
        assert url(painted("white")).encode() in server.last.raw
        assert prefixes(server.last) == 1
        assert said.text == '{"word": "cat"}'
        assert said.refusal == ""
        assert said.parsed == (Answer(word="cat") if way.way == "parse" else None)

    def test_a_blocked_image_makes_no_request_and_apps_show_the_refusal(self, way, server, checks):
        client = guard_client(of(way, server), checks)
        said = way.ask(client, [user(way.content(painted("blue")))])
        assert server.requests == []
        assert said.parsed is None
        if way.api == "chat":
            assert (said.text, said.refusal) == (REFUSAL, REFUSAL)
        else:
            # Text would be parsed where an object is asked for.
            assert (said.text, said.refusal) == (("", REFUSAL) if way.way == "parse" else (REFUSAL, ""))

    def test_a_request_without_an_image_is_the_same_to_the_byte(self, way, server, checks):
        client = of(way, server)
        chat = [{"role": "system", "content": "Sei kurz. \u00e4\u2028"}, user(way.content())]
        for each in (client, guard_client(client, checks)):
            way.ask(each, chat, temperature=0.5, extra_body={"own": [1.0, 1e-7, None, True]})
        assert server.requests[0].raw == server.requests[1].raw

    def test_so_is_one_with_harmless_images(self, way, server, checks):
        client = of(way, server)
        for each in (client, guard_client(client, checks)):
            way.ask(each, [user(way.content(painted(), painted("magenta")))])
        assert server.requests[0].raw == server.requests[1].raw

    def test_a_violation_is_raised_if_asked_for_and_not_tried_again(self, way, server, checks):
        found = []
        tireless = of(way, server).with_options(max_retries=2)
        client = guard_client(tireless, checks, on_violation="raise", on_verdicts=found.append)
        with pytest.raises(UnsafeContentError) as raised:
            way.ask(client, [user(way.content(painted("blue")))])
        assert raised.value.verdict.action == "block"
        assert server.requests == []
        assert len(found) == 1


class TestWhatIsAnswered:
    def test_a_refused_completion_is_one_of_the_sdks_own(self, plain, checks):
        completion = guard_client(plain, checks).chat.completions.create(
            model="gpt-4o", messages=[user([chat_block(painted("blue"))])], n=2
        )
        assert isinstance(completion, ChatCompletion)
        assert [choice.finish_reason for choice in completion.choices] == ["content_filter"] * 2
        assert [choice.message.refusal for choice in completion.choices] == [REFUSAL] * 2
        assert [choice.message.content for choice in completion.choices] == [REFUSAL] * 2
        assert completion.model == "gpt-4o"
        assert completion.usage.total_tokens == 0
        assert ChatCompletion.model_validate(completion.model_dump(), strict=False).id == completion.id

    def test_a_refused_response_is_one_of_the_sdks_own(self, plain, checks):
        tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}]
        response = guard_client(plain, checks).responses.create(
            model="gpt-4o", input=[user([item_block(painted("blue"))])], tools=tools
        )
        assert isinstance(response, Response)
        assert response.status == "completed"
        assert response.output_text == REFUSAL
        assert response.tools[0].name == "look"
        assert Response.model_validate(response.model_dump()).id == response.id

    @pytest.mark.parametrize("include_usage", [False, True])
    def test_a_refused_stream_ends_as_the_api_ends_one(self, plain, checks, include_usage):
        chunks = list(
            guard_client(plain, checks).chat.completions.create(
                model="gpt-4o",
                messages=[user([chat_block(painted("blue"))])],
                stream=True,
                stream_options={"include_usage": include_usage},
            )
        )
        assert [choice.finish_reason for chunk in chunks for choice in chunk.choices] == [None, "content_filter"]
        assert (chunks[-1].usage is not None) is include_usage

    def test_the_sdk_would_take_a_filtered_answer_for_an_error_where_it_parses(self, plain, server, checks):
        # Why a refusal to its helpers ends with "stop".
        completion = guard_client(plain, checks).chat.completions.parse(
            model="gpt-4o", messages=[user([chat_block(painted("blue"))])], response_format=Answer
        )
        assert completion.choices[0].finish_reason == "stop"
        server.answer = lambda _: {"words": ["no"], "reason": "content_filter"}
        with pytest.raises(ContentFilterFinishReasonError):
            plain.chat.completions.parse(model="m", messages=[user("hi")], response_format=Answer)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_stream_that_the_sdk_parses_ends_with_the_refusal_and_no_object(self, server, checks, is_async):
        chat = guard_client(client_of(server, AsyncOpenAI if is_async else OpenAI), checks).chat.completions
        responses = guard_client(client_of(server, AsyncOpenAI if is_async else OpenAI), checks).responses
        asked = {"model": "m", "messages": [user([chat_block(painted("blue"))])], "response_format": Answer}
        message = ended(chat.stream(**asked), "get_final_completion").choices[0].message
        assert (message.content, message.refusal, message.parsed) == (REFUSAL, REFUSAL, None)
        asked = {"model": "m", "input": [user([item_block(painted("blue"))])], "text_format": Answer}
        response = ended(responses.stream(**asked), "get_final_response")
        assert (response.output[0].content[0].refusal, response.output_parsed) == (REFUSAL, None)
        assert server.requests == []

    @pytest.mark.parametrize("kind", ["json_object", "json_schema", "text"])
    def test_text_never_stands_where_json_was_asked_for(self, plain, checks, kind):
        wanted = {"type": kind, "name": "answer", "schema": {"type": "object"}}
        response = guard_client(plain, checks).responses.create(
            model="m", input=[user([item_block(painted("blue"))])], text={"format": wanted}
        )
        assert response.output[0].content[0].type == ("output_text" if kind == "text" else "refusal")

    def test_a_refusal_says_whether_an_image_was_unsafe_or_could_not_be_checked(self, simple, server, checks):
        client = guard_client(simple.client(server), checks)
        block = {"chat": {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}}
        block["responses"] = {"type": "input_image", "image_url": "https://example.org/a.png"}
        said = simple.ask(client, [user([block[simple.api]])])
        assert said.text == checks.policy.refusal_unchecked != REFUSAL
        assert said.whole.guardalign["verdicts"][0]["finding"] == "unchecked"
        said = simple.ask(client, [user(simple.content(painted("blue")))])
        assert said.text == REFUSAL
        assert said.whole.guardalign["verdicts"][0]["finding"] == "unsafe"

    def test_the_findings_are_in_the_refusal(self, simple, server, checks):
        record = simple.ask(guard_client(simple.client(server), checks), [user(simple.content(painted("blue")))]).whole
        assert record.guardalign["action"] == "block"
        assert record.guardalign["verdicts"][0]["category"] == "blue_things"
        json.dumps(record.guardalign)

    def test_a_chat_goes_on_after_a_refusal(self, simple, server, checks):
        client = guard_client(simple.client(server), checks)
        chat = [user(simple.content(painted("blue")))]
        refused = simple.ask(client, chat).whole
        chat += [refused.choices[0].message] if simple.api == "chat" else refused.output
        said = simple.ask(client, [*chat, user("And now?")])
        assert said.text == "one two three"
        assert NOTICE.encode() in server.last.raw
        assert images(server.last) == []

    def test_so_does_one_that_the_server_keeps(self, plain, server, checks):
        client = guard_client(plain, checks)
        blocked = [user([item_block(painted("blue"))])]
        first = client.responses.create(model="gpt-4o", input="hello")
        refused = client.responses.create(model="gpt-4o", input=blocked, previous_response_id=first.id)
        assert refused.previous_response_id == first.id
        again = client.responses.create(model="gpt-4o", input=blocked, previous_response_id=refused.id)
        client.responses.create(model="gpt-4o", input="And now?", previous_response_id=again.id)
        assert server.last.body["previous_response_id"] == first.id
        anew = client.responses.create(model="gpt-4o", input=blocked)
        client.responses.create(model="gpt-4o", input="And now?", previous_response_id=anew.id)
        assert "previous_response_id" not in server.last.body

    def test_a_notice_lets_the_model_answer(self, simple, server, checks):
        client = guard_client(simple.client(server), checks, on_violation="notice")
        said = simple.ask(client, [user(simple.content(painted("blue"), painted("red")))])
        assert said.text == "one two three"
        kind = "text" if simple.api == "chat" else "input_text"
        assert {"type": kind, "text": NOTICE} in server.last.blocks
        assert [same(image, MASKED) for image in images(server.last)] == [True]


class TestStoredRefusals:
    """A refused request was never sent, so that no server knows the id of its refusal."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda api, key: api.responses.retrieve(key),
            lambda api, key: api.responses.retrieve(key, stream=True),
            lambda api, key: api.responses.cancel(key),
            lambda api, key: api.responses.delete(key),
            lambda api, key: api.responses.with_raw_response.retrieve(key),
            lambda api, key: api.responses.input_items.list(key),
        ],
    )
    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize("is_background", [False, True])
    def test_asking_for_one_is_the_sdks_own_error_and_reaches_no_server(
        self, server, checks, call, is_async, is_background
    ):
        client = guard_client(client_of(server, AsyncOpenAI if is_async else OpenAI), checks)
        blocked = {"model": "m", "input": [user([item_block(painted("blue"))])], "background": is_background}
        first = awaited(client.responses.create(**blocked, previous_response_id="resp_1"))
        # A client that polls a response in the background has nothing to wait for.
        assert (first.status, first.background) == ("completed", is_background)
        with pytest.raises(NotFoundError, match="refusal of the safety policy") as raised:
            awaited(call(client, first.id))
        assert raised.value.code == "guardalign_refusal"
        assert server.requests == []

    @pytest.mark.parametrize(
        "call",
        [
            lambda api, key: api.retrieve(key),
            lambda api, key: api.update(key, metadata={}),
            lambda api, key: api.delete(key),
            lambda api, key: api.messages.list(key),
        ],
    )
    def test_so_it_is_for_a_chat_completion(self, plain, server, checks, call):
        chat = guard_client(plain, checks).chat.completions
        refused = chat.create(model="m", messages=[user([chat_block(painted("blue"))])], store=True)
        with pytest.raises(NotFoundError, match="refusal of the safety policy"):
            call(chat, refused.id)
        assert server.requests == []

    def test_other_ids_go_to_the_server(self, checks):
        paths = []

        def answer(request):
            paths.append(request.url.path)
            return HTTPX.Response(200, json={"id": "resp_1", "object": "response", "output": []})

        client = guard_client(
            OpenAI(api_key="test", http_client=HTTPX.Client(transport=HTTPX.MockTransport(answer))), checks
        )
        client.responses.retrieve("resp_1")
        client.responses.cancel("resp_1")
        client.chat.completions.retrieve("chatcmpl-1")
        assert paths == ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/chat/completions/chatcmpl-1"]


class TestRouting:
    def test_a_routed_request_goes_to_the_other_model_with_a_notice(self, simple, server, checks):
        client = guard_client(simple.client(server), checks, route_to="careful")
        simple.ask(client, [user(simple.content(painted("yellow"), painted("red")))])
        assert server.last.body["model"] == "careful"
        assert NOTICE.encode() in server.last.raw
        assert [same(image, MASKED) for image in images(server.last)] == [True]
        simple.ask(client, [user(simple.content(painted("red")))])
        assert server.last.body["model"] == "gpt-4o"

    def test_without_another_model_it_is_refused(self, simple, server, checks):
        said = simple.ask(guard_client(simple.client(server), checks), [user(simple.content(painted("yellow")))])
        assert (said.text, server.requests) == (REFUSAL, [])

    @pytest.mark.parametrize("fixed", [None, "usual"])
    def test_on_azure_it_goes_to_the_other_deployment(self, server, checks, fixed):
        client = azure(server, AzureOpenAI, azure_deployment=fixed)
        guarded = guard_client(client, checks, route_to="careful")
        assert isinstance(guarded, AzureOpenAI)
        for colour in ("red", "yellow"):
            guarded.chat.completions.create(model="usual", messages=[user([chat_block(painted(colour))])])
        assert [request.path for request in server.requests] == [
            f"/openai/deployments/{name}/chat/completions?api-version=2025-01-01" for name in ("usual", "careful")
        ]
        assert same(*images(server.requests[0]), MASKED)

    async def test_azure_is_guarded_in_async_code_too(self, server, checks):
        guarded = guard_client(azure(server, AsyncAzureOpenAI), checks)
        await guarded.chat.completions.create(model="usual", messages=[user([chat_block(painted("red"))])])
        assert same(*images(server.last), MASKED)


def test_a_stream_is_read_while_it_is_written(simple, server, checks):
    server.gate = threading.Semaphore(0)
    client = guard_client(simple.client(server), checks)
    chat = [user(simple.content(painted("red")))]
    if simple.api == "chat":
        stream = client.chat.completions.create(model="m", messages=chat, stream=True)
        words = (chunk.choices[0].delta.content for chunk in stream)
    else:
        stream = client.responses.create(model="m", input=chat, stream=True)
        words = (event.delta for event in stream if event.type == "response.output_text.delta")
    assert next(words) == "one "
    server.gate.release(2)
    assert "".join(word or "" for word in words) == "two three"
