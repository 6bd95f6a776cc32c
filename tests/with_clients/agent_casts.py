"""A model that plays several agents from one script, and a tool that takes an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.tool import tool_call
from langchain_core.tools import BaseTool, StructuredTool
from PIL import Image
from pydantic import Field

from guardalign_guardrails.content.payload import to_base64
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.testing.chats import image_block, number_of, shows, text_block
from langchain_guardalign.testing.messages import images_of
from langchain_guardalign.testing.recording import RecordingModel


class Cast(RecordingModel):
    """Answers as its script says, and then with words; keeps what it is given.

    Attributes:
        script: Its next answers. Agents that share the model speak in turns, so their order is known.
    """

    script: list[AIMessage] = Field(default_factory=list, repr=False)

    def _called(self, messages: Sequence[BaseMessage]) -> AIMessage | None:
        return self.script.pop(0) if self.script else None


def calls(name: str, **arguments: Any) -> AIMessage:
    """A call of a tool."""
    return AIMessage("", tool_calls=[tool_call(name=name, args=arguments, id=f"call_{name}")])


def camera(*images: Image.Image) -> BaseTool:
    """A tool that takes these images."""

    def camera() -> list[Any]:
        """Take an image."""
        return [text_block("An image."), *map(image_block, images)]

    return StructuredTool.from_function(camera)


def numbers_seen(model: RecordingModel) -> list[list[int]]:
    """The numbers of the images in each call of a model."""
    return [[number_of(image) for image in images_of(received)] for received in model.received]


def holds_original(said: Any, *images: Image.Image) -> bool:
    """Whether one of some images is in something as it came.

    Looked for by how its pixels begin, which a mask covers: further on, a masked PNG may hold the same bytes.
    """
    return any(to_base64(encode_png(image))[60:160] in repr(said) for image in images)


def unmasked(model: RecordingModel, *images: Image.Image) -> list[int]:
    """The model calls in which one of some images came as it was, or any image shows red."""
    return [
        place
        for place, received in enumerate(model.received)
        if holds_original(received, *images) or any(shows(image, "red") for image in images_of(received))
    ]
