"""Uploaded files in a request's data: what takes a file's place is named as what it is, since LiteLLM goes by names."""

from __future__ import annotations

import io

import pytest

from content.reread_images import CHANGING_TYPE, SEE_THROUGH, TURNED
from guardalign_guardrails.content.bodies import screen_body
from guardalign_guardrails.testing.colours import colour_guard
from litellm_guardalign.calls import body_of, changes


def upload(data: bytes) -> io.BytesIO:
    file = io.BytesIO(data)
    file.name = "upload.webp"
    return file


@pytest.mark.parametrize("mime", CHANGING_TYPE)
def test_the_guards_own_reading_of_an_upload_is_a_file_with_its_ending(cache_dir, mime):
    guard, data = colour_guard(cache_dir), CHANGING_TYPE[mime]
    request = {"model": "gpt-image-1", "prompt": "x", "image": [upload(data), upload(data)]}
    body = body_of(request)
    changed = changes(request, body, screen_body(guard, body, "other").body)
    assert changed.keys() == {"image"}
    for file in changed["image"]:
        assert file.read() == guard.check(data).output != data
        assert file.name == f"image.{mime.removeprefix('image/')}"


def test_an_upload_that_goes_on_as_it_came_is_the_very_same_file(cache_dir):
    guard = colour_guard(cache_dir)
    whole = upload(guard.check(SEE_THROUGH).output)
    request = {"image": [whole, upload(TURNED)], "model": "gpt-image-1"}
    body = body_of(request)
    first, second = changes(request, body, screen_body(guard, body, "other").body)["image"]
    assert first is whole
    assert second.read() == guard.check(TURNED).output
