"""Retrieved nodes: which pass, which pass masked, which are withheld, and that nothing leads to the original."""

from __future__ import annotations

import asyncio
import copy
import json
import mimetypes
import pickle
import re
import threading
import time

import pytest
from llama_images import data_url, image_of, png, saved
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_nodes import NODES, b64, images_of
from llama_seen import Tracer, same_pixels

from guardalign_guardrails import Guard, GuardSettings, NotPicklable, SettingsError, UnsafeContentError
from guardalign_guardrails.content.documents.records import ACTION_KEY, RECORD_KEY
from guardalign_guardrails.content.screen import NOTICE, UNCHECKED_NOTICE
from guardalign_guardrails.testing.chats import canary, leaks, number_of, shows
from guardalign_guardrails.testing.colours import ColourEncoder, colour_guard
from llama_index_guardalign import GuardVerdictEvent, ImageGuardPostprocessor
from llama_index_guardalign.nodes.images import without_all_images
from llama_index_guardalign.nodes.postprocessor import NOTE

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
EVERY_NODE = pytest.mark.parametrize("kind", NODES.values(), ids=NODES)


@pytest.fixture
def postprocessor(guard):
    return ImageGuardPostprocessor(guard=guard)


class Lock(BaseCallbackHandler):
    """Listens to LlamaIndex, and does not pickle."""

    def __init__(self):
        super().__init__([], [])
        self.lock = threading.Lock()

    def on_event_start(self, *args, **kwargs):
        return ""

    def on_event_end(self, *args, **kwargs):
        pass

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, trace_id=None, trace_map=None):
        pass


def scored(*nodes):
    return [NodeWithScore(node=node, score=0.9 - number / 10) for number, node in enumerate(nodes)]


def passed(postprocessor, *nodes):
    return [one.node for one in postprocessor.postprocess_nodes(scored(*nodes))]


@EVERY_NODE
class TestAnImageInAnyNode:
    def test_is_masked_and_no_way_leads_to_the_original(self, postprocessor, kind, tmp_path):
        (node,) = passed(postprocessor, kind(RED, tmp_path))
        images = images_of(node)
        assert images
        assert [(number_of(image), shows(image, "red")) for image in images] == [(1, False)] * len(images)

    def test_is_withheld_with_its_node_if_it_is_blocked(self, postprocessor, kind, tmp_path):
        assert passed(postprocessor, kind(BLUE, tmp_path)) == []

    def test_or_is_cut_out_of_it_and_the_words_stay(self, guard, kind, tmp_path):
        postprocessor = ImageGuardPostprocessor(guard=guard, withhold="image")
        (node,) = passed(postprocessor, kind(BLUE, tmp_path))
        assert images_of(node) == []
        assert node.get_content() == "words"
        blocks = node.get_content_blocks(metadata_mode=MetadataMode.LLM)
        assert all(isinstance(block, TextBlock) for block in blocks)
        assert leaks(repr(node), BLUE) == []

    def test_stays_in_the_very_same_node_if_it_is_harmless(self, postprocessor, kind, tmp_path):
        nodes = scored(kind(WHITE, tmp_path))
        (after,) = postprocessor.postprocess_nodes(nodes)
        assert after is nodes[0]

    def test_is_never_changed_in_place(self, guard, kind, tmp_path):
        for withhold in ("document", "image"):
            for image in (RED, BLUE):
                node = kind(image, tmp_path)
                before, files = repr(node), {path: path.read_bytes() for path in tmp_path.iterdir()}
                postprocessor = ImageGuardPostprocessor(guard=guard, withhold=withhold)
                passed(postprocessor, node)
                assert repr(node) == before
                assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files

    async def test_is_treated_the_same_async(self, postprocessor, kind, tmp_path):
        nodes = scored(kind(RED, tmp_path), kind(BLUE, tmp_path / ".."), TextNode(text="x"))
        after = await postprocessor.apostprocess_nodes(nodes)
        assert len(after) == 2
        assert after[1] is nodes[2]


class TestWhatANodeKeeps:
    def test_ids_scores_order_relationships_and_metadata(self, postprocessor):
        related = {
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="n"),
        }
        node = ImageNode(
            id_="one",
            image=b64(RED),
            text="a photo",
            metadata={"page": 3},
            relationships=related,
            embedding=[0.1, 0.2],
            excluded_llm_metadata_keys=["page"],
        )
        nodes = scored(TextNode(text="before"), node, TextNode(text="after"))
        after = postprocessor.postprocess_nodes(nodes)
        assert [one.score for one in after] == [one.score for one in nodes]
        assert (after[0], after[2]) == (nodes[0], nodes[2])
        masked = after[1].node
        assert (masked.id_, masked.text, masked.relationships, masked.embedding) == (
            "one",
            "a photo",
            related,
            [0.1, 0.2],
        )
        assert masked.metadata["page"] == 3
        assert masked.image_mimetype == "image/png"
        assert masked.relationships is not node.relationships

    def test_its_class(self, guard, tmp_path):
        for kind in NODES.values():
            node = kind(RED, tmp_path)
            (after,) = passed(ImageGuardPostprocessor(guard=guard), node)
            assert type(after) is type(node)

    def test_an_image_node_without_its_image_is_a_text_node_since_nothing_else_could_read_it(self, guard):
        node = ImageNode(id_="one", image=b64(BLUE), metadata={"page": 3}, embedding=[0.5])
        (after,) = passed(ImageGuardPostprocessor(guard=guard, withhold="image"), node)
        assert type(after) is TextNode
        assert (after.id_, after.text, after.metadata["page"], after.embedding) == ("one", NOTICE, 3, [0.5])

    def test_records_of_findings_stay_out_of_prompts_and_embeddings(self, postprocessor):
        (masked, clean) = passed(
            postprocessor, ImageNode(image=b64(RED), text="a"), ImageNode(image=b64(WHITE), text="b")
        )
        assert masked.metadata[ACTION_KEY] == "mask"
        assert clean.metadata == {}
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert masked.get_content(mode) == "a"
        assert leaks(masked.metadata[RECORD_KEY]) == []
        (again,) = passed(postprocessor, masked)
        assert again is masked


class TestSeveralWaysToOneImage:
    def test_after_a_mask_one_is_left(self, postprocessor, tmp_path):
        path = str(saved(RED, tmp_path))
        node = ImageNode(
            image=b64(RED), image_path=path, image_url="https://example.org/x.png", metadata={"file_path": path}
        )
        (masked,) = passed(postprocessor, node)
        assert (masked.image_path, masked.image_url) == (None, None)
        assert "file_path" not in masked.metadata
        assert path not in repr(masked)

    def test_the_path_of_a_page_that_is_no_image_stays(self, postprocessor):
        node = ImageNode(image=b64(RED), metadata={"file_path": "/data/report.pdf"})
        (masked,) = passed(postprocessor, node)
        assert masked.metadata["file_path"] == "/data/report.pdf"

    def test_a_url_beside_harmless_bytes_is_gone_since_some_models_are_sent_it(self, postprocessor, tmp_path):
        path = str(saved(WHITE, tmp_path))
        for node in (
            ImageNode(image=b64(WHITE), image_path=path, image_url=data_url(BLUE)),
            ImageNode(image_path=path, image_url="https://example.org/x.png"),
        ):
            (after,) = passed(postprocessor, node)
            assert (after.image_url, after.image_path) == (None, path)
        resource = MediaResource(data=png(WHITE), url="https://example.org/x.png")
        (after,) = passed(postprocessor, Node(image_resource=resource))
        assert after.image_resource.url is None
        assert after.image_resource.data == resource.data

    @pytest.mark.parametrize("name", ["scan", "scan.jfif", "scan.webp"])
    def test_a_file_that_llama_index_would_open_is_an_image_whatever_its_name(
        self, postprocessor, name, tmp_path, monkeypatch
    ):
        # Without the operating system's list, older Pythons know fewer names.
        monkeypatch.setattr(mimetypes, "_db", mimetypes.MimeTypes())
        path = str(saved(BLUE, tmp_path, name))
        assert passed(postprocessor, ImageNode(text="a", metadata={"file_path": path})) == []
        for node in (ImageNode(metadata={"file_path": path}), ImageNode(image=b64(RED), metadata={"file_path": path})):
            saved(RED, tmp_path, name)
            (masked,) = passed(postprocessor, node)
            assert path not in repr(masked)
            assert not any(shows(image, "red") for image in images_of(masked))

    def test_a_url_beside_such_a_file_is_gone_too(self, postprocessor, tmp_path):
        path = str(saved(WHITE, tmp_path))
        node = ImageNode(image_url="https://example.org/x.png", metadata={"file_path": path})
        (after,) = passed(postprocessor, node)
        assert (after.image_url, after.metadata["file_path"]) == (None, path)

    def test_a_masked_image_survives_a_store(self, postprocessor):
        (masked,) = passed(postprocessor, ImageNode(image=b64(RED)))
        (image, *_) = images_of(ImageNode.from_dict(masked.to_dict()))
        assert (number_of(image), shows(image, "red")) == (1, False)

    def test_a_masked_resource_survives_one_in_a_file_of_its_own(self, guard, tmp_path):
        path = saved(RED, tmp_path)
        postprocessor = ImageGuardPostprocessor(guard=guard, masked_dir=tmp_path / "masked")
        node = Node(image_resource=MediaResource(path=path))
        (masked,) = passed(postprocessor, node)
        (image, *_) = images_of(Node.from_dict(masked.to_dict()))
        assert (number_of(image), shows(image, "red")) == (1, False)
        assert same_pixels(images_of(node)[0], RED)
        passed(postprocessor, node)
        assert len(list((tmp_path / "masked").iterdir())) == 1


class TestWhatNobodyCanLookAt:
    NODES = (
        ImageNode(image_url="https://example.org/x.png", text="a"),
        ImageNode(image="not an image!", text="b"),
        ImageNode(image_path="/nowhere/x.png", text="c"),
        ImageNode(image_path="//host/share/x.png", text="d"),
        Node(video_resource=MediaResource(url="https://example.org/x.mp4")),
        Node(audio_resource=MediaResource(data=b"ID3...")),
        Document(text="e", image_resource=MediaResource(url="https://example.org/x.png")),
    )

    def test_is_withheld_by_default(self, postprocessor):
        assert passed(postprocessor, *self.NODES) == []

    def test_passes_if_the_policy_lets_it(self, cache_dir):
        lenient = colour_guard(cache_dir, failure={"uninspectable": "allow"})
        after = passed(ImageGuardPostprocessor(guard=lenient), *self.NODES)
        assert [node.id_ for node in after] == [node.id_ for node in self.NODES]
        for node in after:
            (record,) = json.loads(node.metadata[RECORD_KEY])
            assert (record["finding"], record["action"]) == ("unchecked", "allow")
            assert record["reason"]
            assert passed(ImageGuardPostprocessor(guard=lenient), node)[0] is node

    def test_can_be_cut_out(self, guard):
        after = passed(ImageGuardPostprocessor(guard=guard, withhold="image"), *self.NODES)
        assert len(after) == len(self.NODES)
        assert all(block.block_type == "text" for node in after for block in node.get_content_blocks())
        assert [node.get_content() for node in after[4:6]] == [UNCHECKED_NOTICE, UNCHECKED_NOTICE]


def markdown(image, before="words ", after=" and more"):
    return f"{before}![a photo]({data_url(image)}){after}"


TEXTS = {
    "a text node": lambda text: TextNode(text=text),
    "a document": lambda text: Document(text=text),
    "a node": lambda text: Node(text_resource=MediaResource(text=text)),
    "an image node": lambda text: ImageNode(image=b64(WHITE), text=text),
    "an index node that leads to a text node": lambda text: IndexNode(
        text="words", index_id="i", obj=TextNode(text=text)
    ),
}


def text_of(node):
    return text_of(node.obj) if isinstance(node, IndexNode) else getattr(node, "text", "") or node.text_resource.text


@pytest.mark.parametrize("kind", TEXTS.values(), ids=TEXTS)
class TestAnImageEncodedInText:
    def test_is_masked_where_it_is(self, postprocessor, kind):
        node = kind(markdown(RED))
        before = repr(node)
        (after,) = passed(postprocessor, node)
        assert repr(node) == before
        masked = re.fullmatch(r"words !\[a photo\]\((.*)\) and more", text_of(after))[1]
        image = image_of(ImageBlock(url=masked))
        assert (number_of(image), shows(image, "red")) == (1, False)
        assert type(after) is type(node)

    def test_is_withheld_with_its_node_or_alone(self, guard, postprocessor, kind):
        assert passed(postprocessor, kind(markdown(BLUE)), kind(b64(BLUE))) == []
        (after,) = passed(ImageGuardPostprocessor(guard=guard, withhold="image"), kind(markdown(BLUE)))
        assert text_of(after) == f"words ![a photo]({NOTICE}) and more"

    def test_stays_in_the_very_same_node_if_it_is_harmless(self, postprocessor, kind):
        nodes = scored(kind(markdown(WHITE)))
        assert postprocessor.postprocess_nodes(nodes)[0] is nodes[0]

    def test_is_not_in_what_is_traced(self, kind):
        node = kind(markdown(RED))
        assert leaks(repr(without_all_images(node, "[omitted]")), RED) == []


class TestAnImageInMetadata:
    @pytest.mark.parametrize(
        ("put", "read"),
        [
            (lambda image: markdown(image), lambda value: re.search(r"\((data.*?)\)", value)[1]),
            (
                lambda image: [{"html": f'<img src="{data_url(image)}">'}],
                lambda v: re.search('"(.*)"', v[0]["html"])[1],
            ),
            (lambda image: {"a": [b64(image)]}, lambda value: f"data:image/png;base64,{value['a'][0]}"),
        ],
    )
    def test_is_found_at_any_depth_and_within_text(self, guard, postprocessor, put, read):
        assert passed(postprocessor, TextNode(text="words", metadata={"x": put(BLUE)})) == []
        (after,) = passed(postprocessor, TextNode(text="words", metadata={"x": put(RED), "page": 3}))
        image = image_of(ImageBlock(url=read(after.metadata["x"])))
        assert (number_of(image), shows(image, "red"), after.metadata["page"]) == (1, False, 3)

    def test_that_has_no_end_is_a_finding(self, postprocessor):
        loop: list[object] = ["words"]
        loop.append(loop)
        assert passed(postprocessor, TextNode(text="words").model_copy(update={"metadata": {"x": loop}})) == []

    def test_is_masked_beside_the_nodes_own_image(self, postprocessor):
        node = ImageNode(image=b64(RED), text=markdown(RED), metadata={"x": data_url(RED), "file_path": "/x/y.png"})
        (after,) = passed(postprocessor, node)
        assert "file_path" not in after.metadata
        for url in (f"data:image/png;base64,{after.image}", after.metadata["x"], text_of(after)[17:-10]):
            assert not shows(image_of(ImageBlock(url=url)), "red")


class TestWords:
    def test_nodes_of_words_are_the_very_same_and_no_encoder_is_loaded(self):
        postprocessor = ImageGuardPostprocessor(guard=GuardSettings(encoder="transformers:no/such-encoder"))
        nodes = scored(
            TextNode(text="a", metadata={"url": "https://example.org", "file_path": "/x/y.png", "n": 1}),
            Document(text="b"),
            IndexNode(text="c", index_id="c", obj=None),
            ImageNode(text="d"),
            TextNode(text="data:image/png;base64,AAAA"),
        )
        after = postprocessor.postprocess_nodes(nodes)
        assert all(new is old for new, old in zip(after, nodes, strict=True))


class TestWhenNothingIsLeft:
    def test_the_list_is_empty_by_default(self, postprocessor):
        assert passed(postprocessor, ImageNode(image=b64(BLUE))) == []

    def test_a_note_may_stand_there_that_later_postprocessors_keep(self, guard):
        postprocessor = ImageGuardPostprocessor(guard=guard, on_empty="note")
        (note,) = postprocessor.postprocess_nodes(scored(ImageNode(image=b64(BLUE))))
        assert note.node.get_content() == NOTE
        assert SimilarityPostprocessor(similarity_cutoff=0.5).postprocess_nodes([note]) == [note]
        assert postprocessor.postprocess_nodes([]) == []
        assert len(passed(postprocessor, ImageNode(image=b64(BLUE)), TextNode(text="x"))) == 1

    def test_or_an_error_is_raised(self, guard):
        postprocessor = ImageGuardPostprocessor(guard=guard, on_empty="raise")
        with pytest.raises(UnsafeContentError):
            passed(postprocessor, ImageNode(image=b64(BLUE)))

    def test_an_error_may_be_raised_for_any_withheld_image_and_is_announced(self, guard):
        postprocessor = ImageGuardPostprocessor(guard=guard, on_violation="raise")
        with Tracer() as tracer, pytest.raises(UnsafeContentError) as caught:
            passed(postprocessor, TextNode(text="x"), ImageNode(image=b64(BLUE)), ImageNode(image=b64(WHITE)))
        assert caught.value.verdict.action == "block"
        (event,) = tracer.of(GuardVerdictEvent)
        assert [verdict["action"] for verdict in event.verdicts] == ["block", "allow"]


class TestThePostprocessor:
    def test_images_of_a_call_make_one_batch(self, cache_dir):
        guard = colour_guard(cache_dir)
        passed(ImageGuardPostprocessor(guard=guard), *(ImageNode(image=b64(canary(number=n))) for n in range(5)))
        crops = guard.detector.encoder.calls
        assert len(crops) == 1

    def test_images_of_many_nodes_are_not_in_memory_at_once(self, guard, monkeypatch):
        sizes = []
        real = guard.checking

        def counted(images, *, source):
            sizes.append(len(images))
            return real(images, source=source)

        monkeypatch.setattr(guard, "checking", counted)
        nodes = [ImageNode(image=b64(WHITE), text=str(number)) for number in range(150)]
        after = passed(ImageGuardPostprocessor(guard=guard), *nodes)
        assert [node.text for node in after] == [node.text for node in nodes]
        assert sizes == [64, 64, 22]

    async def test_it_does_not_block_the_event_loop(self, guard, monkeypatch):
        real = guard.checking

        def slow(images, *, source):
            time.sleep(0.3)
            return real(images, source=source)

        monkeypatch.setattr(guard, "checking", slow)
        task = asyncio.create_task(
            ImageGuardPostprocessor(guard=guard).apostprocess_nodes(scored(ImageNode(image=b64(RED))))
        )
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 5
        assert len(await task) == 1

    def test_nodes_of_one_id_have_verdicts_of_their_own(self, postprocessor):
        masked, clean = passed(postprocessor, *(ImageNode(id_="one", image=b64(image)) for image in (RED, WHITE)))
        assert not shows(images_of(masked)[0], "red")
        assert same_pixels(images_of(clean)[0], WHITE)

    def test_its_callback_manager_can_be_set_as_engines_do(self, postprocessor):
        manager = CallbackManager([])
        postprocessor.callback_manager = manager
        assert postprocessor.callback_manager is manager

    def test_it_is_dumped_with_its_policy_and_comes_back(self, guard, tmp_path):
        postprocessor = ImageGuardPostprocessor(guard=guard, withhold="image", masked_dir=tmp_path)
        text = postprocessor.to_json()
        back = ImageGuardPostprocessor.from_json(text)
        assert back.to_json() == text
        assert back.guard.policy == guard.policy

    def test_a_guard_is_given_in_any_of_the_usual_ways(self, guard, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_text(guard.policy.to_yaml())
        for way in (guard, guard.policy, path, str(path), GuardSettings(policy=guard.policy)):
            assert ImageGuardPostprocessor(guard=way).guard.policy == guard.policy
        assert ImageGuardPostprocessor(guard=guard).guard.guard is guard
        assert ImageGuardPostprocessor(guard=None).guard == ImageGuardPostprocessor().guard
        with pytest.raises(SettingsError):
            ImageGuardPostprocessor(guard=3)

    def test_what_only_an_answer_can_do_is_refused(self, guard):
        with pytest.raises(SettingsError, match="refuse"):
            ImageGuardPostprocessor(guard=guard, on_violation="refuse")

    @pytest.mark.parametrize("is_used", [False, True])
    def test_a_copy_has_its_guard(self, guard, is_used):
        postprocessor = ImageGuardPostprocessor(
            guard=guard, withhold="image", callback_manager=CallbackManager([Lock()])
        )
        node = ImageNode(image=b64(BLUE), text="words")
        if is_used:
            passed(postprocessor, node)
        sent = pickle.loads(pickle.dumps(postprocessor))
        assert sent.guard.guard is not guard
        assert (
            copy.deepcopy(postprocessor.model_copy(update={"callback_manager": CallbackManager([])})).guard.guard
            is guard
        )
        assert [type(one) for one in passed(sent, node)] == [TextNode]

    def test_a_copy_that_would_lose_something_is_an_error_that_names_it(self, guard, cache_dir):
        class Local(ColourEncoder):
            """Another process cannot find this class."""

        for member, settings in {
            "quarantine": {"guard": guard, "quarantine": lambda node, verdicts: None},
            "encoder": {"guard": Guard(guard.policy, Local(), cache_dir=cache_dir)},
        }.items():
            with pytest.raises(NotPicklable) as caught:
                pickle.dumps(ImageGuardPostprocessor(**settings))
            assert caught.value.member == member

    def test_what_it_withholds_can_be_kept_elsewhere(self, guard):
        kept, node = [], ImageNode(image=b64(BLUE))
        postprocessor = ImageGuardPostprocessor(guard=guard, quarantine=lambda *args: kept.append(args))
        assert passed(postprocessor, node, ImageNode(image=b64(RED))) != []
        assert [(one, [verdict.action for verdict in verdicts]) for one, verdicts in kept] == [(node, ["block"])]

    def test_the_query_and_the_source_are_passed_through(self, cache_dir):
        guard = colour_guard(cache_dir, sources={"retrieved": {"at_most": "flag"}, "user": {"at_most": "block"}})
        nodes = scored(ImageNode(image=b64(BLUE)))
        after = ImageGuardPostprocessor(guard=guard).postprocess_nodes(nodes, query_bundle=QueryBundle("q"))
        assert len(after) == 1
        assert ImageGuardPostprocessor(guard=guard, source="user").postprocess_nodes(nodes, query_str="q") == []

    def test_monitoring_changes_nothing_and_is_announced(self, cache_dir):
        guard = colour_guard(cache_dir, mode="monitor")
        node = ImageNode(image=b64(BLUE), image_url="https://example.org/x.png")
        with Tracer() as tracer:
            (after,) = passed(ImageGuardPostprocessor(guard=guard), node)
        assert (after.image, after.image_url) == (node.image, node.image_url)
        assert tracer.of(GuardVerdictEvent)[0].verdicts[0]["proposed"] == "block"
        assert after.metadata[ACTION_KEY] == "allow"

    def test_a_record_that_a_node_brings_along_is_not_believed(self, postprocessor):
        node = ImageNode(image=b64(RED), metadata={RECORD_KEY: "[]", ACTION_KEY: "allow"})
        (after,) = passed(postprocessor, node)
        assert not shows(images_of(after)[0], "red")

    def test_its_events_hold_no_pixels(self, postprocessor, tmp_path):
        path = str(saved(WHITE, tmp_path))
        with Tracer() as tracer:
            passed(postprocessor, ImageNode(image=b64(RED)), ImageDocument(image_path=path))
        (event,) = tracer.of(GuardVerdictEvent)
        assert event.component == "ImageGuardPostprocessor"
        assert [verdict["source"] for verdict in event.verdicts] == ["retrieved", "retrieved"]
        assert leaks(tracer.said, RED, WHITE) == []
        assert path not in tracer.said
