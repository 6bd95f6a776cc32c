"""Text grows token by token: nothing handed out is taken back, and no stop string gets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardalign_guardrails.decoding.chat.incremental_decoder import IncrementalDecoder
from guardalign_guardrails.decoding.chat.tools import format_of

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return smollm2.processor


def written(tokenizer, text, stop=(), hold=None):
    """The text handed out token by token, and the decoder at the end."""
    decoder = IncrementalDecoder(tokenizer, stop, hold, keep_special=False)
    chunks = []
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        decoder.add(token)
        chunks.append(decoder.new_text())
        if decoder.is_stopped:
            break
    decoder.finish()
    chunks.append(decoder.new_text(is_last=True))
    return chunks, decoder


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_chunks_are_the_text_whatever_is_in_it(tokenizer, text):
    chunks, decoder = written(tokenizer, text)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert "".join(chunks) == decoder.text
    assert decoder.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab c", max_size=20), stop=st.lists(st.text("ab c", min_size=1, max_size=4), max_size=3))
@example(text="ab ", stop=["ba", "ab "])
def test_text_ends_at_the_first_stop_string(tokenizer, text, stop):
    chunks, decoder = written(tokenizer, text, tuple(stop))
    whole = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
    hits = [whole.index(one) for one in stop if one in whole]
    assert decoder.is_stopped == bool(hits)
    assert "".join(chunks) == decoder.text
    assert not any(one in decoder.text for one in stop)
    if hits:
        assert whole.startswith(decoder.text)


def test_nothing_from_a_tool_call_on_is_handed_out_before_the_end(tokenizer):
    chunks, decoder = written(tokenizer, "See: <tool_call>{}", hold="<tool_call>")
    assert "".join(chunks[:-1]) == "See: "
    assert decoder.text == "See: <tool_call>{}"


class _Template:
    def __init__(self, chat_template):
        self.chat_template = chat_template


HERMES = format_of(_Template("{{ tools }} <tool_call>"))
MISTRAL = format_of(_Template("{{ tools }} [TOOL_CALLS]"))
LLAMA = format_of(_Template('{{ tools }} {"name": ..., "parameters": ...}'))


@pytest.mark.parametrize(
    ("known", "text", "words"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ""),
        (HERMES, 'I look.\n<tool_call>{"name": "f", "arguments": {"a": 1}}', "I look."),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', ""),
        (MISTRAL, 'So: [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}] and more', "So:"),
        (LLAMA, '{"name": "f", "parameters": {"a": 1}}', ""),
        (LLAMA, '<|python_tag|>{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}', ""),
    ],
)
def test_calls_are_read_in_every_known_way_of_writing(known, text, words):
    left, (call,) = known.parse(text)
    assert (call.name, call.arguments, left) == ("f", {"a": 1}, words)
    assert len(call.id) == 9


def test_several_calls_have_ids_of_their_own():
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "g"}</tool_call>'
    _, calls = HERMES.parse(text)
    assert [call.name for call in calls] == ["f", "g"]
    assert len({call.id for call in calls}) == 2


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(TEXTS, TEXTS.map(lambda t: "<tool_call>" + t), TEXTS.map(lambda t: '{"name": ' + t)))
@pytest.mark.parametrize("known", [HERMES, MISTRAL, LLAMA])
def test_what_cannot_be_read_as_a_call_stays_as_it_is(known, text):
    words, calls = known.parse(text)
    assert calls or words == text


@pytest.mark.parametrize("template", [None, "{{ messages }} <tool_call>", "{{ tools }} in words of its own"])
def test_a_template_without_tools_or_of_an_unknown_kind_has_no_format(template):
    assert format_of(_Template(template)) is None
