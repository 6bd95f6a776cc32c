"""Conversations as data, and how each framework would write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from content.reread_images import REREAD
from guardalign_guardrails.content.payload import to_base64, to_data_url
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.mask import with_mark
from guardalign_guardrails.testing.colours import painted


@dataclass(frozen=True)
class Shown:
    """An image in a conversation: painted, a file with more than one reading, elsewhere, or broken."""

    colour: str = ""
    url: str = ""
    file: str = ""
    is_marked: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it can be opened."""
        return bool(self.colour or self.file)

    @property
    def mime(self) -> str:
        return "image/jpeg" if self.data.startswith(b"\xff\xd8") else "image/png"

    @property
    def data_url(self) -> str:
        """Where every framework can be told to find it."""
        return self.url or to_data_url(self.data, self.mime)

    @property
    def data(self) -> bytes:
        if not self.is_whole:
            return b"no image"
        if self.file:
            return REREAD[self.file]
        data = encode_png(painted(self.colour))
        return with_mark(data) if self.is_marked else data

    @property
    def base64(self) -> str:
        return to_base64(self.data)


class Promoted(str):
    """Text of which some client makes an image."""


@dataclass(frozen=True)
class Attached:
    """A file that is said to be plain text."""

    data: bytes

    @property
    def data_url(self) -> str:
        return to_data_url(self.data, "text/plain")


Part: TypeAlias = str | Shown | Attached
Said: TypeAlias = tuple[str, list[Part]]

ELSEWHERE = Shown(url="https://example.com/a.png")
BROKEN = Shown()
SEE_THROUGH, TURNED, LARGE = (Shown(file=name) for name in ("see-through PNG", "turned JPEG", "large photo"))


PREFIX = "Be careful."
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="64" height="64" fill="blue"/></svg>'
PPM = b"P3 2 2 255 " + b"0 0 255 " * 4
JSON = (
    '{"image": "cat.png", "images": ["a", "b"], "files": [{"name": "cat.png", "path": "/cat"}], "document": {"id": 7}}'
)


def show(colour: str) -> Shown:
    return Shown(colour)


def url_text(colour: str, header: str = "data:image/png;base64,", end: str = "") -> Promoted:
    """An image as a tool writes it that knows nothing but text."""
    return Promoted(header + to_base64(encode_png(painted(colour))) + end)


LONG_HEADER = "data:image/png;a=" + "x" * 2000 + ";base64,"


CONVERSATIONS: dict[str, list[Said]] = {
    "words": [("user", ["Hi"])],
    "a harmless image": [("user", ["Look", show("white")])],
    "an image alone": [("user", [show("red")])],
    "masked": [("user", ["Look", show("red")])],
    "prefixed": [("user", ["Look", show("green")])],
    "flagged": [("user", ["Look", show("magenta")])],
    "blocked": [("user", ["Look", show("blue")])],
    "routed": [("user", ["Look", show("yellow")])],
    "two images": [("user", [show("red"), "and", show("white")])],
    "one of two is blocked": [("user", [show("white"), show("blue")])],
    "masked before": [("user", [show("red")]), ("assistant", ["Seen."]), ("user", ["And now?"])],
    "blocked before": [("user", [show("blue")]), ("assistant", ["Seen."]), ("user", ["And now?"])],
    "masked before, harmless now": [("user", [show("red")]), ("assistant", ["Seen."]), ("user", [show("white")])],
    "a tool shows one to mask": [("user", ["Look"]), ("tool", ["Here", show("red")])],
    "a tool shows one to block": [("user", ["Look"]), ("tool", [show("blue"), "Here"])],
    "user and tool": [("user", [show("green")]), ("tool", [show("red"), show("white")])],
    "the app speaks first": [("system", ["Be brief."]), ("user", ["Look", show("red")])],
    "two messages in a row": [("user", [show("red")]), ("user", ["and", show("green")])],
    "see-through": [("user", ["Look", SEE_THROUGH])],
    "turned": [("user", ["Look", TURNED, "and", show("white")])],
    "large": [("user", [LARGE])],
    "turned before": [("user", [TURNED]), ("assistant", ["Seen."]), ("user", ["And now?", SEE_THROUGH])],
    "a tool shows a large one": [("user", ["Look", show("red")]), ("tool", ["Here", LARGE])],
    "see-through beside one that is blocked": [("user", [SEE_THROUGH, show("blue")])],
    "elsewhere": [("user", ["Look", ELSEWHERE])],
    "broken": [("user", ["Look", BROKEN])],
    # 1: text that a client makes an image of
    "a tool's text is a data URL to mask": [("user", ["Look"]), ("tool", [url_text("red")])],
    "a tool's text is a data URL to block": [("user", ["Look"]), ("tool", [url_text("blue")])],
    "a tool's text is a harmless data URL": [("user", ["Look"]), ("tool", [url_text("white")])],
    "a data URL with a long header": [("user", ["Look"]), ("tool", [url_text("blue", LONG_HEADER)])],
    "a data URL with a fragment": [("user", ["Look"]), ("tool", [url_text("blue", end="#x")])],
    "a data URL with a star": [("user", ["Look"]), ("tool", [Promoted(url_text("blue").replace(",", ",*"))])],
    "two data URLs joined": [("user", ["Look"]), ("tool", [Promoted(url_text("white") + "," + url_text("blue"))])],
    # 2: bare base64
    "a tool's text is base64 to mask": [("user", ["Look"]), ("tool", [url_text("red", "")])],
    "a tool's text is base64 to block": [("user", ["Look"]), ("tool", [url_text("blue", "")])],
    # 5: files that are said to be text
    "a text file": [("user", ["Read", Attached(b"Once upon a time there was a cat. " * 4)])],
    "a drawing said to be text": [("user", ["Read", Attached(SVG)])],
    "an image in digits said to be text": [("user", ["Read", Attached(PPM)])],
    "a PDF said to be text": [("user", ["Read", Attached(b"%PDF-1.7 " + b"1 0 obj " * 20)])],
    # 8: everyday keys in a tool's JSON
    "a tool's JSON with everyday keys": [("user", ["Look"]), ("tool", [JSON])],
    # 12: masked by another guard before
    "masked by another guard": [("user", ["Look"]), ("tool", [Shown("white", is_marked=True)])],
    "a forged mark": [("user", [Shown("blue", is_marked=True)])],
    # 13: the prefix is there already
    "the app wrote the prefix": [("system", [PREFIX + "\n\nBe brief."]), ("user", ["Look", show("red")])],
    "elsewhere before": [("user", [ELSEWHERE]), ("assistant", ["No."]), ("user", ["And now?", show("white")])],
}


def as_chat(conversation: list[Said]) -> list[dict[str, Any]]:
    """As OpenAI's chat completions take it."""
    messages: list[dict[str, Any]] = []
    for role, parts in conversation:
        if role == "tool":
            call = {"id": "call1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        content: Any = [_chat_block(part) for part in parts]
        if role == "assistant":
            content = parts[0]
        extra = {"tool_call_id": "call1"} if role == "tool" else {}
        messages.append({"role": role, "content": content, **extra})
    return messages


def as_items(conversation: list[Said]) -> list[dict[str, Any]]:
    """As OpenAI's Responses take it."""
    items: list[dict[str, Any]] = []
    for role, parts in conversation:
        blocks = [_item_block(part) for part in parts]
        if role == "tool":
            items.append({"type": "function_call", "call_id": "call1", "name": "look", "arguments": "{}"})
            items.append({"type": "function_call_output", "call_id": "call1", "output": blocks})
        elif role == "assistant":
            items.append({"role": role, "content": parts[0]})
        else:
            items.append({"role": role, "content": blocks})
    return items


def _chat_block(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": str(part)}
    if isinstance(part, Attached):
        return {"type": "file", "file": {"filename": "a.txt", "file_data": part.data_url}}
    return {"type": "image_url", "image_url": {"url": part.data_url}}


def _item_block(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "input_text", "text": str(part)}
    if isinstance(part, Attached):
        return {"type": "input_file", "filename": "a.txt", "file_data": part.data_url}
    return {"type": "input_image", "image_url": part.data_url}
