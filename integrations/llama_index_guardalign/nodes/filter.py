"""Filters nodes with images, on their way into a store or out of one: LlamaIndex's half of the core's filter.

Every component that handles nodes has one. What passes and what is withheld the core decides; here a node is rewritten,
and what was found goes on record and out as an event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from llama_index.core.schema import BaseComponent, BaseNode, MediaResource, Node
from pydantic import Field

from guardalign_guardrails import Source, Verdict
from guardalign_guardrails.content.documents import (
    CheckedImages,
    DocumentFilter,
    FilteredDocuments,
    FilterRule,
    Withhold,
)
from guardalign_guardrails.content.records import ACTION_KEY, RECORD_KEY, with_records
from guardalign_guardrails.guarding.pickles import check_pickles
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings, StoredPath
from llama_index_guardalign.events import announce
from llama_index_guardalign.nodes.images import copied, find_images, with_images, without_second_url

Quarantine: TypeAlias = Callable[[BaseNode, tuple[Verdict, ...]], object]
"""Called with the original of every node from which an image is withheld, and its verdicts."""

FilteredNodes: TypeAlias = FilteredDocuments[BaseNode]


@dataclass(frozen=True)
class NodeFilter:
    """A filter for nodes.

    Attributes:
        component: Class name of the component that has the filter, for events.
        guard: Settings of the guard.
        source: Where the images came from, for the policy.
        on_violation: What happens if an image is blocked.
        withhold: What is withheld for it, a node or only the image.
        masked_dir: Folder for masked images of media resources, whose bytes LlamaIndex does not store.
        quarantine: Is given what is withheld.
        is_for_storage: Whether nodes are about to be stored: all verdicts are put on record then, and a masked node
            loses the embedding of what is masked.
    """

    component: str
    guard: GuardSettings = field(repr=False)
    source: Source = "retrieved"
    on_violation: FilterRule = "notice"
    withhold: Withhold = "document"
    masked_dir: Path | None = None
    quarantine: Quarantine | None = field(default=None, repr=False)
    is_for_storage: bool = False

    def filter(self, nodes: Sequence[BaseNode]) -> FilteredNodes:
        """Check nodes, and dispatch an event with the verdicts.

        Raises:
            UnsafeContentError: An image is withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
            OSError: A masked image cannot be written.
        """
        return self._announced(self._documents.filter(nodes))

    async def afilter(self, nodes: Sequence[BaseNode]) -> FilteredNodes:
        """`filter` without blocking the event loop."""
        return self._announced(await self._documents.afilter(nodes))

    @property
    def _documents(self) -> DocumentFilter[BaseNode]:
        return DocumentFilter(
            self.guard, find_images, self._rewritten, self.source, self.withhold, quarantine=self.quarantine
        )

    def _announced(self, filtered: FilteredNodes) -> FilteredNodes:
        announce(self.component, filtered.verdicts)
        filtered.raise_by(self.on_violation)
        return filtered

    def _rewritten(self, node: BaseNode, checked: CheckedImages) -> BaseNode:
        """The node with what takes its images' places, and with records; itself if it stays as it is."""
        new = with_images(node, checked.images, checked.replacements, self.masked_dir)
        if self.guard.policy.mode == "enforce":
            new = without_second_url(new)
        recorded = [verdict for verdict in checked.verdicts if self.is_for_storage or verdict.finding != "none"]
        metadata = with_records(new.metadata, recorded)
        update: dict[str, Any] = {}
        if metadata is not new.metadata:
            update["metadata"] = metadata
            for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
                known = getattr(new, name)
                update[name] = [*known, *(key for key in (RECORD_KEY, ACTION_KEY) if key not in known)]
        if self.is_for_storage:
            update |= _for_storage(new, is_changed=bool(checked.replacements))
        return copied(new, update) if update else new


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

    def _filter(self) -> NodeFilter:
        return NodeFilter(
            self.class_name(),
            self.guard,
            self.source,
            self.on_violation,
            self.withhold,
            self.masked_dir,
            self.quarantine,
            self._is_for_storage,
        )


def _for_storage(node: BaseNode, *, is_changed: bool) -> dict[str, Any]:
    update: dict[str, Any] = {}
    if is_changed:
        update = {name: None for name in ("embedding", "text_embedding") if getattr(node, name, None) is not None}
    if isinstance(node, Node) and node.text_resource is None:
        # Without text, LlamaIndex leaves the metadata out of a node's hash, and takes all such nodes for one.
        update["text_resource"] = MediaResource(text="")
    return update
