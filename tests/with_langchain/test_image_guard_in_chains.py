"""A guard as a step of a chain: streaming, configuration, and what it leaves on record."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest
from chat_images import (
    MASKED,
    Listener,
    ask,
    b64,
    image_of,
    stream,
    text,
    v1,
)
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.load import dumps, load
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableParallel, RunnablePassthrough
from pydantic import ValidationError

from guardalign_guardrails import GuardSettings, Policy, SettingsError, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.testing.colours import CELL, colour_guard, colour_policy, painted
from langchain_guardalign import ImageGuard


class TestInChains:
    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_model_behind_a_guard_streams_its_tokens(self, guard, is_async):
        model = GenericFakeChatModel(messages=iter([AIMessage("one two three")]))
        chunks = [chunk.content for chunk in stream(guard | model, ask(painted("red")), is_async)]
        assert [chunk for chunk in chunks if chunk] == ["one", " ", "two", " ", "three"]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_guard_streams_its_one_result(self, guard, is_async):
        messages = ask(painted())
        assert stream(guard, messages, is_async) == [messages]

    def test_it_works_in_a_parallel_step_and_with_config(self, guard, call):
        listener = Listener()
        named = guard.with_config(run_name="gate", tags=["safety"], callbacks=[listener])
        chain = RunnableParallel(clean=named, raw=RunnablePassthrough())
        messages = ask(painted("red"))
        out = call(chain, "invoke", messages)
        assert out["raw"] is messages
        assert image_of(out["clean"][-1].content[1]).tobytes() == MASKED.tobytes()
        assert len(listener.events) == 1

    def test_keyword_arguments_meant_for_a_model_do_no_harm(self, guard):
        assert guard.invoke("words", stop=["x"]) == "words"

    def test_configurable_fields_do_not_load_an_encoder_again(self, cache_dir):
        guard = ImageGuard(GuardSettings(cache_dir=cache_dir))
        other = ImageGuard(GuardSettings(cache_dir=cache_dir), on_violation="raise")
        assert guard.guard.guard is other.guard.guard
        assert guard.guard.guard is not ImageGuard(GuardSettings(cache_dir=cache_dir / "b")).guard.guard

    def test_what_happens_on_a_block_can_be_chosen_per_call(self, cache_dir):
        guard = ImageGuard(colour_guard(cache_dir)).configurable_fields(
            on_violation=ConfigurableField(id="on_violation")
        )
        assert guard.invoke(ask(painted("blue")))[0].content[1] == text(NOTICE)
        with pytest.raises(UnsafeContentError):
            guard.invoke(ask(painted("blue")), {"configurable": {"on_violation": "raise"}})

    def test_its_schemas_can_be_had(self, guard):
        assert guard.get_input_jsonschema()
        assert guard.get_output_jsonschema()
        assert guard.get_name() == "ImageGuard"


class TestWhatIsOnRecord:
    def test_every_input_with_an_image_has_one_event(self, guard, call):
        listener = Listener()
        call(guard, "invoke", ask(painted("red"), painted()), {"callbacks": [listener]})
        call(guard, "invoke", "words", {"callbacks": [listener]})
        ((name, data),) = listener.events
        assert name == "guardalign.verdict"
        assert data["action"] == "mask"
        assert [v["action"] for v in data["verdicts"]] == ["mask", "allow"]

    def test_a_batch_tells_each_run_its_own(self, guard, call):
        listeners = [Listener(), Listener()]
        call(guard, "batch", [ask(painted("red")), ask(painted("blue"))], [{"callbacks": [each]} for each in listeners])
        assert [each.events[0][1]["action"] for each in listeners] == ["mask", "block"]

    def test_events_reach_astream_events(self, guard):
        async def collect() -> list[Any]:
            events = guard.astream_events(ask(painted("red")), version="v2")
            return [event async for event in events if event["event"] == "on_custom_event"]

        (event,) = asyncio.run(collect())
        assert event["name"] == "guardalign.verdict"

    def test_a_message_keeps_its_other_metadata(self, guard):
        message = AIMessage([v1(painted("red"))], response_metadata={"model_name": "m"})
        _, out = guard.invoke([message])
        assert out.response_metadata["model_name"] == "m"
        assert out.response_metadata["guardalign"][0]["masks"] == [[0.0, 0.0, CELL, CELL]]
        assert message.response_metadata == {"model_name": "m"}

    @pytest.mark.parametrize("on_violation", ["notice", "raise"])
    def test_no_pixel_reaches_a_log_an_event_an_exception_a_repr_or_the_guards_own_trace(
        self, cache_dir, call, caplog, on_violation
    ):
        caplog.set_level(logging.DEBUG)
        guard = ImageGuard(guard=colour_guard(cache_dir), on_violation=on_violation)
        listener, raised = Listener(), ""
        messages = ask(painted("red"), painted("blue"), painted("green"))
        messages[0].content.append({"type": "image_url", "image_url": {"url": "https://example.org/CANARY"}})
        report = guard.inspect(messages)
        try:
            call(guard, "invoke", messages, {"callbacks": [listener]})
            call(guard, "batch", [messages], {"callbacks": [listener]})
        except UnsafeContentError as error:
            raised = repr(error) + str(error) + repr(error.verdict)
        said = "".join([caplog.text, *listener.heard, raised, repr(guard), dumps(guard), repr(report)])
        assert len(listener.heard) >= 3
        canaries = ["CANARY", *(b64(image)[60:90] for image in map(painted, ("red", "blue", "green")))]
        canaries.append(b64(MASKED)[60:90])
        assert [canary for canary in canaries if canary in said] == []

    def test_one_around_a_ready_guard_is_not_serialisable_and_says_so(self, guard):
        assert '"not_implemented"' in dumps(guard)

    def test_one_made_from_settings_can_be_dumped_and_loaded(self, cache_dir):
        settings = GuardSettings(policy=colour_policy(), encoder="open_clip:x/y", cache_dir=cache_dir)
        guard = ImageGuard(settings, on_violation="raise")
        again = load(json.loads(dumps(guard)), allowed_objects=[ImageGuard], valid_namespaces=["langchain_guardalign"])
        assert again == guard
        assert again.guard.policy.fingerprint == guard.guard.policy.fingerprint


class TestMakingOne:
    def test_it_is_given_all_that_makes_a_guard_with_or_without_the_name(self, cache_dir, tmp_path):
        guard, path = colour_guard(cache_dir), tmp_path / "policy.yaml"
        path.write_text(colour_policy().to_yaml())
        assert ImageGuard(guard).guard.guard is ImageGuard(guard=guard).guard.guard is guard
        for given in (colour_policy(), path, str(path), GuardSettings(policy=colour_policy())):
            assert ImageGuard(given).guard.policy == colour_policy()
        assert ImageGuard().guard.policy == Policy.default()
        with pytest.raises(SettingsError, match="not as int"):
            ImageGuard(5)

    def test_it_cannot_refuse_for_it_gives_no_answer(self):
        with pytest.raises(SettingsError, match="GuardedChatModel"):
            ImageGuard(on_violation="refuse")
        with pytest.raises(ValidationError, match="on_violation"):
            ImageGuard(on_violation="drop")

    def test_nothing_is_loaded_before_the_first_image(self):
        assert ImageGuard(GuardSettings(encoder="open_clip:ViT-L-14/openai")).invoke("words") == "words"


@pytest.mark.slow
class TestWithTheRealEncoder:
    EXAMPLES: ClassVar = Path(__file__).parents[2] / "examples" / "images"

    def question(self, name: str) -> list[HumanMessage]:
        encoded = base64.b64encode((self.EXAMPLES / name).read_bytes()).decode()
        return [HumanMessage([text("look"), {"type": "image", "base64": encoded, "mime_type": "image/jpeg"}])]

    def test_a_photo_of_a_cat_passes_untouched_and_a_pistol_is_masked_where_it_is(self, offline_guard, call):
        guard = ImageGuard(offline_guard)
        cat, pistol = self.question("cat.jpg"), self.question("coffee_and_pistol.jpg")
        first, second = call(guard, "batch", [cat, pistol])
        assert first is cat
        block = second[-1].content[1]
        assert block["mime_type"] == "image/png"
        image = image_of(block)
        assert image.getpixel((450, 250)) == (0, 0, 0)
        assert image.getpixel((100, 100)) == image_of(pistol[0].content[1]).getpixel((100, 100))
