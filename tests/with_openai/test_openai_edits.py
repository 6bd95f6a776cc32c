"""Images that are edited or made into videos: uploaded in forms, or named in JSON, and read where they arrive."""

from __future__ import annotations

import asyncio
import base64
import email.parser
import email.policy
import inspect
import io

import pytest
from openai import AsyncOpenAI, OpenAI
from openai_ways import HTTPX, MASKED, client_of, same, url
from PIL import Image, ImageDraw

from guardalign_guardrails import GuardAlignError, UnsafeContentError
from guardalign_guardrails.content.bodies import BodyRules
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import canary, leaks
from guardalign_guardrails.testing.colours import colour_guard, painted
from openai_guardalign import guard_client
from openai_guardalign.forms import FormField, read_form, write_form
from openai_guardalign.request_filter import RequestFilter

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 100
TYPE = "multipart/form-data; boundary=b"


@pytest.fixture(params=[OpenAI, AsyncOpenAI])
def raw(request, server) -> OpenAI | AsyncOpenAI:
    return client_of(server, request.param)


def made(value):
    """What a call of a client, sync or async, gives."""

    async def of_awaitable():
        return await value

    return asyncio.run(of_awaitable()) if inspect.isawaitable(value) else value


def post(client, path, fields):
    """Send a form with fields of which the SDK knows nothing."""
    return client.post(path, cast_to=object, files=fields, options={"headers": {"Content-Type": "multipart/form-data"}})


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def transparent(colour="white") -> Image.Image:
    """A mask: an image with a hole."""
    image = painted(colour).convert("RGBA")
    ImageDraw.Draw(image).rectangle((40, 40, 60, 60), fill=(255, 255, 255, 0))
    return image


def parts(request):
    """The parts of a form, read by Python's own parser: names, file names, types, bytes."""
    whole = b"Content-Type: " + request.content_type.encode() + b"\r\n\r\n" + request.raw
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(whole)
    return [
        (
            part.get_param("name", header="content-disposition"),
            part.get_filename(),
            part.get_content_type() if "content-type" in part else None,
            part.get_payload(decode=True),
        )
        for part in message.iter_parts()
    ]


def files(request):
    return [Image.open(io.BytesIO(data)).convert("RGB") for _, filename, _, data in parts(request) if filename]


EDITS = {
    "images.edit": lambda client, image: client.images.edit(image=image, prompt="add a hat", model="m"),
    "images.edit, several": lambda client, image: client.images.edit(image=[image], prompt="add a hat", model="m"),
    "images.edit, stream": lambda client, image: client.images.edit(image=image, prompt="p", stream=True),
    "images.create_variation": lambda client, image: client.images.create_variation(image=image, n=2),
    "videos.create": lambda client, image: client.videos.create(prompt="it walks", input_reference=image),
}


class TestForms:
    @pytest.mark.parametrize("call", EDITS.values(), ids=EDITS)
    def test_an_unsafe_image_never_arrives_and_the_masked_one_does(self, raw, server, checks, call):
        found = []
        client = guard_client(raw, checks, on_verdicts=found.append)
        made(call(client, ("mine.webp", encode_png(painted("red")), "image/webp")))
        assert same(*files(server.last), MASKED)
        names = [(filename, kind) for _, filename, kind, _ in parts(server.last) if filename]
        assert names == [("mine.png", "image/png")]
        assert encode_png(painted("red")) not in server.last.raw
        assert [[verdict.action for verdict in each] for each in found] == [["mask"]]

    @pytest.mark.parametrize("call", EDITS.values(), ids=EDITS)
    def test_the_other_fields_stay(self, raw, server, checks, call):
        image = ('\u00e4 "1".png', encode_png(painted("red")), "image/png")
        for client in (raw, guard_client(raw, checks)):
            made(call(client, image))
        before, after = ([part[:3] for part in parts(request)] for request in server.requests)
        assert before == after
        others = [[part for part in parts(request) if part[1] is None] for request in server.requests]
        assert others[0] == others[1]

    @pytest.mark.parametrize("call", EDITS.values(), ids=EDITS)
    def test_a_blocked_one_is_an_error_and_no_request(self, raw, server, checks, call):
        for colour in ("blue", "yellow"):
            with pytest.raises(UnsafeContentError) as raised:
                made(call(guard_client(raw, checks, route_to="other"), encode_png(painted(colour))))
            assert raised.value.verdict.action in ("block", "route")
        assert server.requests == []

    @pytest.mark.parametrize("call", EDITS.values(), ids=EDITS)
    def test_harmless_ones_are_sent_as_they_were_written(self, raw, server, checks, call):
        image = ("a.png", encode_png(painted("white")), "image/png")
        for client in (raw, guard_client(raw, checks)):
            made(call(client, image))
        boundaries = [request.content_type.encode().partition(b"boundary=")[2] for request in server.requests]
        one, other = (request.raw.replace(b, b"-") for request, b in zip(server.requests, boundaries, strict=True))
        assert one == other

    def test_some_of_several_are_masked_in_their_places(self, raw, server, checks):
        images = [encode_png(painted(colour)) for colour in ("white", "red", "magenta")]
        made(guard_client(raw, checks).images.edit(image=images, prompt="p"))
        expected = [painted("white"), MASKED, painted("magenta")]
        assert [same(one, other) for one, other in zip(files(server.last), expected, strict=True)] == [True] * 3

    def test_an_open_file_is_read_where_it_is_sent(self, raw, server, checks, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(encode_png(painted("red")))
        with path.open("rb") as file:
            made(guard_client(raw, checks).images.edit(image=file, prompt="p"))
        assert same(*files(server.last), MASKED)

    @pytest.mark.parametrize("form", ["data URL", "base64", "file without a name", "file of another field"])
    def test_images_in_the_other_shapes_of_a_form_are_found(self, raw, server, checks, form):
        data = encode_png(painted("red"))
        field = {
            "data URL": ("input_reference[image_url]", (None, url(painted("red")))),
            "base64": ("image", (None, base64.b64encode(data).decode())),
            "file without a name": ("image", (None, data)),
            "file of another field": ("model", ("a.png", data, "image/png")),
        }[form]
        made(post(guard_client(raw, checks), "/images/edits", [field]))
        (_, _, _, arrived), *_ = parts(server.last)
        if form in ("data URL", "base64"):
            arrived = base64.b64decode(arrived.partition(b",")[2] or arrived)
        assert same(Image.open(io.BytesIO(arrived)), MASKED)

    @pytest.mark.parametrize(
        "fields",
        [
            [("input_reference[image_url]", (None, "https://example.org/a.png"))],
            [("input_reference[file_id]", (None, "file-1"))],
            [("image[0][image_url]", (None, "https://example.org/a.png"))],
            [("video", ("a.mp4", MP4, "video/mp4"))],
            [("image", ("a.pdf", b"%PDF-1.7 " + b"0" * 100, "application/pdf"))],
        ],
    )
    def test_what_cannot_be_opened_is_an_error_unless_the_policy_lets_it_pass(self, raw, server, cache_dir, fields):
        found = []
        strict = guard_client(raw, colour_guard(cache_dir), on_verdicts=found.extend)
        with pytest.raises(UnsafeContentError) as raised:
            made(post(strict, "/videos", fields))
        assert found == [raised.value.verdict]
        assert raised.value.verdict.finding == "unchecked"
        assert server.requests == []
        lenient = colour_guard(cache_dir, failure={"uninspectable": "allow"})
        made(post(guard_client(raw, lenient), "/videos", fields))
        assert fields[0][1][1] in (parts(server.last)[0][3], parts(server.last)[0][3].decode("latin-1"))

    def test_text_alone_is_left_alone(self, raw, server, checks):
        client = guard_client(raw, checks)
        made(client.videos.create(prompt="data:image/png;base64, is how it begins", model="m", seconds="4"))
        made(client.post("/videos/edits", cast_to=object, body={"prompt": "an image", "video": {"id": "video_1"}}))
        made(client.images.generate(prompt="an image of a cat"))
        assert len(server.requests) == 3

    def test_sound_is_passed_through_untouched(self, raw, server, checks):
        for client in (raw, guard_client(raw, checks)):
            made(client.audio.transcriptions.create(file=("a.wav", b"RIFF0000WAVE"), model="m"))
        assert [part[:4] for part in parts(server.requests[0])] == [part[:4] for part in parts(server.requests[1])]

    def test_monitoring_changes_nothing(self, raw, server, cache_dir):
        found = []
        client = guard_client(raw, colour_guard(cache_dir, mode="monitor"), on_verdicts=found.extend)
        made(client.images.edit(image=encode_png(painted("blue")), mask=png(transparent("red")), prompt="p"))
        assert [data for _, name, _, data in parts(server.last) if name] == [
            encode_png(painted("blue")),
            png(transparent("red")),
        ]
        assert [verdict.proposed for verdict in found] == ["block", "mask"]

    def test_a_signed_form_is_not_changed(self, raw, server, checks):
        client = guard_client(raw, checks).with_options(default_headers={"Authorization": "AWS4-HMAC-SHA256 a"})
        with pytest.raises(GuardAlignError, match="signed"):
            made(client.images.edit(image=encode_png(painted("red")), prompt="p"))
        assert server.requests == []

    def test_no_image_is_in_what_is_raised(self, raw, checks):
        image = canary("blue")
        with pytest.raises(UnsafeContentError) as raised:
            made(guard_client(raw, checks).images.edit(image=encode_png(image), prompt="p"))
        assert leaks(f"{raised.value!r} {raised.value.__context__!r}", image) == []


class TestMasks:
    """Their transparency says what may be edited, which no reading of the guard's own keeps."""

    @pytest.mark.parametrize("kind", ["mask", "markup"])
    def test_one_whose_readings_may_all_pass_stays_as_it_is(self, raw, server, checks, kind):
        mask, images = png(transparent()), [encode_png(painted("red"))]
        fields = [("image[]", ("a.png", images[0], "image/png")), (kind, ("m.png", mask, "image/png"))]
        made(post(guard_client(raw, checks), "/images/edits", fields))
        (_, _, _, image), (name, filename, _, arrived) = parts(server.last)
        assert (name, filename, arrived) == (kind, "m.png", mask)
        assert same(Image.open(io.BytesIO(image)), MASKED)

    def test_one_that_would_be_changed_is_an_error(self, raw, server, checks):
        hidden = painted("red").convert("RGBA")
        hidden.putalpha(0)
        for mask in (transparent("red"), painted("red"), transparent("blue"), hidden):
            with pytest.raises(UnsafeContentError) as raised:
                made(guard_client(raw, checks).images.edit(image=png(painted()), mask=png(mask), prompt="p"))
            assert raised.value.verdict.action in ("mask", "block")
        assert server.requests == []

    def test_so_is_one_with_readings_that_nobody_looked_at(self, raw, server, checks):
        """A second frame, say: only what transparency leaves open was scored as it is."""
        frames = [transparent(), transparent().rotate(90)]
        buffer = io.BytesIO()
        frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
        with pytest.raises(UnsafeContentError) as raised:
            made(guard_client(raw, checks).images.edit(image=png(painted()), mask=buffer.getvalue(), prompt="p"))
        assert "alpha" in raised.value.verdict.delivery_reasons
        assert server.requests == []

    def test_one_in_json_stays_too_unless_servers_may_read_another_image_there(self, raw, server, checks):
        plain = "data:image/png;base64," + base64.b64encode(png(transparent())).decode()
        client = guard_client(raw, checks)
        body = {"images": [{"image_url": url(painted("red"))}], "mask": {"image_url": plain}, "prompt": "p"}
        made(client.post("/images/edits", cast_to=object, body=body))
        assert server.last.body["mask"] == {"image_url": plain}
        with pytest.raises(UnsafeContentError):
            made(client.post("/images/edits", cast_to=object, body={**body, "mask": plain.replace("/", "%2F")}))
        assert len(server.requests) == 1


class TestJson:
    @pytest.mark.parametrize(
        ("path", "body", "place"),
        [
            (
                "/images/edits",
                lambda image: {"images": [{"image_url": image}], "prompt": "p"},
                ("images", 0, "image_url"),
            ),
            ("/images/edits", lambda image: {"image": image}, ("image",)),
            ("/videos", lambda image: {"input_reference": {"image_url": image}}, ("input_reference", "image_url")),
            (
                "/videos/v_1/remix",
                lambda image: {"input_reference": {"image_url": image}},
                ("input_reference", "image_url"),
            ),
        ],
    )
    def test_images_are_masked_where_they_stand_and_blocked_ones_an_error(self, raw, server, checks, path, body, place):
        client = guard_client(raw, checks)
        made(client.post(path, cast_to=object, body=body(url(painted("red")))))
        arrived = server.last.body
        for key in place:
            arrived = arrived[key]
        assert same(Image.open(io.BytesIO(base64.b64decode(arrived.partition(",")[2]))), MASKED)
        assert list(server.last.body) == list(body(""))
        with pytest.raises(UnsafeContentError):
            made(client.post(path, cast_to=object, body=body(url(painted("blue")))))
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "body",
        [
            {"images": [{"image_url": "https://example.org/a.png"}]},
            {"images": [{"file_id": "file-1"}]},
            {"mask": {"file_id": "file-1"}},
            {"images": {"several": ["things"], "image_url": "https://example.org/a.png"}},
        ],
    )
    def test_what_is_elsewhere_is_an_error(self, raw, server, checks, body):
        with pytest.raises(UnsafeContentError):
            made(guard_client(raw, checks).post("/images/edits", cast_to=object, body={**body, "prompt": "p"}))
        assert server.requests == []

    def test_harmless_ones_are_sent_as_they_were_written(self, raw, server, checks):
        body = {"images": [{"image_url": url(painted())}, {"image_url": url(painted("magenta"))}], "prompt": "\u00e4"}
        for client in (raw, guard_client(raw, checks)):
            made(client.post("/images/edits", cast_to=object, body=body))
        assert server.requests[0].raw == server.requests[1].raw


class TestReading:
    FIELDS = (
        FormField("prompt", b"a hat"),
        FormField("image[]", b"\0\xff\r\n", "\xe4.png", "image/png"),
        FormField("back\\slash", b""),
    )

    def test_a_form_is_read_as_it_is_written(self):
        assert read_form(write_form(self.FIELDS, TYPE), TYPE) == self.FIELDS

    @pytest.mark.parametrize(
        "change",
        [
            lambda form: form.replace(b"a hat", b"a\r\n--b hat"),
            lambda form: form[:-2],
            lambda form: form[:-4],
            lambda form: form + b"more",
            lambda form: b"before\r\n" + form,
            lambda form: form.replace(b"form-data", b"attachment"),
            lambda form: form.replace(b"Content-Type:", b"content-type:"),
            lambda form: form.replace(b"Content-Type:", b"Content-Transfer-Encoding: base64\r\nContent-Type:"),
            lambda form: form.replace(b'name="image[]"', b'name="text"; name="image[]"'),
            lambda form: form.replace(b"filename=", b"filename*=utf-8''other; filename="),
            lambda form: form.replace(b"\r\nContent-Type: image/png", b"\nContent-Type: image/png"),
            lambda form: form.replace(b"--b\r\n", b"--b \r\n", 1),
            lambda form: form.replace(b'name="prompt"', b"name=prompt"),
            lambda form: form.replace(b'Content-Disposition: form-data; name="prompt"', b"X: y"),
            lambda form: b"",
        ],
    )
    def test_one_that_a_server_may_read_in_another_way_is_not_read(self, change):
        form = write_form(self.FIELDS, TYPE)
        assert change(form) != form
        assert read_form(change(form), TYPE) is None

    @pytest.mark.parametrize(
        "kind",
        [
            "multipart/mixed; boundary=b",
            "multipart/form-data",
            TYPE + "; charset=utf-7",
            "multipart/form-data; charset=utf-7; boundary=b",
            TYPE + "; boundary=c",
            "text/plain",
        ],
    )
    def test_nor_is_one_of_another_type(self, kind):
        assert read_form(write_form(self.FIELDS, TYPE), kind) is None

    async def test_such_a_request_follows_the_rule_for_what_cannot_be_opened(self, checks):
        form = write_form([FormField("image", encode_png(painted("red")), "a.png", "image/png")], TYPE)
        requests = RequestFilter(checks, BodyRules(), None)

        def request(content):
            url = "https://api.openai.com/v1/images/edits"
            return HTTPX.Request("POST", url, content=content, headers={"Content-Type": TYPE})

        with pytest.raises(UnsafeContentError) as raised:
            requests.passed(request(form + b"more"))
        assert raised.value.verdict.uninspectable == "malformed"
        with pytest.raises(UnsafeContentError):
            await requests.apassed(request(form + b"more"))
        for passed in (requests.passed(request(form)), await requests.apassed(request(form))):
            (field,) = read_form(passed.content, TYPE)
            assert same(Image.open(io.BytesIO(field.data)), MASKED)

    async def test_a_body_that_comes_in_pieces_is_read_whole(self, checks):
        form = write_form([FormField("image", encode_png(painted("red")), "a.png", "image/png")], TYPE)
        url = "https://api.openai.com/v1/images/edits"

        async def pieces():
            for start in range(0, len(form), 100):
                yield form[start : start + 100]

        given = HTTPX.Request("POST", url, content=pieces(), headers={"Content-Type": TYPE})
        assert given.headers["transfer-encoding"] == "chunked"
        passed = await RequestFilter(checks, BodyRules(), None).apassed(given)
        assert same(Image.open(io.BytesIO(read_form(passed.content, TYPE)[0].data)), MASKED)
        assert "transfer-encoding" not in passed.headers
        assert int(passed.headers["content-length"]) == len(passed.content)
