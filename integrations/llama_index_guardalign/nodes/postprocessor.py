"""A filter between a retriever and a prompt: what was stored before there was a filter, or past it, is caught here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode

from guardalign_guardrails import UnsafeContentError
from llama_index_guardalign.nodes.filter import FilteredNodes, FiltersNodes
from llama_index_guardalign.spans import not_spanned

NOTE: Final = "[all that was found is withheld by the safety policy]"
"""What a prompt says in the place of retrieved nodes, if none is left and ``on_empty`` is ``note``."""


class ImageGuardPostprocessor(FiltersNodes, BaseNodePostprocessor):
    """Checks the images of retrieved nodes; those of one call together.

    By the action of each image:

    - ``allow``, ``flag``, ``prefix``: it stays, or the guard's own reading takes its place if it has several. The
      prefix is for the prompt: that is the guarded LLM's to add.
    - ``mask``: the masked image takes its place.
    - ``block``, ``route``, and what cannot be checked if the policy blocks it: see ``on_violation``.

    Nothing in a node leads to an image that was replaced. Order, scores, ids and relationships stay; a node that needs
    no change is the very same object. Records that nodes bring along are not believed: everybody who can write to a
    store can write them.

    Put it before rerankers that open files, and keep a guard in front of the model: images get into prompts by other
    ways as well. It pickles with its guard and its quarantine, else `NotPicklable` names the member.

    Attributes:
        guard: A `Guard`, a `Policy`, the path of a policy file, or `GuardSettings`.
        source: Where the images came from, for the policy.
        on_violation: ``notice`` withholds what the policy blocks and passes on the rest, ``raise`` raises
            `UnsafeContentError` once all nodes are checked.
        withhold: ``document`` leaves out a node with a blocked image, ``image`` puts a notice in the image's place and
            keeps the rest.
        on_empty: What follows if nodes were withheld and none is left: ``empty`` leaves it at that (engines answer
            "Empty Response"), ``note`` puts a node with `NOTE` there, ``raise`` raises `UnsafeContentError`.
        quarantine: Called with the original of every node from which an image is withheld, and its verdicts. Not
            dumped.
        masked_dir: Folder for masked and canonical images; None keeps them in the nodes.
    """

    on_empty: Literal["empty", "note", "raise"] = "empty"

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps."""
        return "ImageGuardPostprocessor"

    @not_spanned
    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._passed(nodes, self._filtered(_inner(nodes)))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._passed(nodes, await self._afiltered(_inner(nodes)))

    def _passed(self, nodes: Sequence[NodeWithScore], filtered: FilteredNodes) -> list[NodeWithScore]:
        passed = [
            old if new is old.node else old.model_copy(update={"node": new})
            for old, new in zip(nodes, filtered.places, strict=True)
            if new is not None
        ]
        if passed or not nodes or self.on_empty == "empty" or filtered.violation is None:
            return passed
        if self.on_empty == "raise":
            raise UnsafeContentError(filtered.violation)
        # Postprocessors behind this one drop what has no score.
        best = max((node.score for node in nodes if node.score is not None), default=None)
        return [NodeWithScore(node=TextNode(text=NOTE), score=best)]


def _inner(nodes: Sequence[NodeWithScore]) -> list[BaseNode]:
    return [node.node for node in nodes]
