"""What a guarded OpenAI model sends over the wire, read where it arrives."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from chat_images import MASKED, Listener, ask, data_url, openai, text, v1
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai_server import USAGE, OpenAIServer, call_tool, digest, say, serving
from pydantic import BaseModel

from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import ImageGuard
from langchain_guardalign.chat.guarded_model import GuardedChatModel

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

PREFIX = "Be careful."


@pytest.fixture
def guard(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture
def server() -> OpenAIServer:
    with serving() as server:
        yield server


@pytest.fixture
def bare(server) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-4o", base_url=server.base_url, api_key="test", max_retries=0, timeout=20)


@pytest.fixture
def guarded(bare, guard) -> GuardedChatModel:
    return GuardedChatModel(model=bare, guard=guard)


class Answer(BaseModel):
    """What is in the image."""

    word: str


@tool
def look(where: str) -> str:
    """Look somewhere."""
    return where


class TestImages:
    @pytest.mark.parametrize("write", [v1, openai])
    @pytest.mark.parametrize("method", ["invoke", "stream"])
    def test_an_unsafe_image_never_arrives_and_the_masked_one_does(self, guarded, server, write, method):
        message = HumanMessage([text("What is this?"), write(painted("red")), write(painted("white"))])
        list(getattr(guarded, method)([message]))
        masked, safe = server.last.images
        assert masked.tobytes() == MASKED.tobytes()
        assert safe.tobytes() == painted("white").tobytes()
        sent = server.last.raw.decode()
        assert data_url(painted("red")) not in sent
        assert data_url(painted("white")) in sent
        assert server.last.texts == [PREFIX, "What is this?"]

    @pytest.mark.parametrize("method", ["invoke", "stream", "batch"])
    def test_a_blocked_image_makes_no_request(self, guarded, server, method):
        value = ask(painted("blue"))
        list(getattr(guarded, method)([value] if method == "batch" else value))
        assert server.requests == []

    async def test_nor_does_it_in_async_code(self, guarded, server):
        await guarded.ainvoke(ask(painted("blue")))
        assert [chunk async for chunk in guarded.astream(ask(painted("blue")))]
        await guarded.abatch([ask(painted("blue"))])
        assert server.requests == []

    def test_only_the_harmless_inputs_of_a_batch_are_sent(self, guarded, server):
        guarded.batch([ask(painted(colour)) for colour in ("blue", "red", "white", "yellow")])
        assert {digest(request.images[0]) for request in server.requests} == {digest(MASKED), digest(painted())}
        assert len(server.requests) == 2

    def test_a_tools_blocked_image_is_a_notice(self, guarded, server):
        call = AIMessage("", tool_calls=[{"name": "look", "args": {"where": "up"}, "id": "1"}])
        result = ToolMessage([text("shot"), openai(painted("blue"))], tool_call_id="1")
        guarded.invoke([HumanMessage("Look up."), call, result])
        assert server.last.texts == ["Look up.", "shot", NOTICE]
        assert server.last.images == []

    async def test_fifty_calls_at_once_keep_their_own_images(self, guarded, server):
        def describe(request):
            return {"words": [json.dumps([request.texts[-1], digest(request.images[0])])]}

        server.answer = describe
        colours = ("red", "white", "green", "magenta", "black")
        images = [painted(colours[place % 5], shade=place) for place in range(50)]
        answers = await asyncio.gather(
            *(
                guarded.ainvoke([HumanMessage([v1(image), text(f"image {place}")])])
                for place, image in enumerate(images)
            )
        )
        for place, (image, answer) in enumerate(zip(images, answers, strict=True)):
            expected = image
            if colours[place % 5] == "red":
                expected = painted(shade=place)
                expected.paste("black", (0, 0, 16, 16))
            assert json.loads(answer.content) == [f"image {place}", digest(expected)]
        assert len({answer.content for answer in answers}) == 50

    def test_a_routed_image_is_a_notice_at_the_other_model(self, bare, guard, server):
        with serving() as other:
            careful = ChatOpenAI(model="o1-mini", base_url=other.base_url, api_key="test")
            guarded = GuardedChatModel(model=bare, route_to=careful, guard=guard)
            guarded.invoke(ask(painted("yellow"), painted("red")))
        assert server.requests == []
        assert other.last.texts == [PREFIX, "What is this?", NOTICE]
        assert [turn["role"] for turn in other.last.turns] == ["user"]
        assert [image.tobytes() for image in other.last.images] == [MASKED.tobytes()]

    def test_the_responses_api_is_guarded_too(self, bare, guard, server):
        guarded = GuardedChatModel(model=bare.model_copy(update={"use_responses_api": True}), guard=guard)
        native = {"type": "input_image", "image_url": data_url(painted("red")), "detail": "low"}
        answer = guarded.invoke([HumanMessage([{"type": "input_text", "text": "What?"}, native, v1(painted("red"))])])
        assert server.last.path.endswith("/responses")
        assert [image.tobytes() for image in server.last.images] == [MASKED.tobytes()] * 2
        assert server.last.texts == [PREFIX, "What?"]
        assert answer.text == "one two three"
        assert guarded.invoke([HumanMessage([{**native, "image_url": data_url(painted("blue"))}])]).usage_metadata
        assert len(server.requests) == 1


class TestPrefix:
    @pytest.mark.parametrize("carry", ["raw", "sanitised"])
    @pytest.mark.parametrize("when", ["finding", "image", "always"])
    def test_it_arrives_once_in_each_request_of_a_chat(self, bare, server, cache_dir, carry, when):
        guard = colour_guard(cache_dir, prefix_when=when)
        guarded = GuardedChatModel(model=bare, guard=guard)
        history = [SystemMessage("Be brief.")]
        for turn in range(5):
            history += ask(painted("green", shade=turn)) if turn % 2 == 0 else [HumanMessage("And now?")]
            answer = guarded.invoke(history)
            assert sum(words.count(PREFIX) for words in server.last.texts) == 1
            assert server.last.turns[0]["content"] == f"{PREFIX}\n\nBe brief."
            # An app may keep what it sent, or what a guard of its own made of it.
            kept = ImageGuard(guard).invoke(history) if carry == "sanitised" else history
            history = [*kept, answer]
        assert len(server.last.turns) == 10

    def test_it_does_not_arrive_where_it_is_not_due(self, guarded, server):
        for value in ("words", ask(painted()), ask(painted("magenta"))):
            guarded.invoke(value)
        assert not any(PREFIX.encode() in request.raw for request in server.requests)


class TestTextAlone:
    @pytest.mark.parametrize("method", ["invoke", "stream"])
    def test_its_request_is_the_same_to_the_byte_with_and_without_the_guard(self, bare, guarded, server, method):
        value = [
            SystemMessage("Be brief."),
            HumanMessage("hello"),
            AIMessage("", tool_calls=[{"name": "look", "args": {"where": "up"}, "id": "1"}]),
            ToolMessage("sky", tool_call_id="1"),
            HumanMessage([text("and now?")], name="ann"),
        ]
        for model in (bare, guarded):
            list(getattr(model.bind_tools([look], strict=True), method)(value, temperature=0.5, stop=["."]))
        assert server.requests[0].raw == server.requests[1].raw

    def test_so_is_that_of_harmless_images(self, bare, guarded, server):
        for model in (bare, guarded):
            model.invoke(ask(painted()))
        assert server.requests[0].raw == server.requests[1].raw


class TestStreaming:
    def test_the_first_token_is_read_before_the_last_is_sent(self, guarded, server):
        server.gate = threading.Semaphore(0)
        stream = guarded.stream(ask(painted("red")))
        assert next(stream).content == "one "
        server.gate.release(2)
        assert "".join(chunk.content for chunk in stream) == "two three"

    async def test_so_it_is_in_async_code_and_in_a_chain(self, guarded, server):
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import ChatPromptTemplate

        server.gate = threading.Semaphore(0)
        chain = ChatPromptTemplate.from_messages([("placeholder", "{chat}")]) | guarded | StrOutputParser()
        words = chain.astream({"chat": ask(painted("red"))})
        assert await anext(words) == "one "
        server.gate.release(2)
        assert "".join([word async for word in words]) == "two three"


class TestWhatTheProviderSays:
    def test_metadata_usage_and_callbacks_are_those_of_the_bare_model(self, bare, guarded, call):
        answers, heard = [], []
        for model in (bare, guarded):
            usage, listener = UsageMetadataCallbackHandler(), Listener()
            answers.append(call(model, "invoke", ask(painted("white")), {"callbacks": [usage, listener]}))
            heard.append(usage.usage_metadata)
        assert answers[0].model_copy(update={"id": None}) == answers[1].model_copy(update={"id": None})
        assert answers[1].usage_metadata["total_tokens"] == USAGE["total_tokens"]
        assert answers[1].response_metadata["finish_reason"] == "stop"
        assert heard[0] == heard[1]
        ((_, counted),) = heard[1].items()
        assert counted["input_tokens"] == USAGE["prompt_tokens"]

    def test_usage_of_a_stream_is_counted_once(self, bare, guard):
        model = bare.model_copy(update={"stream_usage": True})
        usage = UsageMetadataCallbackHandler()
        whole = None
        for chunk in GuardedChatModel(model=model, guard=guard).stream(ask(painted("red")), {"callbacks": [usage]}):
            whole = chunk if whole is None else whole + chunk
        assert whole.usage_metadata["total_tokens"] == USAGE["total_tokens"]
        ((_, counted),) = usage.usage_metadata.items()
        assert counted["total_tokens"] == USAGE["total_tokens"]

    def test_tools_go_there_and_calls_come_back(self, guarded, server, call):
        server.answer = call_tool("look", where="up")
        answer = call(guarded.bind_tools([look], tool_choice="look"), "invoke", ask(painted("red")))
        assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("look", {"where": "up"})]
        assert server.last.body["tools"][0]["function"]["name"] == "look"
        assert server.last.body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
        assert server.last.images[0].tobytes() == MASKED.tobytes()

    @pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
    @pytest.mark.parametrize("include_raw", [True, False])
    def test_structured_output_is_the_wrapped_models_own(self, guarded, server, call, method, include_raw):
        server.answer = call_tool("Answer", word="cat") if method == "function_calling" else say('{"word": "cat"}')
        structured = guarded.with_structured_output(Answer, method=method, include_raw=include_raw)
        value = [SystemMessage("Answer in JSON."), *ask(painted("red"))]
        result = call(structured, "invoke", value)
        assert (result["parsed"] if include_raw else result) == Answer(word="cat")
        assert server.last.images[0].tobytes() == MASKED.tobytes()
        assert server.last.turns[0]["content"] == f"{PREFIX}\n\nAnswer in JSON."
        blocked = [SystemMessage("Answer in JSON."), *ask(painted("blue"))]
        if include_raw:
            result = call(structured, "invoke", blocked)
            assert result["parsed"] is None
            assert isinstance(result["parsing_error"], UnsafeContentError)
        else:
            with pytest.raises(UnsafeContentError):
                call(structured, "invoke", blocked)
        assert len(server.requests) == 1

    def test_structured_output_streams(self, guarded, server):
        server.answer = say('{"word": ', '"c', 'at"}')
        structured = guarded.with_structured_output(Answer.model_json_schema(), method="json_schema")
        assert list(structured.stream(ask(painted("red"))))[-1] == {"word": "cat"}
        assert server.last.images[0].tobytes() == MASKED.tobytes()

    def test_an_agent_gets_structured_answers_from_it(self, guarded, server):
        from langchain.agents import create_agent

        server.answer = say('{"word": "cat"}')
        agent = create_agent(guarded, [], response_format=Answer)
        out = agent.invoke({"messages": ask(painted("red"))})
        assert out["structured_response"] == Answer(word="cat")
        assert server.last.images[0].tobytes() == MASKED.tobytes()

    def test_the_key_is_in_no_repr_and_no_dump(self, guarded):
        from langchain_core.load import dumps, load

        model = GuardedChatModel(model=guarded.model.model_copy(update={"openai_api_key": "s3cret"}))
        assert "s3cret" not in repr(model)
        assert "s3cret" not in dumps(GuardedChatModel(model=ChatOpenAI(model="gpt-4o", api_key="s3cret")))
        assert load  # the round trip is a test of its own
