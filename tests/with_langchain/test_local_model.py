"""A local model as a chat model: what it is asked, what it answers, and who else is told."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated

import pytest
import torch
from chat_images import MASKED, Listener, openai, stream, text, v1
from families import family
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from local_models import scripted
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from guardalign_guardrails import Guard, GuardSettings, NotPicklable, Policy, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.decoding import loading
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import (
    CalibrationError,
    ContextOverflow,
    ImageDecodeError,
    ModelUnavailable,
    PromptError,
)
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted
from langchain_guardalign import ChatGuardAlign
from langchain_guardalign.events import EVENT

ROOT = Path(__file__).parents[2]
REFUSAL = colour_policy().refusal
WORDS = "One two three four."
PREFIX = SafetyPrefix().text


def local(script=WORDS, **settings):
    """A chat model around a scripted model, and what writes the script."""
    lvlm, hook = scripted(script)
    return ChatGuardAlign(lvlm=lvlm, **settings), hook


def echo(prompt):
    """The last letter that the user said."""
    return [f"You said {asked(prompt)}."]


def asked(prompt):
    return prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0].removeprefix(PREFIX).strip()


def see(*images, words="What is this?"):
    return [HumanMessage([text(words), *map(v1, images)])]


async def gathered(iterator):
    return [item async for item in iterator]


def total(chunks):
    first, *rest = chunks
    return sum(rest, first)


class Runs(BaseCallbackHandler):
    """Keeps what is told of each run."""

    def __init__(self):
        self.started, self.ended, self.failed = {}, {}, {}

    def on_chat_model_start(self, serialized, messages, *, run_id, **more):
        self.started[run_id] = (messages[0], more)

    def on_llm_end(self, response, *, run_id, **_):
        self.ended[run_id] = response.generations[0][0].message

    def on_llm_error(self, error, *, run_id, **_):
        self.failed[run_id] = error


@tool
def look(at: str) -> str:
    """Look at something."""
    return f"{at} is red"


@tool
def wait(hours: int) -> str:
    """Wait."""
    return "done"


def calls(tool_name, /, **arguments):
    """A call as the family writes it, and as a grammar has it."""
    call = json.dumps({"name": tool_name, "arguments": arguments}, ensure_ascii=False)
    return [f"<tool_call>\n{call}\n</tool_call>", call]


class TestAnswers:
    def test_an_answer_says_how_it_came_about(self, call):
        model, _ = local()
        answer = call(model, "invoke", "Hello")
        assert answer.content == WORDS
        usage = answer.usage_metadata
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 30
        assert answer.response_metadata == {
            "model_name": "scripted",
            "finish_reason": "stop",
            "calibration": {"gamma": 4.0, "target": 0.3, "layers": [1]},
        }

    def test_it_can_be_part_of_a_chain(self, call):
        model, hook = local(echo)
        chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{word}")]) | model
        assert call(chain | StrOutputParser(), "invoke", {"word": "tree"}) == "You said tree."
        assert "Be brief." in hook.prompts[0]

    def test_settings_of_the_call_go_before_those_of_the_model_and_those_before_the_ready_models(self):
        lvlm, _ = scripted(WORDS, settings=GenerationSettings(temperature=0, max_new_tokens=9, stop=("two",)))
        assert ChatGuardAlign(lvlm=lvlm).invoke("Hi").content == "One "
        model = ChatGuardAlign(lvlm=lvlm, stop=["three"], max_tokens=100)
        assert model.invoke("Hi").content == "One two "
        assert model.invoke("Hi", stop=["four"]).content == "One two three "
        cut = model.bind(max_new_tokens=2).invoke("Hi", stop=["four"])
        assert (cut.usage_metadata["output_tokens"], cut.response_metadata["finish_reason"]) == (2, "length")

    def test_settings_have_the_names_that_others_give_them(self):
        model = ChatGuardAlign(model_name="smollm2", max_new_tokens=3, stop_sequences=["x"], api_key="k", timeout=1)
        assert (model.model, model.model_name, model.max_tokens, model.stop) == ("smollm2", "smollm2", 3, ["x"])

    def test_a_setting_that_is_out_of_range_is_an_error_when_it_is_set(self):
        lvlm, _ = scripted(WORDS)
        with pytest.raises(ValidationError, match="temperature"):
            ChatGuardAlign(model="smollm2", temperature=-1)
        with pytest.raises(ValidationError, match="top_p"):
            ChatGuardAlign(lvlm=lvlm).invoke("Hi", top_p=3)

    def test_an_argument_without_a_meaning_is_an_error(self):
        model, hook = local()
        with pytest.raises(TypeError, match="no frequency_penalty;"):
            model.invoke("Hi", frequency_penalty=1)
        with pytest.raises(ValidationError, match="calibraton"):
            ChatGuardAlign(model="smollm2", calibraton=None)
        with pytest.raises(ModelUnavailable, match="another ChatGuardAlign"):
            model.invoke("Hi", model="other")
        assert not hook.prompts
        assert model.invoke("Hi", model="scripted").content == WORDS

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_logprobs_come_with_every_token(self, way):
        model, _ = local(logprobs=True, top_logprobs=2)
        answer = total(model.stream("Hi")) if way == "stream" else model.invoke("Hi")
        content = answer.response_metadata["logprobs"]["content"]
        assert len(content) == answer.usage_metadata["output_tokens"]
        assert "".join(token["token"] for token in content[:-1]) == WORDS
        assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in content)
        assert "logprobs" not in model.invoke("Hi", logprobs=False).response_metadata

    def test_a_report_says_what_calibration_did(self):
        model, _ = local(report=True, calibration=CalibrationConfig.fixed(0.8))
        told = model.invoke("Hi there").response_metadata["calibration"]
        assert (told["gamma"], told["layers"], told["gammas"]) == (0.8, [1], {"1": pytest.approx(0.8)})
        assert 0 < told["shares_before"]["1"] < told["shares_after"]["1"] < 1
        json.dumps(told)
        assert "shares_before" not in model.invoke("Hi there", report=False).response_metadata["calibration"]

    def test_without_calibration_there_is_nothing_to_report(self):
        model, _ = local(calibration=None, report=True)
        assert "calibration" not in model.invoke("Hi").response_metadata

    def test_counted_tokens_are_those_of_the_prompt(self):
        model, hook = local()
        chat = see(painted())
        assert model.get_num_tokens_from_messages(chat) == model.invoke(chat).usage_metadata["input_tokens"]
        bound = model.bind_tools([look]).invoke("Hi").usage_metadata["input_tokens"]
        assert model.get_num_tokens_from_messages([HumanMessage("Hi")], tools=[look]) == bound
        assert len(hook.prompts) == 2
        assert model.get_num_tokens("two birds") == len(family("Qwen3-VL").tokenizer.tokenize("two birds"))


class TestMessages:
    def test_each_says_who_speaks(self):
        model, hook = local()
        model.invoke(
            [
                SystemMessage("rules"),
                HumanMessage("first", name="Ann"),
                AIMessage("hm", tool_calls=[{"name": "look", "args": {"at": "sky"}, "id": "abcdefghi"}]),
                ToolMessage("it is blue", tool_call_id="abcdefghi", name="look"),
                ChatMessage("so?", role="user"),
                ChatMessage("so it is", role="assistant"),
                HumanMessage([text("and"), "now?"]),
            ]
        )
        (prompt,) = hook.prompts
        said = ["system\nrules", "user\nfirst", "assistant\nhm", '"arguments": {"at": "sky"}', "<tool_response>\nit is"]
        said += ["user\nso?", "assistant\nso it is", "user\n" + PREFIX, "and\nnow?"]
        places = [prompt.find(piece) for piece in said]
        assert -1 not in places
        assert places == sorted(places)

    @pytest.mark.parametrize("block", [v1, openai, lambda image: {"type": "image", "image": image}])
    def test_images_of_all_dialects_reach_the_model(self, block):
        model, hook = local()
        model.invoke([HumanMessage([text("What?"), block(painted("green"))])])
        again, plain = local()
        again.lvlm.chat([{"role": "user", "content": [text("What?"), {"type": "image", "image": painted("green")}]}])
        assert torch.equal(hook.images[0], plain.images[0])

    def test_images_of_tool_results_reach_the_model(self):
        model, hook = local()
        call = {"name": "look", "args": {}, "id": "abcdefghi"}
        model.invoke(
            [
                HumanMessage("Look"),
                AIMessage("", tool_calls=[call]),
                ToolMessage([v1(painted())], tool_call_id="abcdefghi"),
            ]
        )
        assert hook.images[0] is not None

    def test_an_image_that_cannot_be_had_is_an_error_that_does_not_quote_it(self):
        model, hook = local()
        url = "https://example.org/secret.png"
        with pytest.raises(ImageDecodeError, match="remote_reference") as caught:
            model.invoke([HumanMessage([{"type": "image", "url": url}])])
        assert "example" not in str(caught.value)
        assert not hook.prompts


class TestStreams:
    def test_chunks_put_together_are_the_whole_answer(self):
        model, _ = local()
        chunks = list(model.stream("Hello"))
        whole, answer = total(chunks), model.invoke("Hello")
        assert len(chunks) > 8
        assert whole.content == answer.content
        assert whole.usage_metadata == answer.usage_metadata
        assert whole.response_metadata == answer.response_metadata
        assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]

    def test_the_first_chunk_comes_before_the_last_is_made(self):
        model, hook = local()
        hook.gate = threading.Event()
        chunks = model.stream("Hello")
        assert next(chunks).content == "O"
        hook.gate.set()
        assert "".join(chunk.content for chunk in chunks) == WORDS[1:]

    async def test_the_first_chunk_comes_before_the_last_is_made_without_blocking_the_loop(self):
        model, hook = local()
        hook.gate = threading.Event()
        chunks = model.astream("Hello")
        assert (await anext(chunks)).content == "O"
        await asyncio.sleep(0)
        hook.gate.set()
        assert "".join([chunk.content async for chunk in chunks]) == WORDS[1:]

    async def test_who_stops_listening_frees_the_model(self):
        model, hook = local("word " * 200)
        chunks = model.astream("Hello")
        await anext(chunks)
        await chunks.aclose()
        assert (await model.ainvoke("Hello", max_tokens=1)).usage_metadata["output_tokens"] == 1
        assert hook.steps < 100

    async def test_a_cancelled_task_frees_the_model(self):
        model, hook = local("word " * 200)
        heard = asyncio.Event()

        async def listen():
            async for _ in model.astream("Hello"):
                heard.set()

        task = asyncio.create_task(listen())
        await heard.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.ainvoke("Hello", max_tokens=1)
        assert hook.steps < 100

    async def test_a_cancelled_batch_frees_the_model(self):
        model, hook = local("word " * 200)
        hook.gate = threading.Event()
        task = asyncio.create_task(model.abatch(["a", "b"]))
        await asyncio.to_thread(hook.begun.wait, 20)
        task.cancel()
        hook.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.ainvoke("Hello", max_tokens=1)
        assert (hook.rows, hook.steps < 100) == ([2, 1], True)

    async def test_a_batch_that_is_cancelled_before_all_have_come_generates_nothing(self):
        class Waits(AsyncCallbackHandler):
            async def on_chat_model_start(self, *_, **__):
                came.set()
                await asyncio.Event().wait()

        model, hook = local(echo)
        came = asyncio.Event()
        task = asyncio.create_task(model.abatch(["a", "b"], [{}, {"callbacks": [Waits()]}]))
        await came.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.ainvoke("Hello")
        assert hook.rows == [1]

    def test_a_loop_that_is_left_frees_the_model(self):
        model, hook = local("word " * 200)
        for _ in model.stream("Hello"):
            break
        model.invoke("Hello", max_tokens=1)
        assert hook.steps < 100

    async def test_v2_events_have_the_tokens(self):
        model, _ = local()
        events = await gathered(model.astream_events("Hello", version="v2"))
        said = [e["data"]["chunk"].content for e in events if e["event"] == "on_chat_model_stream"]
        assert "".join(said) == WORDS

    def test_new_tokens_are_told_once(self):
        class Tokens(BaseCallbackHandler):
            heard = ""

            def on_llm_new_token(self, token, **_):
                self.heard += token

        listener = Tokens()
        list(local()[0].stream("Hello", {"callbacks": [listener]}))
        assert listener.heard == WORDS


class TestTogether:
    async def test_concurrent_calls_answer_as_single_ones(self):
        model, _ = local(echo)
        words = ["apple", "bridge", "cloud", "door"]
        single = [model.invoke(word).content for word in words]
        assert single == [f"You said {word}." for word in words]
        assert [answer.content for answer in await asyncio.gather(*map(model.ainvoke, words))] == single

    def test_a_batch_is_one_generation_and_a_run_for_each(self, call):
        model, hook = local(echo)
        runs = [Runs() for _ in range(3)]
        configs = [{"callbacks": [run], "tags": [str(place)]} for place, run in enumerate(runs)]
        answers = call(model, "batch", ["a", "b", "c"], configs)
        assert [answer.content for answer in answers] == ["You said a.", "You said b.", "You said c."]
        assert hook.rows == [3]
        for place, (run, answer) in enumerate(zip(runs, answers, strict=True)):
            ((messages, more),) = run.started.values()
            assert messages[0].content == "abc"[place]
            assert more["tags"] == [str(place)]
            (ended,) = run.ended.values()
            assert ended.content == answer.content
        assert len({answer.id for answer in answers}) == 3

    def test_a_batch_in_a_chain_is_one_generation(self, call):
        model, hook = local(echo)
        chain = RunnableLambda(lambda word: word * 2) | model.bind(max_tokens=50) | StrOutputParser()
        assert call(chain, "batch", ["a", "b"]) == ["You said aa.", "You said bb."]
        assert hook.rows == [2]

    @pytest.mark.parametrize(("size", "config", "rows"), [(2, {}, [2, 2, 1]), (8, {"max_concurrency": 3}, [3, 2])])
    def test_large_batches_are_cut_up(self, call, size, config, rows):
        model, hook = local(echo, batch_size=size)
        answers = call(model, "batch", list("abcde"), config)
        assert [answer.content[-2] for answer in answers] == list("abcde")
        assert hook.rows == rows

    def test_nothing_is_an_empty_batch(self, call):
        assert call(local()[0], "batch", []) == []

    def test_one_that_fails_leaves_the_others_alone(self, call):
        lvlm, hook = scripted(echo, context_window=600)
        model, long = ChatGuardAlign(lvlm=lvlm), "word " * 300
        *answers, error, last = call(model, "batch", ["a", "b", long, "d"], return_exceptions=True)
        assert [answer.content for answer in [*answers, last]] == ["You said a.", "You said b.", "You said d."]
        assert isinstance(error, ContextOverflow)
        assert hook.rows == [2, 1]
        with pytest.raises(ContextOverflow):
            call(model, "batch", ["a", long])

    def test_all_fail_if_the_weights_cannot_be_loaded(self, call):
        model = ChatGuardAlign(model="/nowhere/at/all", local_files_only=True)
        out = call(model, "batch", ["a", "b"], return_exceptions=True)
        assert [type(error) for error in out] == [ModelUnavailable] * 2

    def test_what_is_in_a_cache_is_not_generated_again(self, call):
        model, hook = local(echo, cache=InMemoryCache())
        model.invoke("b")
        answers = call(model, "batch", ["a", "b", "c"])
        assert [answer.content[-2] for answer in answers] == ["a", "b", "c"]
        assert hook.rows == [1, 2]

    def test_another_model_that_a_callback_asks_is_not_part_of_the_batch(self):
        model, hook = local(echo)
        other, others = local(lambda prompt: ["I am another."])

        class Asks(BaseCallbackHandler):
            said: list

            def on_chat_model_start(self, *_, **__):
                self.said.append(other.invoke("?").content)

        asks = Asks()
        asks.said = []
        answers = model.batch(["a", "b"], {"callbacks": [asks]})
        assert [answer.content for answer in answers] == ["You said a.", "You said b."]
        assert asks.said == ["I am another."] * 2
        assert (hook.rows, others.rows) == ([2], [1, 1])

    def test_each_answer_of_a_batch_has_its_own_share_of_the_report(self, call):
        model, _ = local(echo, report=True)
        words = ["short", "a question that is a good deal longer than the other one"]
        batch, single = (
            [answer.response_metadata["calibration"]["shares_before"]["1"] for answer in answers]
            for answers in (call(model, "batch", words), map(model.invoke, words))
        )
        assert batch == pytest.approx(single, abs=1e-4)
        assert single[0] != pytest.approx(single[1], abs=1e-3)

    def test_images_and_words_in_one_batch_are_a_generation_each(self, call):
        model, hook = local()
        call(model, "batch", ["a", see(painted()), "b"])
        assert sorted(hook.rows) == [1, 2]

    def test_tools_are_given_to_a_whole_batch(self, call):
        model, hook = local(lambda _: calls("look", at="it"))
        answers = call(model.bind_tools([look]), "batch", ["a", "b"])
        assert [answer.tool_calls[0]["args"] for answer in answers] == [{"at": "it"}] * 2
        assert hook.rows == [2]


class TestGuard:
    @pytest.fixture
    def guarded(self, cache_dir):
        def make(script=WORDS, **settings):
            return local(script, guard=colour_guard(cache_dir), **settings)

        return make

    def test_an_unsafe_region_is_masked_before_the_processor_sees_it(self, guarded, call):
        model, hook = guarded()
        answer = call(model, "invoke", see(painted("red")))
        plain, seen = local()
        plain.invoke(see(MASKED))
        assert torch.equal(hook.images[0], seen.images[0])
        (record,) = answer.response_metadata["guardalign"]
        assert (record["action"], record["category"]) == ("mask", "red_things")
        assert answer.content == WORDS

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    @pytest.mark.parametrize("way", ["invoke", "stream", "batch"])
    def test_a_blocked_image_is_refused_and_the_model_is_not_asked(self, guarded, way, colour):
        model, hook = guarded()
        chat = see(painted(colour))
        answer = {
            "invoke": model.invoke,
            "stream": lambda x: total(model.stream(x)),
            "batch": lambda x: model.batch([x, x])[0],
        }
        answer = answer[way](chat)
        assert (answer.content, answer.response_metadata["finish_reason"]) == (REFUSAL, "content_filter")
        assert answer.response_metadata["guardalign"][0]["action"] in ("block", "route")
        assert answer.usage_metadata["total_tokens"] == 0
        assert not hook.prompts

    @pytest.mark.parametrize("way", ["invoke", "stream", "batch"])
    def test_what_could_not_be_checked_is_refused_in_other_words(self, guarded, way):
        model, hook = guarded()
        chat = [HumanMessage([{"type": "image", "url": "https://example.org/a.png"}])]
        ways = {
            "invoke": model.invoke,
            "stream": lambda x: total(model.stream(x)),
            "batch": lambda x: model.batch([x, x])[0],
        }
        answer = ways[way](chat)
        assert answer.content == colour_policy().refusal_unchecked != REFUSAL
        assert answer.response_metadata["guardalign"][0]["finding"] == "unchecked"
        assert not hook.prompts

    def test_it_can_be_an_error(self, guarded, call):
        model, hook = guarded(on_violation="raise")
        listener = Listener()
        with pytest.raises(UnsafeContentError) as caught:
            call(model, "invoke", see(painted("blue")), {"callbacks": [listener]})
        assert caught.value.verdict.action == "block"
        assert [name for name, _ in listener.events] == [EVENT]
        out = call(model, "batch", [see(painted("blue")), "words"], return_exceptions=True)
        assert [isinstance(one, UnsafeContentError) for one in out] == [True, False]
        assert hook.rows == [1]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_it_can_be_an_error_of_a_stream(self, guarded, is_async):
        model, _ = guarded(on_violation="raise")
        listener = Listener()
        bound = model.with_config(callbacks=[listener])
        with pytest.raises(UnsafeContentError):
            stream(bound, see(painted("blue")), is_async)
        assert [data["action"] for _, data in listener.events] == ["block"]

    def test_it_can_be_a_notice(self, guarded, call):
        model, hook = guarded(on_violation="notice")
        assert call(model, "invoke", see(painted("blue"))).content == WORDS
        assert NOTICE in hook.prompts[0]
        assert hook.images == [None]

    def test_a_chat_goes_on_after_a_refusal(self, guarded, call):
        model, hook = guarded()
        chat = [*see(painted("blue")), AIMessage(REFUSAL), HumanMessage("And a cat?")]
        assert call(model, "invoke", chat).content == WORDS
        assert NOTICE in hook.prompts[0]

    @pytest.mark.parametrize("way", ["invoke", "stream", "batch", "a chain", "generate"])
    def test_listeners_hear_of_every_image_once(self, guarded, way):
        model, _ = guarded()
        chat, listener = see(painted("red"), painted()), Listener()
        config = {"callbacks": [listener]}
        ways = {
            "invoke": lambda: model.invoke(chat, config),
            "stream": lambda: list(model.stream(chat, config)),
            "batch": lambda: model.batch([chat, "words"], config),
            "a chain": lambda: list((RunnableLambda(lambda x: x) | model).stream(chat, config)),
            "generate": lambda: model.generate([chat], callbacks=[listener]),
        }
        ways[way]()
        ((name, data),) = listener.events
        assert (name, data["action"]) == (EVENT, "mask")
        assert [verdict["action"] for verdict in data["verdicts"]] == ["mask", "allow"]

    def test_a_streams_listeners_hear_of_images_before_the_first_word(self, guarded):
        model, _ = guarded()
        listener = Listener()
        first = next(model.stream(see(painted("red")), {"callbacks": [listener]}))
        assert first.content
        assert [data["action"] for _, data in listener.events] == ["mask"]

    @pytest.mark.parametrize("way", ["ainvoke", "astream", "events"])
    async def test_async_listeners_hear_of_every_image_once(self, guarded, way):
        model, _ = guarded()
        chat, listener = see(painted("red"), painted()), Listener()
        config = {"callbacks": [listener]}
        if way == "events":
            chain = RunnableLambda(lambda x: x) | model
            events = await gathered(chain.astream_events(chat, version="v2"))
            heard = [(event["name"], event["data"]) for event in events if event["event"] == "on_custom_event"]
        else:
            await (model.ainvoke(chat, config) if way == "ainvoke" else gathered(model.astream(chat, config)))
            heard = listener.events
        ((name, data),) = heard
        assert (name, data["action"]) == (EVENT, "mask")

    def test_a_policy_makes_a_guard_of_its_own(self):
        model = ChatGuardAlign(model="smollm2", guard=Policy.default())
        assert model.guard.guard.policy.fingerprint == Policy.default().fingerprint

    def test_the_guard_of_a_ready_model_stays_unless_another_is_given(self, cache_dir):
        guard = colour_guard(cache_dir)
        lvlm, hook = scripted(WORDS, guard=guard, on_violation="notice")
        assert ChatGuardAlign(lvlm=lvlm).lvlm is lvlm
        unguarded = ChatGuardAlign(lvlm=lvlm, guard=None)
        unguarded.invoke(see(painted("blue")))
        assert hook.images[0] is not None
        assert lvlm.guard is guard
        assert ChatGuardAlign(lvlm=lvlm, on_violation="refuse").invoke(see(painted("blue"))).content == REFUSAL

    def test_a_guard_that_is_set_later_counts(self, cache_dir):
        model, _ = local()
        assert model.invoke(see(painted("blue"))).content == WORDS
        model.guard = GuardSettings.of(colour_guard(cache_dir))
        assert model.invoke(see(painted("blue"))).content == REFUSAL


class TestTools:
    def test_a_call_is_a_tool_call_and_no_words(self, call):
        model, hook = local(lambda _: ["I look. " + calls("look", at="你好")[0]])
        answer = call(model.bind_tools([look]), "invoke", "Look")
        ((made),) = answer.tool_calls
        assert (made["name"], made["args"], answer.content) == ("look", {"at": "你好"}, "I look.")
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        assert "Look at something." in hook.prompts[0]

    def test_a_stream_has_the_call_in_its_last_chunk_and_not_as_words(self):
        model, _ = local(lambda _: ["I look. " + calls("look", at="it")[0]])
        chunks = list(model.bind_tools([look]).stream("Look"))
        whole = total(chunks)
        assert whole.content.strip() == "I look."
        assert [call["args"] for call in whole.tool_calls] == [{"at": "it"}]
        assert chunks[-1].tool_call_chunks[0]["index"] == 0

    def test_calls_of_different_answers_have_different_ids(self):
        model, _ = local(lambda _: calls("look", at="it"))
        bound = model.bind_tools([look])
        ids = {bound.invoke("Look").tool_calls[0]["id"] for _ in range(3)}
        assert len(ids) == 3
        assert all(one.isalnum() and len(one) == 9 for one in ids)

    @pytest.mark.parametrize(
        "choice", ["any", "required", True, "wait", {"type": "function", "function": {"name": "wait"}}]
    )
    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_a_call_can_be_forced(self, choice, way):
        model, _ = local(lambda _: [WORDS, *calls("wait", hours=3)])
        bound = model.bind_tools([look, wait], tool_choice=choice)
        answer = bound.invoke("Hi") if way == "invoke" else total(bound.stream("Hi"))
        ((made),) = answer.tool_calls
        assert (made["name"], made["args"], answer.content) == ("wait", {"hours": 3}, "")
        assert answer.response_metadata["finish_reason"] == "tool_calls"

    def test_a_choice_of_one_tool_leaves_no_other(self):
        model, _ = local(lambda _: [*calls("look", at="it"), *calls("wait", hours=1)])
        answer = model.bind_tools([look, wait], tool_choice="wait").invoke("Hi")
        assert answer.tool_calls[0]["name"] == "wait"

    def test_a_forced_call_that_is_cut_off_is_words(self):
        model, _ = local(lambda _: calls("look", at="it" * 50))
        answer = model.bind_tools([look], tool_choice="any").invoke("Hi", max_tokens=20)
        assert (answer.tool_calls, answer.response_metadata["finish_reason"]) == ([], "length")

    def test_none_means_that_the_model_hears_of_no_tool(self):
        model, hook = local()
        assert model.bind_tools([look], tool_choice="none").invoke("Hi").content == WORDS
        assert "look" not in hook.prompts[0]

    def test_a_choice_of_no_tool_that_is_there_is_an_error(self):
        model, _ = local()
        with pytest.raises(PromptError, match="tool_choice"):
            model.bind_tools([look], tool_choice="fly")
        with pytest.raises(PromptError, match="no tool"):
            model.bind_tools([], tool_choice="any")

    def test_a_model_whose_template_knows_no_tools_says_so(self, call):
        lvlm, hook = scripted(WORDS, "Llama 3")
        model = ChatGuardAlign(lvlm=lvlm)
        with pytest.raises(PromptError, match="with_structured_output"):
            model.bind_tools([look])
        with pytest.raises(PromptError, match="with_structured_output"):
            call(model, "invoke", "Hi", tools=[look])
        assert model.bind_tools([]).invoke("Hi").content == WORDS
        assert len(hook.prompts) == 1

    def test_an_agent_runs_with_it(self, call):
        from langchain.agents import create_agent

        model, hook = local(
            lambda prompt: ["It is red indeed."] if "apple is red" in prompt else calls("look", at="apple")
        )
        agent = create_agent(model, [look], system_prompt="Look first.")
        state = call(agent, "invoke", {"messages": [HumanMessage("Which colour?")]})
        assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
        assert state["messages"][-1].content == "It is red indeed."
        assert "Look first." in hook.prompts[0]

    def test_an_agent_with_a_tool_answers_in_a_schema(self, call):
        from langchain.agents import create_agent

        class Finding(BaseModel):
            colour: str

        model, _ = local(
            lambda prompt: ['{"colour": "red"}'] if "apple is red" in prompt else calls("look", at="apple")
        )
        agent = create_agent(model, [look], response_format=Finding)
        state = call(agent, "invoke", {"messages": [HumanMessage("Which colour?")]})
        assert state["structured_response"] == Finding(colour="red")
        assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]


class Spot(BaseModel):
    """A place."""

    name: str
    height: int


class SpotDict(TypedDict):
    """A place."""

    name: Annotated[str, ..., "of the place"]
    height: Annotated[int, ..., "in metres"]


UNTITLED = {"type": "object", "properties": {"name": {"type": "string"}, "height": {"type": "integer"}}}
SPOT = '{"name": "Kékes", "height": 1014}'


class TestStructuredOutput:
    @pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
    @pytest.mark.parametrize("schema", [Spot, SpotDict, Spot.model_json_schema()], ids=["pydantic", "typed", "schema"])
    def test_it_is_of_the_schema(self, method, schema, call):
        name = "SpotDict" if schema is SpotDict else "Spot"
        model, _ = local(lambda _: [WORDS, SPOT, *calls(name, **json.loads(SPOT))])
        found = call(model.with_structured_output(schema, method=method), "invoke", "Where?")
        assert found == (Spot(name="Kékes", height=1014) if schema is Spot else json.loads(SPOT))

    def test_a_schema_needs_no_title(self):
        model, _ = local(SPOT)
        assert model.with_structured_output(UNTITLED).invoke("Where?") == json.loads(SPOT)

    def test_any_model_can_do_it(self):
        lvlm, _ = scripted(lambda _: [WORDS, '{"a": [1]}'], "Llama 3")
        model = ChatGuardAlign(lvlm=lvlm)
        assert model.with_structured_output(method="json_mode").invoke("Hi") == {"a": [1]}

    def test_dictionaries_grow_while_they_are_written(self):
        model, _ = local(SPOT)
        steps = list(model.with_structured_output(UNTITLED).stream("Where?"))
        assert steps[-1] == json.loads(SPOT)
        assert {"name": "K"} in steps

    def test_the_raw_answer_can_be_had_too(self, call):
        model, _ = local(SPOT)
        found = call(model.with_structured_output(Spot, include_raw=True), "invoke", "Where?")
        assert (found["raw"].content, found["parsed"].height, found["parsing_error"]) == (SPOT, 1014, None)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_an_answer_that_was_cut_off_says_so_and_does_not_quote_it(self, method):
        model, _ = local(lambda _: [SPOT, *calls("Spot", **json.loads(SPOT))], max_tokens=12)
        with pytest.raises(OutputParserException, match="cut off") as caught:
            model.with_structured_output(Spot, method=method).invoke("Where?")
        assert "name" not in str(caught.value)
        found = model.with_structured_output(Spot, method=method, include_raw=True).invoke("Where?")
        assert (found["parsed"], type(found["parsing_error"])) == (None, OutputParserException)

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_a_refusal_is_no_object(self, cache_dir, method, call):
        model, hook = local(SPOT, guard=colour_guard(cache_dir))
        chat = see(painted("blue"))
        with pytest.raises(UnsafeContentError) as caught:
            call(model.with_structured_output(Spot, method=method), "invoke", chat)
        assert caught.value.verdict.category == "blue_things"
        found = call(model.with_structured_output(Spot, method=method, include_raw=True), "invoke", chat)
        assert (found["raw"].content, found["parsed"]) == (REFUSAL, None)
        assert isinstance(found["parsing_error"], UnsafeContentError)
        assert not hook.prompts

    @pytest.mark.parametrize("way", ["invoke", "stream"])
    def test_a_prefix_at_the_start_of_answers_is_no_part_of_it(self, way):
        model, _ = local(SPOT, prefix=SafetyPrefix(placement="response"))
        chain = model.with_structured_output(UNTITLED)
        assert (chain.invoke("Where?") if way == "invoke" else list(chain.stream("Where?"))[-1]) == json.loads(SPOT)
        assert model.invoke("Where?").content == PREFIX + SPOT

    def test_what_is_no_schema_is_an_error(self):
        model, _ = local()
        with pytest.raises(PromptError, match="JSON schema"):
            model.with_structured_output({"no": "schema"})
        with pytest.raises(ValueError, match="json_mode"):
            model.with_structured_output()
        with pytest.raises(ValueError, match="method"):
            model.with_structured_output(Spot, method="telepathy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model."""
    path = tmp_path_factory.mktemp("llava")
    one = family("LLaVA-1.5")
    one.model().save_pretrained(path)
    one.processor.save_pretrained(path)
    return str(path)


@pytest.fixture
def loads(monkeypatch):
    """Names of the models that are loaded."""
    names, load = [], loading.load

    def counted(name, **settings):
        names.append(name)
        return load(name, **settings)

    monkeypatch.setattr(loading, "load", counted)
    return names


class TestWeights:
    def test_they_are_loaded_at_the_first_answer_and_once(self, folder, loads, call):
        model = ChatGuardAlign(model=folder, dtype=torch.float32, max_tokens=2)
        model.bind_tools([look])
        assert (model.loaded, loads) == (None, [])
        assert "image_inputs" not in model.profile
        call(model, "invoke", see(painted()))
        call(model, "invoke", "Hi")
        assert loads == [folder]
        assert model.profile["image_inputs"]
        assert not model.profile["tool_calling"]
        assert model.profile["max_input_tokens"] == 1024

    def test_threads_that_ask_at_once_load_once(self, folder, loads):
        model = ChatGuardAlign(model=folder, max_tokens=1)
        threads = [threading.Thread(target=model.invoke, args=("Hi",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert loads == [folder]

    def test_copies_with_other_settings_share_them(self, folder, loads):
        fields = {name: ConfigurableField(name) for name in ("max_tokens", "calibration", "prefix")}
        model = ChatGuardAlign(model=folder, max_tokens=3).configurable_fields(**fields)
        for number in (1, 2):
            answer = model.invoke("Hi", {"configurable": {"max_tokens": number}})
            assert answer.usage_metadata["output_tokens"] == number
        strong = model.invoke("Hi", {"configurable": {"calibration": CalibrationConfig.fixed(2)}})
        assert strong.response_metadata["calibration"]["gamma"] == 2
        bare = model.invoke("Hi", {"configurable": {"prefix": SafetyPrefix(text=""), "calibration": None}})
        assert "calibration" not in bare.response_metadata
        assert bare.usage_metadata["input_tokens"] < strong.usage_metadata["input_tokens"]
        assert loads == [folder]

    def test_a_copy_with_another_model_loads_that(self, folder, loads):
        model = ChatGuardAlign(model="/nowhere", local_files_only=True).configurable_fields(
            model=ConfigurableField("model"), max_tokens=ConfigurableField("max_tokens")
        )
        model.invoke("Hi", {"configurable": {"model": folder, "max_tokens": 1}})
        assert loads == [folder]

    def test_a_calibration_that_the_model_has_no_layers_for_is_an_error(self):
        model, _ = local(calibration=CalibrationConfig(layer_indices=(7,)))
        with pytest.raises(CalibrationError, match="layer 7"):
            model.invoke("Hi")

    def test_a_ready_model_is_not_loaded_another_way(self):
        lvlm, _ = scripted(WORDS)
        for more in ({"model": "other"}, {"revision": "main"}, {"device_map": "auto"}):
            with pytest.raises(ValidationError, match="ready model"):
                ChatGuardAlign(lvlm=lvlm, **more)
        assert ChatGuardAlign.from_lvlm(lvlm).model_name == "scripted"


class TestCopies:
    @pytest.mark.parametrize("is_used", [False, True])
    def test_a_pickle_has_the_guard_and_no_weights(self, folder, cache_dir, is_used):
        model = ChatGuardAlign(model=folder, max_tokens=1, guard=colour_guard(cache_dir))
        if is_used:
            model.invoke("Hi")
        data = pickle.dumps(model)
        assert len(data) < 100_000
        back = pickle.loads(data)
        assert back.loaded is None
        assert back._identifying_params == model._identifying_params
        assert back.invoke(see(painted("blue"))).content == REFUSAL

    def test_a_deep_copy_has_the_same_weights_and_the_same_guard(self, folder, cache_dir):
        guard = colour_guard(cache_dir)
        for model in (ChatGuardAlign(model=folder, max_tokens=1, guard=guard), local(guard=guard)[0]):
            again = copy.deepcopy(model)
            assert again.lvlm.model is model.lvlm.model
            assert again.guard.guard is guard
            assert copy.deepcopy(model).lvlm is model.lvlm
            assert again.invoke(see(painted("blue"))).content == REFUSAL

    def test_what_cannot_be_pickled_is_named(self, folder, cache_dir):
        class Odd(ColourEncoder):
            pass

        guard = Guard(colour_policy(), Odd(), cache_dir=cache_dir)
        for member, model in (
            ("model", local()[0]),
            ("encoder", ChatGuardAlign(model=folder, guard=guard)),
            ("model_kwargs", ChatGuardAlign(model=folder, model_kwargs={"hook": lambda: None})),
        ):
            with pytest.raises(NotPicklable) as caught:
                pickle.dumps(model)
            assert caught.value.member == member

    def test_a_ready_model_that_was_loaded_by_name_is_loaded_again(self, folder, loads):
        model = ChatGuardAlign(lvlm=CalibratedLVLM.from_pretrained(folder), max_tokens=1)
        back = pickle.loads(pickle.dumps(model))
        assert loads == [folder, folder]
        assert back.invoke("Hi").content == model.invoke("Hi").content


class TestIdentity:
    def test_it_says_all_that_answers_depend_on_and_loads_nothing(self, cache_dir):
        guard = colour_guard(cache_dir)
        model = ChatGuardAlign(model="smollm2", guard=guard, temperature=0, seed=3)
        told = model._identifying_params
        assert (told["model"], told["temperature"], told["seed"]) == ("smollm2", 0, 3)
        own = told["guardalign"]
        assert (own["calibration"]["target"], own["prefix"]["text"]) == (0.3, PREFIX)
        assert (own["policy_fingerprint"], own["encoder"]) == (guard.policy.fingerprint, "colour")
        json.dumps(told)
        assert model.loaded is None

    def test_a_cache_mixes_up_no_settings(self, cache_dir):
        lvlm, hook = scripted(WORDS)
        cache = InMemoryCache()
        variants = [
            {},
            {"calibration": CalibrationConfig.fixed(0.7)},
            {"calibration": None},
            {"prefix": SafetyPrefix(text="Be kind.")},
            {"prefix": SafetyPrefix(placement="system")},
            {"guard": colour_guard(cache_dir)},
            {"guard": colour_guard(cache_dir, refusal="No.")},
            {"guard": colour_guard(cache_dir), "on_violation": "notice"},
            {"temperature": 0.5},
            {"max_tokens": 5},
            {"seed": 1},
        ]
        models = [ChatGuardAlign(lvlm=lvlm, cache=cache, **settings) for settings in variants]
        for model in [*models, *models]:
            model.invoke("Hi")
        assert len(hook.prompts) == len(variants)
        models[0].invoke("Hi", stop=["three"])
        models[0].bind_tools([look]).invoke("Hi")
        assert len(hook.prompts) == len(variants) + 2

    @pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
    def test_it_comes_back_from_its_dump(self):
        model = ChatGuardAlign(
            model="smollm2",
            dtype=torch.bfloat16,
            temperature=0.2,
            stop=["."],
            calibration=CalibrationConfig.fixed(0.3, layer_indices=(3, 4)),
            prefix=SafetyPrefix(text="Be kind.", placement="system"),
            guard=Policy.default(),
            model_kwargs={"token": "hf_secret", "attn_implementation": "sdpa"},
        )
        dump = dumpd(model)
        back = load(dump, valid_namespaces=["langchain_guardalign"], allowed_objects=[ChatGuardAlign])
        assert back._identifying_params == model._identifying_params
        assert (back.dtype, back.calibration, back.prefix) == ("bfloat16", model.calibration, model.prefix)
        assert back.model_kwargs == {"attn_implementation": "sdpa"}
        for told in (dump, repr(model), model._identifying_params, model._get_llm_string()):
            assert "hf_secret" not in str(told)

    def test_a_ready_model_has_no_dump(self):
        model, _ = local()
        assert dumpd(model)["type"] == "not_implemented"
        assert "Qwen" not in str(dumpd(model))

    def test_traces_are_told_what_it_is(self):
        model, _ = local(temperature=0, stop=["."])
        params = model._get_ls_params()
        assert params["ls_provider"] == "guardalign"
        assert (params["ls_model_name"], params["ls_temperature"], params["ls_max_tokens"]) == ("scripted", 0, 512)
        assert params["ls_stop"] == ["."]

    def test_a_profile_says_what_it_can(self):
        profile = local()[0].profile
        can = ("image_inputs", "image_tool_message", "tool_calling", "tool_choice", "structured_output")
        assert all(profile[name] for name in can)
        assert not profile["image_url_inputs"]
        assert ChatGuardAlign(model="smollm2", profile={"name": "mine"}).profile == {"name": "mine"}


@pytest.mark.slow
class TestSmolLM2:
    @pytest.fixture
    def model(self, smollm2):
        return ChatGuardAlign(lvlm=smollm2)

    def test_it_knows_a_capital(self, smollm2):
        plain = ChatGuardAlign(lvlm=smollm2, calibration=None, prefix=SafetyPrefix(text=""))
        assert "Paris" in plain.invoke("What is the capital of France?").content

    def test_calibration_gives_the_prefix_more_attention_in_the_middle_layers(self, model):
        told = model.invoke("Tell me a story.", report=True, max_tokens=4).response_metadata["calibration"]
        assert told["layers"] == list(range(10, 20))
        before, after = told["shares_before"], told["shares_after"]
        assert all(after[layer] > before[layer] for layer in before)

    async def test_concurrent_calls_answer_as_single_ones(self, model):
        words = ["Tell me a story.", "Name a colour.", "What is 2 + 2?", "Hello"]
        single = [model.invoke(word, max_tokens=8).content for word in words]
        together = await asyncio.gather(*(model.ainvoke(word, max_tokens=8) for word in words))
        assert [answer.content for answer in together] == single

    def test_a_batch_answers_as_single_calls(self, model):
        words = ["Tell me a story.", "Name a colour."]
        single = [model.invoke(word, max_tokens=8).content for word in words]
        assert [answer.content for answer in model.batch(words, max_tokens=8)] == single

    def test_it_answers_in_a_schema(self, model):
        found = model.with_structured_output(Spot, max_tokens=80).invoke("Name a mountain and its height in metres.")
        assert isinstance(found, Spot)


class TestThePage:
    def test_it_explains_every_setting(self):
        page = (ROOT / "docs" / "langchain" / "local-models.md").read_text(encoding="utf-8")
        rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"lvlm"}
        assert named == set(ChatGuardAlign.model_fields) - set(BaseChatModel.model_fields)

    @pytest.mark.slow
    def test_its_example_answers_and_shows_what_calibration_did(self, request, tmp_path):
        # Unpacking the model takes longer than all else.
        (tmp_path / "guardalign").mkdir()
        unpacked = request.config.cache.mkdir("guardalign-models")
        (tmp_path / "guardalign" / "models").symlink_to(unpacked)
        done = subprocess.run(
            [sys.executable, "examples/local_chat.py", "Tell me about the ocean.", "--max-tokens", "8"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
                "NO_COLOR": "1",
                "XDG_CACHE_HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "The ocean is" in done.stdout
        shares = [float(share) for share in re.findall(r"([\d.]+)%", done.stdout)]
        assert len(shares) == 20
        assert all(after > before for before, after in zip(shares[::2], shares[1::2], strict=True))
