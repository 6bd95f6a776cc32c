"""What becomes of nodes with images, on their way into a store or out of one.

One filter for all components that handle nodes: the images of all nodes of a call are checked together, and each node
passes, passes masked, or is withheld. Text is not judged, and a node without an image is not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from llama_index.core.schema import BaseNode, MediaResource, Node

from guardalign_guardrails import Guard, Source, UnsafeContentError, Verdict
from guardalign_guardrails.content.chat import first_violation
from guardalign_guardrails.content.records import ACTION_KEY, RECORD_KEY, with_records
from guardalign_guardrails.content.screen import Screened, Turn, ascreen, screen
from guardalign_guardrails.content.walk import MediaBlock
from llama_index_guardalign.events import announce
from llama_index_guardalign.nodes.images import FoundImage, copied, find_images, with_images, without_second_url

Withholding: TypeAlias = Literal["drop", "redact", "raise"]
"""What becomes of a node with an image that the policy withholds: it is left out, a notice takes the image's place,
or `UnsafeContentError` is raised once all nodes are checked."""

Quarantine: TypeAlias = Callable[[BaseNode, tuple[Verdict, ...]], None]
"""Is given the original of every node from which an image is withheld, and why."""

# Their bytes are in memory at once. The guard encodes 16 at a time whatever it is given.
_IMAGES_AT_ONCE: Final = 64

_Group: TypeAlias = list[tuple[int, BaseNode, list[FoundImage]]]


@dataclass(frozen=True)
class NodeFilter:
    """The rules of a filter.

    Attributes:
        component: Class name of the component that has the filter.
        guard: What checks.
        source: Where the images came from, for the policy.
        on_violation: What becomes of a node with an image that the policy withholds.
        masked_dir: Folder for masked images of media resources, whose bytes LlamaIndex does not store.
        quarantine: Is given what is withheld.
        is_for_storage: Whether nodes are about to be stored: all verdicts are put on record then, and a masked node
            loses the embedding of what is masked.
    """

    component: str
    guard: Guard = field(repr=False)
    source: Source = "retrieved"
    on_violation: Withholding = "drop"
    masked_dir: Path | None = None
    quarantine: Quarantine | None = field(default=None, repr=False)
    is_for_storage: bool = False


@dataclass
class FilteredNodes:
    """What became of nodes.

    Attributes:
        nodes: For each node what passes; None if it is left out. The very same object if nothing changed.
        verdicts: Of all images, in reading order.
        violation: The first verdict because of which an image was withheld; None if there is none.
    """

    nodes: list[BaseNode | None]
    verdicts: list[Verdict] = field(default_factory=list)
    violation: Verdict | None = None

    @property
    def passed(self) -> list[BaseNode]:
        """The nodes that are not left out."""
        return [node for node in self.nodes if node is not None]


@dataclass(frozen=True)
class _FoundImages(Turn):
    """The images of one node as a turn: what is found is given, and ``content`` has a None for each."""

    slots: tuple[MediaBlock, ...] = ()

    def find(self) -> list[MediaBlock]:
        return list(self.slots)


def filter_nodes(node_filter: NodeFilter, nodes: Sequence[BaseNode]) -> FilteredNodes:
    """Check nodes, and tell whoever listens.

    Raises:
        UnsafeContentError: An image is withheld and ``on_violation`` is ``raise``.
        GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
        OSError: A masked image cannot be written.
    """
    filtered = FilteredNodes(list(nodes))
    for group in _groups(nodes):
        _settle(node_filter, filtered, group, screen(node_filter.guard, _turns(node_filter, group)))
    return _told(node_filter, filtered)


async def afilter_nodes(node_filter: NodeFilter, nodes: Sequence[BaseNode]) -> FilteredNodes:
    """`filter_nodes` without blocking the event loop."""
    filtered = FilteredNodes(list(nodes))
    for group in await asyncio.to_thread(_groups, nodes):
        screened = await ascreen(node_filter.guard, _turns(node_filter, group))
        await asyncio.to_thread(_settle, node_filter, filtered, group, screened)
    return _told(node_filter, filtered)


def _groups(nodes: Sequence[BaseNode]) -> list[_Group]:
    """The nodes that have images, in order, so many at a time as are checked together."""
    groups: list[_Group] = []
    count = _IMAGES_AT_ONCE
    for place, node in enumerate(nodes):
        images = find_images(node)
        if not images:
            continue
        if count + len(images) > _IMAGES_AT_ONCE:
            groups.append([])
            count = 0
        groups[-1].append((place, node, images))
        count += len(images)
    return groups


def _turns(node_filter: NodeFilter, group: _Group) -> list[Turn]:
    return [
        _FoundImages(
            [None] * len(images),
            node_filter.source,
            slots=tuple(MediaBlock((index,), image.reading) for index, image in enumerate(images)),
        )
        for _, _, images in group
    ]


def _settle(node_filter: NodeFilter, filtered: FilteredNodes, group: _Group, screened: Sequence[Screened]) -> None:
    for (place, node, images), result in zip(group, screened, strict=True):
        filtered.verdicts += result.verdicts
        withheld = result.withheld
        if withheld:
            filtered.violation = filtered.violation or first_violation(withheld) or withheld[0]
            if node_filter.quarantine is not None:
                node_filter.quarantine(node, result.verdicts)
        is_out = bool(withheld) and node_filter.on_violation != "redact"
        filtered.nodes[place] = None if is_out else _rewritten(node_filter, node, images, result)


def _rewritten(node_filter: NodeFilter, node: BaseNode, images: Sequence[FoundImage], result: Screened) -> BaseNode:
    """The node with what takes its images' places, and with records; itself if it stays as it is."""
    new = with_images(node, images, result.content, node_filter.masked_dir)
    if node_filter.guard.policy.mode == "enforce":
        new = without_second_url(new)
    told = [verdict for verdict in result.verdicts if node_filter.is_for_storage or verdict.proposed != "allow"]
    metadata = with_records(new.metadata, told)
    update: dict[str, Any] = {}
    if metadata is not new.metadata:
        update["metadata"] = metadata
        for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
            known = getattr(new, name)
            update[name] = [*known, *(key for key in (RECORD_KEY, ACTION_KEY) if key not in known)]
    if node_filter.is_for_storage:
        update |= _for_storage(new, is_changed=any(value is not None for value in result.content))
    return copied(new, update) if update else new


def _for_storage(node: BaseNode, *, is_changed: bool) -> dict[str, Any]:
    update: dict[str, Any] = {}
    if is_changed:
        update = {name: None for name in ("embedding", "text_embedding") if getattr(node, name, None) is not None}
    if isinstance(node, Node) and node.text_resource is None:
        # Without words, LlamaIndex leaves the metadata out of what it knows nodes by, and takes all of them for one.
        update["text_resource"] = MediaResource(text="")
    return update


def _told(node_filter: NodeFilter, filtered: FilteredNodes) -> FilteredNodes:
    announce(node_filter.component, filtered.verdicts)
    if node_filter.on_violation == "raise" and filtered.violation is not None:
        raise UnsafeContentError(filtered.violation)
    return filtered
