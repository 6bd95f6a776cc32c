"""What the LlamaIndex pages show runs as it is written, with what an app brings along."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from llama_images import ask, image_of, said
from llama_index.core import Settings
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.memory import Memory
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document, TextNode
from llama_index.core.tools import FunctionTool
from llama_models import WORDS, RecordingLLM
from llama_nodes import index_of
from llama_seen import Tracer

import llama_index_guardalign
from guardalign_guardrails import Policy
from guardalign_guardrails.decoding.lvlm import CalibratedLVLM
from guardalign_guardrails.testing.chats import canary, leaks_of, shows

FOLDER = Path(__file__).parents[2] / "docs" / "llama-index"
PAGES = sorted(FOLDER.glob("*.md"))
RED, BLUE = canary("red", number=1), canary("blue", number=2)
ANSWER = "".join(WORDS)


def run(page: str, **brought: Any) -> dict[str, Any]:
    """Run all Python on a page, top to bottom; the names that it leaves behind."""
    names = {"__name__": "page", **brought}
    for block in re.findall(r"```python\n(.*?)```", (FOLDER / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, f"{page}.md", "exec", dont_inherit=True), names)
    return names


def look() -> str:
    """Look at it."""
    return "a bird"


TOOLS = [FunctionTool.from_defaults(look)]


@pytest.fixture
def retriever():
    return index_of(TextNode(text="The wire is black.")).as_retriever()


async def test_an_agent_and_a_workflow_are_guarded_as_the_page_says(guard):
    llm = RecordingLLM()
    names = run("agents", tools=TOOLS, guard=guard, llm=llm)
    assert str(await names["agent"].run(ask(RED))) == ANSWER
    assert str(await names["Flow"]().run(chat=[ask(RED)])) == str(llm.chat([said("x")]))
    assert [shows(image, "red") for image in llm.images] == [False, False]
    assert await names["Flow"]().run(chat=[ask(BLUE)]) == guard.policy.refusal


async def test_a_hosted_model_is_guarded_as_the_page_says(guard, retriever, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", None)
    memory = Memory.from_defaults(token_limit=8000)
    names = run(
        "hosted-models",
        OpenAI=lambda model: RecordingLLM(),
        careful_llm=RecordingLLM(),
        tools=TOOLS,
        retriever=retriever,
        guard=guard,
        messages=[ask(RED)],
        memory=memory,
    )
    assert str(await names["agent"].run("Hello")) == str(names["engine"].query("birds")) == ANSWER
    assert Settings.llm is names["llm"]
    (kept,) = await memory.aget_all()
    assert not shows(image_of(kept.blocks[1]), "red")


def test_a_local_model_answers_as_the_page_says(small_vlm, monkeypatch, tmp_path):
    asked: dict[str, Any] = {}

    def load(name: str, **settings: Any) -> CalibratedLVLM:
        asked.update(settings)
        return small_vlm.writing("A bird.", calibration=settings["calibration"], prefix=settings["prefix"])

    canary("white").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CalibratedLVLM, "from_pretrained", load)
    response = run("local-models")["response"]
    assert response.message.content == "A bird."
    assert len(small_vlm.seen) == 1
    assert (asked["device_map"], asked["guard"].policy) == ("auto", Policy.default())


def test_nodes_are_guarded_as_the_page_says(retriever):
    llm = RecordingLLM()
    names = run(
        "rag",
        reader=Told(),
        parser=SentenceSplitter(),
        embedding=MockEmbedding(embed_dim=3),
        retriever=retriever,
        llm=llm,
        reranker=SimilarityPostprocessor(similarity_cutoff=0.0),
    )
    (node,) = names["pipeline"].run()
    assert (node.get_content(), len(node.embedding)) == ("The wire is black.", 3)
    assert str(names["engine"].query("birds")) == ANSWER


class Told(BaseReader):
    """Reads what it is told."""

    def lazy_load_data(self, *args: Any, **load_kwargs: Any) -> list[Document]:
        return [Document(text="The wire is black.")]


def test_traces_show_no_image_after_what_the_page_says():
    with Tracer() as tracer:
        run("traces")
        RecordingLLM().chat([ask(RED)])
    assert "What is this?" in tracer.said
    assert leaks_of(tracer.said, RED) == []


def test_every_page_is_run():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [page.stem for page in PAGES if f'"{page.stem}"' not in text] == []


def test_every_public_name_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    said = {name for name in llama_index_guardalign.__all__ if name in text}
    assert said | {"ScreenedChat"} == set(llama_index_guardalign.__all__)
