"""A local model as a LlamaIndex LLM: answers, streams, options, metadata, dumps, and what is told of it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading

import pytest
from llama_images import said
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_seen import Tracer
from pydantic import BaseModel, ValidationError
from scripted_model import ScriptedModel

from guardalign_guardrails import GuardSettings, Policy
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.config import CalibrationConfig, SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import ContextOverflow, ModelUnavailable
from llama_index_guardalign import GuardAlignLVLM
from llama_index_guardalign.local.responses import chat_response

CAPITAL = [said("What is the capital of France?")]
STORY = [said("Tell me a story.")]
WORDS = "one two three four five"


@pytest.fixture
def llm(smollm2):
    return GuardAlignLVLM.from_lvlm(smollm2)


@pytest.fixture
def writing(smollm2):
    """Makes an LLM that writes the given texts, one after the other."""

    def make(*texts, settings=None, **options):
        tokenizer = smollm2.processor
        lvlm = CalibratedLVLM(ScriptedModel.writing(tokenizer, *texts), tokenizer, **options)
        return GuardAlignLVLM.from_lvlm(lvlm, **(settings or {}))

    return make


def prompt_of(llm) -> str:
    return llm.lvlm.processor.decode(llm.lvlm.model.prompts[-1])


class TestAnswers:
    def test_a_real_model_answers_and_tells_its_tokens(self, smollm2):
        plain = smollm2.variant(calibration=None, prefix=SafetyPrefix(text=""))
        response = GuardAlignLVLM.from_lvlm(plain).chat(CAPITAL)
        assert response.message.role == "assistant"
        assert "Paris" in response.message.content
        usage = response.raw["usage"]
        assert response.raw["finish_reason"] == "stop"
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage == response.additional_kwargs
        assert response.raw["verdicts"] == []
        assert response.raw["calibration"] is None

    def test_a_real_stream_is_the_whole_answer_in_pieces(self, llm):
        whole = llm.chat(STORY, max_tokens=8)
        pieces = list(llm.stream_chat(STORY, max_tokens=8))
        assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content == whole.message.content
        assert len(pieces) > 5
        assert [piece.raw is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        assert pieces[-1].raw == whole.raw
        assert pieces[1].message.content == pieces[0].delta + pieces[1].delta

    def test_a_report_tells_what_calibration_did(self, smollm2):
        lvlm = smollm2.variant(calibration=CalibrationConfig.fixed(1))
        report = GuardAlignLVLM.from_lvlm(lvlm, report=True, max_tokens=1).chat(CAPITAL).raw["calibration"]
        assert report["layers"] == list(range(10, 20))
        assert all(0 < report["before"][layer] < report["after"][layer] < 1 for layer in report["layers"])

    async def test_every_way_of_asking_gives_the_same_answer(self, writing):
        llm, prompt = writing(WORDS), STORY[0].content
        texts = [
            llm.chat(STORY).message.content,
            llm.complete(prompt).text,
            list(llm.stream_chat(STORY))[-1].message.content,
            list(llm.stream_complete(prompt))[-1].text,
            (await llm.achat(STORY)).message.content,
            (await llm.acomplete(prompt)).text,
            [piece async for piece in await llm.astream_chat(STORY)][-1].message.content,
            [piece async for piece in await llm.astream_complete(prompt)][-1].text,
        ]
        assert texts == [WORDS] * 8
        assert len(set(map(tuple, llm.lvlm.model.prompts))) == 1

    def test_completions_carry_what_chats_carry(self, writing):
        llm = writing(WORDS)
        response = llm.complete("Tell me a story.")
        pieces = list(llm.stream_complete("Tell me a story."))
        assert response.raw["finish_reason"] == "stop"
        assert response.additional_kwargs["completion_tokens"] == 6
        assert "".join(piece.delta for piece in pieces) == WORDS
        assert pieces[-1].raw == response.raw

    @pytest.mark.slow
    async def test_four_at_once_get_what_they_would_get_alone(self, llm):
        questions = [[said(f"What is {number} and {number}?")] for number in range(4)]
        alone = [llm.chat(question, max_tokens=3).message.content for question in questions]
        together = await asyncio.gather(*(llm.achat(question, max_tokens=3) for question in questions))
        assert [response.message.content for response in together] == alone

    def test_logprobs_come_with_their_tokens(self, writing):
        llm = writing("one two")
        response = llm.chat(STORY, logprobs=2)
        assert [token[0].token for token in response.logprobs] == ["one", " two", "<|im_end|>"]
        assert [len(token) for token in response.logprobs] == [3, 3, 3]
        assert response.logprobs[0][0].bytes == list(b"one")
        pieces = list(llm.stream_chat(STORY, logprobs=0))
        assert [token[0].token for piece in pieces for token in piece.logprobs or ()][:2] == ["one", " two"]

    def test_a_prompt_that_is_too_long_is_a_clear_error(self, writing):
        with pytest.raises(ContextOverflow):
            writing("no", context_window=64).chat([said("word " * 200)])


class TestOptions:
    @pytest.mark.parametrize("stop", ["ree fo", ["never", "ree fo"]])
    def test_a_stop_string_may_be_a_setting_or_an_option(self, writing, stop):
        assert writing(WORDS).chat(STORY, stop=stop).message.content == "one two th"
        assert writing(WORDS, settings={"stop": stop}).chat(STORY).message.content == "one two th"

    def test_options_go_before_settings_and_settings_before_the_models_own(self, writing):
        llm = writing(WORDS, settings={"max_tokens": 3})
        assert llm.chat(STORY).raw["usage"]["completion_tokens"] == 3
        assert llm.chat(STORY, max_tokens=2).raw["usage"]["completion_tokens"] == 2
        assert llm.chat(STORY, max_new_tokens=1).raw["finish_reason"] == "length"
        llm.max_tokens = 4
        assert llm.chat(STORY, temperature=None).raw["usage"]["completion_tokens"] == 4

    def test_the_settings_of_a_loaded_model_are_its_llms_settings(self, writing):
        settings = GenerationSettings(
            max_new_tokens=7, temperature=0.5, stop=("x",), top_k=9, seed=3, generate_kwargs={"typical_p": 0.9}
        )
        llm = writing(WORDS, settings=None).from_lvlm(writing(WORDS)._lvlm)
        lvlm = llm.lvlm
        lvlm.settings = settings
        llm = GuardAlignLVLM.from_lvlm(lvlm)
        assert (llm.max_tokens, llm.temperature, llm.stop, llm.seed) == (7, 0.5, ("x",), 3)
        assert llm.additional_kwargs == {"top_k": 9, "generate_kwargs": {"typical_p": 0.9}}
        assert llm._call(chat_response, STORY, {}).arguments["settings"] == settings

    def test_an_option_that_nobody_knows_is_an_error_and_not_ignored(self, writing):
        with pytest.raises(TypeError, match="tempurature"):
            writing(WORDS).chat(STORY, tempurature=0)
        with pytest.raises(ValidationError):
            writing(WORDS).chat(STORY, temperature=-1)

    def test_what_belongs_to_a_loaded_model_is_not_changed_around_it(self, smollm2, writing):
        with pytest.raises(ValueError, match="on_violation, prefix"):
            GuardAlignLVLM.from_lvlm(smollm2, prefix=SafetyPrefix(text=""), on_violation="raise")
        with pytest.raises(ValidationError, match="frozen"):
            writing(WORDS).calibration = None


class TestMetadata:
    def test_it_is_the_models_own(self, smollm2, llm):
        metadata = llm.metadata
        assert metadata.context_window == smollm2.context_window == 8192
        assert metadata.num_output == llm.max_tokens == 24
        assert metadata.is_chat_model
        assert not metadata.is_function_calling_model
        assert metadata.model_name == "smollm2"
        assert isinstance(llm, LLM)
        assert isinstance(llm, FunctionCallingLLM)

    def test_llama_index_takes_it_for_multi_modal(self):
        assert "multi" in GuardAlignLVLM.class_name()

    def test_the_context_may_be_made_smaller(self, writing):
        assert writing(WORDS, context_window=100).metadata.context_window == 100


class TestDumps:
    def test_come_back_equal_without_weights(self, guard):
        llm = GuardAlignLVLM(
            model_name="nowhere/model",
            calibration=CalibrationConfig.fixed(0.2),
            prefix=SafetyPrefix(text="Careful.", placement="system"),
            guard=guard,
            stop="end",
            device_map="cpu",
        )
        text = llm.to_json()
        back = GuardAlignLVLM.from_json(text)
        assert back.to_dict() == llm.to_dict()
        assert back.to_json() == text
        assert back.guard.policy == guard.policy
        assert (back.calibration, back.prefix, back.stop) == (llm.calibration, llm.prefix, ("end",))
        assert json.loads(text)["class_name"] == "guardalign_multi_modal_llm"

    def test_nothing_is_loaded_until_it_is_needed(self, guard):
        llm = GuardAlignLVLM(model_name="nowhere/model", local_files_only=True, guard=Policy.default())
        copies = [copy.deepcopy(llm), pickle.loads(pickle.dumps(llm)), GuardAlignLVLM.from_dict(llm.to_dict())]
        assert all(one.to_dict() == llm.to_dict() for one in copies)
        assert isinstance(llm.guard, GuardSettings)
        assert [one.guard.policy for one in copies] == [Policy.default()] * 3
        with pytest.raises(ModelUnavailable, match="nowhere/model"):
            llm.complete("Hi")

    def test_a_model_that_is_loaded_is_shared_by_copies_and_left_out_of_pickles(self, llm, smollm2, caplog):
        assert copy.deepcopy(llm).lvlm is smollm2
        assert len(pickle.dumps(llm)) < 20_000
        # LlamaIndex says so of what it tried to pickle, which for weights takes long.
        assert "_lvlm" not in caplog.text

    def test_a_quantization_is_dumped_as_its_settings(self):
        transformers = pytest.importorskip("transformers")
        llm = GuardAlignLVLM(model_name="x", quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))
        assert llm.quantization_config["load_in_8bit"] is True
        assert json.loads(llm.to_json())["quantization_config"]["quant_method"] == "bitsandbytes"

    def test_it_is_loaded_as_it_says(self, monkeypatch, smollm2):
        asked = {}

        def load(name, **settings):
            asked.update(settings, name=name)
            return smollm2

        monkeypatch.setattr(CalibratedLVLM, "from_pretrained", load)
        llm = GuardAlignLVLM(
            model_name="some/model", revision="main", dtype="bfloat16", context_window=99, model_kwargs={"a": 1}
        )
        assert llm.lvlm is llm.lvlm is smollm2
        assert asked["name"] == "some/model"
        assert (asked["revision"], asked["dtype"], asked["context_window"]) == ("main", "bfloat16", 99)
        assert asked["model_kwargs"] == {"a": 1}
        assert (asked["trust_remote_code"], asked["guard"]) == (False, None)


class TestWaiting:
    def test_the_first_piece_comes_before_the_last_token_is_made(self, writing):
        llm = writing(WORDS)
        llm.lvlm.model.gate = threading.Event()
        pieces = llm.stream_chat(STORY)
        assert next(pieces).delta == "one"
        assert llm.lvlm.model.steps == 1
        llm.lvlm.model.gate.set()
        assert "".join(piece.delta for piece in pieces) == " two three four five"

    def test_a_reader_who_stops_early_frees_the_model(self, writing):
        llm = writing("one " * 200, "next")
        pieces = llm.stream_chat(STORY)
        next(pieces)
        pieces.close()
        assert llm.complete("And now?").text == "next"
        assert llm.lvlm.model.steps < 100

    async def test_an_async_reader_who_stops_early_frees_it_too(self, writing):
        llm = writing("one " * 200, "next")
        async for piece in await llm.astream_chat(STORY):
            assert piece.delta
            break
        assert (await llm.acomplete("And now?")).text == "next"
        assert llm.lvlm.model.steps < 100

    async def test_a_task_that_is_cancelled_frees_the_model_and_never_held_the_loop(self, writing):
        llm = writing("one " * 200, "next")
        llm.lvlm.model.gate = threading.Event()
        task = asyncio.create_task(llm.achat(STORY))
        # The loop goes on while the model waits for its gate.
        await asyncio.to_thread(llm.lvlm.model.started.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        llm.lvlm.model.gate.set()
        assert (await llm.achat(STORY)).message.content == "next"
        assert llm.lvlm.model.steps < 10

    async def test_weights_are_not_loaded_in_the_event_loop(self, monkeypatch, writing):
        loaded, threads = writing(WORDS).lvlm, []

        def load(*_, **__):
            threads.append(threading.current_thread())
            return loaded

        monkeypatch.setattr(CalibratedLVLM, "from_pretrained", load)
        llm = GuardAlignLVLM(model_name="x")
        assert (await llm.achat(STORY)).message.content == WORDS
        (thread,) = threads
        assert thread is not threading.main_thread()


class TestTraces:
    def test_one_span_and_the_usual_events_go_with_each_call(self, writing):
        llm = writing(WORDS)
        with Tracer() as tracer:
            llm.callback_manager = CallbackManager([tracer.callbacks])
            llm.chat(STORY, max_tokens=3)
            list(llm.stream_chat(STORY))
            llm.complete("Hi")
        assert tracer.spans == ["GuardAlignLVLM.chat", "GuardAlignLVLM.stream_chat", "GuardAlignLVLM.complete"]
        start, _ = tracer.of(LLMChatStartEvent)
        assert start.messages == STORY
        assert start.additional_kwargs == {"max_tokens": 3}
        assert "As an AI assistant" in repr(start.model_dict)
        assert start.span_id.startswith("GuardAlignLVLM.chat")
        assert [event.response.raw["finish_reason"] for event in tracer.of(LLMChatEndEvent)] == ["length", "stop"]
        assert len(tracer.of(LLMChatInProgressEvent)) == 6
        assert len(tracer.of(LLMCompletionStartEvent)) == len(tracer.of(LLMCompletionEndEvent)) == 1
        assert len(tracer.callbacks.told) == 6

    async def test_async_calls_tell_as_much(self, writing):
        llm = writing(WORDS)
        with Tracer() as tracer:
            await llm.achat(STORY)
            [piece async for piece in await llm.astream_chat(STORY)]
            await llm.acomplete("Hi")
        assert tracer.spans == ["GuardAlignLVLM.achat", "GuardAlignLVLM.astream_chat", "GuardAlignLVLM.acomplete"]
        assert len(tracer.of(LLMChatEndEvent)) == 2

    def test_llama_index_counts_the_models_own_tokens(self, writing):
        counter = TokenCountingHandler(tokenizer=str.split)
        llm = writing(WORDS, settings={"callback_manager": CallbackManager([counter])})
        usage = llm.chat(STORY).raw["usage"]
        assert counter.prompt_llm_token_count == usage["prompt_tokens"]
        assert counter.completion_llm_token_count == usage["completion_tokens"]

    def test_an_error_ends_its_span(self, writing):
        llm = writing("no", context_window=64)
        with Tracer() as tracer, pytest.raises(ContextOverflow):
            llm.chat([said("word " * 200)])
        assert "SpanDropEvent" in tracer.said


class City(BaseModel):
    """A city."""

    name: str
    is_large: bool


class TestPrompts:
    def test_predict_says_the_system_prompt(self, writing):
        from llama_index.core.prompts import PromptTemplate

        llm = writing(WORDS, settings={"system_prompt": "Be brief."})
        assert llm.predict(PromptTemplate("Say {what}."), what="it") == WORDS
        assert prompt_of(llm).index("Be brief.") < prompt_of(llm).index("Say it.")

    def test_a_chat_goes_into_the_prompt_in_order(self, writing):
        llm = writing(WORDS)
        llm.chat([said("first", "system"), said("second"), said("third", "assistant"), said("fourth")])
        prompt = prompt_of(llm)
        assert sorted(["first", "second", "third", "fourth"], key=prompt.index) == [
            "first",
            "second",
            "third",
            "fourth",
        ]

    def test_the_input_is_left_as_it_was(self, writing):
        chat = [ChatMessage(role="user", content="Hi", additional_kwargs={"a": 1})]
        before = [message.model_dump() for message in chat]
        writing(WORDS).chat(chat)
        assert [message.model_dump() for message in chat] == before
