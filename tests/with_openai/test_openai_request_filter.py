"""The guarded client as a client: copies, other endpoints, failures, verdicts, and no image in anything it reports."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from importlib.metadata import version

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai_ways import (
    APIS,
    HTTPX,
    MASKED,
    REFUSAL,
    Way,
    chat_block,
    client_of,
    images,
    item_block,
    prefixes,
    same,
    url,
    user,
)
from packaging.version import Version

from guardalign_guardrails import Guard, NotPicklable, Policy, ProfileMissing, SettingsError, UnsafeContentError
from guardalign_guardrails.content.bodies import BodyRules
from guardalign_guardrails.policy import FailureRules
from guardalign_guardrails.testing.chats import canary, leaks
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted
from openai_guardalign import guard_client
from openai_guardalign.request_filter import RequestFilter
from with_langchain.openai_server import Request, digest, say

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

# From 3.5 on it does not log what it sends.
IS_OLD = Version(version("openai")) < Version("3.5")

IMAGE_TOOL = {"type": "function", "name": "draw", "parameters": {"properties": {"image": {"type": "string"}}}}
"""Its schema is no image."""


class TestClients:
    @pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
    def test_it_is_the_sdks_own_class_with_the_same_settings(self, checks, kind):
        client = kind(api_key="test", organization="o", max_retries=7, timeout=3, default_headers={"x-own": "1"})
        guarded = guard_client(client, checks)
        assert type(guarded) is kind
        for name in ("api_key", "organization", "max_retries", "timeout", "base_url"):
            assert getattr(guarded, name) == getattr(client, name)
        assert guarded.default_headers["x-own"] == "1"

    def test_the_given_client_stays_as_it_is(self, plain, server, checks):
        guard_client(plain, checks)
        plain.chat.completions.create(model="m", messages=[user([chat_block(painted("red"))])])
        assert same(*images(server.last), painted("red"))

    @pytest.mark.parametrize("method", ["copy", "with_options"])
    def test_copies_are_guarded(self, plain, server, checks, method):
        copied = getattr(guard_client(plain, checks), method)(timeout=11)
        again = getattr(copied, method)(max_retries=1)
        other = getattr(again, method)(http_client=HTTPX.Client())
        for client in (copied, again, other):
            client.chat.completions.create(model="m", messages=[user([chat_block(painted("red"))])])
            assert same(*images(server.last), MASKED)
        assert copied.timeout == 11
        assert again.max_retries == 1

    @pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    @pytest.mark.parametrize("is_used", [False, True])
    def test_so_are_those_that_python_makes(self, server, checks, kind, copied, is_used):
        way = Way("chat", "create", is_async=kind is AsyncOpenAI)
        client = guard_client(client_of(server, kind), checks)
        if is_used:
            way.ask(client, [user("hi")])
        again = copied(client)
        assert type(again) is kind
        way.ask(again, [user(way.content(painted("red")))])
        assert same(*images(server.last), MASKED)

    @pytest.mark.parametrize("part", [lambda client: client, lambda client: client._client])
    def test_a_client_that_was_pickled_would_come_back_without_its_guard_so_it_is_an_error(self, plain, checks, part):
        with pytest.raises(NotPicklable) as raised:
            pickle.dumps(part(guard_client(plain, checks)))
        assert raised.value.member == "client"

    def test_an_httpx_client_of_the_older_kind_does_as_well(self, server, checks):
        seen = []
        own = httpx.Client(headers={"x-own": "1"}, event_hooks={"request": [lambda r: seen.append(r.headers["x-own"])]})
        client = guard_client(client_of(server, http_client=own), checks)
        client.chat.completions.create(model="m", messages=[user([chat_block(painted("red"))])])
        assert same(*images(server.last), MASKED)
        refused = client.chat.completions.create(model="m", messages=[user([chat_block(painted("blue"))])])
        assert refused.choices[0].message.refusal == REFUSAL
        assert seen == ["1"]

    def test_closing_closes_the_connections(self, plain, checks):
        with guard_client(plain, checks) as client:
            assert not client.is_closed()
        assert client.is_closed()
        assert plain.is_closed()

    async def test_so_it_does_in_async_code(self, server, checks):
        plain = AsyncOpenAI(base_url=server.base_url, api_key="test")
        async with guard_client(plain, checks) as client:
            assert not client.is_closed()
        assert client.is_closed()
        assert plain.is_closed()

    @pytest.mark.parametrize(
        "connect",
        [
            lambda client: client.realtime.connect(model="m"),
            lambda client: client.responses.connect(),
            lambda client: client.with_options(timeout=1).beta.responses.connect(),
            pytest.param(
                lambda client: client.with_options(data_residency="eu").realtime.connect(model="m"),
                marks=pytest.mark.skipif(IS_OLD, reason="this SDK knows no regions"),
            ),
        ],
    )
    def test_websockets_cannot_be_opened(self, plain, checks, connect):
        with pytest.raises(Exception, match="websockets-are-not-guarded"), connect(guard_client(plain, checks)):
            pass

    @pytest.mark.parametrize("form", ["policy", "path", "text"])
    def test_a_policy_or_its_path_does_for_a_guard(self, plain, tmp_path, form):
        path = tmp_path / "policy.yaml"
        path.write_text(colour_policy().to_yaml())
        client = guard_client(plain, {"policy": colour_policy(), "path": path, "text": str(path)}[form])
        assert client._client._filter.guard.policy == colour_policy()

    def test_anything_else_does_not(self, plain):
        with pytest.raises(SettingsError):
            guard_client(plain, {"policy": "policy.yaml"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestOtherEndpoints:
    @pytest.fixture
    def sent(self):
        return []

    @pytest.fixture
    def plain(self, sent):
        """A client whose requests end here: the stand-in on the loopback answers chats only."""

        def answer(request):
            sent.append(Request(request.url.path, request.content))
            return HTTPX.Response(200, json={})

        return OpenAI(api_key="test", http_client=HTTPX.Client(transport=HTTPX.MockTransport(answer)))

    def test_they_are_passed_through_untouched(self, plain, sent, checks):
        content = [{"type": "image_url", "image_url": {"url": url(painted("blue"))}}]
        for client in (plain, guard_client(plain, checks)):
            client.moderations.create(input=content)
            client.embeddings.create(model="m", input="hello", encoding_format="float")
            client.batches.create(completion_window="24h", endpoint="/v1/responses", input_file_id="file-1")
            client.vector_stores.files.create("vs_1", file_id="file-1")
        assert sent[:4] == sent[4:]

    def test_images_for_a_conversation_are_masked_and_blocked_ones_an_error(self, plain, sent, checks):
        client = guard_client(plain, checks)
        items = [user([item_block(painted("red"))])]
        client.conversations.create(items=items)
        client.conversations.items.create("conv_1", items=items)
        client.responses.input_tokens.count(model="m", input=items)
        assert [same(*images(request), MASKED) for request in sent] == [True] * 3
        assert [prefixes(request) for request in sent] == [0, 0, 1]
        with pytest.raises(UnsafeContentError):
            client.conversations.create(items=[user([item_block(painted("blue"))])])
        assert len(sent) == 3

    @pytest.mark.parametrize(
        "call",
        [
            lambda client, look: client.beta.threads.create(messages=[user(look(chat_block))]),
            lambda client, look: client.beta.threads.create_and_run(
                assistant_id="a", thread={"messages": [user(look(chat_block))]}
            ),
            lambda client, look: client.beta.threads.messages.create("t_1", role="user", content=look(chat_block)),
            lambda client, look: client.beta.threads.runs.create(
                "t_1", assistant_id="a", additional_messages=[user(look(chat_block))]
            ),
            lambda client, look: client.beta.agents.sessions.create(
                agent={"model": "m", "tools": [IMAGE_TOOL]},
                environment={"type": "none"},
                input=[user(look(item_block))],
            ),
            lambda client, look: client.beta.agents.sessions.events.create(
                "s_1", events=[{"type": "agent.session.input.message", "input": [user(look(item_block))]}]
            ),
            lambda client, look: client.images.generate(
                prompt="a hat", extra_body={"image": [block["image_url"]["url"] for block in look(chat_block)]}
            ),
        ],
    )
    def test_images_for_a_thread_a_session_or_a_drawing_are_too(self, plain, sent, checks, call):
        client = guard_client(plain, checks)
        if not hasattr(client.beta, "agents"):
            pytest.skip("this SDK knows no agents")
        call(client, lambda block: [block(painted("red"))])
        assert same(*images(sent[0]), MASKED)
        with pytest.raises(UnsafeContentError):
            call(client, lambda block: [block(painted("blue"))])
        assert len(sent) == 1

    def test_questions_about_an_image_are_checked(self, plain, sent, checks):
        if not hasattr(plain, "decisions"):
            pytest.skip("this SDK knows no decisions")
        question = {"type": "predicate", "instructions": [item_block(painted("red"))]}
        guard_client(plain, checks).decisions.create(
            model="m", input=[user([item_block(painted("red"))])], questions=[question]
        )
        assert [same(image, MASKED) for image in images(sent[0])] == [True, True]

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/completions", lambda image: {"model": "m", "prompt": "Look.", "image_data": [{"data": image, "id": 1}]}),
            (
                "/completions",
                lambda image: {"model": "m", "prompt": {"prompt_string": "Look.", "multimodal_data": [image]}},
            ),
            ("/completion", lambda image: {"prompt": ["Look.", image]}),
            ("/embeddings", lambda image: {"model": "m", "input": ["Look.", url(painted("red"))]}),
            ("/generate", lambda image: {"text": "Look.", "image_data": image}),
            ("/encode", lambda image: {"text": "Look.", "image_data": image}),
            ("/classify", lambda _: {"messages": [user([chat_block(painted("red"))])]}),
            ("/messages", lambda image: {"messages": [user([anthropic_block(image)])]}),
            ("/messages/count_tokens", lambda image: {"messages": [user([anthropic_block(image)])]}),
            ("/api/chat", lambda image: {"messages": [{**user("Look."), "images": [image]}]}),
        ],
    )
    def test_images_for_servers_that_are_compatible_are_masked(self, plain, sent, checks, path, body):
        image = url(painted("red")).partition(",")[2]
        guard_client(plain, checks).post(path, body=body(image), cast_to=object)
        (request,) = sent
        assert image not in request.raw.decode()
        assert "iVBORw0KGgo" in request.raw.decode()

    def test_prompts_alone_are_words(self, plain, sent, checks):
        guard_client(plain, checks).videos.create(prompt="an image of a cat")
        guard_client(plain, checks).images.generate(prompt="an image of a cat")
        assert len(sent) == 2

    @pytest.mark.parametrize("path", ["/messages", "/api/chat", "/classify"])
    def test_and_blocked_ones_are_an_error(self, plain, sent, checks, path):
        image = url(painted("blue")).partition(",")[2]
        body = {"messages": [user([anthropic_block(image)])]}
        with pytest.raises(UnsafeContentError):
            guard_client(plain, checks).post(path, body=body, cast_to=object)
        assert sent == []


def anthropic_block(data):
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


class TestFailures:
    def test_a_scanner_that_fails_follows_the_policy(self, simple, server, cache_dir):
        for action, count in (("block", 0), ("allow", 1)):
            checks = colour_guard(cache_dir, failure=FailureRules(on_error=action).model_dump())
            checks.detector.encoder.failure = RuntimeError("the encoder is broken")
            said = simple.ask(guard_client(simple.client(server), checks), [user(simple.content(painted("white")))])
            assert len(server.requests) == count
            assert (said.text == checks.policy.refusal_unchecked) is (action == "block")

    def test_a_guard_that_cannot_work_is_an_error_that_says_so(self, simple, server, cache_dir):
        checks = Guard(Policy.default(), ColourEncoder(), cache_dir=cache_dir)
        with pytest.raises(ProfileMissing):
            simple.ask(guard_client(simple.client(server), checks), [user(simple.content(painted("white")))])
        assert server.requests == []

    @pytest.mark.parametrize("is_async", [False, True])
    def test_an_error_of_the_callers_own_comes_as_it_is_and_nothing_is_sent(self, server, checks, is_async):
        calls = []

        def fail(verdicts):
            calls.append(verdicts)
            raise RuntimeError("the log is full") from OSError("no space")

        way = Way("chat", "create", is_async=is_async)
        client = guard_client(way.client(server).with_options(max_retries=2), checks, on_verdicts=fail)
        with pytest.raises(RuntimeError, match="the log is full") as raised:
            way.ask(client, [user(way.content(painted("white")))])
        assert isinstance(raised.value.__cause__, OSError)
        assert (len(calls), server.requests) == (1, [])

    def test_monitoring_changes_nothing_and_tells_all(self, simple, server, cache_dir):
        found = []
        client = simple.client(server)
        watched = guard_client(client, colour_guard(cache_dir, mode="monitor"), on_verdicts=found.extend)
        for each in (client, watched):
            simple.ask(each, [user(simple.content(painted("blue"), painted("red")))])
        assert server.requests[0].raw == server.requests[1].raw
        assert [verdict.proposed for verdict in found] == ["block", "mask"]

    def test_a_signed_request_is_not_changed(self, plain, server, checks):
        client = guard_client(plain, checks).with_options(
            default_headers={"Authorization": "AWS4-HMAC-SHA256 Credential=a"}
        )
        with pytest.raises(Exception, match="signed"):
            client.chat.completions.create(model="m", messages=[user([chat_block(painted("red"))])])
        client.chat.completions.create(model="m", messages=[user([chat_block(painted("white"))])])
        assert len(server.requests) == 1


class TestVerdicts:
    def test_they_are_told_once_per_request_that_has_images(self, way, server, checks):
        found = []
        server.answer = say('{"word": "cat"}')
        client = guard_client(way.client(server), checks, on_verdicts=found.append)
        way.ask(client, [user("words")])
        way.ask(client, [user(way.content(painted("red"), painted("white")))])
        assert [[verdict.action for verdict in each] for each in found] == [["mask", "allow"]]

    def test_a_retry_does_not_tell_them_again(self, server, checks):
        attempts, found = [], []

        def fail_once(request):
            attempts.append(request)
            status = 500 if len(attempts) == 1 else 200
            return HTTPX.Response(status, json={"choices": []}, headers={"retry-after-ms": "1"})

        http = HTTPX.Client(transport=HTTPX.MockTransport(fail_once))
        client = guard_client(OpenAI(api_key="test", http_client=http), checks, on_verdicts=found.append)
        client.chat.completions.create(model="m", messages=[user([chat_block(painted("red"))])])
        assert len(found) == 1
        assert attempts[0].content == attempts[1].content
        assert url(painted("red")).encode() not in attempts[1].content

    @pytest.mark.parametrize("api", APIS)
    async def test_calls_at_once_keep_their_own_images_and_verdicts(self, server, checks, api):
        own: ContextVar[list] = ContextVar("own")
        server.answer = lambda request: {"words": [f"{request.texts[-1]} {digest(images(request)[0])}"]}
        way = Way(api, "create", is_async=True)
        client = guard_client(way.client(server), checks, on_verdicts=lambda verdicts: own.get().extend(verdicts))
        colours = ("red", "white", "green", "magenta", "black")

        async def ask(place):
            own.set([])
            content = way.content(painted(colours[place % 5], shade=place), words=f"image {place}")
            chat = {"messages" if api == "chat" else "input": [user(content)]}
            said = await way.said(client, {"model": "m", **chat})
            return said.text, [verdict.action for verdict in own.get()]

        answers = await asyncio.gather(*(ask(place) for place in range(20)))
        for place, (said, actions) in enumerate(answers):
            expected = painted(colours[place % 5], shade=place)
            if colours[place % 5] == "red":
                expected = painted(shade=place)
                expected.paste("black", (0, 0, 16, 16))
            assert said == f"image {place} {digest(expected)}"
            assert len(actions) == 1


class TestLeaks:
    def outcome(self, way, client, image):
        try:
            return [repr(way.ask(client, [user(way.content(image))]).whole)]
        except UnsafeContentError as error:
            return [repr(error), "".join(traceback.format_exception(error)), repr(error.__context__)]

    def test_no_image_is_in_logs_errors_or_reprs(self, simple, server, cache_dir, caplog):
        caplog.set_level(logging.DEBUG)
        pixels = [canary("red"), canary("blue", number=1)]
        checks = colour_guard(cache_dir)
        told = []
        for options in ({}, {"on_violation": "raise"}, {"route_to": "other"}):
            client = guard_client(simple.client(server), checks, on_verdicts=told.append, **options)
            for image in pixels:
                told += self.outcome(simple, client, image)
            told += [repr(client), repr(client._client), repr(client._client._filter)]
        # An older SDK itself logs whole requests at this level, before a guarded client gets them.
        records = (record for record in caplog.records if not (IS_OLD and record.name == "openai._base_client"))
        said = f"{told!r}{[(record.getMessage(), record.exc_text) for record in records]}"
        assert "block" in said
        assert [leak for image in pixels for leak in leaks(said, image)] == []


async def test_requests_that_wait_for_a_busy_guard_hold_no_thread_of_the_loop(cache_dir):
    gate = threading.Event()

    class Gated(ColourEncoder):
        def encode_crops(self, crops):
            assert gate.wait(20)
            return super().encode_crops(crops)

    guard = Guard(colour_policy(), Gated(), cache_dir=cache_dir, max_concurrent=1)
    checks = RequestFilter(guard, BodyRules(), None)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    def request(shade):
        body = {"model": "m", "messages": [user([chat_block(painted("red", shade=shade))])]}
        return httpx.Request("POST", "https://api.openai.com/v1/chat/completions", json=body)

    async def all_wait():
        while len(guard._admission._queue) < 4:  # noqa: ASYNC110  another thread counts
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(checks.apassed(request(n))) for n in range(5)]
    try:
        await asyncio.wait_for(all_wait(), 10)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
    finally:
        gate.set()
    assert len(await asyncio.gather(*tasks)) == 5
