"""What becomes of nodes with pictures, on their way into a store or out of one.

One gate for all components that handle nodes: the pictures of all nodes of a call are checked together, and each node
passes, passes masked, or is withheld. Text is not judged, and a node without a picture is not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from llama_index.core.schema import BaseNode, MediaResource, Node

from guardalign_guardrails import Guard, Source, UnsafeContentError, Verdict
from guardalign_guardrails.content.records import ACTION_KEY, RECORD_KEY, with_records
from guardalign_guardrails.content.ruling import offender
from guardalign_guardrails.content.screen import NOTICE, Screened, Turn, ascreen, screen
from guardalign_guardrails.content.walk import Slot
from llama_index_guardalign._events import announce
from llama_index_guardalign._node_images import Picture, copied, find_pictures, with_pictures, without_second_url

Withholding: TypeAlias = Literal["drop", "redact", "raise"]
"""What becomes of a node with a picture that the policy withholds: it is left out, a notice takes the picture's place,
or `UnsafeContentError` is raised once all nodes are checked."""

Quarantine: TypeAlias = Callable[[BaseNode, tuple[Verdict, ...]], None]
"""Is given the original of every node from which a picture is withheld, and why."""

# Their bytes are in memory at once. The guard encodes 16 at a time whatever it is given.
_PICTURES_AT_ONCE: Final = 64

_Group: TypeAlias = list[tuple[int, BaseNode, list[Picture]]]


@dataclass(frozen=True)
class Gate:
    """The rules of a gate.

    Attributes:
        component: Class name of the component that has the gate.
        guard: What checks.
        source: Where the pictures came from, for the policy.
        on_violation: What becomes of a node with a picture that the policy withholds.
        masked_dir: Folder for masked pictures of media resources, whose bytes LlamaIndex does not store.
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
class Sifted:
    """What became of nodes.

    Attributes:
        nodes: For each node what passes; None if it is left out. The very same object if nothing changed.
        verdicts: Of all pictures, in reading order.
        offence: The first verdict because of which a picture was withheld; None if there is none.
    """

    nodes: list[BaseNode | None]
    verdicts: list[Verdict] = field(default_factory=list)
    offence: Verdict | None = None

    @property
    def passed(self) -> list[BaseNode]:
        """The nodes that are not left out."""
        return [node for node in self.nodes if node is not None]


@dataclass(frozen=True)
class _Pictures(Turn):
    """The pictures of one node as a turn: what is found is given, and ``content`` has a None for each."""

    slots: tuple[Slot, ...] = ()

    def find(self) -> list[Slot]:
        return list(self.slots)


def sift(gate: Gate, nodes: Sequence[BaseNode]) -> Sifted:
    """Check nodes, and tell whoever listens.

    Raises:
        UnsafeContentError: A picture is withheld and ``on_violation`` is ``raise``.
        GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
        OSError: A masked picture cannot be written.
    """
    sifted = Sifted(list(nodes))
    for group in _groups(nodes):
        _settle(gate, sifted, group, screen(gate.guard, _turns(gate, group)))
    return _told(gate, sifted)


async def asift(gate: Gate, nodes: Sequence[BaseNode]) -> Sifted:
    """`sift` without blocking the event loop."""
    sifted = Sifted(list(nodes))
    for group in await asyncio.to_thread(_groups, nodes):
        screened = await ascreen(gate.guard, _turns(gate, group))
        await asyncio.to_thread(_settle, gate, sifted, group, screened)
    return _told(gate, sifted)


def _groups(nodes: Sequence[BaseNode]) -> list[_Group]:
    """The nodes that have pictures, in order, so many at a time as are checked together."""
    groups: list[_Group] = []
    count = _PICTURES_AT_ONCE
    for place, node in enumerate(nodes):
        pictures = find_pictures(node)
        if not pictures:
            continue
        if count + len(pictures) > _PICTURES_AT_ONCE:
            groups.append([])
            count = 0
        groups[-1].append((place, node, pictures))
        count += len(pictures)
    return groups


def _turns(gate: Gate, group: _Group) -> list[Turn]:
    return [
        _Pictures(
            [None] * len(pictures),
            gate.source,
            slots=tuple(Slot((index,), picture.reading) for index, picture in enumerate(pictures)),
        )
        for _, _, pictures in group
    ]


def _settle(gate: Gate, sifted: Sifted, group: _Group, screened: Sequence[Screened]) -> None:
    for (place, node, pictures), result in zip(group, screened, strict=True):
        sifted.verdicts += result.verdicts
        withheld = [v for v, value in zip(result.verdicts, result.content, strict=True) if value == NOTICE]
        if withheld:
            sifted.offence = sifted.offence or offender(withheld) or withheld[0]
            if gate.quarantine is not None:
                gate.quarantine(node, result.verdicts)
        is_out = bool(withheld) and gate.on_violation != "redact"
        sifted.nodes[place] = None if is_out else _rewritten(gate, node, pictures, result)


def _rewritten(gate: Gate, node: BaseNode, pictures: Sequence[Picture], result: Screened) -> BaseNode:
    """The node with what takes its pictures' places, and with records; itself if it stays as it is."""
    new = with_pictures(node, pictures, result.content, gate.masked_dir)
    if gate.guard.policy.mode == "enforce":
        new = without_second_url(new)
    told = [verdict for verdict in result.verdicts if gate.is_for_storage or verdict.proposed != "allow"]
    metadata = with_records(new.metadata, told)
    update: dict[str, Any] = {}
    if metadata is not new.metadata:
        update["metadata"] = metadata
        for name in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
            known = getattr(new, name)
            update[name] = [*known, *(key for key in (RECORD_KEY, ACTION_KEY) if key not in known)]
    if gate.is_for_storage:
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


def _told(gate: Gate, sifted: Sifted) -> Sifted:
    announce(gate.component, sifted.verdicts)
    if gate.on_violation == "raise" and sifted.offence is not None:
        raise UnsafeContentError(sifted.offence)
    return sifted
