"""Screens contents: opens, fetches and checks all their images in one batch, and puts the results back.

It knows content as plain data and the guard. What the findings mean for a whole chat is decided in `screened_chat`;
callbacks, prefixes and refusals are the integrations' own. The async function takes the same steps as the sync one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from PIL import Image

from guardalign_guardrails.actions import Source
from guardalign_guardrails.content.chat import Role
from guardalign_guardrails.content.dialect import Path
from guardalign_guardrails.content.media_text import begins_like_text
from guardalign_guardrails.content.payload import Ambiguous, Payload, Remote
from guardalign_guardrails.content.promoted import find_shown
from guardalign_guardrails.content.rewrite import block_at, text_in_place_of, with_blocks
from guardalign_guardrails.content.walk import MediaBlock, TextBlock, find, find_data, find_loose, find_text
from guardalign_guardrails.errors import FetchRefused
from guardalign_guardrails.guarding.guard import Guard, uninspectable
from guardalign_guardrails.guarding.result import CheckResult
from guardalign_guardrails.guarding.steps import Steps, afinish, finish
from guardalign_guardrails.images import encode_png
from guardalign_guardrails.images.containers import sniff
from guardalign_guardrails.images.mask import is_marked, with_mark
from guardalign_guardrails.verdict import Verdict

NOTICE: Final = "[image removed by the safety policy]"
"""What a model reads where an unsafe image was."""

UNCHECKED_NOTICE: Final = "[content removed: the safety policy could not check it]"
"""What a model reads where something was that could not be checked."""

_BLACK: Final = (64, 64)


# Not frozen, like its result: a long chat has hundreds of both for each call, and frozen ones are costly to make.
@dataclass
class Turn:
    """The content of one message, or of something beside it.

    Attributes:
        content: Text, a list of blocks, or a block: plain data as a provider takes it.
        source: Where it came from; None for what follows from the roles of a chat, outside of a chat for ``user``.
        is_loose: Whether it is a value of an app's own making, with bare images in it, rather than chat content.
        role: Who says it.
        keep_results: Whether blocks that may pass are replaced by their `CheckResult`, with pixels: for a model that
            runs in this process, so that nothing is encoded for it only to be decoded again.
        is_data: Whether it is the data of a tool, such as its artifact, of which only what holds media counts.
        under: The keys under which a loose value stands, outermost first; one of them may say that it is an image.
    """

    content: Any = field(repr=False)
    source: Source | None = None
    is_loose: bool = False
    role: Role = "user"
    keep_results: bool = False
    is_data: bool = False
    under: Path = ()

    @property
    def media(self) -> list[MediaBlock]:
        """The blocks that stand for media; looked for once."""
        # As `cached_property` does, but without its lock, which costs more than looking through plain text.
        found: list[MediaBlock] | None = self.__dict__.get("_media")
        if found is None:
            found = self.__dict__["_media"] = self.find()
        return found

    def find(self) -> list[MediaBlock]:
        """Look for the blocks that stand for media."""
        content = self.content
        if self.is_data:
            return find_data(content)
        if self.is_loose:
            return find_loose(content, self.under)
        if isinstance(content, str) and begins_like_text(content):
            return []
        # A model that runs in this process is given text as text.
        if self.keep_results:
            return find(content)
        return find_shown(content, is_of_tool=self.role == "tool" or self.source == "tool")


@dataclass
class Screened:
    """What was found in one turn, and its content without what may not pass.

    Attributes:
        turn: The turn.
        content: The sanitised content; the very same object if nothing changed.
        verdicts: One for each block that stands for an image or other media, in reading order.
        withheld: Those of them in whose place a notice, or a black image, stands now; their ``delivery`` is ``none``.
        is_marked: Whether an image in it says that a guard has masked it before. Anyone can write that.
    """

    turn: Turn
    content: Any = field(repr=False)
    verdicts: tuple[Verdict, ...] = ()
    withheld: tuple[Verdict, ...] = ()
    is_marked: bool = False

    @property
    def is_changed(self) -> bool:
        """Whether the content is another one than the turn's."""
        return self.content is not self.turn.content

    @cached_property
    def texts(self) -> tuple[TextBlock, ...]:
        """The text of the turn, in reading order. Nothing scores it yet; loose values are data, not text."""
        return () if self.turn.is_loose or self.turn.is_data else tuple(find_text(self.turn.content))


@dataclass(frozen=True)
class _OpenedBlock:
    """A block of a turn, opened.

    Attributes:
        turn: Index of the turn.
        block: Where it is, and how to write it.
        source: Where it came from.
        payload: The image, or why there is none.
        is_open: Whether a model may find something else there than what was read.
    """

    turn: int
    block: MediaBlock
    source: Source
    payload: bytes | Image.Image | str = field(repr=False)
    is_open: bool = False


def screen(guard: Guard, turns: Sequence[Turn]) -> list[Screened]:
    """Check turns; all images of all of them make one batch.

    An image is replaced in its own dialect by the masked or canonical one, by a notice or, where only an image may
    stand, by a black one (``route``, ``block``), or stays. One that stays is inlined if it was fetched, and re-encoded
    if its base64 is ambiguous, so that a model sees the very bytes that were checked.

    Args:
        guard: Checks, and fetches if its policy says so.
        turns: Contents with their sources, of one chat or of several.

    Returns:
        One result per turn, in order.

    Raises:
        GuardAlignError: The guard cannot work: no encoder, no profile, a package is missing.
    """
    return finish(_screening(guard, turns, [turn.media for turn in turns]))


async def ascreen(guard: Guard, turns: Sequence[Turn]) -> list[Screened]:
    """`screen` without blocking the event loop."""
    found = [turn.media for turn in turns]
    if not any(found):
        return _unchanged(turns)
    return await afinish(_screening(guard, turns, found))


def notice_for(verdict: Verdict) -> str:
    """What a model reads in the place of what is withheld."""
    return NOTICE if verdict.finding == "unsafe" else UNCHECKED_NOTICE


def _screening(guard: Guard, turns: Sequence[Turn], found: Sequence[Sequence[MediaBlock]]) -> Steps[list[Screened]]:
    """The steps of `screen`, given the blocks of each turn."""
    if not any(found):
        return _unchanged(turns)
    opened = _open(guard, turns, found)
    pairs = [(block.payload, block.source) for block in opened if not isinstance(block.payload, str)]
    kept = {"keep_pixels": True} if any(turn.keep_results for turn in turns) else {}
    checked = yield from guard.checking([image for image, _ in pairs], source=[source for _, source in pairs], **kept)
    return _rewrite(guard, turns, opened, iter(checked))


def _unchanged(turns: Sequence[Turn]) -> list[Screened]:
    return [Screened(turn, turn.content) for turn in turns]


def _open(guard: Guard, turns: Sequence[Turn], found: Sequence[Sequence[MediaBlock]]) -> list[_OpenedBlock]:
    limit = guard.limits.max_bytes
    read = [(index, block, block.reading.read(limit)) for index, blocks in enumerate(found) for block in blocks]
    fetched = _fetch(guard, [payload for _, _, payload in read])
    return [_opened(index, block, turns[index].source or "user", payload, fetched) for index, block, payload in read]


def _opened(
    turn: int, block: MediaBlock, source: Source, payload: Payload, fetched: Mapping[str, bytes | FetchRefused]
) -> _OpenedBlock:
    if not isinstance(payload, Remote):
        return _OpenedBlock(turn, block, source, payload, is_open=isinstance(payload, Ambiguous))
    answer = fetched.get(payload.url)
    if isinstance(answer, bytes) and block.reading.write is not None:
        return _OpenedBlock(turn, block, source, answer, is_open=True)
    return _OpenedBlock(turn, block, source, answer.reason if isinstance(answer, FetchRefused) else "remote_reference")


def _fetch(guard: Guard, payloads: Sequence[Payload]) -> Mapping[str, bytes | FetchRefused]:
    urls = [payload.url for payload in payloads if isinstance(payload, Remote)]
    if not urls or guard.fetcher is None:
        return {}
    return guard.fetcher.fetch_all(urls, guard.limits.max_bytes)


def _rewrite(
    guard: Guard, turns: Sequence[Turn], opened: Sequence[_OpenedBlock], checked: Iterator[CheckResult]
) -> list[Screened]:
    """The turns with what the results say in place of their blocks; ``checked`` are those of the images among them."""
    is_enforced = guard.policy.mode == "enforce"
    new: list[dict[Path, object]] = [{} for _ in turns]
    verdicts: list[list[Verdict]] = [[] for _ in turns]
    withheld: list[list[Verdict]] = [[] for _ in turns]
    marked: set[int] = set()
    for each in opened:
        is_image = not isinstance(each.payload, str)
        result = next(checked) if is_image else uninspectable(guard, str(each.payload), each.source)
        if not isinstance(each.payload, str) and is_marked(each.payload):
            marked.add(each.turn)
        is_withheld = _is_withheld(each, result)
        verdict = _undelivered(result.verdict) if is_withheld else result.verdict
        verdicts[each.turn].append(verdict)
        if is_withheld:
            withheld[each.turn].append(verdict)
        old = block_at(turns[each.turn].content, each.block.path)
        beside = each.block.reading.beside
        if turns[each.turn].keep_results and not is_withheld:
            new[each.turn][each.block.path] = result
        elif (replacement := _replacement(old, each, result, is_enforced=is_enforced)) is not None:
            new[each.turn][each.block.path] = replacement
            if not is_withheld:
                new[each.turn].update({(*each.block.path[:-1], key): result.mime_type for key in beside})
    return [
        Screened(turn, with_blocks(turn.content, blocks), tuple(own), tuple(out), index in marked)
        for index, (turn, blocks, own, out) in enumerate(zip(turns, new, verdicts, withheld, strict=True))
    ]


def _replacement(old: Any, opened: _OpenedBlock, result: CheckResult, *, is_enforced: bool) -> object:
    """What takes a block's place; None if it stays."""
    reading = opened.block.reading
    if _is_withheld(opened, result):
        if reading.write is not None and not reading.takes_text:
            return reading.write(encode_png(Image.new("RGB", _BLACK)), "image/png")
        notice = notice_for(result.verdict)
        return text_in_place_of(old, notice) if reading.withheld is None else reading.withheld(notice)
    if reading.write is None:
        return None
    if result.verdict.delivery in ("masked", "canonical"):
        return reading.write(_encoded(result), result.mime_type)
    if opened.is_open and isinstance(opened.payload, bytes) and is_enforced and sniff(opened.payload) is not None:
        return reading.write(_encoded(result), result.mime_type)
    return None


def _is_withheld(opened: _OpenedBlock, result: CheckResult) -> bool:
    """Whether nothing of an image is passed on: it is blocked, or nothing else can be written where it stands."""
    is_replaced = result.verdict.delivery in ("masked", "canonical")
    return result.is_blocked or (is_replaced and opened.block.reading.write is None)


def _undelivered(verdict: Verdict) -> Verdict:
    """The verdict of an image that is withheld, also where it may pass as another one that cannot be written."""
    if verdict.delivery == "none":
        return verdict
    reasons = (*verdict.reasons, f"withheld: no {verdict.delivery} image can be written where it stands")
    return verdict.model_copy(update={"delivery": "none", "delivery_proposed": "none", "reasons": reasons})


def _encoded(result: CheckResult) -> bytes:
    output = result.output
    if isinstance(output, Image.Image):
        return with_mark(encode_png(output)) if is_marked(output) else encode_png(output)
    return output if isinstance(output, bytes) else encode_png(Image.fromarray(output))
