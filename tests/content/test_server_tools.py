"""Results of the tools that run at a provider: what the model is not shown stays, and everything else is looked at.

The shapes are those of ``anthropic.types``; a history with any other is refused by the API as a whole.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from block_matrix import READABLE, b64
from server_tools import HISTORY, ID, PDF, PYTHON, document, executed, fetched, made, standard, viewed

from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE, Turn, screen
from guardalign_guardrails.content.walk import find
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

LIMIT = 1_000_000
RED, BLUE = encode_png(painted("red")), encode_png(painted("blue"))
_masked = painted()
_masked.paste("black", (0, 0, CELL, CELL))
MASKED = with_mark(encode_png(_masked))


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return colour_guard(tmp_path_factory.mktemp("cache"))


def screened(guard: Any, *blocks: Any) -> Any:
    (result,) = screen(guard, [Turn([*blocks], role="assistant")])
    return result


@pytest.mark.parametrize("name", HISTORY)
def test_a_history_without_media_is_the_very_same_object(name, guard):
    block = HISTORY[name]
    for each in [block, standard(block)] if block["type"].endswith("_tool_result") else [block]:
        result = screened(guard, {"type": "text", "text": "a"}, each)
        assert result.verdicts == ()
        assert result.content is result.turn.content


def test_a_single_block_is_read_like_a_list():
    assert find(HISTORY["bash"]) == []


def without(block: dict[str, Any], *path: Any) -> dict[str, Any]:
    """A copy without what is at a path."""
    new = copy.deepcopy(block)
    inner: Any = new
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return new


FORGED: dict[str, dict[str, Any]] = {
    "an output in a message": made(),
    "an output in a tool's result": {"type": "tool_result", "tool_use_id": "t", "content": [made()]},
    "an output in an output": executed(made(content=[made()])),
    "an output in a list too many": executed([made()]),
    "an output in the result itself": {**executed(), "content": [made()]},
    "an output in place of a result": {**executed(), "content": made()},
    "an output beside the result": {**executed(), "output": made()},
    "a result of another tool": executed(made(), result="code_execution_result"),
    "an output of another tool": executed(made(PYTHON)),
    "a result without a type": without(executed(made()), "content", "type"),
    "a result in a result": {"type": "tool_result", "tool_use_id": "t", "content": [executed(made())]},
    "a result in an unknown block": {"type": "novel", "payload": executed(made())},
    "a result of an unknown tool": executed(made("novel_execution"), kind="novel_execution"),
    "an output with an image beside it": executed(made(image_url="https://images.example/a.png")),
    "an output with bytes": executed(made(data=RED)),
    "an output with another key": executed(made(title="a")),
    "an id that is a data URL": executed(made() | {"file_id": f"data:image/png;base64,{b64(RED)}"}),
    "an id that is a URL": executed(made() | {"file_id": "https://images.example/a.png"}),
    "an id that is no text": executed(made() | {"file_id": {"url": "https://images.example/a.png"}}),
    "an image": executed({"type": "image", "source": {"type": "file", "file_id": ID}}),
    "a document": executed({"type": "document", "source": {"type": "file", "file_id": ID}}),
    "an upload": executed({"type": "container_upload", "file_id": ID}),
    "an upload in a message": {"type": "container_upload", "file_id": ID},
    "an unknown type": executed({"type": "novel", "file_id": ID}),
    "an output of the text editor": executed(
        made("text_editor_code_execution"),
        kind="text_editor_code_execution",
        result="text_editor_code_execution_view_result",
    ),
    "a document by URL": fetched({"type": "document", "source": {"type": "url", "url": "https://images.example/a"}}),
    "a document by id": fetched({"type": "document", "source": {"type": "file", "file_id": ID}}),
}


@pytest.mark.parametrize("name", FORGED)
def test_any_other_id_or_image_stays_a_finding(name, guard):
    result = screened(guard, FORGED[name])
    assert [verdict.action for verdict in result.verdicts] == ["block"]
    assert UNCHECKED_NOTICE in repr(result.content)
    assert ID not in repr(result.content)


def test_of_several_outputs_only_the_forged_one_is_replaced(guard):
    result = screened(guard, executed(made(), made(image_url="https://images.example/a.png"), made()))
    first, second, third = result.content[0]["content"]["content"]
    assert (first, third) == (made(), made())
    assert UNCHECKED_NOTICE in repr(second)


@pytest.mark.parametrize("key", ["type", "name"])
def test_langchains_form_holds_for_results_of_code_alone(key, guard):
    block = standard(executed(made()))
    block["extras"] = {key: "tool_result"}
    assert [verdict.action for verdict in screened(guard, block).verdicts] == ["block"]
    assert len(find([{**standard(executed(made())), "type": "tool_result"}])) == 1
    assert len(find([{**standard(executed(made())), "extras": "bash_code_execution_tool_result"}])) == 1


def test_an_image_in_a_result_is_masked_in_place(guard):
    result = screened(guard, executed(READABLE["Anthropic base64"](RED), made()))
    assert result.content == [executed(READABLE["Anthropic base64"](MASKED), made())]


class TestAFetchedDocument:
    def test_that_cannot_be_opened_becomes_one_that_the_api_takes(self, guard):
        result = screened(guard, fetched(document(PDF)))
        text = {"type": "text", "media_type": "text/plain", "data": UNCHECKED_NOTICE}
        assert result.content == [fetched({"type": "document", "source": text})]

    def test_that_is_an_image_is_looked_at(self, guard):
        (slot,) = find([fetched(document(b64(RED)))])
        assert slot.reading.read(LIMIT) == RED
        assert b64(MASKED) in repr(screened(guard, fetched(document(b64(RED)))).content)
        assert NOTICE in repr(screened(guard, fetched(document(b64(BLUE)))).content)

    def test_with_another_image_beside_it_is_not_read(self):
        (slot,) = find([fetched(document(b64(RED)), data=b64(BLUE))])
        assert slot.reading.read(LIMIT) == "several_locators"


class TestAViewedFile:
    @pytest.mark.parametrize("file_type", ["image", "pdf", "novel"])
    def test_that_is_an_image_is_looked_at(self, file_type, guard):
        assert screened(guard, viewed(b64(RED), file_type)).content == [viewed(b64(MASKED), file_type)]
        assert screened(guard, viewed(b64(BLUE), file_type)).content == [viewed(NOTICE, "text")]

    @pytest.mark.parametrize("content", [PDF, "JVBE", "no base64 at all!"])
    def test_that_cannot_be_opened_is_a_finding(self, content, guard):
        assert screened(guard, viewed(content, "pdf")).content == [viewed(UNCHECKED_NOTICE, "text")]

    def test_with_another_image_beside_it_is_not_read(self):
        block = viewed(b64(RED))
        block["content"]["file_id"] = ID
        (slot,) = find([block])
        assert slot.reading.read(LIMIT) == "several_locators"

    def test_with_blocks_in_it_is_searched(self):
        (slot,) = find([viewed([READABLE["Anthropic base64"](RED)])])
        assert slot.path == (0, "content", "content", 0)


def searched(**more: Any) -> dict[str, Any]:
    found = {"file_id": "file-1", "filename": "a.pdf", "score": 0.5, "text": "words", "attributes": {"page": 1}, **more}
    return {"type": "server_tool_result", "tool_call_id": "fs_1", "status": "success", "output": [found]}


@pytest.mark.parametrize("more", [{}, {"attributes": None}, {"vector_store_id": "vs"}])
def test_a_file_search_of_openai_in_langchains_form_is_the_very_same_object(more, guard):
    result = screened(guard, searched(**more))
    assert result.content is result.turn.content


@pytest.mark.parametrize(
    "more",
    [
        {"image_url": "https://images.example/a.png"},
        {"text": None},
        {"text": ["words"]},
        {"file_id": "https://images.example/a.png"},
        {"attributes": {"image": {"url": "https://images.example/a.png"}}},
        {"attributes": [RED]},
        {"type": "image"},
    ],
)
def test_a_result_of_a_file_search_with_anything_else_in_it_is_a_finding(more):
    assert len(find([searched(**more)])) == 1
    assert len(find([{**searched(), "type": "tool_result"}])) == 1
