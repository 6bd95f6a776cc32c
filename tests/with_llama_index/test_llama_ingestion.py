"""Images on their way into a store: transforms in real pipelines, with docstores and caches, and guarded readers."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from llama_images import data_url, png, saved
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.readers.base import BaseReader, ReaderConfig
from llama_index.core.schema import Document, ImageDocument, ImageNode, MediaResource, MetadataMode, Node, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_nodes import NODES, b64, images_of

from guardalign_guardrails import EncoderUnavailable, GuardSettings, NotPicklable, UnsafeContentError
from guardalign_guardrails.content.documents.records import ACTION_KEY, RECORD_KEY
from guardalign_guardrails.errors import SettingsError
from guardalign_guardrails.testing.chats import canary, leaks, leaks_of, number_of, shows
from guardalign_guardrails.testing.colours import colour_guard, colour_policy
from llama_index_guardalign import GuardedReader, ImageGuardPostprocessor, ImageGuardTransform

RED, BLUE, WHITE = canary("red", number=1), canary("blue", number=2), canary("white", number=3)
NOWHERE = GuardSettings(policy=colour_policy(), encoder="transformers:no/such-encoder")


@pytest.fixture
def transform(guard):
    return ImageGuardTransform(guard=guard)


def image_document(image, **more) -> Document:
    return Document(image_resource=MediaResource(data=png(image)), **more)


def store_away(node, verdicts) -> None:
    """A quarantine that another process can find."""


class TestTheTransform:
    def test_masks_drops_and_puts_on_record(self, transform):
        nodes = [ImageNode(image=b64(RED)), ImageNode(image=b64(BLUE)), ImageNode(image=b64(WHITE)), TextNode(text="x")]
        masked, clean, words = transform(nodes)
        assert not any(shows(image, "red") for image in images_of(masked))
        assert (masked.metadata[ACTION_KEY], clean.metadata[ACTION_KEY]) == ("mask", "allow")
        assert words is nodes[3]
        assert clean.image == nodes[2].image
        for node in (masked, clean):
            assert node.get_metadata_str(MetadataMode.LLM) == node.get_metadata_str(MetadataMode.EMBED) == ""
            assert leaks(node.metadata[RECORD_KEY], RED, WHITE) == []

    @pytest.mark.parametrize("kind", NODES.values(), ids=NODES)
    async def test_does_so_with_every_node_sync_and_async(self, transform, kind, tmp_path):
        node = kind(RED, tmp_path)
        before = repr(node)
        for after in (transform([node]), await transform.acall([node])):
            assert not any(shows(image, "red") for image in images_of(after[0]))
        assert repr(node) == before
        assert transform([kind(BLUE, tmp_path)]) == await transform.acall([kind(BLUE, tmp_path)]) == []

    def test_a_masked_node_loses_the_embedding_of_what_is_masked(self, transform):
        masked, clean = transform(
            [ImageNode(image=b64(image), embedding=[1.0], text_embedding=[2.0]) for image in (RED, WHITE)]
        )
        assert (masked.embedding, masked.text_embedding) == (None, None)
        assert (clean.embedding, clean.text_embedding) == ([1.0], [2.0])

    def test_what_is_withheld_can_be_kept_elsewhere_or_cut_out_or_raised(self, guard):
        kept = []
        nodes = [ImageNode(image=b64(BLUE), text="words"), ImageNode(image=b64(WHITE))]

        def made(**settings):
            return ImageGuardTransform(guard=guard, quarantine=lambda *args: kept.append(args), **settings)

        assert len(made()(nodes)) == 1
        assert kept[0][0] is nodes[0]
        assert [verdict.action for verdict in kept[0][1]] == ["block"]
        (redacted, _) = made(withhold="image")(nodes)
        assert (type(redacted), redacted.text, redacted.metadata[ACTION_KEY]) == (TextNode, "words", "block")
        with pytest.raises(UnsafeContentError):
            made(on_violation="raise")(nodes)
        assert len(kept) == 3

    def test_it_can_be_used_twice(self, transform):
        (once,) = transform([ImageNode(image=b64(RED))])
        (twice,) = transform([once])
        assert twice is once


class TestFailures:
    @pytest.mark.parametrize("way", ["sync", "async"])
    def test_what_cannot_be_checked_is_left_out_and_logged_and_nothing_is_raised(self, way, caplog):
        kept = []
        transform = ImageGuardTransform(guard=NOWHERE, quarantine=lambda node, verdicts: kept.append((node, verdicts)))
        nodes = [ImageNode(image=b64(WHITE)), TextNode(text="x")]
        with caplog.at_level(logging.ERROR):
            after = transform(nodes) if way == "sync" else asyncio.run(transform.acall(nodes))
        assert after == [nodes[1]]
        assert kept == [(nodes[0], ())]
        assert "EncoderUnavailable" in caplog.text
        assert leaks(caplog.text, WHITE) == []

    def test_it_shows_before_a_run_if_asked(self):
        with pytest.raises(EncoderUnavailable):
            ImageGuardTransform(guard=NOWHERE).prepare()

    def test_it_can_be_raised_instead(self):
        with pytest.raises(EncoderUnavailable):
            ImageGuardTransform(guard=NOWHERE, on_failure="raise")([ImageNode(image=b64(WHITE))])

    def test_a_quarantine_that_fails_lets_nothing_pass_unchecked(self, guard, caplog):
        def full(node, verdicts):
            raise OSError("no space left")

        transform = ImageGuardTransform(guard=guard, quarantine=full)
        assert transform([ImageNode(image=b64(BLUE)), TextNode(text="x")])[0].text == "x"
        assert "quarantine" in caplog.text.lower()

    def test_a_folder_that_cannot_be_written_lets_nothing_pass_unchecked(self, guard, tmp_path):
        (tmp_path / "taken").write_text("a file")
        transform = ImageGuardTransform(guard=guard, masked_dir=tmp_path / "taken")
        assert transform([image_document(RED), TextNode(text="x")])[0].text == "x"


class TestPipelines:
    @pytest.mark.parametrize("run", ["run", "arun"])
    def test_two_documents_without_words_are_not_taken_for_one(self, guard, run):
        pipeline = IngestionPipeline(transformations=[ImageGuardTransform(guard=guard), MockEmbedding(embed_dim=2)])

        def ran(document):
            done = getattr(pipeline, run)(documents=[document])
            return asyncio.run(done) if run == "arun" else done

        (first,) = ran(image_document(WHITE, id_="one"))
        (second,) = ran(image_document(canary("white", number=4), id_="two"))
        assert (first.id_, second.id_) == ("one", "two")
        assert [number_of(images_of(node)[0]) for node in (first, second)] == [3, 4]

    def test_without_the_guard_they_are(self):
        # Or there would be nothing to do: this is LlamaIndex's own cache.
        pipeline = IngestionPipeline(transformations=[MockEmbedding(embed_dim=2)])
        pipeline.run(documents=[image_document(WHITE, id_="one")])
        (second,) = pipeline.run(documents=[image_document(RED, id_="two")])
        assert second.id_ == "one"

    def test_another_policy_is_another_transformation_to_a_cache(self, cache_dir):
        cache = IngestionCache()

        def ran(**changes):
            transform = ImageGuardTransform(guard=colour_guard(cache_dir, **changes), is_cacheable=True)
            pipeline = IngestionPipeline(transformations=[transform], cache=cache)
            return pipeline.run(documents=[ImageNode(image=b64(RED), text="a photo")])

        (masked,) = ran()
        (passed,) = ran(sources={"retrieved": {"at_most": "flag"}})
        assert not shows(images_of(masked)[0], "red")
        assert shows(images_of(passed)[0], "red")

    def test_a_cacheable_one_is_answered_for_by_the_cache(self, guard):
        transform = ImageGuardTransform(guard=guard, is_cacheable=True)
        pipeline = IngestionPipeline(transformations=[transform])
        (first,) = pipeline.run(documents=[ImageNode(image=b64(RED), text="a photo")])
        calls = len(guard.detector.encoder.calls)
        guard.cache = type(guard.cache)()
        (second,) = pipeline.run(documents=[ImageNode(image=b64(RED), text="a photo")])
        assert second.id_ == first.id_
        assert len(guard.detector.encoder.calls) == calls

    @pytest.mark.parametrize("strategy", [DocstoreStrategy.DUPLICATES_ONLY, DocstoreStrategy.UPSERTS])
    def test_a_blocked_document_is_dropped_and_the_run_goes_on(self, transform, strategy):
        store = SimpleVectorStore()
        pipeline = IngestionPipeline(
            transformations=[transform, MockEmbedding(embed_dim=2)],
            docstore=SimpleDocumentStore(),
            docstore_strategy=strategy,
            vector_store=store,
        )
        documents = [image_document(BLUE, text="blocked", id_="a"), image_document(RED, text="masked", id_="b")]
        assert [node.get_content() for node in pipeline.run(documents=documents)] == ["masked"]
        assert len(store.data.embedding_dict) == 1
        assert pipeline.run(documents=documents) == []

    @pytest.mark.parametrize("strategy", [DocstoreStrategy.DUPLICATES_ONLY, DocstoreStrategy.UPSERTS])
    def test_a_guard_that_fails_costs_no_other_document_and_what_it_left_out_can_be_brought_back(self, guard, strategy):
        kept, docstore, store = [], SimpleDocumentStore(), SimpleVectorStore()
        documents = [Document(text="words", id_="a"), image_document(WHITE, text="photo", id_="b")]

        def pipeline(checks, **stores):
            transform = ImageGuardTransform(guard=checks, quarantine=lambda node, verdicts: kept.append(node))
            return IngestionPipeline(
                transformations=[transform, MockEmbedding(embed_dim=2)], vector_store=store, **stores
            )

        stores = {"docstore": docstore, "docstore_strategy": strategy}
        assert [node.id_ for node in pipeline(NOWHERE, **stores).run(documents=documents)] == ["a"]
        # To the docstore all is done.
        assert pipeline(guard, **stores).run(documents=documents) == []
        assert [node.id_ for node in pipeline(guard).run(nodes=kept)] == ["b"]
        assert len(store.data.embedding_dict) == 2

    def test_one_that_raises_loses_its_documents(self, guard):
        # Or it need not be so careful: this is LlamaIndex's own docstore.
        docstore, documents = SimpleDocumentStore(), [image_document(WHITE, text="photo", id_="b")]

        def ran(checks):
            transform = ImageGuardTransform(guard=checks, on_failure="raise")
            return IngestionPipeline(
                transformations=[transform], docstore=docstore, docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY
            ).run(documents=documents)

        with pytest.raises(EncoderUnavailable):
            ran(NOWHERE)
        assert ran(guard) == []

    def test_it_may_be_among_everybodys_transformations(self, guard, monkeypatch, tmp_path):
        monkeypatch.setattr(Settings, "_transformations", [ImageGuardTransform(guard=guard, masked_dir=tmp_path)])
        documents = [image_document(RED, text="masked"), image_document(BLUE, text="blocked")]
        index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=2))
        (node,) = index.docstore.docs.values()
        assert (node.get_content(), shows(images_of(node)[0], "red")) == ("masked", False)

    def test_what_is_masked_is_still_so_after_a_docstore_was_written_and_read(self, guard, tmp_path):
        transform, path = ImageGuardTransform(guard=guard, masked_dir=tmp_path / "masked"), str(tmp_path / "docstore")
        store = SimpleDocumentStore()
        store.add_documents(transform([image_document(RED, id_="a"), ImageNode(image=b64(RED), id_="b")]))
        store.persist(path)
        for node in SimpleDocumentStore.from_persist_path(path).docs.values():
            (image, *_) = images_of(node)
            assert (number_of(image), shows(image, "red")) == (1, False)

    @pytest.mark.slow
    def test_it_works_in_several_processes(self, cache_dir):
        # A ready guard goes along, with an encoder that cannot be made from its name.
        transform = ImageGuardTransform(guard=colour_guard(cache_dir), quarantine=store_away)
        pipeline = IngestionPipeline(transformations=[transform], disable_cache=True)
        documents = [Document(text="a"), image_document(WHITE, text="b"), image_document(BLUE, text="c")]
        nodes = pipeline.run(documents=documents, num_workers=2)
        assert [node.get_content() for node in nodes] == ["a", "b"]


class TestDumps:
    def test_the_settings_come_back(self, guard, tmp_path):
        transform = ImageGuardTransform(guard=guard, withhold="image", masked_dir=tmp_path, is_cacheable=True)
        text = transform.to_json()
        back = ImageGuardTransform.from_json(text)
        assert back.to_json() == text
        assert back.guard.policy == guard.policy
        assert pickle.loads(pickle.dumps(transform)).to_json() == text

    CHANGES = (
        {"guard": GuardSettings(policy=colour_policy(mode="monitor"))},
        {"guard": GuardSettings(policy=colour_policy(masking={"feather": 0.5}))},
        {"guard": GuardSettings(policy=colour_policy(benign={"concepts": ["white"]}))},
        {"guard": GuardSettings(policy=colour_policy(), encoder="open-clip")},
        {"guard": GuardSettings(policy=colour_policy(), profile=Path("profile.json"))},
        {"source": "user"},
        {"on_violation": "raise"},
        {"withhold": "image"},
        {"on_failure": "raise"},
        {"masked_dir": Path("masked")},
    )

    @pytest.mark.parametrize("changes", CHANGES, ids=str)
    def test_each_setting_makes_another_transformation_to_a_cache(self, changes):
        def hash_of(**settings):
            transform = ImageGuardTransform(**{"guard": colour_policy(), "is_cacheable": True, **settings})
            return get_transformation_hash([TextNode(text="x")], transform)

        assert hash_of(**changes) != hash_of() == hash_of()

    def test_no_setting_is_where_a_cache_does_not_look(self):
        kept_out = {"quarantine", "is_cacheable"}
        assert set(ImageGuardTransform.model_fields) - kept_out == {name for change in self.CHANGES for name in change}
        assert ImageGuardTransform.__private_attributes__ == ImageGuardPostprocessor.__private_attributes__ == {}

    def test_one_that_is_not_cacheable_never_looks_the_same_twice(self, transform):
        first, second = transform.to_dict(), transform.to_dict()
        assert first != second
        assert ImageGuardTransform.from_dict(first).model_dump() == transform.model_dump()

    def test_a_quarantine_that_would_be_lost_on_the_way_to_another_process_is_an_error(self, guard):
        assert pickle.loads(pickle.dumps(ImageGuardTransform(guard=guard, quarantine=store_away))).quarantine
        with pytest.raises(NotPicklable, match="quarantine"):
            pickle.dumps(ImageGuardTransform(guard=guard, quarantine=lambda node, verdicts: None))

    def test_a_copy_has_its_guard_before_and_after_use(self, guard, transform):
        for _ in range(2):
            sent = pickle.loads(pickle.dumps(transform))
            assert copy.deepcopy(transform).guard.guard is guard
            for again in (sent, copy.deepcopy(transform)):
                assert again([ImageNode(image=b64(BLUE)), TextNode(text="x")])[0].text == "x"
            transform([ImageNode(image=b64(RED))])

    def test_what_only_an_answer_can_do_is_refused(self, guard):
        for made in (ImageGuardTransform, lambda **settings: GuardedReader(reader=Shelf(), **settings)):
            with pytest.raises(SettingsError, match="refuse"):
                made(guard=guard, on_violation="refuse")


class Shelf(BaseReader):
    """A reader of documents that are given."""

    def __init__(self, *documents: Document) -> None:
        self.documents = documents

    def lazy_load_data(self, *args: Any, **load_kwargs: Any) -> Iterable[Document]:
        yield from self.documents[: load_kwargs.get("most")]


class TestTheReader:
    @pytest.fixture
    def shelf(self, tmp_path):
        return Shelf(
            image_document(RED, text="masked"),
            image_document(BLUE, text="blocked"),
            ImageDocument(image_path=str(saved(WHITE, tmp_path)), text="clean"),
            Document(text="words"),
        )

    async def test_every_way_of_loading_is_guarded(self, guard, shelf):
        reader = GuardedReader(reader=shelf, guard=guard)
        loads = [
            reader.load_data(),
            list(reader.lazy_load_data()),
            await reader.aload_data(),
            list(await reader.alazy_load_data()),
        ]
        for masked, clean, words in loads:
            assert not any(shows(image, "red") for image in images_of(masked))
            assert (masked.text, clean.text) == ("masked", "clean")
            assert isinstance(clean, ImageDocument)
            assert words is shelf.documents[3]
        assert len(reader.load_data(most=1)) == 1

    def test_it_reads_for_a_pipeline_whose_cache_then_knows_images_apart(self, guard):
        cache = IngestionCache()

        def ran(image):
            reader = GuardedReader(reader=Shelf(image_document(image)), guard=guard)
            pipeline = IngestionPipeline(
                readers=[ReaderConfig(reader=reader)],
                transformations=[ImageGuardTransform(guard=guard, is_cacheable=True), MockEmbedding(embed_dim=2)],
                cache=cache,
            )
            return pipeline.run()

        assert [number_of(images_of(ran(image)[0])[0]) for image in (WHITE, canary("white", number=4))] == [3, 4]

    def test_a_docstore_behind_it_holds_no_original(self, guard):
        def stored(reader):
            docstore = SimpleDocumentStore()
            pipeline = IngestionPipeline(transformations=[ImageGuardTransform(guard=guard)], docstore=docstore)
            pipeline.run(documents=reader.load_data())
            return json.dumps(docstore.to_dict())

        shelf = Shelf(Document(text="a photo", metadata={"thumbnail": data_url(RED)}))
        # Documents are stored as they come, before any transformation.
        assert leaks_of(stored(shelf), RED) != []
        assert leaks_of(stored(GuardedReader(reader=shelf, guard=guard)), RED) == []

    def test_a_file_that_changed_is_another_document_to_a_docstore(self, guard, tmp_path):
        docstore = SimpleDocumentStore()

        def ran(image):
            document = ImageDocument(image_path=str(saved(image, tmp_path)), text="a photo", id_="a")
            reader = ReaderConfig(reader=GuardedReader(reader=Shelf(document), guard=guard))
            return IngestionPipeline(
                readers=[reader],
                transformations=[MockEmbedding(embed_dim=2)],
                docstore=docstore,
                docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
            ).run()

        assert [len(ran(image)) for image in (WHITE, WHITE, canary("white", number=4))] == [1, 0, 1]

    def test_what_it_withholds_can_be_kept_elsewhere_or_raised(self, guard, shelf):
        kept = []
        reader = GuardedReader(reader=shelf, guard=guard, quarantine=lambda node, verdicts: kept.append(node))
        reader.load_data()
        assert kept == [shelf.documents[1]]
        with pytest.raises(UnsafeContentError):
            GuardedReader(reader=shelf, guard=guard, on_violation="raise").load_data()
        with pytest.raises(EncoderUnavailable):
            GuardedReader(reader=shelf, guard=NOWHERE).load_data()

    def test_a_copy_has_its_guard_and_its_reader(self, guard, shelf):
        reader = GuardedReader(reader=shelf, guard=guard)
        for _ in range(2):
            sent = pickle.loads(pickle.dumps(reader))
            for again in (sent, copy.deepcopy(reader)):
                assert [document.text for document in again.load_data()] == ["masked", "clean", "words"]

        class Local(Shelf):
            """Another process cannot find this class."""

        with pytest.raises(NotPicklable) as caught:
            pickle.dumps(GuardedReader(reader=Local(), guard=guard))
        assert caught.value.member == "reader"

    def test_an_image_in_its_documents_text_is_found(self, guard):
        texts = [f"words ![]({data_url(image)})" for image in (BLUE, WHITE)]
        reader = GuardedReader(reader=Shelf(*(Document(text=text) for text in texts)), guard=guard)
        (clean,) = reader.load_data()
        assert (clean.text, clean.metadata[ACTION_KEY]) == (texts[1], "allow")

    def test_a_folder_of_files_is_read_through_it(self, guard, tmp_path):
        from llama_index.core import SimpleDirectoryReader

        class Images(BaseReader):
            def load_data(self, file: Path, extra_info: dict | None = None, **_: Any) -> list[Document]:
                return [ImageDocument(image_path=str(file), metadata=extra_info or {})]

        for name, image in {"a": RED, "b": BLUE, "c": WHITE}.items():
            saved(image, tmp_path, f"{name}.png")
        reader = GuardedReader(
            reader=SimpleDirectoryReader(str(tmp_path), file_extractor={".png": Images()}), guard=guard
        )
        masked, clean = reader.load_data()
        assert "file_path" not in masked.metadata
        assert clean.metadata["file_path"].endswith("c.png")
        assert not any(shows(pil_image, "red") for node in (masked, clean) for pil_image in images_of(node))
        assert (tmp_path / "a.png").read_bytes() == png(RED)

    def test_it_is_dumped_with_its_policy_and_the_readers_name(self, guard, shelf, tmp_path):
        data = json.loads(GuardedReader(reader=shelf, guard=guard, masked_dir=tmp_path).to_json())
        assert data["reader"] == {"class_name": "Shelf"}
        assert data["guard"]["policy"]["name"] == "colours"

    def test_it_gives_a_node_without_words_something_to_be_known_by(self, guard):
        (document,) = GuardedReader(reader=Shelf(image_document(WHITE)), guard=guard).load_data()
        assert isinstance(document, Node)
        assert RECORD_KEY in document.get_content(MetadataMode.ALL)
        assert document.get_content(MetadataMode.LLM) == ""
