"""A filter in front of a store, as a step of an ingestion pipeline.

A pipeline remembers a document before its transformations run. One that raises loses the document: the next run takes
it for done. And its cache knows nodes by their text, so that to it all nodes without text are one. This step does not
raise, and its nodes carry the digests of their images.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal
from uuid import uuid4

from llama_index.core.schema import BaseNode, TransformComponent
from typing_extensions import Self

from guardalign_guardrails import UnsafeContentError
from llama_index_guardalign.nodes.filter import FiltersNodes
from llama_index_guardalign.nodes.images import find_images
from llama_index_guardalign.spans import not_spanned

logger = logging.getLogger(__name__)

_RUN: Final = "run"


class ImageGuardTransform(FiltersNodes, TransformComponent):
    """Checks the images of nodes before they are stored; those of one call together.

    What becomes of an image is as in `ImageGuardPostprocessor`. Every node with an image gets the records
    ``metadata["guardalign"]`` and ``metadata["guardalign_action"]``, kept out of prompts and embeddings. Use it first,
    or right behind a parser that makes image nodes.

    It raises only if a setting says so: a pipeline takes a document whose transformation raised for ingested. Call
    `prepare` before the run, so that a missing encoder or profile shows while there is nothing to lose.

    Attributes:
        guard: A `Guard`, a `Policy`, the path of a policy file, or `GuardSettings`.
        source: Where the images came from, for the policy.
        on_violation: ``notice`` withholds what the policy blocks and passes on the rest, ``raise`` raises
            `UnsafeContentError` once all nodes are checked.
        withhold: ``document`` leaves out a node with a blocked image, ``image`` puts a notice in the image's place and
            keeps the rest.
        on_failure: What follows if the guard cannot work, a masked file cannot be written or ``quarantine`` raises:
            ``drop`` leaves all nodes with images out and logs an error, ``raise`` passes the error on.
        quarantine: Called with the original of every node from which an image is withheld, and its verdicts; no
            verdicts after a failure. Not dumped; a function of a module, if the pipeline works in several processes.
        masked_dir: Folder for masked and canonical images; None keeps them in the nodes, those of `Node` and `Document`
            in a data URL as well, since LlamaIndex stores no bytes of theirs. The original file is never changed.
        is_cacheable: Whether a pipeline's cache may answer for it. Only if all nodes have text or metadata that tell
            them apart, as those of a `GuardedReader` have.
    """

    on_failure: Literal["drop", "raise"] = "drop"
    is_cacheable: bool = False

    _is_for_storage: ClassVar[bool] = True

    @classmethod
    def class_name(cls) -> str:
        """The class's name in dumps."""
        return "ImageGuardTransform"

    def prepare(self) -> None:
        """Load what the guard needs; see `GuardSettings.prepare`."""
        self.guard.prepare()

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings; with something that is never the same, unless it is cacheable: a cache's key is made of it."""
        data = super().to_dict(**kwargs)
        return data if self.is_cacheable else {**data, _RUN: uuid4().hex}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """From what `to_dict` made."""
        return super().from_dict({key: value for key, value in data.items() if key != _RUN}, **kwargs)

    @not_spanned
    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Check nodes.

        Raises:
            UnsafeContentError: An image is withheld and ``on_violation`` is ``raise``.
            GuardAlignError: The guard cannot work and ``on_failure`` is ``raise``.
        """
        try:
            return self._filtered(nodes).passed
        except Exception as error:  # noqa: BLE001  whatever it is, a pipeline that sees it loses documents
            return self._after(error, nodes)

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Check nodes without blocking the event loop."""
        try:
            return (await self._afiltered(nodes)).passed
        except Exception as error:  # noqa: BLE001  whatever it is, a pipeline that sees it loses documents
            return self._after(error, nodes)

    def _after(self, error: Exception, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """What passes after a failure, within its ``except`` clause."""
        if self.on_failure == "raise" or (self.on_violation == "raise" and isinstance(error, UnsafeContentError)):
            raise error
        kind = type(error).__name__
        passed = []
        for node in nodes:
            if find_images(node):
                self._put_away(node)
            else:
                passed.append(node)
        logger.error("The image guard failed (%s); %d nodes with images are left out", kind, len(nodes) - len(passed))
        return passed

    def _put_away(self, node: BaseNode) -> None:
        if self.quarantine is None:
            return
        try:
            self.quarantine(node, ())
        except Exception as error:  # noqa: BLE001  an app's own function
            logger.error("The quarantine failed (%s)", type(error).__name__)
