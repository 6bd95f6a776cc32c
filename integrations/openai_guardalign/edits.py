"""Requests that edit images or make videos: finds their images, in forms and in JSON, and puts others in their places.

A mask says by its transparency what may be edited, so that the guard's own opaque reading cannot take its place. It
stays as it is where all that can be seen in it was scored and may pass; one that would have to change is an error.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from guardalign_guardrails import UnsafeContentError, Verdict
from guardalign_guardrails.content.bodies import Body, ScreenedBody
from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.payload import Ambiguous, is_data_url, read_data_url
from guardalign_guardrails.content.rewrite import with_blocks
from guardalign_guardrails.images.containers import media_type
from openai_guardalign.forms import FormField, read_form, write_form

Content = Callable[[Body], bytes]
"""Writes a body as JSON."""

_IMAGES: Final = frozenset({"image", "images", "input_reference"})
_TRANSPARENT: Final = frozenset({"mask", "markup"})
_REFERENCE: Final = frozenset({"image_url", "file_id"})


@dataclass(frozen=True)
class Value:
    """A value of a request.

    Attributes:
        kind: ``image``, ``transparent`` for one whose transparency says something, or ``other``.
        key: The name under which it is screened.
        value: What a client gave.
    """

    kind: Literal["image", "transparent", "other"]
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
    def bodies(self) -> tuple[Body, Body]:
        """What is screened: first everything but images whose transparency says something, then those."""
        others = {each.key: each.value for each in self.values if each.kind == "other"}
        return {**self._images("image"), **others}, self._images("transparent")

    def content(self, screened: ScreenedBody, transparent: ScreenedBody) -> bytes | UnsafeContentError | None:
        """What is sent in the place of the content that came, None for that content; or the error that is raised.

        Args:
            screened: The first of `bodies`.
            transparent: The second.
        """
        for each in (screened, transparent):
            if each.decision.violation is not None:
                return UnsafeContentError(each.decision.violation)
        new = {**self._changed(screened.body, "image"), **self._changed(screened.body, "other")}
        masks = self._changed(transparent.body, "transparent")
        # A notice has no form here, and no other image can stand for a mask.
        withheld = [verdict for verdict in screened.verdicts if verdict.delivery == "none"]
        if masks and not all(map(_is_seen, transparent.verdicts)):
            withheld += [verdict for verdict in transparent.verdicts if not _is_seen(verdict)]
        elif not all(_is_plain(self.values[place].value) for place in masks):
            withheld += transparent.verdicts
        if withheld and (new or masks):
            return UnsafeContentError(withheld[0])
        return self.write(new) if new else None

    def _images(self, kind: str) -> dict[str, list[Any]]:
        found = [_typed(each.value) for each in self.values if each.kind == kind]
        return {"images": found} if found else {}

    def _changed(self, body: Body, kind: str) -> dict[int, Any]:
        """The values of a kind that are others in a screened body, by their places."""
        places = [place for place, each in enumerate(self.values) if each.kind == kind]
        if kind == "other":
            pairs = [(place, body[self.values[place].key]) for place in places]
        else:
            pairs = list(zip(places, body.get("images", ()), strict=True))
        new = {place: _untyped(self.values[place].value, value) for place, value in pairs}
        return {place: value for place, value in new.items() if value is not self.values[place].value}


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
    if name in _TRANSPARENT or name in _IMAGES:
        # An object comes as one field for each of its members.
        value = {"file_id": text} if each.name.endswith("[file_id]") else each.data if text is None else text
        return Value("transparent" if name in _TRANSPARENT else "image", "images", value)
    if text is None:
        return Value("image", "images", each.data)
    # A prompt is a user's text, which may begin like a data URL.
    return Value("other", name if name == "prompt" else f"{name} {place}", text)


def _of_json(body: Body) -> Iterator[tuple[Path, Value]]:
    for key, value in body.items():
        name = key.lower()
        if name in _TRANSPARENT or name in _IMAGES:
            each_at = (
                {(key, index): each for index, each in enumerate(value)} if isinstance(value, list) else {(key,): value}
            )
            for path, each in each_at.items():
                if each is not None:
                    yield path, Value("transparent" if name in _TRANSPARENT else "image", "images", each)
        else:
            yield (key,), Value("other", key, value)


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


def _is_seen(verdict: Verdict) -> bool:
    """Whether an image may pass as it is: nothing but its transparency leaves open what a model sees.

    The image over black, over white and without its transparency was scored.
    """
    return verdict.delivery == "original" or (
        verdict.delivery == "canonical" and set(verdict.delivery_reasons) == {"alpha"}
    )


def _is_plain(value: Any) -> bool:
    """Whether every server reads the same image from a value."""
    url = value.get("image_url") if _is_reference(value) else value
    if isinstance(url, str):
        return is_data_url(url) and not isinstance(read_data_url(url, len(url)), Ambiguous | str)
    return isinstance(url, bytes)


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
