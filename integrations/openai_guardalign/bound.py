"""A function with its settings, as openai-agents' hooks want one."""

from __future__ import annotations

from functools import partial
from typing import Any

from typing_extensions import Self

from guardalign_guardrails.guarding.pickles import check_pickles


class Bound(partial[Any]):
    """A function with its settings, which pickle or name what does not; nothing changes them, so copies share them."""

    def __reduce__(self) -> str | tuple[Any, ...]:
        for name, value in zip(("guard", "rules", "on_verdicts"), self.args, strict=False):
            check_pickles(name, value)
        return super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
