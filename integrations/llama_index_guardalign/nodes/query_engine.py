"""A filter around a query engine: the image that is asked with, and the nodes between retrieval and answer.

Nodes are checked behind the engine's own postprocessors, which may fetch more of them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from guardalign_guardrails import Source, UnsafeContentError
from guardalign_guardrails.guarding.settings import GuardLike, GuardSettings
from llama_index_guardalign.nodes.filter import NodeFilter, Withholding, afilter_nodes, filter_nodes
from llama_index_guardalign.nodes.leaves import mapped
from llama_index_guardalign.nodes.postprocessor import with_nodes
from llama_index_guardalign.nodes.query_image import CheckedQuery, acheck_query, check_query
from llama_index_guardalign.nodes.retriever import GuardedRetriever

_COMPONENT: Final = "GuardedQueryEngine"


class GuardedQueryEngine(BaseQueryEngine):
    """Answers by another engine, and never from images that the policy forbids.

    - The query's own image (``QueryBundle.image_path``) is checked first. If it is withheld, or would have to be
      masked without a ``masked_dir``, the policy's refusal answers, or `UnsafeContentError` is raised.
    - Of an engine that retrieves and synthesizes, the nodes are checked in between, as by `ImageGuardPostprocessor`.
      Of any other engine, the sources of its response are checked, which is too late for its answer: guard what is
      inside it, or its LLM.

    Args:
        query_engine: The other one.
        guard: A ready guard, a policy or settings; None for the policy that ships with the package.
        source: Where retrieved images came from, for the policy. The query's is the ``user``'s.
        on_violation: ``drop``, ``redact`` or ``raise``; the last for the query's image, too.
        masked_dir: Folder for masked images of queries and of media resources.
        callback_manager: LlamaIndex's; None for the other engine's.
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        guard: GuardLike = None,
        *,
        source: Source = "retrieved",
        on_violation: Withholding = "drop",
        masked_dir: Path | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager or query_engine.callback_manager)
        self._query_engine = query_engine
        self._settings = GuardSettings.of(guard)
        self._source: Source = source
        self._on_violation: Withholding = on_violation
        self._masked_dir = masked_dir

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The other engine's nodes, checked."""
        return self._passed(self._query_engine.retrieve(query_bundle))

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """`retrieve` without blocking the event loop on the guard."""
        retrieve = getattr(self._query_engine, "aretrieve", None)
        nodes = await (
            retrieve(query_bundle) if retrieve else asyncio.to_thread(self._query_engine.retrieve, query_bundle)
        )
        return await self._apassed(nodes)

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """The other engine's answer from checked nodes."""
        more = None if additional_source_nodes is None else self._passed(additional_source_nodes)
        return self._query_engine.synthesize(query_bundle, self._passed(nodes), more)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """`synthesize` without blocking the event loop on the guard."""
        more = None if additional_source_nodes is None else await self._apassed(additional_source_nodes)
        return await self._query_engine.asynthesize(query_bundle, await self._apassed(nodes), more)

    def image_query(self, image_path: str, prompt_str: str) -> RESPONSE_TYPE:
        """A multi-modal engine's answer to an image, from checked images like it.

        Raises:
            NotImplementedError: The other engine has no such way.
        """
        if not hasattr(self._query_engine, "image_query"):
            raise NotImplementedError(f"{type(self._query_engine).__name__} takes no images.")
        checked = check_query(
            _COMPONENT, self._settings.guard, QueryBundle("", image_path=image_path), self._masked_dir
        )
        if (refusal := self._refusal(checked)) is not None:
            return refusal
        # It runs no postprocessor, and gives what it retrieves to its LLM.
        engine: Any = copy.copy(self._query_engine)
        engine._retriever = GuardedRetriever(  # noqa: SLF001  there is no other way in
            engine.retriever,
            self._settings,
            source=self._source,
            on_violation=self._on_violation,
            masked_dir=self._masked_dir,
        )
        return cast("RESPONSE_TYPE", engine.image_query(checked.query.image_path, prompt_str))

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        checked = check_query(_COMPONENT, self._settings.guard, query_bundle, self._masked_dir)
        if (refusal := self._refusal(checked)) is not None:
            return refusal
        if self._is_in_two_steps:
            nodes = self.retrieve(checked.query)
            return self._query_engine.synthesize(checked.query, nodes)
        response = self._query_engine.query(checked.query)
        found = _sources(response)
        return _with_sources(response, found, filter_nodes(self._filter("redact"), found).nodes)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        checked = await acheck_query(_COMPONENT, self._settings.guard, query_bundle, self._masked_dir)
        if (refusal := self._refusal(checked)) is not None:
            return refusal
        if self._is_in_two_steps:
            nodes = await self.aretrieve(checked.query)
            return await self._query_engine.asynthesize(checked.query, nodes)
        response = await self._query_engine.aquery(checked.query)
        found = _sources(response)
        return _with_sources(response, found, (await afilter_nodes(self._filter("redact"), found)).nodes)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self._query_engine}

    @property
    def _is_in_two_steps(self) -> bool:
        engine = type(self._query_engine)
        return all(
            getattr(engine, name) is not getattr(BaseQueryEngine, name)
            for name in ("retrieve", "synthesize", "asynthesize")
        )

    def _refusal(self, checked: CheckedQuery) -> Response | None:
        if checked.violation is None:
            return None
        if self._on_violation == "raise":
            raise UnsafeContentError(checked.violation)
        return Response(self._settings.policy.refusal)

    def _filter(self, on_violation: Withholding | None = None) -> NodeFilter:
        rule = self._on_violation if on_violation is None or self._on_violation == "raise" else on_violation
        return NodeFilter(_COMPONENT, self._settings.guard, self._source, rule, self._masked_dir)

    def _passed(self, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
        return with_nodes(nodes, filter_nodes(self._filter(), [node.node for node in nodes]))

    async def _apassed(self, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
        return with_nodes(nodes, await afilter_nodes(self._filter(), [node.node for node in nodes]))


def _sources(response: RESPONSE_TYPE) -> list[BaseNode]:
    """The nodes in a response, in its sources or its metadata, each once."""
    found: list[BaseNode] = []

    def add(leaf: Any) -> Any:
        if isinstance(leaf, BaseNode) and all(leaf is not known for known in found):
            found.append(leaf)
        return leaf

    mapped((response.source_nodes, response.metadata), add)
    return found


def _with_sources(response: RESPONSE_TYPE, old: Sequence[BaseNode], new: Sequence[BaseNode | None]) -> RESPONSE_TYPE:
    changed = {id(a): b for a, b in zip(old, new, strict=True) if a is not b}
    return cast("RESPONSE_TYPE", mapped(response, lambda leaf: changed.get(id(leaf), leaf))) if changed else response
