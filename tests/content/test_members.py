"""In JSON, what holds media is found, and nothing else: that string is replaced, and everything around it stays."""

from __future__ import annotations

import base64
import copy
import string
from decimal import Decimal
from typing import Any

import pytest
from block_matrix import EVERYDAY, JSON_PLACES, READABLE, UNREADABLE, b64, pil, url
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardalign_guardrails.content.redaction import OMITTED, without_images
from guardalign_guardrails.content.rewrite import block_at
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE, Turn, screen
from guardalign_guardrails.content.walk import find, find_data, find_loose
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

LIMIT = 1_000_000
RED, BLUE, WHITE = (encode_png(painted(*colours)) for colours in (["red"], ["blue"], []))
_masked = painted()
_masked.paste("black", (0, 0, CELL, CELL))
MASKED = with_mark(encode_png(_masked))

FORMS = {
    "data URL": url,
    "data URL in capitals": lambda data: f"DATA:IMAGE/PNG;BASE64,{b64(data)}",
    "base64": b64,
    "base64 without padding": lambda data: b64(data).rstrip("="),
    "base64 for URLs": lambda data: base64.urlsafe_b64encode(data).decode(),
    "base64 in lines": lambda data: "\n".join(b64(data)[i : i + 76] for i in range(0, len(b64(data)), 76)),
    "hex": bytes.hex,
    "bytes": bytes,
    "a bytearray": bytearray,
    "a PIL image": pil,
}
WRITTEN = {**FORMS, "data URL in capitals": url, "base64 without padding": b64, "base64 for URLs": b64}
WRITTEN |= {"base64 in lines": b64, "a bytearray": bytes}
"""How another image is written in a form's place."""

BLOCKS = [
    {"type": "image_url", "image_url": {"url": "https://images.example/a.png"}},
    {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
]
"""Those of the everyday data that are content blocks where content blocks may be."""


def around(value: Any) -> dict[str, Any]:
    """Everyday JSON with a value deep in it."""
    shot = {"format": "png", "source": {"bytes": value, "size": 7}}
    return {"image": shot, "rows": [{"name": "a.png", "images": ["b.png"]}], "file": "a.py", "none": None}


def same(one: Any, two: Any) -> bool:
    return repr(one) == repr(two) if not hasattr(one, "tobytes") else one.tobytes() == two.tobytes()


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return colour_guard(tmp_path_factory.mktemp("cache"))


def screened(guard: Any, block: Any, **turn: Any) -> Any:
    (result,) = screen(guard, [Turn([block], **turn)])
    return result


@pytest.mark.parametrize("place", JSON_PLACES)
class TestJsonInContent:
    @pytest.mark.parametrize("data", EVERYDAY, ids=lambda data: "-".join(data))
    def test_that_holds_no_media_is_the_very_same_object(self, place, data, guard):
        for each in (data, {"results": [data, {"deep": (data,)}]}):
            result = screened(guard, JSON_PLACES[place](each))
            assert result.verdicts == ()
            assert result.content is result.turn.content

    @pytest.mark.parametrize("form", FORMS)
    def test_has_a_masked_image_in_the_form_of_the_old_one(self, place, form, guard):
        block = JSON_PLACES[place](around(FORMS[form](RED)))
        before = copy.deepcopy(block)
        result = screened(guard, block)
        assert [verdict.action for verdict in result.verdicts] == ["mask"]
        expected = around(WRITTEN[form](MASKED))
        (where,) = [block.path for block in result.turn.media]
        value = block_at(result.content, where)
        assert same(value, expected["image"]["source"]["bytes"])
        assert repr(result.content).replace(repr(value), "X") == repr([JSON_PLACES[place](around("X"))]).replace(
            "'X'", "X"
        )
        assert block == before

    @pytest.mark.parametrize("form", FORMS)
    def test_has_a_notice_in_place_of_a_blocked_image_and_keeps_everything_beside_it(self, place, form, guard):
        result = screened(guard, JSON_PLACES[place](around(FORMS[form](BLUE))))
        assert result.content == [JSON_PLACES[place](around(NOTICE))]

    def test_is_in_a_trace_without_its_image(self, place):
        assert without_images([JSON_PLACES[place](around(url(RED)))]) == [JSON_PLACES[place](around(OMITTED))]

    def test_that_cannot_be_read_is_a_finding(self, place, guard):
        for value in (
            f"data:image/png;base64,{b64(RED)[:99]}*!",
            "data:video/mp4;base64," + "A" * 80,
            b64(b"%PDF-1.7\n" * 9),
        ):
            result = screened(guard, JSON_PLACES[place](around(value)))
            assert result.content == [JSON_PLACES[place](around(UNCHECKED_NOTICE))]

    def test_whose_objects_nobody_knows_is_a_finding(self, place):
        (slot,) = find([JSON_PLACES[place](around(object()))])
        assert slot.path[-3:] == ("image", "source", "bytes")
        assert slot.reading.read(LIMIT) == "unsupported_block"

    def test_without_end_is_too_complex(self, place):
        endless: dict[str, Any] = {}
        endless["again"] = [endless, endless]
        (slot,) = find([JSON_PLACES[place](endless)])
        assert (slot.path, slot.reading.read(LIMIT)) == ((0,), "too_complex")


@pytest.mark.parametrize(
    "block",
    [
        {"type": "novel", "json": {"image_url": {"url": "https://images.example/a.png"}}},
        {"type": "novel", "response": {"image_url": "https://images.example/a.png"}},
        {"type": "novel", "input": {"image_url": "https://images.example/a.png"}},
        {"type": "novel", "output": {"image_url": "https://images.example/a.png"}},
        {"response": {"image_url": "https://images.example/a.png"}},
        {"toolResult": {"content": [{"image": {"source": {"s3Location": {"uri": "s3://a"}}}}]}},
        {"functionResponse": {"response": {}, "parts": [{"fileData": {"fileUri": "gs://bucket/a"}}]}},
        {"type": "server_tool_result", "output": {"type": "image", "file_id": "file-1"}},
        {"type": "server_tool_result", "output": [{"image_url": "https://images.example/a.png"}]},
        {"json": {}, "image_url": "https://images.example/a.png"},
        {"image": "https://images.example/a.png"},
        {"images": ["https://images.example/a.png"]},
        {"images": [{"url": "https://images.example/a.png"}]},
        {"image": "data:image/png;base64,AAAA"},
        {"media": "A" * 64},
        {"blob": b"\x89PNG"},
        {"type": "image", "mimeType": "image/png", "name": "a.png"},
        {"type": "file", "name": "a.py", "extras": {"file_uri": "gs://bucket/a"}},
        {"type": "file", "name": "a.py", "url": "https://images.example/a.png"},
        {"name": "a.png", "mimeType": "image/png", "uri": "https://images.example/a.png"},
        {"name": "a.png", "mimeType": "image/png", "uri": "shots/1"},
        {"name": "a.png", "mimeType": "image/png", "payload": "A" * 64},
        {"type": "hologram_image", "name": "a.png"},
        {"image": f"*{b64(BLUE)[:200]}"},
    ],
)
def test_what_is_no_json_is_read_as_content_blocks(block):
    assert len(find([block])) == 1
    assert len(find(block)) == 1


@pytest.mark.parametrize(
    "block",
    [
        {"image": "cat.png", "n": 3},
        {"images": ["a.png", "b.png", 3, None]},
        {"media": 7, "screenshot": False, "audio": None},
        {"image": Decimal(7), "price": Decimal("9.90")},
        {"json": {"image": Decimal(7), "price": [Decimal("9.90")]}},
        {"image": "A cat on a mat, seen from above, in the light of a late afternoon in April."},
        {"type": "file", "name": "a.png", "path": "img/a.png", "mimeType": "image/png", "size": 17},
        {"name": "a.png", "mimeType": "image/png", "size": 17},
        {"type": "mcp_tool_use", "id": "t", "name": "paint", "server_name": "s", "input": {"image_url": "x"}},
    ],
)
def test_a_row_of_a_tools_list_that_only_names_an_image_is_no_media(block):
    assert find([block]) == []
    assert find([{"type": "tool_result", "content": [block]}]) == []


@pytest.mark.parametrize("block", [{"image": "cat.png"}, {"type": "file", "name": "a"}, {"mimeType": "image/png"}])
def test_a_name_counts_where_nothing_is_known_of_what_a_server_makes_of_it(block):
    assert len(find_loose(block)) == 1


class TestData:
    """Data of a tool, such as its artifact."""

    @pytest.mark.parametrize("data", [*EVERYDAY, [object(), b"bytes", "words"], "words", None, 5])
    def test_that_holds_no_media_is_the_very_same_object(self, data, guard):
        (result,) = screen(guard, [Turn({"structured_content": data, "structuredContent": data}, is_data=True)])
        assert result.verdicts == ()
        assert result.content is result.turn.content
        if data not in BLOCKS:
            assert find_data({"log": [data]}) == []

    @pytest.mark.parametrize("block", BLOCKS)
    def test_has_a_finding_where_a_content_block_leads_elsewhere(self, block):
        (slot,) = find_data({"log": [block]})
        assert slot.path == ("log", 0)

    def test_keeps_content_blocks_whole(self, guard):
        for name, make in READABLE.items():
            (result,) = screen(guard, [Turn([make(RED)], is_data=True)])
            assert [verdict.action for verdict in result.verdicts] == ["mask"], name
            (again,) = [slot.reading.read(LIMIT) for slot in find_data(result.content)]
            pixels = pil(again) if isinstance(again, bytes) else again
            assert pixels.tobytes() == _masked.tobytes(), name

    def test_has_text_in_place_of_a_blocked_block(self, guard):
        for name in ("v1 base64", "Anthropic base64", "OpenAI image_url", "MCP image"):
            (result,) = screen(guard, [Turn([READABLE[name](BLUE)], is_data=True)])
            assert result.content[0]["text"] == NOTICE

    def test_that_resembles_a_block_keeps_what_is_beside_the_image(self, guard):
        (result,) = screen(guard, [Turn({"structured_content": around(url(BLUE))}, is_data=True)])
        assert result.content == {"structured_content": around(NOTICE)}
        listed = {"type": "image", "data": b64(BLUE), "title": "a cat"}
        (result,) = screen(guard, [Turn([listed], is_data=True)])
        assert result.content == [{**listed, "data": NOTICE}]

    def test_has_no_content_blocks_in_structured_content(self, guard):
        data = {"structured_content": READABLE["v1 base64"](BLUE)}
        (result,) = screen(guard, [Turn(data, is_data=True)])
        assert result.content == {"structured_content": {**READABLE["v1 base64"](BLUE), "base64": NOTICE}}

    @pytest.mark.parametrize("name", ["OpenAI video_url", "v1 video", "MCP resource_link without a media type"])
    def test_has_a_finding_where_a_content_block_is_no_image(self, name):
        for block in (UNREADABLE[name], {"type": "audio", "base64": "A" * 80, "mime_type": "audio/wav"}):
            (slot,) = find_data([block])
            assert (slot.path, slot.reading.read(LIMIT)) == ((0,), "unsupported_block")

    def test_without_end_is_too_complex(self):
        endless: list[Any] = []
        endless.append(endless)
        (slot,) = find_data(endless)
        assert (slot.path, slot.reading.read(LIMIT)) == ((), "too_complex")


class TestTheMediaTypeBesideAnImage:
    @pytest.mark.parametrize("key", ["mimeType", "mime_type", "media_type"])
    def test_becomes_the_new_ones(self, key, guard):
        data = {"data": b64(RED), key: "image/jpeg", "type": "photo"}
        result = screened(guard, {"json": {"shot": data}})
        assert result.content == [{"json": {"shot": {**data, "data": b64(MASKED), key: "image/png"}}}]

    @pytest.mark.parametrize(
        "data",
        [
            {"data": b64(RED), "mimeType": "application/x-mine"},
            {"data": b64(RED), "mimeType": 5},
            {"inner": {"data": b64(RED)}, "mimeType": "image/jpeg"},
        ],
    )
    def test_stays_if_it_is_of_something_else(self, data, guard):
        result = screened(guard, {"json": data})
        assert result.content[0]["json"]["mimeType"] == data["mimeType"]
        assert b64(MASKED) in repr(result.content)

    def test_stays_if_nothing_says_of_which_image_it_is(self, guard):
        data = {"one": b64(RED), "two": b64(WHITE), "mimeType": "image/jpeg"}
        assert screened(guard, {"json": data}).content == [{"json": {**data, "one": b64(MASKED)}}]

    def test_stays_beside_a_notice(self, guard):
        data = {"data": b64(BLUE), "mimeType": "image/jpeg"}
        assert screened(guard, {"json": data}).content == [{"json": {**data, "data": NOTICE}}]


EVERYDAY_KEYS = (
    *("image", "images", "files", "file", "name", "path", "source", "media", "document", "type", "url", "data"),
    *("mimeType", "image_url", "file_id", "format"),
)
KEYS = st.sampled_from(EVERYDAY_KEYS) | st.text(max_size=4)
WORDS = st.text(string.printable, max_size=90) | st.sampled_from(
    ["image", "image_url", "file", "cat.png", "https://images.example/a.png", "gs://a/b", "/etc/passwd", "image/png"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@st.composite
def json_with_one(draw: Any) -> Any:
    """JSON with a place in it for one value: a function from the value to the JSON."""
    steps = draw(st.lists(st.one_of(st.integers(0, 2), KEYS), max_size=4))
    beside = [draw(JSON) if isinstance(step, int) else draw(st.dictionaries(KEYS, JSON, max_size=3)) for step in steps]

    def make(value: Any) -> Any:
        for step, other in zip(steps, beside, strict=True):
            value = [other] * step + [value] if isinstance(step, int) else {**other, step: value}
        return value

    return make


@given(data=JSON, place=st.sampled_from([*JSON_PLACES.values()]))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_without_media_comes_back_as_the_same_object(guard, data, place):
    content = [place({"data": data})]
    (result,) = screen(guard, [Turn(content)])
    assert result.verdicts == ()
    assert result.content is content


@given(
    make=json_with_one(), place=st.sampled_from([*JSON_PLACES.values()]), form=st.sampled_from([url, b64, bytes.hex])
)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_of_any_json_with_one_image_exactly_its_string_is_replaced(guard, make, place, form):
    (result,) = screen(guard, [Turn([place({"data": make(form(BLUE))})])])
    assert result.content == [place({"data": make(NOTICE)})]
    assert [verdict.action for verdict in result.verdicts] == ["block"]
