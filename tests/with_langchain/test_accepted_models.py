"""What a guarded model may be given for its model: names, configurable models and bindings, by all its methods."""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from uuid import uuid4

import pytest
from chat_images import MASKED, RecordingModel, ask, b64, blocks, image_of
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai_server import USAGE, OpenAIServer, call_tool, say, serving
from pydantic import BaseModel

from guardalign_guardrails import Guard, SettingsError, UnsafeContentError
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign import GuardedChatModel

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

REFUSAL = colour_policy().refusal


@pytest.fixture
def guard(cache_dir) -> Guard:
    return colour_guard(cache_dir)


@pytest.fixture
def server() -> OpenAIServer:
    with serving() as server:
        yield server


class Answer(BaseModel):
    """What is in the image."""

    word: str


@tool
def look(where: str) -> str:
    """Look somewhere."""
    return where


def bare(server: OpenAIServer, **settings: Any) -> ChatOpenAI:
    given = {"base_url": server.base_url, "api_key": "test", "max_retries": 0, "timeout": 20, **settings}
    return ChatOpenAI(**{"model": "gpt-4o", **given})


def configurable(server: OpenAIServer, model: str | None = "openai:gpt-4o", **settings: Any) -> Any:
    given = {"base_url": server.base_url, "api_key": "test", "max_retries": 0, **settings}
    return init_chat_model(model, configurable_fields=("model", "model_provider"), **given)


# What is given, and what of its own has to reach the provider.
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bind": (lambda server: bare(server).bind(temperature=0.25), {"temperature": 0.25}),
    "with_config": (lambda server: bare(server).with_config(tags=["own"]), {}),
    "with_retry": (lambda server: bare(server).with_retry(stop_after_attempt=2), {}),
    "bindings of bindings": (
        lambda server: bare(server).bind(temperature=0.25).with_config(tags=["own"]).with_retry().bind(top_p=0.5),
        {"temperature": 0.25, "top_p": 0.5},
    ),
    "with_listeners": (lambda server: bare(server).with_listeners(on_end=lambda run: None), {}),
    "with_fallbacks": (lambda server: bare(server).with_fallbacks([bare(server, model="gpt-4.1")]), {}),
    "configurable_fields": (
        lambda server: bare(server, temperature=0.25).configurable_fields(temperature=ConfigurableField("heat")),
        {"temperature": 0.25},
    ),
    "configurable_alternatives": (
        lambda server: bare(server).configurable_alternatives(
            ConfigurableField("which"), other=bare(server, model="gpt-4.1")
        ),
        {},
    ),
    "init_chat_model": (lambda server: init_chat_model("openai:gpt-4o", base_url=server.base_url, api_key="test"), {}),
    "init_chat_model, configurable": (configurable, {}),
    "init_chat_model, configurable, bind": (lambda server: configurable(server).bind(top_p=0.5), {"top_p": 0.5}),
}
BINDS_NO_TOOLS = {"configurable_fields"}
forms = pytest.mark.parametrize(("make", "own"), FORMS.values(), ids=FORMS)
tool_forms = pytest.mark.parametrize(
    ("make", "own"),
    [form for name, form in FORMS.items() if name not in BINDS_NO_TOOLS],
    ids=[name for name in FORMS if name not in BINDS_NO_TOOLS],
)


async def gathered(chunks) -> list[Any]:
    return [chunk async for chunk in chunks]


WAYS = {
    "invoke": lambda model, value: model.invoke(value),
    "stream": lambda model, value: list(model.stream(value)),
    "batch": lambda model, value: model.batch([value]),
    "generate": lambda model, value: model.generate([value]),
    "_generate": lambda model, value: model._generate(value),
    "_stream": lambda model, value: list(model._stream(value)),
    "ainvoke": lambda model, value: asyncio.run(model.ainvoke(value)),
    "astream": lambda model, value: asyncio.run(gathered(model.astream(value))),
    "abatch": lambda model, value: asyncio.run(model.abatch([value])),
    "agenerate": lambda model, value: asyncio.run(model.agenerate([value])),
    "_agenerate": lambda model, value: asyncio.run(model._agenerate(value)),
    "_astream": lambda model, value: asyncio.run(gathered(model._astream(value))),
    "astream_events": lambda model, value: asyncio.run(gathered(model.astream_events(value, version="v2"))),
}


# One of each kind of call in every test run; the others go the same ways through LangChain.
QUICK = ("invoke", "astream", "generate", "_agenerate")


class TestCalls:
    @pytest.mark.parametrize(
        "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
    )
    @forms
    def test_every_form_gets_sanitised_messages_by_every_method_and_keeps_what_is_its_own(
        self, guard, server, make, own, way
    ):
        guarded = GuardedChatModel(model=make(server), guard=guard)
        WAYS[way](guarded, ask(painted("red")))
        assert [image.tobytes() for image in server.last.images] == [MASKED.tobytes()]
        assert server.last.texts[0] == "Be careful."
        assert {name: server.last.body.get(name) for name in own} == own
        assert server.last.body["model"] == "gpt-4o"
        count = len(server.requests)
        assert REFUSAL in repr(WAYS[way](guarded, ask(painted("blue"))))
        assert len(server.requests) == count

    @forms
    def test_every_form_can_answer_what_is_routed(self, guard, server, make, own):
        guarded = GuardedChatModel(model=RecordingModel.make(), route_to=make(server), guard=guard)
        assert guarded.invoke(ask(painted("yellow"))).content == "one two three"
        assert server.last.images == []
        assert guarded.model.received == []

    @tool_forms
    def test_tools_are_bound_to_every_form(self, guard, server, make, own, call):
        server.answer = call_tool("look", where="up")
        bound = GuardedChatModel(model=make(server), guard=guard).bind_tools([look])
        answer = call(bound, "invoke", ask(painted("red")))
        assert [(each["name"], each["args"]) for each in answer.tool_calls] == [("look", {"where": "up"})]
        assert server.last.body["tools"][0]["function"]["name"] == "look"
        assert {name: server.last.body.get(name) for name in own} == own
        assert server.last.images[0].tobytes() == MASKED.tobytes()

    @tool_forms
    def test_every_form_gives_structured_output(self, guard, server, make, own, call):
        server.answer = say('{"word": "cat"}')
        guarded = GuardedChatModel(model=make(server), guard=guard)
        structured = guarded.with_structured_output(Answer, method="json_schema")
        assert call(structured, "invoke", ask(painted("red"))) == Answer(word="cat")
        assert {name: server.last.body.get(name) for name in own} == own
        assert server.last.images[0].tobytes() == MASKED.tobytes()
        with pytest.raises(UnsafeContentError):
            call(structured, "invoke", ask(painted("blue")))

    @tool_forms
    def test_every_form_can_be_an_agents_model(self, guard, server, make, own, call):
        agent = create_agent(GuardedChatModel(model=make(server), guard=guard), [look])
        out = call(agent, "invoke", {"messages": ask(painted("red"))})
        assert out["messages"][-1].content == "one two three"
        assert server.last.body["tools"][0]["function"]["name"] == "look"
        assert server.last.images[0].tobytes() == MASKED.tobytes()

    @forms
    def test_usage_is_counted_once(self, guard, server, make, own, call):
        usage = UsageMetadataCallbackHandler()
        call(GuardedChatModel(model=make(server), guard=guard), "invoke", ask(painted()), {"callbacks": [usage]})
        ((_, counted),) = usage.usage_metadata.items()
        assert counted["total_tokens"] == USAGE["total_tokens"]

    @forms
    def test_a_result_of_generate_has_a_run_for_each_chat(self, guard, server, make, own, call):
        run_id = uuid4()
        guarded = GuardedChatModel(model=make(server), guard=guard)
        result = call(
            guarded, "generate", [ask(painted()), [HumanMessage("hi")]], run_id=run_id, tags=["a"], stop=["x"]
        )
        assert [generations[0].text for generations in result.generations] == ["one two three"] * 2
        assert (result.run[0].run_id, len({info.run_id for info in result.run})) == (run_id, 2)
        assert server.last.body["stop"] == ["x"]


class TestConfiguredModels:
    def test_the_config_of_a_call_chooses_the_model(self, guard, server, call):
        guarded = GuardedChatModel(model=configurable(server), guard=guard)
        for name in ("gpt-4.1", "o1-mini"):
            call(guarded, "invoke", ask(painted("red")), {"configurable": {"model": name}})
            assert server.last.body["model"] == name
            # o1-mini knows no system message, so the prefix is in the user's.
            assert [turn["role"] for turn in server.last.turns] == (
                ["user"] if name == "o1-mini" else ["system", "user"]
            )
            assert server.last.images[0].tobytes() == MASKED.tobytes()

    def test_a_model_without_a_default_is_made_for_the_call_and_only_then(self, guard, server, call):
        guarded = GuardedChatModel(model=configurable(server, None), guard=guard)
        assert (guarded.profile, guarded._llm_type, guarded.model_name) == (None, "guardalign", "guardalign")
        assert guarded._identifying_params["model"] is None
        assert "policy_fingerprint" in repr(guarded._identifying_params)
        config = {"configurable": {"model": "gpt-4o", "model_provider": "openai"}}
        assert call(guarded, "invoke", ask(painted("red")), config).content == "one two three"
        with pytest.raises(NotImplementedError, match="count tokens with the chosen model"):
            guarded.get_num_tokens("words")
        assert call(guarded, "invoke", ask(painted("blue"))).content == REFUSAL

    def test_alternatives_and_fields_are_those_of_the_call(self, guard, server, call):
        which = bare(server).configurable_alternatives(
            ConfigurableField("which"), other=lambda: bare(server, model="o1-mini")
        )
        guarded = GuardedChatModel(model=which, guard=guard)
        config = {"configurable": {"which": "other"}}
        for runnable in (guarded, guarded.bind_tools([look])):
            call(runnable, "invoke", ask(painted("green")), config)
            assert server.last.body["model"] == "o1-mini"
            assert [turn["role"] for turn in server.last.turns] == ["user"]
        heat = bare(server).configurable_fields(temperature=ConfigurableField("heat"))
        call(GuardedChatModel(model=heat, guard=guard), "invoke", ask(painted()), {"configurable": {"heat": 0.75}})
        assert server.last.body["temperature"] == 0.75


class TestNames:
    def test_a_name_is_what_init_chat_model_takes(self, guard, server, monkeypatch, call):
        monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        guarded = GuardedChatModel(model="openai:gpt-4o", route_to="openai:gpt-4.1", guard=guard)
        assert isinstance(guarded.model, ChatOpenAI)
        assert guarded.model_name == "gpt-4o"
        call(guarded, "invoke", ask(painted("red")))
        assert server.last.images[0].tobytes() == MASKED.tobytes()
        call(guarded, "invoke", ask(painted("yellow")))
        assert server.last.body["model"] == "gpt-4.1"
        assert "s3cret" not in f"{guarded!r} {dumps(guarded)}"

    def test_without_langchain_the_error_says_what_to_install(self, guard, monkeypatch):
        monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
        with pytest.raises(SettingsError, match="pip install langchain"):
            GuardedChatModel(model="openai:gpt-4o", guard=guard)


class TestWhatIsRead:
    @pytest.mark.parametrize(
        "make", [make for name, (make, _) in FORMS.items() if "configurable" not in name or "init" not in name]
    )
    def test_it_passes_for_the_model_inside(self, guard, server, make):
        guarded = GuardedChatModel(model=make(server), guard=guard)
        assert (guarded._llm_type, guarded.model_name) == ("openai-chat", "gpt-4o")
        assert guarded._get_ls_params()["ls_model_name"] == "gpt-4o"
        assert guarded.profile == bare(server).profile
        assert guarded._identifying_params["model_name"] == "gpt-4o"

    def test_tokens_are_counted_by_the_model_inside(self, guard):
        class Counter(RecordingModel):
            def get_num_tokens_from_messages(self, messages, tools=None):
                self.received.append(messages)
                return len(blocks(messages))

        counter = Counter(received=[])
        guarded = GuardedChatModel(model=counter.bind(stop=["."]).with_retry(), guard=guard)
        assert guarded.get_num_tokens_from_messages(ask(painted("red"))) == 3
        assert image_of(blocks(counter.received[0])[-1]).tobytes() == MASKED.tobytes()

    def test_a_name_that_is_bound_decides_where_the_prefix_goes(self, guard, call):
        class Named(RecordingModel):
            def _get_ls_params(self, stop=None, **kwargs):
                return {"ls_model_name": kwargs.get("model", "gpt-4o")}

        model = Named(received=[])
        guarded = GuardedChatModel(model=model.bind(model="gemma-3"), guard=guard)
        call(guarded, "invoke", ask(painted("green")))
        assert [message.type for message in model.received[-1]] == ["human"]
        call(guarded, "invoke", ask(painted("green")), model="gpt-5")
        assert [message.type for message in model.received[-1]] == ["system", "human"]


class TestWhatIsRefused:
    @pytest.mark.parametrize("field", ["model", "route_to"])
    @pytest.mark.parametrize(
        "given",
        [
            RunnableLambda(lambda value: value),
            RecordingModel.make() | StrOutputParser(),
            RunnableLambda(lambda value: value).with_retry(),
            RunnableLambda(lambda value: value).with_fallbacks([RecordingModel.make()]),
            5,
        ],
        ids=["a function", "a chain", "a binding of a function", "a function with a fallback", "a number"],
    )
    def test_what_is_no_chat_model_is_an_error_that_says_what_to_do(self, guard, field, given):
        with pytest.raises(SettingsError, match=r"put an ImageGuard in front.*guard \| runnable"):
            GuardedChatModel(**{"model": RecordingModel.make(), field: given, "guard": guard})

    def test_so_are_tools_for_a_model_that_is_made_of_configured_fields(self, guard, server):
        heat = bare(server).configurable_fields(temperature=ConfigurableField("heat"))
        guarded = GuardedChatModel(model=heat, guard=guard)
        for bind in (lambda: guarded.bind_tools([look]), lambda: guarded.with_structured_output(Answer)):
            with pytest.raises(TypeError, match="init_chat_model"):
                bind()

    def test_a_stream_of_a_binding_that_gives_whole_messages_comes_as_chunks(self, guard):
        guarded = GuardedChatModel(
            model=RecordingModel(received=[], disable_streaming=True).bind(stop=["."]), guard=guard
        )
        (chunk,) = guarded._stream(ask(painted("red")))
        assert (type(chunk.message), chunk.text) == (AIMessageChunk, "one two three")
        assert isinstance(guarded._generate(ask(painted("red"))).generations[0].message, AIMessage)
        assert b64(painted("red")) not in repr(guarded.model.bound.received)
