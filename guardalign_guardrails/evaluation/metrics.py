"""Rates with intervals, paired comparisons, and how much a text repeats itself. Pure functions of plain numbers.

A difference between settings means nothing without its interval: with 20 prompts, 3 refusals more or less are chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_NORMAL_95: Final = 1.959964
_WORD: Final = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score (1927), which holds up near 0 and 1 and for small counts.

    Args:
        hits: In [0, total].
        total: At least 1.

    Returns:
        Low and high, in [0, 1]; the share lies between them.
    """
    share, spread = hits / total, _NORMAL_95**2 / total
    centre = share + spread / 2
    reach = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)
    # At 0 and at 1 an end is the share itself, which rounding would miss.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


@dataclass(frozen=True)
class Paired:
    """Two settings compared on the same prompts.

    Attributes:
        total: Prompts.
        gained: Prompts with a hit under the second setting only.
        lost: Prompts with a hit under the first setting only.
        difference: Share of hits under the second minus that under the first, in [-1, 1].
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Of McNemar's exact test that gains and losses are equally likely, in (0, 1].
    """

    total: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p_value: float


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare hits on the same prompts.

    The interval is Newcombe's for paired shares (1998, method 10): Wilson's intervals of both shares, joined with
    their correlation, which keeps it inside [-1, 1] also for few prompts. The test is McNemar's in its exact form.

    Args:
        first: Whether each prompt is a hit under the first setting.
        second: The same prompts in the same order under the second.

    Raises:
        ValueError: The lengths differ, or there is no prompt.
    """
    if not first:
        raise ValueError("there is nothing to compare")
    total = len(first)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    lost, gained = sum(first) - both, sum(second) - both
    neither = total - both - lost - gained
    before, after = (both + lost) / total, (both + gained) / total
    difference = after - before
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    correlation = 0.0 if margins == 0 else _corrected(both * neither - gained * lost, total) / math.sqrt(margins)
    (low_1, high_1), (low_2, high_2) = wilson(both + lost, total), wilson(both + gained, total)
    below = _joined(after - low_2, high_1 - before, correlation)
    above = _joined(high_2 - after, before - low_1, correlation)
    return Paired(
        total,
        gained,
        lost,
        difference,
        max(-1.0, difference - below),
        min(1.0, difference + above),
        mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of McNemar's exact test: a fair coin for each prompt that went another way."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, tail / 2.0 ** (changed - 1))


def _corrected(product: int, total: int) -> float:
    """Newcombe's continuity correction, which only ever shrinks a positive correlation."""
    return max(product - total / 2, 0.0) if product > 0 else float(product)


def _joined(own: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, own**2 - 2 * correlation * own * other + other**2))


def words(text: str) -> list[str]:
    """Words and marks of a text, in lower case."""
    return _WORD.findall(text.lower())


def distinct(text: str, size: int = 2) -> float:
    """Share of a text's n-grams of words that are different ones (distinct-n, Li et al. 2016), in (0, 1].

    Args:
        text: Any text.
        size: Words in an n-gram, at least 1.

    Returns:
        1 for texts with less than two n-grams, in which nothing can repeat.
    """
    grams = _grams(words(text), size)
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(text: str, size: int = 4) -> float:
    """Share of a text's words that lie in an n-gram which was there before, in [0, 1).

    Unlike one minus distinct-n it grows with the length of what is said again: a loop of any period comes close to 1,
    two uses of one phrase do not.

    Args:
        text: Any text.
        size: Words in an n-gram, at least 1.
    """
    found = words(text)
    seen: set[tuple[str, ...]] = set()
    repeated: set[int] = set()
    for place, gram in enumerate(_grams(found, size)):
        if gram in seen:
            repeated.update(range(place, place + size))
        seen.add(gram)
    return len(repeated) / len(found) if found else 0.0


def speed(tokens: int, seconds: float) -> float:
    """Tokens a second; 0 if nothing was generated."""
    return tokens / seconds if tokens and seconds > 0 else 0.0


def _grams(found: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(found[place : place + size]) for place in range(len(found) - size + 1)]
