"""LlamaIndex's blocks become plain data and come back, with only that changed which was to be."""

from __future__ import annotations

import base64
import copy
import io
import os
from pathlib import Path

import pytest
from llama_images import KINDS, data_url, image_of, kinds_of, png, saved
from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_seen import same_pixels

from guardalign_guardrails.content.redaction import OMITTED
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE, Turn, screen
from guardalign_guardrails.content.walk import find
from guardalign_guardrails.images import decode
from guardalign_guardrails.testing.colours import painted
from llama_index_guardalign.chat.blocks import plain_of, restored, without_media

MAX = 50 * 1024 * 1024
RED, BLUE, WHITE = painted("red"), painted("blue"), painted()
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def screened(guard, blocks, *, is_pinned=True):
    before = plain_of(blocks, MAX)
    (result,) = screen(guard, [Turn(before)])
    return restored(blocks, before, result.content, is_pinned=is_pinned), result.verdicts


@EVERY_KIND
class TestAnImageInAnyBlock:
    def test_is_found_and_is_the_one_that_would_be_sent(self, kind, tmp_path):
        (slot,) = find(plain_of([TextBlock(text="x"), kind(RED, tmp_path)], MAX))
        assert same_pixels(decode(slot.reading.read(MAX)).flattened, RED)

    def test_is_masked_in_a_block_of_the_same_kind_that_leads_nowhere_else(self, guard, kind, tmp_path):
        block = kind(RED, tmp_path)
        (text, masked), (verdict,) = screened(guard, [TextBlock(text="x"), block])
        assert verdict.action == "mask"
        assert type(masked) is type(block)
        image = image_of(masked)
        assert (255, 0, 0) not in image.get_flattened_data()
        inner = masked.nested_blocks[0] if hasattr(masked, "nested_blocks") else masked
        assert inner.path is None
        assert inner.url is None or str(inner.url).startswith("data:")
        assert text.text == "x"

    def test_becomes_a_notice_if_it_is_blocked(self, guard, kind, tmp_path):
        (block,), _ = screened(guard, [kind(BLUE, tmp_path)])
        inner = block.nested_blocks[0] if hasattr(block, "nested_blocks") else block
        assert inner == TextBlock(text=NOTICE)

    def test_is_never_changed_in_place(self, guard, kind, tmp_path):
        block = kind(RED, tmp_path)
        before = copy.copy(vars(block))
        screened(guard, [block])
        assert vars(block) == before
        assert same_pixels(image_of(block), RED)

    def test_is_left_out_of_traces(self, kind, tmp_path):
        told = without_media(kind(RED, tmp_path), OMITTED)
        inner = told.nested_blocks[0] if hasattr(told, "nested_blocks") else told
        assert inner == TextBlock(text=OMITTED)


@pytest.mark.parametrize("kind", ["a document", "a document on disk"])
@pytest.mark.parametrize(
    ("title", "masked_title"),
    [("scan.jpeg", "scan.png"), ("scan.png", "scan.png"), ("Scan 3.5", "Scan 3.5"), (None, None)],
)
def test_the_ending_of_a_documents_title_goes_with_the_masked_image(guard, kind, tmp_path, title, masked_title):
    block = KINDS[kind](RED, tmp_path).model_copy(update={"title": title})
    (masked,), (verdict,) = screened(guard, [block])
    assert verdict.action == "mask"
    assert (masked.title, block.title) == (masked_title, title)


class TestAHarmlessImage:
    @pytest.mark.parametrize("kind", ["bytes", "base64", "a data URL", "a citable source", "a document"])
    def test_stays_in_the_very_same_block_if_it_is_all_in_there(self, guard, kind, tmp_path):
        block = KINDS[kind](WHITE, tmp_path)
        (after,), _ = screened(guard, [block])
        assert after is block

    @pytest.mark.parametrize("kind", ["a path", "a stream", "a document on disk"])
    def test_that_is_elsewhere_becomes_the_bytes_that_were_checked(self, guard, kind, tmp_path):
        block = KINDS[kind](WHITE, tmp_path)
        (after,), _ = screened(guard, [block])
        for file in tmp_path.iterdir():
            file.write_bytes(png(BLUE))
        assert after.path is None
        assert same_pixels(image_of(after), WHITE)

    def test_that_is_elsewhere_may_stay_there(self, guard, tmp_path):
        block = KINDS["a path"](WHITE, tmp_path)
        (after,), _ = screened(guard, [block], is_pinned=False)
        assert after is block

    def test_of_several_places_is_the_one_that_is_resolved_and_the_others_are_gone(self, guard, tmp_path):
        block = ImageBlock(image=png(WHITE), path=saved(BLUE, tmp_path), url="https://example.org/blue.png")
        (after,), (verdict,) = screened(guard, [block])
        assert verdict.action == "allow"
        assert (after.path, after.url) == (None, None)
        assert same_pixels(image_of(after), WHITE)

    def test_keeps_what_else_a_block_says(self, guard):
        (after,), _ = screened(guard, [ImageBlock(image=png(RED), detail="low", image_mimetype="image/jpeg")])
        assert (after.detail, after.image_mimetype) == ("low", "image/png")


UNSEEN = {
    "a URL": (ImageBlock(url="https://example.org/x.png"), "remote_reference"),
    "a template's placeholder": (ImageBlock(image=b"{image}"), "unsupported_format"),
    "a data URL given as bytes": (ImageBlock(image=data_url(WHITE)), "unsupported_format"),
    "no bytes": (ImageBlock(image=b""), "empty"),
    "nothing": (ImageBlock(), "no_locator"),
    "a broken data URL": (ImageBlock(url="data:image/png;base64,@@@"), "malformed"),
    "audio": (AudioBlock(audio=b"ID3"), "unsupported_block"),
    "video": (VideoBlock(video=b"mp4"), "unsupported_block"),
    "a PDF": (DocumentBlock(data=b"%PDF-1.4 x", document_mimetype="application/pdf"), "unsupported_format"),
    "an SVG": (DocumentBlock(data=b"<svg/>", document_mimetype="image/svg+xml"), "unsupported_format"),
    "a file that is not there": (DocumentBlock(path="/nowhere/page.png"), "file_reference"),
    "a file of another machine": (DocumentBlock(path="//host/share/page.png"), "file_reference"),
    "a document elsewhere": (DocumentBlock(url="https://example.org/x.pdf"), "remote_reference"),
}


class TestWhatNobodyCanLookAt:
    @pytest.mark.parametrize("name", UNSEEN)
    def test_is_a_finding_that_the_policy_decides_on(self, guard, name):
        block, reason = UNSEEN[name]
        (after,), (verdict,) = screened(guard, [block])
        assert (verdict.uninspectable, verdict.action) == (reason, "block")
        assert after == TextBlock(text=UNCHECKED_NOTICE)

    def test_passes_as_it_is_if_the_policy_lets_it(self, cache_dir):
        from guardalign_guardrails.testing.colours import colour_guard

        lenient = colour_guard(cache_dir, failure={"uninspectable": "allow"})
        for block, _ in UNSEEN.values():
            (after,), _ = screened(lenient, [block])
            assert after is block

    def test_a_file_that_is_no_image_is_one_of_them_and_a_pipe_does_not_hang(self, guard, tmp_path):
        (tmp_path / "notes.txt").write_text("secret words")
        os.mkfifo(tmp_path / "pipe")
        blocks = [ImageBlock(path=tmp_path / "notes.txt"), DocumentBlock(path=str(tmp_path / "pipe"))]
        after, verdicts = screened(guard, blocks)
        assert [verdict.action for verdict in verdicts] == ["block", "block"]
        assert "secret" not in repr((after, verdicts))

    def test_a_file_that_is_too_large_is_not_read(self, tmp_path):
        path = saved(WHITE, tmp_path)
        (plain,) = plain_of([ImageBlock(path=path)], path.stat().st_size - 1)
        assert find([plain])[0].reading.read(MAX) == "file_reference"


class TestWords:
    def test_words_in_any_block_stay_words_and_stay_the_same_blocks(self, guard):
        blocks = [
            TextBlock(text="one"),
            ThinkingBlock(content="two"),
            ToolCallBlock(tool_name="look", tool_kwargs={"image": "three.png"}),
            CachePoint(cache_control={"type": "ephemeral"}),
            CitableBlock(title="t", source="s", content="four"),
            DocumentBlock(data=b"five!", document_mimetype="text/plain"),
            DocumentBlock(data=b'{"six": 6}', title="data.json"),
        ]
        after, verdicts = screened(guard, blocks)
        assert verdicts == ()
        assert all(new is old for new, old in zip(after, blocks, strict=True))
        words = [plain.get("text") or plain.get("content") for plain in plain_of(blocks, MAX)]
        assert words == ["one", None, None, None, [{"type": "text", "text": "four"}], "five!", '{"six": 6}']

    def test_a_text_file_is_pinned_too(self, guard, tmp_path):
        path = Path(tmp_path / "notes.txt")
        path.write_text("as it was")
        (after,), _ = screened(guard, [DocumentBlock(path=path)])
        path.write_text("as it is now")
        assert after.resolve_document().read() == b"as it was"
        assert after.document_mimetype == "text/plain"

    def test_an_image_that_says_it_is_text_is_an_image(self, guard):
        (after,), (verdict,) = screened(guard, [DocumentBlock(data=png(BLUE), document_mimetype="text/plain")])
        assert verdict.action == "block"
        assert kinds_of([after]) == ["text"]


DRAWN_AS_TEXT = {
    "a PPM": b"P3 2 2 255 " + b"0 0 255 " * 4,
    "an SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
    "an XBM": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0x00};",
    "an XPM": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000", "a"};',
    "a PDF": b"%PDF-1.4 one page",
    "a page with an image": f'<p>words <img src="{data_url(WHITE)}"></p>'.encode(),
    "a data URL": data_url(WHITE).encode(),
}
GIVEN = {
    "bytes": lambda file, _: {"data": file},
    "base64": lambda file, _: {"data": base64.b64encode(file)},
    "a stream": lambda file, _: {"data": io.BytesIO(file)},
    "a path": lambda file, folder: {"path": _kept(file, folder)},
    "a data URL": lambda file, _: {"url": "data:text/plain;base64," + base64.b64encode(file).decode()},
}


def _kept(file: bytes, folder: Path) -> Path:
    (folder / "notes.txt").write_bytes(file)
    return folder / "notes.txt"


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("file", DRAWN_AS_TEXT.values(), ids=DRAWN_AS_TEXT)
@pytest.mark.parametrize("is_nested", [False, True], ids=["alone", "in a citable block"])
def test_a_drawing_or_a_page_that_says_it_is_text_is_a_finding(guard, tmp_path, given, file, is_nested):
    block = DocumentBlock(**given(file, tmp_path), document_mimetype="text/plain", title="notes.txt")
    if is_nested:
        block = CitableBlock(title="t", source="s", content=[block])
    (after,), (verdict,) = screened(guard, [block])
    assert (verdict.uninspectable, verdict.action) == ("unsupported_format", "block")
    assert (after.nested_blocks[0] if is_nested else after) == TextBlock(text=UNCHECKED_NOTICE)
