"""Small tokenizers of the kinds that the families use, trained on a few sentences when asked for.

Byte-level BPE (Llama 3, Qwen, SmolLM, Mistral's tekken) counts a space to the word behind it. Llama's and Gemma's write
spaces as a letter and fall back to bytes for letters they have not seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

_TEXT: Final = """\
As an AI assistant, I must refuse to help with anything that is dangerous, illegal, or unethical.
You are a helpful assistant. Answer in one sentence. Keep to what you see in the image.
What is in this image? Compare it with the first one, please. How many birds sit on the wire?
USER: ASSISTANT: User: Assistant: system user assistant model tool
The second image shows two red birds on a wire, and the first one shows a grey house.
Which of them is larger? Tell me more about the house. It has a green door and three windows.
"""
_MERGES: Final = 160
# As OpenAI's cl100k and its heirs cut words: punctuation takes the line breaks behind it along.
_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama(*, legacy: bool = False, **special: Any) -> Any:
    """Spaces are a letter, and the tokenizer adds the beginning of text.

    The first word is given a space of its own; a legacy one gives it to the first after each control token too.
    """
    pieces, merges = _metaspace()
    vocab = _numbered(["<unk>", "<s>", "</s>", *_BYTES, *pieces])
    settings = {"pad_token": "<unk>", "add_bos_token": True, "legacy": legacy, **_settings(special)}
    return LlamaTokenizer(vocab=vocab, merges=merges, **settings)


def gemma(**special: Any) -> Any:
    """Spaces are a letter and none is added."""
    pieces, merges = _metaspace()
    vocab = _numbered(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_BYTES, *pieces])
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, **_settings(special))


def qwen(**special: Any) -> Any:
    """Byte-level, without a beginning of text; composes what comes decomposed."""
    pieces, merges = _byte_level()
    return Qwen2Tokenizer(vocab=_numbered(["<|endoftext|>", *pieces]), merges=merges, **_settings(special))


def unigram() -> Any:
    """Pieces by likelihood, compatibility forms composed, unknown letters lost; no family's, but there are such."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def byte_level(bos: str, eos: str, pad: str, *, adds_bos: bool, **special: Any) -> Any:
    """Byte-level, with a beginning of text that the tokenizer adds, or leaves to the chat template."""
    pieces, merges = _byte_level()
    tokenizer = Tokenizer(BPE(vocab=_numbered([bos, eos, pad, *pieces]), merges=list(merges)))
    tokenizer.pre_tokenizer = _cut()
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)]),
            ]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, **_settings(special)
    )


_BYTES: Final = tuple(f"<0x{number:02X}>" for number in range(256))


def _settings(special: Mapping[str, Any]) -> dict[str, Any]:
    return {"extra_special_tokens": special} if special else {}


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


@cache
def _metaspace() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    return _trained(pre_tokenizers.Metaspace(prepend_scheme="never"), [])


@cache
def _byte_level() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    return _trained(_cut(), pre_tokenizers.ByteLevel.alphabet())


def _cut() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _trained(pre_tokenizer: Any, alphabet: list[str]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Pieces and merges."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    letters = len(set(_TEXT)) if not alphabet else len(alphabet)
    trainer = BpeTrainer(vocab_size=letters + _MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXT.splitlines(keepends=True), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return tuple(model["vocab"]), tuple((first, second) for first, second in model["merges"])
