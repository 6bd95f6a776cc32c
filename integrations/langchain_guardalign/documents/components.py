"""Filters for the images of a RAG pipeline: one before documents are stored, one before they reach a prompt.

Both do the same with what they are given; LangChain has two interfaces for it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from pydantic import BaseModel, ConfigDict, Field

from guardalign_guardrails import Source, Verdict
from guardalign_guardrails.content.documents.filter import (
    CheckedImages,
    DocumentFilter,
    FilteredDocuments,
    FilterRule,
    Withhold,
)
from guardalign_guardrails.content.documents.images import with_images
from guardalign_guardrails.content.documents.records import with_records
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings
from langchain_guardalign.documents.images import FieldNames, find_images
from langchain_guardalign.errors.violations import not_retried
from langchain_guardalign.events import adispatch, dispatch

Quarantine: TypeAlias = Callable[[Document, tuple[Verdict, ...]], object]


class _ImageDocumentFilter(BaseModel):
    """The settings of both components, and the filter that they make."""

    model_config = ConfigDict(extra="forbid")

    guard: GuardField = Field(default_factory=GuardSettings)
    source: Source = "retrieved"
    on_violation: FilterRule = "notice"
    withhold: Withhold = "document"
    quarantine: Quarantine | None = Field(default=None, repr=False)
    image_fields: tuple[str, ...] = ()
    path_fields: tuple[str, ...] = ()
    masked_dir: pathlib.Path | None = None

    def __getstate__(self) -> dict[Any, Any]:
        check_pickles("guard", self.guard)
        check_pickles("quarantine", self.quarantine)
        return super().__getstate__()

    def _filter(self) -> DocumentFilter[Document]:
        names = FieldNames(self.image_fields, self.path_fields, self.masked_dir)
        return DocumentFilter(
            self.guard,
            find=lambda document: find_images(document, names),
            rewrite=_rewritten,
            source=self.source,
            withhold=self.withhold,
            quarantine=self.quarantine,
        )

    def _passed(self, filtered: FilteredDocuments[Document]) -> list[Document]:
        if self.on_violation == "raise" and filtered.violation is not None:
            raise not_retried(filtered.violation)
        return filtered.passed


class ImageDocumentTransformer(_ImageDocumentFilter, BaseDocumentTransformer):
    """Checks the images of documents before they are stored.

    Finds images in ``page_content`` (a data URL or base64 as the whole text; data URLs within Markdown, HTML or JSON)
    and in metadata (data URLs, base64, bytes and PIL images anywhere; files and URLs in fields that are named). Use it
    before a text splitter, which would cut encoded images to pieces. By the action of each image:

    - ``allow``, ``flag``, ``prefix``: it stays, or the guard's own reading takes its place if it has several. The
      prefix is for the prompt: that is the chat guard's to add.
    - ``mask``: the masked image, as PNG, takes its place in the same form; for a file, see ``masked_dir``.
    - ``block``, ``route``, and what cannot be checked if the policy blocks it: see ``on_violation``.

    A document with an image gets ``metadata["guardalign"]``, a JSON list with one record per image (verdict id,
    digest, finding, action, category; no pixels), and ``metadata["guardalign_action"]``, the severest of the actions.
    What was given is never changed; a document that needs no change comes back as the very same object. Order and ids
    stay. A component pickles if its guard and its quarantine do, else `NotPicklable` names the member.

    Attributes:
        guard: A `Guard`, a `Policy`, the path of a policy file, or `GuardSettings`.
        source: Where the images came from, for the policy.
        on_violation: ``notice`` withholds what the policy blocks and passes on the rest, ``raise`` raises
            `UnsafeContentError` once all documents are checked.
        withhold: ``document`` leaves out a document with a blocked image, ``image`` puts a short notice in the image's
            place and keeps the rest.
        quarantine: Called with the original document and its verdicts for every document from which an image is
            withheld, whatever ``on_violation`` and ``withhold`` say. What it raises is passed on.
        image_fields: Metadata fields that hold images and nothing else: base64, data URLs, bytes, PIL images, http
            URLs, content blocks, or lists of them. What is in them and cannot be opened is a finding. A URL is fetched
            if the policy has rules for it.
        path_fields: Metadata fields with local paths, or URLs, of images or other files. A file counts as an image
            by its suffix or first bytes, a URL by its suffix. Fields not named here are never taken for paths.
        masked_dir: Folder for masked and canonical copies of local files, to which the field then points; the file
            itself is never changed. None withholds a document whose file would have to be replaced.
    """

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """Check documents; the images of all of them together. Keyword arguments are ignored.

        Raises:
            UnsafeContentError: An image was withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked copy cannot be written.
        """
        return self._passed(self._filter().filter(documents))

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """`transform_documents` without blocking the event loop."""
        return self._passed(await self._filter().afilter(documents))


class ImageDocumentCompressor(_ImageDocumentFilter, BaseDocumentCompressor):
    """Checks the images of retrieved documents before they reach a prompt; see `ImageDocumentTransformer`.

    For `ContextualCompressionRetriever` and compressor pipelines. It trusts no record that a document brings along: all
    images are checked again, which costs a look-up for those that this process has seen before. Within a retriever's
    run the verdicts of each call go out as the custom event ``guardalign.verdict``.
    """

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """Check retrieved documents; the query is not looked at.

        Raises:
            UnsafeContentError: An image was withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked copy cannot be written.
        """
        filtered = self._filter().filter(documents)
        dispatch(filtered.verdicts, {"callbacks": callbacks})
        return self._passed(filtered)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """`compress_documents` without blocking the event loop."""
        filtered = await self._filter().afilter(documents)
        await adispatch(filtered.verdicts, {"callbacks": callbacks})
        return self._passed(filtered)


def _rewritten(document: Document, checked: CheckedImages) -> Document:
    """The document with what takes its images' places, and the records; itself if it stays as it is."""
    old = {"page_content": document.page_content, "metadata": document.metadata}
    new = with_images(old, checked.images, checked.replacements)
    new["metadata"] = with_records(new["metadata"], checked.verdicts)
    update = {name: value for name, value in new.items() if value is not old[name]}
    return document.model_copy(update=update) if update else document
