"""A filter between a retriever and a prompt: what was stored before there was a filter, or past it, is caught here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode
from pydantic import Field

from guardalign_guardrails import Source, UnsafeContentError
from guardalign_guardrails.guarding.settings import GuardField, GuardSettings, StoredPath
from llama_index_guardalign.nodes.filter import FilteredNodes, NodeFilter, Withholding, afilter_nodes, filter_nodes
from llama_index_guardalign.spans import not_spanned

NOTE: Final = "[all that was found is withheld by the safety policy]"
"""What a prompt says in the place of retrieved nodes, if none is left and ``on_empty`` is ``note``."""


class ImageGuardPostprocessor(BaseNodePostprocessor):
    """Checks the images of retrieved nodes; those of one call together.

    By the action of each image:

    - ``allow``, ``flag``, ``prefix``: it stays. The prefix is for the prompt: that is the guarded LLM's to add.
    - ``mask``: the masked image takes its place, and nothing in the node leads to the original any more.
    - ``block``, ``route``: the node is withheld, see ``on_violation``.

    Order, scores, ids and relationships stay; a node that needs no change is the very same object. Records that nodes
    bring along are not believed: whoever can write to a store can write them.

    Put it before rerankers that open files, and keep a guard in front of the model: images get into prompts by other
    ways as well.

    Attributes:
        guard: Settings, a ready `Guard` or a `Policy`.
        source: Where the images came from, for the policy.
        on_violation: ``drop`` leaves the node out, ``redact`` puts a notice in the image's place and keeps the rest,
            ``raise`` raises `UnsafeContentError` once all nodes are checked.
        on_empty: What follows if nodes were dropped and none is left: ``empty`` leaves it at that (engines answer
            "Empty Response"), ``note`` puts a node with `NOTE` there, ``raise`` raises `UnsafeContentError`.
        masked_dir: Folder for masked images of media resources; None keeps them in the node.
    """

    guard: GuardField = Field(default_factory=GuardSettings)
    source: Source = "retrieved"
    on_violation: Withholding = "drop"
    on_empty: Literal["empty", "note", "raise"] = "empty"
    masked_dir: StoredPath | None = None

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps."""
        return "ImageGuardPostprocessor"

    @not_spanned
    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._passed(nodes, filter_nodes(self._filter(), _inner(nodes)))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._passed(nodes, await afilter_nodes(self._filter(), _inner(nodes)))

    def _filter(self) -> NodeFilter:
        return NodeFilter(self.class_name(), self.guard.guard, self.source, self.on_violation, self.masked_dir)

    def _passed(self, nodes: Sequence[NodeWithScore], filtered: FilteredNodes) -> list[NodeWithScore]:
        passed = with_nodes(nodes, filtered)
        if passed or not nodes or self.on_empty == "empty" or filtered.violation is None:
            return passed
        if self.on_empty == "raise":
            raise UnsafeContentError(filtered.violation)
        # Postprocessors behind this one drop what has no score.
        best = max((node.score for node in nodes if node.score is not None), default=None)
        return [NodeWithScore(node=TextNode(text=NOTE), score=best)]


def with_nodes(nodes: Sequence[NodeWithScore], filtered: FilteredNodes) -> list[NodeWithScore]:
    """What passes of scored nodes, in order and with their scores; the very same objects where nothing changed."""
    return [
        old if new is old.node else old.model_copy(update={"node": new})
        for old, new in zip(nodes, filtered.nodes, strict=True)
        if new is not None
    ]


def _inner(nodes: Sequence[NodeWithScore]) -> list[BaseNode]:
    return [node.node for node in nodes]
