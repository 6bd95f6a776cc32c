"""Sessions: a history stores each turn once, as the model that answered saw it, and goes on after a refusal."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from chat_images import MASKED, RecordingModel, ask, b64, blocks, image_of, text, v1
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.encoded_text import to_base64
from guardalign_guardrails.content.screen import NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import colour_guard, colour_policy, painted
from langchain_guardalign import GuardedChatModel, ImageGuard

REFUSAL = colour_policy().refusal
COLOURS = ["white", "magenta", "green", "red", "blue", "yellow"]
LATER = ["And two and two?", "And three and three?", "Thanks."]

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")


async def _gathered(chunks) -> list[Any]:
    return [chunk async for chunk in chunks]


def _batched(runnable, value, config):
    return runnable.batch([value], [config])


WAYS = {
    "invoke": lambda runnable, value, config: runnable.invoke(value, config),
    "stream": lambda runnable, value, config: list(runnable.stream(value, config)),
    "batch": _batched,
    "ainvoke": lambda runnable, value, config: asyncio.run(runnable.ainvoke(value, config)),
    "astream": lambda runnable, value, config: asyncio.run(_gathered(runnable.astream(value, config))),
    "abatch": lambda runnable, value, config: asyncio.run(runnable.abatch([value], [config])),
}


def guarded_by(cache_dir, model: RecordingModel, **settings: Any) -> GuardedChatModel:
    return GuardedChatModel(model=model, guard=colour_guard(cache_dir), **settings)


def stored(runnable, turns: list[Any], way: str, **keys: Any) -> list[BaseMessage]:
    """The history after some turns."""
    history = InMemoryChatMessageHistory()
    chat = RunnableWithMessageHistory(runnable, lambda _: history, **keys)
    for turn in turns:
        WAYS[way](chat, turn, {"configurable": {"session_id": "one"}})
    return history.messages


def told(messages: list[BaseMessage]) -> list[tuple[str, Any]]:
    """What of messages is the same from one run to the next, whatever way they were asked for."""
    return [
        (message.type.removesuffix("MessageChunk").lower().replace("ai", "assistant"), message.content)
        for message in messages
    ]


def as_it_goes_on(colour: str) -> list[Any]:
    """The content blocks of the first turn that a model may see."""
    if colour in ("blue", "yellow"):
        return [text("What is this?"), text(NOTICE)]
    if colour == "red":
        return [text("What is this?"), {**v1(MASKED), "base64": to_base64(with_mark(encode_png(MASKED)))}]
    return [text("What is this?"), v1(painted(*([] if colour == "white" else [colour])))]


class TestRunnableWithMessageHistory:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("colour", COLOURS)
    def test_stores_each_turn_once_as_without_a_guard_but_for_masks_and_notices(self, cache_dir, colour, way):
        turns = [ask(painted(*([] if colour == "white" else [colour]))), *([HumanMessage(words)] for words in LATER)]
        bare = told(stored(RecordingModel.make(), turns, way))
        model = RecordingModel.make()
        kept = told(stored(guarded_by(cache_dir, model), turns, way))
        expected = [("human", as_it_goes_on(colour)), *bare[1:]]
        if colour in ("blue", "yellow"):
            expected[1] = ("assistant", REFUSAL)
        assert kept == expected
        assert [words for kind, words in kept if kind == "human"][1:] == LATER
        # Three harmless turns were answered by the model, and the image that was blocked in the first never went out.
        assert len(model.received) == (3 if colour in ("blue", "yellow") else 4)
        if colour in ("red", "blue", "yellow"):
            assert b64(painted(colour)) not in repr(model.received)

    @pytest.mark.parametrize("way", WAYS)
    def test_stores_what_another_model_answered_with_the_notice_that_it_saw(self, cache_dir, way):
        other = RecordingModel.make("other")
        guarded = guarded_by(cache_dir, RecordingModel.make(), route_to=other)
        kept = told(stored(guarded, [ask(painted("yellow")), [HumanMessage("And now?")]], way))
        assert kept == [
            ("human", as_it_goes_on("yellow")),
            ("assistant", "other"),
            ("human", "And now?"),
            ("assistant", "one two three"),
        ]

    @pytest.mark.parametrize("way", WAYS)
    def test_stores_a_turn_once_where_the_prefix_is_put_into_the_users_message(self, cache_dir, way):
        guarded = guarded_by(cache_dir, RecordingModel.make(), placement="user")
        kept = told(stored(guarded, [ask(painted("green")), [HumanMessage("And now?")]], way))
        assert [kind for kind, _ in kept] == ["human", "assistant"] * 2
        assert kept[0][1] == as_it_goes_on("green")

    @pytest.mark.parametrize("way", WAYS)
    def test_stores_nothing_of_a_turn_that_is_an_error_and_goes_on(self, cache_dir, way):
        model = RecordingModel.make()
        guarded = guarded_by(cache_dir, model, on_violation="raise")
        history = InMemoryChatMessageHistory()
        chat = RunnableWithMessageHistory(guarded, lambda _: history)
        config = {"configurable": {"session_id": "one"}}
        with pytest.raises(UnsafeContentError):
            WAYS[way](chat, ask(painted("blue")), config)
        assert history.messages == []
        for words in LATER:
            WAYS[way](chat, [HumanMessage(words)], config)
        assert len(history.messages) == 6

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("colour", COLOURS)
    def test_stores_the_input_of_a_chain_as_it_came_and_the_model_never_sees_what_is_blocked(
        self, cache_dir, colour, way
    ):
        prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("past"), MessagesPlaceholder("question")])
        keys = {"input_messages_key": "question", "history_messages_key": "past"}
        asked = ask(painted(*([] if colour == "white" else [colour])))
        turns = [{"question": asked}, *({"question": [HumanMessage(words)]} for words in LATER)]
        bare = told(stored(prompt | RecordingModel.make(), turns, way, **keys))
        model = RecordingModel.make()
        kept = told(stored(prompt | guarded_by(cache_dir, model), turns, way, **keys))
        if colour in ("blue", "yellow"):
            bare[1] = ("assistant", REFUSAL)
        assert kept == bare
        if colour in ("red", "blue", "yellow"):
            assert b64(painted(colour)) not in repr(model.received)
        assert len(model.received) == (3 if colour in ("blue", "yellow") else 4)

    @pytest.mark.parametrize("way", WAYS)
    def test_stores_each_turn_of_a_route_once_with_the_images_that_went_on(self, cache_dir, way):
        route = ImageGuard(colour_guard(cache_dir)).route(RecordingModel.make(), RecordingModel.make("other"))
        turns = [ask(painted("red")), ask(painted("blue")), [HumanMessage("And now?")]]
        kept = told(stored(route, turns, way))
        assert kept == [
            ("human", as_it_goes_on("red")),
            ("assistant", "one two three"),
            ("human", as_it_goes_on("blue")),
            ("assistant", "other"),
            ("human", "And now?"),
            ("assistant", "one two three"),
        ]


class TestListeners:
    """`with_listeners`, by which a history works, and `with_alisteners`."""

    @staticmethod
    def heard_of(runnable, way: str, value: Any) -> tuple[list[Any], Any]:
        heard: list[Any] = []

        def listener(name):
            return lambda run: heard.append((name, run.name, run.inputs, run.outputs, run.error))

        def alistener(name):
            async def hear(run):
                listener(name)(run)

            return hear

        make, bind = (alistener, "with_alisteners") if way.startswith("a") else (listener, "with_listeners")
        names = ("on_start", "on_end", "on_error")
        bound = getattr(runnable, bind)(**{name: make(name) for name in names})
        try:
            return heard, WAYS[way](bound, value, {})
        except UnsafeContentError as error:
            return heard, error

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("colour", ["red", "blue"])
    def test_hear_of_the_guarded_models_run_with_the_callers_messages(self, cache_dir, way, colour):
        heard, _ = self.heard_of(guarded_by(cache_dir, RecordingModel.make()), way, ask(painted(colour)))
        assert [(kind, name) for kind, name, *_ in heard] == [
            (kind, "GuardedChatModel") for kind in ("on_start", "on_end")
        ]
        for _, _, inputs, _, error in heard:
            ((message,),) = inputs.values()
            assert (message.content, error) == (as_it_goes_on(colour), None)
        (answer,) = heard[1][3].values()
        assert answer.content == (REFUSAL if colour == "blue" else "one two three")

    @pytest.mark.parametrize("way", WAYS)
    def test_hear_of_an_error_without_the_image(self, cache_dir, way):
        guarded = guarded_by(cache_dir, RecordingModel.make(), on_violation="raise")
        heard, error = self.heard_of(guarded, way, ask(painted("blue")))
        assert isinstance(error, UnsafeContentError)
        assert [kind for kind, *_ in heard] == ["on_start", "on_error"]
        assert b64(painted("blue")) not in repr(heard)
        assert NOTICE in repr(heard)

    @pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
    @pytest.mark.parametrize("colour", ["red", "blue"])
    async def test_hear_of_typed_streams_too(self, cache_dir, colour):
        guarded, heard = guarded_by(cache_dir, RecordingModel.make()), []
        bound = guarded.with_listeners(on_end=lambda run: heard.append((run.name, run.inputs, run.outputs)))
        assert bound.stream_events(ask(painted(colour)), version="v3").output.text

        is_heard = asyncio.Event()

        async def hear(run):
            heard.append((run.name, run.inputs, run.outputs))
            is_heard.set()

        abound = guarded.with_alisteners(on_end=hear)
        assert await (await abound.astream_events(ask(painted(colour)), version="v3")).output
        # The run ends in the task that reads the model, after the last word is there to be read.
        await asyncio.wait_for(is_heard.wait(), 5)
        assert len(heard) == 2
        for name, inputs, outputs in heard:
            ((message,),), (answer,) = inputs.values(), outputs.values()
            assert (name, message.content) == ("GuardedChatModel", as_it_goes_on(colour))
            assert answer.text == (REFUSAL if colour == "blue" else "one two three")

    @pytest.mark.parametrize("way", ["stream", "astream"])
    def test_hear_of_an_error_where_a_reader_stops_early_as_of_a_chat_model(self, cache_dir, way):
        def read_one(model) -> list[str]:
            heard: list[str] = []

            async def hear(run):
                heard.append(run.error and "error")

            async def first():
                chunks = model.with_alisteners(on_end=hear, on_error=hear).astream(ask(painted()))
                await anext(chunks)
                await chunks.aclose()

            if way == "astream":
                asyncio.run(first())
            else:
                say = lambda run: heard.append(run.error and "error")  # noqa: E731
                chunks = model.with_listeners(on_end=say, on_error=say).stream(ask(painted()))
                next(chunks)
                chunks.close()
            return heard

        bare = read_one(RecordingModel.make())
        assert read_one(guarded_by(cache_dir, RecordingModel.make())) == bare == ["error"]


class TestGraphs:
    """A LangGraph graph with a checkpointer, and a guarded model in a node."""

    @staticmethod
    def graph(model) -> Any:
        async def areply(state):
            return {"messages": [await model.ainvoke(state["messages"])]}

        def reply(state):
            return {"messages": [model.invoke(state["messages"])]}

        from langchain_core.runnables import RunnableLambda

        builder = StateGraph(MessagesState)
        builder.add_node("reply", RunnableLambda(reply, areply))
        builder.add_edge(START, "reply")
        return builder.compile(checkpointer=InMemorySaver())

    @staticmethod
    def chat(graph, turns, call) -> list[BaseMessage]:
        config = {"configurable": {"thread_id": "one"}}
        for turn in turns:
            call(graph, "invoke", {"messages": turn}, config)
        return graph.get_state(config).values["messages"]

    @pytest.mark.parametrize("colour", COLOURS)
    def test_go_on_after_a_turn_and_keep_each_turn_once(self, cache_dir, call, colour):
        turns = [ask(painted(*([] if colour == "white" else [colour]))), *([HumanMessage(words)] for words in LATER)]
        bare = told(self.chat(self.graph(RecordingModel.make()), turns, call))
        model = RecordingModel.make()
        kept = told(self.chat(self.graph(guarded_by(cache_dir, model)), turns, call))
        # What the user sent is in the graph's own state, as it came: a middleware can clean that.
        if colour in ("blue", "yellow"):
            bare[1] = ("assistant", REFUSAL)
            assert text(NOTICE) in blocks(model.received[0])
        assert kept == bare
        assert len(model.received) == (3 if colour in ("blue", "yellow") else 4)
        if colour in ("red", "blue", "yellow"):
            assert b64(painted(colour)) not in repr(model.received)
        if colour == "red":
            assert all(
                image_of(block).tobytes() == MASKED.tobytes()
                for messages in model.received
                for block in blocks(messages)
                if "base64" in block
            )

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="LangGraph gives async nodes no context there")
    async def test_stream_each_token_once(self, cache_dir):
        graph = self.graph(guarded_by(cache_dir, RecordingModel.make()))
        config = {"configurable": {"thread_id": "one"}}
        given = {"messages": ask(painted("red"))}
        chunks = [chunk async for chunk, _ in graph.astream(given, config, stream_mode="messages")]
        assert "".join(chunk.content for chunk in chunks) == "one two three"
        given = {"messages": ask(painted("blue"))}
        chunks = [chunk for chunk, _ in graph.stream(given, config, stream_mode="messages")]
        assert "".join(chunk.content for chunk in chunks) == REFUSAL

    def test_a_chain_in_front_of_the_model_makes_no_difference(self, cache_dir, call):
        model = RecordingModel.make()
        graph = self.graph(RunnablePassthrough() | guarded_by(cache_dir, model))
        kept = self.chat(graph, [ask(painted("blue")), [HumanMessage("And now?")]], call)
        assert [type(message) for message in kept] == [HumanMessage, AIMessage] * 2
        assert b64(painted("blue")) not in repr(model.received)
