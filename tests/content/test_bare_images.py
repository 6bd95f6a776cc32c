"""Bodies of servers that take images under keys of their own: what begins like media is media wherever it stands."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from guardalign_guardrails.content.bodies import screen_body
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.walk import find, find_loose
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

HTTP = "https://images.example/a.png"


def masked() -> bytes:
    """What is left of a red square."""
    image = painted()
    image.paste("black", (0, 0, CELL, CELL))
    return with_mark(encode_png(image))


def png(colour: str) -> bytes:
    return encode_png(painted(colour))


FORMS: dict[str, tuple[Callable[[bytes], str], Callable[[bytes], str]]] = {
    "base64": (to_base64, to_base64),
    "base64, wrapped": (lambda data: "\n".join(to_base64(data)[at : at + 76] for at in range(0, 4000, 76)), to_base64),
    "base64 without padding": (lambda data: to_base64(data).rstrip("="), to_base64),
    "hex": (bytes.hex, bytes.hex),
    "data URL": (lambda data: to_data_url(data, "image/png"), lambda data: to_data_url(data, "image/png")),
}

KEYS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "llama.cpp's prompt": lambda image: {"prompt": {"prompt_string": "Look. <__media__>", "multimodal_data": [image]}},
    "several of them": lambda image: {"prompt": ["Look.", {"prompt_string": "Look.", "multimodal_data": [image]}]},
    "llama.cpp's image_data": lambda image: {"prompt": "Look.", "image_data": [{"data": image, "id": 1}]},
    "SGLang's image_data": lambda image: {"text": "Look.", "image_data": image},
    "input_image": lambda image: {"input_image": image},
    "init_image": lambda image: {"init_image": image},
    "init_images": lambda image: {"init_images": [[image]]},
    "reference_images": lambda image: {"reference_images": [image]},
    "Images": lambda image: {"Images": [image]},
    "controlnet": lambda image: {"alwayson_scripts": {"controlnet": {"args": [{"module": "canny", "picked": image}]}}},
    "a key that says nothing": lambda image: {"x": {"y": [{"z": image}]}},
    "beside a prompt's variables": lambda image: {"prompt": {"id": "p", "variables": {"a": "b"}, "more": [image]}},
    "embeddings": lambda image: {"input": image},
    "embeddings, a list": lambda image: {"input": ["Look.", image]},
    "embeddings, mappings": lambda image: {"input": [{"text": image}]},
    "embeddings, blocks": lambda image: {"input": [{"type": "text", "text": image}]},
    "embeddings, one block": lambda image: {"input": {"type": "text", "text": image}},
    "embeddings, messages": lambda image: {"inputs": [{"content": [{"type": "text", "text": image}]}]},
}
"""Bodies with an image under keys of servers' own."""

WAYS = {"in the body": lambda body: body, "in extra_body": lambda body: {"extra_body": body}}


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.mark.parametrize("way", ["in the body", pytest.param("in extra_body", marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("api", ["chat", "responses", "other"])
class TestAnImage:
    def test_is_masked_in_its_own_form_and_nothing_else_changes(self, guard, way, key, form, api):
        if api == "responses" and "input" in KEYS[key](""):
            pytest.skip("it is this API's chat")
        write, written = FORMS[form]
        before = WAYS[way](KEYS[key](write(png("red"))))
        kept = copy.deepcopy(before)
        result = screen_body(guard, before, api)
        after = {name: result.body[name] for name in before}
        assert after == WAYS[way](KEYS[key](written(masked())))
        assert before == kept
        assert [verdict.action for verdict in result.verdicts] == ["mask"]


@pytest.mark.parametrize("key", KEYS)
class TestAnythingElse:
    def test_a_harmless_image_stays(self, guard, key):
        before = KEYS[key](to_base64(png("magenta")))
        result = screen_body(guard, before, "other")
        assert result.body is before
        assert [verdict.action for verdict in result.verdicts] == ["flag"]

    def test_one_that_is_blocked_is_an_error(self, guard, key):
        result = screen_body(guard, KEYS[key](to_base64(png("blue"))), "other")
        assert result.decision.handled_by == "error"
        assert to_base64(png("blue")) not in json.dumps(result.body)

    @pytest.mark.parametrize(
        "media",
        [
            to_base64(b"%PDF-1.7\n".ljust(64)),
            to_base64(b'<svg xmlns="http://www.w3.org/2000/svg" width="9"><g/></svg>'),
            to_base64(b"\0\0\0\x20ftypisom".ljust(64, b"\0")),
            f"{to_base64(png('white'))[:90]}*{to_base64(png('white'))[90:]}",
            f"{to_data_url(png('white'), 'image/png')}#x",
        ],
        ids=["PDF", "SVG", "video", "base64 with a star", "data URL with a fragment"],
    )
    def test_media_that_cannot_be_opened_are_an_error(self, guard, key, media):
        result = screen_body(guard, KEYS[key](media), "other")
        assert result.decision.handled_by == "error"
        assert [verdict.finding for verdict in result.verdicts] == ["unchecked"]

    def test_words_stay(self, guard, key):
        if key == "Images":
            pytest.skip("nothing but images may stand there")
        before = KEYS[key]("data and what iVBORw0KGgo means, in words that make a text of more than 64 characters")
        assert screen_body(guard, before, "other").body is before


@pytest.mark.parametrize(
    "body",
    [
        {"image_data": [{"data": HTTP, "id": 1}]},
        {"input_image": HTTP},
        {"init_image": f" {HTTP}?size=9 "},
        {"reference_images": [{"referenceImage": {"gcsUri": "gs://bucket/a"}}]},
        {"Images": [HTTP]},
        {"Image": "file-1"},
        {"extra": {"imageUrls": [[HTTP]]}},
        {"control_image": {"src": "//images.example/a"}},
        {"prompt": {"prompt_string": "Look.", "multimodal_data": [HTTP]}},
        {"first_frame": "s3://bucket/a"},
        {"video": HTTP},
        {"photo": "cat.png"},
        {"mask_image": "A" * 400},
        {"extra_body": {"image_prompt": {"url": HTTP}}},
        {"messages": [{"role": "user", "content": "Look.", "image_data": HTTP}]},
    ],
)
@pytest.mark.parametrize("api", ["chat", "other"])
def test_what_leads_to_an_image_under_a_key_that_says_image_is_a_finding(guard, body, api):
    result = screen_body(guard, body, api)
    assert [verdict.finding for verdict in result.verdicts] == ["unchecked"]
    assert result.decision.violation is not None


@pytest.mark.parametrize(
    "body",
    [
        {"image_size": "1024x1024", "num_images": 2, "image_detail": "high", "image_config": {"aspect_ratio": "16:9"}},
        {"image_prompt": "a cat as on https://example.org/cats, but red"},
        {"negative_image_prompt": "words " * 60},
        {"image_digest": "sha256:" + "ab" * 32, "image_id": "3f" * 64},
        {"profile": {"social_media": "https://example.org/me", "unmasked": "https://example.org"}},
        {"callback_url": "https://example.org/done", "user": "https://example.org/me"},
        {"file": "cat.png", "name": "data:text"},
        {"metadata": {"image": HTTP, "thumbnail": to_base64(png("blue"))}},
        {"tools": [{"function": {"parameters": {"properties": {"image_url": {"default": HTTP}}}}}]},
        {"text": {"format": {"type": "json_schema", "schema": {"image": HTTP}}}},
        {"input": [[1, 2, 3]], "encoding_format": "base64"},
    ],
)
def test_settings_and_names_are_no_images(guard, body):
    for api in ("chat", "responses", "other"):
        if "input" not in body or api == "other":
            result = screen_body(guard, body, api)
            assert result.body is body
            assert result.verdicts == ()


def test_under_which_keys_a_value_stands_makes_no_difference_to_where_its_images_are():
    (found,) = find_loose([{"data": HTTP}], ("image_data",))
    assert found.path == (0, "data")
    assert find_loose([{"data": HTTP}], ("data",)) == []


def test_a_block_of_no_known_dialect_that_holds_an_image_in_base64_is_one():
    for block in ({"type": "novel", "payload": to_base64(png("blue"))}, {"b64": png("blue").hex()}):
        for content in (block, [block]):
            (found,) = find(content)
            assert found.reading.read(10**6) == "unsupported_block"
    assert find([{"type": "function_call_output", "call_id": "1", "output": to_base64(png("blue"))}]) == []
