"""The image that a user asks with: `QueryBundle.image_path`, which embedding models open."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from pathlib import Path

from llama_index.core.schema import ImageNode, QueryBundle

from guardalign_guardrails import Guard, Verdict
from guardalign_guardrails.images import keep_png
from llama_index_guardalign.nodes.filter import FilteredNodes, NodeFilter, afilter_nodes, filter_nodes


@dataclasses.dataclass(frozen=True)
class CheckedQuery:
    """What became of a query.

    Attributes:
        query: Without what the policy forbids; the very same object if nothing changed.
        violation: Why its image is withheld; None if there is none or it may pass, masked or not.
    """

    query: QueryBundle
    violation: Verdict | None = None


def check_query(component: str, guard: Guard, query: QueryBundle, masked_dir: Path | None) -> CheckedQuery:
    """Check a query's image.

    Args:
        component: Class name of who asks.
        guard: What checks.
        query: A query; its words are not judged.
        masked_dir: Where a masked copy of the image is kept; without one, an image that would have to be masked is
            withheld: embedding models take paths.
    """
    if query.image_path is None:
        return CheckedQuery(query)
    return _checked(query, filter_nodes(_filter(component, guard, masked_dir), [_node(query)]), masked_dir)


async def acheck_query(component: str, guard: Guard, query: QueryBundle, masked_dir: Path | None) -> CheckedQuery:
    """`check_query` without blocking the event loop."""
    if query.image_path is None:
        return CheckedQuery(query)
    filtered = await afilter_nodes(_filter(component, guard, masked_dir), [_node(query)])
    return await asyncio.to_thread(_checked, query, filtered, masked_dir)


def _filter(component: str, guard: Guard, masked_dir: Path | None) -> NodeFilter:
    return NodeFilter(component, guard, "user", "drop", masked_dir)


def _node(query: QueryBundle) -> ImageNode:
    return ImageNode(image_path=query.image_path)


def _checked(query: QueryBundle, filtered: FilteredNodes, masked_dir: Path | None) -> CheckedQuery:
    node = filtered.nodes[0]
    if isinstance(node, ImageNode) and node.image_path is not None:
        return CheckedQuery(query)
    if not isinstance(node, ImageNode) or node.image is None or masked_dir is None:
        return CheckedQuery(dataclasses.replace(query, image_path=None, embedding=None), filtered.verdicts[0])
    path = keep_png(base64.b64decode(node.image), masked_dir)
    return CheckedQuery(dataclasses.replace(query, image_path=str(path), embedding=None))
