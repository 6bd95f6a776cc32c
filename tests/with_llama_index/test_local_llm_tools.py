"""A local model calls tools, is made to call them, and answers with objects."""

from __future__ import annotations

import json

import pytest
from llama_images import ask, said
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, ToolCallBlock
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictStartEvent
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from llama_seen import Tracer
from pydantic import BaseModel, Field, ValidationError
from scripted_model import ScriptedModel

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.errors import PromptError
from guardalign_guardrails.testing.chats import canary, leaks
from llama_index_guardalign import GuardAlignLVLM

CALL = 'Let me see. <tool_call>{"name": "look", "arguments": {"at": "the wire"}}</tool_call>'
TWO = CALL + '<tool_call>{"name": "look", "arguments": {"at": "the house"}}</tool_call>'
OSLO = '{"name": "Oslo", "is_large": false}'
QUESTION = [said("What is on the wire?")]


class Place(BaseModel):
    """Where something is."""

    room: str = Field(max_length=8)


class Lamp(BaseModel):
    """A lamp to switch."""

    place: Place
    is_on: bool


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    is_large: bool


def look(at: str) -> str:
    """Look at something."""
    return f"two red birds at {at}"


def switch(**how) -> str:
    """Switch a lamp."""
    return f"{how}"


LOOK = FunctionTool.from_defaults(look)
SWITCH = FunctionTool.from_defaults(switch, fn_schema=Lamp)


@pytest.fixture
def calling(with_tools):
    """Makes an LLM that knows tools and writes the given texts, one after the other."""

    def make(*texts, **options):
        return GuardAlignLVLM.from_lvlm(
            CalibratedLVLM(ScriptedModel.writing(with_tools, *texts), with_tools, **options)
        )

    return make


@pytest.fixture
def writing(smollm2):
    def make(*texts, **options):
        model = ScriptedModel.writing(smollm2.processor, *texts)
        return GuardAlignLVLM.from_lvlm(CalibratedLVLM(model, smollm2.processor, **options))

    return make


def prompt_of(llm, number=-1) -> str:
    return llm.lvlm.processor.decode(llm.lvlm.model.prompts[number])


class TestToolCalls:
    def test_a_call_comes_as_a_block_and_as_a_selection(self, calling):
        llm = calling(CALL)
        response = llm.chat_with_tools([LOOK], user_msg="What is on the wire?")
        text, call = response.message.blocks
        assert text.text == "Let me see."
        assert (call.tool_name, call.tool_kwargs) == ("look", {"at": "the wire"})
        (selection,) = llm.get_tool_calls_from_response(response)
        assert (selection.tool_name, selection.tool_kwargs) == ("look", {"at": "the wire"})
        assert selection.tool_id == call.tool_call_id
        assert response.raw["finish_reason"] == "tool_calls"
        assert '"look"' in prompt_of(llm)

    async def test_streams_show_the_words_as_they_come_and_the_call_at_the_end(self, calling):
        llm = calling(CALL)
        pieces = list(llm.stream_chat_with_tools([LOOK], user_msg="What is on the wire?"))
        assert "".join(piece.delta for piece in pieces).strip() == "Let me see."
        assert llm.get_tool_calls_from_response(pieces[0], error_on_no_tool_call=False) == []
        assert [call.tool_name for call in llm.get_tool_calls_from_response(pieces[-1])] == ["look"]
        again = [piece async for piece in await llm.astream_chat_with_tools([LOOK], user_msg="What is there?")]
        assert again[-1].message.blocks == pieces[-1].message.blocks

    async def test_only_the_first_of_several_is_kept_unless_several_are_allowed(self, calling):
        llm = calling(TWO)
        one = llm.chat_with_tools([LOOK], chat_history=QUESTION)
        both = await llm.achat_with_tools([LOOK], chat_history=QUESTION, allow_parallel_tool_calls=True)
        assert [len(llm.get_tool_calls_from_response(response)) for response in (one, both)] == [1, 2]

    def test_a_result_goes_back_into_the_prompt(self, calling):
        llm = calling(CALL, "Two birds.")
        asked = llm.chat_with_tools([LOOK], chat_history=QUESTION).message
        (call,) = [block for block in asked.blocks if isinstance(block, ToolCallBlock)]
        result = ChatMessage(
            role="tool", content="two red birds", additional_kwargs={"tool_call_id": call.tool_call_id}
        )
        assert llm.chat_with_tools([LOOK], chat_history=[*QUESTION, asked, result]).message.content == "Two birds."
        prompt = prompt_of(llm)
        assert prompt.index("on the wire?") < prompt.index('"at": "the wire"') < prompt.index("two red birds")

    def test_no_call_where_one_is_needed_is_an_error(self, calling):
        llm = calling("No.")
        response = llm.chat_with_tools([LOOK], chat_history=QUESTION)
        with pytest.raises(ValueError, match="no tool"):
            llm.get_tool_calls_from_response(response)

    def test_predict_and_call_runs_the_tool(self, calling):
        assert calling(CALL).predict_and_call([LOOK], user_msg="Look").response == "two red birds at the wire"

    def test_a_long_description_is_no_matter(self, calling):
        tool = FunctionTool.from_defaults(look, description="Look. " * 300)
        assert calling(CALL).chat_with_tools([tool], chat_history=QUESTION).message.blocks[1].tool_name == "look"

    @pytest.mark.parametrize("how", ["chat_with_tools", "stream_chat_with_tools"])
    def test_traces_show_no_image_of_a_chat_with_tools(self, calling, guard, how):
        secrets = [canary("blue", number=5), canary("red", number=6)]
        llm = calling("x", guard=guard)
        with Tracer() as tracer:
            asked = getattr(llm, how)([LOOK], user_msg=ask(secrets[0]), chat_history=[ask(secrets[1], role="tool")])
            response = asked if how == "chat_with_tools" else list(asked)[-1]
        assert response.raw["finish_reason"] == "refusal"
        assert "What is this?" in tracer.said
        assert leaks(tracer.said, *secrets) == []

    def test_a_model_whose_template_knows_no_tools_says_so(self, calling, writing, with_tools):
        assert calling("x").metadata.is_function_calling_model
        with_tools.chat_template = "{{ messages[0].content }}"
        llm = writing("x")
        assert not llm.metadata.is_function_calling_model
        with pytest.raises(PromptError, match="tools"):
            llm.chat_with_tools([LOOK], chat_history=QUESTION)


class TestCallsThatHaveToBeMade:
    WANTED = '{"name": "look", "arguments": {"at": "the wire"}}'

    @pytest.mark.parametrize(
        "how",
        [
            {"tool_required": True},
            {"tool_choice": "required"},
            {"tool_choice": "any"},
            {"tool_choice": "look"},
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
        ],
        ids=str,
    )
    def test_are_made_whatever_the_model_would_say(self, calling, how):
        llm = calling(self.WANTED)
        response = llm.chat_with_tools([LOOK], chat_history=QUESTION, **how)
        (selection,) = llm.get_tool_calls_from_response(response)
        assert (selection.tool_name, selection.tool_kwargs) == ("look", {"at": "the wire"})
        assert (response.message.content, response.raw["finish_reason"]) == (None, "tool_calls")

    @pytest.mark.slow
    def test_are_made_by_a_real_model_with_arguments_of_the_tools_own_schema(self, smollm2, with_tools):
        llm = GuardAlignLVLM.from_lvlm(CalibratedLVLM(smollm2.model, with_tools, calibration=None))
        response = llm.chat_with_tools(
            [LOOK, SWITCH],
            user_msg="Switch the lamp in the kitchen on.",
            tool_choice="switch",
            temperature=0,
            max_tokens=60,
        )
        (selection,) = llm.get_tool_calls_from_response(response)
        assert selection.tool_name == "switch"
        assert Lamp.model_validate(selection.tool_kwargs)

    def test_are_not_shown_while_they_are_half_written(self, calling):
        pieces = list(calling(self.WANTED).stream_chat_with_tools([LOOK], chat_history=QUESTION, tool_required=True))
        assert [piece.delta for piece in pieces] == [""]
        assert pieces[0].message.blocks[0].tool_kwargs == {"at": "the wire"}

    def test_are_not_made_up_from_half_a_call(self, calling):
        llm = calling(self.WANTED)
        response = llm.chat_with_tools([LOOK], chat_history=QUESTION, tool_required=True, max_tokens=5)
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        assert response.raw["finish_reason"] == "length"

    def test_need_a_tool_that_is_there(self, calling):
        with pytest.raises(PromptError, match="names of the tools"):
            calling("x").chat_with_tools([LOOK], chat_history=QUESTION, tool_choice="listen")

    def test_no_tool_is_offered_if_none_is_to_be_called(self, calling):
        llm = calling("No tools here.")
        assert llm.chat_with_tools([LOOK], chat_history=QUESTION, tool_choice="none").message.content
        assert "Tools:" not in prompt_of(llm)


class TestAgents:
    @pytest.mark.parametrize("streaming", [True, False])
    async def test_an_agent_calls_its_tool_and_answers(self, calling, streaming):
        llm = calling(CALL, "There are two red birds.")
        agent = FunctionAgent(tools=[LOOK], llm=llm, streaming=streaming, system_prompt="Look before you answer.")
        handler = agent.run("What is on the wire?")
        events = [event async for event in handler.stream_events()]
        assert str(await handler) == "There are two red birds."
        (result,) = [event for event in events if isinstance(event, ToolCallResult)]
        assert result.tool_output.content == "two red birds at the wire"
        assert "two red birds at the wire" in prompt_of(llm)
        assert "Look before you answer." in prompt_of(llm, 0)
        deltas = "".join(event.delta for event in events if isinstance(event, AgentStream))
        assert ("two red birds." in deltas) is streaming


class TestObjects:
    def test_a_real_model_without_tools_answers_with_an_object(self, smollm2):
        llm = GuardAlignLVLM.from_lvlm(smollm2, max_tokens=40)
        city = llm.structured_predict(City, PromptTemplate("Name a city in {country}."), country="Norway")
        assert isinstance(city, City)
        assert city.name

    async def test_every_way_of_asking_gives_the_object(self, writing):
        llm, prompt = writing(OSLO), PromptTemplate("Name a city.")
        oslo = City(name="Oslo", is_large=False)
        assert llm.structured_predict(City, prompt) == oslo
        assert await llm.astructured_predict(City, prompt) == oslo
        partial = list(llm.stream_structured_predict(City, prompt))
        assert partial[-1] == oslo
        assert partial[0].name is None
        assert [one async for one in await llm.astream_structured_predict(City, prompt)][-1] == oslo

    async def test_so_does_a_structured_llm(self, writing):
        llm = writing(OSLO).as_structured_llm(City)
        oslo = City(name="Oslo", is_large=False)
        responses = [
            llm.chat(QUESTION),
            await llm.achat(QUESTION),
            list(llm.stream_chat(QUESTION))[-1],
            [one async for one in await llm.astream_chat(QUESTION)][-1],
            llm.complete("Name a city."),
        ]
        assert [response.raw for response in responses] == [oslo] * 5
        assert json.loads(responses[0].message.content) == oslo.model_dump()

    def test_an_answer_that_was_cut_short_is_no_object(self, writing):
        with pytest.raises((ValueError, ValidationError)):
            writing(OSLO).structured_predict(City, PromptTemplate("Name a city."), llm_kwargs={"max_tokens": 4})

    def test_tools_are_used_if_that_is_the_mode(self, calling):
        llm = calling('<tool_call>{"name": "City", "arguments": ' + OSLO + "}</tool_call>", OSLO)
        program = get_program_for_llm(City, PromptTemplate("Name a city."), llm, PydanticProgramMode.FUNCTION)
        program._tool_required = False
        assert program() == City(name="Oslo", is_large=False)
        llm.pydantic_program_mode = PydanticProgramMode.FUNCTION
        forced = calling('{"name": "City", "arguments": ' + OSLO + "}")
        forced.pydantic_program_mode = PydanticProgramMode.FUNCTION
        assert forced.structured_predict(City, PromptTemplate("Name a city.")) == City(name="Oslo", is_large=False)

    def test_a_refusal_is_no_object(self, small_vlm, guard):
        llm = GuardAlignLVLM.from_lvlm(small_vlm(guard=guard))
        with pytest.raises(UnsafeContentError) as caught:
            llm.as_structured_llm(City).chat([ask(canary("blue"))])
        assert caught.value.verdict.action == "block"

    def test_images_reach_the_model_and_no_trace(self, small_vlm, guard):
        secret = canary("red", number=5)
        llm = GuardAlignLVLM.from_lvlm(small_vlm.writing(OSLO, guard=guard))
        with Tracer() as tracer:
            value = llm.as_structured_llm(City).chat([ask(secret)]).raw
        assert value == City(name="Oslo", is_large=False)
        assert len(small_vlm.seen) == 1
        assert len(tracer.of(LLMStructuredPredictStartEvent)) == 1
        assert leaks(tracer.said, secret) == []

    def test_a_block_with_a_template_in_it_is_filled(self, writing):
        # The schema is put into the words of a message: words alone, or LlamaIndex would take it for placeholders.
        message = ChatMessage(blocks=[ImageBlock(image=b"{image}")])
        assert message.blocks[0].get_template_vars() == ["image"]
        assert writing(OSLO).structured_predict(City, PromptTemplate('Name {{"a": 1}} {what}.'), what="it").name
