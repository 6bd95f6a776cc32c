"""What a guard in front of a model lets through, and in what shape."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
from chat_images import (
    MASKED,
    Listener,
    RecordingModel,
    ask,
    blocks,
    calls,
    data_url,
    image_of,
    openai,
    text,
    v1,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, ImagePromptValue, StringPromptValue

from guardalign_guardrails import EncoderUnavailable, GuardSettings, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import GuardReport, ImageGuard


class TestWhatComesBack:
    @pytest.mark.parametrize(
        "value",
        [
            "plain words",
            "",
            [],
            [HumanMessage("hello"), AIMessage("hi")],
            [("system", "be brief"), ("human", "hello")],
            [{"role": "user", "content": "hello"}],
            ("hello", "there"),
            StringPromptValue(text="hello"),
            ChatPromptValue(messages=[HumanMessage("hello")]),
            ask(painted()),
            tuple(ask(painted("white"))),
            ChatPromptValue(messages=ask(painted())),
        ],
    )
    def test_an_input_without_findings_comes_back_as_the_very_same_object(self, guard, call, value):
        assert call(guard, "invoke", value) is value

    def test_a_list_comes_back_as_a_list_with_only_the_changed_message_new(self, guard, call):
        messages = [SystemMessage("Be careful."), *ask(painted()), AIMessage("white"), *ask(painted("red"))]
        out = call(guard, "invoke", messages)
        assert type(out) is list
        assert [new is old for new, old in zip(out, messages, strict=True)] == [True, True, True, False]

    def test_a_tuple_comes_back_as_a_tuple_and_message_likes_stay_as_they_were_written(self, guard):
        value = (("human", "hello"), {"role": "user", "content": [v1(painted("blue"))]})
        out = guard.invoke(value)
        assert type(out) is tuple
        assert out[0] is value[0]
        assert isinstance(out[1], HumanMessage)

    def test_a_prompt_value_comes_back_as_a_prompt_value(self, guard, call):
        value = ChatPromptValue(messages=ask(painted("red")))
        out = call(guard, "invoke", value)
        assert type(out) is ChatPromptValue
        assert out.messages[1].content[1] != value.messages[0].content[1]

    def test_an_image_prompt_value_is_not_taken_for_an_empty_one(self, guard):
        out = guard.invoke(ImagePromptValue(image_url={"url": data_url(painted("red")), "detail": "low"}))
        prefix, block = blocks(out.to_messages())
        assert (prefix, block["detail"], block.keys()) == ("Be careful.", "low", {"url", "detail"})
        assert image_of({"image_url": block}).tobytes() == MASKED.tobytes()

    def test_the_input_is_never_changed(self, guard, call):
        messages = ask(*(painted(colour) for colour in ("red", "blue", "green", "magenta", "yellow")))
        before = copy.deepcopy(messages)
        call(guard, "invoke", messages)
        assert messages == before

    @pytest.mark.parametrize("value", [None, 5, {"image": "x"}, b"bytes", HumanMessage("alone")])
    def test_anything_else_is_a_type_error(self, guard, call, value):
        with pytest.raises(TypeError, match=type(value).__name__):
            call(guard, "invoke", value)

    def test_an_unreadable_message_is_an_error_that_quotes_nothing(self, guard):
        with pytest.raises(ValueError, match="chat messages") as caught:
            guard.invoke([{"rolle": "user", "content": "SECRET"}])
        assert "SECRET" not in str(caught.value)
        assert caught.value.__context__ is None


class TestActions:
    def test_an_unsafe_region_is_masked_to_the_pixel_in_its_own_dialect(self, guard, call):
        first, second = v1(painted("red"), id="a"), openai(painted("red"), cache_control={"type": "ephemeral"})
        out = call(guard, "invoke", [HumanMessage([text("look"), first, second], id="m", name="n")])
        prefix, message = out
        assert prefix == SystemMessage("Be careful.")
        assert (message.id, message.name, message.content[0]) == ("m", "n", text("look"))
        assert message.content[1].keys() == first.keys()
        assert message.content[2]["image_url"]["detail"] == "low"
        assert message.content[2]["cache_control"] == {"type": "ephemeral"}
        for block in message.content[1:]:
            assert image_of(block).tobytes() == MASKED.tobytes()

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    def test_a_blocked_or_unrouted_image_is_not_in_what_the_model_receives(self, guard, colour):
        model = RecordingModel.make()
        (guard | model).invoke(ask(painted(colour), painted()))
        assert blocks(model.received[0]) == [text("What is this?"), text(NOTICE), v1(painted())]

    def test_a_flagged_image_passes_and_is_put_on_record(self, guard):
        messages = ask(painted("magenta"))
        (out,) = guard.invoke(messages)
        assert out.content is messages[0].content
        assert out.response_metadata["guardalign"][0]["action"] == "flag"

    def test_the_prefix_goes_into_a_new_system_message_or_to_the_head_of_the_first(self, guard):
        assert guard.invoke(ask(painted("green")))[0] == SystemMessage("Be careful.")
        out = guard.invoke([SystemMessage("Be brief."), *ask(painted("green"))])
        assert [m.content for m in out[:-1]] == ["Be careful.\n\nBe brief."]
        out = guard.invoke([SystemMessage([text("Be brief.")]), *ask(painted("green"))])
        assert out[0].content == [text("Be careful."), text("Be brief.")]

    @pytest.mark.parametrize("system", [[], [SystemMessage("Be brief.")], [SystemMessage([text("Be brief.")])]])
    @pytest.mark.parametrize("colour", ["green", "red", "blue", "magenta"])
    def test_guarding_the_output_again_changes_nothing(self, guard, call, system, colour):
        once = call(guard, "invoke", [*system, *ask(painted(colour))])
        assert call(guard, "invoke", once) is once

    def test_the_prefix_is_not_repeated_over_the_turns_of_a_chat(self, guard):
        turn = guard.invoke(ask(painted("green")))
        turn = guard.invoke([*turn, AIMessage("green"), *ask(painted("green", shade=9))])
        assert [m.content for m in turn if isinstance(m, SystemMessage)] == ["Be careful."]

    def test_images_of_tools_models_and_earlier_turns_are_checked_by_their_source(self, cache_dir):
        never = {"thresholds": {"kind": "score"}, "at_most": "flag"}
        guard = ImageGuard(colour_guard(cache_dir, sources={"history": never}))
        image = [v1(painted("blue"))]
        messages = [HumanMessage(image), AIMessage(image), ToolMessage(image, tool_call_id="t"), HumanMessage(image)]
        report = guard.inspect(messages)
        assert [v.source for v in report.verdicts] == ["history", "generated", "tool", "user"]
        assert [v.action for v in report.verdicts] == ["flag", "block", "block", "block"]
        assert blocks(report.output) == [*image, text(NOTICE), text(NOTICE), text(NOTICE)]

    def test_a_nested_image_is_replaced_where_it_is(self, guard):
        result = {"type": "tool_result", "tool_use_id": "t", "content": [text("shot"), v1(painted("blue"))]}
        (out,) = guard.invoke([HumanMessage([result])])
        assert out.content == [{**result, "content": [text("shot"), text(NOTICE)]}]

    def test_monitor_mode_changes_no_content_and_records_what_would_have_been_done(self, cache_dir):
        guard = ImageGuard(colour_guard(cache_dir, mode="monitor"))
        url = {"type": "image", "url": "https://example.org/a.png"}
        messages = [HumanMessage([*map(v1, map(painted, ("blue", "red", "green"))), url])]
        (out,) = guard.invoke(messages)
        assert out.content is messages[0].content
        record = out.response_metadata["guardalign"]
        assert [(r["action"], r["proposed"]) for r in record] == [
            ("allow", proposed) for proposed in ("block", "mask", "prefix", "block")
        ]


class TestRaising:
    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    def test_a_block_can_be_an_error_that_carries_the_verdict(self, cache_dir, call, colour):
        guard = ImageGuard(guard=colour_guard(cache_dir), on_violation="raise")
        with pytest.raises(UnsafeContentError) as caught:
            call(guard, "invoke", ask(painted(colour)))
        assert caught.value.verdict.category == f"{colour}_things"

    def test_a_chat_goes_on_after_a_blocked_image(self, cache_dir, call):
        guard = ImageGuard(guard=colour_guard(cache_dir), on_violation="raise")
        used = AIMessage("", tool_calls=[{"name": "camera", "args": {}, "id": "1"}])
        shown = ToolMessage([openai(painted("blue", shade=1))], tool_call_id="1")
        chat = [*ask(painted("blue")), AIMessage("No."), HumanMessage("Go on."), used, shown]
        out = call(guard, "invoke", chat)
        assert [message.type for message in out] == ["human", "ai", "human", "ai", "tool"]
        assert [blocks([out[place]])[-1] for place in (0, 4)] == [text(NOTICE)] * 2

    def test_only_blocked_inputs_of_a_batch_are_errors(self, cache_dir, call):
        guard = ImageGuard(guard=colour_guard(cache_dir), on_violation="raise")
        inputs = [ask(painted()), ask(painted("blue")), 5, "words"]
        out = call(guard, "batch", inputs, return_exceptions=True)
        assert out[0] is inputs[0]
        assert isinstance(out[1], UnsafeContentError)
        assert [type(item) for item in out[2:]] == [TypeError, str]
        with pytest.raises(UnsafeContentError):
            call(guard, "batch", inputs[:2])

    def test_inspect_reports_and_never_raises(self, cache_dir, call):
        guard = ImageGuard(guard=colour_guard(cache_dir), on_violation="raise")
        report = call(guard, "inspect", ask(painted("magenta"), painted("blue"), painted()))
        assert isinstance(report, GuardReport)
        assert report.action == "block"
        assert [v.action for v in report.verdicts] == ["flag", "block", "allow"]

    def test_a_guard_that_cannot_work_is_an_error_for_every_input(self, cache_dir, call):
        guard = ImageGuard(GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir))
        with pytest.raises(EncoderUnavailable):
            call(guard, "invoke", ask(painted()))
        out = call(guard, "batch", [ask(painted()), "words"], return_exceptions=True)
        assert [type(item) for item in out] == [EncoderUnavailable] * 2

    def test_words_alone_need_no_encoder(self, cache_dir):
        assert (
            ImageGuard(GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir)).invoke("words") == "words"
        )


class TestThePrefix:
    @pytest.mark.parametrize(
        ("when", "value", "is_given"),
        [
            ("finding", "words", False),
            ("finding", ask(painted("magenta")), False),
            ("finding", ask(painted("green")), True),
            ("finding", ask(painted("red")), True),
            ("finding", ask(painted("blue")), False),
            ("image", [HumanMessage("words")], False),
            ("image", ask(painted()), True),
            ("always", [HumanMessage("words")], True),
        ],
    )
    def test_it_is_given_when_the_policy_says(self, cache_dir, when, value, is_given):
        guard = ImageGuard(colour_guard(cache_dir, prefix_when=when))
        out = guard.invoke(value)
        assert (isinstance(out, list) and out[0] == SystemMessage("Be careful.")) == is_given
        if not is_given and when != "finding":
            assert out is value

    def test_plain_text_stays_plain_text_and_has_it_once(self, cache_dir, call):
        guard = ImageGuard(colour_guard(cache_dir, prefix_when="always"))
        once = call(guard, "invoke", "words")
        assert (once, guard.invoke(once)) == ("Be careful.\n\nwords",) * 2
        prompt = guard.invoke(StringPromptValue(text="words"))
        assert prompt == StringPromptValue(text="Be careful.\n\nwords")

    def test_it_can_go_before_the_users_words_for_models_without_a_system_message(self, cache_dir):
        guard = ImageGuard(colour_guard(cache_dir), placement="user")
        turn = guard.invoke(ask(painted("green")))
        assert [block["text"] for block in turn[0].content[:2]] == ["Be careful.", "What is this?"]
        turn = guard.invoke([*turn, AIMessage("green"), *ask(painted("green", shade=9))])
        assert [block for block in blocks(turn) if block == text("Be careful.")] == [text("Be careful.")]

    @pytest.mark.parametrize("when", ["finding", "image", "always"])
    def test_monitor_mode_gives_none(self, cache_dir, when):
        guard = ImageGuard(colour_guard(cache_dir, prefix_when=when, mode="monitor"))
        assert blocks(guard.invoke(ask(painted("green")))) == blocks(ask(painted("green")))
        assert guard.invoke("words") == "words"


class TestArtifacts:
    def tool_message(self) -> ToolMessage:
        return ToolMessage("done", tool_call_id="t", artifact={"shot": painted("red"), "log": ["a", 1, object]})

    def test_they_are_left_alone_unless_asked_for(self, guard):
        messages = [self.tool_message()]
        assert guard.invoke(messages) is messages

    def test_images_in_them_are_masked_and_everything_else_is_kept(self, cache_dir, call):
        guard = ImageGuard(colour_guard(cache_dir), artifacts=True)
        message = self.tool_message()
        _, out = call(guard, "invoke", [message])
        assert out.artifact["shot"].tobytes() == MASKED.tobytes()
        assert out.artifact["log"] == message.artifact["log"]
        assert (out.content, out.tool_call_id) == ("done", "t")
        assert message.artifact["shot"].tobytes() == painted("red").tobytes()

    def test_a_trace_has_none(self, guard):
        listener = Listener()
        guard.invoke([self.tool_message()], {"callbacks": [listener]})
        assert "PIL" not in "".join(listener.heard)


class TestFailures:
    URL: ClassVar = {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}

    def test_an_image_behind_a_url_is_blocked_unless_the_policy_says_otherwise(self, guard, call):
        (out,) = call(guard, "invoke", [HumanMessage([text("look"), self.URL])])
        assert out.content == [text("look"), text(UNCHECKED_NOTICE)]
        assert out.response_metadata["guardalign"][0]["uninspectable"] == "remote_reference"

    def test_it_passes_if_the_policy_allows_it(self, cache_dir):
        guard = ImageGuard(colour_guard(cache_dir, failure={"uninspectable": "allow"}))
        messages = [HumanMessage([self.URL])]
        (out,) = guard.invoke(messages)
        assert out.content is messages[0].content
        (record,) = out.response_metadata["guardalign"]
        assert (record["action"], record["finding"]) == ("allow", "unchecked")

    def test_a_plain_image_takes_its_place_if_the_policy_masks_it(self, cache_dir):
        guard = ImageGuard(colour_guard(cache_dir, failure={"uninspectable": "mask"}))
        _, out = guard.invoke([HumanMessage([self.URL, {"type": "video_url", "video_url": {"url": "https://a.b"}}])])
        assert out.content[0]["image_url"]["detail"] == "low"
        assert image_of(out.content[0]).getextrema() == ((0, 0),) * 3
        assert out.content[1] == text(UNCHECKED_NOTICE)

    def test_bytes_that_are_no_image_are_blocked(self, guard):
        (out,) = guard.invoke([HumanMessage([{"type": "image", "base64": "AAAA"}])])
        assert out.content == [text(UNCHECKED_NOTICE)]

    def test_an_encoder_that_fails_blocks(self, guard, call):
        guard.guard.guard.detector.encoder.failure = RuntimeError("out of memory")
        report = call(guard, "inspect", ask(painted()))
        guard.guard.guard.detector.encoder.failure = None
        assert (report.action, report.verdicts[0].failure) in [("block", "RuntimeError")]


class TestBatching:
    def test_all_images_of_all_inputs_of_a_batch_are_one_encoder_call(self, guard, call):
        guard.guard.guard.prepare()
        inputs = [ask(painted(), painted(shade=1)), "words", ask(painted(shade=2)), ask(painted(shade=3))]
        out = call(guard, "batch", inputs)
        assert all(new is old for new, old in zip(out, inputs, strict=True))
        assert len(calls(guard)) == 1

    def test_so_are_they_inside_a_chain(self, guard, call):
        model = RecordingModel.make()
        call(guard | model, "batch", [ask(painted(shade=shade)) for shade in range(3)])
        assert len(calls(guard)) == 1
        assert len(model.received) == 3

    def test_an_image_of_an_earlier_turn_costs_no_encoder_call(self, guard):
        turn = ask(painted())
        guard.invoke(turn)
        guard.invoke([*turn, AIMessage("white")])
        assert len(calls(guard)) == 1

    def test_max_concurrency_limits_how_many_inputs_are_checked_together(self, guard, call):
        guard.guard.guard.prepare()
        inputs = [ask(painted(shade=shade)) for shade in range(5)]
        call(guard, "batch", inputs, {"max_concurrency": 2})
        one = calls(guard)[0] // 2
        assert calls(guard) == [2 * one, 2 * one, one]

    def test_an_empty_batch_is_empty(self, guard, call):
        assert call(guard, "batch", []) == []
