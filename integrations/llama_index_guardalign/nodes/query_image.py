"""Checks the image that a user asks with, `QueryBundle.image_path`, before an embedding model opens it.

The nodes that are found for a query are the postprocessor's to check.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from llama_index.core.schema import QueryBundle

from guardalign_guardrails.content.documents.filter import CheckedImages, DocumentFilter, FilterRule, not_refuse
from guardalign_guardrails.content.documents.images import FoundImage, of_file
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from llama_index_guardalign.nodes.filter import announced

_COMPONENT: Final = "check_query_image"


def check_query_image(
    query: QueryBundle,
    guard: GuardLike = None,
    *,
    on_violation: FilterRule = "raise",
    masked_dir: Path | str | None = None,
) -> QueryBundle:
    """The query to ask with.

    Args:
        query: A query; its text is not judged.
        guard: A guard, a policy, the path of a policy file, or settings.
        on_violation: ``raise`` raises `UnsafeContentError`, ``notice`` leaves a blocked image out of the query.
        masked_dir: Folder for a masked or canonical copy of the image; without one, an image that would have to be
            replaced is blocked: embedding models take paths.

    Returns:
        The very same object if nothing changed.

    Raises:
        UnsafeContentError: The image is blocked and ``on_violation`` is ``raise``.
        SettingsError: ``on_violation`` is ``refuse``: this function gives no answer.
        GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
        OSError: A masked copy cannot be written.
    """
    not_refuse(on_violation)
    return announced(_COMPONENT, _filter(guard, masked_dir).filter([query]), on_violation).passed[0]


async def acheck_query_image(
    query: QueryBundle,
    guard: GuardLike = None,
    *,
    on_violation: FilterRule = "raise",
    masked_dir: Path | str | None = None,
) -> QueryBundle:
    """`check_query_image` without blocking the event loop."""
    not_refuse(on_violation)
    return announced(_COMPONENT, await _filter(guard, masked_dir).afilter([query]), on_violation).passed[0]


def _filter(guard: GuardLike, masked_dir: Path | str | None) -> DocumentFilter[QueryBundle]:
    folder = None if masked_dir is None else Path(masked_dir)

    def find(query: QueryBundle) -> list[FoundImage]:
        return [] if query.image_path is None else [of_file(query.image_path, ("image_path",), folder)]

    return DocumentFilter(GuardSettings.of(guard), find, _rewritten, source="user", withhold="image")


def _rewritten(query: QueryBundle, checked: CheckedImages) -> QueryBundle:
    for replacement in checked.replacements:
        path = None if replacement.is_withheld else replacement.value
        return dataclasses.replace(query, image_path=path, embedding=None)
    return query
