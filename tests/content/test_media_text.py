"""A string is media by its beginning, in every form that some client takes; a text about media is text."""

from __future__ import annotations

import io
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardalign_guardrails.content.media_text import media_of_promoted_text, media_of_text, media_of_value
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import painted

PNG = encode_png(painted("red"))
OTHER = encode_png(painted("green"))
B64 = to_base64(PNG)
URL = to_data_url(PNG, "image/png")
LIMIT = 1_000_000
URL_SAFE = str.maketrans("+/", "-_")
PROSE = "and that is all that this text has to say about it, though it goes on for quite a while."


def wrapped(text: str, width: int = 76) -> str:
    return "\r\n".join(text[start : start + width] for start in range(0, len(text), width))


READ = {
    "data URL": URL,
    "data URL in capitals": URL.replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64"),
    "data URL after white space": " \n" * 100 + URL,
    "data URL without a media type": f"data:;base64,{B64}",
    "data URL of another media type": f"data:text/plain;base64,{B64}",
    "data URL with spaces in its header": f"data: image/png; charset=utf-8; base64,{B64}",
    "data URL with parameters": f"data:image/png;a={'x' * 40};base64,{B64}",
    "data URL with a header of more than 1,024 characters": f"data:image/png;a={'x' * 2000};base64,{B64}",
    "data URL, wrapped": f"data:image/png;base64,{wrapped(B64)}",
    "data URL without padding": URL.rstrip("="),
    "data URL of URL-safe base64": URL.translate({ord("+"): "-"}),
    "data URL, percent-encoded": "data:image/png;base64," + quote(B64, safe=""),
    "data URL that is no base64": "data:image/png," + quote(PNG),
    "data URL that is no base64, of no media type": "data:," + quote(PNG),
    "base64": B64,
    "base64 after white space": " \n" * 100 + B64,
    "base64, wrapped": wrapped(B64),
    "base64 without padding": B64.rstrip("="),
    "base64url": B64.translate(URL_SAFE),
    "base64, percent-encoded": quote(B64, safe=""),
    "base64, all of it percent-encoded": "".join(f"%{ord(letter):02x}" for letter in B64),
    "hex": PNG.hex(),
    "hex in capitals": PNG.hex().upper(),
    "hex with a prefix": f"0x{PNG.hex()}",
    "hex, wrapped": wrapped(PNG.hex()),
    "hex with separators": PNG.hex(":"),
}
"""Forms that are opened."""

BROKEN = {
    "two data URLs": URL + URL,
    "data URL with a fragment": f"{URL}#x",
    "data URL with a star": f"{URL[:80]}*{URL[80:]}",
    "data URL with stars only": "data:image/png;base64," + "*".join(B64),
    "data URL with a comma in its header": f'data:image/png;a=",";base64,{B64}',
    "data URL of no media type, with stars": f"data:,{B64[:30]}*{B64[30:60]}*{B64[60:]}",
    "data URL of no media type, with what may be anything": "data: a dog," + "QUFB" * 30,
    "data URL without a comma": f"data:image/png;base64{B64}",
    "data URL of an SVG": "data:image/svg+xml;base64," + to_base64(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "data URL with a line break in its scheme": f"da\nta:image/png;base64,{B64}",
    "data URL after a byte order mark": f"\ufeff{URL}",
    "data URL with words after it": f"{URL} {PROSE}",
    "base64 with a star": f"{B64[:80]}*{B64[80:]}",
    "base64 with words after it": f"{B64} {PROSE}",
    "base64 with dashes in front of it": "-" * 5000 + B64,
    "base64 cut short": B64[:65],
    "hex with a star": f"{PNG.hex()[:80]}*{PNG.hex()[80:]}",
    "hex cut short": PNG.hex()[:65],
}
"""Forms that begin like media and are not opened here; some client may open them."""

TEXTS = {
    "prose": PROSE,
    "a sentence": f"Data: 5 of 10, {PROSE}",
    "a header and nothing behind it": "data:image/png;base64, eh?",
    "an example": "data:image/png;base64,iVBORw0KGgo=",
    "prose about headers": f"Data: the media type is image/png;base64, {PROSE}",
    "a stream of events": 'data: {"choices": [{"delta": {"content": "a, b"}}]}\n\n' * 20,
    "a stream of events with an image": f'data: {{"image": "{URL}"}}\n\n',
    "Markdown": f"![a dot]({URL})",
    "JSON": f'{{"image": "{URL}"}}',
    "prose about base64": f"iVBORw0KGgo is what a PNG in base64 begins with, {PROSE}",
    "prose about hex": f"89504e47 is what a PNG in hex begins with, {PROSE}",
    "an image too small to show anything": B64[:63],
    "a token": "gAAAAAB" + "x" * 100,
    "a digest": "ab" * 32,
    "numbers": "00000000000000000000000000000000" * 4,
    "zeros in base64": to_base64(bytes(100)),
    "a key": to_base64(b"\0\0\0\x07ssh-rsa\0\0\0\x03" + bytes(range(100))),
    "a list": "- one\n- two\n- three\n" * 20,
    "a percent sign": f"%s {PROSE}",
    "nothing": "",
    "white space": " " * 100,
    "HTML in base64": to_base64(b"<html><body><p>Nothing to see, just words.</p></body></html>"),
    "SVG as text": '<svg xmlns="http://www.w3.org/2000/svg"><circle r="50" fill="red"/></svg>' * 2,
}
"""What is text in a place whose text clients make images of."""

FIRST_BYTES = {
    "PDF": b"%PDF-1.7\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v9z"/></svg>',
    "SVG with a declaration": b'<?xml version="1.0"?>\n<!-- ' + b"x" * 500 + b' -->\n<svg xmlns="a">',
    "SVG after white space": b"\xef\xbb\xbf" + b" \n" * 300 + b"<svg width='9'>",
    "SVG with a prefix": b'<s:svg xmlns:s="http://www.w3.org/2000/svg"/>',
    "SVG in UTF-16": "\ufeff<svg xmlns='a'>".encode("utf-16-le"),
    "MP4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "QuickTime": b"\0\0\0\x08wide\0\x12\x34\x56mdat",
    "WebM": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81",
    "AVI": b"RIFF\x24\x10\0\0AVI LIST",
    "MPEG": b"\0\0\1\xba\x44\0\4\0",
    "Ogg": b"OggS\0\2\0\0",
    "FLV": b"FLV\1\5\0\0\0\t",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a\xfa\x1f\x01",
    "JPEG XL in a container": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": b"\xff\x4f\xff\x51\0\x2f",
    "an icon": b"\0\0\1\0\1\0\x10\x10",
    "Photoshop": b"8BPS\0\1\0\0",
    "OpenEXR": b"v/1\1\2\0\0\0",
    "PPM": b"P3\n1 1\n255\n0 0 255\n",
    "XPM": b"/* XPM */\nstatic char *a[] = {",
}


def files() -> dict[str, bytes]:
    """An image in every format that Pillow writes and that has a beginning of its own."""
    Image.init()
    found = {}
    # These begin with sizes, and are known by their names.
    for kind in sorted(set(Image.SAVE) - {"PALM", "SPIDER", "TGA"}):
        for mode in ("RGB", "L", "1"):
            file = io.BytesIO()
            try:
                Image.new(mode, (16, 16)).save(file, kind)
            except (OSError, KeyError, ValueError, RuntimeError):
                continue
            found[kind] = file.getvalue()
            break
    return found


FILES = files()


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_a_form_that_is_opened_gives_the_very_bytes(text):
    for reading in (media_of_value(text), media_of_promoted_text(text)):
        assert reading is not None
        assert reading.read(LIMIT) == PNG


# Of a data URL that is no base64 the guard looks at the size once more.
@pytest.mark.parametrize("name", [name for name in READ if "no base64" not in name])
def test_what_is_too_large_is_not_decoded(name):
    reading = media_of_value(READ[name])
    assert reading is not None
    assert reading.read(len(PNG) - 1) == "too_large"


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_another_image_is_written_in_the_same_form(text):
    reading = media_of_value(text)
    assert reading is not None
    written = reading.write(OTHER, "image/png")
    again = media_of_value(written)
    assert again is not None
    assert again.read(LIMIT) == OTHER
    forms = {"data": to_data_url(OTHER, "image/png"), "8950": OTHER.hex(), "89:5": OTHER.hex(), "0x89": OTHER.hex()}
    assert written == forms.get(text.strip()[:4].lower(), to_base64(OTHER))


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_begins_like_media_and_cannot_be_read_is_media_all_the_same(text):
    for reading in (media_of_value(text), media_of_promoted_text(text)):
        assert reading is not None
        payload = reading.read(LIMIT)
        assert payload != PNG
        assert isinstance(payload, str) or not payload.startswith(b"\x89PNG") or payload == PNG[: len(payload)]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_about_media_is_text(text):
    assert media_of_promoted_text(text) is None
    assert media_of_text(text) is None


@pytest.mark.parametrize("text", [" ".join(B64), "*".join(B64), B64.replace("A", "A\n")])
def test_a_value_is_media_whatever_a_lenient_decoder_skips_in_it(text):
    assert media_of_value(text) is not None


@pytest.mark.parametrize("kind", [*FIRST_BYTES, *FILES])
def test_the_beginning_of_any_image_document_or_video_is_known(kind):
    data = {**FILES, **FIRST_BYTES}[kind].ljust(64, b"\0")
    standard = to_base64(data)
    for text in (standard, standard.translate(URL_SAFE), data.hex(), data.hex().upper(), f"data:,{standard}"):
        for find in (media_of_value, media_of_promoted_text, media_of_text):
            assert find(text) is not None, (kind, text[:20])


@pytest.mark.parametrize(
    "name",
    [
        "data URL",
        "data URL, wrapped",
        "data URL with a header of more than 1,024 characters",
        "base64",
        "base64url",
        "hex",
    ],
)
def test_a_users_text_is_media_only_if_it_is_nothing_else(name):
    assert media_of_text(READ[name]) is not None
    assert media_of_text(f"{READ[name]}\n{PROSE}") is None
    assert media_of_text(f"{READ[name]}.") is None
    assert media_of_text(f"Look: {READ[name]}") is None


@given(st.text(max_size=300))
def test_no_text_is_too_odd(text):
    for find in (media_of_value, media_of_promoted_text, media_of_text):
        if (reading := find(text)) is not None:
            payload = reading.read(LIMIT)
            assert isinstance(payload, bytes | str)


@given(st.lists(st.sampled_from(" \n\r\t*#.:;=\\"), min_size=24, max_size=24))
def test_noise_hides_no_image_from_a_value(noise):
    # Ten letters hold the signature.
    text = "".join(map("".join, zip(noise, B64[:24], strict=True))) + B64[24:]
    assert media_of_value(text) is not None
    assert media_of_value(text.translate(URL_SAFE)) is not None


@given(st.binary(min_size=64, max_size=200), st.sampled_from(["base64", "hex"]))
def test_a_signature_in_front_of_any_bytes_is_seen_and_they_are_read_as_they_are(data, form):
    data = b"\x89PNG\r\n\x1a\n" + data
    text = to_base64(data) if form == "base64" else data.hex()
    reading = media_of_value(text)
    assert reading is not None
    assert reading.read(LIMIT) == data


@pytest.mark.parametrize(
    "hostile",
    [
        "*",
        "-_",
        "%",
        "%41",
        "data:",
        "data:a;base64",
        "i",
        "i V",
        "iV*",
        "8 9",
        "0x",
        " \n",
        "PD94IDxz",
        "3c20",
        "data:a, ",
    ],
)
@pytest.mark.parametrize("head", ["", "data:", "data:image/", "i", "iVBORw0KGgo", "89504e47", "PD94", "\ufeff"])
def test_a_hostile_string_costs_no_more_than_its_length(head, hostile):
    # Each of these would take minutes if its square were paid for.
    text = head + hostile * (500_000 // len(hostile))
    for find in (media_of_value, media_of_promoted_text, media_of_text):
        if (reading := find(text)) is not None:
            reading.read(LIMIT)
