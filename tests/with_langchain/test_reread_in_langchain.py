"""Images with several readings in LangChain: what goes on is the guard's own reading, never the file as it came."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import torch
from agent_chats import Chat, camera
from chat_images import RecordingModel, text
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from local_models import scripted

from content.reread_images import CHANGING_TYPE, LARGE, REREAD, SEE_THROUGH, TURNED, opened, see_through_image, seen
from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.content.screen import UNCHECKED_NOTICE
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.colours import colour_guard, painted
from langchain_guardalign import (
    ChatGuardAlign,
    GuardAlignMiddleware,
    GuardedChatModel,
    ImageDocumentCompressor,
    ImageDocumentTransformer,
    ImageGuard,
)

MARK = {"type": "ephemeral"}
FILTERS = [ImageDocumentTransformer, ImageDocumentCompressor]


@pytest.fixture
def guard(cache_dir):
    return colour_guard(cache_dir)


def block(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image", "base64": to_base64(data), "mime_type": "image/webp", **more}


def expected(guard: Any, data: bytes) -> dict[str, str]:
    """The fields of a block with the guard's reading."""
    result = guard.check(data)
    return {"base64": to_base64(result.output), "mime_type": result.mime_type}


def filtered(kind: Any, guard: Any, document: Document, **settings: Any) -> list[Document]:
    component = kind(guard=guard, **settings)
    if kind is ImageDocumentTransformer:
        return list(component.transform_documents([document]))
    return list(component.compress_documents([document], "a question"))


class TestTheImageGuard:
    @pytest.mark.parametrize("name", REREAD)
    def test_passes_on_the_guards_reading_in_the_same_block_and_puts_it_on_record(self, guard, name):
        image_guard = ImageGuard(guard)
        (message,) = image_guard.invoke([HumanMessage([text("x"), block(REREAD[name], cache_control=MARK)], id="a")])
        assert message.content[1] == block(REREAD[name], cache_control=MARK) | expected(guard, REREAD[name])
        assert message.id == "a"
        (record,) = message.response_metadata["guardalign"]
        assert (record["action"], record["finding"], record["delivery"]) == ("allow", "none", "canonical")
        assert record["delivery_reasons"]

    def test_leaves_it_alone_when_it_comes_back(self, guard):
        first = ImageGuard(guard).invoke([HumanMessage([block(TURNED)])])
        assert ImageGuard(guard).invoke(first) is first

    def test_adds_no_prefix_for_it(self, guard):
        chat = [SystemMessage("Be brief."), HumanMessage([block(SEE_THROUGH)])]
        assert ImageGuard(guard).invoke(chat)[0] is chat[0]

    def test_replaces_it_in_artifacts_too(self, guard):
        artifact = {"photo": TURNED, "raw": [see_through_image()], "url": to_data_url(LARGE, "image/jpeg")}
        chat = [
            HumanMessage("Look"),
            AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c"}]),
            ToolMessage("seen", tool_call_id="c", artifact=artifact),
        ]
        after = ImageGuard(guard, artifacts=True).invoke(chat)[-1].artifact
        assert after["photo"] == guard.check(TURNED).output
        assert seen(after["raw"][0]) == seen(guard.check(see_through_image()).pixels)
        assert after["raw"][0].mode == "RGB"
        assert after["url"] == to_data_url(guard.check(LARGE).output, "image/jpeg")

    def test_says_so_in_its_report(self, guard):
        report = ImageGuard(guard).inspect([HumanMessage([block(TURNED)])])
        assert [(v["delivery"], v["action"]) for v in report.event()["verdicts"]] == [("canonical", "allow")]


class TestModelsAndAgents:
    def test_a_guarded_model_is_given_the_guards_reading(self, guard):
        model = RecordingModel.make()
        GuardedChatModel(model=model, guard=guard).invoke([HumanMessage([text("x"), block(TURNED)])])
        ((message,),) = model.received
        assert message.content == [text("x"), block(TURNED) | expected(guard, TURNED)]

    @pytest.mark.parametrize("persist", [True, False])
    def test_an_agents_model_never_gets_the_original_and_its_state_only_if_it_is_not_kept_clean(self, guard, persist):
        chat = Chat(GuardAlignMiddleware(guard, persist=persist))
        chat.say(HumanMessage([text("What?"), block(TURNED)]))
        chat.say("And now?")
        for received in chat.model.received:
            (message,) = [one for one in received if isinstance(one.content, list)]
            assert message.content[1] == block(TURNED) | expected(guard, TURNED)
        kept = repr(chat.state)
        assert (to_base64(TURNED) in kept) is not persist

    def test_what_a_tool_shows_is_replaced_before_it_is_stored(self, guard):
        tool = camera(see_through_image())
        chat = Chat(GuardAlignMiddleware(guard), tool=tool)
        chat.say("Look")
        (result,) = [message for message in chat.state if isinstance(message, ToolMessage)]
        written = base64.b64decode(result.content[1]["base64"])
        shown = base64.b64decode(tool.invoke({})[1]["base64"])
        assert written == guard.check(shown).output != shown

    @pytest.mark.parametrize("data", [TURNED, SEE_THROUGH], ids=["turned", "see-through"])
    @pytest.mark.parametrize("form", ["base64", "PIL"])
    def test_a_local_model_sees_the_pixels_that_were_scored(self, guard, data, form):
        image = block(data) if form == "base64" else {"type": "image", "image": opened(data)}
        result = guard.check(data)
        lvlm, hook = scripted("words", guard=guard)
        answer = ChatGuardAlign(lvlm=lvlm).invoke([HumanMessage([text("x"), image])])
        plain, plain_hook = scripted("words")
        ChatGuardAlign(lvlm=plain).invoke([HumanMessage([text("x"), {"type": "image", "image": result.pixels}])])
        assert torch.equal(hook.images[0], plain_hook.images[0])
        assert [record["delivery"] for record in answer.response_metadata["guardalign"]] == ["canonical"]


@pytest.mark.parametrize("kind", FILTERS, ids=lambda kind: kind.__name__)
class TestDocuments:
    @pytest.mark.parametrize("mime", CHANGING_TYPE)
    def test_the_guards_reading_takes_the_place_of_the_original(self, guard, kind, mime):
        data = CHANGING_TYPE[mime]
        given = Document(to_base64(data), metadata={"mime_type": "image/webp"})
        (after,) = filtered(kind, guard, given)
        assert after.page_content == to_base64(guard.check(data).output)
        assert after.metadata["mime_type"] == mime
        (record,) = json.loads(after.metadata["guardalign"])
        assert (record["delivery"], record["action"]) == ("canonical", "allow")
        (again,) = filtered(kind, guard, after)
        assert again is after

    def test_a_file_becomes_a_copy_where_there_is_a_folder_for_copies(self, guard, kind, tmp_path):
        original = tmp_path / "photo.jpg"
        original.write_bytes(TURNED)
        given = Document("x", metadata={"source": str(original)})
        (after,) = filtered(kind, guard, given, path_fields=("source",), masked_dir=tmp_path / "copies")
        (copy,) = (tmp_path / "copies").iterdir()
        assert after.metadata["source"] == str(copy)
        assert (copy.suffix, copy.read_bytes()) == (".jpg", guard.check(TURNED).output)

    def test_without_such_a_folder_its_document_is_withheld(self, guard, kind, tmp_path):
        original = tmp_path / "photo.jpg"
        original.write_bytes(TURNED)
        given = Document("x", metadata={"source": str(original)})
        assert filtered(kind, guard, given, path_fields=("source",)) == []
        (after,) = filtered(kind, guard, given, path_fields=("source",), withhold="image")
        assert after.metadata["source"] == UNCHECKED_NOTICE
        assert json.loads(after.metadata["guardalign"])[0]["delivery"] == "none"
        with pytest.raises(UnsafeContentError, match="masked_dir"):
            filtered(kind, guard, given, path_fields=("source",), on_violation="raise")

    def test_it_is_not_where_the_policy_delivers_originals_of_what_is_retrieved(self, cache_dir, kind, tmp_path):
        original = tmp_path / "photo.jpg"
        original.write_bytes(TURNED)
        given = Document("x", metadata={"source": str(original)})
        lax = colour_guard(cache_dir, sources={"retrieved": {"delivery": "original"}})
        (after,) = filtered(kind, lax, given, path_fields=("source",))
        assert after.metadata["source"] == str(original)
        original.write_bytes(encode_png(painted("red")))
        assert filtered(kind, lax, given, path_fields=("source",)) == []
