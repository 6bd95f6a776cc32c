"""Requests that edit images or make videos: finds their images, in forms and in JSON, and puts others in their places.

Both become one body with plain keys, which is screened like any other.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from guardalign_guardrails import UnsafeContentError
from guardalign_guardrails.content.bodies import Body, ScreenedBody
from guardalign_guardrails.content.bodies.masks import MASKS
from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.images.containers import media_type
from openai_guardalign.forms import FormField, read_form, write_form

Content = Callable[[Body], bytes]
"""Writes a body as JSON."""

_IMAGES: Final = frozenset({"image", "images", "input_reference"})
_SEVERAL: Final = ("images", "mask")
_REFERENCE: Final = frozenset({"image_url", "file_id"})


@dataclass(frozen=True)
class Value:
    """A value of a request.

    Attributes:
        key: The name under which it is screened: ``images`` or ``mask``, of which there may be several, or its own.
        value: What a client gave.
    """

    key: str
    value: Any = field(repr=False)


@dataclass(frozen=True)
class Edit:
    """The values of a request to edit images, and how to write others in their places.

    Attributes:
        values: In order.
        write: Given new values by their places in that order, the content of the request.
    """

    values: tuple[Value, ...]
    write: Callable[[Mapping[int, Any]], bytes] = field(repr=False)

    @property
    def body(self) -> Body:
        """What is screened."""
        several = {key: [_typed(self.values[place].value) for place in self._places(key)] for key in _SEVERAL}
        others = {each.key: each.value for each in self.values if each.key not in _SEVERAL}
        return {**{key: values for key, values in several.items() if values}, **others}

    def content(self, screened: ScreenedBody) -> bytes | UnsafeContentError | None:
        """What is sent in the place of the content that came, None for that content; or the error that is raised."""
        if screened.decision.violation is not None:
            return UnsafeContentError(screened.decision.violation)
        now = {place: screened.body[each.key] for place, each in enumerate(self.values) if each.key not in _SEVERAL}
        for key in _SEVERAL:
            now.update(zip(self._places(key), screened.body.get(key, ()), strict=True))
        new = {place: _untyped(self.values[place].value, value) for place, value in now.items()}
        changed = {place: value for place, value in new.items() if value is not self.values[place].value}
        if not changed:
            return None
        # A notice has no form here.
        withheld = [verdict for verdict in screened.verdicts if verdict.delivery == "none"]
        return UnsafeContentError(withheld[0]) if withheld else self.write(changed)

    def _places(self, key: str) -> list[int]:
        return [place for place, each in enumerate(self.values) if each.key == key]


def edit_of_form(content: bytes, content_type: str) -> Edit | None:
    """A request whose body is a form; None if the form cannot be read.

    Args:
        content: The body.
        content_type: The header of that name.
    """
    fields = read_form(content, content_type)
    if fields is None:
        return None

    def write(new: Mapping[int, Any]) -> bytes:
        changed = [_written(each, new[place]) if place in new else each for place, each in enumerate(fields)]
        return write_form(changed, content_type)

    return Edit(tuple(_of_field(each, place) for place, each in enumerate(fields)), write)


def edit_of_json(body: Body, encoded: Content) -> Edit:
    """A request whose body is JSON.

    Args:
        body: The body.
        encoded: Writes one.
    """
    found = list(_of_json(body))
    paths = [path for path, _ in found]
    return Edit(
        tuple(value for _, value in found),
        lambda new: encoded(with_blocks(body, {paths[place]: value for place, value in new.items()})),
    )


def _of_field(each: FormField, place: int) -> Value:
    name = each.name.partition("[")[0].lower()
    text = None if each.filename is not None else _text(each.data)
    if (key := _key(name)) is not None:
        # An object comes as one field for each of its members.
        value = {"file_id": text} if each.name.endswith("[file_id]") else each.data if text is None else text
        return Value(key, value)
    if text is None:
        return Value("images", each.data)
    # A prompt is a user's text, which may begin like a data URL.
    return Value(name if name == "prompt" else f"{name} {place}", text)


def _of_json(body: Body) -> Iterator[tuple[Path, Value]]:
    for name, value in body.items():
        key = _key(name.lower())
        if key is None:
            yield (name,), Value(name, value)
        elif isinstance(value, list):
            yield from (((name, index), Value(key, each)) for index, each in enumerate(value))
        else:
            yield (name,), Value(key, value)


def _key(name: str) -> str | None:
    """The name under which the values of a field are screened; None for its own."""
    return "images" if name in _IMAGES else "mask" if name in MASKS else None


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _typed(value: Any) -> Any:
    """OpenAI's reference to an image as a content block, which has a type."""
    return {"type": "input_image", **value} if _is_reference(value) else value


def _untyped(old: Any, new: Any) -> Any:
    """A screened value in the form of the old one; the old one if it is the same."""
    if not _is_reference(old) or not isinstance(new, Mapping):
        return new
    bare = {key: value for key, value in new.items() if key != "type"}
    return old if bare == old else bare


def _is_reference(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and value.keys() <= _REFERENCE


def _written(each: FormField, value: bytes | str) -> FormField:
    """A field with another value; an uploaded file's type and name say what it is now."""
    if isinstance(value, str):
        return replace(each, data=value.encode())
    mime = media_type(value)
    if each.filename is None or mime is None:
        return replace(each, data=value)
    ending = f".{mime.removeprefix('image/')}"
    stem = each.filename.removesuffix(pathlib.PurePosixPath(each.filename).suffix)
    return replace(each, data=value, filename=stem + ending, media_type=mime)
