"""Images on their way into a local model: which pixels it is given, and which it is not."""

from __future__ import annotations

import pytest
from llama_images import KINDS, ask, data_url, png, said, saved
from llama_index.core.base.llms.types import AudioBlock, ChatMessage, ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_seen import Tracer, same_pixels

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.errors import ImageDecodeError, PromptError
from guardalign_guardrails.testing.chats import canary, leaks, number_of, shows
from guardalign_guardrails.testing.colours import colour_guard, painted
from llama_index_guardalign import GuardAlignLVLM, GuardVerdictEvent

WAYS = ["chat", "stream_chat", "achat", "astream_chat"]


@pytest.fixture
def guarded(small_vlm, guard):
    return GuardAlignLVLM.from_lvlm(small_vlm(guard=guard))


async def answered(llm, way, messages):
    """The last response of any way of asking."""
    asked = getattr(llm, way)(messages)
    if way == "achat":
        return await asked
    if way == "stream_chat":
        return list(asked)[-1]
    return asked if way == "chat" else [piece async for piece in await asked][-1]


class TestWithoutAGuard:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_every_kind_of_block_reaches_the_processor(self, small_vlm, kind, tmp_path):
        llm = GuardAlignLVLM.from_lvlm(small_vlm())
        image = canary("red", number=1)
        response = llm.chat([ChatMessage(blocks=[TextBlock(text="Look"), kind(image, tmp_path)])])
        (seen,) = small_vlm.seen
        assert same_pixels(seen, image)
        assert response.raw["verdicts"] == []

    def test_several_come_in_order_with_the_words_between_them(self, small_vlm):
        llm = GuardAlignLVLM.from_lvlm(small_vlm())
        first, second, third = (canary("red", number=number) for number in (1, 2, 3))
        blocks = [ImageBlock(image=png(first)), TextBlock(text="and"), ImageBlock(url=data_url(second))]
        llm.chat([ChatMessage(blocks=blocks), said("yes", "assistant"), ask(third)])
        assert [number_of(image) for image in small_vlm.seen] == [1, 2, 3]

    def test_one_in_a_tools_result_reaches_it_too(self, small_vlm):
        llm = GuardAlignLVLM.from_lvlm(small_vlm())
        llm.chat([said("Look"), ask(canary("red", number=4), role="tool", words="a photo")])
        assert [number_of(image) for image in small_vlm.seen] == [4]

    def test_one_that_is_elsewhere_is_never_fetched_and_never_handed_on(self, small_vlm):
        llm = GuardAlignLVLM.from_lvlm(small_vlm())
        with pytest.raises(ImageDecodeError) as caught:
            llm.chat([ChatMessage(blocks=[ImageBlock(url="https://example.org/secret.png")])])
        assert caught.value.reason == "remote_reference"
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("block", [ImageBlock(image=b"{image}"), AudioBlock(audio=b"ID3"), ImageBlock()])
    def test_what_cannot_be_opened_is_a_clear_error(self, small_vlm, block):
        with pytest.raises(ImageDecodeError):
            GuardAlignLVLM.from_lvlm(small_vlm()).chat([ChatMessage(blocks=[block])])

    def test_a_model_of_words_says_that_it_is_one(self, smollm2):
        with pytest.raises(PromptError, match="text only"):
            GuardAlignLVLM.from_lvlm(smollm2).chat([ask(painted("red"))])


class TestBehindAGuard:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_the_model_is_given_the_mask_whatever_the_block(self, guarded, small_vlm, kind, tmp_path):
        response = guarded.chat([ChatMessage(blocks=[TextBlock(text="x"), kind(canary("red", number=7), tmp_path)])])
        (seen,) = small_vlm.seen
        assert (number_of(seen), shows(seen, "red")) == (7, False)
        assert [verdict["action"] for verdict in response.raw["verdicts"]] == ["mask"]

    def test_a_harmless_image_is_given_as_it_is(self, guarded, small_vlm):
        image = canary("white", number=2)
        guarded.chat([ask(image)])
        assert same_pixels(small_vlm.seen[0], image)

    @pytest.mark.parametrize("way", WAYS)
    async def test_a_blocked_one_is_refused_and_no_model_is_asked(self, guarded, small_vlm, guard, way):
        response = await answered(guarded, way, [ask(canary("blue"))])
        assert response.message.content == guard.policy.refusal
        assert response.raw["finish_reason"] == "refusal"
        assert response.raw["usage"]["total_tokens"] == 0
        assert [verdict["action"] for verdict in response.raw["verdicts"]] == ["block"]
        assert small_vlm.seen == []

    @pytest.mark.parametrize("way", WAYS)
    async def test_it_can_be_raised_instead(self, small_vlm, guard, way):
        llm = GuardAlignLVLM.from_lvlm(small_vlm(guard=guard, on_violation="raise"))
        with Tracer() as tracer, pytest.raises(UnsafeContentError) as caught:
            await answered(llm, way, [ask(canary("blue"))])
        assert caught.value.verdict.action == "block"
        assert [event.action for event in tracer.of(GuardVerdictEvent)] == ["block"]
        assert small_vlm.seen == []

    def test_or_the_model_answers_with_a_notice_in_its_place(self, small_vlm, guard):
        lvlm = small_vlm(guard=guard, on_violation="notice")
        prompts = []
        lvlm.model.register_forward_pre_hook(lambda _, __, given: prompts.append(given["input_ids"]), with_kwargs=True)
        GuardAlignLVLM.from_lvlm(lvlm).chat([ask(canary("blue"))])
        assert NOTICE in lvlm.processor.tokenizer.decode(prompts[0][0])
        assert small_vlm.seen == []

    def test_one_of_an_earlier_turn_or_a_tool_is_a_notice_and_the_chat_goes_on(self, guarded, small_vlm):
        chat = [ask(canary("blue")), said("no", "assistant"), said("And this?"), ask(canary("blue"), role="tool")]
        response = guarded.chat([*chat, said("Well?")])
        assert response.raw["finish_reason"] != "refusal"
        assert [verdict["source"] for verdict in response.raw["verdicts"]] == ["history", "tool"]
        assert small_vlm.seen == []

    def test_a_file_that_changes_later_is_the_one_that_was_checked(self, guarded, small_vlm, tmp_path):
        block = ImageBlock(path=saved(canary("white", number=1), tmp_path))
        stream = guarded.stream_chat([ChatMessage(blocks=[block])])
        next(stream)
        saved(canary("blue"), tmp_path)
        list(stream)
        assert [number_of(image) for image in small_vlm.seen] == [1]

    def test_what_cannot_be_opened_is_refused_by_default_and_the_policys_to_decide(self, small_vlm, cache_dir):
        message = ChatMessage(blocks=[TextBlock(text="Look"), ImageBlock(url="https://example.org/x.png")])
        llm = GuardAlignLVLM.from_lvlm(small_vlm(guard=colour_guard(cache_dir)))
        assert llm.chat([message]).raw["finish_reason"] == "refusal"
        masking = colour_guard(cache_dir, failure={"uninspectable": "mask"})
        response = GuardAlignLVLM.from_lvlm(small_vlm(guard=masking)).chat([message])
        assert response.raw["verdicts"][0]["uninspectable"] == "remote_reference"
        assert set(small_vlm.seen[0].get_flattened_data()) == {(0, 0, 0)}

    @pytest.mark.parametrize("way", WAYS)
    async def test_nobody_who_traces_is_shown_an_image(self, guarded, way, tmp_path):
        secrets = [canary("red", number=1), canary("white", number=2), canary("blue", number=3)]
        blocks = [ImageBlock(image=png(secrets[0])), ImageBlock(url=data_url(secrets[1]))]
        chat = [
            ChatMessage(blocks=[KINDS["a citable source"](secrets[2], tmp_path)]),
            said("no", "assistant"),
            ChatMessage(blocks=[TextBlock(text="Look"), *blocks]),
        ]
        with Tracer() as tracer:
            guarded.callback_manager = CallbackManager([tracer.callbacks])
            await answered(guarded, way, chat)
        assert "Look" in tracer.said
        assert leaks(tracer.said, *secrets) == []
        (event,) = tracer.of(GuardVerdictEvent)
        assert (event.component, event.action) == ("guardalign_multi_modal_llm", "block")
        assert [verdict["action"] for verdict in event.verdicts] == ["block", "mask", "allow"]
        assert event.span_id.startswith(f"GuardAlignLVLM.{way}")

    def test_the_chat_is_left_as_it_was(self, guarded):
        chat = [ask(canary("red"), canary("blue"))]
        before = [message.model_dump() for message in chat]
        guarded.chat(chat)
        assert [message.model_dump() for message in chat] == before
