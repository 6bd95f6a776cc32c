"""Every row of the block matrix is found or reported, and written back with every other byte kept."""

from __future__ import annotations

import copy

import pytest
from block_matrix import ELSEWHERE, READABLE, UNREADABLE

from guardalign_guardrails.content.payload import Remote
from guardalign_guardrails.content.redaction import OMITTED, without_images
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.content.screen import UNCHECKED_NOTICE, Turn, screen
from guardalign_guardrails.content.walk import find
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import CELL, colour_guard, painted

LIMIT = 1_000_000
WORDS = {"type": "text", "text": "look"}
RED, GREEN, WHITE = (encode_png(painted(*colours)) for colours in (["red"], ["green"], []))
_masked = painted()
_masked.paste("black", (0, 0, CELL, CELL))
MASKED = with_mark(encode_png(_masked))


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


@pytest.mark.parametrize("name", READABLE)
class TestWhatCanBeOpened:
    def test_is_found_once_and_read_exactly(self, name):
        (slot,) = find([WORDS, READABLE[name](RED)])
        payload = slot.reading.read(LIMIT)
        assert payload == RED or encode_png(payload) == RED

    def test_is_written_back_with_every_other_byte_kept(self, name):
        content = [WORDS, READABLE[name](RED), WORDS]
        before = copy.deepcopy(content)
        (slot,) = find(content)
        written = with_blocks(content, {slot.path: slot.reading.write(GREEN, "image/png")})
        assert written == [WORDS, READABLE[name](GREEN), WORDS]
        assert list(map(list, written)) == list(map(list, before)), "keys are in another order"
        assert content == before

    def test_is_masked_by_a_guard(self, name, guard):
        (result,) = screen(guard, [Turn([WORDS, READABLE[name](RED)])])
        assert [verdict.action for verdict in result.verdicts] == ["mask"]
        assert result.content == [WORDS, READABLE[name](MASKED)]

    def test_is_left_alone_if_it_is_harmless(self, name, guard):
        content = [WORDS, READABLE[name](WHITE)]
        (result,) = screen(guard, [Turn(content)])
        assert [verdict.action for verdict in result.verdicts] == ["allow"]
        assert result.content is content

    def test_is_not_in_a_trace(self, name):
        said = repr(without_images([WORDS, READABLE[name](RED)]))
        assert OMITTED in said
        assert not any(hint in said for hint in ("base64,", "PIL", "\\x89PNG", "iVBOR"))


@pytest.mark.parametrize("name", ELSEWHERE)
class TestWhatIsElsewhere:
    def test_is_found_with_its_url_or_a_reason(self, name):
        block, expected, _ = ELSEWHERE[name]
        (slot,) = find([WORDS, block])
        payload = slot.reading.read(LIMIT)
        assert (payload.url if isinstance(payload, Remote) else payload) == expected

    def test_is_blocked_and_reported_by_a_guard(self, name, guard):
        block, expected, _ = ELSEWHERE[name]
        (result,) = screen(guard, [Turn([WORDS, block])])
        reason = expected if expected == "file_reference" else "remote_reference"
        assert [(v.action, v.uninspectable) for v in result.verdicts] == [("block", reason)]
        assert UNCHECKED_NOTICE in repr(result.content)
        assert "example" not in repr(result)

    def test_can_be_replaced_by_an_image_with_no_other_locator_left(self, name):
        block, _, make = ELSEWHERE[name]
        before = copy.deepcopy(block)
        (slot,) = find([block])
        assert slot.reading.write(RED, "image/png") == make(RED)
        assert block == before


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_no_dialect_reads_is_reported_and_blocked(name, guard):
    (result,) = screen(guard, [Turn([WORDS, UNREADABLE[name]])])
    assert [(v.action, v.uninspectable) for v in result.verdicts] == [("block", "unsupported_block")]
    assert UNCHECKED_NOTICE in repr(result.content)
