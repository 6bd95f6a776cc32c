"""Holds answers to a JSON schema: at each token only those are allowed that can go on to a valid answer.

The grammar engine is XGrammar's; this module makes it a logits processor of transformers'.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Final

from guardalign_guardrails.errors import ModelUnavailable, PromptError

# White space is valid between any parts of an object, and small models can write it until they run out of tokens.
_MOST_SPACE: Final = 8


class Grammars:
    """Compiles schemas for one tokenizer and caches them.

    Args:
        tokenizer: The model's.
        vocab_size: Of the model's output, which may be larger than the tokenizer's.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._compiler: Any = None
        self._loading = threading.Lock()

    def processor(self, schema: Mapping[str, Any]) -> Any:
        """A logits processor for one generation.

        Args:
            schema: A JSON schema.

        Raises:
            ModelUnavailable: XGrammar is not installed.
            PromptError: The schema cannot be compiled.
        """
        try:
            import xgrammar
            from xgrammar.contrib.hf import LogitsProcessor
        except ImportError as error:
            raise ModelUnavailable(
                "Structured answers of local models need xgrammar: pip install 'guardalign-guardrails[local]'."
            ) from error
        with self._loading:
            if self._compiler is None:
                known = xgrammar.TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=self._vocab_size)
                self._compiler = xgrammar.GrammarCompiler(known)
        try:
            compiled = self._compiler.compile_json_schema(json.dumps(schema), max_whitespace_cnt=_MOST_SPACE)
        except Exception as error:  # noqa: BLE001  bindings raise what they like
            kind = type(error).__name__
        else:
            return LogitsProcessor(compiled)
        raise PromptError(f"The JSON schema cannot be turned into a grammar ({kind}).")
