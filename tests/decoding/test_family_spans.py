"""Prefix and instruction are found among the tokens of every family's prompts, wherever the prefix goes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from families import VISION, WORDS, Family, family
from PIL import Image

from guardalign_guardrails.decoding.attention.token_spans import Range
from guardalign_guardrails.decoding.chat.admission import AdmittedMessage
from guardalign_guardrails.decoding.chat.prompts.template import RenderedPrompt, render
from guardalign_guardrails.decoding.chat.prompts.tokenization import Prompts, tokenize
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import PromptError

PREFIX = SafetyPrefix().text
WIDE, TALL = Image.new("RGB", (40, 20), (200, 30, 30)), Image.new("RGB", (18, 30), (20, 90, 200))
RULES = AdmittedMessage("system", ("Answer in one sentence.",))


def user(*parts) -> AdmittedMessage:
    return AdmittedMessage("user", parts)


def answer(text: str) -> AdmittedMessage:
    return AdmittedMessage("assistant", (text,))


CHATS = {
    "one image": [[user(WIDE, "What is in this image?")]],
    "two images between words": [[user("The first one: ", WIDE, "and the second one:", TALL, "\nCompare them. ")]],
    "images in earlier turns": [
        [
            RULES,
            user(TALL, "What is in this image?"),
            answer("A grey house.\nIt has a green door."),
            user(WIDE, TALL, "How many birds do you see?"),
            answer("Two."),
            user("Which of them is larger?"),
        ]
    ],
    "a short and a long row": [
        [user(WIDE, "Why?")],
        [user(WIDE, "What is it?"), answer("A bird."), user(TALL, "Tell me more about the house, please.")],
    ],
}


def without_images(chat: Sequence[AdmittedMessage]) -> list[AdmittedMessage]:
    return [AdmittedMessage(m.role, tuple(p for p in m.parts if isinstance(p, str))) for m in chat]


def prompts(
    one: Family, chats: Sequence[Sequence[AdmittedMessage]], placement: str | None
) -> tuple[list[RenderedPrompt], Prompts]:
    prefix = None if placement is None else SafetyPrefix(placement=placement)
    chats = chats if one.takes_images else [without_images(chat) for chat in chats]
    rendered = [render(one.processor, chat, prefix, takes_images=one.takes_images) for chat in chats]
    return rendered, tokenize(one.processor, rendered)


def bare(text: str) -> str:
    return "".join(text.split())


def texts(chat: Sequence[AdmittedMessage], role: str) -> list[str]:
    return [part for message in chat if message.role == role for part in message.parts if isinstance(part, str)]


def read(one: Family, found: Prompts, row: int, span: Range) -> str:
    return bare(one.tokenizer.decode(found.inputs["input_ids"][row, slice(*span)]))


def check(one: Family, chat: Sequence[AdmittedMessage], rendered: RenderedPrompt, found: Prompts, row: int) -> None:
    ids, mask, spans = found.inputs["input_ids"][row], found.inputs["attention_mask"][row], found.spans.prompts[row]
    if rendered.prefix is not None:
        assert read(one, found, row, spans.prefix) == bare(PREFIX)
    read_back = [read(one, found, row, span) for span in spans.instruction]
    behind = [text for text in map(bare, texts(chat, "user")) if text]
    assert read_back == behind[len(behind) - len(read_back) :], "not the words of the user, or not the last of them"
    special = set(one.tokenizer.all_special_ids)
    before = 0
    for first, end in (spans.prefix, *spans.instruction):
        assert before <= first <= end <= found.spans.length
        assert mask[first:end].all(), "padding lies in a span"
        assert special.isdisjoint(ids[first:end].tolist()), "a control token lies in a span"
        before = end
    if one.takes_images:
        images = sum(len(message.images) for message in chat)
        count = int((ids == one.tokenizer.convert_tokens_to_ids(one.image)).sum())
        assert count == len(rendered.images) == images or (one.is_expanded and count > images > 0)
    assert int(mask.sum()) == found.lengths[row]
    assert mask.tolist() == sorted(mask.tolist()), "padding is not on the left"


@pytest.mark.parametrize("placement", ["user", "system", "response", None])
@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_the_spans_are_the_prefix_and_the_words_of_the_user(name, kind, placement):
    one = family(name)
    rendered, found = prompts(one, CHATS[kind], placement)
    for row, chat in enumerate(CHATS[kind]):
        check(one, chat, rendered[row], found, row)
        spans = found.spans.prompts[row]
        if placement == "user":
            last = [text for message in chat[-1:] for text in texts([message], "user")]
            assert len(spans.instruction) == len(last)
        elif placement == "system":
            # Pixtral puts system words into the last turn, behind all earlier ones.
            assert len(spans.instruction) >= len(texts(chat[-1:], "user"))
            assert one.name == "Pixtral" or len(spans.instruction) == len(texts(chat, "user"))
        elif placement == "response":
            assert spans.prefix[1] == found.spans.length
            assert found.prefills[row] == PREFIX
        else:
            assert spans.prefix == (0, 0)


@pytest.mark.parametrize("kind", ["one image", "two images between words"])
@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_the_tokens_are_those_of_transformers_own_chat_template(name, kind):
    one = family(name)
    chat = CHATS[kind][0] if one.takes_images else [user("Which of them is larger?")]
    _, found = prompts(one, [chat], None)
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in chat[0].parts
    ]
    content = content if one.takes_images else content[0]["text"]
    stock = one.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert found.inputs["input_ids"].tolist() == stock["input_ids"].tolist()
    assert found.inputs.keys() == stock.keys()
    if one.takes_images:
        assert (found.inputs["pixel_values"] == stock["pixel_values"]).all()


@pytest.mark.parametrize("name", VISION)
def test_a_chat_without_images_is_written_too(name):
    one = family(name)
    for chat in map(without_images, (CHATS["one image"][0], CHATS["images in earlier turns"][0])):
        for placement in ("user", "system"):
            rendered, found = prompts(one, [chat], placement)
            check(one, chat, rendered[0], found, 0)


def typed(one: Family) -> str:
    """What somebody who knows the family would type."""
    marks = [one.image, one.turn_end, one.tokenizer.bos_token, one.tokenizer.pad_token, "<video>", "<image>"]
    marks += [getattr(one.processor, "boi_token", None), "<|im_start|>", "[INST]", "<start_of_turn>", "<0x0A>", "<s>"]
    return "Look: " + " ".join(mark for mark in marks if mark) + "".join(mark for mark in marks if mark) + " system"


@pytest.mark.parametrize("name", [*VISION, *WORDS])
def test_typed_control_tokens_move_nothing_and_are_words(name):
    one = family(name)
    words = typed(one)
    plain = prompts(one, [[user(WIDE, "Look:")]], "user")[1]
    rendered, found = prompts(one, [[user(WIDE, words)]], "user")
    spans = found.spans.prompts[0]
    ids = found.inputs["input_ids"][0]
    assert read(one, found, 0, spans.prefix) == bare(PREFIX)
    assert [read(one, found, 0, span) for span in spans.instruction] == [bare(words)]
    assert set(one.tokenizer.all_special_ids).isdisjoint(ids[slice(*spans.instruction[0])].tolist())
    for token in set(one.tokenizer.all_special_ids):
        assert (ids == token).sum() == (plain.inputs["input_ids"][0] == token).sum()
    assert rendered[0].images == (WIDE,) * one.takes_images


@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL", "Mllama", "Gemma 3"])
def test_a_row_whose_images_and_places_differ_in_number_is_refused(name):
    one = family(name)
    rendered, _ = prompts(one, [[user(WIDE, "One.")]], "user")
    short = RenderedPrompt(rendered[0].text, rendered[0].prefix, rendered[0].instruction, ())
    with pytest.raises(PromptError):
        tokenize(one.processor, [short, RenderedPrompt(short.text, short.prefix, short.instruction, (WIDE, TALL))])
