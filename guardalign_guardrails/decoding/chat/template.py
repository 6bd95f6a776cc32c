"""Chats to prompt text through a model's own chat template, knowing where each piece of text ends up.

Every piece is rendered a second time between two marks that no template knows. What is left without the marks must be
the very prompt, so a template that drops, doubles or rewrites a piece is found out, whatever family it is of. Pieces
can then be told apart by position, however the template moves them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from PIL import Image

from guardalign_guardrails.decoding.chat.admission import AdmittedMessage
from guardalign_guardrails.decoding.chat.messages import ToolCall
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import PromptError

Kind = Literal["prefix", "instruction", "answer", "other"]

# The last plane of Unicode is for private use only; what a chat has of it is shown as what it cannot be read as.
_FIRST_MARK: Final = 0x100000
_LAST_MARK: Final = 0x10FFFD
_OF_MARKS: Final = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
# Halves of a surrogate pair come out of JSON, and no tokenizer takes them.
_UNREADABLE: Final = re.compile(f"[{chr(0xD800)}-{chr(0xDFFF)}{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_GAP: Final = "\n\n"
_KINDS: Final[Mapping[str, Kind]] = {"user": "instruction", "tool": "instruction", "assistant": "answer"}


@dataclass(frozen=True)
class Piece:
    """A run of text of a chat.

    Attributes:
        text: The words.
        kind: What they are to calibration.
    """

    text: str = field(repr=False)
    kind: Kind = "other"


Part: TypeAlias = Piece | Image.Image


@dataclass(frozen=True)
class Turn:
    """A message in pieces."""

    role: str
    parts: tuple[Part, ...] = field(repr=False)
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    @property
    def has_images(self) -> bool:
        """Whether there is an image in it."""
        return any(isinstance(part, Image.Image) for part in self.parts)


@dataclass(frozen=True)
class Rendered:
    """A chat as a model's template writes it.

    Attributes:
        text: The prompt; image placeholders are not expanded yet.
        prefix: Characters of the safety prefix, first and one after the last; None if there is none.
        instruction: Characters of each piece of instruction that comes after the prefix.
        images: The images, in the order of their placeholders.
        head: Words that the answer begins with, since the prefix stands at its start; empty otherwise.
    """

    text: str = field(repr=False)
    prefix: tuple[int, int] | None
    instruction: tuple[tuple[int, int], ...]
    images: tuple[Image.Image, ...] = field(repr=False)
    head: str = ""


def render(
    template: Any,
    messages: Sequence[AdmittedMessage],
    prefix: SafetyPrefix | None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    takes_images: bool,
) -> Rendered:
    """Write a chat into a prompt.

    A template that has no place for system messages or tool results gets them in the words of the user. What anybody
    wrote that the tokenizer would read as one of its own marks is broken up.

    Args:
        template: A processor or tokenizer with ``apply_chat_template``.
        messages: The chat.
        prefix: Put where its placement says; None for none.
        tools: JSON schemas of functions the model may call.
        takes_images: Whether the template takes content in parts (processors do), or text only.

    Raises:
        PromptError: The template loses a piece of the chat in any form, or puts no instruction behind the prefix.
    """
    if not takes_images and any(message.images for message in messages):
        raise PromptError("The model reads words only; it cannot be given images.")
    controls = _controls(template)
    plain = [_turn(message, controls) for message in messages]
    turns = plain if prefix is None or not prefix.text.strip() else _placed(plain, prefix)
    if not getattr(template, "chat_template", None):
        raise PromptError("The model has no chat template; set one on its processor or tokenizer.")
    if tools and not knows_tools(template):
        raise PromptError("The model's chat template has no place for tools.")
    known_tools = _clean(tools, controls) if tools else None
    # Some templates of processors want a message in parts only where it has images.
    shapes: Sequence[_Shape] = (_always, _with_images) if takes_images else (_never,)
    problems = []
    for form, is_in_parts in itertools.product((turns, _folded(turns)), shapes):
        try:
            layout = _rendered(template, form, known_tools, is_in_parts)
        except PromptError as error:
            problems.append(str(error))
            continue
        return _checked(layout, prefix)
    raise PromptError(problems[0])


def knows_tools(template: Any) -> bool:
    """Whether a chat template writes tools into its prompt."""
    return "tools" in str(getattr(template, "chat_template", ""))


def control_tokens(template: Any) -> frozenset[str]:
    """What a processor or tokenizer reads as a mark of its own and not as words, as it would be typed."""
    tokenizer = getattr(template, "tokenizer", template)
    known = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    known |= {str(token) for token in added if getattr(token, "special", False)}
    # Placeholders of images and videos need not be special to the tokenizer.
    own = {token for name, token in vars(template).items() if name.endswith("_token") and isinstance(token, str)}
    return frozenset(token for token in known | own if len(token) > 1)


def _controls(template: Any) -> re.Pattern[str] | None:
    typed = sorted(control_tokens(template), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, typed))) if typed else None


def _clean(value: Any, controls: re.Pattern[str] | None) -> Any:
    """A value without our marks and the tokenizer's, within whatever it holds."""
    if isinstance(value, str):
        text = _UNREADABLE.sub("\ufffd", value)
        # Whoever could write an image token or the end of a turn could move every span.
        return text if controls is None else controls.sub(lambda found: found[0][:1] + " " + found[0][1:], text)
    if isinstance(value, Mapping):
        return {_clean(key, controls): _clean(item, controls) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, controls) for item in value]
    return value


def _turn(message: AdmittedMessage, controls: re.Pattern[str] | None) -> Turn:
    kind = _KINDS.get(message.role, "other")
    parts = tuple(
        part if isinstance(part, Image.Image) else Piece(_clean(part, controls), kind) for part in message.parts
    )
    calls = tuple(
        ToolCall(_clean(call.name, controls), _clean(call.arguments, controls), _clean(call.id, controls))
        for call in message.tool_calls
    )
    return Turn(message.role, parts, calls, _clean(message.tool_call_id, controls), _clean(message.name, controls))


def _placed(turns: Sequence[Turn], prefix: SafetyPrefix) -> list[Turn]:
    piece = Piece(prefix.text.strip(), "prefix")
    asked = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
    result = list(turns)
    if prefix.placement == "response":
        return result
    if prefix.placement == "user" and asked is not None:
        parts = result[asked].parts
        first = next((i for i, part in enumerate(parts) if isinstance(part, Piece)), len(parts))
        gap = Piece(_GAP) if first < len(parts) else Piece("")
        result[asked] = replace(result[asked], parts=(*parts[:first], piece, gap, *parts[first:]))
        return result
    if result[0].role != "system":
        return [Turn("system", (piece,)), *result]
    result[0] = replace(result[0], parts=(piece, Piece(_GAP), *result[0].parts))
    return result


def _folded(turns: Sequence[Turn]) -> list[Turn]:
    """The chat without system and tool messages, whose content users say; whoever spoke twice in a row, once."""
    result: list[Turn] = []
    ahead: tuple[Part, ...] = ()
    for turn in turns:
        parts = turn.parts
        if turn.role == "system":
            ahead = (*ahead, *parts, Piece(_GAP))
            continue
        if turn.role == "tool":
            parts = (Piece(f"Result of {turn.name or 'the tool'}:\n"), *parts)
        if turn.tool_calls:
            calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn.tool_calls]
            parts = (*parts, Piece(json.dumps(calls, ensure_ascii=False)))
        role = "user" if turn.role in ("user", "tool") else turn.role
        if role == "user" and ahead:
            parts, ahead = (*ahead, *parts), ()
        if result and result[-1].role == role:
            result[-1] = replace(result[-1], parts=(*result[-1].parts, Piece("\n"), *parts))
        else:
            result.append(Turn(role, parts))
    return [*result, Turn("user", ahead[:-1])] if ahead else result


_Shape: TypeAlias = Callable[[Turn], bool]
"""Whether a message's content is written as a list of parts, or as a string."""


def _always(_: Turn) -> bool:
    return True


def _never(_: Turn) -> bool:
    return False


def _with_images(turn: Turn) -> bool:
    return turn.has_images


@dataclass(frozen=True)
class _Layout:
    text: str
    places: tuple[tuple[Kind, int, int], ...]
    images: tuple[Image.Image, ...]


def _rendered(
    template: Any, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None, is_in_parts: _Shape
) -> _Layout:
    marks = _Marks()
    text = _apply(template, [_written(turn, _plain, is_in_parts) for turn in turns], tools)
    marked = _apply(template, [_written(turn, marks, is_in_parts) for turn in turns], tools)
    rewritten = PromptError("The chat template rewrites what it is given; the prefix cannot be found in its prompt.")
    if _OF_MARKS.sub("", marked) != text:
        raise rewritten
    at: dict[int, int] = {}
    for place, found in enumerate(_OF_MARKS.finditer(marked)):
        mark = ord(found[0])
        if mark in at:
            raise PromptError("The chat template writes a message twice.")
        at[mark] = found.start() - place
    if at.keys() != marks.written:
        raise PromptError("The chat template leaves out part of the chat: a role or content it has no place for.")
    places = tuple((piece.kind, at[first], at[first + 1]) for first, piece in marks.pieces.items() if first in at)
    words = [piece.text for piece in marks.pieces.values() if piece.kind == "prefix"]
    if words != [text[first:end] for kind, first, end in places if kind == "prefix"]:
        raise rewritten
    return _Layout(text, places, tuple(p for turn in turns for p in turn.parts if isinstance(p, Image.Image)))


class _Marks:
    """Puts marks around pieces and remembers which stand around what."""

    def __init__(self) -> None:
        self.pieces: dict[int, Piece] = {}
        self.written: set[int] = set()

    def __call__(self, piece: Piece) -> str:
        words = piece.text.strip()
        if not words:
            return piece.text
        first = _FIRST_MARK + 2 * len(self.pieces)
        if first >= _LAST_MARK:
            raise PromptError("The chat has too many messages.")
        self.pieces[first] = piece
        # Templates cut the thoughts off an earlier answer, so that only its end is sure to be in the prompt.
        opening = "" if piece.kind == "answer" else chr(first)
        self.written |= {first + 1, *map(ord, opening)}
        # White space stays outside, where a template that trims finds it.
        before, _, after = piece.text.partition(words)
        return before + opening + words + chr(first + 1) + after


def _plain(piece: Piece) -> str:
    return piece.text


def _written(turn: Turn, write: Callable[[Piece], str], is_in_parts: _Shape) -> dict[str, Any]:
    """A message as templates of transformers take it."""
    blocks: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, Image.Image):
            blocks.append({"type": "image"})
        elif blocks and blocks[-1]["type"] == "text":
            blocks[-1]["text"] += _glue(blocks[-1]["text"], part.text) + write(part)
        else:
            blocks.append({"type": "text", "text": write(part)})
    # Templates look at the first part.
    blocks = blocks or [{"type": "text", "text": ""}]
    content = blocks if is_in_parts(turn) else "".join(block["text"] for block in blocks)
    message: dict[str, Any] = {"role": turn.role, "content": content}
    if turn.tool_calls:
        message["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in turn.tool_calls
        ]
    if turn.tool_call_id is not None:
        message["tool_call_id"] = turn.tool_call_id
    if turn.name is not None:
        message["name"] = turn.name
    return message


def _glue(before: str, after: str) -> str:
    """Texts that came as separate blocks are separate lines."""
    is_apart = not before or before[-1].isspace() or not after or after[0].isspace()
    return "" if is_apart else "\n"


def _apply(template: Any, messages: Iterable[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
    try:
        text: str = template.apply_chat_template(
            list(messages), tools=list(tools) if tools else None, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # noqa: BLE001  a template can raise anything, and its text may quote the chat
        kind = type(error).__name__
    else:
        return text
    raise PromptError(f"The chat template cannot write this chat ({kind}): it may allow no such role or order.")


def _checked(layout: _Layout, prefix: SafetyPrefix | None) -> Rendered:
    text = layout.text
    asked = sorted((first, end) for kind, first, end in layout.places if kind == "instruction")
    if prefix is None or not prefix.text.strip():
        return Rendered(text, None, tuple(asked), layout.images)
    if prefix.placement == "response":
        words = prefix.text.strip()
        gap = " " if text and (text[-1].isalnum() or text[-1] in ":.") else ""
        first = len(text) + len(gap)
        return Rendered(text + gap + words, (first, first + len(words)), (), layout.images, head=words)
    ((place, first, end),) = ((i, a, b) for i, (kind, a, b) in enumerate(layout.places) if kind == "prefix")
    behind = tuple((a, b) for a, b in asked if a >= end)
    # Places are in the order of the chat, whose last user may have shown an image without a word.
    if not behind and any(kind == "instruction" for kind, *_ in layout.places[place:]):
        raise PromptError(
            "The chat template puts the safety prefix behind all that the user says, where it cannot be attended to; "
            "choose another placement."
        )
    return Rendered(text, (first, end), behind, layout.images)
