"""A filter around a reader: the only place in front of an ingestion pipeline's duplicate checks and cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Final, cast

from llama_index.core.readers.base import BasePydanticReader, BaseReader
from llama_index.core.schema import BaseComponent, Document
from pydantic import field_serializer

from llama_index_guardalign.nodes.filter import FilteredNodes, FiltersNodes

_AT_ONCE: Final = 16


class GuardedReader(FiltersNodes, BasePydanticReader):
    """Reads documents by another reader and checks their images; what becomes of them is as in `ImageGuardTransform`.

    Documents with images get a record with the image's digest, which tells them apart for a pipeline's duplicate
    checks and cache. Nothing has been remembered yet, so it raises if the guard cannot work.

    Attributes:
        reader: The other reader. Its further methods, such as those for single resources, are not guarded: call the
            four that load data here. Dumped by name only, unless it can be dumped.
        guard: A `Guard`, a `Policy`, the path of a policy file, or `GuardSettings`.
        source: Where the images came from, for the policy.
        on_violation: ``notice`` withholds what the policy blocks and passes on the rest, ``raise`` raises
            `UnsafeContentError`.
        withhold: ``document`` leaves out a document with a blocked image, ``image`` puts a notice in the image's place
            and keeps the rest.
        quarantine: Called with the original of every document from which an image is withheld, and its verdicts. Not
            dumped.
        masked_dir: Folder for masked and canonical images; None keeps them in the documents, in a data URL as well.
    """

    reader: BaseReader

    _is_for_storage: ClassVar[bool] = True

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps."""
        return "GuardedReader"

    @field_serializer("reader")
    def _dump_reader(self, reader: BaseReader) -> dict[str, Any]:
        return reader.to_dict() if isinstance(reader, BaseComponent) else {"class_name": type(reader).__name__}

    def load_data(self, *args: Any, **load_kwargs: Any) -> list[Document]:
        """Load and check.

        Raises:
            UnsafeContentError: An image is withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked image cannot be written.
        """
        return _documents(self._filtered(self.reader.load_data(*args, **load_kwargs)))

    async def aload_data(self, *args: Any, **load_kwargs: Any) -> list[Document]:
        """`load_data` without blocking the event loop."""
        return _documents(await self._afiltered(await self.reader.aload_data(*args, **load_kwargs)))

    def lazy_load_data(self, *args: Any, **load_kwargs: Any) -> Iterable[Document]:
        """`load_data`, some documents at a time."""
        for part in _parts(self.reader.lazy_load_data(*args, **load_kwargs)):
            yield from _documents(self._filtered(part))

    async def alazy_load_data(self, *args: Any, **load_kwargs: Any) -> Iterable[Document]:
        """`lazy_load_data`, begun without blocking the event loop; what is iterated over later is not async."""
        return await asyncio.to_thread(self.lazy_load_data, *args, **load_kwargs)


def _documents(filtered: FilteredNodes) -> list[Document]:
    return cast("list[Document]", filtered.passed)


def _parts(documents: Iterable[Document]) -> Iterator[Sequence[Document]]:
    remaining = iter(documents)
    while part := list(islice(remaining, _AT_ONCE)):
        yield part
