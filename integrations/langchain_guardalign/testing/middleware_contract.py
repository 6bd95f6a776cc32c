"""What every agent middleware that guards images must keep, as tests to subclass.

Real agents of `langchain.agents.create_agent` with a checkpointer, a model that keeps what it is given, and the colour
encoder. Needs the packages ``langchain`` and ``langgraph``, which the package itself does not.
"""

# Not rewritten by pytest outside of test modules, so each assertion says itself what is wrong.
# ruff: noqa: S101

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from PIL import Image

from guardalign_guardrails import Guard
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.guarding.outcome import Outcome
from guardalign_guardrails.testing.chats import (
    canary,
    image_block,
    image_url_block,
    leaks,
    leaks_of,
    number_of,
    shows,
    text_block,
    url_block,
    without_first_square,
)
from guardalign_guardrails.testing.colours import ACTION_COLOURS, ColourEncoder, colour_guard, colour_policy
from langchain_guardalign.testing.agents import AgentChat, Camera, Middleware, Result
from langchain_guardalign.testing.messages import (
    Call,
    agents_know_their_run,
    call_async,
    call_sync,
    essence,
    images_of,
    question,
    text_of,
)
from langchain_guardalign.testing.recording import Listener

PREFIX = colour_policy().prefix.strip()
NOT_SHOWN = ("block", "route")


class MiddlewareContract(ABC):
    """Subclass it, name the class ``Test...``, and say how to make the middleware from a guard.

    Example:
        ```python
        from langchain_guardalign.testing.middleware_contract import MiddlewareContract


        class TestMyMiddleware(MiddlewareContract):
            def make(self, guard):
                return MyMiddleware(guard)
        ```

    The guard that `make` is given sees colours: red is masked, green asks for the prefix, blue is blocked, yellow
    routed, magenta flagged. What follows a block is the middleware's own: a notice, a refusal that ends the turn, or
    `UnsafeContentError`.

    Attributes:
        persists: Whether what the model was not to see is gone from the agent's state after the turn. False for
            middleware that only changes requests; then each turn checks the originals again.
        traces_no_images: Whether what tracers receive of its own hooks is free of images.
        checks_artifacts: Whether images in the ``artifact`` of tool messages are replaced too.
    """

    persists: bool = True
    traces_no_images: bool = True
    checks_artifacts: bool = False

    _seen: VerdictCache[Outcome]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Most tests show the same few images.
        cls._seen = VerdictCache()

    @abstractmethod
    def make(self, guard: Guard) -> Middleware:
        """The middleware to test, guarding with ``guard``."""

    def make_second(self, guard: Guard) -> Middleware:
        """One to put beside the first in the same agent; override it if a second one needs another name."""
        return self.make(guard)

    @pytest.fixture
    def guard(self, tmp_path: Path) -> Guard:
        """A guard that sees colours, and may have seen them before."""
        return _prepared(Guard(colour_policy(), ColourEncoder(), cache_dir=tmp_path, cache=self._seen))

    @pytest.fixture
    def new_guard(self, tmp_path: Path) -> Guard:
        """A guard that sees colours and has seen none."""
        return _prepared(colour_guard(tmp_path))

    @pytest.fixture(params=["sync", "async"])
    def call(self, request: pytest.FixtureRequest) -> Call:
        """Calls a method, or its async twin."""
        return call_sync if request.param == "sync" else call_async

    # What the model is given.

    @pytest.mark.parametrize("block", [image_block, image_url_block])
    def test_a_mask_covers_what_is_unsafe_in_what_the_user_says(self, guard: Guard, call: Call, block: Any) -> None:
        """Also if there are words in the same message, which some guards take for the whole of it."""
        image = canary("red", number=3)
        chat = AgentChat(self.make(guard), call)
        chat.say([HumanMessage([text_block("What colour is the sky?"), block(image)])])
        (received,) = chat.model.received
        assert "What colour is the sky?" in text_of(received), "the words beside a masked image were lost"
        self._is_masked(images_of(received), image)

    @pytest.mark.parametrize("action", NOT_SHOWN)
    def test_a_blocked_image_never_reaches_the_model(self, guard: Guard, call: Call, action: str) -> None:
        """Whether or not the model is asked at all."""
        image = canary(ACTION_COLOURS[action])
        chat = AgentChat(self.make(guard), call)
        chat.say(question(image), may_raise=True)
        self._never_received(chat, image, "of the user")

    def test_an_image_of_an_earlier_turn_never_reaches_the_model(self, guard: Guard, call: Call) -> None:
        """Apps bring histories of their own."""
        image = canary("blue")
        history = [*question(image), AIMessage([text_block("Like this?"), image_block(image)])]
        chat = AgentChat(self.make(guard), call)
        chat.say([*history, HumanMessage("And now?")], may_raise=True)
        self._never_received(chat, image, "in the history")

    @pytest.mark.parametrize("result", ["content", "message", "command"])
    def test_a_blocked_image_of_a_tool_never_reaches_the_model(self, guard: Guard, call: Call, result: Result) -> None:
        """Whatever way a tool returns it in."""
        image = canary("blue")
        chat = AgentChat(self.make(guard), call, tool=Camera(image=image, result=result))
        chat.say([HumanMessage("Take an image.")], may_raise=True)
        assert chat.model.received, "the model was not asked although there was no image yet"
        self._never_received(chat, image, f"of a tool that returns a {result}")

    @pytest.mark.parametrize("result", ["content", "message", "command"])
    def test_an_image_of_a_tool_is_masked(self, guard: Guard, call: Call, result: Result) -> None:
        """And the tool's message keeps its call's id, without which providers refuse the chat."""
        image = canary("red")
        chat = AgentChat(self.make(guard), call, tool=Camera(image=image, result=result))
        chat.say([HumanMessage("Take an image.")])
        assert len(chat.model.received) == 2, "the model was not asked again after the tool's result"
        self._is_masked(images_of(chat.model.received[-1]), image)
        (message,) = [each for each in chat.model.received[-1] if isinstance(each, ToolMessage)]
        (asked,) = [each for each in chat.model.received[-1] if isinstance(each, AIMessage)]
        assert message.tool_call_id == asked.tool_calls[0]["id"], "a masked tool message lost its tool_call_id"
        assert message.name == "camera", "a masked tool message lost its name"

    def test_an_image_that_cannot_be_checked_reaches_the_model_only_if_the_policy_says_so(
        self, tmp_path: Path, call: Call
    ) -> None:
        """An image that was not checked is not the same as no image."""
        for rule in ("block", "allow"):
            chat = AgentChat(self.make(colour_guard(tmp_path, failure={"uninspectable": rule})), call)
            chat.say([HumanMessage([text_block(), url_block()])], may_raise=rule == "block")
            has_come = bool(leaks(repr(chat.model.received)))
            assert has_come == (rule == "allow"), f"the policy says {rule} for unseen images; came through: {has_come}"

    def test_an_encoder_that_fails_blocks_unless_the_policy_says_otherwise(self, tmp_path: Path, call: Call) -> None:
        """`failure.on_error` of the policy decides."""
        for rule in ("block", "allow"):
            guard = _prepared(colour_guard(tmp_path, failure={"on_error": rule}))
            _encoder(guard).failure = RuntimeError("out of memory")
            chat = AgentChat(self.make(guard), call)
            chat.say(question(canary()), may_raise=rule == "block")
            came = [number_of(each) for received in chat.model.received for each in images_of(received)]
            assert came == ([0] if rule == "allow" else []), f"detection failed, the policy says {rule}: {came} passed"

    def test_monitor_mode_changes_nothing_that_the_model_reads(self, tmp_path: Path, call: Call) -> None:
        """It reports only."""
        value = question(*(canary(colour, number=n) for n, colour in enumerate(("red", "blue", "yellow", "green"))))
        chat = AgentChat(self.make(colour_guard(tmp_path, mode="monitor")), call)
        chat.say(value)
        assert [[message.content for message in received] for received in chat.model.received] == [
            [message.content for message in value]
        ], "monitor mode changed what the model is given"

    def test_the_prefix_is_given_once_to_each_model_call(self, guard: Guard, call: Call) -> None:
        """Beside the agent's own instructions, in the loop over tools and in later turns."""
        chat = AgentChat(self.make(guard), call, tool=Camera(image=canary("green")), system_prompt="Be brief.")
        chat.say(question(canary("green", number=1)))
        chat.say([HumanMessage("And now?")])
        assert len(chat.model.received) == 4, "two turns with a tool call each are four model calls"
        for number, received in enumerate(chat.model.received):
            count = text_of(received).count(PREFIX)
            assert count == 1, f"model call {number} was given the prefix {count} times"
            assert text_of(received).count("Be brief.") == 1, "the agent's own instructions were lost or doubled"

    def test_agents_without_images_are_left_alone(self, guard: Guard, call: Call) -> None:
        """Most chats hold no image: no change, no encoder pass, no event."""
        before, listener = len(_encoder(guard).calls), Listener()
        guarded, plain = AgentChat(self.make(guard), call), AgentChat(None, call)
        value = [HumanMessage("hello", id="1"), AIMessage("hi", id="2"), HumanMessage("bye", id="3")]
        answers = [chat.say(value, callbacks=[listener])["messages"] for chat in (guarded, plain)]
        assert essence(answers[0]) == essence(answers[1]), "a chat without images ended another way"
        assert guarded.model.received == plain.model.received, "a chat without images was changed"
        assert len(_encoder(guard).calls) == before, "a chat without images went through the encoder"
        assert listener.events == [], "a chat without images was reported"

    def test_an_image_seen_before_costs_no_encoder_pass(self, new_guard: Guard, call: Call) -> None:
        """Each model call brings the whole history again."""
        before = len(_encoder(new_guard).calls)
        chat = AgentChat(self.make(new_guard), call)
        for words in (question(canary()), [HumanMessage("Sure?")], [HumanMessage("Really?")]):
            chat.say(words)
        passes = len(_encoder(new_guard).calls) - before
        assert passes == 1, f"one image in three turns took {passes} encoder passes"

    @pytest.mark.parametrize("action", ["allow", *ACTION_COLOURS])
    def test_sync_and_async_give_the_same(self, guard: Guard, action: str) -> None:
        """Agents that are only guarded in one of them are not guarded."""
        ends = []
        for call in (call_sync, call_async):
            chat = AgentChat(self.make(guard), call)
            result = chat.say(question(canary(ACTION_COLOURS.get(action, "white"))), may_raise=True)
            ends.append((essence(result.get("messages", [])), essence(chat.model.received)))
        assert ends[0] == ends[1], f"invoke and ainvoke of an agent differ (action {action})"

    # What stays.

    def test_the_input_is_never_changed(self, guard: Guard, call: Call) -> None:
        """The app may hold on to what the user sent."""
        value = question(canary("red"), canary("blue"))
        before = [message.model_copy(deep=True) for message in value]
        AgentChat(self.make(guard), call).say(value, may_raise=True)
        assert [message.content for message in value] == [message.content for message in before], (
            "the messages that the agent was given were changed in place"
        )

    @pytest.mark.parametrize("message_id", ["message", None])
    def test_a_changed_message_takes_the_place_of_the_original(
        self, guard: Guard, call: Call, message_id: str | None
    ) -> None:
        """With another id, or none, LangGraph adds it to the end and the original stays."""
        (message,) = question(canary("red"))
        chat = AgentChat(self.make(guard), call)
        chat.say([message.model_copy(update={"id": message_id}), AIMessage("Hm."), HumanMessage("And?")])
        kinds = [each.type for each in chat.state()]
        assert kinds == ["human", "ai", "human", "ai"], f"the state's messages are {kinds} after a message was masked"
        assert message_id in (None, chat.state()[0].id), "a masked message lost its id"

    def test_the_checkpoint_holds_the_masked_image_after_the_turn(self, guard: Guard, call: Call) -> None:
        """Later turns, other readers of the state and backups get the masked one."""
        self._needs_persistence()
        image = canary("red")
        chat = AgentChat(self.make(guard), call)
        chat.say(question(image))
        self._is_masked(images_of(chat.state()), image)

    @pytest.mark.parametrize("action", NOT_SHOWN)
    def test_a_blocked_image_is_gone_from_the_next_turn(self, guard: Guard, call: Call, action: str) -> None:
        """To say "answer the above" must not bring it back."""
        image = canary(ACTION_COLOURS[action])
        chat = AgentChat(self.make(guard), call)
        has_raised = not chat.say(question(image), may_raise=True)
        chat.say([HumanMessage("Answer the above.")], may_raise=True)
        self._never_received(chat, image, "of the turn before")
        if self.persists and not has_raised:
            assert not leaks(repr(chat.state()), image), "a blocked image is still in the agent's state"

    def test_a_chat_goes_on_after_a_blocked_image(self, guard: Guard, call: Call) -> None:
        """A turn that was stopped must not end the chat for good, nor be in it twice."""
        image = canary("blue")
        chat = AgentChat(self.make(guard), call)
        chat.say(question(image), may_raise=True)
        before = len(chat.model.received)
        for words in ("One?", "Two?", "Three?"):
            assert chat.say([HumanMessage(words)], may_raise=True), "a harmless turn raised after a blocked one"
        assert len(chat.model.received) - before == 3, "the model was not asked in a turn after a blocked one"
        self._never_received(chat, image, "of an earlier turn")
        kinds = [message.type for message in chat.state()]
        assert kinds == ["human", "ai"] * 4, f"four turns, the first of them blocked, left the messages {kinds}"

    def test_a_paused_thread_goes_on_when_the_policy_is_edited(self, tmp_path: Path, call: Call) -> None:
        """LangGraph finds the step to go on with by its name; one made of the policy is another after an edit."""
        image = canary("red")
        camera = Camera(image=image)
        chat = AgentChat(self.make(colour_guard(tmp_path)), call, tool=camera, interrupt_after=["tools"])
        chat.say([HumanMessage("Take an image.")])
        assert len(chat.model.received) == 1, "the thread was to be paused after the tool"
        chat.start(self.make(colour_guard(tmp_path, prefix="Look twice.")))
        chat.resume()
        assert len(chat.model.received) == 2, "a paused thread ended without the model after an edit of the policy"
        self._is_masked(images_of(chat.model.received[-1]), image)

    def test_a_blocked_image_of_a_tool_is_gone_from_the_state(self, guard: Guard, call: Call) -> None:
        """Tool results are part of the history, too."""
        self._needs_persistence()
        image = canary("blue")
        chat = AgentChat(self.make(guard), call, tool=Camera(image=image))
        if chat.say([HumanMessage("Take an image.")], may_raise=True):
            assert not leaks(repr(chat.state()), image), "a tool's blocked image is still in the agent's state"

    def test_an_image_in_an_artifact_is_gone_from_the_state(self, guard: Guard, call: Call) -> None:
        """Models are not given artifacts, but apps put them back into chats."""
        if not self.checks_artifacts:
            pytest.skip("checks_artifacts is False")
        image = canary("blue")
        called = AIMessage("", tool_calls=[{"name": "camera", "args": {}, "id": "call"}])
        seen = ToolMessage("An image.", artifact=[image_block(image)], tool_call_id="call")
        chat = AgentChat(self.make(guard), call)
        if chat.say([HumanMessage("Take one."), called, seen, HumanMessage("And?")], may_raise=True):
            assert not leaks(repr(chat.state()), image), "a blocked image is still in a tool message's artifact"

    # Composition.

    def test_two_of_them_work_in_one_agent(self, tmp_path: Path, call: Call) -> None:
        """LangChain refuses two of the same name; each must do its own work."""
        image = canary("red")
        watching, acting = colour_guard(tmp_path, mode="monitor"), colour_guard(tmp_path)
        chat = AgentChat([self.make(watching), self.make_second(acting)], call)
        chat.say(question(image))
        self._is_masked(images_of(chat.model.received[0]), image)
        assert _encoder(watching).calls, "the first of two instances checked nothing"

    def test_two_that_agree_do_the_work_once(self, guard: Guard, call: Call) -> None:
        """One mask, one prefix."""
        image = canary("red")
        chat = AgentChat([self.make(guard), self.make_second(guard)], call)
        chat.say(question(image))
        self._is_masked(images_of(chat.model.received[0]), image)
        count = text_of(chat.model.received[0]).count(PREFIX)
        assert count == 1, f"two instances gave the prefix {count} times"

    def test_one_of_them_serves_several_threads_of_an_agent(self, guard: Guard, call: Call) -> None:
        """It must not carry anything from one chat to the next."""
        chat = AgentChat(self.make(guard), call)
        images = [canary("red", number=1), canary(number=2), canary("red", number=3)]
        for number, image in enumerate(images):
            chat.say(question(image), thread=str(number))
        numbers = [[number_of(each) for each in images_of(received)] for received in chat.model.received]
        assert numbers == [[1], [2], [3]], f"three threads with one image each gave the model {numbers}"

    # Streams.

    def test_the_models_tokens_are_streamed(self, guard: Guard, call: Call) -> None:
        """A guard in front of a model has no reason to hold its answer back."""
        parts = AgentChat(self.make(guard), call).stream(question(canary("red")), "messages")
        tokens = [message.text for message, _ in parts if isinstance(message, AIMessage) and message.text]
        expected = ["one ", "two ", "three"] if agents_know_their_run(call) else ["one two three"]
        assert tokens == expected, f"the model's three tokens came as {tokens}"

    @pytest.mark.parametrize("mode", ["values", "updates", "custom"])
    @pytest.mark.parametrize("action", ["mask", "block"])
    def test_no_stream_gives_out_what_was_removed(self, guard: Guard, call: Call, mode: str, action: str) -> None:
        """Apart from the first state of ``values``, which is the caller's own input."""
        self._needs_persistence()
        image = canary(ACTION_COLOURS[action])
        chat = AgentChat(self.make(guard), call)
        parts = chat.stream(question(image), mode, may_raise=True)
        said = repr(parts[-1:] if mode == "values" else parts)
        assert not leaks_of(said, image), f"the stream {mode!r} gives out the original of an image to {action}"
        if mode == "custom":
            assert not leaks(said, image), "the stream 'custom' holds an image"

    # What is reported, logged and traced.

    @pytest.mark.parametrize("action", ["allow", *ACTION_COLOURS])
    def test_no_pixel_is_reported_logged_or_traced(
        self, guard: Guard, call: Call, caplog: pytest.LogCaptureFixture, action: str
    ) -> None:
        """Logs, events, errors, representations and hook traces outlive the chat, and more people read them."""
        caplog.set_level(logging.DEBUG, logger="guardalign_guardrails")
        caplog.set_level(logging.DEBUG, logger="langchain_guardalign")
        listener, middleware = Listener(), self.make(guard)
        image = canary(ACTION_COLOURS.get(action, "white"))
        chat = AgentChat(middleware, call)
        spans, error = chat.traced([HumanMessage([text_block(), image_block(image), url_block()])], listener)
        self._holds_no_pixel("a log record", caplog.text, image)
        self._holds_no_pixel("a custom event", repr(listener.events), image)
        self._holds_no_pixel("an exception", error, image)
        self._holds_no_pixel("repr", repr(middleware), image)
        if self.traces_no_images:
            own = [span for span in spans if span["name"].startswith(middleware.name)]
            assert own, "tracers received none of its hooks"
            for span in own:
                self._holds_no_pixel(f"the trace of {span['name']}", repr(span), image)

    def test_events_are_plain_data(self, guard: Guard, call: Call) -> None:
        """If it dispatches any: a listener may write them down."""
        listener = Listener()
        AgentChat(self.make(guard), call).say(question(canary("red")), callbacks=[listener])
        json.dumps(listener.events)

    def _needs_persistence(self) -> None:
        if not self.persists:
            pytest.skip("persists is False")

    def _is_masked(self, images: Sequence[Image.Image], original: Image.Image) -> None:
        assert len(images) == 1, f"one image was to be masked and kept; there are {len(images)}"
        assert not shows(images[0], "red"), "the unsafe region can still be seen in the masked image"
        assert without_first_square(images[0]) == without_first_square(original), "the mask changed other pixels too"

    def _never_received(self, chat: AgentChat, image: Image.Image, whose: str) -> None:
        received = chat.model.received
        found = leaks(repr(received), image)
        assert not found, f"the model was given a blocked image {whose}: {', '.join(found)}"
        assert not any(map(images_of, received)), f"the model was given some image in place of a blocked one {whose}"

    def _holds_no_pixel(self, what: str, said: str, image: Image.Image) -> None:
        found = leaks(said, image)
        assert not found, f"{what} holds {', '.join(found)}"


def _prepared(guard: Guard) -> Guard:
    guard.prepare()
    return guard


def _encoder(guard: Guard) -> ColourEncoder:
    encoder = guard.detector.encoder
    assert isinstance(encoder, ColourEncoder), "the guard of a contract sees colours"
    return encoder
