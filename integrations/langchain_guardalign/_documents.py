"""Two gates for the pictures of a RAG pipeline: one before documents are stored, one before they reach a prompt.

Both do the same with what they are given; LangChain has two interfaces for it. What the policy withholds never passes:
the document goes, or the picture goes out of it. Text is not judged, and a document without a picture is not touched.
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
from guardalign_guardrails.content.records import with_records
from guardalign_guardrails.content.ruling import offender
from guardalign_guardrails.content.screen import NOTICE, Screened, Turn, ascreen, screen
from guardalign_guardrails.content.walk import Slot
from guardalign_guardrails.verdict import event_of
from langchain_guardalign._document_images import Fields, Picture, find_pictures, with_pictures
from langchain_guardalign._events import EVENT
from langchain_guardalign._runnable import ImageGuard

Quarantine: TypeAlias = Callable[[Document, tuple[Verdict, ...]], None]

# Their bytes are in memory at once. The guard encodes 16 at a time whatever it is given.
_PICTURES_AT_ONCE: Final = 64

_Group: TypeAlias = list[tuple[Document, list[Picture]]]


@dataclass(frozen=True)
class _Pictures(Turn):
    """The pictures of one document as a turn: what is found is given, and ``content`` has a None for each."""

    slots: tuple[Slot, ...] = ()

    def find(self) -> list[Slot]:
        return list(self.slots)


@dataclass
class _Sifted:
    """What became of documents.

    Attributes:
        documents: Those that pass.
        verdicts: Of all pictures, in reading order.
        offence: The first verdict because of which a picture was withheld; None if there is none.
    """

    documents: list[Document] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    offence: Verdict | None = None


def _image_guard(guard: object) -> object:
    return ImageGuard.from_guard(guard) if isinstance(guard, Guard) else guard


class _Gate(BaseModel):
    """What both gates are: settings, and one core for sync and async."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    guard: Annotated[ImageGuard, BeforeValidator(_image_guard)] = Field(default_factory=ImageGuard)
    source: Source = "retrieved"
    on_violation: Literal["drop", "redact", "raise"] = "drop"
    quarantine: Quarantine | None = Field(default=None, repr=False)
    image_fields: tuple[str, ...] = ()
    path_fields: tuple[str, ...] = ()
    masked_dir: pathlib.Path | None = None

    def _sift(self, documents: Sequence[Document]) -> _Sifted:
        sifted = _Sifted()
        for group in self._groups(documents):
            turns = self._turns(group)
            screened = screen(self.guard.active_guard, turns) if turns else []
            self._add(sifted, group, screened)
        return sifted

    async def _asift(self, documents: Sequence[Document]) -> _Sifted:
        sifted = _Sifted()
        for group in await asyncio.to_thread(self._groups, documents):
            turns = self._turns(group)
            screened = await ascreen(self.guard.active_guard, turns) if turns else []
            await asyncio.to_thread(self._add, sifted, group, screened)
        return sifted

    def _groups(self, documents: Sequence[Document]) -> list[_Group]:
        """The documents with their pictures, in order, so many at a time as are checked together."""
        fields = Fields(self.image_fields, self.path_fields, self.masked_dir)
        groups: list[_Group] = [[]]
        count = 0
        for document in documents:
            pictures = find_pictures(document, fields)
            if count and count + len(pictures) > _PICTURES_AT_ONCE:
                groups.append([])
                count = 0
            groups[-1].append((document, pictures))
            count += len(pictures)
        return groups

    def _turns(self, group: _Group) -> list[_Pictures]:
        return [
            _Pictures(
                [None] * len(pictures),
                self.source,
                slots=tuple(Slot((index,), picture.reading) for index, picture in enumerate(pictures)),
            )
            for _, pictures in group
            if pictures
        ]

    def _add(self, sifted: _Sifted, group: _Group, screened: Sequence[Screened]) -> None:
        """Decide on the documents of a group, with the results of those that have pictures."""
        results = iter(screened)
        for document, pictures in group:
            if not pictures:
                sifted.documents.append(document)
                continue
            result = next(results)
            sifted.verdicts += result.verdicts
            withheld = [
                verdict for verdict, value in zip(result.verdicts, result.content, strict=True) if value == NOTICE
            ]
            if withheld:
                sifted.offence = sifted.offence or offender(withheld) or withheld[0]
                if self.quarantine is not None:
                    self.quarantine(document, result.verdicts)
            if not withheld or self.on_violation == "redact":
                sifted.documents.append(_rewritten(document, pictures, result))


class ImageDocumentTransformer(_Gate, BaseDocumentTransformer):
    """Checks the pictures of documents before they are stored.

    Finds pictures in ``page_content`` (a data URL or base64 as the whole text; data URLs within Markdown, HTML or JSON)
    and in metadata (data URLs, base64, bytes and PIL images anywhere; files and URLs in fields that are named). Use it
    before a text splitter, which would cut encoded pictures to pieces. By the action of each picture:

    - ``allow``, ``flag``, ``prefix``: it stays. The prefix is for the prompt: that is the chat guard's to add.
    - ``mask``: the masked picture, as PNG, takes its place in the same form; for a file, see ``masked_dir``.
    - ``block``, ``route``: the document is withheld, see ``on_violation``.

    A document with a picture gets ``metadata["guardalign"]``, a JSON list with one record per picture (verdict id,
    digest, action, category; no pixels), and ``metadata["guardalign_action"]``, the severest of the actions. What was
    given is never changed; a document that needs no change comes back as the very same object. Order and ids stay.

    Attributes:
        guard: Checks; an `ImageGuard` or a core `Guard`. Of the former only what makes its guard counts.
        source: Where the pictures came from, for the policy.
        on_violation: What becomes of a document with a picture that the policy withholds: ``drop`` leaves it out,
            ``redact`` puts a short notice in the picture's place and keeps the rest, ``raise`` raises
            `UnsafeContentError` once all documents are checked.
        quarantine: Called with the original document and its verdicts for every document from which a picture is
            withheld, whatever becomes of it. What it raises is passed on.
        image_fields: Metadata fields that hold pictures and nothing else: base64, data URLs, bytes, PIL images, http
            URLs, content blocks, or lists of them. What is in them and cannot be opened is a finding. A URL is fetched
            if the policy has rules for it.
        path_fields: Metadata fields with local paths, or URLs, of pictures or other files. A file counts as a picture
            by its suffix or first bytes, a URL by its suffix. Fields not named here are never taken for paths.
        masked_dir: Folder for masked copies of local files, to which the field then points; the file itself is never
            changed. None withholds a document whose file would have to be masked.
    """

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """Check documents; the pictures of all of them together. Keyword arguments are ignored.

        Raises:
            UnsafeContentError: A picture was withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked copy cannot be written.
        """
        return _passed(self._sift(documents), self.on_violation)

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:
        """`transform_documents` without blocking the event loop."""
        return _passed(await self._asift(documents), self.on_violation)


class ImageDocumentCompressor(_Gate, BaseDocumentCompressor):
    """Checks the pictures of retrieved documents before they reach a prompt; see `ImageDocumentTransformer`.

    For `ContextualCompressionRetriever` and compressor pipelines. It trusts no record that a document brings along: all
    pictures are checked again, which costs a look-up for those that this process has seen before. Within a retriever's
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
            UnsafeContentError: A picture was withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked copy cannot be written.
        """
        sifted = self._sift(documents)
        if sifted.verdicts and (config := _run_of(callbacks)) is not None:
            dispatch_custom_event(EVENT, event_of(sifted.verdicts), config=config)
        return _passed(sifted, self.on_violation)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
    ) -> Sequence[Document]:
        """`compress_documents` without blocking the event loop."""
        sifted = await self._asift(documents)
        if sifted.verdicts and (config := _run_of(callbacks)) is not None:
            await adispatch_custom_event(EVENT, event_of(sifted.verdicts), config=config)
        return _passed(sifted, self.on_violation)


def _passed(sifted: _Sifted, on_violation: str) -> list[Document]:
    if on_violation == "raise" and sifted.offence is not None:
        raise UnsafeContentError(sifted.offence)
    return sifted.documents


def _rewritten(document: Document, pictures: Sequence[Picture], result: Screened) -> Document:
    """The document with what takes its pictures' places, and the records; itself if it stays as it is."""
    content = with_pictures(document, pictures, result.content)
    content["metadata"] = with_records(content["metadata"], result.verdicts)
    update = {name: value for name, value in content.items() if value is not getattr(document, name)}
    return document.model_copy(update=update) if update else document


def _run_of(callbacks: Callbacks | None) -> RunnableConfig | None:
    """A config to dispatch events within the run that callbacks belong to; None if they belong to none."""
    is_of_run = isinstance(callbacks, BaseCallbackManager) and callbacks.parent_run_id is not None
    return {"callbacks": callbacks} if is_of_run else None
