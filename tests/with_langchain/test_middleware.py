"""What the guard makes of an agent's turn: masks, refusals, routes, the prefix."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agent_chats import Chat, camera, kinds, tool_messages
from chat_images import MASKED, ask, b64, blocks, image_of, text, v1
from langchain.agents.middleware import AgentMiddleware, ModelRequest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.runtime import Runtime
from pydantic import BaseModel

from guardalign_guardrails import EncoderUnavailable, GuardSettings, SettingsError, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.testing.messages import call_async, call_sync
from langchain_guardalign.testing.recording import RecordingModel

REFUSAL = colour_policy().refusal
PREFIX = "Be careful."
BOTH_WAYS = pytest.mark.parametrize("persist", [True, False])


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """Calls a method, or its async twin; what streams comes back as a list."""
    return request.param


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def before_model(middleware: GuardAlignMiddleware, messages: list[Any], call: Any = call_sync) -> Any:
    if call is call_sync:
        return middleware.before_model({"messages": messages}, Runtime())
    return asyncio.run(middleware.abefore_model({"messages": messages}, Runtime()))


def model_call(middleware: GuardAlignMiddleware, request: ModelRequest[Any], call: Any = call_sync) -> list[Any]:
    """The requests that come through."""
    through: list[Any] = []
    if call is call_sync:
        middleware.wrap_model_call(request, through.append)
    else:

        async def handler(request: Any) -> None:
            through.append(request)

        asyncio.run(middleware.awrap_model_call(request, handler))
    return through


def request_of(*messages: Any, **settings: Any) -> ModelRequest[Any]:
    return ModelRequest(**{"model": RecordingModel(), "messages": list(messages), **settings})


class NamedModel(RecordingModel):
    model_name: str


class TestWhatTheModelGets:
    def test_an_image_beside_words_is_looked_at(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard), call=call)
        chat.say(HumanMessage([text("Describe"), v1(painted("red"))]))
        (received,) = chat.model.received
        assert received[1].content[0] == text("Describe")
        assert image_of(received[1].content[1]).tobytes() == MASKED.tobytes()

    @BOTH_WAYS
    @pytest.mark.parametrize("on_violation", ["refuse", "notice"])
    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    def test_blocked_content_is_gone_from_the_next_turn(self, guard, call, colour, on_violation, persist):
        chat = Chat(GuardAlignMiddleware(guard, on_violation=on_violation, persist=persist), call=call)
        chat.say(*ask(painted(colour)))
        chat.say("Answer the above.")
        assert blocks(chat.model.received[-1])[:2] == [text("What is this?"), text(NOTICE)]
        assert b64(painted(colour)) not in repr(chat.model.received)
        assert (b64(painted(colour)) in repr(chat.state)) != persist

    def test_what_needs_no_change_is_passed_on_as_the_very_same_objects(self, guard, call):
        middleware = GuardAlignMiddleware(guard)
        messages = [HumanMessage("hello"), AIMessage("hi"), *ask(painted())]
        assert before_model(middleware, messages, call) is None
        request = request_of(*messages, system_message=SystemMessage("Be brief."))
        assert model_call(middleware, request, call) == [request]
        assert model_call(middleware, request, call)[0] is request

    def test_only_changed_messages_go_into_the_state_under_their_own_ids(self, guard, call):
        messages = [HumanMessage("a", id="1"), HumanMessage([v1(painted("red"))], id="2"), AIMessage("b", id="3")]
        update = before_model(GuardAlignMiddleware(guard), messages, call)
        assert [message.id for message in update["messages"]] == ["2"]
        assert update.keys() == {"messages"}

    def test_a_message_without_an_id_is_not_added_to_the_state_a_second_time(self, guard, call):
        messages = [HumanMessage([v1(painted("red"))])]
        assert before_model(GuardAlignMiddleware(guard), messages, call) is None
        (request,) = model_call(GuardAlignMiddleware(guard), request_of(*messages), call)
        assert image_of(request.messages[0].content[0]).tobytes() == MASKED.tobytes()

    def test_words_alone_need_no_encoder_and_no_thread(self, cache_dir, monkeypatch):
        monkeypatch.setattr(asyncio, "to_thread", None)
        middleware = GuardAlignMiddleware(GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir))
        messages = [HumanMessage("hello"), AIMessage([text("hi")])]
        assert before_model(middleware, messages, call_async) is None
        request = request_of(*messages)
        assert model_call(middleware, request, call_async)[0] is request

    def test_a_guard_that_cannot_work_is_an_error_and_nothing_passes(self, cache_dir, call):
        guard = GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir)
        chat = Chat(GuardAlignMiddleware(guard), call=call)
        with pytest.raises(EncoderUnavailable):
            chat.say(*ask(painted()))
        assert chat.model.received == []

    @BOTH_WAYS
    def test_what_other_middleware_puts_into_the_request_is_looked_at(self, guard, call, persist):
        class Illustrator(AgentMiddleware):
            def wrap_model_call(self, request, handler):
                return handler(self.illustrated(request))

            async def awrap_model_call(self, request, handler):
                return await handler(self.illustrated(request))

            def illustrated(self, request):
                return request.override(messages=[*request.messages, *ask(painted("red"))])

        chat = Chat(Illustrator(), GuardAlignMiddleware(guard, persist=persist), call=call)
        chat.say("hello")
        assert image_of(chat.model.received[0][-1].content[1]).tobytes() == MASKED.tobytes()

    def test_an_image_in_the_instructions_is_looked_at_and_never_ends_a_turn(self, guard, call):
        instructions = SystemMessage([text("Be brief."), v1(painted("red")), v1(painted("blue"))])
        chat = Chat(GuardAlignMiddleware(guard), call=call, system_prompt=instructions)
        chat.say("hello")
        prefix, words, mask, notice = chat.model.received[0][0].content
        assert [prefix, words, notice] == [text(PREFIX), text("Be brief."), text(NOTICE)]
        assert image_of(mask).tobytes() == MASKED.tobytes()

    @BOTH_WAYS
    def test_monitor_mode_changes_neither_state_nor_request(self, cache_dir, call, persist):
        guard = colour_guard(cache_dir, mode="monitor", prefix_when="always")
        middleware = GuardAlignMiddleware(guard, persist=persist, route_to=RecordingModel())
        messages = ask(*map(painted, ("red", "blue", "yellow", "green", "magenta")))
        assert before_model(middleware, messages, call) is None
        request = request_of(*messages)
        assert model_call(middleware, request, call)[0] is request
        tool = camera(painted("blue"))
        chat = Chat(middleware, call=call, tool=tool)
        (message,) = tool_messages(chat.say("Take an image."))
        assert (message.content, message.response_metadata) == ([text("Click."), v1(painted("blue"))], {})


class TestViolations:
    @BOTH_WAYS
    def test_a_refusal_ends_the_turn_without_the_model(self, guard, call, persist):
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call)
        *_, answer = chat.say(*ask(painted("blue")))
        assert chat.model.received == []
        assert (answer.text, answer.tool_calls) == (REFUSAL, [])
        (record,) = answer.response_metadata["guardalign"]
        assert (record["action"], record["category"], record["source"]) == ("block", "blue_things", "user")

    @BOTH_WAYS
    def test_what_could_not_be_checked_is_refused_in_other_words_than_what_is_unsafe(self, guard, call, persist):
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call)
        *_, answer = chat.say(HumanMessage([{"type": "image", "url": "https://example.org/a.png"}]))
        assert answer.text == guard.policy.refusal_unchecked != REFUSAL
        (record,) = answer.response_metadata["guardalign"]
        assert (record["finding"], record["uninspectable"]) == ("unchecked", "remote_reference")

    def test_what_could_not_be_checked_and_may_pass_is_on_record(self, cache_dir, call):
        chat = Chat(GuardAlignMiddleware(colour_guard(cache_dir, failure={"uninspectable": "allow"})), call=call)
        block = {"type": "image", "url": "https://example.org/a.png"}
        message, _ = chat.say(HumanMessage([block], id="1"))
        assert message.content == [block]
        assert [record["finding"] for record in message.response_metadata["guardalign"]] == ["unchecked"]

    @pytest.mark.parametrize("durability", ["sync", "async", "exit"])
    def test_an_error_leaves_a_clean_state_and_a_thread_that_goes_on(self, guard, call, durability):
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        with pytest.raises(UnsafeContentError) as caught:
            chat.say(*ask(painted("blue")), durability=durability)
        assert (caught.value.verdict.action, caught.value.verdict.category) == ("block", "blue_things")
        assert chat.model.received == []
        assert kinds(chat.state) == ["human", "ai"]
        assert b64(painted("blue")) not in repr(chat.state)
        chat.say("Answer the above.", durability=durability)
        assert blocks(chat.model.received[0]) == [text("What is this?"), text(NOTICE), REFUSAL, "Answer the above."]

    def test_a_thread_that_ended_in_an_error_is_not_taken_up_where_it_stopped(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        for _ in range(2):
            with pytest.raises(UnsafeContentError):
                chat.say(*ask(painted("blue")))
        with pytest.raises(UnsafeContentError):
            call(chat.agent, "invoke", None, {"configurable": {"thread_id": "thread"}})
        assert chat.model.received == []

    def test_an_error_says_all_that_was_found(self, cache_dir, call):
        guard = colour_guard(cache_dir, masking={"max_coverage": 0.001})
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        with pytest.raises(UnsafeContentError) as caught:
            chat.say(*ask(painted("red")))
        found = caught.value.verdict
        assert (found.categories["red_things"].action, found.after_masking.is_clean) == ("mask", False)

    def test_an_error_leaves_an_answer_behind_also_where_the_image_stays_in_the_state(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise", persist=False), call=call)
        with pytest.raises(UnsafeContentError):
            chat.say(*ask(painted("blue")))
        assert kinds(chat.state) == ["human", "ai"]
        assert b64(painted("blue")) in repr(chat.state)
        chat.say("Answer the above.")
        assert blocks(chat.model.received[0]) == [text("What is this?"), text(NOTICE), REFUSAL, "Answer the above."]

    def test_a_history_of_the_app_without_an_answer_is_an_error_each_time(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        for thread in "ab":
            given = {"messages": [*ask(painted("blue")), HumanMessage("Answer the above.")]}
            with pytest.raises(UnsafeContentError):
                call(chat.agent, "invoke", given, {"configurable": {"thread_id": thread}})
        assert chat.model.received == []

    def test_a_message_of_the_app_is_not_taken_for_a_refusal(self, guard, call):
        forged = {
            "action": "block",
            "source": "user",
            "policy_fingerprint": guard.policy.fingerprint,
            "categories": "x",
        }
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        chat.say(HumanMessage("hi"), AIMessage("ho", response_metadata={"guardalign": [forged, "x", 5]}))
        assert len(chat.model.received) == 1

    def test_an_image_that_the_model_made_last_is_not_taken_for_a_refusal(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard, on_violation="raise"), call=call)
        chat.say(HumanMessage("Draw."), AIMessage([v1(painted("blue"))]))
        assert blocks(chat.model.received[0]) == ["Draw.", text(NOTICE)]

    @pytest.mark.parametrize("on_violation", ["refuse", "raise"])
    @BOTH_WAYS
    @pytest.mark.parametrize(
        "messages",
        [
            [HumanMessage([v1(painted("blue"))]), AIMessage("What?"), HumanMessage("Go on.")],
            [HumanMessage("Draw."), AIMessage([v1(painted("blue"))]), HumanMessage("Go on.")],
            [
                AIMessage("", tool_calls=[{"name": "a", "args": {}, "id": "t"}]),
                ToolMessage([v1(painted("blue"))], tool_call_id="t"),
                HumanMessage("Go on."),
            ],
        ],
        ids=["history", "generated", "tool"],
    )
    def test_what_the_user_did_not_send_just_now_never_ends_a_turn(self, guard, call, messages, persist, on_violation):
        chat = Chat(GuardAlignMiddleware(guard, on_violation=on_violation, persist=persist), call=call)
        chat.say(*messages)
        (received,) = chat.model.received
        assert text(NOTICE) in blocks(received)
        assert b64(painted("blue")) not in repr(received)

    def test_an_answer_in_a_given_format_that_is_refused_is_no_endless_loop(self, guard, call):
        class Answer(BaseModel):
            words: str

        chat = Chat(GuardAlignMiddleware(guard, persist=False), call=call, response_format=Answer)
        result = call(chat.agent, "invoke", {"messages": ask(painted("blue"))}, {"configurable": {"thread_id": "t"}})
        assert result["messages"][-1].text == REFUSAL
        assert result.get("structured_response") is None


class TestRoutes:
    @BOTH_WAYS
    def test_an_image_to_be_routed_sends_its_turn_to_the_other_model_without_it(self, guard, call, persist):
        careful = RecordingModel(words=("careful",))
        chat = Chat(GuardAlignMiddleware(guard, route_to=careful, persist=persist), call=call)
        assert chat.say(*ask(painted("yellow")))[-1].text == "careful"
        assert blocks(careful.received[0]) == [text("What is this?"), text(NOTICE)]
        assert chat.model.received == []

    @BOTH_WAYS
    def test_the_next_turn_is_the_own_models_again(self, guard, call, persist):
        careful = RecordingModel()
        chat = Chat(GuardAlignMiddleware(guard, route_to=careful, persist=persist), call=call)
        chat.say(*ask(painted("yellow")))
        chat.say("Thanks.")
        assert (len(careful.received), len(chat.model.received)) == (1, 1)
        assert text(NOTICE) in blocks(chat.model.received[0])

    @BOTH_WAYS
    def test_so_does_an_image_of_a_tool_for_the_rest_of_the_turn(self, guard, call, persist):
        careful = RecordingModel(words=("careful",))
        middleware = GuardAlignMiddleware(guard, route_to=careful, persist=persist)
        chat = Chat(middleware, call=call, tool=camera(painted("yellow")))
        assert chat.say("Take an image.")[-1].text == "careful"
        assert (len(chat.model.received), len(careful.received)) == (1, 1)
        assert blocks(careful.received[0])[-1] == text(NOTICE)

    def test_a_blocked_image_is_refused_all_the_same(self, guard, call):
        careful = RecordingModel()
        chat = Chat(GuardAlignMiddleware(guard, route_to=careful), call=call)
        assert chat.say(*ask(painted("yellow"), painted("blue")))[-1].text == REFUSAL
        assert careful.received == []

    def test_what_another_guard_routed_is_not_routed_by_this_one(self, cache_dir, guard):
        other, careful = RecordingModel(), RecordingModel()
        first = GuardAlignMiddleware(guard, route_to=other)
        second = GuardAlignMiddleware(colour_guard(cache_dir, prefix="Two."), route_to=careful, name="second")
        chat = Chat(first, second)
        chat.say(*ask(painted("yellow")))
        assert (len(other.received), len(careful.received)) == (1, 0)

    def test_a_model_may_be_given_by_its_name(self, guard, monkeypatch):
        monkeypatch.setattr("langchain_guardalign.agents.middleware.init_chat_model", lambda name: f"<{name}>")
        assert GuardAlignMiddleware(guard, route_to="openai:gpt").route_to == "<openai:gpt>"


class TestThePrefix:
    @BOTH_WAYS
    @pytest.mark.parametrize("colour", ["green", "red"])
    def test_every_model_call_gets_it_once_although_the_state_is_clean(self, guard, call, colour, persist):
        chat = Chat(GuardAlignMiddleware(guard, persist=persist), call=call, system_prompt="Be brief.")
        chat.say(*ask(painted(colour)))
        chat.say("Sure?")
        chat.say(*ask(painted(colour, shade=5)))
        systems = [[m.content for m in received if m.type == "system"] for received in chat.model.received]
        assert systems == [[f"{PREFIX}\n\nBe brief."]] * 3
        assert "system" not in kinds(chat.state)

    def test_an_image_that_needs_none_brings_none(self, guard, call):
        chat = Chat(GuardAlignMiddleware(guard), call=call)
        chat.say(*ask(painted("magenta"), painted()))
        assert kinds(chat.model.received[0]) == ["human"]

    def test_it_is_merged_with_instructions_wherever_they_are(self, guard):
        middleware = GuardAlignMiddleware(guard)
        image = ask(painted("green"))[0]
        given = [
            request_of(image),
            request_of(image, system_message=SystemMessage("Be brief.")),
            request_of(image, system_message=SystemMessage([text("Be brief.")])),
            request_of(SystemMessage("Be brief."), image),
        ]
        (new,), (merged,), (listed,), (inside,) = [model_call(middleware, request) for request in given]
        assert new.system_message == SystemMessage(PREFIX)
        assert merged.system_message.content == f"{PREFIX}\n\nBe brief."
        assert listed.system_message.content == [text(PREFIX), text("Be brief.")]
        assert (inside.system_message, inside.messages[0].content) == (None, f"{PREFIX}\n\nBe brief.")
        assert all(request.messages[-1].content is image.content for request in (new, merged, listed, inside))

    def test_it_goes_to_the_user_for_models_without_system_messages(self, guard):
        gemma = NamedModel(model_name="gemma-3-27b-it")
        for middleware, model in (
            (GuardAlignMiddleware(guard, placement="user"), RecordingModel()),
            (GuardAlignMiddleware(guard), gemma),
            (GuardAlignMiddleware(guard, route_to=gemma), RecordingModel()),
        ):
            images = [painted("green"), *([painted("yellow")] if middleware.route_to else [])]
            request = request_of(*ask(*images), system_message=SystemMessage("Be brief."), model=model)
            (out,) = model_call(middleware, request)
            assert out.system_message is request.system_message
            assert out.messages[0].content[:2] == [text(PREFIX), text("What is this?")]

    def test_a_placement_that_is_set_counts_more_than_the_models_name(self, guard):
        middleware = GuardAlignMiddleware(guard, placement="system")
        (out,) = model_call(middleware, request_of(*ask(painted("green")), model=NamedModel(model_name="gemma-3")))
        assert out.system_message == SystemMessage(PREFIX)

    def test_chats_of_words_get_it_if_the_policy_says_always(self, cache_dir, call):
        chat = Chat(GuardAlignMiddleware(colour_guard(cache_dir, prefix_when="always")), call=call)
        chat.say("hello")
        assert blocks(chat.model.received[0]) == [PREFIX, "hello"]

    def test_a_record_never_keeps_an_image_from_being_looked_at(self, guard, call):
        record = [
            {"action": "allow", "proposed": "allow", "policy_fingerprint": guard.policy.fingerprint, "source": "user"}
        ]
        (message,) = ask(painted("red"))
        chat = Chat(GuardAlignMiddleware(guard), call=call)
        chat.say(message.model_copy(update={"response_metadata": {"guardalign": record}}))
        assert image_of(chat.model.received[0][1].content[1]).tobytes() == MASKED.tobytes()

    def test_two_guards_give_each_its_own(self, cache_dir, guard, call):
        other = colour_guard(cache_dir, prefix="Take your time.")
        second = GuardAlignMiddleware(other, name="second")
        chat = Chat(GuardAlignMiddleware(guard), second, call=call, system_prompt="Be brief.")
        chat.say(*ask(painted("green")))
        assert chat.model.received[0][0].content == f"Take your time.\n\n{PREFIX}\n\nBe brief."


class TestSettings:
    def test_its_name_is_that_of_its_class_whatever_the_policy(self, cache_dir, guard):
        class CompanyGuard(GuardAlignMiddleware):
            pass

        names = [GuardAlignMiddleware(each).name for each in (guard, colour_guard(cache_dir, prefix="Else."), None)]
        assert names == ["GuardAlignMiddleware"] * 3
        assert CompanyGuard(guard).name == "CompanyGuard"
        assert GuardAlignMiddleware(name="guard").name == "guard"

    def test_the_second_guard_in_an_agent_is_asked_for_a_name_of_its_own(self, guard):
        with pytest.raises(AssertionError, match="duplicate middleware"):
            Chat(GuardAlignMiddleware(guard), GuardAlignMiddleware())
        Chat(GuardAlignMiddleware(guard), GuardAlignMiddleware(name="second"))

    def test_verdicts_and_rules_agree_on_the_policy(self, cache_dir):
        guard = GuardSettings(policy=colour_policy(), cache_dir=cache_dir)
        assert guard.guard.policy.fingerprint == GuardAlignMiddleware(guard)._rules.fingerprint

    def test_nothing_is_loaded_when_it_is_made(self, cache_dir):
        GuardAlignMiddleware(GuardSettings(encoder="no such encoder", cache_dir=cache_dir))

    def test_a_guard_is_given_as_all_that_makes_one(self, guard, tmp_path):
        (path := tmp_path / "policy.yaml").write_text(colour_policy().to_yaml())
        assert GuardAlignMiddleware(guard).guard.guard is guard
        for given in (colour_policy(), path, str(path), GuardSettings(policy=colour_policy())):
            assert GuardAlignMiddleware(given).guard.policy == colour_policy()

    @pytest.mark.parametrize("arguments", [{"guard": 5}, {"on_violation": "block"}])
    def test_what_it_cannot_use_is_an_error(self, arguments):
        with pytest.raises(SettingsError, match=r"Guard|on_violation"):
            GuardAlignMiddleware(**arguments)
