"""Writes chats into prompts by a model's own chat template, and finds where each text part stands in the prompt.

Every text part is rendered a second time between two marks that no template knows. Without the marks the result must be
the very prompt, so a template that drops, doubles or rewrites a part is found, whatever family it is of. The marks tell
where each part stands, however the template moves it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from PIL import Image

from guardalign_guardrails.decoding.chat.admission import AdmittedMessage
from guardalign_guardrails.decoding.chat.prompts.template_messages import (
    FIRST_MARK,
    LAST_MARK,
    TemplateMessage,
    TextKind,
    TextPart,
    cleaned_tools,
    folded,
    template_messages,
)
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import PromptError

_MARKS: Final = re.compile(f"[{chr(FIRST_MARK)}-{chr(LAST_MARK)}]")


@dataclass(frozen=True)
class RenderedPrompt:
    """A chat as a model's template writes it.

    Attributes:
        text: The prompt; image placeholders are not expanded yet.
        prefix: Characters of the safety prefix, first and one after the last; None if there is none.
        instruction: Characters of each instruction part that comes after the prefix.
        images: The images, in the order of their placeholders.
        prefill: Text that the answer begins with, which is the prefix at the start of the answer; empty otherwise.
    """

    text: str = field(repr=False)
    prefix: tuple[int, int] | None
    instruction: tuple[tuple[int, int], ...]
    images: tuple[Image.Image, ...] = field(repr=False)
    prefill: str = ""


def render(
    template: Any,
    messages: Sequence[AdmittedMessage],
    prefix: SafetyPrefix | None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    takes_images: bool,
) -> RenderedPrompt:
    """Write a chat into a prompt.

    A template that has no place for system messages or tool results gets them in the user's messages. Control tokens of
    the tokenizer in any text are broken up.

    Args:
        template: A processor or tokenizer with ``apply_chat_template``.
        messages: The chat.
        prefix: Put where its placement says; None for none.
        tools: JSON schemas of functions the model may call.
        takes_images: Whether the template takes content in parts (processors do), or text only.

    Raises:
        PromptError: The template loses a part of the chat in any form, or puts no instruction after the prefix.
    """
    if not takes_images and any(message.images for message in messages):
        raise PromptError("The model reads text only; it cannot be given images.")
    chat = template_messages(messages, prefix, template)
    if not getattr(template, "chat_template", None):
        raise PromptError("The model has no chat template; set one on its processor or tokenizer.")
    if tools and not knows_tools(template):
        raise PromptError("The model's chat template has no place for tools.")
    known_tools = cleaned_tools(tools, template) if tools else None
    # Some templates of processors want a message in parts only where it has images.
    shapes: Sequence[_Shape] = (_always, _with_images) if takes_images else (_never,)
    problems = []
    for form, is_in_parts in itertools.product((chat, folded(chat)), shapes):
        try:
            marked = _rendered(template, form, known_tools, is_in_parts)
        except PromptError as error:
            problems.append(str(error))
            continue
        return _checked(marked, prefix)
    raise PromptError(problems[0])


def knows_tools(template: Any) -> bool:
    """Whether a chat template writes tools into its prompt."""
    return "tools" in str(getattr(template, "chat_template", ""))


_Shape: TypeAlias = Callable[[TemplateMessage], bool]
"""Whether a message's content is written as a list of parts, or as a string."""


def _always(_: TemplateMessage) -> bool:
    return True


def _never(_: TemplateMessage) -> bool:
    return False


def _with_images(message: TemplateMessage) -> bool:
    return message.has_images


@dataclass(frozen=True)
class _MarkedPrompt:
    """A prompt, and first and last character of each text part, in the order of the chat."""

    text: str
    spans: tuple[tuple[TextKind, int, int], ...]
    images: tuple[Image.Image, ...]


def _rendered(
    template: Any,
    messages: Sequence[TemplateMessage],
    tools: Sequence[Mapping[str, Any]] | None,
    is_in_parts: _Shape,
) -> _MarkedPrompt:
    marks = _Marks()
    text = _apply(template, [_written(message, _plain, is_in_parts) for message in messages], tools)
    marked = _apply(template, [_written(message, marks, is_in_parts) for message in messages], tools)
    rewritten = PromptError("The chat template rewrites what it is given; the prefix cannot be found in its prompt.")
    if _MARKS.sub("", marked) != text:
        raise rewritten
    at: dict[int, int] = {}
    for number, found in enumerate(_MARKS.finditer(marked)):
        mark = ord(found[0])
        if mark in at:
            raise PromptError("The chat template writes a message twice.")
        at[mark] = found.start() - number
    if at.keys() != marks.written:
        raise PromptError("The chat template leaves out part of the chat: a role or content it has no place for.")
    spans = tuple((part.kind, at[first], at[first + 1]) for first, part in marks.parts.items() if first in at)
    prefixes = [part.text for part in marks.parts.values() if part.kind == "prefix"]
    if prefixes != [text[first:end] for kind, first, end in spans if kind == "prefix"]:
        raise rewritten
    images = tuple(part for message in messages for part in message.parts if isinstance(part, Image.Image))
    return _MarkedPrompt(text, spans, images)


class _Marks:
    """Puts marks around text parts, and keeps which marks stand around which part."""

    def __init__(self) -> None:
        self.parts: dict[int, TextPart] = {}
        self.written: set[int] = set()

    def __call__(self, part: TextPart) -> str:
        inner = part.text.strip()
        if not inner:
            return part.text
        first = FIRST_MARK + 2 * len(self.parts)
        if first >= LAST_MARK:
            raise PromptError("The chat has too many messages.")
        self.parts[first] = part
        # Templates cut the thoughts off an earlier answer, so that only its end is sure to be in the prompt.
        opening = "" if part.kind == "answer" else chr(first)
        self.written |= {first + 1, *map(ord, opening)}
        # White space stays outside, where a template that trims finds it.
        before, _, after = part.text.partition(inner)
        return before + opening + inner + chr(first + 1) + after


def _plain(part: TextPart) -> str:
    return part.text


def _written(message: TemplateMessage, write: Callable[[TextPart], str], is_in_parts: _Shape) -> dict[str, Any]:
    """A message as templates of transformers take it."""
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Image.Image):
            blocks.append({"type": "image"})
        elif blocks and blocks[-1]["type"] == "text":
            blocks[-1]["text"] += _glue(blocks[-1]["text"], part.text) + write(part)
        else:
            blocks.append({"type": "text", "text": write(part)})
    # Templates look at the first block.
    blocks = blocks or [{"type": "text", "text": ""}]
    content = blocks if is_in_parts(message) else "".join(block["text"] for block in blocks)
    written: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        written["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        written["name"] = message.name
    return written


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


def _checked(marked: _MarkedPrompt, prefix: SafetyPrefix | None) -> RenderedPrompt:
    text = marked.text
    asked = sorted((first, end) for kind, first, end in marked.spans if kind == "instruction")
    if prefix is None or not prefix.text.strip():
        return RenderedPrompt(text, None, tuple(asked), marked.images)
    if prefix.placement == "response":
        prefill = prefix.text.strip()
        gap = " " if text and (text[-1].isalnum() or text[-1] in ":.") else ""
        first = len(text) + len(gap)
        return RenderedPrompt(text + gap + prefill, (first, first + len(prefill)), (), marked.images, prefill)
    ((number, first, end),) = ((i, a, b) for i, (kind, a, b) in enumerate(marked.spans) if kind == "prefix")
    behind = tuple((a, b) for a, b in asked if a >= end)
    # Spans are in the order of the chat, whose last user message may be an image without text.
    if not behind and any(kind == "instruction" for kind, *_ in marked.spans[number:]):
        raise PromptError(
            "The chat template puts the safety prefix after all of the user's text, which cannot attend to it there; "
            "choose another placement."
        )
    return RenderedPrompt(text, (first, end), behind, marked.images)
