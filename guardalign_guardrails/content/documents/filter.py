"""Checks the images of documents: which documents pass, which pass with another image, which are withheld.

The one filter behind every framework's readers, transformers, compressors and postprocessors. An adapter says where in
its documents images are and how a document is rewritten. Text is not judged, and a document without an image is not
touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import BeforeValidator

from guardalign_guardrails.actions import Source
from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.content.dialect import Reading
from guardalign_guardrails.content.documents.images import FoundImage, Replacement
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from guardalign_guardrails.content.walk import MediaBlock
from guardalign_guardrails.errors import SettingsError, UnsafeContentError
from guardalign_guardrails.guarding.settings import GuardSettings
from guardalign_guardrails.verdict import Verdict

logger = logging.getLogger(__name__)

DocumentT = TypeVar("DocumentT")

Withhold: TypeAlias = Literal["document", "image"]
"""What is withheld for an image that the policy blocks: the document, or the image, in whose place a notice stands."""


def not_refuse(rule: object) -> object:
    """The rule for violations, for a component that has no answer to refuse.

    Raises:
        SettingsError: It is ``refuse``.
    """
    if rule == "refuse":
        raise SettingsError("'refuse' is for components that answer; this one passes content on: 'notice' or 'raise'.")
    return rule


FilterRule: TypeAlias = Annotated[Literal["notice", "raise"], BeforeValidator(not_refuse)]
"""What a filter does about a blocked image: ``notice`` withholds it and passes on the rest, ``raise`` raises
`UnsafeContentError` once all documents are checked. For a pydantic component's field."""

# Their bytes are in memory at once. The guard encodes 16 at a time whatever it is given.
_IMAGES_AT_ONCE: Final = 64


@dataclass(frozen=True)
class CheckedImages:
    """The images of one document, checked.

    Attributes:
        images: All that were found.
        verdicts: One for each.
        replacements: What takes the places of those that do not stay, in the same order.
        withheld: The verdicts of those in whose place a notice stands.
    """

    images: Sequence[FoundImage]
    verdicts: tuple[Verdict, ...]
    replacements: tuple[Replacement, ...]
    withheld: tuple[Verdict, ...]


@dataclass
class FilteredDocuments(Generic[DocumentT]):
    """What a filter makes of documents.

    Attributes:
        places: For each document what passes; None if it is withheld. The very same object if nothing changed.
        verdicts: Of all images, in reading order.
        violation: The verdict to raise or report if an image was withheld; None if none was.
    """

    places: list[DocumentT | None]
    verdicts: list[Verdict] = field(default_factory=list)
    violation: Verdict | None = None

    @property
    def passed(self) -> list[DocumentT]:
        """The documents that are not withheld."""
        return [document for document in self.places if document is not None]

    def raise_by(self, on_violation: FilterRule) -> None:
        """Raise for a withheld image if the rule says so.

        Raises:
            UnsafeContentError: An image was withheld and the rule is ``raise``.
        """
        if on_violation == "raise" and self.violation is not None:
            raise UnsafeContentError(self.violation)


_Group: TypeAlias = list[tuple[int, DocumentT, Sequence[FoundImage]]]


@dataclass(frozen=True)
class DocumentFilter(Generic[DocumentT]):
    """A filter for the documents of one framework.

    Attributes:
        guard: Settings of the guard, which is made when the first image is found.
        find: Finds the images of a document; nothing is decoded or fetched yet.
        rewrite: Makes the document that passes, with the replacements and whatever goes on record; the very same object
            if nothing changes. It must not change the document.
        source: Where the images came from, for the policy.
        withhold: What is withheld for a blocked image.
        quarantine: Called with the original of every document from which an image is withheld, and its verdicts.
    """

    guard: GuardSettings = field(repr=False)
    find: Callable[[DocumentT], Sequence[FoundImage]]
    rewrite: Callable[[DocumentT, CheckedImages], DocumentT]
    source: Source = "retrieved"
    withhold: Withhold = "document"
    quarantine: Callable[[DocumentT, tuple[Verdict, ...]], object] | None = field(default=None, repr=False)

    def filter(self, documents: Sequence[DocumentT]) -> FilteredDocuments[DocumentT]:
        """Check documents; up to 64 images of them together.

        Raises:
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked or canonical copy cannot be written.
        """
        filtered = FilteredDocuments[DocumentT](list(documents))
        for group in self._groups(documents):
            self._settle(filtered, group, screen(self.guard.guard, self._turns(group)))
        return filtered

    async def afilter(self, documents: Sequence[DocumentT]) -> FilteredDocuments[DocumentT]:
        """`filter` without blocking the event loop."""
        filtered = FilteredDocuments[DocumentT](list(documents))
        for group in await asyncio.to_thread(self._groups, documents):
            screened = await ascreen(self.guard.guard, self._turns(group))
            await asyncio.to_thread(self._settle, filtered, group, screened)
        return filtered

    def _groups(self, documents: Sequence[DocumentT]) -> list[_Group[DocumentT]]:
        """The documents that have images, in order, as many at a time as are checked together."""
        groups: list[_Group[DocumentT]] = []
        count = _IMAGES_AT_ONCE
        for place, document in enumerate(documents):
            images = self.find(document)
            if not images:
                continue
            if count + len(images) > _IMAGES_AT_ONCE:
                groups.append([])
                count = 0
            groups[-1].append((place, document, images))
            count += len(images)
        return groups

    def _turns(self, group: _Group[DocumentT]) -> list[_ImagesOfDocument]:
        return [_ImagesOfDocument([None] * len(images), self.source, images=images) for _, _, images in group]

    def _settle(
        self, filtered: FilteredDocuments[DocumentT], group: _Group[DocumentT], screened: Sequence[Screened]
    ) -> None:
        for (place, document, images), result in zip(group, screened, strict=True):
            filtered.verdicts += result.verdicts
            for verdict in result.withheld:
                if not verdict.is_blocked:
                    # It may pass changed: without a word nobody would know why it is missing.
                    name = f"An image (digest {verdict.digest[:12]})" if verdict.digest else "An image"
                    logger.warning("%s is %s; where it is a file, give a masked_dir", name, verdict.reasons[-1])
            if result.withheld:
                filtered.violation = filtered.violation or first_violation(result.withheld) or result.withheld[0]
                if self.quarantine is not None:
                    self.quarantine(document, result.verdicts)
            is_out = bool(result.withheld) and self.withhold == "document"
            filtered.places[place] = None if is_out else self.rewrite(document, _checked(images, result))


@dataclass
class _ImagesOfDocument(Turn):
    """The images of one document as a turn, of which ``content`` has a None for each."""

    images: Sequence[FoundImage] = ()

    def find(self) -> list[MediaBlock]:
        return [MediaBlock((index,), _typed(image.reading)) for index, image in enumerate(self.images)]


class _Written(NamedTuple):
    """What a reading wrote, and the media type of the image that it wrote."""

    value: Any
    mime: str


def _typed(reading: Reading) -> Reading:
    write = reading.write
    if write is None:
        return reading
    return replace(reading, write=lambda data, mime: _Written(write(data, mime), mime))


def _checked(images: Sequence[FoundImage], result: Screened) -> CheckedImages:
    # Each place has a verdict of its own, however alike two of them are.
    withheld = {id(verdict) for verdict in result.withheld}
    replacements = tuple(
        Replacement(image, value.value, is_withheld=False, mime=value.mime)
        if isinstance(value, _Written)
        else Replacement(image, value, id(verdict) in withheld)
        for image, value, verdict in zip(images, result.content, result.verdicts, strict=True)
        if value is not None
    )
    return CheckedImages(images, result.verdicts, replacements, result.withheld)
