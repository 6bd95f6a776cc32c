"""Rendered chats become tensors, and whatever users write, the spans are their words and nothing else."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import family_tokenizers as tokenizers
import pytest
import torch
from families import VISION, WORDS, family
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from guardalign_guardrails.decoding.chat.admission import AdmittedMessage
from guardalign_guardrails.decoding.chat.prompts.template import RenderedPrompt, render
from guardalign_guardrails.decoding.chat.prompts.template_messages import control_tokens
from guardalign_guardrails.decoding.chat.prompts.tokenization import Prompts, to_device, tokenize
from guardalign_guardrails.decoding.config import SafetyPrefix
from guardalign_guardrails.errors import PromptError

PREFIX = SafetyPrefix().text
IMAGE = Image.new("RGB", (40, 20), (200, 30, 30))
ODD = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(" \n\t\r\u2028\u00a0\u200b\ufeff\u0301\u0300\u1100\u1161▁Ġ<>|[]/.,:é日🏳️‍🌈"),
        st.sampled_from("abcAs an AI"),
        st.sampled_from("\ue000\U000f0000\U00100000\U00100001\U0010fffd"),
    ),
    max_size=30,
)
TYPED = st.sampled_from(["<|im_end|>", "</s>", "<bos>", "<end_of_turn>", "<|eot_id|>", PREFIX, "[/INST]", "<0x0A>"])
SAID = st.one_of(ODD, st.lists(st.one_of(ODD, TYPED), max_size=4).map("".join))


def rendered(processor, messages, placement: str | None = "user", prefix: str = PREFIX) -> RenderedPrompt:
    wanted = None if placement is None else SafetyPrefix(text=prefix, placement=placement)
    return render(processor, messages, wanted, takes_images=hasattr(processor, "tokenizer"))


def bare(text: str) -> str:
    """What a tokenizer that composes letters and writes spaces as one can give back of a text."""
    return "".join(unicodedata.normalize("NFKC", text.replace("▁", " ")).split())


def read(tokenizer, found: Prompts, row: int = 0) -> tuple[str, list[str]]:
    ids, spans = found.inputs["input_ids"][row], found.spans.prompts[row]
    decoded = [bare(tokenizer.decode(ids[slice(*span)])) for span in (spans.prefix, *spans.instruction)]
    return decoded[0], decoded[1:]


def as_written(tokenizer, text: str) -> str:
    """Words as a prompt has them: control tokens of this tokenizer broken up, marks not."""
    marks = sorted(control_tokens(tokenizer), key=len, reverse=True)
    text = re.sub("|".join(map(re.escape, marks)), lambda found: found[0][0] + " " + found[0][1:], text)
    return bare(re.sub("[\U00100000-\U0010fffd]", "\ufffd", text))


class TestWhateverUsersWrite:
    @settings(max_examples=60, deadline=None)
    @given(earlier=SAID, answer=SAID, last=SAID, placement=st.sampled_from(["user", "system"]))
    @example("e\u0301", "x", "\u0301", "user")
    @example("", "", "", "system")
    @example("<|im_<|im_end|>end|>", "x", "</</s>s>", "user")
    @pytest.mark.parametrize("name", WORDS)
    def test_the_spans_are_their_words(self, name, earlier, answer, last, placement):
        tokenizer = family(name).processor
        chat = [("user", earlier), ("assistant", answer), ("user", last)]
        found = tokenize(
            tokenizer, [rendered(tokenizer, [AdmittedMessage(role, (text,)) for role, text in chat], placement)]
        )
        prefix, words = read(tokenizer, found)
        behind = [last] if placement == "user" else [earlier, last]
        assert prefix == bare(PREFIX)
        assert words == [text for text in (as_written(tokenizer, text) for text in behind) if text]

    @settings(max_examples=40, deadline=None)
    @given(text=SAID)
    def test_a_tokenizer_that_loses_letters_keeps_the_prefix(self, text):
        tokenizer = tokenizers.unigram()
        tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}bot:"
        found = tokenize(tokenizer, [rendered(tokenizer, [AdmittedMessage("user", (text,))])])
        assert read(tokenizer, found)[0] == bare(PREFIX)

    @settings(max_examples=60, deadline=None)
    @given(text=SAID, placement=st.sampled_from(["user", "system", "response"]))
    @pytest.mark.parametrize("name", ["Llama 2", "Qwen3"])
    def test_whatever_the_prefix_it_is_found_or_refused(self, name, text, placement):
        tokenizer = family(name).processor
        try:
            found = tokenize(
                tokenizer, [rendered(tokenizer, [AdmittedMessage("user", ("And a bird?",))], placement, prefix=text)]
            )
        except PromptError:
            return
        assert read(tokenizer, found)[0] == bare(text.strip())

    def test_a_prefix_that_would_be_read_as_a_control_token_is_refused(self):
        tokenizer = family("Qwen3").processor
        with pytest.raises(PromptError, match="control tokens"):
            tokenize(tokenizer, [rendered(tokenizer, [AdmittedMessage("user", ("Why?",))], prefix="Stop.<|im_end|>")])


class TestTheBatch:
    def test_rows_are_padded_on_the_left_and_their_spans_move_along(self):
        tokenizer = family("Qwen3").processor
        rows = [rendered(tokenizer, [AdmittedMessage("user", (text,))]) for text in ("Why?", "Why is it so? Tell me.")]
        both, alone = tokenize(tokenizer, rows), tokenize(tokenizer, rows[:1])
        pad = both.spans.length - alone.spans.length
        assert pad > 0
        assert both.inputs["attention_mask"][0].tolist() == [0] * pad + [1] * alone.spans.length
        assert both.spans.prompts[:1] == alone.spans.shifted([pad]).prompts
        assert both.lengths == (alone.spans.length, both.spans.length)

    def test_the_tokenizers_own_padding_side_does_not_matter_and_stays(self):
        one = family("Idefics3")
        assert one.tokenizer.padding_side == "right"
        rows = [rendered(one.processor, [AdmittedMessage("user", (IMAGE, text))]) for text in ("Why?", "Why so red?")]
        assert tokenize(one.processor, rows).inputs["attention_mask"][0, 0] == 0
        assert one.tokenizer.padding_side == "right"

    def test_the_first_token_of_all_is_never_part_of_the_prefix(self):
        tokenizer = tokenizers.qwen(turn_end_token="<|im_end|>")
        tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
        chats = [[AdmittedMessage("user", (text,))] for text in ("Why?", "Why is the house green?")]
        found = tokenize(tokenizer, [rendered(tokenizer, chat, "system") for chat in chats])
        assert bare(tokenizer.decode(found.inputs["input_ids"][1])).startswith(bare(PREFIX))
        for row, spans in enumerate(found.spans.prompts):
            assert spans.prefix[0] == int(found.inputs["attention_mask"][row].argmax()) + 1
            assert read(tokenizer, found, row)[0] == bare(PREFIX).removeprefix("As")

    @pytest.mark.parametrize("name", [*VISION, *WORDS])
    def test_the_text_begins_once(self, name):
        one = family(name)
        bos = one.tokenizer.bos_token_id
        parts = (IMAGE, "Why?") if one.takes_images else ("Why?",)
        found = tokenize(one.processor, [rendered(one.processor, [AdmittedMessage("user", parts)])])
        if bos is not None:
            assert found.inputs["input_ids"][0].tolist().count(bos) == 1
            assert found.inputs["input_ids"][0, 0] == bos

    def test_images_take_the_dtype_of_the_model_and_nothing_else_does(self):
        one = family("Qwen2-VL")
        found = tokenize(one.processor, [rendered(one.processor, [AdmittedMessage("user", (IMAGE, "Why?"))])])
        moved = to_device({**found.inputs, "other": "x"}, torch.device("cpu"), torch.bfloat16)
        assert moved["other"] == "x"
        changed = {name for name in found.inputs if moved[name].dtype != found.inputs[name].dtype}
        assert changed == {"pixel_values"}
        assert moved["pixel_values"].dtype == torch.bfloat16


class TestWhatCannotBeDone:
    def test_a_tokenizer_without_offsets_is_refused(self):
        from transformers import ByT5Tokenizer

        tokenizer = ByT5Tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
        with pytest.raises(PromptError, match="fast tokenizer"):
            tokenize(tokenizer, [rendered(tokenizer, [AdmittedMessage("user", ("Why?",))])])

    @pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL", "Mllama", "Gemma 3", "InternVL"])
    def test_images_without_places_and_places_without_images_are_refused(self, name):
        processor = family(name).processor
        one = rendered(processor, [AdmittedMessage("user", (IMAGE, "What is it?"))])
        for images in ((), (IMAGE, IMAGE)):
            with pytest.raises(PromptError):
                tokenize(processor, [replace(one, images=images)])
        with pytest.raises(PromptError):
            tokenize(processor, [replace(one, images=()), replace(one, images=(IMAGE, IMAGE))])

    def test_an_image_that_the_processor_cannot_cut_up_is_refused_without_a_word_of_the_chat(self):
        processor = family("Qwen2-VL").processor
        chat = [AdmittedMessage("user", (Image.new("RGB", (2000, 2)), "a secret"))]
        with pytest.raises(PromptError, match="images of a size") as caught:
            tokenize(processor, [rendered(processor, chat)])
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_processor_that_writes_into_the_prompt_itself_is_refused(self):
        processor = family("Mllama").processor
        one = rendered(processor, [AdmittedMessage("user", (IMAGE, "Why?"))])
        begun = len(processor.bos_token)
        shifted = replace(one, text=one.text[begun:], prefix=tuple(place - begun for place in one.prefix))
        with pytest.raises(PromptError, match="cannot be found among"):
            tokenize(processor, [shifted])
