"""What a guarded OpenAI client sends over the wire, read where it arrives, and what it gives back."""

from __future__ import annotations

import json
import threading

import pytest
from openai import AsyncAzureOpenAI, AzureOpenAI, ContentFilterFinishReasonError
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from openai_ways import (
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

    def test_a_blocked_image_makes_no_request_and_is_refused_as_a_model_refuses(self, way, server, checks):
        client = guard_client(of(way, server), checks)
        said = way.ask(client, [user(way.content(painted("blue")))])
        assert server.requests == []
        assert (said.text, said.refusal, said.parsed) == ("", REFUSAL, None)

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
        assert response.output[0].content[0].refusal == REFUSAL
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

    def test_a_refusal_says_whether_an_image_was_unsafe_or_could_not_be_checked(self, simple, server, checks):
        client = guard_client(simple.client(server), checks)
        block = {"chat": {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}}
        block["responses"] = {"type": "input_image", "image_url": "https://example.org/a.png"}
        said = simple.ask(client, [user([block[simple.api]])])
        assert said.refusal == checks.policy.refusal_unchecked != REFUSAL
        assert said.whole.guardalign["verdicts"][0]["finding"] == "unchecked"
        said = simple.ask(client, [user(simple.content(painted("blue")))])
        assert said.refusal == REFUSAL
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
        assert (said.refusal, server.requests) == (REFUSAL, [])

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
