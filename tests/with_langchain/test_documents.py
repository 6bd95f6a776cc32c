"""What the two filters of a RAG pipeline let through, in what shape, and what they leave alone."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import os
import pickle
import re
from pathlib import Path

import pytest
from chat_images import MASKED, Listener, b64, data_url
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from PIL import Image
from pydantic import ValidationError

from guardalign_guardrails import Guard, GuardSettings, NotPicklable, SettingsError, UnsafeContentError
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard, colour_policy, painted
from langchain_guardalign import ImageDocumentCompressor, ImageDocumentTransformer


@pytest.fixture(params=["transform", "atransform", "compress", "acompress"])
def filtered(request, cache_dir):
    """Runs documents through a filter: either of the two, sync or async."""

    def run(*documents, guard=None, **settings):
        kind = ImageDocumentTransformer if request.param.endswith("transform") else ImageDocumentCompressor
        ingest = kind(guard=guard or colour_guard(cache_dir), **settings)
        method = getattr(ingest, f"{request.param}_documents")
        result = method(documents, *(["a question"] if kind is ImageDocumentCompressor else []))
        return list(asyncio.run(result) if asyncio.iscoroutine(result) else result)

    return run


@pytest.fixture
def ingest(cache_dir):
    return ImageDocumentTransformer(guard=colour_guard(cache_dir))


def doc(page_content="A caption.", **metadata):
    return Document(page_content, metadata=metadata)


def opened(encoded):
    """The image in base64, a data URL, bytes, or itself."""
    if isinstance(encoded, str):
        encoded = base64.b64decode(encoded.rpartition(",")[2])
    return (Image.open(io.BytesIO(encoded)) if isinstance(encoded, bytes) else encoded).convert("RGB")


def is_masked(encoded):
    return opened(encoded).tobytes() == MASKED.tobytes()


def wrapped(text, width=76):
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


def records(document):
    return json.loads(document.metadata["guardalign"])


def within(before, after, ending=""):
    """A form of document: a data URL between two texts, and how to read it back."""

    def make(image):
        return doc(f"{before}{data_url(image)}{ending}{after}")

    def read(document):
        text = document.page_content
        assert text.startswith(before)
        assert text.endswith(after)
        return text[len(before) : len(text) - len(after) - len(ending)]

    return make, read


FORMS = {
    "base64 as the text": (lambda image: doc(b64(image)), lambda d: d.page_content),
    "wrapped base64": (lambda image: doc(f"\n{wrapped(b64(image))}\n"), lambda d: d.page_content),
    "a data URL as the text": (lambda image: doc(data_url(image)), lambda d: d.page_content),
    "a wrapped data URL": (lambda image: doc(wrapped(data_url(image))), lambda d: d.page_content),
    "Markdown": within("A cat: ![a cat](", ") and more."),
    "Markdown with a title": within("A cat: ![a cat](", ' "title") and more.'),
    "Markdown with a size": within("A cat: ![a cat](", " =100x100) and more."),
    "HTML": within('<p>A cat: <img alt="" src="', '" width=9></p>'),
    "HTML without quotes": within("<img src=", "><b>bold</b>"),
    "CSS": within("div { background: url( ", " ) }"),
    "a sentence": within("Look at ", " if you like, please."),
    "JSON": within('{"photo": "', '", "page": 3}'),
    "JSON within JSON": within('{"inner": "{\\"image\\": \\"', '\\"}"}'),
    "a data URL in metadata": (lambda image: doc(thumbnail=data_url(image)), lambda d: d.metadata["thumbnail"]),
    "base64 in metadata": (lambda image: doc(image_base64=b64(image)), lambda d: d.metadata["image_base64"]),
    "bytes in metadata": (lambda image: doc(raw=encode_png(image)), lambda d: d.metadata["raw"]),
    "a PIL image in metadata": (lambda image: doc(page=image), lambda d: d.metadata["page"]),
    "deep in metadata": (lambda image: doc(a=[{"b": (1, b64(image))}]), lambda d: d.metadata["a"][0]["b"][1]),
    "HTML in metadata": (
        lambda image: doc(text_as_html=f'<td><img src="{data_url(image)}"></td>'),
        lambda d: re.search('src="(.*?)"', d.metadata["text_as_html"])[1],
    ),
}


class TestWhatIsFound:
    @pytest.mark.parametrize("form", FORMS)
    def test_an_unsafe_region_is_masked_in_the_form_that_the_image_had(self, ingest, form):
        make, read = FORMS[form]
        before = make(painted("red"))
        (after,) = ingest.transform_documents([before])
        assert is_masked(read(after))
        assert isinstance(read(after), str | bytes) == isinstance(read(before), str | bytes)
        assert isinstance(read(after), str) == isinstance(read(before), str)
        assert str(read(after)).startswith("data:image/png;base64,") == str(read(before)).startswith("data:")

    @pytest.mark.parametrize("form", FORMS)
    def test_a_blocked_image_takes_its_document_with_it(self, ingest, form):
        make, _ = FORMS[form]
        assert list(ingest.transform_documents([make(painted("blue")), doc("stays")])) == [doc("stays")]

    @pytest.mark.parametrize("form", FORMS)
    def test_an_image_that_may_pass_stays_as_it_was_written(self, ingest, form):
        make, _ = FORMS[form]
        before = make(painted())
        (after,) = ingest.transform_documents([before])
        assert after.page_content is before.page_content
        assert {k: v for k, v in after.metadata.items() if not k.startswith("guardalign")} == before.metadata

    def test_all_images_of_a_text_are_checked_and_each_is_replaced_where_it_is(self, filtered):
        urls = [data_url(painted(*colours)) for colours in ((), ("red",), (), ("red", "white"))]
        (after,) = filtered(doc("begin " + " then ".join(f"![]({url})" for url in urls) + " end"))
        found = re.findall(r"!\[\]\((.*?)\)", after.page_content)
        assert after.page_content == "begin " + " then ".join(f"![]({url})" for url in found) + " end"
        assert (found[0], found[2]) == (urls[0], urls[2])
        assert is_masked(found[1])
        assert is_masked(found[3])
        assert [record["action"] for record in records(after)] == ["allow", "mask"]

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
    def test_an_image_is_known_by_its_first_bytes_in_every_format_that_is_read(self, ingest, kind):
        out = io.BytesIO()
        painted("blue").save(out, kind)
        encoded = base64.b64encode(out.getvalue()).decode()
        assert (
            ingest.transform_documents([doc(encoded), doc(raw=out.getvalue()), doc(f"![](data:;base64,{encoded})")])
            == []
        )

    JPEG = io.BytesIO()
    painted("red").save(JPEG, "JPEG", quality=100, subsampling=0)
    JPEG_TEXT = base64.b64encode(JPEG.getvalue()).decode()

    @pytest.mark.parametrize(
        ("before", "label"),
        [
            (doc(JPEG_TEXT, mime_type="image/jpeg"), "mime_type"),
            (doc(image_base64=JPEG_TEXT, image_mime_type="image/jpeg"), "image_mime_type"),
            (doc(raw=JPEG.getvalue(), media_type="image/jpeg"), "media_type"),
        ],
    )
    def test_a_media_type_beside_a_masked_image_is_that_of_the_mask(self, ingest, before, label):
        (after,) = ingest.transform_documents([before])
        assert after.metadata[label] == "image/png"

    @pytest.mark.parametrize(
        "before",
        [
            doc(JPEG_TEXT, other=b64(painted()), mime_type="image/jpeg"),
            doc(f"![]({data_url(painted('red'))})", mime_type="image/jpeg"),
            doc(JPEG_TEXT, mime_type="application/json"),
        ],
    )
    def test_a_media_type_that_may_mean_something_else_stays(self, ingest, before):
        (after,) = ingest.transform_documents([before])
        assert after.metadata["mime_type"] == before.metadata["mime_type"]


class TestWhatTriesToHide:
    ENCODED = b64(painted("blue"))

    @pytest.mark.parametrize(
        "text",
        [
            f"DATA:IMAGE/PNG;BASE64,{ENCODED}",
            f"![](data:image/*;base64,{ENCODED})",
            f"![](data:;base64,{ENCODED})",
            f"![](data:text/plain;base64,{ENCODED})",
            f'<img src="data:image/png;charset="utf-8";base64,{ENCODED}">',
            f"![](data: image/png ; base64 , {ENCODED})",
            f'<img src="data:image/png;base64,{wrapped(ENCODED, 9)}">',
            f'<img src="data:image/png;base64,\n\n{ENCODED}">',
            f'{{"a": "data:image\\/png;base64,{wrapped(ENCODED).replace("/", chr(92) + "/")}"}}',
            f'{{"a": "data:image/png;base64,{wrapped(ENCODED)}"}}'.replace("\n", "\\n"),
            f"data:image/png;base64,{ENCODED[:5]}!{ENCODED[5:]}",
            f"see ![](data:image/png;base64,{ENCODED[:5]}*{ENCODED[5:]})",
            f"data:image/png;base64,{ENCODED.replace('+', '%2B').replace('=', '%3D')}",
            f"data:image/png,{''.join(f'%{byte:02x}' for byte in encode_png(painted('blue')))}",
            f"{ENCODED[:5]} {ENCODED[5:]}",
            f"{ENCODED[:5]}!{ENCODED[5:]}",
            " " * 500 + ENCODED,
            ENCODED.rstrip("="),
            ENCODED.replace("+", "-").replace("/", "_"),
        ],
    )
    def test_an_odd_spelling_does_not_get_an_image_past_the_filter(self, ingest, text):
        assert ingest.transform_documents([doc(text), doc("before", x=[text])]) == []

    @pytest.mark.parametrize(
        "text",
        [
            data_url(painted())[:150],
            f"![]({data_url(painted())[:150]})",
            b64(painted())[:100],
            f"![](data:image/svg+xml;base64,{base64.b64encode(b'<svg>' + b'x' * 90).decode()})",
            "<img src=\"data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'>"
            + "x" * 40,
            f"data:video/mp4;base64,{'AAAA' * 30}",
            base64.b64encode(b"\0\0\0\x20ftypavif" + b"\0" * 90).decode(),
        ],
    )
    def test_what_cannot_be_opened_is_a_finding_and_the_policy_decides(self, ingest, cache_dir, text):
        assert ingest.transform_documents([doc(text)]) == []
        lenient = ImageDocumentTransformer(guard=colour_guard(cache_dir, failure={"uninspectable": "allow"}))
        (after,) = lenient.transform_documents([doc(text)])
        assert after.page_content == text
        assert records(after)[0]["reason"]

    def test_metadata_without_an_end_is_a_finding(self, ingest):
        loop: list[object] = ["words"]
        loop.append(loop)
        assert ingest.transform_documents([doc(loop=loop)]) == []


class TestWhatIsLeftAlone:
    @pytest.mark.parametrize(
        "before",
        [
            doc(""),
            doc("Plain words, and a [link](https://example.org/cat.png)."),
            doc("![a cat](https://example.org/cat.png) <img src='cat.png'>"),
            doc("Data: see the table. Metadata:, and data:,."),
            doc("A data URL begins with data:image/png;base64, followed by the image as text, " + "in base64 " * 30),
            doc('Write "data:image/png;base64, and then the encoded bytes of the image that you mean, all of them".'),
            doc('"data:image/png;base64, ' + "then the bytes of the image " * 9 + '"'),
            doc("f'data:image/jpeg;base64,{image}' or `data:image/png;base64,${btoa(bytes)}`" + " x" * 99),
            doc("url: data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA..."),
            doc(f"@font-face {{ src: url(data:font/woff2;base64,{'AAAA' * 99}) }}"),
            doc(f"//# sourceMappingURL=data:application/json;base64,{base64.b64encode(b'{}' * 99).decode()}"),
            doc(f"{{'token': '{'Zm9vYmFy' * 40}'}}"),
            doc("Zm9vYmFy" * 40),
            doc(
                "Qk0 is what a bitmap in base64 begins with, and this sentence begins with it. It goes on for a while."
            ),
            doc(source="cat.png", image="https://example.org/cat.png", file={"id": 3}, path="/data/cat.jpg"),
            doc(embedding=[0.1] * 2000, page=3, tags=["a", "b"], when=None, raw=b"BM is the brand", other=object()),
        ],
    )
    def test_a_document_without_an_image_comes_back_as_it_is_and_costs_no_pass(self, filtered, cache_dir, before):
        guard = colour_guard(cache_dir)
        text, again = before.page_content, dict(before.metadata)
        (after,) = filtered(before, guard=guard)
        assert after is before
        assert (after.page_content, after.metadata) == (text, again)
        assert guard.detector.encoder.calls == []

    def test_documents_without_images_do_not_even_need_an_encoder(self, filtered):
        documents = [doc("words", page=number) for number in range(3)]
        unusable = GuardSettings(encoder="open_clip:no-such-model")
        assert all(
            after is before for after, before in zip(filtered(*documents, guard=unusable), documents, strict=True)
        )

    def test_no_documents_are_no_documents(self, filtered):
        assert filtered() == []


class TestDecisions:
    def test_order_and_ids_stay_and_what_was_given_is_never_changed(self, filtered):
        colours = ["red", "white", "blue", "magenta", "green", "yellow", "red"]
        given = [Document(b64(painted(c, shade=i)), id=str(i), metadata={"n": i}) for i, c in enumerate(colours)]
        before = copy.deepcopy(given)
        after = filtered(*given, doc("words"))
        assert [document.id for document in after] == ["0", "1", "3", "4", "6", None]
        assert [document.metadata.get("guardalign_action") for document in after] == [
            "mask",
            "allow",
            "flag",
            "prefix",
            "mask",
            None,
        ]
        assert given == before

    @pytest.mark.parametrize("colour", ["blue", "yellow"])
    def test_redacting_keeps_the_words_and_the_images_that_may_pass(self, filtered, colour):
        good, bad, half = (data_url(painted(*c)) for c in ((), (colour,), ("red",)))
        before = doc(f"a ![]({good}) b ![]({bad}) c ![]({half}) d", thumbnail=bad, page=painted(colour), n=1)
        (after,) = filtered(before, withhold="image")
        (masked,) = re.findall(r"c !\[\]\((.*?)\)", after.page_content)
        assert after.page_content == f"a ![]({good}) b ![]({NOTICE}) c ![]({masked}) d"
        assert is_masked(masked)
        assert (after.metadata["thumbnail"], after.metadata["page"], after.metadata["n"]) == (NOTICE, NOTICE, 1)

    def test_a_removed_image_leaves_the_media_type_beside_it_alone(self, filtered):
        (after,) = filtered(doc(b64(painted("blue")), mime_type="image/jpeg"), withhold="image")
        assert (after.page_content, after.metadata["mime_type"]) == (NOTICE, "image/jpeg")

    @pytest.mark.parametrize("withhold", ["document", "image"])
    @pytest.mark.parametrize("on_violation", ["notice", "raise"])
    def test_quarantine_gets_the_original_and_its_verdicts_whatever_becomes_of_it(
        self, filtered, on_violation, withhold
    ):
        kept = []
        given = [doc(b64(painted("red"))), doc(b64(painted("blue"))), doc("words"), doc(b64(painted("yellow")))]
        before = copy.deepcopy(given)
        settings = {"on_violation": on_violation, "withhold": withhold, "quarantine": lambda *args: kept.append(args)}
        if on_violation == "raise":
            with pytest.raises(UnsafeContentError) as caught:
                filtered(*given, **settings)
            assert caught.value.verdict.action == "block"
            assert caught.value.verdict.digest == kept[0][1][0].digest
            assert b64(painted("blue"))[:99] not in repr(caught.value) + str(caught.value.__context__)
        else:
            assert len(filtered(*given, **settings)) == (2 if withhold == "document" else 4)
        assert [document for document, _ in kept] == [before[1], before[3]]
        assert kept[0][0] is given[1]
        assert [[verdict.action for verdict in verdicts] for _, verdicts in kept] == [["block"], ["route"]]

    def test_nothing_is_raised_where_nothing_is_withheld(self, filtered):
        assert len(filtered(doc(b64(painted("red"))), doc(b64(painted("green"))), on_violation="raise")) == 2

    def test_an_error_of_the_quarantine_is_passed_on(self, filtered):
        def full(*_):
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            filtered(doc(b64(painted("blue"))), quarantine=full)

    def test_monitor_mode_changes_nothing_and_says_what_it_would_have_done(self, filtered, cache_dir):
        kept = []
        guard = colour_guard(cache_dir, mode="monitor")
        before = doc(b64(painted("blue")))
        (after,) = filtered(before, guard=guard, quarantine=lambda *args: kept.append(args))
        assert after.page_content is before.page_content
        assert (records(after)[0]["action"], records(after)[0]["proposed"]) == ("allow", "block")
        assert kept == []

    def test_images_count_as_retrieved_unless_told_otherwise(self, filtered, cache_dir):
        lenient = {"retrieved": {"at_most": "flag", "thresholds": {"kind": "score"}}}
        guard = colour_guard(cache_dir, sources=lenient)
        before = doc(b64(painted("blue")))
        assert [d.metadata["guardalign_action"] for d in filtered(before, guard=guard)] == ["flag"]
        assert filtered(before, guard=guard, source="user") == []

    def test_what_only_an_answer_can_do_is_refused(self, filtered):
        with pytest.raises(SettingsError, match="refuse"):
            filtered(on_violation="refuse")

    def test_what_could_not_be_checked_reads_differently_from_what_is_unsafe(self, filtered):
        before = doc(f"![]({data_url(painted('blue'))}) ![]({data_url(painted())[:150]})")
        (after,) = filtered(before, withhold="image")
        assert after.page_content == f"![]({NOTICE}) ![]({UNCHECKED_NOTICE})"
        assert [record["finding"] for record in records(after)] == ["unsafe", "unchecked"]

    def test_text_that_reads_like_a_notice_withholds_nothing(self, filtered):
        before = doc(f"{NOTICE} ![]({data_url(painted('red'))})", note=NOTICE)
        (after,) = filtered(before)
        assert after.page_content.startswith(NOTICE)
        assert after.metadata["guardalign_action"] == "mask"

    def test_an_unknown_setting_is_refused(self, cache_dir):
        with pytest.raises(ValidationError):
            ImageDocumentTransformer(guard=colour_guard(cache_dir), on_blocked="notice")


class FromMemory:
    """Answers for URLs, as a fetcher does, from a mapping."""

    def __init__(self, files):
        self.files = files

    def fetch_all(self, urls, max_bytes=None):
        return {url: self.files[url] for url in urls}


class TestNamedFields:
    @pytest.mark.parametrize(
        "value",
        [
            "https://example.org/cat.png",
            "cat.png",
            "/etc/passwd",
            b"no image",
            ["https://example.org/1.png", b64(painted())],
            {"type": "image", "url": "https://example.org/cat.png"},
            {"what": "is this"},
            object(),
        ],
    )
    def test_what_an_image_field_holds_and_cannot_be_opened_is_a_finding(self, filtered, value):
        assert filtered(doc(image=value), image_fields=["image"]) == []

    @pytest.mark.parametrize("value", [None, "", [], {}, float("nan")])
    def test_an_empty_image_field_is_none(self, filtered, value):
        before = doc(image=value)
        assert filtered(before, image_fields=["image"])[0] is before

    @pytest.mark.parametrize(
        "value",
        [
            b64(painted("red")),
            [b64(painted()), encode_png(painted("red"))],
            {"type": "image", "base64": b64(painted("red")), "mime_type": "image/png"},
        ],
    )
    def test_images_in_an_image_field_are_masked(self, filtered, value):
        (after,) = filtered(doc(image=value), image_fields=["image"])
        new = after.metadata["image"]
        assert is_masked(new["base64"] if isinstance(new, dict) else new[1] if isinstance(new, list) else new)

    def test_a_url_is_fetched_if_the_guard_fetches_and_what_was_checked_is_inlined(self, filtered, cache_dir):
        url = "https://example.org/{}"
        files = {url.format(c): encode_png(painted(c)) for c in ("red", "white", "blue")}
        guard = Guard(
            colour_guard(cache_dir).policy,
            colour_guard(cache_dir).detector.encoder,
            cache_dir=cache_dir,
            fetcher=FromMemory(files),
        )
        after = filtered(*(doc(image=name) for name in files), guard=guard, image_fields=["image"])
        assert is_masked(after[0].metadata["image"])
        assert opened(after[1].metadata["image"]).tobytes() == painted("white").tobytes()
        assert len(after) == 2

    def test_a_field_that_is_not_named_is_never_taken_for_a_path(self, filtered, tmp_path):
        painted("blue").save(tmp_path / "blue.png")
        before = doc(str(tmp_path / "blue.png"), source=str(tmp_path / "blue.png"))
        assert filtered(before)[0] is before


class TestFiles:
    @pytest.fixture
    def image(self, tmp_path):
        def save(colour, name="image.png"):
            painted(colour).save(tmp_path / name, "PNG")
            return tmp_path / name

        return save

    @pytest.mark.parametrize("kind", [str, lambda path: path])
    @pytest.mark.parametrize("folder", [str, lambda path: path])
    def test_a_masked_copy_is_written_and_the_field_points_to_it(self, filtered, image, tmp_path, folder, kind):
        path = image("red")
        original = path.read_bytes()
        settings = {"path_fields": ["source"], "masked_dir": folder(tmp_path / "masked")}
        (after,) = filtered(doc(source=kind(path)), **settings)
        assert path.read_bytes() == original
        assert type(after.metadata["source"]) is type(kind(path))
        assert is_masked((tmp_path / "masked" / Path(after.metadata["source"]).name).read_bytes())
        assert filtered(doc(source=kind(path)), **settings)[0].metadata["source"] == after.metadata["source"]
        assert len(list((tmp_path / "masked").iterdir())) == 1
        assert filtered(after, **settings)[0] is after

    def test_without_a_folder_for_copies_a_file_to_be_masked_withholds_its_document(self, filtered, image):
        before = doc(source=str(image("red")))
        assert filtered(before, path_fields=["source"]) == []
        (after,) = filtered(before, path_fields=["source"], withhold="image")
        assert after.metadata["source"] == NOTICE
        with pytest.raises(UnsafeContentError):
            filtered(before, path_fields=["source"], on_violation="raise")

    def test_a_blocked_file_withholds_its_document_and_a_harmless_one_stays(self, filtered, image):
        good, bad = str(image("white", "a.png")), str(image("blue", "b.png"))
        (after,) = filtered(doc(source=good), doc(source=bad), doc(source=[good, bad]), path_fields=["source"])
        assert after.metadata["source"] == good

    def test_an_image_is_one_whatever_its_name_says(self, filtered, image):
        assert filtered(doc(source=str(image("blue", "notes.txt"))), path_fields=["source"]) == []

    @pytest.mark.parametrize("name", ["missing.png", "text.jpeg", "folder.webp", "https://example.org/cat.png?x=1"])
    def test_what_should_be_an_image_and_cannot_be_opened_is_a_finding(self, filtered, tmp_path, name):
        (tmp_path / "text.jpeg").write_text("words")
        (tmp_path / "folder.webp").mkdir()
        path = name if "://" in name else str(tmp_path / name)
        assert filtered(doc(source=path), path_fields=["source"]) == []

    @pytest.mark.parametrize(
        "source",
        [
            "report.pdf",
            "https://example.org/page.html",
            "missing",
            "",
            "\0",
            7,
            None,
            "words of some length",
            "\\\\h\\a.txt",
        ],
    )
    def test_what_is_no_image_in_a_path_field_is_left_alone(self, filtered, tmp_path, monkeypatch, source):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
        before = doc("words", source=source)
        assert filtered(before, path_fields=["source"])[0] is before

    @pytest.mark.parametrize("path", ["//host/share/a.png", "\\\\host\\share\\a.png"])
    def test_another_machines_file_is_not_opened(self, filtered, path):
        kept = []
        assert filtered(doc(source=path), path_fields=["source"], quarantine=lambda *args: kept.append(args)) == []
        assert kept[0][1][0].uninspectable == "remote_reference"

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
    def test_a_fifo_cannot_hang_the_filter(self, ingest, tmp_path):
        os.mkfifo(tmp_path / "fifo.png")
        os.mkfifo(tmp_path / "fifo")
        ingest = ingest.model_copy(update={"path_fields": ("source",)})
        assert ingest.transform_documents([doc(source=str(tmp_path / "fifo.png"))]) == []
        assert len(ingest.transform_documents([doc(source=str(tmp_path / "fifo"))])) == 1

    def test_an_image_in_a_path_field_is_found_all_the_same(self, filtered):
        assert filtered(doc(source=data_url(painted("blue"))), path_fields=["source"]) == []


class TestRecords:
    def test_a_record_says_what_was_found_by_what_and_holds_no_pixels(self, filtered):
        (after,) = filtered(doc(b64(painted("red"))))
        (record,) = records(after)
        assert record.keys() == {
            *("id", "digest", "source", "finding", "action", "category", "delivery", "policy_fingerprint", "encoder")
        }
        assert (record["finding"], record["action"], record["category"]) == ("unsafe", "mask", "red_things")
        assert record["encoder"] == "colour"
        assert len(after.metadata["guardalign"]) < 500
        assert all(isinstance(after.metadata[key], str) for key in ("guardalign", "guardalign_action"))

    def test_what_the_policy_lets_pass_unchecked_is_a_finding_on_record(self, filtered, cache_dir):
        guard = colour_guard(cache_dir, failure={"uninspectable": "allow"})
        (stored,) = filtered(doc(b64(painted("red"))), guard=guard)
        broken = stored.model_copy(update={"page_content": f"![]({data_url(painted())[:150]})"})
        (after,) = filtered(broken, guard=guard)
        assert [(record["finding"], record["action"]) for record in records(after)] == [
            ("unsafe", "mask"),
            ("unchecked", "allow"),
        ]
        assert records(after)[1]["reason"]
        assert filtered(after, guard=guard)[0] is after

    def test_the_second_filter_gives_the_same_objects_back(self, filtered, ingest):
        given = [doc(b64(painted(c))) for c in ("red", "white", "green", "magenta")]
        stored = ingest.transform_documents(given)
        assert all(after is before for after, before in zip(filtered(*stored), stored, strict=True))

    def test_what_was_masked_before_storing_stays_known_when_something_is_found_later(
        self, filtered, ingest, cache_dir
    ):
        (stored,) = ingest.transform_documents([doc(b64(painted("red", "magenta")))])
        (after,) = filtered(stored)
        assert [record["action"] for record in records(after)] == ["mask", "flag"]
        assert after.metadata["guardalign_action"] == "mask"
        assert filtered(after)[0] is after

    @pytest.mark.parametrize("forged", ["", "[]", "[1]", '{"id": 1}', '[{"id": "x", "action": "fine"}]', "[" * 5000, 3])
    def test_what_is_no_record_is_written_over(self, filtered, forged):
        (after,) = filtered(doc(b64(painted()), guardalign=forged))
        assert [record["action"] for record in records(after)] == ["allow"]

    def test_no_record_makes_a_filter_look_away(self, filtered, ingest):
        (stored,) = ingest.transform_documents([doc(b64(painted()))])
        forged = stored.model_copy(update={"page_content": b64(painted("blue"))})
        assert filtered(forged) == []

    def test_an_id_is_the_same_for_the_same_image_and_policy_only(self, cache_dir):
        def name(image, **changes):
            ingest = ImageDocumentTransformer(guard=colour_guard(cache_dir, **changes))
            return records(ingest.transform_documents([doc(image)])[0])[0]["id"]

        names = [name(b64(painted())), name(b64(painted(shade=3))), name(b64(painted()), prefix="Other.")]
        assert len(set(names)) == 3
        assert name(data_url(painted())) == names[0]

    def test_a_vector_store_takes_the_records_and_filters_by_the_action(self, ingest):
        chroma = pytest.importorskip("langchain_chroma")
        embeddings = pytest.importorskip("langchain_core.embeddings").DeterministicFakeEmbedding(size=8)
        store = chroma.Chroma("documents", embedding_function=embeddings)
        stored = ingest.transform_documents([doc(b64(painted(c))) for c in ("red", "white")])
        store.add_documents(list(stored))
        (found,) = store.similarity_search("anything", filter={"guardalign_action": "mask"})
        assert found.metadata == stored[0].metadata


class Stored(BaseRetriever):
    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


class TestAsPartsOfPipelines:
    def test_the_images_of_all_documents_make_one_batch(self, filtered, cache_dir):
        guard = colour_guard(cache_dir)
        filtered(*(doc(b64(painted(shade=n)), thumbnail=painted(shade=n + 5)) for n in range(5)), guard=guard)
        assert len(guard.detector.encoder.calls) == 1

    def test_more_images_than_are_held_at_once_make_several_batches(self, ingest, monkeypatch):
        asked = []
        checking = ingest.guard.guard.checking
        count = lambda images, source: asked.append(len(images)) or checking(images, source=source)  # noqa: E731
        monkeypatch.setattr(ingest.guard.guard, "checking", count)
        ingest.transform_documents([doc(data_url(painted()), other=data_url(painted())) for _ in range(70)])
        assert asked == [64, 64, 12]

    def test_more_images_than_are_held_at_once_stay_in_order(self, filtered):
        given = [doc(b64(painted("red" if n % 9 == 0 else "white", shade=n)), n=n) for n in range(70)]
        after = filtered(*given, doc("words"))
        assert [document.metadata.get("n") for document in after] == [*range(70), None]
        assert [n for n in range(70) if after[n].metadata["guardalign_action"] == "mask"] == [*range(0, 70, 9)]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_guarded_retriever_tells_what_it_found_without_pixels(self, cache_dir, is_async):
        retrievers = pytest.importorskip("langchain_classic.retrievers")
        listener = Listener()
        retriever = retrievers.ContextualCompressionRetriever(
            base_compressor=ImageDocumentCompressor(guard=colour_guard(cache_dir)),
            base_retriever=Stored(documents=[doc("words"), doc(b64(painted("blue"))), doc(b64(painted("red")))]),
        )
        config = {"callbacks": [listener]}
        found = asyncio.run(retriever.ainvoke("question", config)) if is_async else retriever.invoke("question", config)
        assert len(found) == 2
        ((name, event),) = listener.events
        assert (name, event["action"]) == ("guardalign.verdict", "block")
        assert [verdict["action"] for verdict in event["verdicts"]] == ["block", "mask"]
        assert b64(painted("blue"))[:99] not in repr(event)

    def test_callbacks_that_belong_to_no_run_are_no_obstacle(self, cache_dir):
        ingest = ImageDocumentCompressor(guard=colour_guard(cache_dir))
        assert ingest.compress_documents([doc(b64(painted("blue")))], "question", callbacks=[Listener()]) == []

    def test_both_filters_are_parts_of_a_compressor_pipeline(self, cache_dir):
        compressors = pytest.importorskip("langchain_classic.retrievers.document_compressors")
        guard = colour_guard(cache_dir)
        pipeline = compressors.DocumentCompressorPipeline(
            transformers=[ImageDocumentTransformer(guard=guard), ImageDocumentCompressor(guard=guard)]
        )
        (after,) = pipeline.compress_documents([doc(b64(painted("red"))), doc(b64(painted("blue")))], "question")
        assert is_masked(after.page_content)

    def test_documents_of_another_class_keep_it(self, filtered):
        class Page(Document):
            number: int = 0

        (after,) = filtered(Page(page_content=b64(painted("red")), number=4))
        assert (type(after), after.number) == (Page, 4)


def set_aside(document, verdicts):
    """A quarantine that another process can find."""


class Pinned(ColourEncoder):
    """Does not pickle."""

    def __reduce__(self):
        raise TypeError("pinned")


@pytest.mark.parametrize("kind", [ImageDocumentTransformer, ImageDocumentCompressor])
class TestComponents:
    BLUE, RED = b64(painted("blue")), b64(painted("red"))

    def passed(self, component):
        documents = [doc(self.BLUE), doc(self.RED)]
        if isinstance(component, ImageDocumentTransformer):
            return component.transform_documents(documents)
        return component.compress_documents(documents, "a question")

    def test_a_guard_is_given_in_any_of_the_usual_ways(self, kind, cache_dir, tmp_path):
        guard, policy = colour_guard(cache_dir), colour_policy()
        path = tmp_path / "policy.yaml"
        path.write_text(policy.to_yaml())
        settings = GuardSettings.of(guard)
        assert kind(guard=guard).guard.guard is guard
        assert kind(guard=settings).guard is settings
        for way in (policy, path, str(path), GuardSettings(policy=policy)):
            assert kind(guard=way).guard.policy == policy
        assert kind(guard=None) == kind()
        with pytest.raises(SettingsError):
            kind(guard=3)

    @pytest.mark.parametrize("is_used", [False, True])
    def test_a_copy_has_its_guard_and_its_quarantine(self, kind, cache_dir, is_used):
        component = kind(guard=colour_guard(cache_dir), withhold="image", quarantine=set_aside, image_fields=["image"])
        if is_used:
            assert len(self.passed(component)) == 2
        sent = pickle.loads(pickle.dumps(component))
        assert sent.guard.guard is not component.guard.guard
        assert copy.deepcopy(component).guard.guard is component.guard.guard
        for again in (sent, copy.deepcopy(component)):
            blocked, masked = self.passed(again)
            assert (blocked.page_content, is_masked(masked.page_content)) == (NOTICE, True)
            assert (again.quarantine, again.image_fields) == (set_aside, ("image",))

    def test_a_copy_that_would_lose_something_is_an_error_that_names_it(self, kind, cache_dir):
        for member, settings in {
            "quarantine": {"guard": colour_guard(cache_dir), "quarantine": lambda *_: None},
            "encoder": {"guard": Guard(colour_policy(), Pinned(), cache_dir=cache_dir)},
        }.items():
            with pytest.raises(NotPicklable) as caught:
                pickle.dumps(kind(**settings))
            assert caught.value.member == member


def test_the_page_about_the_filters_names_every_setting_and_only_those():
    page = (Path(__file__).parents[2] / "docs" / "langchain" / "rag.md").read_text(encoding="utf-8")
    table = page[page.index("| setting |") :].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(ImageDocumentTransformer.model_fields) == set(ImageDocumentCompressor.model_fields)
