"""Two gates for the images of a RAG pipeline: one before documents are stored, one before they reach a prompt.

Both do the same with what they are given; LangChain has two interfaces for it. What the policy withholds never passes:
the document goes, or the image goes out of it. Text is not judged, and a document without an image is not touched.
"""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeAlias

from langchain_core.callbacks import BaseCallbackManager, Callbacks, adispatch_custom_event, dispatch_custom_event
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.runnables import RunnableConfig
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from guardalign_guardrails import Guard, Source, UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.content.records import with_records
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from guardalign_guardrails.content.walk import MediaBlock
from guardalign_guardrails.verdict import event_of
from langchain_guardalign.documents.images import Fields, FoundImage, find_images, with_images
from langchain_guardalign.events import EVENT
from langchain_guardalign.runnable import ImageGuard

Quarantine: TypeAlias = Callable[[Document, tuple[Verdict, ...]], None]

# Their bytes are in memory at once. The guard encodes 16 at a time whatever it is given.
_IMAGES_AT_ONCE: Final = 64

_Group: TypeAlias = list[tuple[Document, list[FoundImage]]]


@dataclass(frozen=True)
class _FoundImages(Turn):
    """The images of one document as a turn: what is found is given, and ``content`` has a None for each."""

    slots: tuple[MediaBlock, ...] = ()

    def find(self) -> list[MediaBlock]:
        return list(self.slots)


@dataclass
class _FilteredDocuments:
    """What became of documents.

    Attributes:
        documents: Those that pass.
        verdicts: Of all images, in reading order.
        violation: The first verdict because of which an image was withheld; None if there is none.
    """

    documents: list[Document] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    violation: Verdict | None = None


def _image_guard(guard: object) -> object:
    return ImageGuard.from_guard(guard) if isinstance(guard, Guard) else guard


class _DocumentFilter(BaseModel):
    """What both gates are: settings, and one core for sync and async."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    guard: Annotated[ImageGuard, BeforeValidator(_image_guard)] = Field(default_factory=ImageGuard)
    source: Source = "retrieved"
    on_violation: Literal["drop", "redact", "raise"] = "drop"
    quarantine: Quarantine | None = Field(default=None, repr=False)
    image_fields: tuple[str, ...] = ()
    path_fields: tuple[str, ...] = ()
    masked_dir: pathlib.Path | None = None

    def _filtered(self, documents: Sequence[Document]) -> _FilteredDocuments:
        filtered = _FilteredDocuments()
        for group in self._groups(documents):
            turns = self._turns(group)
            screened = screen(self.guard.active_guard, turns) if turns else []
            self._add(filtered, group, screened)
        return filtered

    async def _afiltered(self, documents: Sequence[Document]) -> _FilteredDocuments:
        filtered = _FilteredDocuments()
        for group in await asyncio.to_thread(self._groups, documents):
            turns = self._turns(group)
            screened = await ascreen(self.guard.active_guard, turns) if turns else []
            await asyncio.to_thread(self._add, filtered, group, screened)
        return filtered

    def _groups(self, documents: Sequence[Document]) -> list[_Group]:
        """The documents with their images, in order, so many at a time as are checked together."""
        fields = Fields(self.image_fields, self.path_fields, self.masked_dir)
        groups: list[_Group] = [[]]
        count = 0
        for document in documents:
            images = find_images(document, fields)
            if count and count + len(images) > _IMAGES_AT_ONCE:
                groups.append([])
                count = 0
            groups[-1].append((document, images))
            count += len(images)
        return groups

    def _turns(self, group: _Group) -> list[_FoundImages]:
        return [
            _FoundImages(
                [None] * len(images),
                self.source,
                slots=tuple(MediaBlock((index,), image.reading) for index, image in enumerate(images)),
            )
            for _, images in group
            if images
        ]

    def _add(self, filtered: _FilteredDocuments, group: _Group, screened: Sequence[Screened]) -> None:
        """Decide on the documents of a group, with the results of those that have images."""
        results = iter(screened)
        for document, images in group:
            if not images:
                filtered.documents.append(document)
                continue
            result = next(results)
            filtered.verdicts += result.verdicts
            withheld = result.withheld
            if withheld:
                filtered.violation = filtered.violation or first_violation(withheld) or withheld[0]
                if self.quarantine is not None:
                    self.quarantine(document, result.verdicts)
            if not withheld or self.on_violation == "redact":
                filtered.documents.append(_rewritten(document, images, result))


class ImageDocumentTransformer(_DocumentFilter, BaseDocumentTransformer):
    """Checks the images of documents before they are stored.

    Finds images in ``page_content`` (a data URL or base64 as the whole text; data URLs within Markdown, HTML or JSON)
    and in metadata (data URLs, base64, bytes and PIL images anywhere; files and URLs in fields that are named). Use it
    before a text splitter, which would cut encoded images to pieces. By the action of each image:

    - ``allow``, ``flag``, ``prefix``: it stays. The prefix is for the prompt: that is the chat guard's to add.
    - ``mask``: the masked image, as PNG, takes its place in the same form; for a file, see ``masked_dir``.
    - ``block``, ``route``: the document is withheld, see ``on_violation``.

    A document with an image gets ``metadata["guardalign"]``, a JSON list with one record per image (verdict id,
    digest, action, category; no pixels), and ``metadata["guardalign_action"]``, the severest of the actions. What was
    given is never changed; a document that needs no change comes back as the very same object. Order and ids stay.

    Attributes:
        guard: Checks; an `ImageGuard` or a core `Guard`. Of the former only what makes its guard counts.
        source: Where the images came from, for the policy.
        on_violation: What becomes of a document with an image that the policy withholds: ``drop`` leaves it out,
            ``redact`` puts a short notice in the image's place and keeps the rest, ``raise`` raises
            `UnsafeContentError` once all documents are checked.
        quarantine: Called with the original document and its verdicts for every document from which an image is
            withheld, whatever becomes of it. What it raises is passed on.
        image_fields: Metadata fields that hold images and nothing else: base64, data URLs, bytes, PIL images, http
            URLs, content blocks, or lists of them. What is in them and cannot be opened is a finding. A URL is fetched
            if the policy has rules for it.
        path_fields: Metadata fields with local paths, or URLs, of images or other files. A file counts as an image
            by its suffix or first bytes, a URL by its suffix. Fields not named here are never taken for paths.
        masked_dir: Folder for masked copies of local files, to which the field then points; the file itself is never
            changed. None withholds a document whose file would have to be masked.
    """

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """Check documents; the images of all of them together. Keyword arguments are ignored.

        Raises:
            UnsafeContentError: An image was withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked copy cannot be written.
        """
        return _passed(self._filtered(documents), self.on_violation)

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """`transform_documents` without blocking the event loop."""
        return _passed(await self._afiltered(documents), self.on_violation)


class ImageDocumentCompressor(_DocumentFilter, BaseDocumentCompressor):
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
        filtered = self._filtered(documents)
        if filtered.verdicts and (config := _run_of(callbacks)) is not None:
            dispatch_custom_event(EVENT, event_of(filtered.verdicts), config=config)
        return _passed(filtered, self.on_violation)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """`compress_documents` without blocking the event loop."""
        filtered = await self._afiltered(documents)
        if filtered.verdicts and (config := _run_of(callbacks)) is not None:
            await adispatch_custom_event(EVENT, event_of(filtered.verdicts), config=config)
        return _passed(filtered, self.on_violation)


def _passed(filtered: _FilteredDocuments, on_violation: str) -> list[Document]:
    if on_violation == "raise" and filtered.violation is not None:
        raise UnsafeContentError(filtered.violation)
    return filtered.documents


def _rewritten(document: Document, images: Sequence[FoundImage], result: Screened) -> Document:
    """The document with what takes its images' places, and the records; itself if it stays as it is."""
    content = with_images(document, images, result)
    content["metadata"] = with_records(content["metadata"], result.verdicts)
    update = {name: value for name, value in content.items() if value is not getattr(document, name)}
    return document.model_copy(update=update) if update else document


def _run_of(callbacks: Callbacks | None) -> RunnableConfig | None:
    """A config to dispatch events within the run that callbacks belong to; None if they belong to none."""
    is_of_run = isinstance(callbacks, BaseCallbackManager) and callbacks.parent_run_id is not None
    return {"callbacks": callbacks} if is_of_run else None
