"""What every runnable that guards images must keep, as tests to subclass.

LangChain publishes suites for models, stores and retrievers, none for guards. These tests use real LangChain objects
and the colour encoder, so they need no weights, no network and no time. They say nothing about how good a detector is.
"""

# Not rewritten by pytest outside of test modules, so each assertion says itself what is wrong.
# ruff: noqa: S101

from __future__ import annotations

import asyncio
import copy
import functools
import json
import logging
import operator
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from langchain_core.load import Serializable, dumps, load
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda

from guardalign_guardrails import Guard, Policy, UnsafeContentError
from guardalign_guardrails.guarding.cache import VerdictCache
from guardalign_guardrails.guarding.outcome import Outcome
from guardalign_guardrails.testing.chats import (
    ask,
    canary,
    image_block,
    image_url_block,
    images_in,
    leaks,
    leaks_of,
    number_of,
    shows,
    text_block,
    url_block,
    without_first_square,
    words_in,
)
from guardalign_guardrails.testing.colours import ACTION_COLOURS, ColourEncoder, colour_guard, colour_policy
from langchain_guardalign.testing.messages import (
    Call,
    call_async,
    call_sync,
    essence,
    images_of,
    messages_of,
    question,
    text_of,
)
from langchain_guardalign.testing.recording import Listener

EVENT = "guardalign.verdict"
PREFIX = colour_policy().prefix.strip()
NOT_PASSED_ON = ("block", "route")
REMOVED = ("mask", *NOT_PASSED_ON)
_MANY = 16
_NUMBER = re.compile(r"number (\d+)")


class RunnableContract(ABC):
    """Subclass it, name the class ``Test...``, and say how to make the runnable from a guard.

    Example:
        ```python
        from langchain_guardalign.testing.runnable_contract import RunnableContract


        class TestMyGuard(RunnableContract):
            def make(self, guard):
                return MyGuard(guard)
        ```

    The guard that `make` is given sees colours: red is masked, green asks for the prefix, blue is blocked, yellow
    routed, magenta flagged. pytest makes a new instance of the class for each test, so attributes may be set in `make`.

    A runnable whose output is not its sanitised input (a guarded model, a chain, a route) sets ``output_is_input`` to
    False and overrides `passed_on` to hand over what reached the model, for instance what a
    `langchain_guardalign.testing.recording.RecordingModel` received.

    Attributes:
        output_is_input: Whether the output is the input without what the policy forbids, of the same type.
        batches_at_once: Whether all images of a batch are one encoder pass.
        dispatches: Whether each checked input with an image dispatches one ``guardalign.verdict`` event.
        traces: What tracers receive of its own run. ``no_images``: words in place of every image.
            ``nothing_removed``: what goes on to the model behind it. ``anything``: that is not its own to decide, as in
            a `RunnableSequence`.
        configurable: Declared fields with another value each, to be set per call through ``configurable_fields``; the
            runnable has to guard as before with them.
        bad_input: Something that is no model input; an error.
        patience_s: Seconds after which an event loop that does not go on counts as blocked.
    """

    output_is_input: bool = True
    batches_at_once: bool = True
    dispatches: bool = True
    traces: Literal["no_images", "nothing_removed", "anything"] = "no_images"
    configurable: Mapping[str, Any] = {}
    bad_input: Any = 5
    patience_s: float = 5.0

    _seen: VerdictCache[Outcome]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Most tests show the same few images.
        cls._seen = VerdictCache()

    @abstractmethod
    def make(self, guard: Guard) -> Runnable[Any, Any]:
        """The runnable to test, guarding with ``guard``."""

    def make_from_settings(self, policy: Policy, cache_dir: Path) -> Runnable[Any, Any] | None:
        """The runnable made from plain settings, for the serialisation test; None if it cannot be serialised."""
        return None

    def passed_on(self, runnable: Runnable[Any, Any], outputs: Sequence[Any]) -> Sequence[Any]:
        """Everything that came out of the guard since ``runnable`` was made, in any order: model inputs.

        Args:
            runnable: What `make` made last.
            outputs: What it returned. By default that is what it passes on.
        """
        return outputs

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

    # What is passed on.

    @pytest.mark.parametrize("block", [image_block, image_url_block])
    def test_a_mask_covers_what_is_unsafe_and_nothing_else(self, guard: Guard, call: Call, block: Any) -> None:
        """Pixels, not records: the red square is gone and every other pixel is as it was."""
        image = canary("red", number=3)
        (messages,) = self._passed(guard, call, [HumanMessage([text_block(), block(image)])])
        images = images_of(messages)
        assert len(images) == 1, f"one image was to be masked and passed on; {len(images)} were passed on"
        assert not shows(images[0], "red"), "the unsafe region can still be seen in the masked image"
        assert without_first_square(images[0]) == without_first_square(image), "the mask changed other pixels too"

    @pytest.mark.parametrize("action", NOT_PASSED_ON)
    def test_a_blocked_image_is_not_passed_on(self, guard: Guard, call: Call, action: str) -> None:
        """Neither as an image nor as any text; raising `UnsafeContentError` is as good."""
        image = canary(ACTION_COLOURS[action])
        passed = self._passed(guard, call, question(image), may_raise=True)
        found = leaks(repr(passed), image)
        assert not found, f"an image to {action} was passed on: {', '.join(found)}"
        assert not any(map(images_of, passed)), f"some image was passed on in place of one to {action}"

    @pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
    def test_images_of_every_message_are_checked(self, guard: Guard, call: Call, role: str) -> None:
        """History, tool results and generated images reach the model like any other."""
        image = canary("blue")
        content: list[str | dict[Any, Any]] = [text_block("look"), image_block(image)]
        kinds: dict[str, BaseMessage] = {
            "system": SystemMessage(content),
            "user": HumanMessage(content),
            "assistant": AIMessage(content),
            "tool": ToolMessage(content, tool_call_id="call"),
        }
        passed = self._passed(guard, call, [kinds[role], AIMessage("Hm."), HumanMessage("And?")], may_raise=True)
        assert not leaks(repr(passed), image), f"a blocked image in an earlier {role} message was passed on"

    def test_an_image_nested_in_a_block_is_checked(self, guard: Guard, call: Call) -> None:
        """Tool results of some providers are blocks in blocks."""
        image = canary("blue")
        nested = {"type": "tool_result", "tool_use_id": "t", "content": [text_block("shot"), image_block(image)]}
        passed = self._passed(guard, call, [HumanMessage([nested])], may_raise=True)
        assert not leaks(repr(passed), image), "a blocked image inside a tool_result block was passed on"

    def test_an_image_that_cannot_be_checked_is_passed_on_only_if_the_policy_says_so(
        self, tmp_path: Path, call: Call
    ) -> None:
        """An image that was not checked is not the same as no image."""
        value = [HumanMessage([text_block(), url_block()])]
        passed = self._passed(colour_guard(tmp_path), call, value, may_raise=True)
        assert not leaks(repr(passed)), "an image behind a URL was passed on unseen although the policy blocks it"
        (messages,) = self._passed(colour_guard(tmp_path, failure={"uninspectable": "allow"}), call, value)
        assert leaks(repr(messages)), "an image behind a URL was not passed on although the policy allows it"

    def test_an_encoder_that_fails_blocks_unless_the_policy_says_otherwise(self, tmp_path: Path, call: Call) -> None:
        """`failure.on_error` of the policy decides."""
        image = canary()
        for rule in ("block", "allow"):
            guard = _prepared(colour_guard(tmp_path, failure={"on_error": rule}))
            _encoder(guard).failure = RuntimeError("out of memory")
            passed = self._passed(guard, call, question(image), may_raise=rule == "block")
            came = [number_of(each) for messages in passed for each in images_of(messages)]
            assert came == ([0] if rule == "allow" else []), f"detection failed, the policy says {rule}: {came} passed"

    def test_the_text_beside_an_image_is_passed_on(self, guard: Guard, call: Call) -> None:
        """A mask is for pixels."""
        (messages,) = self._passed(guard, call, question(canary("red"), words="What colour is the sky?"))
        assert "What colour is the sky?" in text_of(messages), "the text of a message with a masked image was lost"

    def test_monitor_mode_changes_nothing_that_a_model_reads(self, tmp_path: Path, call: Call) -> None:
        """It reports only."""
        images = [canary(colour, number=n) for n, colour in enumerate(("red", "blue", "yellow", "green"))]
        value = [*question(*images), *question(canary(number=9), words="And this?")]
        (messages,) = self._passed(colour_guard(tmp_path, mode="monitor"), call, value)
        assert [message.content for message in messages] == [message.content for message in value], (
            "monitor mode changed what is passed on"
        )

    def test_text_alone_is_passed_on_as_it_is_and_cost_no_encoder_pass(self, guard: Guard, call: Call) -> None:
        """Most chats hold no image."""
        before = len(_encoder(guard).calls)
        value = [SystemMessage("Be brief."), HumanMessage("hello"), AIMessage("hi"), HumanMessage("bye")]
        (messages,) = self._passed(guard, call, value)
        assert [message.content for message in messages] == [message.content for message in value], (
            "a chat without images was changed"
        )
        assert len(_encoder(guard).calls) == before, "a chat without images went through the encoder"

    # The safety prefix.

    @pytest.mark.parametrize("colour", ["green", "red"])
    def test_the_prefix_is_given_once(self, guard: Guard, call: Call, colour: str) -> None:
        """However many images ask for it, and if it is there already."""
        value = question(canary(colour), canary(colour, number=1))
        (messages,) = self._passed(guard, call, value)
        assert text_of(messages).count(PREFIX) == 1, f"the prefix was given {text_of(messages).count(PREFIX)} times"
        (again,) = self._passed(guard, call, [*messages, AIMessage("green"), *question(canary(colour, number=2))])
        assert text_of(again).count(PREFIX) == 1, "the prefix was given again in the next turn"

    def test_no_prefix_is_given_without_a_finding(self, guard: Guard, call: Call) -> None:
        """`prefix_when` is ``finding`` in this policy."""
        (messages,) = self._passed(guard, call, question(canary()))
        assert PREFIX not in text_of(messages), "the prefix was given although nothing was found"

    # Shape and identity of inputs and outputs.

    @pytest.mark.parametrize("action", ["allow", *ACTION_COLOURS])
    def test_the_input_is_never_changed(self, guard: Guard, call: Call, action: str) -> None:
        """The app's own history must keep what the user sent."""
        value = question(canary(ACTION_COLOURS.get(action, "white")))
        before = copy.deepcopy(value)
        self._passed(guard, call, value, may_raise=action in NOT_PASSED_ON)
        assert value == before, f"the input was changed in place (action {action})"

    def test_an_input_without_findings_comes_back_as_the_very_same_object(self, guard: Guard, call: Call) -> None:
        """It keeps ids, prompt caches and equality intact."""
        self._needs_output_is_input()
        for value in _inputs(canary()):
            output = call(self.make(guard), "invoke", value)
            assert output is value, f"a {type(value).__name__} without findings came back as another object"

    def test_an_input_comes_back_as_the_type_it_was(self, guard: Guard, call: Call) -> None:
        """A list as a list, a prompt value as a prompt value."""
        self._needs_output_is_input()
        for value in _inputs(canary("red")):
            output = call(self.make(guard), "invoke", value)
            assert type(output) is type(value), f"a {type(value).__name__} came back as a {type(output).__name__}"

    def test_a_changed_message_keeps_its_id_name_and_metadata(self, guard: Guard, call: Call) -> None:
        """LangGraph replaces messages by id; without it a masked copy is added and the original stays."""
        content: list[Any] = [text_block(), image_block(canary("red"), id="block")]
        message = HumanMessage(
            content, id="message", name="Ann", additional_kwargs={"a": 1}, response_metadata={"b": 2}
        )
        (messages,) = self._passed(guard, call, [message])
        passed = messages[-1]
        assert passed.id == "message", "the id of a changed message was lost"
        assert passed.name == "Ann", "the name of a changed message was lost"
        assert passed.additional_kwargs == {"a": 1}, "additional_kwargs of a changed message were lost"
        assert passed.response_metadata.get("b") == 2, "response_metadata of a changed message was lost"
        ids = [block["id"] for block in passed.content if isinstance(block, dict) and "id" in block]
        assert ids == ["block"], "the id of a changed block was lost"

    @pytest.mark.parametrize("action", ["allow", *ACTION_COLOURS])
    def test_guarding_what_was_passed_on_changes_nothing(self, guard: Guard, call: Call, action: str) -> None:
        """Chats come back turn by turn."""
        value = question(canary(ACTION_COLOURS.get(action, "white")))
        for messages in self._passed(guard, call, value, may_raise=True):
            (again,) = self._passed(guard, call, messages)
            assert [message.content for message in again] == [message.content for message in messages], (
                f"guarding twice is not the same as guarding once (action {action})"
            )

    def test_an_empty_chat_does_no_harm(self, guard: Guard, call: Call) -> None:
        """LangGraph may begin with one."""
        assert all(not messages for messages in self._passed(guard, call, [])), "an empty chat was not passed on empty"

    # Ways of calling.

    @pytest.mark.parametrize("action", ["allow", *ACTION_COLOURS])
    def test_sync_and_async_give_the_same(self, guard: Guard, action: str) -> None:
        """A test of one is a test of the other."""
        value = question(canary(ACTION_COLOURS.get(action, "white")))
        sync, twin = (_ending(call, self.make(guard), "invoke", value) for call in (call_sync, call_async))
        assert sync == twin, f"invoke and ainvoke differ (action {action}): {sync[0]} and {twin[0]}"

    @pytest.mark.parametrize("method", ["batch", "stream", "transform", "batch_as_completed"])
    @pytest.mark.parametrize("action", ["allow", "mask", "block"])
    def test_every_way_of_calling_gives_what_invoke_gives(
        self, guard: Guard, call: Call, method: str, action: str
    ) -> None:
        """A guard that only some methods go through is none."""
        value = question(canary(ACTION_COLOURS.get(action, "white")))
        wanted = _ending(call, self.make(guard), "invoke", value)
        runnable = self.make(guard)
        given = _ending(call, runnable, method, value)
        name = method if call is call_sync else f"a{method}"
        assert given == wanted, f"{name} and invoke differ (action {action}): {given[0]} and {wanted[0]}"
        if action in NOT_PASSED_ON:
            passed = self.passed_on(runnable, [])
            assert not leaks(repr(passed), canary(ACTION_COLOURS[action])), f"{name} passed a blocked image on"

    def test_a_batch_answers_in_order(self, guard: Guard, call: Call) -> None:
        """Also if its inputs meet different ends."""
        values = [question(canary(colour, number=n)) for n, colour in enumerate(("white", "red", "green", "magenta"))]
        wanted = [essence(call(self.make(guard), "invoke", value)) for value in values]
        given = [essence(output) for output in call(self.make(guard), "batch", values)]
        assert given == wanted, "batch does not give what invoke gives for each input, in order"

    def test_a_batch_is_one_encoder_pass(self, new_guard: Guard, call: Call) -> None:
        """The encoder is what costs."""
        if not self.batches_at_once:
            pytest.skip("batches_at_once is False")
        before = len(_encoder(new_guard).calls)
        call(self.make(new_guard), "batch", [question(canary(number=n)) for n in range(5)])
        passes = len(_encoder(new_guard).calls) - before
        assert passes == 1, f"five inputs of one batch took {passes} encoder passes"

    def test_an_image_seen_before_costs_no_encoder_pass(self, new_guard: Guard, call: Call) -> None:
        """Each turn of a chat brings the whole history again."""
        value, before = question(canary()), len(_encoder(new_guard).calls)
        self._passed(new_guard, call, value)
        self._passed(new_guard, call, [*value, AIMessage("white"), HumanMessage("Sure?")])
        passes = len(_encoder(new_guard).calls) - before
        assert passes == 1, f"one image in two turns took {passes} encoder passes"

    def test_errors_of_a_batch_can_be_had_as_results(self, guard: Guard, call: Call) -> None:
        """One unreadable input spoils the others only if the caller wants it to."""
        values = [question(canary()), self.bad_input, question(canary(number=1))]
        outputs = call(self.make(guard), "batch", values, return_exceptions=True)
        assert isinstance(outputs[1], Exception), "return_exceptions=True did not return the error of a bad input"
        wanted = [essence(call(self.make(guard), "invoke", values[n])) for n in (0, 2)]
        assert [essence(outputs[n]) for n in (0, 2)] == wanted, "a bad input changed the results of the others"
        with pytest.raises(type(outputs[1])):
            call(self.make(guard), "batch", values)

    def test_an_empty_batch_is_empty(self, guard: Guard, call: Call) -> None:
        """And no error."""
        assert call(self.make(guard), "batch", []) == [], "the batch of nothing is not an empty list"

    def test_threads_do_not_mix_up_their_images(self, guard: Guard) -> None:
        """LangChain calls one runnable from several threads: its own batches and parallel steps do."""
        runnable = self.make(guard)
        with ThreadPoolExecutor(_MANY) as pool:
            outputs = list(pool.map(runnable.invoke, _numbered()))
        self._is_each_its_own(self.passed_on(runnable, outputs))

    def test_tasks_do_not_mix_up_their_images(self, guard: Guard) -> None:
        """The same on one event loop."""
        runnable = self.make(guard)

        async def gather() -> list[Any]:
            return await asyncio.gather(*map(runnable.ainvoke, _numbered()))

        self._is_each_its_own(self.passed_on(runnable, asyncio.run(gather())))

    def test_async_calls_leave_the_event_loop_free(self, new_guard: Guard) -> None:
        """The encoder waits for something that only happens if the loop goes on."""
        encoder, is_free, waits = _encoder(new_guard), threading.Event(), []
        encode = encoder.encode_crops

        def encode_when_free(crops: Any) -> Any:
            waits.append(is_free.wait(self.patience_s))
            return encode(crops)

        encoder.encode_crops = encode_when_free  # type: ignore[method-assign]

        async def both() -> None:
            task = asyncio.create_task(self.make(new_guard).ainvoke(question(canary())))
            while not waits and not task.done() and not is_free.is_set():
                await asyncio.sleep(0.01)
                is_free.set()
            await task

        asyncio.run(both())
        assert waits == [True], "ainvoke blocks the event loop while the encoder works"

    # Configuration and composition.

    def test_the_config_reaches_the_run(self, guard: Guard, call: Call) -> None:
        """Name, tags and metadata are what people search traces by."""
        listener = Listener()
        config = {"callbacks": [listener], "tags": ["a"], "metadata": {"b": "c"}, "run_name": "gate"}
        call(self.make(guard), "invoke", question(canary()), config)
        assert [run.name for run in listener.outermost] == ["gate"], "run_name did not reach the run, or it has no run"
        assert "a" in listener.outermost[0].tags, "tags did not reach the run"
        assert listener.outermost[0].metadata.get("b") == "c", "metadata did not reach the run"

    def test_a_bound_config_guards_as_before(self, guard: Guard, call: Call) -> None:
        """`with_config` must not lose the guard."""
        listener = Listener()

        def named(guard: Guard) -> Runnable[Any, Any]:
            return self.make(guard).with_config(run_name="gate", tags=["a"], callbacks=[listener])

        (messages,) = self._passed(guard, call, question(canary("red")), make=named)
        assert not shows(images_of(messages)[0], "red"), "with_config lost the guard"
        assert [(run.name, "a" in run.tags) for run in listener.outermost] == [("gate", True)], "with_config was lost"

    def test_retries_guard_as_before(self, guard: Guard, call: Call) -> None:
        """`with_retry` must not lose the guard."""
        (messages,) = self._passed(
            guard, call, question(canary("red")), make=lambda guard: self.make(guard).with_retry(stop_after_attempt=2)
        )
        assert not shows(images_of(messages)[0], "red"), "with_retry lost the guard"

    def test_fallbacks_guard_as_before_and_are_given_nothing_that_was_not_checked(
        self, guard: Guard, call: Call
    ) -> None:
        """`with_fallbacks` must not lose the guard, nor hand on what it blocked or could not read."""
        given: list[Any] = []

        def saved(guard: Guard) -> Runnable[Any, Any]:
            return self.make(guard).with_fallbacks([RunnableLambda(given.append)])

        (messages,) = self._passed(guard, call, question(canary("red")), make=saved)
        assert not shows(images_of(messages)[0], "red"), "with_fallbacks lost the guard"
        _error_of(call, saved(guard), "invoke", question(canary("blue")), None)
        found = leaks_of(repr(given), canary("blue"))
        assert not found, f"a fallback was given {', '.join(found)}, which was blocked"

    def test_fields_can_be_set_per_call(self, new_guard: Guard, call: Call) -> None:
        """A copy made by `configurable_fields` must guard with the same guard."""
        if not self.configurable:
            pytest.skip("no configurable fields are declared")
        for name, value in self.configurable.items():
            before = len(_encoder(new_guard).calls)

            def configured(guard: Guard, name: str = name) -> Runnable[Any, Any]:
                return self.make(guard).configurable_fields(**{name: ConfigurableField(id=name)})  # type: ignore[attr-defined, no-any-return]

            (messages,) = self._passed(
                new_guard,
                call,
                question(canary("red", number=before)),
                make=configured,
                config={"configurable": {name: value}},
            )
            assert not shows(images_of(messages)[0], "red"), f"setting {name} per call lost the guard"
            assert len(_encoder(new_guard).calls) > before, f"setting {name} per call checked with another guard"

    @pytest.mark.filterwarnings("ignore:The function `load` is in beta")
    def test_it_comes_back_from_its_dump(self, tmp_path: Path) -> None:
        """If it says that it is serialisable."""
        runnable = self.make_from_settings(colour_policy(), tmp_path)
        if runnable is None:
            pytest.skip("make_from_settings gives None")
        assert isinstance(runnable, Serializable), "it can be made from settings but is no Serializable"
        data = json.loads(dumps(runnable))
        assert data["type"] == "constructor", f"it can be made from settings but dumps gives {data['type']}"
        again = load(data, allowed_objects=[type(runnable)], valid_namespaces=[data["id"][0]])
        assert again == runnable, "load does not give back what dumps was given"

    # What is reported, logged and traced.

    def test_each_checked_input_with_an_image_is_reported_once(self, guard: Guard, call: Call) -> None:
        """And none without an image: an event means that something was checked."""
        if not self.dispatches:
            pytest.skip("dispatches is False")
        for method in ("invoke", "batch", "stream", "transform"):
            for value, wanted in ((question(canary("red"), canary()), ["mask"]), ([HumanMessage("hello")], [])):
                listener = Listener()
                _ending(call, self.make(guard), method, value, {"callbacks": [listener]})
                reported = [data for name, data in listener.events if name == EVENT]
                assert [data["action"] for data in reported] == wanted, (
                    f"{method} of an input with{'' if wanted else 'out'} images: {len(reported)} {EVENT} events"
                )
                assert not reported or len(reported[0]["verdicts"]) == 2, "an event must hold one verdict per image"
                json.dumps(reported)

    def test_each_input_of_a_batch_is_reported_to_its_own_listeners(self, guard: Guard, call: Call) -> None:
        """Not all to one of them."""
        if not self.dispatches:
            pytest.skip("dispatches is False")
        listeners = [Listener(), Listener(), Listener()]
        values = [question(canary("red")), [HumanMessage("hello")], question(canary("green"))]
        call(self.make(guard), "batch", values, [{"callbacks": [listener]} for listener in listeners])
        reported = [[data["action"] for name, data in listener.events if name == EVENT] for listener in listeners]
        assert reported == [["mask"], [], ["prefix"]], f"the inputs of a batch were reported as {reported}"

    @pytest.mark.parametrize("action", ["allow", *ACTION_COLOURS])
    def test_no_pixel_is_reported_logged_or_traced(
        self, guard: Guard, call: Call, caplog: pytest.LogCaptureFixture, action: str
    ) -> None:
        """Logs, events, errors, representations and traces outlive the chat, and more people read them."""
        caplog.set_level(logging.DEBUG)
        listener, runnable = Listener(), self.make(guard)
        image = canary(ACTION_COLOURS.get(action, "white"))
        value = [HumanMessage([text_block(), image_block(image), url_block()])]
        errors = [
            _error_of(call, runnable, method, value, {"callbacks": [listener]})
            for method in ("invoke", "batch", "stream")
        ]
        self._holds_no_pixel("a log record", caplog.text, image)
        self._holds_no_pixel("a custom event", repr(listener.events), image)
        self._holds_no_pixel("an exception", "".join(errors), image)
        self._holds_no_pixel("repr", repr(runnable), image)
        self._holds_no_pixel("dumps", dumps(runnable), image)
        reported = [run.reported for run in listener.outermost]
        if self.traces == "no_images":
            assert reported, "tracers received no run"
            self._holds_no_pixel("what tracers receive of its own run", repr(reported), image)
        elif self.traces == "nothing_removed":
            found = leaks_of(repr(reported), *([image] if action in REMOVED else []))
            assert not found, f"what tracers receive of its own run holds {', '.join(found)}, which was removed"

    def _needs_output_is_input(self) -> None:
        if not self.output_is_input:
            pytest.skip("output_is_input is False")

    def _passed(
        self,
        guard: Guard,
        call: Call,
        value: Any,
        *,
        make: Callable[[Guard], Runnable[Any, Any]] | None = None,
        config: Any = None,
        may_raise: bool = False,
    ) -> list[list[BaseMessage]]:
        """The chats that reach a model if a new runnable is invoked with ``value``."""
        runnable = (make or self.make)(guard)
        outputs = []
        try:
            outputs.append(call(runnable, "invoke", value, config))
        except UnsafeContentError:
            if not may_raise:
                raise
        return [messages_of(passed) for passed in self.passed_on(runnable, outputs)]

    def _is_each_its_own(self, passed: Sequence[Any]) -> None:
        pairs = [
            (int(_NUMBER.findall(words_in(message.content))[0]), number_of(image))
            for messages in map(messages_of, passed)
            for message in messages
            for image in images_in(message.content)
        ]
        assert sorted(pairs) == [(n, n) for n in range(_MANY)], (
            "images were lost, doubled, or came out beside another chat's words"
        )

    def _holds_no_pixel(self, what: str, said: str, image: Any) -> None:
        found = leaks(said, image)
        assert not found, f"{what} holds {', '.join(found)}"


def _value_of(call: Call, runnable: Runnable[Any, Any], method: str, value: Any, config: Any = None) -> Any:
    """One input through any method: its one output."""
    if method == "invoke":
        return call(runnable, method, value, config)
    if method in ("batch", "batch_as_completed"):
        (output,) = call(runnable, method, [value], config)
        return output[1] if method == "batch_as_completed" else output
    fed = iter([value]) if method == "transform" else value
    return functools.reduce(operator.add, call(runnable, method, fed, config))


def _error_of(call: Call, runnable: Runnable[Any, Any], method: str, value: Any, config: Any) -> str:
    """All that the error of a call says, empty if there is none."""
    try:
        _value_of(call, runnable, method, value, config)
    except UnsafeContentError as error:
        return f"{error!r} {error} {error.verdict!r} {error.__context__!r} {error.__cause__!r}"
    return ""


def _ending(call: Call, runnable: Runnable[Any, Any], method: str, value: Any, config: Any = None) -> tuple[str, Any]:
    """How one input ends: as a result or as an error that the policy asked for."""
    try:
        return "a result", essence(_value_of(call, runnable, method, value, config))
    except UnsafeContentError as error:
        return "UnsafeContentError", error.verdict.digest


def _inputs(image: Any) -> list[Any]:
    """One image in each type of model input that can hold one."""
    return [
        question(image),
        tuple(question(image)),
        [ask(image)],
        ChatPromptValue(messages=question(image)),
    ]


def _numbered() -> list[Any]:
    colours = ("white", "red", "green", "magenta")
    return [question(canary(colours[n % len(colours)], number=n), words=f"number {n}") for n in range(_MANY)]


def _prepared(guard: Guard) -> Guard:
    guard.prepare()
    return guard


def _encoder(guard: Guard) -> ColourEncoder:
    encoder = guard.detector.encoder
    assert isinstance(encoder, ColourEncoder), "the guard of a contract sees colours"
    return encoder
