"""Retries and fallbacks stay behind the guard: no violation is tried again, or handed to what is not guarded."""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time
from typing import Any, ClassVar

import pytest
from chat_images import MASKED, RecordingModel, ask, b64, blocks, calls, image_of, text
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumps, load
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnablePassthrough,
    RunnableSequence,
)

from guardalign_guardrails import EncoderUnavailable, GuardSettings, UnsafeContentError
from guardalign_guardrails.content.encoded_text import to_base64
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign import GuardedChatModel, ImageDocumentTransformer, ImageGuard
from langchain_guardalign.derived import GuardKeeping

REFUSAL = colour_policy().refusal
BLUE = ask(painted("blue"))
QUICK = {"wait_exponential_jitter": False, "stop_after_attempt": 3}


class Failing(RecordingModel):
    """Fails as often as it is told, then answers."""

    failures: int = 1_000

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        result = super()._generate(messages)
        if len(self.received) <= self.failures:
            raise TimeoutError("the provider is down")
        return result

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        chunks = list(super()._stream(messages))
        if len(self.received) <= self.failures:
            raise TimeoutError("the provider is down")
        yield from chunks

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=tools, **kwargs)

    def with_structured_output(self, schema, *, include_raw=False, **kwargs):
        return self | RunnableLambda(lambda answer: {"said": answer.content})


class Plain(RecordingModel):
    """Answers, and takes tools."""

    given: ClassVar[list[dict[str, Any]]] = []

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        self.given.append(kwargs)
        return super()._generate(messages)

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[f"plain {tool}" for tool in tools], **kwargs)

    def with_structured_output(self, schema, *, include_raw=False, **kwargs):
        return self | RunnableLambda(lambda answer: {"said": answer.content})


def plain() -> Plain:
    Plain.given.clear()
    return Plain(received=[], words=("plain",))


def failing(failures: int = 1_000) -> Failing:
    return Failing(received=[], failures=failures)


async def _gathered(chunks) -> list[Any]:
    return [chunk async for chunk in chunks]


WAYS = {
    "invoke": lambda runnable, value: runnable.invoke(value),
    "stream": lambda runnable, value: list(runnable.stream(value)),
    "batch": lambda runnable, value: runnable.batch([value]),
    "ainvoke": lambda runnable, value: asyncio.run(runnable.ainvoke(value)),
    "astream": lambda runnable, value: asyncio.run(_gathered(runnable.astream(value))),
    "abatch": lambda runnable, value: asyncio.run(runnable.abatch([value])),
}

# Everything that LangChain derives from a guarded model, each with a fallback at the end.
DERIVED = {
    "itself": lambda model, other: model.with_fallbacks([other]),
    "fallbacks twice": lambda model, other: model.with_fallbacks([failing()]).with_fallbacks([other]),
    "bind": lambda model, other: model.bind(stop=["."]).with_fallbacks([other]),
    "with_config": lambda model, other: model.with_config(tags=["a"]).with_fallbacks([other]),
    "with_listeners": lambda model, other: model.with_listeners(on_end=lambda run: None).with_fallbacks([other]),
    "with_alisteners": lambda model, other: model.with_alisteners().with_fallbacks([other]),
    "with_types": lambda model, other: model.with_types(output_type=AIMessage).with_fallbacks([other]),
    "bindings of bindings": lambda model, other: (
        model.bind(stop=["."]).with_config(tags=["a"]).bind(top_p=1).with_types().with_fallbacks([other])
    ),
    "bind_tools": lambda model, other: model.bind_tools(["look"]).with_fallbacks([other.bind_tools(["look"])]),
    "with_retry": lambda model, other: model.with_retry(**QUICK).with_fallbacks([other]),
    "bind, with_retry": lambda model, other: model.bind(stop=["."]).with_retry(**QUICK).with_fallbacks([other]),
    "with_structured_output": lambda model, other: model.with_structured_output(dict).with_fallbacks(
        [other.with_structured_output(dict)]
    ),
    "a chain": lambda model, other: (model | StrOutputParser()).with_fallbacks([other | StrOutputParser()]),
    "a chain, fallbacks twice": lambda model, other: (
        (model | StrOutputParser())
        .with_fallbacks([failing() | StrOutputParser()])
        .with_fallbacks([other | StrOutputParser()])
    ),
    "a chain of a binding, retried": lambda model, other: (
        model.bind(stop=["."])
        .pipe(RunnablePassthrough(), StrOutputParser())
        .with_retry(**QUICK)
        .with_config(tags=["a"])
        .with_fallbacks([other])
    ),
    "a chain, fallbacks, retried": lambda model, other: (
        (model | StrOutputParser()).with_fallbacks([failing()]).with_retry(**QUICK).with_fallbacks([other])
    ),
    "a chain, alternatives": lambda model, other: (
        (model | StrOutputParser())
        .configurable_alternatives(ConfigurableField("which"), a=other)
        .with_fallbacks([other])
    ),
    "configurable_fields": lambda model, other: model.configurable_fields(
        on_violation=ConfigurableField("on_violation")
    ).with_fallbacks([other]),
    "configurable_alternatives": lambda model, other: model.configurable_alternatives(
        ConfigurableField("which"), other=lambda: other
    ).with_fallbacks([other]),
    "configurable_alternatives, bind": lambda model, other: (
        model.configurable_alternatives(ConfigurableField("which"), b=other).bind(stop=["."]).with_fallbacks([other])
    ),
}


def answer_of(output: Any) -> str:
    if isinstance(output, list):
        return "".join(map(answer_of, output))
    return output["said"] if isinstance(output, dict) else output if isinstance(output, str) else output.content


class TestFallbacks:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
    def test_a_violation_never_goes_to_an_unguarded_fallback(self, cache_dir, derive, way):
        other, model = plain(), failing(0)
        guarded = GuardedChatModel(model=model, guard=colour_guard(cache_dir), on_violation="raise")
        with pytest.raises(UnsafeContentError):
            WAYS[way](derive(guarded, other), ask(painted("blue")))
        assert (other.received, model.received) == ([], [])

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
    def test_a_fallback_gets_what_the_guard_lets_pass(self, cache_dir, derive, way):
        other = plain()
        guarded = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir), on_violation="notice")
        saved = derive(guarded, other)
        assert answer_of(WAYS[way](saved, ask(painted("red"), painted("blue")))) == "plain"
        (messages,) = other.received
        assert messages[0].content == "Be careful."
        seen = blocks(messages[1:])
        assert image_of(seen[1]).tobytes() == MASKED.tobytes()
        assert seen[2] == text(NOTICE)

    @pytest.mark.parametrize("way", WAYS)
    def test_a_refusal_needs_no_fallback(self, cache_dir, way):
        other = plain()
        saved = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir)).with_fallbacks([other])
        assert answer_of(WAYS[way](saved, ask(painted("blue")))) == REFUSAL
        assert other.received == []

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
    def test_nothing_goes_to_a_fallback_if_nothing_can_be_checked(self, cache_dir, derive, way):
        other = plain()
        settings = GuardSettings(encoder="transformers:/nowhere", cache_dir=cache_dir)
        guarded = GuardedChatModel(model=failing(), guard=settings)
        with pytest.raises(EncoderUnavailable):
            WAYS[way](derive(guarded, other), ask(painted()))
        assert other.received == []

    def test_routed_inputs_fall_back_behind_the_guard_too(self, cache_dir, call):
        other, careful = plain(), failing()
        guarded = GuardedChatModel(model=failing(), route_to=careful, guard=colour_guard(cache_dir))
        saved = guarded.bind_tools(["look"]).with_fallbacks([other.bind_tools(["look"])])
        assert call(saved, "invoke", ask(painted("yellow"))).content == "plain"
        assert len(careful.received) == 1
        assert text(NOTICE) in blocks(other.received[0])

    def test_each_model_gets_the_tools_that_were_bound_to_it(self, cache_dir, call):
        other, first = plain(), plain()
        guarded = GuardedChatModel(model=first, guard=colour_guard(cache_dir))
        saved = guarded.bind_tools(["a"]).with_fallbacks([other.bind_tools(["b"])])
        call(saved, "invoke", "hello")
        first.received.clear()
        call(
            GuardedChatModel(model=failing(), guard=colour_guard(cache_dir))
            .bind_tools(["a"])
            .with_fallbacks([other.bind_tools(["b"])]),
            "invoke",
            "hello",
        )
        assert Plain.given == [{"tools": ["plain a"]}, {"tools": ["plain b"]}]

    def test_the_guard_checks_once(self, cache_dir, call):
        guarded = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir))
        guarded.guard.guard.prepare()
        call(guarded.with_fallbacks([failing(), plain()]), "invoke", ask(painted()))
        assert len(calls(guarded)) == 1

    def test_a_fallback_that_is_guarded_itself_is_asked_as_it_is(self, cache_dir, call):
        other = plain()
        second = GuardedChatModel(model=other, guard=colour_guard(cache_dir))
        first = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir))
        call(first.with_fallbacks([second]), "invoke", ask(painted("red")))
        (messages,) = other.received
        assert [message.content for message in messages[:1]] == ["Be careful."]
        assert image_of(blocks(messages)[-1]).tobytes() == MASKED.tobytes()

    def test_the_prefix_goes_where_every_model_that_may_be_asked_takes_it(self, cache_dir, call):
        class Gemma(Plain):
            model_name: str = "gemma-3"

        other = Gemma(received=[])
        guarded = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir))
        call(guarded.with_fallbacks([other]), "invoke", ask(painted("green")))
        assert [message.type for message in other.received[0]] == ["human"]

    def test_what_is_derived_can_be_an_agents_model(self, cache_dir, call):
        from langchain.agents import create_agent

        other = plain()
        guarded = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir))
        agent = create_agent(guarded.with_retry(**QUICK).with_fallbacks([other]), [])
        out = call(agent, "invoke", {"messages": ask(painted("red"))})
        assert out["messages"][-1].content == "plain"
        assert b64(painted("red")) not in repr(other.received)

    @pytest.mark.parametrize("way", WAYS)
    def test_a_branch_whose_guarded_model_raises_goes_to_no_other_branch(self, cache_dir, way):
        other = plain()
        guarded = GuardedChatModel(model=failing(0), guard=colour_guard(cache_dir), on_violation="raise")
        with pytest.raises(UnsafeContentError):
            WAYS[way](RunnableBranch((lambda _: True, guarded), other), ask(painted("blue")))
        assert other.received == []


class TestAlternatives:
    def test_an_alternative_is_behind_the_same_guard(self, cache_dir, call):
        others = {"model": plain(), "made": plain(), "chain": plain()}
        chosen = GuardedChatModel(
            model=failing(), guard=colour_guard(cache_dir), on_violation="raise"
        ).configurable_alternatives(
            ConfigurableField("which"),
            model=others["model"],
            made=lambda: others["made"],
            chain=RunnablePassthrough() | others["chain"],
        )
        for name, other in others.items():
            config = {"configurable": {"which": name}}
            with pytest.raises(UnsafeContentError):
                call(chosen, "invoke", ask(painted("blue")), config)
            assert call(chosen, "invoke", ask(painted("red")), config).content == "plain"
            ((_, message),) = other.received
            assert image_of(message.content[-1]).tobytes() == MASKED.tobytes()

    def test_one_that_has_a_guard_keeps_its_own(self, cache_dir):
        own = GuardedChatModel(model=plain(), guard=colour_guard(cache_dir), on_violation="raise")
        guarded = GuardedChatModel(model=plain(), guard=colour_guard(cache_dir))
        chosen = guarded.configurable_alternatives(ConfigurableField("which"), own=own)
        with pytest.raises(UnsafeContentError):
            chosen.invoke(ask(painted("blue")), {"configurable": {"which": "own"}})
        assert chosen.invoke(ask(painted("blue"))).content == REFUSAL


class TestRetries:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("settings", [QUICK, {**QUICK, "retry_if_exception_type": (UnsafeContentError,)}])
    def test_a_violation_is_not_tried_again(self, cache_dir, way, settings):
        guarded = GuardedChatModel(model=plain(), guard=colour_guard(cache_dir), on_violation="raise")
        tried = []
        listened = guarded.with_listeners(on_error=lambda run: tried.append(run.id))
        for retried in (guarded.with_retry(**settings), listened.with_retry(**settings)):
            with pytest.raises(UnsafeContentError):
                WAYS[way](retried, ask(painted("blue")))
        assert len(tried) == 1

    @pytest.mark.parametrize("way", ["invoke", "batch", "ainvoke", "abatch"])
    def test_a_model_that_fails_is(self, cache_dir, way):
        model = failing(2)
        guarded = GuardedChatModel(model=model, guard=colour_guard(cache_dir))
        assert answer_of(WAYS[way](guarded.with_retry(**QUICK), ask(painted("red")))) == "one two three"
        assert len(model.received) == 3
        assert b64(painted("red")) not in repr(model.received)

    def test_a_guard_has_nothing_to_try_again(self, cache_dir, call):
        guard = ImageGuard(colour_guard(cache_dir), on_violation="raise")
        assert guard.with_retry(stop_after_attempt=9) is guard
        start = time.monotonic()
        with pytest.raises(UnsafeContentError):
            call((guard | plain()).with_retry(stop_after_attempt=9), "invoke", ask(painted("blue")))
        assert time.monotonic() - start < 5

    def test_what_is_behind_a_guard_is_tried_again(self, cache_dir, call):
        model = failing(2)
        chain = (ImageGuard(colour_guard(cache_dir)) | model | StrOutputParser()).with_retry(**QUICK)
        assert call(chain, "invoke", ask(painted("red"))) == "one two three"
        assert b64(painted("red")) not in repr(model.received)

    def test_nor_do_an_agents_retries_try_it_again_or_put_its_text_into_the_chat(self, cache_dir, in_context):
        from langchain.agents import create_agent
        from langchain.agents.middleware import ModelRetryMiddleware

        guarded = GuardedChatModel(model=plain(), guard=colour_guard(cache_dir), on_violation="raise")
        tried = []
        agent = create_agent(guarded, [], middleware=[ModelRetryMiddleware(initial_delay=0, jitter=False)])
        listened = agent.with_config(callbacks=[_Names(tried)])
        with pytest.raises(UnsafeContentError):
            in_context(listened, "invoke", {"messages": ask(painted("blue"))})
        assert tried.count("GuardedChatModel") == 1

    def test_nor_those_of_its_tools(self, cache_dir, call):
        from langchain.agents import create_agent
        from langchain.agents.middleware import ToolRetryMiddleware
        from langchain_core.tools import tool

        from langchain_guardalign.testing.recording import RecordingModel as ToolCaller

        tried = []

        @tool
        def look() -> str:
            """Ask a guarded model about an image."""
            tried.append(None)
            return GuardedChatModel(model=plain(), guard=colour_guard(cache_dir), on_violation="raise").invoke(
                ask(painted("blue"))
            )

        retries = ToolRetryMiddleware(initial_delay=0, jitter=False)
        agent = create_agent(ToolCaller(tool="look"), [look], middleware=[retries])
        with pytest.raises(UnsafeContentError):
            call(agent, "invoke", {"messages": "Look."})
        assert len(tried) == 1

    def test_nor_is_an_agents_unguarded_fallback_model_asked(self, cache_dir, call):
        from langchain.agents import create_agent
        from langchain.agents.middleware import ModelFallbackMiddleware

        other = plain()
        guarded = GuardedChatModel(model=plain(), guard=colour_guard(cache_dir), on_violation="raise")
        agent = create_agent(guarded, [], middleware=[ModelFallbackMiddleware(other)])
        with pytest.raises(UnsafeContentError):
            call(agent, "invoke", {"messages": ask(painted("blue"))})
        assert other.received == []

    @pytest.mark.parametrize(
        "fail",
        [
            lambda guard: GuardedChatModel(model=plain(), guard=guard, on_violation="raise").invoke(BLUE),
            lambda guard: GuardedChatModel(model=plain(), guard=guard).with_structured_output(dict).invoke(BLUE),
            lambda guard: ImageGuard(guard, on_violation="raise").invoke(BLUE),
            lambda guard: ImageDocumentTransformer(
                guard=guard, on_violation="raise", image_fields=("image",)
            ).transform_documents([Document("", metadata={"image": b64(painted("blue"))})]),
        ],
        ids=["model", "structured output", "runnable", "documents"],
    )
    @pytest.mark.parametrize("is_in_a_graph", [True, False])
    def test_the_error_says_of_itself_that_it_is_no_use_to_retry(self, cache_dir, monkeypatch, fail, is_in_a_graph):
        from langchain.agents.middleware._retry import default_retry_on
        from langgraph.errors import GraphBubbleUp

        if not is_in_a_graph:
            monkeypatch.delitem(sys.modules, "langgraph.errors")
        with pytest.raises(UnsafeContentError) as caught:
            fail(colour_guard(cache_dir))
        error = caught.value
        assert isinstance(error, GraphBubbleUp) if is_in_a_graph else not default_retry_on(error)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.verdict) == (type(error), error.verdict)


class TestGuards:
    """`ImageGuard`, chains that begin with one, and routes."""

    @pytest.mark.parametrize("way", WAYS)
    def test_a_chain_falls_back_behind_its_guard(self, cache_dir, way):
        other = plain()
        for rest in ((failing(),), (failing(), StrOutputParser())):
            guard = ImageGuard(colour_guard(cache_dir), on_violation="raise")
            chain = guard.pipe(*rest).with_fallbacks([other])
            with pytest.raises(UnsafeContentError):
                WAYS[way](chain, ask(painted("blue")))
            assert other.received == []
            assert answer_of(WAYS[way](chain, ask(painted("red")))) == "plain"
            assert image_of(blocks(other.received.pop())[-1]).tobytes() == MASKED.tobytes()

    def test_a_chain_that_goes_on_keeps_its_guard(self, cache_dir, call):
        other = plain()
        chain: Any = ImageGuard(colour_guard(cache_dir), on_violation="raise")
        for step in (RunnablePassthrough(), failing(), StrOutputParser()):
            chain = chain | step
        chain = chain.with_config(tags=["a"]).with_fallbacks([other])
        with pytest.raises(UnsafeContentError):
            call(chain, "invoke", ask(painted("blue")))
        assert other.received == []

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(
        "derive",
        [
            lambda guard, other: guard.with_fallbacks([other]),
            lambda guard, other: guard.with_config(tags=["a"]).with_fallbacks([other]),
            lambda guard, other: guard.with_fallbacks([RunnableLambda(_fail), other]),
        ],
    )
    def test_a_guards_fallback_gets_the_input_with_a_notice_and_only_for_a_violation(self, cache_dir, derive, way):
        given = []
        other = RunnableLambda(lambda value: given.append(value) or "instead")
        saved = derive(ImageGuard(colour_guard(cache_dir), on_violation="raise"), other)
        assert answer_of(WAYS[way](saved, ask(painted("blue")))) == "instead"
        assert blocks(given.pop())[1:] == [text(NOTICE)]
        passed = WAYS[way](saved, ask(painted("red")))
        assert b64(painted("red")) not in repr(passed)
        assert to_base64(with_mark(encode_png(MASKED))) in repr(passed)
        with pytest.raises(TypeError):
            WAYS[way](saved, 5)
        assert given == []

    def test_a_guard_that_raises_nothing_or_whose_errors_are_not_handled_needs_no_fallback(self, cache_dir):
        guard = ImageGuard(colour_guard(cache_dir))
        assert guard.with_fallbacks([RunnablePassthrough()]) is guard
        guard = ImageGuard(colour_guard(cache_dir), on_violation="raise")
        assert guard.with_fallbacks([RunnablePassthrough()], exceptions_to_handle=(OSError,)) is guard
        assert guard.with_fallbacks([RunnablePassthrough()], exceptions_to_handle=(UnsafeContentError,)) is not guard

    @pytest.mark.parametrize("way", WAYS)
    def test_a_route_falls_back_behind_its_guard(self, cache_dir, way):
        other = plain()
        route = ImageGuard(colour_guard(cache_dir)).route(failing(), failing()).with_fallbacks([other])
        for colour in ("red", "blue"):
            assert answer_of(WAYS[way](route, ask(painted(colour)))) == "plain"
            assert b64(painted(colour)) not in repr(other.received)

    def test_what_is_derived_is_derived_from_again(self, cache_dir):
        """No method of LangChain's that makes a runnable of a guarded one loses the guard."""
        guarded = GuardedChatModel(model=plain(), guard=colour_guard(cache_dir))
        field = ConfigurableField("on_violation")
        makes: dict[str, Any] = {
            "bind": lambda it: it.bind(stop=["."]),
            "with_config": lambda it: it.with_config(tags=["a"]),
            "with_listeners": lambda it: it.with_listeners(),
            "with_alisteners": lambda it: it.with_alisteners(),
            "with_types": lambda it: it.with_types(),
            "with_retry": lambda it: it.with_retry(),
            "with_fallbacks": lambda it: it.with_fallbacks([plain()]),
            "configurable_alternatives": lambda it: it.configurable_alternatives(ConfigurableField("which"), a=plain()),
        }
        makes |= {"pipe": lambda it: it.pipe(StrOutputParser()), "a chain": lambda it: it | StrOutputParser()}
        for first in makes.values():
            for second in makes.values():
                assert isinstance(second(first(guarded)), GuardKeeping)
        fields = guarded.configurable_fields(on_violation=field)
        for make in makes.values():
            assert isinstance(make(fields), GuardKeeping)
        # What wraps or chains is somebody else's: these are the rest of a runnable's methods that make one.
        rest = {"assign", "map", "pick", "as_tool"}
        public = {name for name in vars(Runnable) if name.startswith(("with_", "bind", "configurable"))}
        assert public <= set(makes) | rest

    def test_a_binding_comes_back_from_its_dump_with_its_guard(self):
        guard = ImageGuard(colour_policy(), on_violation="raise")
        made = [
            guard | RunnablePassthrough(),
            guard.with_config(tags=["a"]),
            guard.configurable_fields(on_violation=ConfigurableField("on_violation")),
            guard.configurable_alternatives(ConfigurableField("which"), a=RunnablePassthrough()),
        ]
        for derived in made:
            written = json.loads(dumps(derived))
            again = load(
                written,
                allowed_objects=[ImageGuard, RunnablePassthrough, type(derived)],
                valid_namespaces=["langchain_guardalign"],
            )
            assert type(again) is type(derived)
            assert json.loads(dumps(again)) == written

    @pytest.mark.parametrize(
        "derive",
        [
            lambda model: model.bind(stop=["."]).with_retry(**QUICK).with_fallbacks([plain()]),
            lambda model: model.configurable_alternatives(ConfigurableField("which"), a=plain()),
            lambda model: model.configurable_fields(on_violation=ConfigurableField("on_violation")).bind(stop=["."]),
        ],
    )
    def test_what_is_derived_comes_back_from_a_pickle_with_its_guard(self, cache_dir, call, derive):
        derived = derive(GuardedChatModel(model=plain(), guard=colour_guard(cache_dir), on_violation="raise"))
        for runnable in (derived, pickle.loads(pickle.dumps(derived))):
            with pytest.raises(UnsafeContentError):
                call(runnable, "invoke", ask(painted("blue")))
            assert call(runnable, "invoke", ask(painted("red"))).content == "plain"

    def test_a_chain_that_begins_with_a_prompt_is_guarded_where_its_fallbacks_are_the_models(self, cache_dir, call):
        """What the page on hosted models says to write."""
        other = plain()
        prompt = ChatPromptTemplate.from_messages([("placeholder", "{chat}")])
        guarded = GuardedChatModel(model=failing(), guard=colour_guard(cache_dir))
        chain = prompt | guarded.with_fallbacks([other]) | StrOutputParser()
        assert isinstance(chain, RunnableSequence)
        assert call(chain, "invoke", {"chat": ask(painted("red"))}) == "plain"
        assert b64(painted("red")) not in repr(other.received)


class _Names(BaseCallbackHandler):
    """Keeps the names of all chain runs."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def on_chain_start(self, *_: Any, name: str | None = None, **__: Any) -> None:
        self.names.append(str(name))


def _fail(_: Any) -> Any:
    raise OSError
