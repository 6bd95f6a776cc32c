"""What an app brings along to each page of the documents, and what must be true once its Python has run.

Each function is for one page or one folder: it yields the names that the page takes for granted and is given those that
the page leaves behind. Guards are real; only weights that cannot be had here are others: small models with real
processors, chat models that keep what they are given, an OpenAI server on the loopback.
"""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from doc_pages.pages import ROOT
from guardalign_guardrails import Guard, Policy
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.detection.encoders import Encoder, registry
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import ask, canary, leaks_of, shows
from guardalign_guardrails.testing.colours import colour_guard, colour_policy

Names = dict[str, Any]
Around = Generator[Names, Names, None]
Surroundings = Callable[["App"], Around]

RED, BLUE = canary("red", number=1), canary("blue", number=2)
EXAMPLES = ROOT / "examples" / "images"


@dataclass
class App:
    """Where a page runs: in an empty folder with two images and a policy, and with an OpenAI server of its own.

    Attributes:
        request: Gives fixtures.
        monkeypatch: Of the test.
        folder: The current folder.
        cache_dir: For anchor features.
        openai: The server.
    """

    request: pytest.FixtureRequest
    monkeypatch: pytest.MonkeyPatch
    folder: Path
    cache_dir: Path
    openai: Any

    def __post_init__(self) -> None:
        shutil.copy(EXAMPLES / "coffee_and_pistol.jpg", self.folder / "photo.jpg")
        for name in ("policy.yaml", "my.yaml"):
            (self.folder / name).write_text("extends: default\n", encoding="utf-8")
        self.monkeypatch.chdir(self.folder)
        self.monkeypatch.setenv("OPENAI_API_KEY", "test")
        self.monkeypatch.setenv("OPENAI_BASE_URL", self.openai.base_url)
        # The real offline encoder, loaded once for all pages.
        self.monkeypatch.setitem(registry._PREFIXES, "offline", lambda rest, options: self._offline())

    def guard(self, **changes: Any) -> Guard:
        """A guard that sees colours."""
        return colour_guard(self.cache_dir, **changes)

    def local_model(self, text: str) -> list[Names]:
        """Make ``CalibratedLVLM.from_pretrained`` give a small model that writes a text; what it was asked for."""
        from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
        from with_langchain.local_models import scripted

        asked: list[Names] = []

        def load(name: str, **settings: Any) -> CalibratedLVLM:
            asked.append({"name": name, **settings})
            taken = ("calibration", "prefix", "guard", "on_violation", "settings")
            return scripted(text, **{key: value for key, value in settings.items() if key in taken})[0]

        self.monkeypatch.setattr(CalibratedLVLM, "from_pretrained", load)
        return asked

    def _offline(self) -> Encoder:
        return self.request.getfixturevalue("offline_guard").detector.encoder


def hides_the_pistol(image: Image.Image) -> bool:
    """Whether its middle is black in an example photo that may have been masked."""
    return not np.asarray(image)[300, 450].any()


# The project's own pages


def core(app: App) -> Around:
    yield {"guard": app.guard(), "image": RED, "policy": colour_policy(), "urls": []}


def readme(app: App) -> Around:
    """The front page: shipped policy and offline encoder, the image with the pistol."""
    from llama_index.core.schema import TextNode
    from llama_models import RecordingLLM
    from llama_nodes import index_of

    asked = app.local_model("A cup.")
    url = to_data_url((app.folder / "photo.jpg").read_bytes(), "image/jpeg")
    names = yield {
        **_langchain_names(),
        "chat": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}],
        "image": Image.open(app.folder / "photo.jpg"),
        "index": index_of(TextNode(text="The wire is black.")),
        "llm": RecordingLLM(),
    }
    assert names["result"].verdict.action == "mask"
    assert hides_the_pistol(Image.open(io.BytesIO(names["to_send"])))
    assert [hides_the_pistol(image) for image in app.openai.last.images] == [True]
    assert str(names["engine"].query("What colour is the wire?")) == "one two three"
    assert asked[0]["guard"] is names["guard"]


# Pages of the adapters


def _langchain_names() -> Names:
    from langchain.agents import create_agent
    from langchain_core.messages import HumanMessage
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.checkpoint.memory import InMemorySaver

    from langchain_guardalign.testing.recording import RecordingModel

    @tool
    def look() -> str:
        """Look at it."""
        return "a bird"

    return {
        "ChatOpenAI": ChatOpenAI,
        "StrOutputParser": StrOutputParser,
        "careful_model": RecordingModel(),
        "checkpointer": InMemorySaver(),
        "config": {"configurable": {"thread_id": "page"}},
        "create_agent": create_agent,
        "messages": [HumanMessage(ask(RED)["content"])],
        "model": RecordingModel(),
        "parser": StrOutputParser(),
        "policy": colour_policy(),
        "prompt": ChatPromptTemplate.from_messages([("human", "{question}")]),
        "reviewer": RecordingModel(),
        "tools": [look],
    }


def langchain(app: App) -> Around:
    from langchain_guardalign import ImageGuard

    yield {**_langchain_names(), "guard": ImageGuard(app.guard()), "tmp_path": app.folder}


def langchain_rag(app: App) -> Around:
    from langchain_core.documents import Document
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from langchain_core.vectorstores import InMemoryVectorStore

    photo, store = Image.open(app.folder / "photo.jpg"), InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    documents = [Document("a cup"), Document("both", metadata={"image": encode_png(photo)})]
    yield {**_langchain_names(), "vectorstore": store, "documents": documents}
    stored = {document["text"]: document["metadata"] for document in store.store.values()}
    assert stored["both"]["guardalign_action"] == "mask"
    assert "guardalign" not in stored["a cup"]


def _llama_names(app: App) -> Names:
    from llama_images import ask as ask_llama
    from llama_index.core.embeddings import MockEmbedding
    from llama_index.core.memory import Memory
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.core.postprocessor import SimilarityPostprocessor
    from llama_index.core.readers.base import BaseReader
    from llama_index.core.schema import Document, TextNode
    from llama_index.core.tools import FunctionTool
    from llama_models import RecordingLLM
    from llama_nodes import index_of

    class OneDocument(BaseReader):
        def lazy_load_data(self, *args: Any, **load_kwargs: Any) -> list[Document]:
            return [Document(text="The wire is black.")]

    def look() -> str:
        """Look at it."""
        return "a bird"

    return {
        "OpenAI": lambda model: RecordingLLM(),
        "careful_llm": RecordingLLM(),
        "embedding": MockEmbedding(embed_dim=3),
        "guard": app.guard(),
        "llm": RecordingLLM(),
        "memory": Memory.from_defaults(token_limit=8000),
        "messages": [ask_llama(RED)],
        "parser": SentenceSplitter(),
        "reader": OneDocument(),
        "reranker": SimilarityPostprocessor(similarity_cutoff=0.0),
        "retriever": index_of(TextNode(text="The wire is black.")).as_retriever(),
        "tools": [FunctionTool.from_defaults(look)],
    }


def llama_index(app: App) -> Around:
    yield _llama_names(app)


def llama_index_agents(app: App) -> Around:
    from llama_images import ask as ask_llama
    from llama_images import said

    brought = {**_llama_names(app), "message": ask_llama(BLUE)}
    llm, guard = brought["llm"], brought["guard"]
    names = yield brought
    assert names["answer"] == guard.policy.refusal

    async def use() -> None:
        assert str(await names["agent"].run("Hello", memory=names["memory"])) == "one two three"
        assert str(await names["agent"].run(ask_llama(RED))) == "one two three"
        assert str(await names["Flow"]().run(chat=[ask_llama(RED)])) == str(llm.chat([said("x")]))
        assert [shows(image, "red") for image in llm.images] == [False, False]
        assert await names["Flow"]().run(chat=[ask_llama(BLUE)]) == guard.policy.refusal

    asyncio.run(use())


def llama_index_hosted(app: App) -> Around:
    from llama_images import image_of
    from llama_index.core import Settings

    app.monkeypatch.setattr(Settings, "_llm", None)
    names = yield _llama_names(app)

    async def use() -> None:
        assert str(await names["agent"].run("Hello")) == "one two three"
        (kept,) = await names["memory"].aget_all()
        assert not shows(image_of(kept.blocks[1]), "red")

    asyncio.run(use())
    assert str(names["engine"].query("birds")) == "one two three"
    assert Settings.llm is names["llm"]


def llama_index_local(app: App) -> Around:
    asked = app.local_model("A bird.")
    names = yield _llama_names(app)
    assert names["response"].message.content == "A bird."
    assert asked[0]["device_map"] == "auto"
    assert asked[0]["guard"].policy == Policy.default()


def llama_index_rag(app: App) -> Around:
    from llama_index.core.schema import ImageNode, TextNode
    from llama_models import texts_of
    from llama_nodes import index_of

    canary("white", number=3).save(app.folder / "question.png")
    photo = to_base64((app.folder / "photo.jpg").read_bytes())
    index = index_of(TextNode(text="The wire is black."), ImageNode(text="a photo", image=photo))
    brought = {**_llama_names(app), "retriever": index.as_retriever(), "image_path": "question.png"}
    names = yield brought
    assert str(names["answer"]) == "one two three"
    (node,) = names["pipeline"].run()
    assert (node.get_content(), len(node.embedding)) == ("The wire is black.", 3)
    llm = brought["llm"]
    assert llm.images
    assert all(hides_the_pistol(image) for image in llm.images)
    prefix = names["guard"].policy.prefix.strip()
    assert all(prefix in "\n".join(texts_of(messages)) for messages in llm.received)


def llama_index_traces(app: App) -> Around:
    from llama_images import ask as ask_llama
    from llama_models import RecordingLLM
    from llama_seen import Tracer

    with Tracer() as tracer:
        yield _llama_names(app)
        RecordingLLM().chat([ask_llama(RED)])
    assert "What is this?" in tracer.said
    assert leaks_of(tracer.said, RED) == []


def openai(app: App) -> Around:
    from agents import Agent, RunConfig, SQLiteSession
    from pydantic import BaseModel

    class Answer(BaseModel):
        word: str

    url = to_data_url((app.folder / "photo.jpg").read_bytes(), "image/jpeg")
    app.openai.answer = lambda _: {"words": ('{"word": "bird"}',)}
    yield {
        "Agent": Agent,
        "Answer": Answer,
        "RunConfig": RunConfig,
        "SQLiteSession": SQLiteSession,
        "items": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}],
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
        "policy": app.guard(),
    }
    assert [[hides_the_pistol(image) for image in each.images] for each in app.openai.requests] == [[True], [True]]


def decoding(app: App) -> Around:
    app.local_model("A bird.")
    chat = [{"role": "user", "content": [{"type": "image", "image": RED}, "What is this?"]}]
    yield {"chat": chat, "guard": app.guard(), "image": RED, "name": "OpenGVLab/InternVL3-38B-hf"}


def decoding_remote(app: App) -> Around:
    """A tiny model of transformers in place of one with code of its own; the adapter finds its parts all the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    app.monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, **settings: config)
    app.monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda name, config, **settings: LlamaForCausalLM(config)
    )
    names = yield {"embeds": torch.randn(1, 80, 16), "name": "internlm/internlm-xcomposer2d5-7b"}
    assert names["tokens"].shape[1] > 1


PAGES: dict[str, Surroundings] = {
    "README.md": readme,
    "docs/": core,
    "docs/decoding/": decoding,
    "docs/decoding/remote-code.md": decoding_remote,
    "docs/langchain/": langchain,
    "docs/langchain/rag.md": langchain_rag,
    "docs/llama-index/": llama_index,
    "docs/llama-index/agents.md": llama_index_agents,
    "docs/llama-index/hosted-models.md": llama_index_hosted,
    "docs/llama-index/local-models.md": llama_index_local,
    "docs/llama-index/rag.md": llama_index_rag,
    "docs/llama-index/traces.md": llama_index_traces,
    "docs/openai.md": openai,
}
"""By page, or by folder for the pages below it; the longest that fits counts."""


def surroundings_of(page: str) -> Surroundings:
    return PAGES[max((name for name in PAGES if page.startswith(name)), key=len)]
