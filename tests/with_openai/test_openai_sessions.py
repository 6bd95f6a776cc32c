"""Sessions of openai-agents: after a blocked turn harmless ones work, and the blocked image goes out no more."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle

import pytest
from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    OpenAIChatCompletionsModel,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    ToolOutputImage,
    function_tool,
)
from agents.exceptions import ModelRefusalError
from agents.memory import Session, SessionSettings
from openai import AsyncOpenAI
from openai_ways import MASKED, REFUSAL, client_of, item_block, opened_in, same, user
from scripted_agents import ScriptedModel, assistant_message, function_call

from guardalign_guardrails import SettingsError, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, painted
from openai_guardalign import guard_client
from openai_guardalign.agents import image_guardrail, input_filter, tool_guardrail
from openai_guardalign.sessions import GuardedSession, session_input

TEXT = {"type": "input_text", "text": "What?"}
ENDS = (UnsafeContentError, InputGuardrailTripwireTriggered)


@pytest.fixture(params=["run", "streamed"])
def is_streamed(request) -> bool:
    return request.param == "streamed"


class Talk:
    """An agent with a session, and the guard's parts that a test asks for."""

    def __init__(self, checks, *, is_streamed=False, ending="filter raises", way="callback", shows=(), callback=None):
        self.model = ScriptedModel([])
        self.stored = SQLiteSession("s")
        self.session = GuardedSession(self.stored, checks) if way == "session" else self.stored
        self.is_streamed = is_streamed

        @function_tool
        def look() -> list[ToolOutputImage]:
            """Look."""
            return [ToolOutputImage(image_url=item_block(painted(colour))["image_url"]) for colour in shows]

        guardrails = [image_guardrail(checks)] if ending == "guardrail" else []
        look.tool_output_guardrails = [tool_guardrail(checks)] if ending == "tool guardrail" else []
        on_violation = "raise" if ending == "filter raises" else "notice"
        self.agent = Agent("a", model=self.model, input_guardrails=guardrails, tools=[look] if shows else [])
        self.config = RunConfig(
            tracing_disabled=True,
            call_model_input_filter=input_filter(checks, on_violation=on_violation),
            session_input_callback=(callback or session_input(checks)) if way == "callback" else None,
        )

    async def say(self, content, *steps):
        """One turn of the user; what the model was given last."""
        self.model.extend([*steps, [assistant_message("done")]])
        assert await self.answer(content) == "done"
        return json.dumps(self.model.last_call.input)

    async def answer(self, content):
        """What the run answers to one turn of the user."""
        given = content if isinstance(content, list) else [user(content)]
        if self.is_streamed:
            result = Runner.run_streamed(self.agent, given, session=self.session, run_config=self.config)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(self.agent, given, session=self.session, run_config=self.config)
        return result.final_output

    async def items(self):
        return await self.stored.get_items()


def shown(*colours):
    return [user([TEXT, *(item_block(painted(colour)) for colour in colours)])]


def noticed(*notices):
    return user([TEXT, *({"type": "input_text", "text": notice} for notice in notices)])


def keeps_turn(ending, is_streamed):
    """Whether the SDK stores a turn that ends so: a stream stores it after the filter, which must let it pass."""
    return not (is_streamed and ending == "filter raises")


def roles(items):
    return [item.get("role") for item in items]


class TestBlockedTurns:
    @pytest.mark.parametrize("ending", ["filter raises", "guardrail"])
    @pytest.mark.parametrize("way", ["callback", "session"])
    @pytest.mark.parametrize(
        ("block", "notice"),
        [
            (item_block(painted("blue")), NOTICE),
            (item_block(painted("yellow")), NOTICE),
            ({"type": "input_image", "image_url": "https://example.org/a.png"}, UNCHECKED_NOTICE),
        ],
        ids=["blocked", "routed", "elsewhere"],
    )
    async def test_three_harmless_turns_follow_one_that_ended_the_run(
        self, checks, is_streamed, ending, way, block, notice
    ):
        talk = Talk(checks, is_streamed=is_streamed, ending=ending, way=way)
        refused = [user([TEXT, block])]
        with pytest.raises(ENDS):
            await talk.say(refused)
        assert talk.model.calls == ()
        talk.model.clear()
        count = int(keeps_turn(ending, is_streamed))
        for turn in range(3):
            sent = await talk.say(f"turn {turn}")
            assert block["image_url"] not in sent
            # No turn is there twice.
            assert sent.count(notice) == count
            assert [sent.count(f"turn {past}") for past in range(turn + 1)] == [1] * (turn + 1)
        stored = await talk.items()
        assert stored[:count] == [noticed(notice) if way == "session" else refused[0]] * count
        assert roles(stored[count:]) == ["user", "assistant"] * 3
        assert [item["content"] for item in stored[count::2]] == ["turn 0", "turn 1", "turn 2"]

    @pytest.mark.parametrize("ending", ["filter raises", "guardrail"])
    async def test_without_them_such_a_session_is_lost(self, checks, is_streamed, ending):
        """What the two are for."""
        if not keeps_turn(ending, is_streamed):
            pytest.skip("this turn is not stored")
        talk = Talk(checks, is_streamed=is_streamed, ending=ending, way="none")
        for content in (shown("blue"), "And now?", "And now?"):
            with pytest.raises(ENDS):
                await talk.say(content)
        assert talk.model.calls == ()

    @pytest.mark.parametrize("way", ["callback", "session"])
    async def test_the_same_image_said_again_is_refused_again(self, checks, is_streamed, way):
        talk = Talk(checks, is_streamed=is_streamed, way=way)
        for _ in range(2):
            with pytest.raises(UnsafeContentError):
                await talk.say(shown("blue"))
        talk.model.clear()
        count = 2 * keeps_turn("filter raises", is_streamed)
        assert (await talk.say("And now?")).count(NOTICE) == count
        assert roles(await talk.items()) == ["user"] * (count + 1) + ["assistant"]

    @pytest.mark.parametrize("way", ["callback", "session"])
    async def test_a_notice_in_a_turn_that_went_on_is_there_in_the_next_ones(self, checks, is_streamed, way):
        talk = Talk(checks, is_streamed=is_streamed, ending="filter notices", way=way)
        assert NOTICE in await talk.say(shown("blue"))
        for _ in range(3):
            sent = await talk.say("And now?")
            assert sent.count(NOTICE) == 1
            assert opened_in(sent) == []
        stored = await talk.items()
        assert stored[0] == (noticed(NOTICE) if way == "session" else shown("blue")[0])
        assert roles(stored) == ["user", "assistant"] * 4

    @pytest.mark.parametrize("way", ["callback", "session"])
    @pytest.mark.parametrize("ending", ["filter raises", "tool guardrail"])
    async def test_so_is_one_in_a_tools_result(self, checks, is_streamed, way, ending):
        talk = Talk(checks, is_streamed=is_streamed, ending=ending, way=way, shows=("blue",))
        sent = await talk.say("Look.", [function_call("look", call_id="1")])
        for _ in range(3):
            assert sent.count(NOTICE) == 1
            assert opened_in(sent) == []
            sent = await talk.say("And now?")
        stored = await talk.items()
        assert [item.get("type") for item in stored[:4]] == [None, "function_call", "function_call_output", "message"]
        assert roles(stored[4:]) == ["user", "assistant"] * 3
        if way == "session" or ending == "tool guardrail":
            assert opened_in(json.dumps(stored)) == []


@pytest.mark.allow_hosts(["127.0.0.1"])
class TestGuardedClients:
    """A guarded client below the models of a run with a session."""

    @pytest.mark.parametrize("way", ["callback", "session"])
    @pytest.mark.parametrize("on_violation", ["refuse", "raise", "notice"])
    @pytest.mark.parametrize("kind", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
    async def test_three_harmless_turns_follow_a_blocked_one(
        self, server, checks, is_streamed, way, on_violation, kind
    ):
        client = guard_client(client_of(server, AsyncOpenAI), checks, on_violation=on_violation)
        talk = Talk(checks, is_streamed=is_streamed, way=way)
        talk.agent, talk.config.call_model_input_filter = Agent("a", model=kind("m", client)), None
        says = {"refuse": REFUSAL, "notice": "one two three"}.get(on_violation)
        # Of chat completions the SDK makes an error of a refusal.
        if on_violation == "raise" or (on_violation == "refuse" and kind is OpenAIChatCompletionsModel):
            with pytest.raises((UnsafeContentError, ModelRefusalError)):
                await talk.answer(shown("blue"))
        else:
            assert await talk.answer(shown("blue")) == says
        for turn in range(3):
            assert await talk.answer(f"turn {turn}") == "one two three"
            assert item_block(painted("blue"))["image_url"] not in server.last.raw.decode()
            assert server.last.raw.decode().count(NOTICE) <= 1
        stored = [item for item in await talk.items() if item.get("role") == "user"]
        assert [item["content"] for item in stored[-3:]] == ["turn 0", "turn 1", "turn 2"]
        assert len(stored) <= 4


class TestOtherTurns:
    @pytest.mark.parametrize("way", ["callback", "session"])
    async def test_harmless_sessions_are_what_they_are_without_a_guard(self, checks, is_streamed, way):
        talks = [Talk(checks, is_streamed=is_streamed, way=each) for each in (way, "none")]
        for talk in talks:
            for content in (shown("white", "magenta"), "And now?", shown("white")):
                await talk.say(content)
        guarded, plain = talks
        assert await guarded.items() == await plain.items()
        assert guarded.model.calls == plain.model.calls

    @pytest.mark.parametrize("way", ["callback", "session"])
    async def test_masked_images_stay_masked_and_the_prefix_stays_due(self, checks, is_streamed, way):
        talk = Talk(checks, is_streamed=is_streamed, way=way)
        for content in (shown("red"), "And now?", "And now?"):
            assert [same(image, MASKED) for image in opened_in(await talk.say(content))] == [True]
            assert checks.policy.prefix in talk.model.last_call.system_instructions
        (stored,) = opened_in(json.dumps(await talk.items()))
        assert same(stored, MASKED if way == "session" else painted("red"))

    async def test_a_limit_of_the_session_still_holds(self, checks):
        talk = Talk(checks, way="session")
        for turn in range(3):
            await talk.say(f"turn {turn}")
        talk.config.session_settings = SessionSettings(limit=2)
        sent = await talk.say("turn 3")
        assert [f"turn {turn}" in sent for turn in range(4)] == [False, False, True, True]


class TestGuardedSession:
    async def test_it_cleans_what_was_stored_before_it_was_there(self, checks):
        plain = SQLiteSession("s")
        await plain.add_items([*shown("blue"), {"role": "assistant", "content": "No."}, *shown("red")])
        session = GuardedSession(plain, checks)
        first, _, last = await session.get_items()
        assert first == noticed(NOTICE)
        assert same(*opened_in(json.dumps(last)), MASKED)
        assert await session.get_items(1) == [last]
        assert await session.pop_item() == last
        await session.clear_session()
        assert await session.get_items() == await plain.get_items() == []
        assert await session.pop_item() is None

    def test_it_is_a_session_like_the_wrapped_one(self, checks, tmp_path):
        plain = SQLiteSession("s", tmp_path / "s.db", session_settings=SessionSettings(limit=7))
        session = GuardedSession(plain, checks)
        assert isinstance(session, Session)
        assert (session.session_id, session.session_settings.limit) == ("s", 7)
        assert session.db_path == tmp_path / "s.db"
        assert not hasattr(session, "nothing")
        assert copy.copy(session).session is plain

    def test_one_that_openai_keeps_is_an_error_that_says_what_to_do(self, checks):
        kept = OpenAIConversationsSession(conversation_id="c", openai_client=AsyncOpenAI(api_key="test"))
        with pytest.raises(SettingsError, match="guarded client"):
            GuardedSession(kept, checks)

    async def test_a_guard_that_fails_lets_nothing_be_stored_or_read(self, cache_dir):
        checks = colour_guard(cache_dir)
        checks.detector.encoder.failure = RuntimeError("the encoder is broken")
        plain = SQLiteSession("s")
        await plain.add_items(shown("white"))
        session = GuardedSession(plain, checks)
        await session.add_items(shown("white"))
        assert [item["content"][1]["text"] for item in await session.get_items()] == [UNCHECKED_NOTICE] * 2


class TestSessionInput:
    async def test_what_the_user_says_now_is_left_to_the_filter(self, checks):
        history, new = [{"role": "assistant", "content": "Hello."}], shown("blue")
        joined = await session_input(checks)(history, new)
        assert joined == [*history, *shown("blue")]

    async def test_a_copy_keeps_its_guard_and_pickles_where_that_does(self, checks, cache_dir):
        checks.detector.encoder = ColourEncoder()
        callback = session_input(checks)
        assert copy.deepcopy(callback) is callback
        copied = pickle.loads(pickle.dumps(callback))
        assert (await copied(shown("blue"), []))[0] == noticed(NOTICE)

    async def test_sessions_at_once_keep_their_own_images(self, checks):
        async def read(shade):
            (item,) = await session_input(checks)([user([item_block(painted("red", shade=shade))])], [])
            return opened_in(json.dumps(item))[0]

        for shade, image in enumerate(await asyncio.gather(*(read(shade) for shade in range(10)))):
            assert image.getpixel((63, 0)) == (255, 255, 255 - shade)
            assert image.getpixel((0, 0)) == (0, 0, 0)
