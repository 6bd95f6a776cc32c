"""Filters nodes with images, on their way into a store or out of one.

The core decides what passes and what is withheld. This module rewrites nodes, puts findings on record and announces
them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from llama_index.core.schema import BaseComponent, BaseNode, MediaResource, Node
from pydantic import Field

from guardalign_guardrails import Source, Verdict
from guardalign_guardrails.content.documents.filter import (
    CheckedImages,
    DocumentFilter,
    DocumentT,
    FilteredDocuments,
    FilterRule,
    Withhold,
)
from guardalign_guardrails.content.documents.records import ACTION_KEY, RECORD_KEY, with_records
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings, StoredPath
from llama_index_guardalign.events import announce
from llama_index_guardalign.nodes.images import Storage, copied, find_images, with_images, without_second_url

logger = logging.getLogger(__name__)

Quarantine: TypeAlias = Callable[[BaseNode, tuple[Verdict, ...]], object]
"""Called with the original of every node from which an image is withheld, and its verdicts."""

FilteredNodes: TypeAlias = FilteredDocuments[BaseNode]


def node_filter(
    guard: GuardSettings,
    *,
    source: Source = "retrieved",
    withhold: Withhold = "document",
    quarantine: Quarantine | None = None,
    masked_dir: Path | str | None = None,
    is_for_storage: bool = False,
) -> DocumentFilter[BaseNode]:
    """A filter for nodes.

    Args:
        guard: Settings of the guard.
        source: Where the images came from, for the policy.
        withhold: What is withheld for a blocked image, the node or only the image.
        quarantine: Called with what is withheld.
        masked_dir: Folder for masked and canonical images; None keeps them in the nodes.
        is_for_storage: Whether nodes are about to be stored: all verdicts are put on record then, and a node
            whose image is replaced loses the embedding of the original.
    """
    storage = Storage(None if masked_dir is None else Path(masked_dir), is_lasting=is_for_storage)

    def rewrite(node: BaseNode, checked: CheckedImages) -> BaseNode:
        new = with_images(node, checked.images, checked.replacements, storage)
        if guard.policy.mode == "enforce":
            new = without_second_url(new)
        recorded = [verdict for verdict in checked.verdicts if is_for_storage or verdict.finding != "none"]
        update = _records(new, recorded)
        if is_for_storage:
            update |= _for_storage(new, is_changed=bool(checked.replacements))
        return copied(new, update) if update else new

    return DocumentFilter(guard, find_images, rewrite, source, withhold, quarantine)


def announced(
    component: str, filtered: FilteredDocuments[DocumentT], on_violation: FilterRule = "notice"
) -> FilteredDocuments[DocumentT]:
    """What was filtered, once its verdicts have gone out as an event.

    Raises:
        UnsafeContentError: An image is withheld and ``on_violation`` is ``raise``.
    """
    announce(component, filtered.verdicts)
    filtered.raise_by(on_violation)
    return filtered


class FiltersNodes(BaseComponent):
    """The settings that components with a filter have in common.

    LlamaIndex drops from a pickle what cannot be pickled. Of these components nothing is dropped: a copy without its
    guard would let everything pass.
    """

    guard: GuardField = Field(default_factory=GuardSettings)
    source: Source = "retrieved"
    on_violation: FilterRule = "notice"
    withhold: Withhold = "document"
    quarantine: Quarantine | None = Field(default=None, exclude=True, repr=False)
    masked_dir: StoredPath | None = None

    _is_for_storage: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        for name in type(self).model_fields:
            # Its handlers belong to one process, and a callback manager without them is a good one.
            if name != "callback_manager":
                check_pickles(name, getattr(self, name))
        return super().__getstate__()

    def _filtered(self, nodes: Sequence[BaseNode]) -> FilteredNodes:
        return self._reported(self._filter.filter(nodes))

    async def _afiltered(self, nodes: Sequence[BaseNode]) -> FilteredNodes:
        return self._reported(await self._filter.afilter(nodes))

    def _reported(self, filtered: FilteredNodes) -> FilteredNodes:
        announced(self.class_name(), filtered, self.on_violation)
        # What is not stored is missed much later, and not by those who stored it.
        if self._is_for_storage and (withheld := filtered.places.count(None)):
            logger.warning("%s withheld %d of %d nodes", self.class_name(), withheld, len(filtered.places))
        return filtered

    @property
    def _filter(self) -> DocumentFilter[BaseNode]:
        return node_filter(
            self.guard,
            source=self.source,
            withhold=self.withhold,
            quarantine=self.quarantine,
            masked_dir=self.masked_dir,
            is_for_storage=self._is_for_storage,
        )


def _records(node: BaseNode, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The metadata with verdicts on record, and what keeps these out of prompts and embeddings."""
    metadata = with_records(node.metadata, verdicts)
    if metadata is node.metadata:
        return {}
    names = ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
    excluded = {name: list(dict.fromkeys([*getattr(node, name), RECORD_KEY, ACTION_KEY])) for name in names}
    return {"metadata": metadata, **excluded}


def _for_storage(node: BaseNode, *, is_changed: bool) -> dict[str, Any]:
    update: dict[str, Any] = {}
    if is_changed:
        update = {name: None for name in ("embedding", "text_embedding") if getattr(node, name, None) is not None}
    if isinstance(node, Node) and node.text_resource is None:
        # Without text, LlamaIndex leaves the metadata out of a node's hash, and takes all such nodes for one.
        update["text_resource"] = MediaResource(text="")
    return update
