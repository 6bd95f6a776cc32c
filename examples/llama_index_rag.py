"""Retrieval over images in LlamaIndex with a filter at both ends, and a vector store on disk between them.

Runs without network, GPU or API key: MiniLM from the offline extra embeds captions, Chroma stores nodes with their
images and searches, the offline encoder looks, a small stand-in for an LLM says what it received. Needs
``pip install llama-index-vector-stores-chroma``. Run: ``python examples/llama_index_rag.py``.
"""

from __future__ import annotations

import base64
import logging
import os
import tempfile
import warnings
from pathlib import Path

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

import chromadb  # noqa: E402
from chromadb.config import Settings  # noqa: E402
from demo_llm import ReportingLLM  # noqa: E402
from demo_rag import CAPTIONS, POISONED, QUESTIONS, as_jpeg  # noqa: E402
from llama_index.core import VectorStoreIndex  # noqa: E402
from llama_index.core.embeddings import BaseEmbedding  # noqa: E402
from llama_index.core.ingestion import IngestionPipeline  # noqa: E402
from llama_index.core.query_engine import RetrieverQueryEngine  # noqa: E402
from llama_index.core.schema import BaseNode, ImageNode  # noqa: E402
from llama_index.vector_stores.chroma import ChromaVectorStore  # noqa: E402
from pydantic import PrivateAttr  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from guardalign_guardrails import GuardSettings, Verdict  # noqa: E402
from guardalign_guardrails.detection.encoders.offline import OfflineEncoder  # noqa: E402
from llama_index_guardalign import (  # noqa: E402
    GuardedLLM,
    ImageGuardPostprocessor,
    ImageGuardTransform,
)

HERE = Path(__file__).parent


class MiniLM(BaseEmbedding):
    """The sentence half of the offline encoder, all-MiniLM-L6-v2: texts to unit vectors of 384 numbers."""

    _encoder: OfflineEncoder = PrivateAttr(default_factory=OfflineEncoder)

    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = self._encoder.encode_texts([text])[0].tolist()
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def node(name: str, caption: str, image: bytes) -> ImageNode:
    """An image with the caption by which it is found."""
    return ImageNode(id_=name, text=caption, image=base64.b64encode(image).decode())


def table_of(title: str, *headings: str) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left")
    for heading in headings:
        table.add_column(heading)
    return table


def main() -> None:
    console = Console()
    guard = GuardSettings.of(HERE / "policy.yaml")
    with console.status("Loading the offline encoder and the policy's anchors"):
        guard.prepare()
    kept_aside: dict[str, str] = {}

    def quarantine(withheld: BaseNode, verdicts: tuple[Verdict, ...]) -> None:
        kept_aside[withheld.node_id] = verdicts[0].action

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = chromadb.PersistentClient(folder, Settings(anonymized_telemetry=False))
        store = ChromaVectorStore(chroma_collection=client.create_collection("images"))
        embedding = MiniLM()

        check = ImageGuardTransform(guard=guard, quarantine=quarantine)
        ingestion = IngestionPipeline(transformations=[check, embedding], vector_store=store)
        given = [node(name, caption, (HERE / "images" / name).read_bytes()) for name, caption in CAPTIONS.items()]
        passed = {each.node_id: each for each in ingestion.run(nodes=given)}

        table = table_of("Before storing: ImageGuardTransform", "image", "action", "what became of it")
        for name in CAPTIONS:
            if name in passed:
                action = passed[name].metadata["guardalign_action"]
                table.add_row(name, action, "stored, masked" if action == "mask" else "stored")
            else:
                table.add_row(name, kept_aside[name], "not stored, kept aside for a person")
        console.print(table)

        # Somebody who can write to the store puts the refused image there, past the filter, with a harmless caption.
        index = VectorStoreIndex.from_vector_store(store, embed_model=embedding)
        index.insert_nodes([node("sea.jpg", POISONED, as_jpeg(HERE / "images" / "rifle.png"))])

        retriever = index.as_retriever(similarity_top_k=1)
        open_engine = RetrieverQueryEngine.from_args(retriever, llm=ReportingLLM(), multimodal=True)
        guarded_engine = RetrieverQueryEngine.from_args(
            retriever,
            llm=GuardedLLM(llm=ReportingLLM(), guard=guard),
            multimodal=True,
            node_postprocessors=[ImageGuardPostprocessor(guard=guard, on_empty="note")],
        )
        headings = ("question", "retrieved", "what the LLM says, without the filter", "with it")
        table = table_of("\nBefore the prompt: ImageGuardPostprocessor", *headings)
        for question in QUESTIONS:
            found = ", ".join(each.node.node_id for each in retriever.retrieve(question))
            table.add_row(question, found, str(open_engine.query(question)), str(guarded_engine.query(question)))
        console.print(table)


if __name__ == "__main__":
    main()
