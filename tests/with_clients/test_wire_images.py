"""The reader of recorded bodies sees an image however it is written, and would miss nothing that the matrix forbids."""

from __future__ import annotations

import base64
import io
import json
import urllib.parse
import uuid

import pytest
from PIL import Image

from guardalign_guardrails.testing.colours import painted
from with_clients.matrix_images import encoded
from with_clients.wire_images import carries, images_in, said, without_images

WRITTEN = {
    "base64": lambda data: base64.b64encode(data).decode(),
    "base64url": lambda data: base64.urlsafe_b64encode(data).decode(),
    "base64 in lines": lambda data: base64.encodebytes(data).decode(),
    "a data URL": lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}",
    "a percent-encoded data URL": lambda data: f"data:image/png,{urllib.parse.quote(data)}",
    "percent-encoded base64": lambda data: urllib.parse.quote(base64.b64encode(data).decode(), safe=""),
    "hex": lambda data: data.hex(),
    "hex in capitals": lambda data: data.hex().upper(),
    "JSON in text": lambda data: json.dumps({"answer": [{"a": base64.b64encode(data).decode()}]}),
    "base64 after other letters": lambda data: "ab" + base64.b64encode(data).decode(),
    "base64 of other bytes before it": lambda data: base64.b64encode(b"x" * 65 + data).decode(),
    "base64 twice": lambda data: base64.b64encode(base64.b64encode(data)).decode(),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("way", WRITTEN)
def test_an_image_is_seen_however_it_is_written(way, kind):
    data = encoded(painted("red", "magenta"), kind)
    body = json.dumps({"a": ["hi", {"any key": f"before {WRITTEN[way](data)} after"}]}).encode()
    (image,) = images_in(body)
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()
    assert carries(body, data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_bytes_that_were_printed_are_seen(kind):
    data = encoded(painted("red", "magenta"), kind)
    body = json.dumps({"text": str({"data": data})}).encode()
    assert carries(body, data)
    assert len(images_in(body)) == 1


def test_bodies_that_differ_in_their_images_and_random_ids_only_are_alike():
    images = [encoded(painted(colour), "PNG") for colour in ("red", "green")]
    one, other = (
        json.dumps({"id": f"lc_{uuid.uuid4()}", "b": f"data:{base64.b64encode(data).decode()}", "c": str(data)})
        for data in images
    )
    assert (
        without_images(one.encode())
        == without_images(other.encode())
        == {
            "id": "lc_<id>",
            "b": "data:<image>",
            "c": "<image>",
        }
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_another_image_is_not_taken_for_it(kind):
    original, other = (encoded(painted(*colours), kind) for colours in (["blue", "magenta"], ["white"]))
    body = json.dumps({"image": base64.b64encode(other).decode(), "text": "look " * 99}).encode()
    assert not carries(body, original)
    assert len(images_in(body)) == 1


def test_a_body_without_images_has_none():
    body = json.dumps({"messages": [{"role": "user", "content": "look " * 99}]}).encode()
    assert images_in(body) == []
    assert said(body).splitlines() == ["messages", "role", "user", "content", "look " * 99]
