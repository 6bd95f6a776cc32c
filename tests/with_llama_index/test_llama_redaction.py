"""Tracers of LlamaIndex see a text in place of images, wherever LlamaIndex hands them about."""

from __future__ import annotations

import pytest
from llama_images import KINDS, ask, data_url, png, said
from llama_index.core.agent.workflow import AgentInput, FunctionAgent
from llama_index.core.agent.workflow.workflow_events import AgentWorkflowStartEvent
from llama_index.core.base.llms.types import ChatResponse, ImageBlock
from llama_index.core.base.response.schema import Response
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMPredictStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, ToolOutput
from llama_index.core.workflow import Event
from llama_models import RecordingLLM
from llama_nodes import NODES, b64
from llama_seen import Tracer

from guardalign_guardrails.content.redaction import OMITTED
from guardalign_guardrails.testing.chats import canary, leaks, leaks_of
from llama_index_guardalign import redact_traces
from llama_index_guardalign.redaction import redacted

SECRET = canary("red", number=9)
VALUES = {
    "a response": lambda: ChatResponse(message=ask(SECRET), raw={"image": png(SECRET)}),
    "an event with messages": lambda: LLMChatStartEvent(messages=[ask(SECRET)], additional_kwargs={}, model_dict={}),
    "an event with a template": lambda: LLMPredictStartEvent(
        template=ChatPromptTemplate(message_templates=[ask(SECRET)]), template_args={"image": png(SECRET)}
    ),
    "an event with nodes": lambda: RetrievalEndEvent(
        str_or_query_bundle="x", nodes=[NodeWithScore(node=ImageNode(image=b64(SECRET)))]
    ),
    "an event of an agent": lambda: AgentInput(input=[ask(SECRET)], current_agent_name="a"),
    "an event without fields": lambda: AgentWorkflowStartEvent(user_msg=ask(SECRET), more=[{"deep": data_url(SECRET)}]),
    "a tool's output": lambda: ToolOutput(
        tool_name="t", blocks=[ImageBlock(image=png(SECRET))], raw_input={}, raw_output={"image": SECRET}
    ),
    "an answer with sources": lambda: Response("words", [NodeWithScore(node=ImageNode(image=b64(SECRET)))]),
    "anything in anything": lambda: ({"a": [(png(SECRET), {"b": data_url(SECRET)})]}, SECRET),
}


def shown(value) -> str:
    """A value as text. Some events show what they hold to those only who ask for it as a mapping."""
    return repr((value, value.to_dict() if isinstance(value, Event) else None))


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_no_value_shows_an_image_and_none_is_changed(make):
    value = make()
    before = shown(value)
    told = redacted(value)
    assert type(told) is type(value)
    assert leaks(shown(told), SECRET) == []
    assert "PIL" not in shown(told)
    assert OMITTED in shown(told)
    assert shown(value) == before


@pytest.mark.parametrize("kind", [*KINDS.values(), *NODES.values()], ids=[*KINDS, *NODES])
def test_no_block_or_node_shows_one(kind, tmp_path):
    told = redacted([kind(SECRET, tmp_path)])
    assert leaks(repr(told), SECRET) == []
    assert str(tmp_path) not in repr(told)


def test_what_holds_no_image_is_the_very_same_object():
    for value in ([said("words")], {"a": [TextNode(text="x")]}, RecordingLLM(), 3, "data: no", b"%PDF"):
        assert redacted(value) is value


class TestHandlers:
    async def test_an_agent_with_images_is_traced_without_them(self):
        def photo() -> ImageBlock:
            """Take a photo."""
            return ImageBlock(image=png(SECRET))

        async def run() -> None:
            agent = FunctionAgent(tools=[FunctionTool.from_defaults(photo)], llm=RecordingLLM(call="photo"))
            await agent.run(user_msg=ask(canary("red", number=8)))

        with Tracer() as tracer:
            await run()
        assert leaks_of(tracer.said, SECRET, canary("red", number=8)) != []
        with Tracer() as tracer:
            redact_traces()
            await run()
        assert leaks_of(tracer.said, SECRET, canary("red", number=8)) == []
        assert len(tracer.of(LLMChatStartEvent)) == 2
        assert any(name.startswith("FunctionAgent") for name in tracer.spans)

    def test_handlers_are_wrapped_once_and_null_handlers_not_at_all(self):
        root = get_dispatcher()
        with Tracer():
            redact_traces(root)
            redact_traces(root)
            kinds = [handler.class_name() for handler in (*root.event_handlers, *root.span_handlers)]
        assert kinds.count("RedactingEventHandler") == kinds.count("RedactingSpanHandler") == 1

    async def test_failures_and_propagation_go_to_the_other_handler(self):
        class Failing(RecordingLLM):
            """Never answers."""

            def _said(self, messages, options):
                raise RuntimeError("no answer")

        with Tracer() as tracer:
            redact_traces()
            with pytest.raises(RuntimeError):
                Failing().chat([ask(SECRET)])
            assert get_dispatcher().capture_propagation_context() == {}
            get_dispatcher().restore_propagation_context({})
        assert "no answer" in tracer.said
        assert leaks(tracer.said, SECRET) == []
