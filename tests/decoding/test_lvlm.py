"""A local model answers: whole, in pieces, in batches, one after the other, and only what it may."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import pytest
import torch
from scripted_model import TOOL_TEMPLATE, ScriptedModel

from guardalign_guardrails import Guard, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
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
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy, painted

STORY = "Tell me a story."
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
SHORT = GenerationSettings(temperature=0, max_new_tokens=12)
SHORTER = GenerationSettings(temperature=0, max_new_tokens=6)


def image(colour="white"):
    return {"type": "image", "image": painted(colour)}


@pytest.fixture
def guard(cache_dir):
    return Guard(colour_policy(), ColourEncoder(), cache_dir=cache_dir)


@pytest.fixture
def tokenizer(smollm2):
    return smollm2.processor


def writing(tokenizer, *texts, **settings):
    model = ScriptedModel.writing(tokenizer, *texts)
    return CalibratedLVLM(model, tokenizer, **settings)


@pytest.fixture
def with_tools(tokenizer):
    """SmolLM2's tokenizer with a template that knows tools."""
    own = tokenizer.chat_template
    tokenizer.chat_template = TOOL_TEMPLATE
    yield tokenizer
    tokenizer.chat_template = own


class TestAnswers:
    def test_a_question_is_answered_by_the_real_model(self, smollm2):
        plain = smollm2.variant(calibration=None, prefix=SafetyPrefix(text=""))
        answer = plain.chat("What is the capital of France?")
        assert "Paris" in answer.text
        assert answer.finish_reason == "stop"
        assert answer.usage.prompt_tokens > 20
        assert 3 < answer.usage.completion_tokens < 24

    def test_pieces_put_together_are_the_whole_answer(self, smollm2):
        whole = smollm2.chat(STORY)
        *pieces, last = smollm2.stream(STORY)
        assert len(pieces) > 10
        assert all(piece.answer is None for piece in pieces)
        assert "".join(piece.text for piece in [*pieces, last]) == last.answer.text == whole.text
        assert last.answer.usage == whole.usage

    def test_an_answer_that_runs_out_of_tokens_says_so(self, smollm2):
        answer = smollm2.chat(STORY, settings=SHORT)
        assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 12)

    @pytest.mark.parametrize("stop", ["morally ambiguous", "ly am", "The story"])
    def test_a_stop_string_of_several_tokens_ends_the_answer_and_is_not_in_it(self, tokenizer, stop):
        text = "It is a morally ambiguous tale. The story begins."
        lvlm = writing(tokenizer, text)
        settings = GenerationSettings(stop=(stop, "never"))
        answer = lvlm.chat(STORY, settings=settings)
        assert answer.text == text[: text.index(stop)]
        assert answer.finish_reason == "stop"
        pieces = list(writing(tokenizer, text).stream(STORY, settings=settings))
        assert "".join(piece.text for piece in pieces) == answer.text

    def test_what_only_looked_like_a_stop_string_is_handed_on(self, tokenizer):
        text = "one two three"
        pieces = list(writing(tokenizer, text).stream(STORY, settings=GenerationSettings(stop=("three four", "two x"))))
        assert "".join(piece.text for piece in pieces) == text

    def test_letters_of_several_tokens_come_whole(self, tokenizer):
        text = "日本語 🙂 Grüße"
        pieces = list(writing(tokenizer, text).stream(STORY))
        assert "".join(piece.text for piece in pieces) == text
        assert not any("\ufffd" in piece.text for piece in pieces)

    def test_the_same_seed_gives_the_same_answer_and_leaves_the_random_state_alone(self, smollm2):
        settings = [GenerationSettings(temperature=1.5, max_new_tokens=12, seed=seed) for seed in (1, 1, 2)]
        torch.manual_seed(7)
        before = torch.random.get_rng_state()
        one, again, other = (smollm2.chat(STORY, settings=s).text for s in settings)
        assert one == again != other
        assert torch.equal(before, torch.random.get_rng_state())

    def test_logprobs_are_those_of_a_forward_pass(self, smollm2):
        plain = smollm2.variant(calibration=None)
        settings = GenerationSettings(temperature=0, max_new_tokens=5, logprobs=3)
        answer = plain.chat(STORY, settings=settings)
        assert len(answer.logprobs) == 5
        assert "".join(one.token for one in answer.logprobs) == answer.text
        prompt = plain._generator.prompts(_admitted(plain, STORY))[0].inputs
        with torch.no_grad():
            logits = plain.model(**prompt).logits[0, -1]
        likely = torch.log_softmax(logits, -1).topk(3)
        first = answer.logprobs[0]
        assert first.logprob == pytest.approx(float(likely.values[0]), abs=1e-4)
        assert [value for _, value in first.top] == pytest.approx(likely.values.tolist(), abs=1e-4)

    def test_beams_give_one_answer(self, smollm2):
        answer = smollm2.chat(STORY, settings=GenerationSettings(temperature=0, num_beams=3, max_new_tokens=8))
        assert answer.text
        assert 0 < answer.usage.completion_tokens <= 8

    def test_answers_can_be_held_to_a_json_schema(self, smollm2):
        schema = {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
            "required": ["city", "size"],
            "additionalProperties": False,
        }
        settings = GenerationSettings(temperature=0, max_new_tokens=60, json_schema=schema)
        value = json.loads(smollm2.chat("Name a city.", settings=settings).text)
        assert value.keys() == {"city", "size"}
        assert value["size"] in ("small", "large")

    def test_a_schema_that_is_none_is_a_clear_error(self, smollm2):
        with pytest.raises(PromptError, match="schema"):
            smollm2.chat("x", settings=GenerationSettings(json_schema={"type": "no such type"}))


class TestPrefix:
    def test_an_answer_that_begins_with_the_prefix_has_it_in_its_text_once(self, smollm2):
        lvlm = smollm2.variant(
            calibration=CalibrationConfig.fixed(0.5), prefix=SafetyPrefix(text="As an AI", placement="response")
        )
        answer = lvlm.chat(STORY, settings=SHORT)
        pieces = list(lvlm.stream(STORY, settings=SHORT))
        assert answer.text.startswith("As an AI")
        assert answer.text.count("As an AI") == 1
        assert "".join(piece.text for piece in pieces) == answer.text
        assert pieces[0].text == "As an AI"

    @pytest.mark.parametrize("placement", ["system", "user"])
    def test_a_report_tells_how_much_attention_the_prefix_gained(self, smollm2, placement):
        lvlm = smollm2.variant(calibration=CalibrationConfig.fixed(1), prefix=SafetyPrefix(placement=placement))
        report = lvlm.chat(STORY, settings=SHORT, is_reported=True).calibration
        assert report.layers == tuple(range(10, 20))
        for layer in report.layers:
            assert 0 < report.before[layer][0] < report.after[layer][0] < 1

    def test_a_variant_that_cannot_be_calibrated_is_refused(self, smollm2, monkeypatch):
        attention = smollm2.model.model.layers[12].self_attn
        monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (torch.zeros_like(hidden_states), None))
        with pytest.raises(CalibrationError, match=r"\[12\]"):
            smollm2.variant(calibration=CalibrationConfig.fixed(1))

    def test_without_calibration_tokens_are_those_of_the_plain_model(self, smollm2):
        plain = smollm2.variant(calibration=None)
        prompt = plain._generator.prompts(_admitted(plain, STORY))[0].inputs
        tokens = plain.model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert plain.chat(STORY, settings=SHORT).text == plain.processor.decode(tokens, skip_special_tokens=True)

    def test_the_policy_decides_on_the_prefix_if_it_is_asked(self, tokenizer, guard):
        prefix = SafetyPrefix(text="Mind the rules.", when="policy")
        lvlm = writing(tokenizer, "yes", guard=guard, prefix=prefix)
        lvlm.chat("words only")
        assert "Mind the rules." not in tokenizer.decode(lvlm.model.prompts[-1])
        always = writing(tokenizer, "yes", guard=guard, prefix=prefix.model_copy(update={"when": "always"}))
        always.chat("words only")
        assert "Mind the rules." in tokenizer.decode(always.model.prompts[-1])

    def test_two_models_with_other_safety_settings_are_not_the_same(self, smollm2):
        same = smollm2.variant(calibration=smollm2.calibration).identity
        assert same == smollm2.identity
        others = [
            smollm2.variant(calibration=None),
            smollm2.variant(calibration=CalibrationConfig.fixed(0.1)),
            smollm2.variant(calibration=smollm2.calibration, prefix=SafetyPrefix(text="else")),
        ]
        assert len({json.dumps(lvlm.identity, sort_keys=True) for lvlm in [smollm2, *others]}) == 4

    def test_the_model_is_left_as_it_was(self, smollm2):
        with pytest.raises(RuntimeError, match="stop here"):
            smollm2.chat(STORY, logits_processors=[_Failing()])
        assert smollm2.model.config._attn_implementation == "sdpa"
        assert smollm2.chat(STORY, settings=SHORT).text


class TestBatches:
    @pytest.mark.slow
    def test_a_batch_answers_as_one_by_one_would(self, smollm2):
        chats = [
            "What is two and two?",
            STORY,
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        ]
        together = smollm2.batch(chats, settings=SHORTER)
        alone = [smollm2.chat(chat, settings=SHORTER) for chat in chats]
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        assert [answer.usage for answer in together] == [answer.usage for answer in alone]

    def test_an_empty_batch_is_empty(self, smollm2):
        assert smollm2.batch([]) == []

    async def test_requests_at_the_same_time_get_their_own_answers(self, smollm2):
        questions = [f"What is {number} and {number}?" for number in range(4)]
        one_by_one = [smollm2.chat(question, settings=SHORTER).text for question in questions]
        together = await asyncio.gather(*(smollm2.achat(question, settings=SHORTER) for question in questions))
        assert [answer.text for answer in together] == one_by_one


class TestWaiting:
    def test_the_first_piece_comes_before_the_last_token_is_made(self, tokenizer):
        lvlm = writing(tokenizer, "one two three four")
        lvlm.model.gate = threading.Event()
        pieces = lvlm.stream(STORY)
        assert next(pieces).text == "one"
        assert lvlm.model.steps == 1
        lvlm.model.gate.set()
        assert "".join(piece.text for piece in pieces) == " two three four"

    def test_a_reader_who_stops_early_frees_the_model_within_a_token(self, tokenizer):
        lvlm = writing(tokenizer, "one " * 200, "next")
        pieces = lvlm.stream(STORY)
        next(pieces)
        pieces.close()
        assert lvlm.chat("And now?").text == "next"
        assert lvlm.model.steps < 100

    async def test_a_task_that_is_cancelled_frees_the_model(self, tokenizer):
        lvlm = writing(tokenizer, "one " * 200, "next")
        lvlm.model.gate = threading.Event()
        task = asyncio.create_task(lvlm.achat(STORY))
        await asyncio.to_thread(lvlm.model.started.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lvlm.model.gate.set()
        assert (await lvlm.achat("And now?")).text == "next"
        assert lvlm.model.steps < 10

    async def test_an_async_stream_can_be_left_too(self, tokenizer):
        lvlm = writing(tokenizer, "one " * 200, "next")
        pieces = lvlm.astream(STORY)
        assert (await anext(pieces)).text
        await pieces.aclose()
        assert "".join([piece.text async for piece in lvlm.astream("And now?")]) == "next"
        assert lvlm.model.steps < 100

    async def test_a_request_that_was_cancelled_in_the_queue_never_begins(self, tokenizer):
        lvlm = writing(tokenizer, "first", "second")
        lvlm.model.gate = threading.Event()
        first = asyncio.create_task(lvlm.achat(STORY))
        await asyncio.to_thread(lvlm.model.started.wait, 20)
        waiting = asyncio.create_task(lvlm.achat("Never asked"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        lvlm.model.gate.set()
        assert (await first).text == "first"
        assert (await lvlm.achat("And now?")).text == "second"
        assert len(lvlm.model.prompts) == 2

    @pytest.mark.parametrize("way", ["chat", "stream", "achat", "astream"])
    async def test_errors_while_generating_reach_the_caller_that_waits(self, smollm2, way):
        asked = getattr(smollm2, way)(STORY, logits_processors=[_Failing()]) if way != "chat" else None

        async def waited():
            if way == "chat":
                smollm2.chat(STORY, logits_processors=[_Failing()])
            elif way == "stream":
                list(asked)
            elif way == "achat":
                await asked
            else:
                [piece async for piece in asked]

        with pytest.raises(RuntimeError, match="stop here"):
            await waited()


class TestContext:
    def test_a_prompt_that_is_too_long_is_a_clear_error(self, tokenizer):
        lvlm = writing(tokenizer, "no", context_window=64)
        with pytest.raises(ContextOverflow) as caught:
            lvlm.chat("word " * 200)
        assert caught.value.context_window == 64
        assert caught.value.prompt_tokens > 200
        assert "word word" not in str(caught.value)

    def test_an_answer_ends_where_the_context_does(self, tokenizer):
        lvlm = writing(tokenizer, "word " * 100, context_window=80)
        answer = lvlm.chat("Hi")
        assert answer.finish_reason == "length"
        assert answer.usage.total_tokens == 80

    def test_tokens_of_a_chat_are_counted_without_asking_the_model(self, tokenizer):
        lvlm = writing(tokenizer, "yes")
        count = lvlm.count_tokens("Hi")
        assert lvlm.model.steps == 0
        assert lvlm.chat("Hi").usage.prompt_tokens == count


class TestGuard:
    def test_a_blocked_image_is_refused_and_no_model_is_asked(self, tokenizer, guard):
        lvlm = writing(tokenizer, "yes", guard=guard)
        answer = lvlm.chat([{"role": "user", "content": ["Look", image("blue")]}])
        assert (answer.text, answer.finish_reason) == (guard.policy.refusal, "refusal")
        assert [verdict.action for verdict in answer.verdicts] == ["block"]
        assert answer.usage.total_tokens == 0
        assert lvlm.model.steps == 0
        (piece,) = lvlm.stream([{"role": "user", "content": ["Look", image("blue")]}])
        assert (piece.text, piece.answer.finish_reason) == (guard.policy.refusal, "refusal")
        assert [verdict.action for verdict in piece.verdicts] == ["block"]

    def test_what_could_not_be_checked_is_refused_in_other_words_than_what_is_unsafe(self, tokenizer, cache_dir):
        policy = colour_policy(failure={"uninspectable": "block"})
        lvlm = writing(tokenizer, "yes", guard=Guard(policy, ColourEncoder(), cache_dir=cache_dir))
        document = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0xLjQ=", "filename": "a"}}
        answer = lvlm.chat([{"role": "user", "content": [document]}])
        assert answer.text == policy.refusal_unchecked != policy.refusal
        assert [verdict.finding for verdict in answer.verdicts] == ["unchecked"]

    async def test_a_stream_tells_of_its_images_before_any_word(self, tokenizer, guard):
        # An image of an earlier turn, since this model reads text only.
        chat = [
            {"role": "user", "content": [image("blue")]},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "And now?"},
        ]
        lvlm = writing(tokenizer, "yes it is", guard=guard)
        streamed = list(lvlm.stream(chat))
        lvlm = writing(tokenizer, "yes it is", guard=guard)
        for pieces in (streamed, [piece async for piece in lvlm.astream(chat)]):
            first, *others = pieces
            assert (first.text, [verdict.action for verdict in first.verdicts]) == ("", ["block"])
            assert "".join(piece.text for piece in others) == "yes it is"
            assert not any(piece.verdicts for piece in others)
            assert others[-1].answer.verdicts == first.verdicts

    def test_it_can_be_raised_instead(self, tokenizer, guard):
        lvlm = writing(tokenizer, "yes", guard=guard, on_violation="raise")
        with pytest.raises(UnsafeContentError) as caught:
            lvlm.chat([{"role": "user", "content": [image("blue")]}])
        assert caught.value.verdict.action == "block"

    def test_or_the_model_answers_with_a_notice_in_its_place(self, tokenizer, guard):
        lvlm = writing(tokenizer, "yes", guard=guard, on_violation="notice")
        assert lvlm.chat([{"role": "user", "content": ["Look", image("blue")]}]).text == "yes"
        assert NOTICE in tokenizer.decode(lvlm.model.prompts[0])

    def test_a_blocked_image_of_an_earlier_turn_is_a_notice_and_the_chat_goes_on(self, tokenizer, guard):
        lvlm = writing(tokenizer, "yes", guard=guard)
        chat = [
            {"role": "user", "content": [image("blue")]},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "And now?"},
        ]
        answer = lvlm.chat(chat)
        assert answer.text == "yes"
        assert [verdict.source for verdict in answer.verdicts] == ["history"]
        assert NOTICE in tokenizer.decode(lvlm.model.prompts[0])

    def test_a_batch_has_refusals_among_its_answers_in_order(self, tokenizer, guard):
        lvlm = writing(tokenizer, "yes", guard=guard)
        answers = lvlm.batch(["Hi", [{"role": "user", "content": [image("blue")]}]])
        assert [answer.finish_reason for answer in answers] == ["stop", "refusal"]

    def test_an_image_that_is_elsewhere_is_never_handed_on(self, tokenizer):
        lvlm = writing(tokenizer, "yes")
        block = {"type": "image_url", "image_url": {"url": "https://example.com/secret.png"}}
        with pytest.raises(ImageDecodeError) as caught:
            lvlm.chat([{"role": "user", "content": ["Look", block]}])
        assert caught.value.reason == "remote_reference"
        assert "secret" not in str(caught.value)

    def test_a_model_of_words_cannot_be_given_images(self, tokenizer):
        with pytest.raises(PromptError, match="text only"):
            writing(tokenizer, "yes").chat([{"role": "user", "content": ["Look", image()]}])


class TestTools:
    CALL = 'Let me see. <tool_call>{"name": "look", "arguments": {"at": "it"}}</tool_call>'

    def test_a_call_is_read_and_the_words_before_it_are_the_text(self, with_tools):
        lvlm = writing(with_tools, self.CALL)
        answer = lvlm.chat("Look", tools=TOOLS)
        (call,) = answer.tool_calls
        assert (call.name, call.arguments, answer.text) == ("look", {"at": "it"}, "Let me see.")
        assert answer.finish_reason == "tool_calls"
        assert '"look"' in with_tools.decode(lvlm.model.prompts[0])

    def test_a_stream_holds_a_call_back(self, with_tools):
        pieces = list(writing(with_tools, self.CALL).stream("Look", tools=TOOLS))
        assert "".join(piece.text for piece in pieces).strip() == "Let me see."
        assert pieces[-1].answer.tool_calls[0].name == "look"

    def test_what_is_no_call_stays_words(self, with_tools):
        text = "I could write <tool_call>but no"
        pieces = list(writing(with_tools, text).stream("Look", tools=TOOLS))
        assert "".join(piece.text for piece in pieces) == pieces[-1].answer.text == text

    def test_a_result_goes_back_into_the_prompt(self, with_tools):
        lvlm = writing(with_tools, "It is a cat.")
        call = {"id": "call00000", "function": {"name": "look", "arguments": '{"at": "it"}'}}
        chat = [
            {"role": "user", "content": "Look"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "a cat", "tool_call_id": "call00000", "name": "look"},
        ]
        assert lvlm.chat(chat, tools=TOOLS).text == "It is a cat."
        prompt = with_tools.decode(lvlm.model.prompts[0])
        assert prompt.index("Look") < prompt.index('"at": "it"') < prompt.index("a cat")

    def test_a_template_without_tools_is_a_clear_error(self, tokenizer):
        lvlm = writing(tokenizer, "yes")
        assert not lvlm.knows_tools
        with pytest.raises(PromptError, match="tools"):
            lvlm.chat("Look", tools=TOOLS)


class TestLoading:
    @pytest.mark.parametrize("name", ["no/such-model", "nowhere.gguf"])
    def test_a_model_that_is_not_there_is_one_clear_error(self, name):
        with pytest.raises(ModelUnavailable, match=re.escape(name)):
            CalibratedLVLM.from_pretrained(name, local_files_only=True)


class _Failing:
    def __call__(self, input_ids, scores):
        raise RuntimeError("stop here")


def _admitted(lvlm, chat):
    from guardalign_guardrails.decoding.chat.admission import admit
    from guardalign_guardrails.decoding.chat.messages import messages_of

    return admit(None, [messages_of(chat)], "refuse", lvlm.limits)
