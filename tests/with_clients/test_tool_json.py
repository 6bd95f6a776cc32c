"""JSON of tools and results of a provider's own tools on the wire: what holds no media arrives as without the guard."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from content.block_matrix import EVERYDAY, READABLE, b64, url
from content.server_tools import HISTORY, PDF, document, executed, fetched, made, viewed
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE, Turn, screen
from with_clients.matrix_images import BLOCK
from with_clients.wires import Wire

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

CALL = {"name": "look", "args": {"where": "up"}, "id": "call00001"}


def answered(content: list[Any]) -> list[BaseMessage]:
    """A chat with a tool's result."""
    result = ToolMessage(content, tool_call_id="call00001", name="look")
    return [HumanMessage("Look up."), AIMessage("", tool_calls=[CALL]), result]


def both(wire: Wire, chat: list[BaseMessage]) -> tuple[Any, Any]:
    """What the bare and the guarded client send."""
    bodies = [wire.send(model, chat).body for model in (wire.bare, wire.guarded)]
    bare, guarded = [None if body is None else json.loads(body) for body in bodies]
    assert bare is not None
    return bare, guarded


@pytest.mark.parametrize("wire", ["anthropic"], indirect=True)
class TestClaude:
    @pytest.mark.parametrize("name", [name for name in HISTORY if name != "a browser's state"])
    def test_is_sent_its_own_history_as_without_the_guard(self, wire, name):
        chat = [
            HumanMessage("Plot it."),
            AIMessage([{"type": "text", "text": "Here."}, HISTORY[name]]),
            HumanMessage("?"),
        ]
        bare, guarded = both(wire, chat)
        assert HISTORY[name]["type"] in json.dumps(bare)
        assert guarded == bare

    def test_is_sent_nothing_that_its_own_types_refuse(self, wire, colours):
        types = pytest.importorskip("anthropic.types.beta")
        from pydantic import TypeAdapter

        accepts = TypeAdapter(types.BetaContentBlockParam).validate_python
        blocked = [fetched(document(PDF)), viewed(b64(BLOCK)), viewed(PDF, "pdf"), fetched(document(b64(BLOCK)))]
        for block in [*HISTORY.values(), *blocked, executed(made())]:
            (result,) = screen(colours, [Turn([block], role="assistant")])
            accepts(result.content[0])
            assert (UNCHECKED_NOTICE in repr(result.content) or NOTICE in repr(result.content)) == (block in blocked)


@pytest.mark.parametrize("wire", ["bedrock"], indirect=True)
class TestBedrock:
    @pytest.mark.parametrize("data", EVERYDAY, ids=lambda data: "-".join(data))
    def test_is_sent_json_as_without_the_guard(self, wire, data):
        bare, guarded = both(wire, answered([{"type": "json", "json": {"rows": [data]}}]))
        assert "rows" in json.dumps(bare)
        assert guarded == bare

    @pytest.mark.parametrize("form", [url, b64, bytes.hex])
    def test_is_sent_a_notice_in_place_of_an_image_alone(self, wire, form):
        data = {"image": {"source": {"data": form(BLOCK)}, "name": "sky"}, "rows": [1, 2]}
        bare, guarded = both(wire, answered([{"type": "json", "json": data}]))
        expected = json.dumps(bare).replace(form(BLOCK), NOTICE)
        assert guarded == json.loads(expected)

    def test_is_sent_no_image_that_stands_beside_json(self, wire):
        bare, guarded = both(wire, answered([{"json": {"image": "cat.png"}}, READABLE["Bedrock bytes"](BLOCK)]))
        assert b64(BLOCK) in json.dumps(bare)
        assert b64(BLOCK) not in json.dumps(guarded)
        assert "cat.png" in json.dumps(guarded)


@pytest.mark.parametrize("wire", ["google-genai"], indirect=True)
@pytest.mark.parametrize("row", [{"image": "cat.png", "n": 3}, {"images": ["a.png"]}, {"type": "file", "name": "a.py"}])
def test_gemini_is_sent_the_rows_of_a_tool_as_without_the_guard(wire, row):
    bare, guarded = both(wire, answered([{"type": "text", "text": "Rows:"}, row]))
    assert json.dumps(bare).count("functionResponse") == 1
    assert guarded == bare
