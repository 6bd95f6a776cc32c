"""Finds the content in the body of a request to a model, and who said each part of it.

It knows the shapes of three APIs, and searches everything else in a body as well, because servers and proxies pass on
more than the documented keys: ``extra_body`` is merged over the body, and fallbacks bring chats of their own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from guardalign_guardrails.actions import Source
from guardalign_guardrails.content.bodies.masks import MASKS
from guardalign_guardrails.content.bodies.transcripts import Transcript
from guardalign_guardrails.content.chat import Role, sources
from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.media_text import media_of_value
from guardalign_guardrails.content.payload import is_data_url, to_data_url
from guardalign_guardrails.content.rewrite import block_at
from guardalign_guardrails.content.screen import Turn
from guardalign_guardrails.images.containers import media_type

Form = Literal["chat", "responses", "messages", "other"]
"""OpenAI's chat completions, OpenAI's Responses, Anthropic's Messages; in any other body every image counts as the
user's."""

Body: TypeAlias = Mapping[str, Any]

Shape = Literal["content", "item", "loose", "image"]
"""The kind of a part: ``content`` of a message; ``item`` of Responses that is no message; ``loose`` for a value that is
no chat content and may hold bare images; ``image`` for a bare value that its key calls an image."""


@dataclass(frozen=True)
class Part:
    """A part of a body that may hold images.

    Attributes:
        path: Where in the body it is.
        role: Who says it.
        value: Plain data.
        shape: Its kind.
        source: Where it comes from.
    """

    path: Path
    role: Role
    value: Any = field(repr=False)
    shape: Shape = "content"
    source: Source = "user"

    def turn(self) -> Turn:
        """The part as a turn of a chat."""
        content = {"type": "image", "image": self.value} if self.shape == "image" else self.value
        is_loose = self.shape == "loose"
        return Turn(content, self.source, is_loose, self.role, under=self.path if is_loose else ())

    def screened(self, content: Any) -> Any:
        """The new value of the part, from the sanitised content of its turn."""
        if self.shape == "image":
            return content.get("image")
        return _as_item(self.value, content) if self.shape == "item" else content


_NESTED: Final = ("extra_body", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
# Settings, notes and schemas: a property of a tool may be named "image", and servers make images of none of them.
_NO_CONTENT: Final = frozenset(
    {
        "agent",
        "environment",
        "extra_headers",
        "extra_query",
        "function_call",
        "functions",
        "litellm_metadata",
        "metadata",
        "model",
        "response_format",
        "text",
        "text_format",
        "tool_choice",
        "tools",
    }
)
_NO_CONTENT_OF_A_MESSAGE: Final = frozenset(
    {"annotations", "content", "function_call", "provider_specific_fields", "role", "tool_calls"}
)
# LiteLLM passes these on as blocks of the message; a provider's other fields are notes.
_PASSED_ON: Final = ("compaction_blocks", "tool_results", "web_search_results")
# Values of these keys are images, be they a URL, base64 text or bytes.
_IMAGES: Final = MASKS.union(("image", "images", "input_reference"))
# SGLang's requests have their prompt under "text", where those to Responses have settings.
_PROMPTS: Final = ("prompt", "text")
_ROLES: Final[Mapping[object, Role]] = {
    "assistant": "assistant",
    "developer": "system",
    "function": "tool",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}


def parts_of(body: Body, form: Form) -> list[Part]:
    """Parts of a body that may hold images: messages in order, values beside them, then those of nested bodies.

    Args:
        body: The body, or the keyword arguments from which a client makes it.
        form: The API it is for.
    """
    return [part for path in ((), *nested_bodies(body)) for part in _own_parts(block_at(body, path), form, path)]


def nested_bodies(body: Body) -> list[Path]:
    """Paths of the bodies within a body, outer ones first."""
    found: list[Path] = []
    for key in _NESTED:
        value = body.get(key)
        inner = {(key, index): each for index, each in enumerate(_listed(value))}
        for path, each in inner.items() if inner else [((key,), value)]:
            if isinstance(each, Mapping):
                found += [path, *((*path, *below) for below in nested_bodies(each))]
    return found


def _own_parts(body: Body, form: Form, path: Path) -> list[Part]:
    chat = list(_READERS[form](body))
    pairs = zip(chat, sources([part.role for part in chat]), strict=True)
    sourced = [part if part.source == source else replace(part, source=source) for part, source in pairs]
    variables = list(_variables(body))
    known = _NO_CONTENT.union(_NESTED, (part.path[0] for part in (*chat, *variables)))
    if "text" in body and not isinstance(body["text"], Mapping):
        known -= {"text"}
    parts = [*sourced, *_beside(body, (), "user", known), *_masks(body), *variables]
    return [replace(part, path=(*path, *part.path)) for part in parts] if path else parts


def _beside(mapping: Mapping[str, Any], path: Path, role: Role, known: Set[str]) -> Iterator[Part]:
    """The values of a mapping under keys other than the known ones."""
    for key in [key for key in mapping if key not in known]:
        value = mapping[key]
        # Bytes are an uploaded file: an image or a video.
        if str(key).lower() in _IMAGES or isinstance(value, bytes):
            items = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
            for index, each in items:
                where = (*path, key) if index is None else (*path, key, index)
                yield Part(where, role, each, "loose" if _says_what_it_is(each) else "image")
        elif key in _PROMPTS:
            yield from _of_prompt(value, (*path, key), role)
        else:
            yield Part((*path, key), role, value, "loose")


def _says_what_it_is(value: object) -> bool:
    """Whether a value is found without the key under which it stands."""
    return value is None or isinstance(value, Mapping) or (isinstance(value, str) and media_of_value(value) is not None)


def _of_prompt(prompt: object, path: Path, role: Role) -> Iterator[Part]:
    """A prompt: a user's text or several; or, for servers like llama.cpp's, a mapping with images in it."""
    if isinstance(prompt, list | tuple) and any(isinstance(each, Mapping) for each in prompt):
        for index, each in enumerate(prompt):
            yield from _of_prompt(each, (*path, index), role)
    else:
        yield Part(path, role, prompt, "loose" if isinstance(prompt, Mapping) else "content")


def _of_chat(body: Body) -> Iterator[Part]:
    for index, message in enumerate(_listed(body.get("messages"))):
        yield from _of_message(message, ("messages", index))


def _of_message(message: object, path: Path) -> Iterator[Part]:
    if not isinstance(message, Mapping):
        yield Part(path, "user", message, "loose")
        return
    role = _role(message)
    if isinstance(message.get("content"), Transcript):
        yield from (replace(part, path=(*path, "content", *part.path[1:])) for part in _of_items(message["content"]))
        return
    yield Part((*path, "content"), role, message.get("content"))
    yield from _attached(message, path, role)
    yield from _beside(message, path, role, _NO_CONTENT_OF_A_MESSAGE)


def _attached(message: Mapping[str, Any], path: Path, role: Role) -> Iterator[Part]:
    """Content beside a message's content: files that OpenRouter has parsed, blocks that LiteLLM passes on."""
    for index, note in enumerate(_listed(message.get("annotations"))):
        file = note.get("file") if isinstance(note, Mapping) else None
        if isinstance(file, Mapping) and "content" in file:
            yield Part((*path, "annotations", index, "file", "content"), role, file["content"])
    fields = message.get("provider_specific_fields")
    if isinstance(fields, Mapping):
        for key in [key for key in _PASSED_ON if key in fields]:
            yield Part((*path, "provider_specific_fields", key), role, fields[key])


def _of_responses(body: Body) -> Iterator[Part]:
    if isinstance(body.get("input"), str):
        yield Part(("input",), "user", body["input"])
    yield from _of_items(_listed(body.get("input")))


def _of_items(items: Sequence[Any]) -> Iterator[Part]:
    for index, item in enumerate(items):
        path = ("input", index)
        if isinstance(item, Mapping) and item.get("type", "message") != "message":
            # A call's output comes from a tool, every other item without a role from the model.
            is_output = str(item["type"]).endswith("_output")
            yield Part(path, "tool" if is_output else "assistant", item, "item")
        else:
            yield from _of_message(item, path)


def _of_messages(body: Body) -> Iterator[Part]:
    yield Part(("system",), "system", body.get("system"))
    for number, message in enumerate(_listed(body.get("messages"))):
        path = ("messages", number)
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list | tuple) and any(_is_tool_result(block) for block in content):
            # A tool's result comes in a message of the user, beside the user's own content.
            role = _role(message)
            for index, block in enumerate(content):
                where = (*path, "content", index)
                yield Part(where, "tool" if _is_tool_result(block) else role, block)
            yield from _beside(message, path, role, _NO_CONTENT_OF_A_MESSAGE)
        else:
            yield from _of_message(message, path)


def _as_item(item: Mapping[str, Any], content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sanitised content as an item of Responses.

    Text in place of the item or of one of its outputs is wrapped, and so is another image in place of a generated one.
    """
    if content.keys() <= {"type", "text"}:
        text = content["text"]
        # The call still needs an output.
        return {**item, "output": text} if "output" in item else {"role": "assistant", "content": text}
    if content.get("type") == "image_generation_call":
        # By its id the API may find the original, and without one the call is none: an image in a message is.
        image = {"type": "input_image", "image_url": _data_url_of(content)}
        return {"role": "user", "content": [image]}
    outputs = content.get("outputs")
    if item.get("type") != "code_interpreter_call" or not isinstance(outputs, list):
        return content
    pairs = zip(item["outputs"], outputs, strict=True)
    return {**content, "outputs": [new if new is old else _as_log(new) for old, new in pairs]}


def _data_url_of(call: Mapping[str, Any]) -> str:
    """The image of a call that made one; it was written here, so that its base64 can be read."""
    result = str(call["result"])
    if is_data_url(result):
        return result
    data = base64.b64decode(result)
    return to_data_url(data, media_type(data) or "image/png")


def _as_log(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """An output of a code interpreter, whose text is a log."""
    return {"type": "logs", "logs": output["text"]} if output.get("type") == "text" else output


def _masks(body: Body) -> Iterator[Part]:
    """Masks for image editing, which OpenAI keeps among a tool's settings."""
    items = [(("input", index), item) for index, item in enumerate(_listed(body.get("input")))]
    for path, holder in [((), body), *items]:
        tools = holder.get("tools") if isinstance(holder, Mapping) else None
        for index, tool in enumerate(_listed(tools)):
            if isinstance(tool, Mapping) and "input_image_mask" in tool:
                mask = tool["input_image_mask"]
                # It is written as a content block without its type, and never changed.
                value = {"type": "input_image", **mask} if isinstance(mask, Mapping) else mask
                shape: Shape = "image" if isinstance(mask, str) else "content"
                yield Part((*path, "tools", index, "input_image_mask"), "user", value, shape)


def _variables(body: Body) -> Iterator[Part]:
    """Variables of a stored prompt; one that is named "image" may hold text."""
    prompt = body.get("prompt")
    variables = prompt.get("variables") if isinstance(prompt, Mapping) else None
    if isinstance(variables, Mapping):
        yield from (Part(("prompt", "variables", name), "user", value) for name, value in variables.items())
        if variables and isinstance(prompt, Mapping):
            yield from _beside(prompt, ("prompt",), "user", {"variables"})


_READERS: Final[Mapping[Form, Callable[[Body], Iterator[Part]]]] = {
    "chat": _of_chat,
    "responses": _of_responses,
    "messages": _of_messages,
    "other": lambda _: iter(()),
}


def _is_tool_result(block: object) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "tool_result"


def _role(message: Mapping[Any, Any]) -> Role:
    role = message.get("role")
    return _ROLES.get(role, "user") if isinstance(role, str) else "user"


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
