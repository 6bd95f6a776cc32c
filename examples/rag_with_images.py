"""Retrieval over images with a filter at both ends: what is stored is checked, and what comes back is checked again.

Captions are in a vector store, the images themselves in a document store (LangChain's multi-vector pattern). Runs
without network, GPU or API key: MiniLM from the offline extra embeds, Chroma searches in memory, the offline encoder
looks, a small fake model says what it received. Needs ``pip install langchain-chroma langchain-classic``.
Run: ``python examples/rag_with_images.py``.
"""

from __future__ import annotations

import base64
import logging
import mimetypes
import os
import warnings
from pathlib import Path

# Before torch and transformers are imported: a demo has no use for their progress bars and advice.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
logging.getLogger("sentence_transformers").setLevel(logging.ERROR)

from chromadb.config import Settings  # noqa: E402
from demo_model import ReportingModel  # noqa: E402
from demo_rag import CAPTIONS, POISONED, QUESTIONS, as_jpeg  # noqa: E402
from langchain_chroma import Chroma  # noqa: E402
from langchain_classic.retrievers import ContextualCompressionRetriever, MultiVectorRetriever  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_core.messages import BaseMessage, HumanMessage  # noqa: E402
from langchain_core.runnables import RunnableLambda  # noqa: E402
from langchain_core.stores import InMemoryStore  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from guardalign_guardrails import GuardSettings, Verdict  # noqa: E402
from guardalign_guardrails.detection.encoders.offline import OfflineEncoder  # noqa: E402
from langchain_guardalign import ImageDocumentCompressor, ImageDocumentTransformer  # noqa: E402

HERE = Path(__file__).parent


class MiniLM(Embeddings):
    """The sentence half of the offline encoder, all-MiniLM-L6-v2."""

    def __init__(self) -> None:
        self._encoder = OfflineEncoder()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Captions to unit vectors of 384 numbers."""
        return self._encoder.encode_texts(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """A question to such a vector."""
        return self.embed_documents([text])[0]


def document(name: str, image: bytes) -> Document:
    """An image as the multi-vector pattern stores it: base64 in the text."""
    metadata = {"file": name, "mime_type": mimetypes.guess_type(name)[0]}
    return Document(id=name, page_content=base64.b64encode(image).decode(), metadata=metadata)


def store(retriever: MultiVectorRetriever, captions: dict[str, str], documents: list[Document]) -> None:
    """Images into the document store, their captions into the vector store."""
    retriever.docstore.mset([(document.id, document) for document in documents])
    retriever.vectorstore.add_documents(
        [Document(captions[document.id], metadata={retriever.id_key: document.id}) for document in documents]
    )


def prompt(documents: list[Document]) -> list[BaseMessage]:
    """What the model is asked: text, and the images that were retrieved."""
    blocks = [
        {"type": "image", "base64": document.page_content, "mime_type": document.metadata["mime_type"]}
        for document in documents
    ]
    return [HumanMessage([{"type": "text", "text": "Answer from the images."}, *blocks])]


def main() -> None:
    console = Console()
    guard = GuardSettings.of(HERE / "policy.yaml")
    kept_aside: list[tuple[Document, tuple[Verdict, ...]]] = []

    def quarantine(document: Document, verdicts: tuple[Verdict, ...]) -> None:
        kept_aside.append((document, verdicts))

    ingest = ImageDocumentTransformer(guard=guard, quarantine=quarantine)
    compressor = ImageDocumentCompressor(guard=guard, quarantine=quarantine)

    vectors = Chroma(
        "images",
        embedding_function=MiniLM(),
        client_settings=Settings(anonymized_telemetry=False, is_persistent=False),
    )
    images = MultiVectorRetriever(vectorstore=vectors, docstore=InMemoryStore(), search_kwargs={"k": 1})
    guarded = ContextualCompressionRetriever(base_retriever=images, base_compressor=compressor)

    with console.status("Loading the offline encoder and the policy's anchors"):
        guard.prepare()
    given = [document(name, (HERE / "images" / name).read_bytes()) for name in CAPTIONS]
    passed = list(ingest.transform_documents(given))
    store(images, CAPTIONS, passed)

    actions = {document.id: document.metadata["guardalign_action"] for document in passed}
    actions |= {document.id: verdicts[0].action for document, verdicts in kept_aside}
    outcomes = {document.id: "stored, masked" if actions[document.id] == "mask" else "stored" for document in passed}
    table = Table(title="Before storing: ImageDocumentTransformer", title_style="bold", title_justify="left")
    for heading in ("image", "action", "what became of it"):
        table.add_column(heading)
    for name in CAPTIONS:
        table.add_row(name, actions[name], outcomes.get(name, "not stored, kept aside for a person"))
    console.print(table)

    # Somebody who can write to the stores puts the refused image there, past the filter, with a harmless caption.
    store(images, {"sea.jpg": POISONED}, [document("sea.jpg", as_jpeg(HERE / "images" / "rifle.png"))])
    kept_aside.clear()

    table = Table(title="\nBefore the prompt: ImageDocumentCompressor", title_style="bold", title_justify="left")
    for heading in ("question", "retrieved", "what the model says, without the filter", "with it"):
        table.add_column(heading)
    model = ReportingModel()
    for question in QUESTIONS:
        found = images.invoke(question)
        answers = [
            (retriever | RunnableLambda(prompt) | model).invoke(question).content for retriever in (images, guarded)
        ]
        table.add_row(question, ", ".join(document.metadata["file"] for document in found), *answers)
    console.print(table)
    for poisoned, (verdict,) in kept_aside:
        console.print(f"Kept aside at retrieval: {poisoned.id}, {verdict.category}, action {verdict.action}.")


if __name__ == "__main__":
    main()
