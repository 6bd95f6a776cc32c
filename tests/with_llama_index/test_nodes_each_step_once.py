"""A node's image takes each step once: counted around the real functions, so that a second decoding of it shows.

A first version decoded the masked image of a document twice, once of it for LlamaIndex's own check whether bytes are
base64, and took the masked image of a query through base64 and back.
"""

from __future__ import annotations

import base64
from collections import Counter

import pytest
from llama_images import data_url, png, saved
from llama_index.core.schema import Document, ImageNode, MediaResource, NodeWithScore, QueryBundle, TextNode
from llama_nodes import b64

from guardalign_guardrails.guarding import assess
from guardalign_guardrails.guarding import guard as guard_module
from guardalign_guardrails.testing.colours import painted
from llama_index_guardalign import ImageGuardPostprocessor, ImageGuardTransform, check_query_image
from llama_index_guardalign.nodes import filter as filter_module

_LARGE = 100


@pytest.fixture
def counted(monkeypatch):
    counts: Counter[str] = Counter()

    def count(name, module, attribute, *, only=lambda *_: True):
        plain = getattr(module, attribute)

        def call(*args, **kwargs):
            counts.update([name] if only(*args) else [])
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, attribute, call)

    # Not the few characters by which base64 in a text is known.
    count("from base64", base64, "b64decode", only=lambda data, *_: len(data) > _LARGE)
    count("to base64", base64, "b64encode", only=lambda data, *_: len(data) > _LARGE)
    count("decode", guard_module, "decode")
    count("mask", assess, "mask_regions")
    count("search", filter_module, "find_images")
    return counts


def retrieved(guard, node):
    return ImageGuardPostprocessor(guard=guard).postprocess_nodes([NodeWithScore(node=node)])


def stored(guard, node):
    return ImageGuardTransform(guard=guard)([node])


CLEAN = {"search": 1, "from base64": 1, "decode": 1}
MASKED = {**CLEAN, "mask": 1, "to base64": 1}


@pytest.mark.parametrize("check", [retrieved, stored])
@pytest.mark.parametrize(("colours", "expected"), [((), CLEAN), (("red",), MASKED)], ids=["clean", "masked"])
@pytest.mark.parametrize(
    "make",
    [
        lambda image: ImageNode(image=b64(image), text="words"),
        lambda image: Document(image_resource=MediaResource(data=png(image)), text="words"),
        lambda image: TextNode(text=f"words ![]({data_url(image)})"),
        lambda image: TextNode(text="words", metadata={"thumbnail": data_url(image)}),
    ],
    ids=["an image node", "a document", "a text", "metadata"],
)
def test_an_image_of_a_node_is_found_and_decoded_once_and_masked_and_encoded_once_at_most(
    guard, counted, check, colours, expected, make
):
    node = make(painted(*colours))
    counted.clear()
    assert len(check(guard, node)) == 1
    assert counted == expected


def test_the_masked_image_of_a_query_never_becomes_base64(guard, counted, tmp_path):
    query = QueryBundle("", image_path=str(saved(painted("red"), tmp_path)))
    assert check_query_image(query, guard, masked_dir=tmp_path / "masked").image_path != query.image_path
    assert counted == {"decode": 1, "mask": 1}
