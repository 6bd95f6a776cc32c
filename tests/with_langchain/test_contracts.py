"""Our own components keep the contracts that we publish, and broken ones are caught by them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import broken_guards as broken
import pytest
from langchain_core.runnables import Runnable, RunnableLambda

from guardalign_guardrails import Guard, GuardSettings, Policy
from guardalign_guardrails.testing.chats import CANARY_URL, canary, image_block, images_in, leaks, number_of, shows
from guardalign_guardrails.testing.colours import COLOURS, colour_guard, painted
from langchain_guardalign import ImageGuard
from langchain_guardalign.agents.middleware import GuardAlignMiddleware
from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.testing.messages import call_async, call_sync
from langchain_guardalign.testing.middleware_contract import MiddlewareContract
from langchain_guardalign.testing.recording import RecordingModel
from langchain_guardalign.testing.runnable_contract import RunnableContract


class TestImageGuard(RunnableContract):
    configurable: ClassVar = {"on_violation": "raise", "placement": "user", "artifacts": True}

    def make(self, guard: Guard) -> Runnable[Any, Any]:
        return ImageGuard(guard)

    def make_from_settings(self, policy: Policy, cache_dir: Path) -> Runnable[Any, Any]:
        return ImageGuard(
            GuardSettings(policy=policy, encoder="open_clip:x/y", cache_dir=cache_dir), on_violation="raise"
        )


class TestImageGuardThatRaises(RunnableContract):
    configurable: ClassVar = {"on_violation": "notice"}

    def make(self, guard: Guard) -> Runnable[Any, Any]:
        return ImageGuard(guard, on_violation="raise")


class TestImageGuardInAChain(RunnableContract):
    output_is_input = False
    traces = "anything"

    def make(self, guard: Guard) -> Runnable[Any, Any]:
        self.received: list[Any] = []
        return ImageGuard(guard) | RunnableLambda(self.keep)

    def keep(self, value: Any) -> int:
        self.received.append(value)
        return len(value)

    def passed_on(self, runnable: Runnable[Any, Any], outputs: Sequence[Any]) -> Sequence[Any]:
        return self.received


class TestGuardedRoute(RunnableContract):
    output_is_input = False
    traces = "nothing_removed"

    def make(self, guard: Guard) -> Runnable[Any, Any]:
        self.model, self.other = RecordingModel(), RecordingModel(words=("no",))
        return ImageGuard(guard).route(self.model, self.other)

    def passed_on(self, runnable: Runnable[Any, Any], outputs: Sequence[Any]) -> Sequence[Any]:
        return [*self.model.received, *self.other.received]


class TestGuardedChatModel(RunnableContract):
    output_is_input = False
    traces = "nothing_removed"
    settings: ClassVar[dict[str, Any]] = {}

    def make(self, guard: Guard) -> Runnable[Any, Any]:
        self.model, self.other = RecordingModel(), RecordingModel(words=("no",))
        return GuardedChatModel(model=self.model, guard=guard, route_to=self.other, **self.settings)

    def passed_on(self, runnable: Runnable[Any, Any], outputs: Sequence[Any]) -> Sequence[Any]:
        return [*self.model.received, *self.other.received]


@pytest.mark.slow
class TestGuardedChatModelThatRaises(TestGuardedChatModel):
    settings: ClassVar = {"on_violation": "raise"}


class TestGuardAlignMiddleware(MiddlewareContract):
    checks_artifacts = True
    settings: ClassVar[dict[str, Any]] = {}

    def make(self, guard: Guard) -> Any:
        return GuardAlignMiddleware(guard, artifacts=True, **self.settings)

    def make_second(self, guard: Guard) -> Any:
        return GuardAlignMiddleware(guard, artifacts=True, name="Second", **self.settings)


@pytest.mark.slow
class TestGuardAlignMiddlewareThatRaises(TestGuardAlignMiddleware):
    settings: ClassVar = {"on_violation": "raise"}


class TestGuardAlignMiddlewareThatDoesNotPersist(TestGuardAlignMiddleware):
    persists = False
    checks_artifacts = False
    settings: ClassVar = {"persist": False}


class OfRunnable(RunnableContract):
    patience_s = 0.2

    def __init__(self, made: type[ImageGuard], **settings: Any) -> None:
        self.made, self.settings = made, settings
        self.configurable = {"on_violation": "raise"}

    def make(self, guard: Guard) -> Runnable[Any, Any]:
        return self.made(guard, **self.settings)

    def make_from_settings(self, policy: Policy, cache_dir: Path) -> Runnable[Any, Any]:
        return self.made(
            GuardSettings(policy=policy, encoder="open_clip:x/y", cache_dir=cache_dir), on_violation="raise"
        )


class OfMiddleware(MiddlewareContract):
    def __init__(self, made: type[broken.SoundMiddleware]) -> None:
        self.made = made

    def make(self, guard: Guard) -> Any:
        return self.made(guard)

    def make_second(self, guard: Guard) -> Any:
        return self.made(guard, "Second")


@pytest.fixture
def given(tmp_path, caplog) -> dict[str, Any]:
    """What tests of a contract ask for, unless a case says otherwise."""
    return {"call": call_sync, "tmp_path": tmp_path, "caplog": caplog, "action": "block"}


def run(contract: Any, test: str, given: dict[str, Any]) -> None:
    guard = colour_guard(given["tmp_path"])
    guard.prepare()
    given = {"guard": guard, "new_guard": guard, **given}
    method = getattr(contract, f"test_{test}")
    method(**{name: given[name] for name in inspect.signature(method).parameters})


class TestTheRunnableContract:
    @pytest.mark.parametrize(
        ("fault", "test", "case", "words"),
        [
            ("ChangesItsInput", "the_input_is_never_changed", {"action": "mask"}, "changed in place"),
            ("SkipsAsync", "sync_and_async_give_the_same", {"action": "mask"}, "invoke and ainvoke differ"),
            ("SkipsAsync", "a_blocked_image_is_not_passed_on", {"call": call_async}, "image to block"),
            ("BlocksTheLoop", "async_calls_leave_the_event_loop_free", {}, "blocks the event loop"),
            (
                "SkipsStreams",
                "every_way_of_calling_gives_what_invoke_gives",
                {"method": "transform"},
                "transform and invoke differ",
            ),
            (
                "SkipsBatches",
                "every_way_of_calling_gives_what_invoke_gives",
                {"method": "batch"},
                "batch and invoke differ",
            ),
            ("ChecksOneByOne", "a_batch_is_one_encoder_pass", {}, "took 5 encoder passes"),
            ("MixesUpBatches", "a_batch_answers_in_order", {}, "in order"),
            ("DropsIds", "a_changed_message_keeps_its_id_name_and_metadata", {}, "id of a changed message was lost"),
            ("AlwaysCopies", "an_input_without_findings_comes_back_as_the_very_same_object", {}, "another object"),
            ("ReturnsLists", "an_input_comes_back_as_the_type_it_was", {}, "tuple came back as a list"),
            ("RepeatsThePrefix", "the_prefix_is_given_once", {"colour": "green"}, "given again"),
            ("RepeatsThePrefix", "guarding_what_was_passed_on_changes_nothing", {"action": "mask"}, "guarding twice"),
            ("LooksAtTheLastMessage", "images_of_every_message_are_checked", {"role": "tool"}, "earlier tool"),
            (
                "TakesAMaskForSmaller",
                "a_mask_covers_what_is_unsafe_and_nothing_else",
                {"block": image_block},
                "changed other pixels",
            ),
            ("SwapsInAnImage", "a_blocked_image_is_not_passed_on", {}, "some image was passed on"),
            ("LosesTheWords", "the_text_beside_an_image_is_passed_on", {}, "text of a message"),
            ("LetsFailuresPass", "an_encoder_that_fails_blocks_unless_the_policy_says_otherwise", {}, "says block"),
            (
                "LetsFailuresPass",
                "an_image_that_cannot_be_checked_is_passed_on_only_if_the_policy_says_so",
                {},
                "passed on unseen",
            ),
            ("ActsInMonitorMode", "monitor_mode_changes_nothing_that_a_model_reads", {}, "monitor mode"),
            ("KeepsItOnItself", "threads_do_not_mix_up_their_images", {}, "another chat's words"),
            ("DropsTheConfig", "the_config_reaches_the_run", {}, "run_name"),
            ("AnnouncesTwice", "each_checked_input_with_an_image_is_reported_once", {}, "2 guardalign.verdict"),
            ("AnnouncesImages", "no_pixel_is_reported_logged_or_traced", {}, "a custom event holds"),
            ("LogsImages", "no_pixel_is_reported_logged_or_traced", {}, "a log record holds"),
            ("RaisesWithImages", "no_pixel_is_reported_logged_or_traced", {}, "an exception holds"),
            ("ShowsImages", "no_pixel_is_reported_logged_or_traced", {}, "repr holds"),
            ("TracesImages", "no_pixel_is_reported_logged_or_traced", {}, "tracers receive"),
            ("ForgetsASetting", "it_comes_back_from_its_dump", {}, "load does not give back"),
            ("MakesItsOwnGuard", "fields_can_be_set_per_call", {}, "another guard"),
            ("ForgetsWhatItSaw", "an_image_seen_before_costs_no_encoder_pass", {}, "2 encoder passes"),
        ],
    )
    def test_catches_a_guard_that(self, given, fault, test, case, words):
        given = {**given, **case}
        run(OfRunnable(ImageGuard), test, given)
        with pytest.raises(AssertionError, match=words):
            run(OfRunnable(getattr(broken, fault)), test, given)

    def test_catches_a_batch_that_raises_no_errors(self, given):
        test = "errors_of_a_batch_can_be_had_as_results"
        run(OfRunnable(ImageGuard), test, given)
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            run(OfRunnable(broken.HidesErrorsOfBatches), test, given)


class TestTheMiddlewareContract:
    @pytest.mark.parametrize(
        ("fault", "test", "case", "words"),
        [
            ("SyncOnly", "sync_and_async_give_the_same", {"action": "mask"}, "invoke and ainvoke"),
            ("SyncOnly", "a_blocked_image_never_reaches_the_model", {"call": call_async}, "of the user"),
            ("OnlyTheLastMessage", "an_image_of_an_earlier_turn_never_reaches_the_model", {}, "in the history"),
            (
                "OnlyWhatPeopleSay",
                "a_blocked_image_of_a_tool_never_reaches_the_model",
                {"result": "command"},
                "tool that returns a command",
            ),
            (
                "OnlyMessagesWithoutWords",
                "a_mask_covers_what_is_unsafe_in_what_the_user_says",
                {"block": image_block},
                "can still be seen",
            ),
            ("OnlyOnce", "an_image_of_a_tool_is_masked", {"result": "content"}, "can still be seen"),
            (
                "NewIds",
                "a_changed_message_takes_the_place_of_the_original",
                {"message_id": "message"},
                "'human', 'ai', 'human', 'human'",
            ),
            ("DoesNotPersist", "the_checkpoint_holds_the_masked_image_after_the_turn", {}, "can still be seen"),
            ("DoesNotPersist", "a_blocked_image_is_gone_from_the_next_turn", {}, "still in the agent's state"),
            ("DoesNotPersist", "no_stream_gives_out_what_was_removed", {"mode": "values"}, "gives out"),
            ("PrefixInTheState", "agents_without_images_are_left_alone", {}, "ended another way"),
            ("GivesThePrefixTwice", "the_prefix_is_given_once_to_each_model_call", {}, "the prefix 2 times"),
            ("TracesItsInput", "no_pixel_is_reported_logged_or_traced", {}, "trace of TracesItsInput"),
            ("TracesItsRequest", "no_pixel_is_reported_logged_or_traced", {"action": "allow"}, "wrap_model_call holds"),
            ("TellsImages", "no_pixel_is_reported_logged_or_traced", {}, "a custom event holds"),
            ("TellsImages", "no_stream_gives_out_what_was_removed", {"mode": "custom"}, "custom"),
            ("OneName", "two_of_them_work_in_one_agent", {}, "duplicate middleware"),
            ("RaisesEachTime", "a_chat_goes_on_after_a_blocked_image", {}, "harmless turn raised"),
            ("OnlyWhatPeopleSay", "a_paused_thread_goes_on_when_the_policy_is_edited", {}, "can still be seen"),
            ("NamedByItsPolicy", "a_paused_thread_goes_on_when_the_policy_is_edited", {}, "without the model"),
            ("CarriesOver", "one_of_them_serves_several_threads_of_an_agent", {}, "gave the model"),
            ("HoldsTheAnswerBack", "the_models_tokens_are_streamed", {}, "three tokens"),
        ],
    )
    def test_catches_a_middleware_that(self, given, fault, test, case, words):
        given = {**given, **case}
        run(OfMiddleware(broken.SoundMiddleware), test, given)
        made = type(fault, (getattr(broken, fault),), {"__init__": _named(fault)})
        with pytest.raises(AssertionError, match=words):
            run(OfMiddleware(made), test, given)


def _named(fault: str) -> Any:
    def init(self: Any, guard: Guard, name: str = fault) -> None:
        broken.SoundMiddleware.__init__(self, guard, name)

    return init


class TestCanaries:
    @pytest.mark.parametrize("colour", COLOURS)
    def test_the_encoder_sees_them_as_it_sees_painted_ones(self, tmp_path, colour):
        guard = colour_guard(tmp_path)
        noisy, plain = (guard.check(make(colour)).verdict for make in (canary, painted))
        assert noisy.categories == plain.categories
        assert noisy.digest != plain.digest

    def test_they_are_told_apart_and_read_back(self):
        images = [canary("red", number=n) for n in (0, 7, 100)]
        assert [number_of(image) for image in images_in([image_block(each) for each in images])] == [0, 7, 100]
        with pytest.raises(ValueError, match="at most 100"):
            canary(number=101)

    def test_a_colour_is_seen_through_the_noise_and_only_where_it_is(self):
        assert shows(canary("red", "blue"), "red")
        assert not shows(canary("blue"), "red")

    @pytest.mark.parametrize(
        ("said", "form"),
        [
            (lambda image: repr(image_block(image)), "base64"),
            (lambda image: repr(image_block(image)["base64"][300:-300]), "image 0 as base64"),
            (lambda image: repr(image.tobytes()), "image 0 as bytes"),
            (lambda image: image.tobytes().hex(), "image 0 as hex"),
            (lambda image: "data:image/webp;base64,AAAA", "a data URL"),
            (lambda image: f"see {CANARY_URL}", "the URL of an image"),
        ],
    )
    def test_a_leak_is_found_in_every_form_it_may_take(self, said, form):
        image = canary("red")
        assert any(form in found for found in leaks(said(image), image))

    def test_what_holds_no_image_leaks_nothing(self):
        assert leaks(f"{canary()!r} of digest 0a0a and words", canary()) == []


@pytest.mark.slow
def test_the_colours_need_neither_langchain_nor_pytest():
    script = (
        "import sys; import guardalign_guardrails.testing.colours, guardalign_guardrails.testing.chats;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'pytest', 'langchain_core', 'langchain'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
