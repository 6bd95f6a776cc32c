"""A guarded chat model: no way around the guard, what each violation means, and what others read of it."""

from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar
from uuid import uuid4

import pytest
from chat_images import MASKED, Listener, RecordingModel, ask, b64, blocks, calls, data_url, image_of, text, v1
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableBinding, RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from langchain_core.tracers.context import collect_runs, register_configure_hook
from pydantic import BaseModel, ValidationError

from guardalign_guardrails import EncoderUnavailable, Guard, GuardSettings, Policy, SettingsError, UnsafeContentError
from guardalign_guardrails.content.chat import placement_for
from guardalign_guardrails.content.payload import to_base64
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign.chat.guarded_model import GuardedChatModel
from langchain_guardalign.events import EVENT

REFUSAL = colour_policy().refusal
PREFIX = "Be careful."


class Bindable(RecordingModel):
    """Takes tools and calls none."""

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, **kwargs)


@pytest.fixture
def guard(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture
def model() -> RecordingModel:
    return Bindable.make()


@pytest.fixture
def guarded(model, guard) -> GuardedChatModel:
    return GuardedChatModel(model=model, guard=guard)


def made(cache_dir, model=None, route_to=None, on_violation="refuse", placement="auto", **policy) -> GuardedChatModel:
    guard = colour_guard(cache_dir, **policy)
    model = model or RecordingModel.make()
    return GuardedChatModel(model=model, guard=guard, route_to=route_to, on_violation=on_violation, placement=placement)


def prefixes(messages) -> list[str]:
    return [m.content for m in messages if isinstance(m, SystemMessage)]


class Tracer(BaseCallbackHandler):
    """Keeps the kind of each run and all that is told of it."""

    def __init__(self):
        self.kinds, self.seen = [], []

    def on_chat_model_start(self, *seen, **more):
        self.kinds.append("model")
        self.seen.append((seen, more))

    def on_chain_start(self, *seen, **more):
        self.kinds.append("chain")
        self.seen.append((seen, more))

    def on_llm_end(self, *seen, **more):
        self.seen.append((seen, more))

    on_chain_end = on_llm_error = on_chain_error = on_llm_new_token = on_custom_event = on_llm_end


_TRACER: ContextVar[Tracer | None] = ContextVar("tracer", default=None)
register_configure_hook(_TRACER, inheritable=True)


@contextmanager
def traced():
    """Hear of every run of the block, as a tracing service does, however it is started."""
    token = _TRACER.set(tracer := Tracer())
    try:
        yield tracer
    finally:
        _TRACER.reset(token)


async def gathered(iterator) -> list:
    return [item async for item in iterator]


async def _async_input(value):
    yield value


WITHIN_NOTHING = {
    "invoke": lambda m, x: m.invoke(x),
    "invoke a prompt": lambda m, x: m.invoke(ChatPromptValue(messages=x)),
    "generate": lambda m, x: m.generate([x]),
    "generate_prompt": lambda m, x: m.generate_prompt([ChatPromptValue(messages=x)]),
    "stream": lambda m, x: list(m.stream(x)),
    "transform": lambda m, x: list(m.transform(iter([x]))),
    "batch": lambda m, x: m.batch([x]),
    "batch_as_completed": lambda m, x: list(m.batch_as_completed([x])),
    "stream_events v3": lambda m, x: m.stream_events(x, version="v3").output,
    "bind": lambda m, x: m.bind(stop=["."]).invoke(x),
    "bind_tools": lambda m, x: m.bind_tools([]).invoke(x),
    "bind_tools, stream": lambda m, x: list(m.bind_tools([]).stream(x)),
    "bind_tools, stream_events v3": lambda m, x: m.bind_tools([]).stream_events(x, version="v3").output,
    "with_config": lambda m, x: m.with_config(tags=["a"]).invoke(x),
    "with_listeners": lambda m, x: m.with_listeners(on_end=lambda run: None).invoke(x),
    "configurable_fields": lambda m, x: m.configurable_fields(on_violation=ConfigurableField("on_violation")).invoke(
        x, {"configurable": {"on_violation": "refuse"}}
    ),
    "configurable_alternatives": lambda m, x: m.configurable_alternatives(
        ConfigurableField("which"), other=RunnablePassthrough()
    ).invoke(x),
    "ainvoke": lambda m, x: asyncio.run(m.ainvoke(x)),
    "agenerate": lambda m, x: asyncio.run(m.agenerate([x])),
    "agenerate_prompt": lambda m, x: asyncio.run(m.agenerate_prompt([ChatPromptValue(messages=x)])),
    "astream": lambda m, x: asyncio.run(gathered(m.astream(x))),
    "atransform": lambda m, x: asyncio.run(gathered(m.atransform(_async_input(x)))),
    "abatch": lambda m, x: asyncio.run(m.abatch([x])),
    "abatch_as_completed": lambda m, x: asyncio.run(gathered(m.abatch_as_completed([x]))),
    "astream_log": lambda m, x: asyncio.run(gathered(m.astream_log(x))),
    "astream_events v1": lambda m, x: asyncio.run(gathered(m.astream_events(x, version="v1"))),
    "astream_events v2": lambda m, x: asyncio.run(gathered(m.astream_events(x, version="v2"))),
    "astream_events v3": lambda m, x: asyncio.run(_output(m.astream_events(x, version="v3"))),
    "bind_tools, astream": lambda m, x: asyncio.run(gathered(m.bind_tools([]).astream(x))),
    "bind_tools, astream_events v2": lambda m, x: asyncio.run(
        gathered(m.bind_tools([]).astream_events(x, version="v2"))
    ),
    "_call_async": lambda m, x: asyncio.run(m._call_async(x)),
}
# LangChain's older interface, of chat models alone: the model's run is the only one.
WITHIN_MODELS_RUN = {"generate", "generate_prompt", "agenerate", "agenerate_prompt", "_call_async"}
# These run the model within further runs, or, as model authors' methods, within none.
OTHERS = {
    "batch of two": lambda m, x: m.batch([x, x]),
    "with_retry": lambda m, x: m.with_retry().invoke(x),
    "with_retry, batch": lambda m, x: m.with_retry().batch([x]),
    "with_fallbacks": lambda m, x: m.with_fallbacks([m]).invoke(x),
    "map": lambda m, x: m.map().invoke([x]),
    "a chain": lambda m, x: (RunnablePassthrough() | m).invoke(x),
    "a chain, stream": lambda m, x: list((RunnablePassthrough() | m).stream(x)),
    "_generate": lambda m, x: m._generate(x),
    "_stream": lambda m, x: list(m._stream(x)),
    "_generate_with_cache": lambda m, x: m._generate_with_cache(x),
    "_agenerate": lambda m, x: asyncio.run(m._agenerate(x)),
    "_astream": lambda m, x: asyncio.run(gathered(m._astream(x))),
    "a chain, astream_events v2": lambda m, x: asyncio.run(
        gathered((RunnablePassthrough() | m).astream_events(x, version="v2"))
    ),
}
ALL = WITHIN_NOTHING | OTHERS


async def _output(opening):
    return await (await opening).output


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestNoWayAround:
    @pytest.mark.parametrize("way", ALL.values(), ids=ALL)
    def test_an_unsafe_region_never_reaches_the_model(self, guarded, model, way):
        way(guarded, ask(painted("red"), painted()))
        assert model.received
        for messages in model.received:
            assert prefixes(messages) == [PREFIX]
            masked, safe = (image_of(block) for block in blocks(messages) if "base64" in block)
            assert (masked.tobytes(), safe.tobytes()) == (MASKED.tobytes(), painted().tobytes())

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    @pytest.mark.parametrize("way", ALL.values(), ids=ALL)
    def test_a_blocked_input_is_refused_and_the_model_is_not_asked(self, guarded, model, way, colour):
        said = repr(way(guarded, ask(painted(colour))))
        assert REFUSAL in said or json.dumps(REFUSAL)[1:-1] in said
        assert not model.received

    @pytest.mark.parametrize("colour", ["red", "blue"])
    @pytest.mark.parametrize("way", WITHIN_NOTHING)
    def test_a_call_is_a_run_around_the_models_and_neither_trace_holds_an_unsafe_image(self, guarded, way, colour):
        with traced() as tracer:
            WITHIN_NOTHING[way](guarded, ask(painted(colour)))
        assert tracer.kinds == (["model"] if way in WITHIN_MODELS_RUN else ["chain", "model"])
        assert (to_base64(with_mark(encode_png(MASKED))) if colour == "red" else NOTICE) in repr(tracer.seen)
        assert b64(painted(colour)) not in repr(tracer.seen)

    @pytest.mark.parametrize("way", [way for name, way in WITHIN_NOTHING.items() if "events" in name or "log" in name])
    def test_streamed_events_hold_no_unsafe_image(self, guarded, way):
        for colour in ("red", "blue"):
            assert b64(painted(colour)) not in repr(way(guarded, ask(painted(colour))))

    def test_every_method_that_takes_messages_is_accounted_for(self):
        takes_messages = {
            name
            for name, method in inspect.getmembers(BaseChatModel, inspect.isfunction)
            if {"input", "inputs", "messages", "prompts"} & inspect.signature(method).parameters.keys()
        }
        tested = {way.split()[0].rstrip(",") for way in ALL}
        counts = {"get_num_tokens_from_messages"}
        # These end in the methods above, or only convert: LangChain's own, not to be called from outside.
        inner = {name for name in takes_messages if name.startswith("_")} - tested
        assert takes_messages <= tested | counts | inner | {"stream_events", "astream_events"}

    def test_a_model_that_neither_streams_nor_takes_a_run_manager_is_guarded_too(self, guard):
        class Plain(BaseChatModel):
            received: ClassVar[list] = []

            @property
            def _llm_type(self):
                return "plain"

            def _generate(self, messages, stop=None):
                self.received.append(messages)
                return ChatResult(generations=[ChatGeneration(message=AIMessage("whole"))])

            async def _agenerate(self, messages, stop=None):
                return self._generate(messages)

        guarded = GuardedChatModel(model=Plain(), guard=guard)
        (chunk,) = guarded._stream(ask(painted("red")))
        (achunk,) = asyncio.run(gathered(guarded._astream(ask(painted("red")))))
        assert [type(c.message) for c in (chunk, achunk)] == [AIMessageChunk] * 2
        assert guarded._generate(ask(painted("red"))).generations[0].text == "whole"
        assert [m.content for m in guarded.stream(ask(painted("red")))] == ["whole"]
        assert all(MASKED.tobytes() == image_of(blocks(m)[-1]).tobytes() for m in guarded.model.received)

    def test_an_encoder_that_is_not_there_is_an_error_and_the_model_is_not_asked(self, model, cache_dir, call):
        settings = GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir)
        guarded = GuardedChatModel(model=model, guard=settings)
        with pytest.raises(EncoderUnavailable):
            call(guarded, "invoke", ask(painted()))
        out = call(guarded, "batch", [ask(painted()), "words"], return_exceptions=True)
        assert [type(item) for item in out] == [EncoderUnavailable] * 2
        assert not model.received
        assert call(guarded, "invoke", "words").content == "one two three"

    @pytest.mark.parametrize("value", [None, 5, HumanMessage("alone")])
    def test_what_is_no_input_is_an_error_in_its_place_only(self, guarded, call, value):
        with pytest.raises(TypeError, match="string"):
            call(guarded, "invoke", value)
        out = call(guarded, "batch", [value, "words"], return_exceptions=True)
        assert [type(item) for item in out] == [TypeError, AIMessage]


class TestTextAlone:
    @pytest.mark.parametrize("value", ["words", [HumanMessage("hello")], ChatPromptValue(messages=[HumanMessage("a")])])
    def test_an_input_without_images_is_passed_on_as_the_very_same_object(
        self, guarded, model, call, value, monkeypatch
    ):
        given = []
        invoke, ainvoke = RecordingModel.invoke, RecordingModel.ainvoke
        monkeypatch.setattr(RecordingModel, "invoke", lambda m, x, *a, **k: given.append(x) or invoke(m, x, *a, **k))
        monkeypatch.setattr(RecordingModel, "ainvoke", lambda m, x, *a, **k: given.append(x) or ainvoke(m, x, *a, **k))
        call(guarded, "invoke", value)
        assert given[0] is value
        assert not calls(guarded)

    def test_a_prefix_that_is_always_due_is_given_to_text_too(self, cache_dir, call):
        guarded = made(cache_dir, prefix_when="always")
        call(guarded, "invoke", "words")
        assert guarded.model.received == [[SystemMessage(PREFIX), HumanMessage("words")]]


class TestPrefix:
    @pytest.mark.parametrize(
        ("when", "colour", "is_due"),
        [
            ("finding", None, False),
            ("finding", "green", True),
            ("image", None, True),
            ("image", "magenta", True),
            ("always", None, True),
        ],
    )
    def test_it_is_given_when_the_policy_says_so(self, cache_dir, call, when, colour, is_due):
        guarded = made(cache_dir, prefix_when=when)
        call(guarded, "invoke", ask(painted(*([colour] if colour else []))))
        assert prefixes(guarded.model.received[0]) == [PREFIX] * is_due

    def test_it_goes_to_the_head_of_the_system_message(self, guarded, model):
        guarded.invoke([SystemMessage("Be brief."), *ask(painted("green"))])
        assert prefixes(model.received[0]) == [f"{PREFIX}\n\nBe brief."]

    @pytest.mark.parametrize("carry", ["raw", "sanitised"])
    @pytest.mark.parametrize("placement", ["system", "user"])
    @pytest.mark.parametrize("system", [[], [SystemMessage("Be brief.")]])
    def test_it_is_there_once_in_each_of_five_turns(self, cache_dir, call, placement, system, carry):
        guarded = made(cache_dir, placement=placement)
        history = [*system]
        for turn in range(5):
            history += ask(painted("green", shade=turn))
            answer = call(guarded, "invoke", history)
            sent = guarded.model.received[-1]
            assert sum(PREFIX in (b if isinstance(b, str) else b.get("text", "")) for b in blocks(sent)) == 1
            history = [*(sent if carry == "sanitised" else history), answer]

    def test_a_guarded_model_within_a_guarded_model_gives_it_once(self, guarded, model, guard):
        GuardedChatModel(model=guarded, guard=guard).invoke(ask(painted("red")))
        assert prefixes(model.received[0]) == [PREFIX]
        assert image_of(blocks(model.received[0])[-1]).tobytes() == MASKED.tobytes()

    @pytest.mark.parametrize(
        ("name", "placement"),
        [
            ("gpt-4o", "system"),
            ("o1", "system"),
            ("o1-mini-2024-09-12", "user"),
            ("openai/o1-preview", "user"),
            ("models/gemma-3-27b-it", "user"),
            ("gemma3:4b", "user"),
            ("meta-llama/Llama-3.2-11B-Vision-Instruct", "user"),
            ("llama-3.2-90b-vision-preview", "user"),
            ("llama3.2-vision:11b", "user"),
            ("us.meta.llama3-2-11b-vision-instruct-v1:0", "user"),
            ("meta-llama/Llama-3.2-3B-Instruct", "system"),
            ("claude-sonnet-4-5", "system"),
            ("gemini-2.5-flash", "system"),
            (None, "system"),
        ],
    )
    def test_it_goes_where_the_model_takes_it(self, name, placement):
        assert placement_for(name) == placement

    def test_the_name_of_the_call_counts_and_so_does_the_model_that_answers(self, guard, call):
        class Named(RecordingModel):
            model_name: str = "gpt-4o"

        guarded = GuardedChatModel(model=Named(received=[]), guard=guard)
        call(guarded, "invoke", ask(painted("green")))
        assert isinstance(guarded.model.received[-1][0], SystemMessage)
        call(guarded, "invoke", ask(painted("green")), model="gemma-3")
        (message,) = guarded.model.received[-1]
        assert message.content[0] == text(PREFIX)
        named = Named(received=[], model_name="gemma-3")
        GuardedChatModel(model=guarded.model, route_to=named, guard=guard).invoke(
            ask(painted("yellow"), painted("red"))
        )
        assert [type(m) for m in named.received[0]] == [HumanMessage]

    def test_an_explicit_placement_counts_more_than_the_name(self, cache_dir):
        class Gemma(RecordingModel):
            model_name: str = "gemma-3"

        guarded = made(cache_dir, Gemma(received=[]), placement="system")
        guarded.invoke(ask(painted("green")))
        assert prefixes(guarded.model.received[0]) == [PREFIX]
        guarded = made(cache_dir, placement="user")
        guarded.invoke(ask(painted("green")))
        assert prefixes(guarded.model.received[0]) == []


class TestViolations:
    def test_a_refusal_is_an_answer_that_says_why_and_cost_nothing(self, guarded, call):
        answer = call(guarded, "invoke", ask(painted("blue"), painted("magenta")))
        assert (type(answer), answer.content) == (AIMessage, REFUSAL)
        assert [entry["action"] for entry in answer.response_metadata["guardalign"]] == ["block", "flag"]
        assert answer.response_metadata["finish_reason"] == "content_filter"
        assert answer.usage_metadata == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        assert answer.id
        assert b64(painted("blue")) not in repr(answer)

    def test_a_refusal_streams_as_one_chunk_that_is_the_last(self, guarded):
        (chunk,) = guarded.stream(ask(painted("blue")))
        (achunk,) = asyncio.run(gathered(guarded.astream(ask(painted("blue")))))
        for each in (chunk, achunk):
            assert (type(each), each.content, each.chunk_position) == (AIMessageChunk, REFUSAL, "last")
            assert each.response_metadata["guardalign"][0]["action"] == "block"

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    def test_a_notice_lets_the_model_answer(self, cache_dir, call, colour):
        guarded = made(cache_dir, on_violation="notice")
        answer = call(guarded, "invoke", ask(painted(colour)))
        assert answer.content == "one two three"
        assert blocks(guarded.model.received[0]) == [text("What is this?"), text(NOTICE)]

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    @pytest.mark.parametrize("method", ["invoke", "generate", "batch"])
    def test_it_can_be_an_error_that_carries_the_verdict(self, cache_dir, call, colour, method):
        guarded = made(cache_dir, on_violation="raise")
        value = ask(painted(colour))
        with pytest.raises(UnsafeContentError) as caught:
            call(guarded, method, value if method == "invoke" else [value, ask(painted())])
        assert caught.value.verdict.category == f"{colour}_things"
        assert not guarded.model.received

    def test_only_the_blocked_inputs_of_a_batch_are_errors(self, cache_dir, call):
        guarded = made(cache_dir, on_violation="raise")
        out = call(guarded, "batch", [ask(painted()), ask(painted("blue")), "words"], return_exceptions=True)
        assert [isinstance(item, AIMessage) for item in out] == [True, False, True]
        assert isinstance(out[1], UnsafeContentError)

    def test_a_route_is_answered_by_the_other_model_with_a_notice(self, cache_dir, call):
        other = RecordingModel.make("other")
        guarded = made(cache_dir, route_to=other)
        assert call(guarded, "invoke", ask(painted("yellow"), painted("red"))).content == "other"
        assert prefixes(other.received[0]) == [PREFIX]
        assert b64(painted("yellow")) not in repr(other.received)
        assert [b for b in blocks(other.received[0]) if b == text(NOTICE)]
        assert not guarded.model.received

    def test_a_block_is_not_routed(self, cache_dir, call):
        guarded = made(cache_dir, route_to=RecordingModel.make())
        assert call(guarded, "invoke", ask(painted("yellow"), painted("blue"))).content == REFUSAL
        assert not guarded.route_to.received

    def test_a_chat_goes_on_after_a_refusal(self, guarded, model, call):
        history = ask(painted("blue"))
        history = [*history, call(guarded, "invoke", history), HumanMessage("Never mind. What is two and two?")]
        assert call(guarded, "invoke", history).content == "one two three"
        assert blocks(model.received[0])[1] == text(NOTICE)
        assert b64(painted("blue")) not in repr(model.received)

    @pytest.mark.parametrize(
        "message",
        [
            AIMessage([v1(painted("blue"))]),
            ToolMessage([v1(painted("blue"))], tool_call_id="t"),
            SystemMessage([v1(painted("blue"))]),
        ],
    )
    def test_a_blocked_image_that_the_user_did_not_send_is_a_notice(self, cache_dir, call, message):
        guarded = made(cache_dir, on_violation="raise")
        call(guarded, "invoke", [message, HumanMessage("What is this?")])
        assert text(NOTICE) in blocks(guarded.model.received[0])
        call(guarded, "invoke", [HumanMessage("Look."), message])
        assert text(NOTICE) in blocks(guarded.model.received[1])

    def test_an_image_that_cannot_be_checked_is_refused(self, guarded, call):
        answer = call(guarded, "invoke", [HumanMessage([{"type": "image", "url": "https://example.org/a.png"}])])
        assert answer.content == colour_policy().refusal_unchecked != REFUSAL
        record = answer.response_metadata["guardalign"][0]
        assert (record["uninspectable"], record["finding"]) == ("remote_reference", "unchecked")

    def test_monitor_mode_lets_everything_pass_and_reports(self, cache_dir, call):
        guarded = made(cache_dir, mode="monitor")
        heard = Listener()
        value = ask(painted("blue"), painted("red"))
        call(guarded, "invoke", value, {"callbacks": [heard]})
        assert [m.content for m in guarded.model.received[0]] == [value[0].content]
        ((name, data),) = heard.events
        assert (name, [v["proposed"] for v in data["verdicts"]]) == (EVENT, ["block", "mask"])


class TestBatches:
    def test_all_images_of_a_batch_are_one_encoder_call_and_answers_keep_their_order(self, cache_dir, call):
        other = RecordingModel.make("other")
        guarded = made(cache_dir, route_to=other)
        guarded.guard.guard.prepare()
        inputs = [ask(painted(colour)) for colour in ("blue", "white", "yellow", "green")] + [
            "words",
            ask(painted("blue")),
        ]
        out = call(guarded, "batch", inputs)
        words = "one two three"
        assert [m.content for m in out] == [REFUSAL, words, "other", words, words, REFUSAL]
        assert len(calls(guarded)) == 1

    def test_so_are_those_of_generate(self, cache_dir, call):
        guarded = made(cache_dir, route_to=RecordingModel.make("other"))
        guarded.guard.guard.prepare()
        with collect_runs() as collected:
            result = call(
                guarded, "generate", [ask(painted(colour)) for colour in ("yellow", "white", "blue", "green")]
            )
        assert [g[0].text for g in result.generations] == ["other", "one two three", REFUSAL, "one two three"]
        assert len(calls(guarded)) == 1
        ids = {run.id: run.outputs["generations"][0][0]["text"] for run in collected.traced_runs}
        assert [ids[info.run_id] for info in result.run] == [g[0].text for g in result.generations]

    @pytest.mark.parametrize("colours", [("white", "yellow", "white"), ("yellow", "white", "blue")])
    def test_a_run_id_is_that_of_the_first_chats_run(self, cache_dir, call, colours):
        guarded = made(cache_dir, route_to=RecordingModel.make("other"))
        run_id = uuid4()
        result = call(guarded, "generate", [ask(painted(colour)) for colour in colours], run_id=run_id)
        ids = [info.run_id for info in result.run]
        assert ids[0] == run_id
        assert len(set(ids)) == 3

    @pytest.mark.parametrize("limit", [1, 2, None])
    def test_max_concurrency_is_kept_over_all_models(self, cache_dir, limit):
        class Counting(RecordingModel):
            async def _agenerate(self, messages, stop=None, run_manager=None, **_):
                now.append(None)
                most.append(len(now))
                await asyncio.sleep(0.01)
                now.pop()
                return self._generate(messages)

        now: list[None] = []
        most: list[int] = []
        guarded = made(cache_dir, Counting(received=[]), Counting(received=[]))
        inputs = [ask(painted(colour)) for colour in ("white", "yellow")] * 4
        asyncio.run(guarded.abatch(inputs, {"max_concurrency": limit}))
        assert max(most) == (limit or len(inputs))

    def test_empty_ones_are_empty(self, guarded, call):
        assert call(guarded, "batch", []) == []
        assert call(guarded, "generate", []).generations == []

    def test_each_input_has_its_own_config(self, guarded, call):
        listeners = [Listener(), Listener()]
        call(guarded, "batch", [ask(painted("red")), ask(painted("blue"))], [{"callbacks": [one]} for one in listeners])
        assert [[data["action"] for _, data in one.events] for one in listeners] == [["mask"], ["block"]]


class TestRuns:
    @pytest.mark.parametrize("method", ["invoke", "batch", "stream"])
    def test_the_config_is_the_guarded_models_and_arguments_reach_the_models_run_within(self, guarded, call, method):
        class Heard(Listener):
            def __init__(self):
                super().__init__()
                self.starts = []

            def on_chain_start(self, serialized, inputs, **kwargs):
                self.starts.append(kwargs)

            def on_chat_model_start(self, serialized, messages, **kwargs):
                self.starts.append(kwargs)

        heard, run_id = Heard(), uuid4()
        config = {"callbacks": [heard], "tags": ["t"], "metadata": {"m": 1}, "run_name": "look", "run_id": run_id}
        value = ask(painted("red"))
        given = [value] if method == "batch" else value
        if method == "stream":
            list(guarded.stream(value, config, stop=["."], colour="red"))
        else:
            call(guarded, method, given, config, stop=["."], colour="red")
        outer, inner = heard.starts
        assert (outer["name"], outer["run_id"], outer["parent_run_id"]) == ("look", run_id, None)
        assert all("t" in start["tags"] and start["metadata"]["m"] == 1 for start in heard.starts)
        assert (inner["name"], inner["parent_run_id"]) == (None, run_id)
        assert (inner["invocation_params"]["stop"], inner["invocation_params"]["colour"]) == (["."], "red")

    @pytest.mark.parametrize("colour", ["red", "blue", "white"])
    def test_the_verdict_is_told_even_if_there_is_no_enclosing_run(self, guarded, call, colour):
        heard = Listener()
        call(guarded, "invoke", ask(painted(colour)), {"callbacks": [heard]})
        ((name, data),) = heard.events
        assert (name, len(data["verdicts"])) == (EVENT, 1)
        assert b64(painted(colour)) not in repr(heard.events)
        # A harmless image is shown in the run, as it is in that of a model.
        assert (b64(painted(colour)) in "".join(heard.heard)) is (colour == "white")

    def test_it_is_told_within_the_enclosing_run_if_there_is_one(self, guarded, call):
        class Placed(BaseCallbackHandler):
            def on_chain_start(self, *_, run_id, parent_run_id=None, **__):
                if parent_run_id is None:
                    self.outermost = run_id

            def on_custom_event(self, name, data, *, run_id, **_):
                self.seen_in = run_id

        placed = Placed()
        call(RunnablePassthrough() | guarded, "invoke", ask(painted("red")), {"callbacks": [placed]})
        assert placed.seen_in == placed.outermost

    def test_text_alone_is_nothing_to_tell(self, guarded, call):
        heard = Listener()
        call(guarded, "invoke", "words", {"callbacks": [heard]})
        assert heard.events == []

    async def test_the_verdict_is_part_of_the_event_stream_within_the_run_it_belongs_to(self, guarded):
        alone = [e async for e in guarded.astream_events(ask(painted("red")), version="v2")]
        assert [e["event"] for e in alone][:4] == [
            "on_custom_event",
            "on_chain_start",
            "on_chat_model_start",
            "on_chat_model_stream",
        ]
        assert [e["event"] for e in alone].count("on_chat_model_stream") == len(guarded.model.words) + 1
        assert alone[0]["data"].keys() == {"action", "verdicts"}
        chain = ChatPromptTemplate.from_messages([("placeholder", "{chat}")]) | guarded
        within = [e async for e in chain.astream_events({"chat": ask(painted("red"))}, version="v2")]
        (told,) = [e for e in within if e["event"] == "on_custom_event"]
        assert told["run_id"] == within[0]["run_id"]

    @pytest.mark.parametrize(
        ("filters", "is_told"),
        [
            ({"include_names": [EVENT]}, True),
            ({"include_types": ["chat_model"]}, False),
            ({"exclude_names": [EVENT]}, False),
            ({"exclude_types": ["chat_model"]}, True),
        ],
    )
    async def test_filters_of_the_event_stream_count_for_the_verdict(self, guarded, filters, is_told):
        events = [e async for e in guarded.astream_events(ask(painted("red")), version="v2", **filters)]
        assert [e["name"] for e in events if e["event"] == "on_custom_event"] == [EVENT] * is_told

    @pytest.mark.parametrize("method", ["astream", "_astream"])
    async def test_a_reader_who_stops_early_ends_the_models_stream_at_once(self, guard, method):
        class Endless(RecordingModel):
            ended: ClassVar[list] = []

            async def _tokens(self, make):
                try:
                    while True:
                        yield make("more ")
                        await asyncio.sleep(0)
                finally:
                    self.ended.append(method)

            def astream(self, *_, **__):
                return self._tokens(AIMessageChunk)

            def _astream(self, *_, **__):
                return self._tokens(lambda word: ChatGenerationChunk(message=AIMessageChunk(word)))

        guarded = GuardedChatModel(model=Endless(received=[]), guard=guard)
        Endless.ended.clear()
        chunks = getattr(guarded, method)(ask(painted()))
        await anext(chunks)
        await chunks.aclose()
        assert guarded.model.ended == [method]

    def test_the_first_token_comes_before_the_last_is_made(self, guard):
        made = []

        class Slow(RecordingModel):
            def _stream(self, *args, **kwargs):
                for chunk in super()._stream(*args, **kwargs):
                    made.append(chunk.text)
                    yield chunk

        stream = GuardedChatModel(model=Slow(received=[]), guard=guard).stream(ask(painted("red")))
        assert next(stream).content == "one "
        assert made == ["one "]
        assert "".join(chunk.content for chunk in stream) == "two three"

    def test_the_wrapped_models_cache_knows_sanitised_messages_only(self, guard, call):
        model = RecordingModel(received=[], cache=InMemoryCache())
        model.invoke(ask(painted("red")))
        guarded = GuardedChatModel(model=model, guard=guard)
        for _ in range(2):
            call(guarded, "invoke", ask(painted("red")))
        assert len(model.received) == 2
        assert image_of(blocks(model.received[1])[-1]).tobytes() == MASKED.tobytes()

    def test_a_refusal_is_never_cached(self, guarded, call, monkeypatch):
        cache = InMemoryCache()
        monkeypatch.setattr("langchain_core.globals._llm_cache", cache)
        call(guarded, "invoke", ask(painted("blue")))
        assert not cache._cache

    def test_the_wrapped_models_rate_limiter_and_streaming_switch_are_kept(self, guard, call):
        class Limiter(InMemoryRateLimiter):
            asked = 0

            def acquire(self, **kwargs):
                type(self).asked += 1
                return True

            async def aacquire(self, **kwargs):
                return self.acquire()

        model = RecordingModel(received=[], rate_limiter=Limiter(), disable_streaming=True)
        guarded = GuardedChatModel(model=model, guard=guard)
        assert [chunk.content for chunk in guarded.stream(ask(painted()))] == ["one two three"]
        call(guarded, "invoke", ask(painted("blue")))
        assert Limiter.asked == 1


class ToolModel(RecordingModel):
    """Binds tools in a format of its own and calls the first one it is given."""

    style: str = "a"

    def bind_tools(self, tools, *, tool_choice=None, **kwargs):
        return self.bind(tools=[{self.style: getattr(t, "name", None) or t.__name__} for t in tools], **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, tools=None, **kwargs):
        self.received.append([*messages, tools, kwargs])
        call = {"name": tools[0][self.style], "args": {"word": self.style}, "id": "1"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("", tool_calls=[call]))])


@tool
def look(word: str) -> str:
    """Look."""
    return word


class Answer(BaseModel):
    """An answer."""

    word: str


@pytest.fixture
def tooled(cache_dir) -> GuardedChatModel:
    return made(cache_dir, ToolModel(received=[]), ToolModel(received=[], style="b"))


class TestTools:
    def test_each_model_gets_tools_as_it_binds_them(self, tooled, call):
        bound = tooled.bind_tools([look], extra=1)
        assert isinstance(bound, RunnableBinding)
        assert bound.kwargs == {"tools": [{"a": "look"}], "extra": 1}
        for colour, model in (("white", tooled.model), ("yellow", tooled.route_to)):
            (called,) = call(bound, "invoke", ask(painted(colour)), temperature=0).tool_calls
            assert (called["name"], called["args"]) == ("look", {"word": model.style})
            assert model.received[-1][-1] == {"extra": 1, "temperature": 0}

    def test_arguments_of_the_call_count_more_than_bound_ones(self, tooled, call):
        call(tooled.bind_tools([look], extra=1), "invoke", ask(painted("yellow")), extra=2)
        assert tooled.route_to.received[-1][-1] == {"extra": 2}

    def test_binding_changes_nothing_on_the_model_it_was_made_of(self, tooled):
        tooled.bind_tools([look])
        assert tooled._for_model == tooled._for_route == {}

    def test_a_binding_can_be_bound_again(self, tooled, call):
        bound = tooled.bind_tools([look]).bind_tools([Answer])
        assert call(bound, "invoke", ask(painted("yellow"))).tool_calls[0]["name"] == "Answer"

    def test_a_blocked_input_is_refused_though_tools_are_bound(self, tooled, call):
        answer = call(tooled.bind_tools([look]), "invoke", ask(painted("blue")))
        assert (answer.content, answer.tool_calls) == (REFUSAL, [])

    def test_a_model_that_knows_no_tools_says_so(self, guard):
        guarded = GuardedChatModel(model=RecordingModel.make(), guard=guard)
        for make in (lambda: guarded.bind_tools([look]), lambda: guarded.with_structured_output(Answer)):
            with pytest.raises(NotImplementedError):
                make()

    def test_tools_bound_in_a_way_that_cannot_be_carried_over_are_an_error(self, guard):
        class Odd(RecordingModel):
            def bind_tools(self, tools, **_):
                return RunnableLambda(lambda x: x) | self

        with pytest.raises(TypeError, match="RunnableSequence"):
            GuardedChatModel(model=Odd(received=[]), guard=guard).bind_tools([look])


class TestStructuredOutput:
    def test_each_model_answers_in_its_own_way(self, tooled, call):
        structured = tooled.with_structured_output(Answer)
        assert call(structured, "invoke", ask(painted("red"))) == Answer(word="a")
        assert call(structured, "invoke", ask(painted("yellow"))) == Answer(word="b")
        assert image_of(blocks(tooled.model.received[0][:2])[-1]).tobytes() == MASKED.tobytes()
        assert b64(painted("yellow")) not in repr(tooled.route_to.received)

    @pytest.mark.parametrize("on_violation", ["refuse", "raise"])
    def test_a_refusal_is_an_error_because_it_is_no_object_of_the_schema(self, cache_dir, call, on_violation):
        tooled = made(cache_dir, ToolModel(received=[]), on_violation=on_violation)
        with pytest.raises(UnsafeContentError) as caught:
            call(tooled.with_structured_output(Answer), "invoke", ask(painted("blue")))
        assert caught.value.verdict.action == "block"
        assert not tooled.model.received

    def test_with_the_raw_answer_it_is_an_answer_that_cannot_be_parsed(self, tooled, call):
        structured = tooled.with_structured_output(Answer, include_raw=True)
        result = call(structured, "invoke", ask(painted("blue")))
        assert (result["raw"].content, result["parsed"]) == (REFUSAL, None)
        assert isinstance(result["parsing_error"], UnsafeContentError)
        result = call(structured, "invoke", ask(painted()))
        assert (result["parsed"], result["parsing_error"]) == (Answer(word="a"), None)
        out = call(structured, "batch", [ask(painted("blue")), ask(painted())])
        assert [r["parsed"] for r in out] == [None, Answer(word="a")]

    def test_an_error_is_asked_for_and_is_one_with_the_raw_answer_too(self, cache_dir, call):
        tooled = made(cache_dir, ToolModel(received=[]), on_violation="raise")
        with pytest.raises(UnsafeContentError):
            call(tooled.with_structured_output(Answer, include_raw=True), "invoke", ask(painted("blue")))

    def test_a_notice_lets_the_model_answer(self, cache_dir, call):
        tooled = made(cache_dir, ToolModel(received=[]), on_violation="notice")
        assert call(tooled.with_structured_output(Answer), "invoke", ask(painted("blue"))) == Answer(word="a")

    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_its_trace_holds_no_unsafe_image(self, tooled, call, colour):
        structured = tooled.with_structured_output(Answer, include_raw=True)
        with traced() as tracer:
            call(structured, "invoke", ask(painted(colour)))
        assert tracer.kinds
        assert b64(painted(colour)) not in repr(tracer.seen)

    def test_all_images_of_a_batch_are_one_encoder_call(self, tooled, call):
        tooled.guard.guard.prepare()
        call(tooled.with_structured_output(Answer), "batch", [ask(painted(shade=shade)) for shade in range(3)])
        assert len(calls(tooled)) == 1


class TestWhatOthersRead:
    def test_it_passes_for_the_wrapped_model(self, guard):
        class Named(RecordingModel):
            model_name: str = "gpt-4o"

            def _get_ls_params(self, stop=None, **kwargs):
                return {"ls_provider": "openai", "ls_model_name": kwargs.get("model", self.model_name)}

        model = Named(received=[], profile={"image_inputs": True})
        guarded = GuardedChatModel(model=model, guard=guard)
        assert guarded._llm_type == "recording"
        assert guarded.profile == {"image_inputs": True}
        assert guarded.model_name == "gpt-4o"
        assert guarded._get_ls_params(model="gpt-5")["ls_model_name"] == "gpt-5"

    def test_its_name_is_never_empty_for_agents_take_model_for_a_name_then(self, guarded):
        from langchain.agents.factory import _supports_provider_strategy

        assert guarded.model_name == "recording"
        assert _supports_provider_strategy(guarded) is False

    def test_a_cache_cannot_take_it_for_the_bare_model_or_for_another_policy(self, guarded, cache_dir):
        params = guarded._identifying_params
        assert params["guardalign"]["policy_fingerprint"] == guarded.guard.guard.policy.fingerprint
        assert params != guarded.model._identifying_params
        assert params != made(cache_dir, prefix="Mind.")._identifying_params
        assert guarded.asdict()["_type"] == "recording"

    def test_neither_pixels_nor_keys_are_in_its_repr(self, guard):
        class Keyed(RecordingModel):
            api_key: str = "SECRET"

        guarded = GuardedChatModel(model=Keyed(received=[ask(painted())]), guard=guard, route_to=Keyed(received=[]))
        shown = f"{guarded!r} {guarded}"
        assert "Keyed" in shown
        assert "SECRET" not in shown
        assert b64(painted()) not in shown

    def test_tokens_are_counted_of_what_the_model_would_be_given_and_nothing_is_fetched(self, cache_dir):
        class Counter(RecordingModel):
            def get_num_tokens_from_messages(self, messages, tools=None):
                self.received.append(messages)
                return len(blocks(messages))

            def get_token_ids(self, text):
                return [0] * len(text)

        guarded = made(cache_dir, Counter(received=[]), failure={"uninspectable": "allow"}, on_violation="raise")
        url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        value = [HumanMessage([v1(painted("red")), v1(painted("blue")), url, v1(painted())])]
        assert guarded.get_num_tokens_from_messages(value) == 5
        (seen,) = guarded.model.received
        assert "example.org" not in repr(seen)
        for colour in ("red", "blue"):
            assert b64(painted(colour)) not in repr(seen)
        assert b64(painted()) in repr(seen)
        assert (guarded.get_num_tokens("abc"), guarded.get_token_ids("ab")) == (3, [0, 0])

    def test_it_dumps_and_loads_with_a_model_that_does(self):
        from langchain_core.language_models import FakeListChatModel

        class Loadable(FakeListChatModel):
            @classmethod
            def is_lc_serializable(cls):
                return True

            @classmethod
            def get_lc_namespace(cls):
                return ["langchain_guardalign"]

        guarded = GuardedChatModel(model=Loadable(responses=["a"]), guard=colour_policy(), on_violation="notice")
        text = dumps(guarded)
        assert json.loads(text)["kwargs"]["on_violation"] == "notice"
        assert json.loads(text)["kwargs"]["guard"]["policy"] == colour_policy().to_dict()

    def test_what_belongs_to_the_run_is_set_on_the_wrapped_model(self, model, guard):
        for setting in ({"cache": True}, {"callbacks": [Listener()]}, {"tags": ["a"]}, {"metadata": {"a": 1}}):
            with pytest.raises(ValidationError, match=f"set {next(iter(setting))} on the wrapped model"):
                GuardedChatModel(model=model, guard=guard, **setting)
        with pytest.raises(ValidationError, match="on_violaton"):
            GuardedChatModel(model=model, guard=guard, on_violaton="raise")

    def test_the_guard_can_be_given_as_all_that_makes_one(self, model, cache_dir, tmp_path):
        guard, path = colour_guard(cache_dir), tmp_path / "policy.yaml"
        path.write_text(colour_policy().to_yaml())
        assert GuardedChatModel(model=model, guard=guard).guard.guard is guard
        for given in (colour_policy(), path, str(path), GuardSettings(policy=colour_policy())):
            assert GuardedChatModel(model=model, guard=given).guard.policy == colour_policy()
        assert GuardedChatModel(model=model).guard.policy == Policy.default()
        with pytest.raises(SettingsError, match="not as int"):
            GuardedChatModel(model=model, guard=5)

    def test_on_violation_can_be_configured_at_run_time(self, guarded, call):
        chooser = guarded.configurable_fields(on_violation=ConfigurableField("on_violation"))
        config = {"configurable": {"on_violation": "raise"}}
        with pytest.raises(UnsafeContentError):
            call(chooser, "invoke", ask(painted("blue")), config)
        assert call(chooser, "invoke", ask(painted("blue"))).content == REFUSAL

    def test_an_agent_takes_it_for_a_model(self, cache_dir, call):
        from langchain.agents import create_agent

        class Agent(ToolModel):
            def _generate(self, messages, stop=None, run_manager=None, tools=None, **kwargs):
                if isinstance(messages[-1], ToolMessage):
                    self.received.append(messages)
                    return ChatResult(generations=[ChatGeneration(message=AIMessage("done"))])
                return super()._generate(messages, tools=tools)

        guarded = made(cache_dir, Agent(received=[]))
        agent = create_agent(guarded, [look])
        out = call(agent, "invoke", {"messages": ask(painted("red"))})
        assert out["messages"][-1].content == "done"
        assert b64(painted("red")) not in repr(guarded.model.received)
        out = call(agent, "invoke", {"messages": ask(painted("blue"))})
        assert out["messages"][-1].content == REFUSAL

    def test_data_urls_of_refused_images_are_not_in_errors(self, cache_dir):
        guarded = made(cache_dir, on_violation="raise")
        with pytest.raises(UnsafeContentError) as caught:
            guarded.invoke(ask(painted("blue")))
        assert data_url(painted("blue")) not in str(caught.value)
