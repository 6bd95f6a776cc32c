"""A model is offered tools, and where a call is required, it makes one."""

from __future__ import annotations

import asyncio
import json

import pytest
from scripted_model import TOOL_TEMPLATE, ScriptedModel

from guardalign_guardrails import Guard
from guardalign_guardrails.decoding.chat.settings import GenerationSettings
from guardalign_guardrails.decoding.chat.tool_choice import offer_of
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import PromptError
from guardalign_guardrails.testing.colours import ColourEncoder, colour_policy, painted

QUESTION = "What is on the wire?"
ANSWER = {"type": "object", "properties": {"bird": {"type": "string"}}, "required": ["bird"]}


def function(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


LOOK, WAIT = function("look", at={"type": "string"}), function("wait", hours={"type": "integer"})
LOOK_CALL = json.dumps({"name": "look", "arguments": {"at": "the wire"}})
WAIT_CALL = json.dumps({"name": "wait", "arguments": {"hours": 3}})
TAUGHT_CALL = f"<tool_call>{LOOK_CALL}</tool_call>"
REQUIRED = ["required", "any", True, "look", {"type": "function", "function": {"name": "look"}}, {"name": "look"}]


@pytest.fixture
def tokenizer(smollm2):
    """SmolLM2's tokenizer with a template that knows tools."""
    own = smollm2.processor.chat_template
    smollm2.processor.chat_template = TOOL_TEMPLATE
    yield smollm2.processor
    smollm2.processor.chat_template = own


@pytest.fixture
def writing(tokenizer):
    def make(*texts, **settings):
        return CalibratedLVLM(ScriptedModel.writing(tokenizer, *texts), tokenizer, **settings)

    return make


def prompt_of(lvlm):
    return lvlm.processor.decode(lvlm.model.prompts[-1])


def asked(lvlm, way, **arguments):
    """The answer by each of the six ways."""

    async def astreamed():
        return [piece async for piece in lvlm.astream(QUESTION, **arguments)]

    return {
        "chat": lambda: lvlm.chat(QUESTION, **arguments),
        "achat": lambda: asyncio.run(lvlm.achat(QUESTION, **arguments)),
        "stream": lambda: list(lvlm.stream(QUESTION, **arguments))[-1].answer,
        "astream": lambda: asyncio.run(astreamed())[-1].answer,
        "batch": lambda: lvlm.batch([QUESTION], **arguments)[0],
        "abatch": lambda: asyncio.run(lvlm.abatch([QUESTION], **arguments))[0],
    }[way]()


@pytest.mark.parametrize("choice", REQUIRED, ids=str)
def test_a_required_call_is_made_whatever_its_format(writing, choice):
    answer = writing(LOOK_CALL).chat(QUESTION, tools=[LOOK, WAIT], tool_choice=choice)
    ((call),) = answer.tool_calls
    assert (call.name, call.arguments, call.id) == ("look", {"at": "the wire"}, "call00000")
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")


@pytest.mark.parametrize("way", ["chat", "achat", "stream", "astream", "batch", "abatch"])
def test_a_required_call_is_made_by_each_way_of_asking(writing, way):
    answer = asked(writing(LOOK_CALL), way, tools=[LOOK], tool_choice="required")
    assert [call.name for call in answer.tool_calls] == ["look"]
    assert answer.text == ""


def test_a_model_that_would_say_something_else_calls_the_tool_all_the_same(smollm2, tokenizer):
    lvlm = CalibratedLVLM(smollm2.model, tokenizer, calibration=None)
    settings = GenerationSettings(temperature=0, max_new_tokens=40)
    answer = lvlm.chat("Say hello.", tools=[LOOK, WAIT], tool_choice="wait", settings=settings)
    assert "hello" in lvlm.chat("Say hello.", settings=settings).text.lower()
    ((call),) = answer.tool_calls
    assert call.name == "wait"
    assert isinstance(call.arguments["hours"], int)


@pytest.mark.parametrize("choice", ["auto", None])
def test_a_model_that_may_choose_calls_in_the_format_it_was_taught(writing, choice):
    made = writing(f"Let me see. {TAUGHT_CALL}").chat(QUESTION, tools=[LOOK], tool_choice=choice)
    assert ([call.name for call in made.tool_calls], made.text) == (["look"], "Let me see.")
    said = writing("A bird.").chat(QUESTION, tools=[LOOK], tool_choice=choice)
    assert (said.tool_calls, said.text, said.finish_reason) == ((), "A bird.", "stop")
    bare = writing(LOOK_CALL).chat(QUESTION, tools=[LOOK], tool_choice=choice)
    assert (bare.tool_calls, bare.text) == ((), LOOK_CALL)


@pytest.mark.parametrize("choice", ["none", False])
def test_no_tool_is_in_the_prompt_and_no_call_is_read_if_none_may_be_called(writing, choice):
    lvlm = writing(TAUGHT_CALL)
    answer = lvlm.chat(QUESTION, tools=[LOOK], tool_choice=choice)
    assert answer.tool_calls == ()
    assert "look" not in prompt_of(lvlm).partition(QUESTION)[0]


def test_the_prompt_describes_all_tools_and_the_answer_can_call_only_the_chosen_one(writing):
    lvlm = writing(WAIT_CALL)
    answer = lvlm.chat(QUESTION, tools=[LOOK, WAIT], tool_choice="look", settings=GenerationSettings(max_new_tokens=40))
    assert [call.name for call in answer.tool_calls] != ["wait"]
    assert '"look"' in prompt_of(lvlm)
    assert '"wait"' in prompt_of(lvlm)


def test_a_call_that_is_cut_off_is_no_call(writing):
    settings = GenerationSettings(max_new_tokens=5)
    answer = writing(LOOK_CALL).chat(QUESTION, tools=[LOOK], tool_choice="required", settings=settings)
    assert (answer.tool_calls, answer.finish_reason) == ((), "length")
    assert LOOK_CALL.startswith(answer.text)


@pytest.mark.parametrize("choice", ["required", True, "any", "fly"])
def test_a_call_of_a_tool_that_is_not_there_cannot_be_required(writing, choice):
    with pytest.raises(PromptError, match="tool"):
        writing("x").chat(QUESTION, tools=[], tool_choice=choice)


@pytest.mark.parametrize("choice", ["fly", {"function": {"name": "fly"}}, {"function": None}, {}], ids=str)
def test_a_choice_that_names_no_tool_is_an_error(choice):
    with pytest.raises(PromptError, match="tool_choice"):
        offer_of([LOOK], choice)


def test_a_tool_without_a_name_is_an_error_that_quotes_nothing():
    with pytest.raises(PromptError, match="needs a name") as caught:
        offer_of([{"type": "function", "function": {"description": "secret"}}], "required")
    assert "secret" not in str(caught.value)


class TestStreams:
    def test_a_required_call_is_not_shown_half_written(self, writing):
        settings = GenerationSettings(logprobs=0)
        pieces = list(writing(LOOK_CALL).stream(QUESTION, tools=[LOOK], tool_choice="required", settings=settings))
        assert [piece.text for piece in pieces] == [""]
        assert pieces[0].answer.tool_calls[0].arguments == {"at": "the wire"}
        assert pieces[0].logprobs == pieces[0].answer.logprobs
        assert len(pieces[0].logprobs) == pieces[0].answer.usage.completion_tokens

    def test_a_call_that_is_cut_off_comes_as_text_at_the_end(self, writing):
        settings = GenerationSettings(max_new_tokens=5)
        pieces = list(writing(LOOK_CALL).stream(QUESTION, tools=[LOOK], tool_choice="required", settings=settings))
        assert [piece.text for piece in pieces] == [pieces[-1].answer.text]
        assert pieces[-1].text


class TestSchemas:
    def test_an_answer_of_a_schema_may_be_a_call_instead(self, writing):
        settings = GenerationSettings(json_schema=ANSWER)
        called = writing(LOOK_CALL).chat(QUESTION, tools=[LOOK], settings=settings)
        said = writing('{"bird": "red"}').chat(QUESTION, tools=[LOOK], settings=settings)
        assert ([call.name for call in called.tool_calls], called.text) == (["look"], "")
        assert (said.tool_calls, json.loads(said.text)) == ((), {"bird": "red"})

    def test_an_answer_that_only_looks_like_a_call_is_an_answer(self, writing):
        settings = GenerationSettings(json_schema={"type": "object"})
        text = json.dumps({"name": "fly", "arguments": {}})
        answer = writing(text).chat(QUESTION, tools=[LOOK], settings=settings)
        assert (answer.tool_calls, answer.text) == ((), text)

    def test_a_required_call_goes_before_a_schema(self, writing):
        settings = GenerationSettings(json_schema=ANSWER)
        answer = writing(LOOK_CALL).chat(QUESTION, tools=[LOOK], tool_choice="look", settings=settings)
        assert [call.name for call in answer.tool_calls] == ["look"]

    @pytest.mark.parametrize("choice", ["required", "auto"])
    def test_a_prefix_at_the_start_of_answers_is_no_part_of_json(self, writing, choice):
        settings = GenerationSettings(json_schema=ANSWER)
        lvlm = writing(LOOK_CALL, prefix=SafetyPrefix(text="I must refuse harm.", placement="response"))
        answer = lvlm.chat(QUESTION, tools=[LOOK], tool_choice=choice, settings=settings)
        assert ([call.name for call in answer.tool_calls], answer.text) == (["look"], "")
        pieces = list(lvlm.stream(QUESTION, tools=[LOOK], tool_choice=choice, settings=settings))
        assert "".join(piece.text for piece in pieces) == ""
        assert lvlm.chat(QUESTION).text.startswith("I must refuse harm.")

    def test_references_of_several_tools_and_of_the_answer_do_not_get_mixed_up(self):
        def referring(leaf):
            return {"type": "object", "properties": {"at": {"$ref": "#/$defs/Place"}}, "$defs": {"Place": leaf}}

        tools = [
            {"function": {"name": "one", "parameters": referring({"type": "integer"})}},
            {"function": {"name": "two", "parameters": referring({"type": "boolean"})}},
        ]
        schema = offer_of(tools, "auto", referring({"type": "null"})).schema
        answer, one, two = schema["anyOf"]
        found = [
            _resolved(schema, _resolved(schema, part)["properties"]["at"])
            for part in (answer, one["properties"]["arguments"], two["properties"]["arguments"])
        ]
        assert found == [{"type": "null"}, {"type": "integer"}, {"type": "boolean"}]

    def test_the_grammar_follows_references_also_of_a_schema_within_itself(self, writing):
        chain = {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
        }
        call = json.dumps({"name": "link", "arguments": {"next": {"next": None}}})
        tools = [{"function": {"name": "link", "parameters": chain}}]
        answer = writing(call).chat(QUESTION, tools=tools, tool_choice="link")
        assert answer.tool_calls[0].arguments == {"next": {"next": None}}


def _resolved(schema, part):
    found = schema
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return found


@pytest.mark.slow
def test_a_refusal_is_a_refusal_where_a_call_is_required(writing, cache_dir):
    lvlm = writing(LOOK_CALL, guard=Guard(colour_policy(), ColourEncoder(), cache_dir=cache_dir))
    chat = [{"role": "user", "content": [{"type": "image", "image": painted("blue")}]}]
    answer = lvlm.chat(chat, tools=[LOOK], tool_choice="required")
    assert (answer.finish_reason, answer.tool_calls) == ("refusal", ())
    assert lvlm.model.prompts == []
