"""A guarded LLM: no way around the guard, what each violation means, and what others read of it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from llama_images import KINDS, ask, data_url, png, said, saved
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import AudioBlock, ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import ImageDocument
from llama_index.core.tools import FunctionTool
from llama_models import WORDS, RecordingLLM, WordsLLM, as_json, texts_of, urls_of
from llama_nodes import b64
from llama_seen import Tracer, same_pixels
from pydantic import BaseModel

from guardalign_guardrails import EncoderUnavailable, GuardSettings, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.testing.chats import canary, leaks, number_of, shows
from guardalign_guardrails.testing.colours import colour_guard, colour_policy
from llama_index_guardalign import GuardedLLM, GuardVerdictEvent
from llama_index_guardalign.chat.refusal import RECORD_KEY

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
YELLOW, GREEN = canary("yellow", number=4), canary("green", number=5)
WAYS = ["chat", "stream_chat", "achat", "astream_chat"]
TOOL_WAYS = [f"{way}_with_tools" for way in WAYS]
PREFIX, REFUSAL, UNCHECKED = "Be careful.", colour_policy().refusal, colour_policy().refusal_unchecked
EVERY_WAY = pytest.mark.parametrize("way", [*WAYS, *TOOL_WAYS])


def look() -> str:
    """Look at it."""
    return "a bird"


LOOK = FunctionTool.from_defaults(look)


@pytest.fixture
def llm():
    return RecordingLLM()


@pytest.fixture
def guarded(llm, guard):
    return GuardedLLM(llm=llm, guard=guard)


async def answered(llm, way, messages, **options):
    """The last response of any way of asking."""
    if way in TOOL_WAYS:
        asked = getattr(llm, way)([LOOK], chat_history=list(messages), **options)
    else:
        asked = getattr(llm, way)(messages, **options)
    if way.startswith("astream"):
        return [piece async for piece in await asked][-1]
    if way.startswith("achat"):
        return await asked
    return list(asked)[-1] if way.startswith("stream") else asked


def findings_in(response) -> list[str]:
    return [verdict["finding"] for verdict in response.additional_kwargs[RECORD_KEY]["verdicts"]]


class TestEveryWayIn:
    @EVERY_WAY
    async def test_a_mask_reaches_the_llm_and_the_prefix_with_it(self, guarded, llm, way):
        response = await answered(guarded, way, [said("Answer in one word.", "system"), ask(RED)], temperature=0)
        assert response.message.content == "".join(WORDS)
        (image,) = llm.images
        assert (number_of(image), shows(image, "red")) == (1, False)
        assert texts_of(llm.received[0])[0] == f"{PREFIX}\n\nAnswer in one word."
        assert llm.options[0]["temperature"] == 0

    @EVERY_WAY
    async def test_a_blocked_image_is_refused_and_no_llm_is_asked(self, guarded, llm, way):
        response = await answered(guarded, way, [ask(BLUE)])
        assert response.message.content == REFUSAL
        assert response.raw["finish_reason"] == "content_filter"
        assert response.additional_kwargs[RECORD_KEY]["action"] == "block"
        assert llm.received == []
        if "stream" in way:
            assert response.delta == REFUSAL

    @EVERY_WAY
    async def test_it_can_be_raised_or_answered_with_a_notice_instead(self, llm, guard, way):
        with Tracer() as tracer, pytest.raises(UnsafeContentError):
            await answered(GuardedLLM(llm=llm, guard=guard, on_violation="raise"), way, [ask(BLUE)])
        assert [event.action for event in tracer.of(GuardVerdictEvent)] == ["block"]
        assert llm.received == []
        await answered(GuardedLLM(llm=llm, guard=guard, on_violation="notice"), way, [ask(BLUE)])
        assert texts_of(llm.received[0]) == ["What is this?", NOTICE]

    @EVERY_WAY
    async def test_a_routed_chat_is_answered_by_the_other_llm_with_a_notice(self, llm, guard, way):
        careful = RecordingLLM(answer="careful")
        guarded = GuardedLLM(llm=llm, guard=guard, route_to=careful)
        assert (await answered(guarded, way, [ask(YELLOW)])).message.content == "careful"
        assert NOTICE in texts_of(careful.received[0])
        assert llm.received == []
        assert (await answered(GuardedLLM(llm=llm, guard=guard), way, [ask(YELLOW)])).message.content == REFUSAL

    @EVERY_WAY
    async def test_words_are_passed_on_as_the_very_same_messages(self, llm, way):
        unloaded = GuardedLLM(llm=llm, guard=GuardSettings(encoder="transformers:no/such-encoder"))
        chat = [said("Be brief.", "system"), said("Hello"), said("Hi", "assistant"), said("Bye")]
        await answered(unloaded, way, chat)
        assert all(new is old for new, old in zip(llm.received[0], chat, strict=True))

    @EVERY_WAY
    async def test_a_guard_that_cannot_work_lets_nothing_pass(self, llm, way):
        broken = GuardedLLM(
            llm=llm, guard=GuardSettings(policy=colour_policy(), encoder="transformers:no/such-encoder")
        )
        with pytest.raises(EncoderUnavailable):
            await answered(broken, way, [ask(WHITE)])
        assert llm.received == []

    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_every_kind_of_block_is_masked(self, guarded, llm, kind, tmp_path):
        guarded.chat([ChatMessage(blocks=[TextBlock(text="x"), kind(RED, tmp_path)])])
        (image,) = llm.images
        assert (number_of(image), shows(image, "red")) == (1, False)
        assert urls_of(llm.received[0]) == []

    def test_every_message_is_looked_at_and_only_the_users_turn_can_be_refused(self, guarded, llm):
        chat = [
            ask(RED, role="system"),
            ask(BLUE),
            ask(BLUE, role="assistant"),
            ask(BLUE, role="tool"),
            said("And now?"),
        ]
        assert guarded.chat(chat).message.content == "".join(WORDS)
        assert [shows(image, "red") for image in llm.images] == [False]
        assert texts_of(llm.received[0]).count(NOTICE) == 3

    def test_images_beside_the_blocks_do_not_pass(self, guarded, llm):
        message = ChatMessage(
            content="Look",
            additional_kwargs={"images": [ImageDocument(image=b64(RED))], "thumbnail": png(RED), "id": "x"},
        )
        guarded.chat([message])
        (given,) = llm.received[0][1:]
        assert "images" not in given.additional_kwargs
        assert given.additional_kwargs["id"] == "x"
        assert given.additional_kwargs["thumbnail"] != png(RED)
        assert not any(shows(image, "red") for image in llm.images)
        assert message.additional_kwargs["thumbnail"] == png(RED)

    def test_images_beside_a_prompt_are_an_error(self, guarded):
        with pytest.raises(SettingsError, match="blocks"):
            guarded.complete("x", image_documents=[ImageDocument(image=b64(RED))])

    @pytest.mark.parametrize("write", [b64, lambda image: f"data:image/png;base64,{b64(image)}"])
    async def test_a_prompt_that_is_an_image_is_an_error(self, guarded, llm, write):
        prompt = write(RED)
        for complete in (guarded.complete, lambda text: list(guarded.stream_complete(text))):
            with pytest.raises(SettingsError, match="block"):
                complete(prompt)
        for acomplete in (guarded.acomplete, guarded.astream_complete):
            with pytest.raises(SettingsError, match="block"):
                await acomplete(prompt)
        assert llm.prompts == []

    async def test_prompts_are_passed_on(self, guarded, llm):
        texts = [
            guarded.complete("a").text,
            next(iter(guarded.stream_complete("b"))).text,
            (await guarded.acomplete("c")).text,
            [piece async for piece in await guarded.astream_complete("d")][-1].text,
        ]
        assert texts == ["done"] * 4
        assert llm.prompts == ["a", "b", "c", "d"]

    def test_the_input_is_left_as_it_was(self, guarded, tmp_path):
        chat = [ask(RED, BLUE), ChatMessage(blocks=[ImageBlock(path=saved(RED, tmp_path))])]
        before = [message.model_dump() for message in chat]
        guarded.chat(chat)
        assert [message.model_dump() for message in chat] == before


class TestBytesSentAreBytesChecked:
    def test_a_file_that_changes_in_between_is_the_one_that_was_checked(self, guarded, llm, tmp_path, monkeypatch):
        block = ImageBlock(path=saved(WHITE, tmp_path))
        check = guarded.guard.guard.checking

        def swapped(*args, **kwargs):
            saved(BLUE, tmp_path)
            return check(*args, **kwargs)

        monkeypatch.setattr(guarded.guard.guard, "checking", swapped)
        guarded.chat([ChatMessage(blocks=[block])])
        assert same_pixels(llm.images[0], WHITE)

    def test_a_url_is_fetched_once_and_what_was_fetched_is_sent(self, llm, cache_dir):
        answers = iter([png(WHITE), png(BLUE)])

        class Server:
            """Answers otherwise every time."""

            asked = 0

            def fetch_all(self, urls, max_bytes):
                self.asked += 1
                return {url: next(answers) for url in urls}

        guard = colour_guard(cache_dir)
        guard.fetcher = Server()
        GuardedLLM(llm=llm, guard=guard).chat([ChatMessage(blocks=[ImageBlock(url="https://example.org/x.png")])])
        assert guard.fetcher.asked == 1
        assert urls_of(llm.received[0]) == []
        assert same_pixels(llm.images[0], WHITE)

    def test_a_url_that_is_not_fetched_is_no_image_that_passes(self, guarded, llm):
        message = ChatMessage(blocks=[ImageBlock(url="https://example.org/x.png")])
        assert guarded.chat([message]).message.content == UNCHECKED
        assert guarded.chat([message, said("no", "assistant"), said("ok")]).message.content == "".join(WORDS)
        assert urls_of(llm.received[0]) == []

    def test_a_data_url_that_is_harmless_stays_the_very_same_message(self, guarded, llm):
        message = ChatMessage(blocks=[ImageBlock(url=data_url(WHITE))])
        guarded.chat([message])
        assert llm.received[0][0] is message

    def test_what_nobody_can_look_at_is_decided_by_the_policy(self, guarded, llm, cache_dir):
        message = ChatMessage(blocks=[AudioBlock(audio=b"ID3"), ImageBlock(image=b"{image}")])
        refused = guarded.chat([message])
        assert refused.message.content == UNCHECKED
        assert findings_in(refused) == ["unchecked", "unchecked"]
        lenient = GuardedLLM(llm=llm, guard=colour_guard(cache_dir, failure={"uninspectable": "allow"}))
        passed = lenient.chat([message])
        assert llm.received[0][0].blocks == message.blocks
        assert findings_in(passed) == ["unchecked", "unchecked"]
        assert [verdict["action"] for verdict in passed.additional_kwargs[RECORD_KEY]["verdicts"]] == ["allow"] * 2

    def test_monitoring_changes_nothing_and_tells(self, llm, cache_dir, tmp_path):
        monitored = GuardedLLM(llm=llm, guard=colour_guard(cache_dir, mode="monitor"))
        message = ChatMessage(blocks=[ImageBlock(path=saved(BLUE, tmp_path))])
        response = monitored.chat([message])
        assert llm.received[0][0] is message
        assert response.additional_kwargs[RECORD_KEY]["verdicts"][0]["proposed"] == "block"


class TestThePrefix:
    def test_it_is_there_once_however_many_turns_there_are(self, guarded, llm):
        chat = [ask(GREEN)]
        guarded.chat(chat)
        guarded.chat([*llm.received[0], said("ok", "assistant"), ask(GREEN)])
        assert [message.role for message in llm.received[1]] == ["system", "user", "assistant", "user"]
        assert "".join(texts_of(llm.received[1])).count(PREFIX) == 1

    def test_it_may_go_to_the_user(self, llm, guard):
        GuardedLLM(llm=llm, guard=guard, placement="user").chat([said("Be brief.", "system"), ask(GREEN)])
        assert texts_of(llm.received[0]) == ["Be brief.", f"{PREFIX}\n\nWhat is this?"]

    def test_it_goes_by_itself_to_the_user_of_an_llm_that_takes_no_system_message(self, guard):
        llm = RecordingLLM(name="google/gemma-2-9b-it")
        GuardedLLM(llm=llm, guard=guard).chat([ask(GREEN)])
        GuardedLLM(llm=llm, guard=guard, placement="system").chat([ask(GREEN)])
        assert texts_of(llm.received[0]) == [f"{PREFIX}\n\nWhat is this?"]
        assert texts_of(llm.received[1]) == [PREFIX, "What is this?"]

    def test_it_is_a_system_message_as_the_llm_calls_it(self, guard):
        llm = RecordingLLM(system_role=MessageRole.DEVELOPER)
        GuardedLLM(llm=llm, guard=guard).chat([ask(GREEN)])
        assert llm.received[0][0].role == MessageRole.DEVELOPER

    def test_it_is_always_there_if_the_policy_says_so(self, llm, cache_dir):
        always = GuardedLLM(llm=llm, guard=colour_guard(cache_dir, prefix_when="always"))
        always.chat([said("Hello")])
        always.complete("Hello")
        assert texts_of(llm.received[0]) == [PREFIX, "Hello"]
        assert llm.prompts == [f"{PREFIX}\n\nHello"]


class City(BaseModel):
    """A city."""

    name: str


class TestToolsAndObjects:
    def test_tools_are_offered_by_the_llm_that_answers(self, llm, guard):
        careful = RecordingLLM()
        guarded = GuardedLLM(llm=llm, guard=guard, route_to=careful)
        guarded.chat_with_tools([LOOK], user_msg="Look", chat_history=[said("Hi")], tool_required=True, verbose=False)
        guarded.chat_with_tools([LOOK], user_msg=ask(YELLOW))
        assert llm.options[0] == {"tools": ["look"], "tool_required": True}
        assert texts_of(llm.received[0]) == ["Hi", "Look"]
        assert careful.options[0]["tools"] == ["look"]

    def test_calls_are_read_and_run_as_the_llm_does(self, guard):
        llm = RecordingLLM(call="look")
        guarded = GuardedLLM(llm=llm, guard=guard)
        response = guarded.chat_with_tools([LOOK], user_msg="Look")
        assert [call.tool_name for call in guarded.get_tool_calls_from_response(response)] == ["look"]
        assert guarded.predict_and_call([LOOK], user_msg="Look").response == "a bird"

    @pytest.mark.parametrize("streaming", [True, False])
    async def test_an_agent_with_an_image_tool_is_guarded(self, guard, streaming):
        def photo() -> list:
            """Take a photo."""
            return [TextBlock(text="a photo"), ImageBlock(image=png(canary("red", number=8)))]

        llm = RecordingLLM(call="photo")
        agent = FunctionAgent(
            tools=[FunctionTool.from_defaults(photo)], llm=GuardedLLM(llm=llm, guard=guard), streaming=streaming
        )
        assert str(await agent.run(user_msg=ask(RED))) == "".join(WORDS)
        assert [number_of(image) for image in llm.images] == [1, 1, 8]
        assert not any(shows(image, "red") for image in llm.images)

    async def test_a_plain_llm_is_no_function_calling_one(self, guard):
        guarded = GuardedLLM(llm=WordsLLM(), guard=guard)
        assert not guarded.metadata.is_function_calling_model
        assert isinstance(guarded, FunctionCallingLLM)
        with pytest.raises(ValueError, match="FunctionCallingLLM"):
            await FunctionAgent(tools=[LOOK], llm=guarded).run("Look")
        for knowing, other in ((WordsLLM(), None), (RecordingLLM(), WordsLLM())):
            with pytest.raises(SettingsError, match="WordsLLM"):
                GuardedLLM(llm=knowing, guard=guard, route_to=other).chat_with_tools([LOOK], user_msg="Look")

    async def test_every_way_to_an_object_is_guarded(self, guard):
        llm = RecordingLLM(answer=as_json(name="Oslo"))
        guarded = GuardedLLM(llm=llm, guard=guard)
        llm.pydantic_program_mode = "llm"
        prompt = ChatPromptTemplate(message_templates=[ask(RED)])
        oslo = City(name="Oslo")
        structured = guarded.as_structured_llm(City)
        assert guarded.structured_predict(City, prompt) == oslo
        assert await guarded.astructured_predict(City, prompt) == oslo
        assert list(guarded.stream_structured_predict(City, prompt))[-1] == oslo
        assert [one async for one in await guarded.astream_structured_predict(City, prompt)][-1] == oslo
        assert structured.chat([ask(RED)]).raw == oslo
        assert (await structured.achat([ask(RED)])).raw == oslo
        assert len(llm.images) == 6
        assert not any(shows(image, "red") for image in llm.images)
        with pytest.raises(UnsafeContentError):
            structured.chat([ask(BLUE)])

    def test_the_wrapped_llms_system_prompt_counts_once(self, guard):
        llm = RecordingLLM(system_prompt="Be brief.")
        guarded = GuardedLLM(llm=llm, guard=guard)
        guarded.predict(PromptTemplate("Say {what}."), what="it")
        assert texts_of(llm.received[0]) == ["Be brief.", "Say it."]
        llm.answer, llm.pydantic_program_mode = as_json(name="Oslo"), "llm"
        guarded.structured_predict(City, PromptTemplate("A city."))
        assert [text.count("Be brief.") for text in texts_of(llm.received[1])] == [1, 0]


class TestWhatOthersRead:
    def test_metadata_is_the_wrapped_llms(self, guarded, llm):
        assert guarded.metadata == llm.metadata
        assert "multi" in guarded.class_name()

    def test_it_is_dumped_with_policy_and_llm(self, guarded):
        data = json.loads(guarded.to_json())
        assert data["llm"]["class_name"] == "recording_llm"
        assert data["guard"]["policy"]["name"] == "colours"

    def test_a_callback_manager_goes_to_the_llm_that_is_called(self, llm, guard):
        careful = RecordingLLM()
        guarded = GuardedLLM(llm=llm, guard=guard, route_to=careful)
        guarded.callback_manager = manager = CallbackManager([])
        assert llm.callback_manager is careful.callback_manager is manager

    @EVERY_WAY
    async def test_no_span_event_or_callback_shows_what_was_taken_out(self, guarded, llm, way):
        chat = [ask(BLUE), said("no", "assistant"), ask(RED, WHITE)]
        with Tracer() as tracer:
            guarded.callback_manager = CallbackManager([tracer.callbacks])
            await answered(guarded, way, chat)
            await answered(guarded, way, [ask(BLUE)])
        told = tracer.said
        assert leaks(told, RED, BLUE) != []
        assert [form for form in leaks(told, RED) if form.startswith("image")] == []
        assert [form for form in leaks(told, BLUE) if form.startswith("image")] == []
        first, second = tracer.of(LLMChatStartEvent)
        assert any(isinstance(block, ImageBlock) for message in first.messages for block in message.blocks)
        assert not any(isinstance(block, ImageBlock) for message in second.messages for block in message.blocks)
        assert [event.action for event in tracer.of(GuardVerdictEvent)] == ["block", "block"]

    async def test_it_does_not_block_the_event_loop(self, guarded, monkeypatch):
        real = guarded.guard.guard.checking

        def slow(*args, **kwargs):
            time.sleep(0.3)
            return real(*args, **kwargs)

        monkeypatch.setattr(guarded.guard.guard, "checking", slow)
        task = asyncio.create_task(guarded.achat([ask(RED)]))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 5

    def test_it_takes_the_mock_of_llama_index_too(self, guard):
        guarded = GuardedLLM(llm=MockLLM(is_chat_model=True), guard=guard)
        assert "What is this?" in guarded.chat([ask(WHITE)]).message.content
