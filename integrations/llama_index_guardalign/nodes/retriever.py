"""A filter around a retriever, for those who use one without an engine, and for ways that run no postprocessor.

A multi-modal retriever has six such ways; its engine's ``image_query`` uses one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.base_multi_modal_retriever import MultiModalRetriever
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType

from guardalign_guardrails import Source, UnsafeContentError
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from llama_index_guardalign.nodes.filter import NodeFilter, Withholding, afilter_nodes, filter_nodes
from llama_index_guardalign.nodes.postprocessor import with_nodes
from llama_index_guardalign.nodes.query_image import CheckedQuery, acheck_query, check_query


class GuardedRetriever(MultiModalRetriever):
    """Retrieves by another retriever and checks the images of what it finds, and the image of the query.

    What becomes of found nodes is as in `ImageGuardPostprocessor`. A query's image that is withheld, or would have to
    be masked without a ``masked_dir``, is left out of the query; if nothing else is asked with, nothing is found.

    Args:
        retriever: The other one; multi-modal, if its further ways are to be used.
        guard: A ready guard, a policy or settings; None for the policy that ships with the package.
        source: Where found images came from, for the policy. The query's is the ``user``'s.
        on_violation: ``drop``, ``redact`` or ``raise``; the last for the query's image, too.
        masked_dir: Folder for masked images of queries and of media resources.
        callback_manager: LlamaIndex's; None for the other retriever's.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        guard: GuardLike = None,
        *,
        source: Source = "retrieved",
        on_violation: Withholding = "drop",
        masked_dir: Path | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager or getattr(retriever, "callback_manager", None))
        self._retriever = retriever
        self._settings = GuardSettings.of(guard)
        self._source: Source = source
        self._on_violation: Withholding = on_violation
        self._masked_dir = masked_dir

    def text_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The other retriever's, checked."""
        return self._found(str_or_query_bundle, self._multi_modal.text_retrieve)

    def text_to_image_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The other retriever's, checked."""
        return self._found(str_or_query_bundle, self._multi_modal.text_to_image_retrieve)

    def image_to_image_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The other retriever's, checked; text is the path of the query's image."""
        return self._found(_with_image(str_or_query_bundle), self._multi_modal.image_to_image_retrieve)

    async def atext_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """`text_retrieve` without blocking the event loop on the guard."""
        return await self._afound(str_or_query_bundle, self._multi_modal.atext_retrieve)

    async def atext_to_image_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """`text_to_image_retrieve` without blocking the event loop on the guard."""
        return await self._afound(str_or_query_bundle, self._multi_modal.atext_to_image_retrieve)

    async def aimage_to_image_retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """`image_to_image_retrieve` without blocking the event loop on the guard."""
        return await self._afound(_with_image(str_or_query_bundle), self._multi_modal.aimage_to_image_retrieve)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._found(query_bundle, self._retriever.retrieve)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self._afound(query_bundle, self._retriever.aretrieve)

    def _text_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.text_to_image_retrieve(query_bundle)

    def _image_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.image_to_image_retrieve(query_bundle)

    async def _atext_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self.atext_to_image_retrieve(query_bundle)

    async def _aimage_to_image_retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await self.aimage_to_image_retrieve(query_bundle)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"retriever": self._retriever}

    @property
    def _multi_modal(self) -> MultiModalRetriever:
        if not isinstance(self._retriever, MultiModalRetriever):
            raise NotImplementedError(f"{type(self._retriever).__name__} is no multi-modal retriever.")
        return self._retriever

    def _found(self, query: QueryType, retrieve: Callable[[Any], list[NodeWithScore]]) -> list[NodeWithScore]:
        checked = check_query(_name(self), self._settings.guard, _bundle(query), self._masked_dir)
        if not self._is_asked(checked):
            return []
        nodes = retrieve(checked.query)
        return with_nodes(nodes, filter_nodes(self._filter(), _inner(nodes)))

    async def _afound(
        self, query: QueryType, retrieve: Callable[[Any], Awaitable[list[NodeWithScore]]]
    ) -> list[NodeWithScore]:
        checked = await acheck_query(_name(self), self._settings.guard, _bundle(query), self._masked_dir)
        if not self._is_asked(checked):
            return []
        nodes = await retrieve(checked.query)
        return with_nodes(nodes, await afilter_nodes(self._filter(), _inner(nodes)))

    def _is_asked(self, checked: CheckedQuery) -> bool:
        """Whether anything is left to ask with."""
        if checked.violation is None:
            return True
        if self._on_violation == "raise":
            raise UnsafeContentError(checked.violation)
        return bool(checked.query.query_str)

    def _filter(self) -> NodeFilter:
        return NodeFilter(_name(self), self._settings.guard, self._source, self._on_violation, self._masked_dir)


def _name(retriever: GuardedRetriever) -> str:
    return type(retriever).__name__


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _with_image(query: QueryType) -> QueryType:
    return QueryBundle(query_str="", image_path=query) if isinstance(query, str) else query


def _inner(nodes: Sequence[NodeWithScore]) -> list[Any]:
    return [node.node for node in nodes]
