"""Runs of openai-agents: what their models are given, and what ends them."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from types import SimpleNamespace

import pytest
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    ToolOutputImage,
    ToolOutputText,
    function_tool,
)
from agents.exceptions import ModelRefusalError
from agents.run import ModelInputData
from openai import AsyncOpenAI
from openai_ways import MASKED, PREFIX, REFUSAL, Answer, client_of, images, item_block, opened_in, same, user
from scripted_agents import ScriptedModel, assistant_message, function_call

from guardalign_guardrails import GuardSettings, NotPicklable, SettingsError, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.detection.encoders import registry
from guardalign_guardrails.testing.chats import canary, leaks
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted
from openai_guardalign import guard_client
from openai_guardalign.agents import image_guardrail, input_filter, tool_guardrail

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(params=["run", "streamed"])
def run(request):
    """Runs an agent to its end, in one piece or as a stream."""

    async def whole(agent, chat, **config):
        settings = RunConfig(tracing_disabled=True, **config)
        if request.param == "run":
            return await Runner.run(agent, chat, run_config=settings)
        result = Runner.run_streamed(agent, chat, run_config=settings)
        async for _ in result.stream_events():
            pass
        return result

    return whole


def seeing(*colours, guardrails=()):
    """A tool that shows an image."""

    @function_tool
    def look() -> list[ToolOutputText | ToolOutputImage]:
        """Look."""
        shown = [ToolOutputImage(image_url=item_block(painted(colour))["image_url"]) for colour in colours]
        return [ToolOutputText(text="seen"), *shown]

    look.tool_output_guardrails = list(guardrails)
    return look


def acting(*tools, guardrails=()):
    """An agent that looks once and then answers, and its model."""
    steps = [[function_call("look", call_id="1")]] if tools else []
    model = ScriptedModel([*steps, [assistant_message("done")]])
    agent = Agent("a", instructions="Be brief.", model=model, tools=list(tools), input_guardrails=list(guardrails))
    return agent, model


def look_at(*images):
    return [user([{"type": "input_text", "text": "What?"}, *map(item_block, images)])]


class TestInputFilter:
    async def test_images_of_users_are_masked_and_the_prefix_is_in_the_instructions(self, checks, run):
        agent, model = acting()
        await run(agent, look_at(painted("red"), painted("white")), call_model_input_filter=input_filter(checks))
        call = model.last_call
        masked, safe = opened_in(json.dumps(call.input))
        assert same(masked, MASKED)
        assert same(safe, painted("white"))
        assert call.system_instructions == f"{PREFIX}\n\nBe brief."

    async def test_so_are_images_of_tools_before_every_call(self, checks, run):
        agent, model = acting(seeing("red", "blue"))
        found = []
        result = await run(
            agent, look_at(painted("red")), call_model_input_filter=input_filter(checks, on_verdicts=found.append)
        )
        first, second = model.calls
        assert [same(image, MASKED) for image in opened_in(json.dumps(first.input))] == [True]
        assert [same(image, MASKED) for image in opened_in(json.dumps(second.input))] == [True, True]
        assert NOTICE in json.dumps(second.input)
        assert [call.system_instructions.count(PREFIX) for call in model.calls] == [1, 1]
        assert [[verdict.source for verdict in each] for each in found] == [["user"], ["user", "tool", "tool"]]
        assert result.final_output == "done"

    async def test_a_blocked_image_of_the_user_is_a_notice(self, checks, run):
        agent, model = acting()
        await run(agent, look_at(painted("blue")), call_model_input_filter=input_filter(checks))
        assert {"type": "input_text", "text": NOTICE} in model.last_call.input[0]["content"]
        assert opened_in(json.dumps(model.last_call.input)) == []

    async def test_or_ends_the_run_before_a_model_is_called(self, checks, run):
        for colour in ("blue", "yellow"):
            agent, model = acting()
            filtered = input_filter(checks, on_violation="raise")
            with pytest.raises(UnsafeContentError):
                await run(agent, look_at(painted(colour)), call_model_input_filter=filtered)
            assert model.calls == ()

    def test_there_is_no_refusal_where_there_is_no_answer(self, checks):
        with pytest.raises(SettingsError, match="a filter cannot answer"):
            input_filter(checks, on_violation="refuse")

    @pytest.mark.parametrize(
        ("model", "place"),
        [("gemma-3", "user"), ("gpt-4o", "system"), (None, "system"), (SimpleNamespace(model="gemma-3"), "user")],
    )
    async def test_the_prefix_goes_where_the_agents_model_wants_it(self, checks, model, place):
        data = SimpleNamespace(model_data=ModelInputData(look_at(painted("red")), "Be brief."), agent=Agent("a"))
        data.agent.model = model
        passed = await input_filter(checks)(data)
        assert (PREFIX in passed.instructions) == (place == "system")
        assert (PREFIX in json.dumps(passed.input)) == (place == "user")

    async def test_an_earlier_blocked_image_does_not_end_the_run(self, checks, run):
        agent, model = acting()
        chat = [*look_at(painted("blue")), {"role": "assistant", "content": "No."}, user("And now?")]
        filtered = input_filter(checks, on_violation="raise")
        await run(agent, chat, call_model_input_filter=filtered)
        assert NOTICE in json.dumps(model.last_call.input)

    async def test_a_sub_agent_is_filtered_too(self, checks, run):
        below, seen = acting(seeing("red", "blue"))
        tool = below.as_tool("ask", "Ask.")
        model = ScriptedModel([[function_call("ask", call_id="1", input="Look.")], [assistant_message("done")]])
        await run(Agent("above", model=model, tools=[tool]), "Ask.", call_model_input_filter=input_filter(checks))
        sent = json.dumps(seen.last_call.input)
        assert [same(image, MASKED) for image in opened_in(sent)] == [True]
        assert NOTICE in sent
        assert PREFIX in seen.last_call.system_instructions

    async def test_words_alone_are_left_alone(self, checks, run):
        plain, filtered = [], []
        for calls, config in ((plain, {}), (filtered, {"call_model_input_filter": input_filter(checks)})):
            agent, model = acting(seeing())
            await run(agent, [user("hi")], **config)
            calls += [(call.system_instructions, call.input) for call in model.calls]
        assert plain == filtered

    async def test_the_prefix_may_head_what_the_user_says(self, cache_dir, run):
        agent, model = acting()
        checks = colour_guard(cache_dir, prefix_when="always")
        await run(agent, "hi", call_model_input_filter=input_filter(checks, placement="user"))
        assert model.last_call.system_instructions == "Be brief."
        assert model.last_call.input[0]["content"] == f"{PREFIX}\n\nhi"

    async def test_runs_at_once_keep_their_own_images(self, checks, run):
        async def ask(shade):
            agent, model = acting()
            await run(agent, look_at(painted("red", shade=shade)), call_model_input_filter=input_filter(checks))
            return opened_in(json.dumps(model.last_call.input))[0]

        for shade, image in enumerate(await asyncio.gather(*(ask(shade) for shade in range(20)))):
            assert image.getpixel((63, 0)) == (255, 255, 255 - shade)
            assert image.getpixel((0, 0)) == (0, 0, 0)


class TestGuardrails:
    async def test_a_blocked_image_trips_the_wire_before_a_model_is_called(self, checks, run):
        agent, model = acting(guardrails=[image_guardrail(checks)])
        with pytest.raises(InputGuardrailTripwireTriggered) as raised:
            await run(agent, look_at(painted("blue")))
        assert model.calls == ()
        output = raised.value.guardrail_result.output.output_info
        assert output["action"] == "block"
        json.dumps(output)

    async def test_others_do_not(self, checks, run):
        for chat in ("hi", look_at(painted("white")), look_at(painted("red"))):
            agent, model = acting(guardrails=[image_guardrail(checks)])
            await run(agent, chat)
            assert len(model.calls) == 1

    async def test_a_tools_blocked_image_is_withheld_from_the_history_too(self, checks, run):
        agent, model = acting(seeing("blue", guardrails=[tool_guardrail(checks)]))
        result = await run(agent, "look")
        assert model.last_call.input[-1]["output"] == NOTICE
        assert NOTICE in json.dumps(result.to_input_list())
        assert opened_in(json.dumps(result.to_input_list())) == []

    async def test_a_result_that_could_not_be_checked_has_a_notice_of_its_own(self, checks, run):
        checks.detector.encoder.failure = RuntimeError("the encoder is broken")
        agent, model = acting(seeing("white", guardrails=[tool_guardrail(checks)]))
        await run(agent, "look")
        assert model.last_call.input[-1]["output"] == UNCHECKED_NOTICE

    async def test_a_harmless_one_and_words_pass(self, checks, run):
        agent, model = acting(seeing("white", guardrails=[tool_guardrail(checks)]))
        await run(agent, "look")
        assert same(*opened_in(json.dumps(model.last_call.input)), painted("white"))

    async def test_no_image_is_in_what_they_tell(self, checks):
        image = canary("blue")
        agent, _ = acting(guardrails=[image_guardrail(checks)])
        with pytest.raises(InputGuardrailTripwireTriggered) as raised:
            await Runner.run(agent, look_at(image), run_config=RunConfig(tracing_disabled=True))
        filtering = input_filter(checks, on_violation="raise")
        config = RunConfig(tracing_disabled=True, call_model_input_filter=filtering)
        with pytest.raises(UnsafeContentError) as filtered:
            await Runner.run(acting()[0], look_at(image), run_config=config)
        output, error = raised.value.guardrail_result.output, filtered.value
        assert leaks(f"{raised.value!r} {output!r} {error!r} {error.__context__!r}", image) == []


class TestCopies:
    """What a run is given may be pickled for another process, before and after it was used."""

    @pytest.mark.parametrize("is_given", [False, True])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
    @pytest.mark.parametrize("is_used", [False, True])
    async def test_a_copy_of_a_filter_still_masks(self, checks, run, is_given, copied, is_used, cache_dir, monkeypatch):
        monkeypatch.setitem(registry._PREFIXES, "colour", lambda rest, options: ColourEncoder())
        settings = GuardSettings(policy=colour_policy(), encoder="colour", cache_dir=cache_dir)
        filtered = input_filter(checks if is_given else settings)
        if is_used:
            await run(acting()[0], look_at(painted("red")), call_model_input_filter=filtered)
        agent, model = acting()
        await run(agent, look_at(painted("red")), call_model_input_filter=copied(filtered))
        assert same(*opened_in(json.dumps(model.last_call.input)), MASKED)

    @pytest.mark.parametrize("made", [input_filter, image_guardrail, tool_guardrail])
    def test_a_guard_that_does_not_pickle_is_an_error_that_names_what_does_not(self, cache_dir, made):
        checks = colour_guard(cache_dir)
        checks.detector.encoder.lock = threading.Lock()
        with pytest.raises(NotPicklable) as raised:
            pickle.dumps(made(checks))
        assert raised.value.member == "encoder"

    def test_so_is_a_callback_that_does_not(self, checks):
        filtered = input_filter(checks, on_verdicts=lambda verdicts: None)
        with pytest.raises(NotPicklable) as raised:
            pickle.dumps(filtered)
        assert raised.value.member == "on_verdicts"
        assert copy.deepcopy(filtered) is filtered

    @pytest.mark.parametrize("made", [image_guardrail, tool_guardrail])
    def test_a_copy_of_a_guardrail_keeps_its_guard(self, checks, made):
        copied = copy.deepcopy(made(checks))
        assert copied.guardrail_function.args[0].guard is checks


class TestGuardedClient:
    """The guarded client under the SDK's own models."""

    @pytest.mark.parametrize("kind", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
    async def test_it_masks_below_an_agent(self, server, checks, kind, run):
        model = kind("gpt-4o", guard_client(client_of(server, AsyncOpenAI), checks))
        agent = Agent("a", instructions="Be brief.", model=model)
        result = await run(agent, look_at(painted("red")))
        assert result.final_output == "one two three"
        assert same(*images(server.last), MASKED)
        assert server.last.raw.decode().count(PREFIX) == 1

    async def test_a_refusal_is_the_runs_answer(self, server, checks, run):
        model = OpenAIResponsesModel("gpt-4o", guard_client(client_of(server, AsyncOpenAI), checks))
        result = await run(Agent("a", model=model), look_at(painted("blue")))
        assert result.final_output == REFUSAL
        assert server.requests == []

    async def test_or_the_sdks_error_for_refusals_which_an_app_may_turn_into_an_answer(self, server, checks, run):
        """Of chat completions the SDK reads the refusal first, and an object cannot be a refusal."""
        guarded = guard_client(client_of(server, AsyncOpenAI), checks)
        chat = Agent("a", model=OpenAIChatCompletionsModel("gpt-4o", guarded))
        structured = Agent("a", model=OpenAIResponsesModel("gpt-4o", guarded), output_type=Answer)
        for agent in (chat, structured):
            with pytest.raises(ModelRefusalError, match=REFUSAL[:20]):
                await run(agent, look_at(painted("blue")))
        answered = await Runner.run(
            chat,
            look_at(painted("blue")),
            run_config=RunConfig(tracing_disabled=True),
            error_handlers={"model_refusal": lambda failed: str(failed.error.refusal)},
        )
        assert answered.final_output == REFUSAL
        typed = await Runner.run(
            structured,
            look_at(painted("blue")),
            run_config=RunConfig(tracing_disabled=True),
            error_handlers={"model_refusal": lambda failed: Answer(word=str(failed.error.refusal))},
        )
        assert typed.final_output == Answer(word=REFUSAL)
        assert server.requests == []
