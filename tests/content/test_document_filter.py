"""The filter for documents on plain data: what every framework's filter makes of text, metadata and files."""

from __future__ import annotations

import asyncio
import base64
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.reread_images import CHANGING_TYPE, REREAD, SLOW_IF_LARGE, TURNED
from guardalign_guardrails import GuardSettings, SettingsError, UnsafeContentError
from guardalign_guardrails.content.documents.filter import DocumentFilter, not_refuse
from guardalign_guardrails.content.documents.images import (
    find_in_text,
    find_in_value,
    of_file,
    of_value,
    unreadable,
    with_images,
)
from guardalign_guardrails.content.documents.records import ACTION_KEY, RECORD_KEY, with_records
from guardalign_guardrails.content.encoded_text import find_encoded
from guardalign_guardrails.content.payload import read_data_url, to_base64, to_data_url
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted


def url_of(*colours: str, shade: int = 0) -> str:
    return to_data_url(encode_png(painted(*colours, shade=shade)), "image/png")


def document(text: str = "", **metadata):
    return {"text": text, "metadata": metadata}


def find(given):
    found = find_in_text(given["text"], ("text",))
    for key, value in given["metadata"].items():
        found += find_in_value(value, ("metadata", key))
    return found


def rewrite(given, checked):
    new = with_images(given, checked.images, checked.replacements)
    return given if all(new[name] is given[name] for name in given) else new


@pytest.fixture(params=["sync", "async"])
def filtered(request, cache_dir):
    """Filters documents, sync or async."""

    def run(*documents, guard=None, find=find, rewrite=rewrite, **settings):
        document_filter = DocumentFilter(
            GuardSettings.of(guard or colour_guard(cache_dir)), find=find, rewrite=rewrite, **settings
        )
        if request.param == "sync":
            return document_filter.filter(documents)
        return asyncio.run(document_filter.afilter(documents))

    return run


class TestTheFilter:
    def test_each_document_stays_in_its_place_and_is_the_same_object_if_nothing_changes(self, filtered):
        documents = [
            document("words"),
            document(url_of()),
            document(f"a {url_of('blue')} b"),
            document(f"a {url_of('red')} b"),
            document("words", x=[{"y": url_of("yellow")}]),
        ]
        result = filtered(*documents)
        assert [place is given for place, given in zip(result.places, documents, strict=True)] == [
            True,
            True,
            *[False] * 3,
        ]
        assert (result.places[2], result.places[4]) == (None, None)
        assert result.passed == [documents[0], documents[1], result.places[3]]
        assert [verdict.action for verdict in result.verdicts] == ["allow", "block", "mask", "route"]

    def test_an_image_may_be_withheld_without_its_document(self, filtered):
        broken = url_of()[:150]
        given = document(f"a ![]({url_of('blue')}) b ![]({broken}) c ![]({url_of()})", x=(url_of("blue"),))
        (after,) = filtered(given, withhold="image").passed
        assert after["text"] == f"a ![]({NOTICE}) b ![]({UNCHECKED_NOTICE}) c ![]({url_of()})"
        assert after["metadata"] == {"x": (NOTICE,)}

    def test_what_is_withheld_is_quarantined_and_raised_for_only_if_the_rule_says_so(self, filtered):
        kept = []
        documents = [
            document(url_of("yellow")),
            document(f"{url_of('red')} {url_of('blue')}"),
            document(url_of("blue")),
        ]
        result = filtered(*documents, quarantine=lambda *args: kept.append(args))
        assert [one for one, _ in kept] == documents
        assert [verdict.action for verdict in kept[1][1]] == ["mask", "block"]
        result.raise_by("notice")
        with pytest.raises(UnsafeContentError) as caught:
            result.raise_by("raise")
        assert caught.value.verdict is kept[0][1][0]

    def test_a_block_is_the_violation_before_a_route_of_the_same_document(self, filtered):
        assert filtered(document(f"{url_of('yellow')} {url_of('blue')}")).violation.action == "block"

    def test_nothing_is_raised_where_nothing_is_withheld(self, filtered):
        result = filtered(document(url_of("red")), document("words"))
        result.raise_by("raise")
        assert result.violation is None

    def test_documents_are_found_in_once_and_64_images_are_checked_together(self, filtered, cache_dir, monkeypatch):
        guard, sizes, searched = colour_guard(cache_dir), [], []
        checking = guard.checking
        monkeypatch.setattr(
            guard, "checking", lambda images, source: sizes.append(len(images)) or checking(images, source=source)
        )
        documents = [document(url_of(shade=n % 9), x=[url_of()] * (n % 3)) for n in range(70)]
        result = filtered(*documents, guard=guard, find=lambda given: searched.append(given) or find(given))
        assert searched == documents
        assert len(result.passed) == 70
        assert sum(sizes) == 70 + sum(n % 3 for n in range(70))
        assert max(sizes) <= 64
        assert len(sizes) == 3

    def test_a_document_with_more_images_than_that_is_checked_in_one_piece(self, filtered, cache_dir, monkeypatch):
        guard, sizes = colour_guard(cache_dir), []
        checking = guard.checking
        monkeypatch.setattr(
            guard, "checking", lambda images, source: sizes.append(len(images)) or checking(images, source=source)
        )
        filtered(document(url_of()), document("", x=[url_of()] * 70), document(url_of()), guard=guard)
        assert sizes == [1, 70, 1]

    def test_without_an_image_no_guard_is_made(self, filtered):
        unusable = GuardSettings(encoder="no-such-encoder")
        given = document("words")
        assert filtered(given, guard=unusable).passed[0] is given

    def test_monitor_mode_withholds_nothing(self, filtered, cache_dir):
        given = document(url_of("blue"))
        result = filtered(given, guard=colour_guard(cache_dir, mode="monitor"))
        assert result.passed[0] is given
        assert result.verdicts[0].proposed == "block"

    def test_a_component_without_an_answer_takes_no_refuse(self):
        assert [not_refuse(rule) for rule in ("notice", "raise")] == ["notice", "raise"]
        with pytest.raises(SettingsError, match="refuse"):
            not_refuse("refuse")


class TestWhereImagesAre:
    @given(before=st.text(max_size=200), after=st.text(max_size=200))
    def test_whatever_is_around_an_image_in_a_text_it_is_found(self, before, after):
        url = url_of("blue")
        text = f"{before}![]({url}){after}"
        assert url in [text[slice(*encoded.span)] for encoded in find_encoded(text)]

    def test_a_short_data_url_is_an_example_in_a_text_and_an_image_as_a_whole_value(self):
        short = "data:image/png;base64,AAAA"
        assert find_in_text(short, ()) == find_in_text(f"say {short}", ()) == find_in_value(f"say {short}", ()) == []
        assert len(find_in_value(short, ())) == len(find_in_value([{"x": short}], ())) == 1

    @pytest.mark.parametrize(
        "value",
        [url_of(), base64.b64encode(encode_png(painted())).decode(), encode_png(painted()), painted(), f"<{url_of()}>"],
        ids=["a data URL", "base64", "bytes", "a PIL image", "within text"],
    )
    def test_an_image_is_found_at_any_depth_of_a_value(self, value):
        (found,) = find_in_value({"a": [1, ("words", value)]}, ("metadata", "x"))
        assert found.path == ("metadata", "x", "a", 1, 1)

    @pytest.mark.parametrize("value", ["words", b"BM is the brand", 3, None, object(), [["a"] * 9], {"image": "x.png"}])
    def test_what_is_no_image_is_not_found(self, value):
        assert find_in_value(value, ()) == []

    def test_a_value_without_end_is_a_finding_as_a_whole(self):
        loop: list[object] = [url_of()]
        loop.append(loop)
        (found,) = find_in_value(loop, ("metadata", "x"))
        assert (found.path, found.reading.read(9), found.reading.write) == (("metadata", "x"), "too_complex", None)

    def test_a_value_of_very_many_parts_is_one_too(self):
        (found,) = find_in_value([[] for _ in range(100_001)], ())
        assert found.reading.read(9) == "too_complex"


class TestFiles:
    @pytest.mark.parametrize("folder", [str, lambda path: path])
    def test_a_file_is_read_within_the_limit_and_its_masked_copy_goes_into_the_folder(self, tmp_path, folder):
        path = tmp_path / "image.png"
        data = encode_png(painted())
        path.write_bytes(data)
        reading = of_file(str(path), (), folder(tmp_path / "masked")).reading
        assert reading.read(len(data)) == data
        assert reading.read(len(data) - 1) == "too_large"
        copy = reading.write(b"masked", "image/png")
        assert (type(copy), (tmp_path / "masked").is_dir()) == (str, True)
        assert isinstance(of_file(path, (), tmp_path).reading.write(b"masked", "image/png"), type(path))
        assert of_file(path, ()).reading.write is None

    @pytest.mark.parametrize("path", ["//host/share/a.png", "\\\\host\\share\\a.png"])
    def test_another_machines_file_is_not_opened(self, path):
        assert of_file(path, ()).reading.read(9) == "remote_reference"

    def test_what_is_no_file_is_a_reference(self, tmp_path):
        for path in (tmp_path, tmp_path / "nothing", "\0"):
            assert of_file(path, ()).reading.read(9) == "file_reference"


class TestRewriting:
    def test_nothing_that_is_given_changes(self, filtered):
        given = document(f"a {url_of('red')} b {url_of('red', shade=3)}", x={"y": [url_of("red")]}, z=[1])
        kept = {"text": given["text"], "metadata": {"x": {"y": [given["metadata"]["x"]["y"][0]]}, "z": [1]}}
        (after,) = filtered(given).passed
        assert given == kept
        assert after["metadata"]["z"] is given["metadata"]["z"]
        first, second = after["text"][2:].split(" b ")
        assert all(read_data_url(url, len(url)) for url in (first, second))
        assert first != second

    @pytest.mark.parametrize(("withhold", "mime"), [("document", "image/png"), ("image", "image/jpeg")])
    def test_a_media_type_beside_an_image_that_states_none_is_that_of_the_mask(self, filtered, withhold, mime):
        colour = "red" if withhold == "document" else "blue"
        data = encode_png(painted(colour))
        given = document("words", photo={"raw": data, "mime": "image/jpeg"}, mime_type="image/jpeg")
        (after,) = filtered(given, withhold=withhold).passed
        assert after["metadata"]["photo"]["mime"] == mime
        assert after["metadata"]["mime_type"] == "image/jpeg"

    def test_what_cannot_be_written_is_withheld_where_it_would_be_masked(self, filtered, cache_dir):
        guard = colour_guard(cache_dir, failure={"uninspectable": "mask"})
        parts = {"find": lambda _: [unreadable(("metadata", "x"), "unsupported_block")], "guard": guard}
        assert filtered(document(x=3), **parts).passed == []
        (after,) = filtered(document(x=3), **parts, withhold="image").passed
        assert after["metadata"]["x"] == UNCHECKED_NOTICE

    def test_a_value_that_is_an_image_keeps_its_form(self, filtered):
        value = encode_png(painted("red"))
        (after,) = filtered(
            document(x=value), find=lambda given: [of_value(given["metadata"]["x"], ("metadata", "x"))]
        ).passed
        assert isinstance(after["metadata"]["x"], bytes)


class TestRecords:
    def test_an_unchecked_image_that_may_pass_is_put_on_record_beside_others(self, filtered, cache_dir):
        guard = colour_guard(cache_dir, failure={"uninspectable": "allow"})
        clean, unchecked = (filtered(document(url), guard=guard).verdicts for url in (url_of(), url_of()[:150]))
        first = with_records({}, clean)
        assert with_records(first, filtered(document(url_of(shade=3)), guard=guard).verdicts) is first
        both = with_records(first, unchecked)
        assert [part in both[RECORD_KEY] for part in ('"finding":"none"', '"finding":"unchecked"')] == [True, True]
        assert both[ACTION_KEY] == "allow"
        assert with_records(both, unchecked) is both

    def test_the_guards_own_reading_is_on_record_beside_others_and_once(self, filtered):
        (verdict,) = filtered(document(to_data_url(TURNED, "image/jpeg"))).verdicts
        harmless = with_records({}, filtered(document(url_of())).verdicts)
        both = with_records(harmless, [verdict])
        kept, new = json.loads(both[RECORD_KEY])
        assert "delivery" not in kept
        assert (new["finding"], new["action"], new["delivery"]) == ("none", "allow", "canonical")
        assert with_records(both, [verdict]) is both

    def test_two_files_with_the_same_pixels_are_two_records_if_one_has_a_second_reading(self, filtered):
        plain = encode_png(painted())
        files = [plain, plain + b"more"]
        one, other = filtered(*(document(to_data_url(data, "image/png")) for data in files)).verdicts
        assert (one.digest, one.delivery, other.delivery) == (other.digest, "original", "canonical")
        assert len(json.loads(with_records({}, [one, other])[RECORD_KEY])) == 2

    @pytest.mark.parametrize(("colour", "delivery"), [("red", "masked"), ("blue", "none")])
    def test_what_goes_on_is_on_record_unless_it_is_the_original(self, filtered, colour, delivery):
        (record,) = json.loads(with_records({}, filtered(document(url_of(colour))).verdicts)[RECORD_KEY])
        assert record["delivery"] == delivery


class TestTheGuardsOwnReading:
    """An image with several readings does not go on as it came, in whatever form a document holds it."""

    @pytest.mark.parametrize("name", SLOW_IF_LARGE)
    def test_takes_the_place_of_the_original_in_text_and_metadata(self, filtered, cache_dir, name):
        data, checked = REREAD[name], colour_guard(cache_dir).check(REREAD[name])
        url, new = to_data_url(data, checked.mime_type), to_data_url(checked.output, checked.mime_type)
        given = document(f"a ![]({url}) b", x=[url], y={"raw": data}, z=to_base64(data))
        (after,) = filtered(given).passed
        assert after["text"] == f"a ![]({new}) b"
        assert after["metadata"] == {"x": [new], "y": {"raw": checked.output}, "z": to_base64(checked.output)}
        (again,) = filtered(after).passed
        assert again is after

    @pytest.mark.parametrize("mime", CHANGING_TYPE)
    def test_has_its_own_media_type_in_a_field_beside_it(self, filtered, cache_dir, mime):
        data = CHANGING_TYPE[mime]
        output = colour_guard(cache_dir).check(data).output
        given = document("words", photo={"raw": data, "mime": "image/webp"}, mime_type="image/webp")
        (after,) = filtered(given).passed
        assert after["metadata"] == {"photo": {"raw": output, "mime": mime}, "mime_type": "image/webp"}

    @pytest.mark.parametrize("mime", CHANGING_TYPE)
    def test_is_kept_in_a_file_with_the_ending_of_its_type(self, filtered, cache_dir, tmp_path, mime):
        original = tmp_path / "photo.webp"
        original.write_bytes(CHANGING_TYPE[mime])
        (after,) = filtered(
            document(path=str(original), mime_type="image/webp"),
            find=lambda given: [of_file(given["metadata"]["path"], ("metadata", "path"), tmp_path / "masked")],
        ).passed
        kept = pathlib.Path(after["metadata"]["path"])
        assert (kept.parent, kept.suffix) == (tmp_path / "masked", {"image/jpeg": ".jpg", "image/png": ".png"}[mime])
        assert kept.read_bytes() == colour_guard(cache_dir).check(CHANGING_TYPE[mime]).output
        assert after["metadata"]["mime_type"] == mime
        assert original.read_bytes() == CHANGING_TYPE[mime]

    def test_is_withheld_with_its_document_where_no_folder_is_set_for_copies(self, filtered, tmp_path, caplog):
        original = tmp_path / "photo.jpg"
        original.write_bytes(TURNED)
        given, kept = document(path=str(original)), []
        parts = {"find": lambda given: [of_file(given["metadata"]["path"], ("metadata", "path"))]}
        result = filtered(given, quarantine=lambda *args: kept.append(args), **parts)
        assert (result.passed, [one for one, _ in kept]) == ([], [given])
        assert [(v.action, v.delivery) for v in result.verdicts] == [("allow", "none")]
        digest = result.verdicts[0].digest[:12]
        assert f"An image (digest {digest}) is withheld: no canonical image can be written" in caplog.text
        with pytest.raises(UnsafeContentError, match="masked_dir"):
            result.raise_by("raise")
        (after,) = filtered(given, withhold="image", **parts).passed
        assert after["metadata"]["path"] == UNCHECKED_NOTICE

    def test_is_not_due_where_the_policy_delivers_originals_of_the_source(self, filtered, cache_dir, tmp_path):
        original = tmp_path / "photo.jpg"
        original.write_bytes(TURNED)
        given = document(path=str(original))
        guard = colour_guard(cache_dir, sources={"retrieved": {"delivery": "original"}})
        (after,) = filtered(given, guard=guard, find=lambda _: [of_file(original, ("metadata", "path"))]).passed
        assert after is given
