"""What is known of images: the most recent entries are kept, and no more than was asked for."""

from __future__ import annotations

import pickle

import pytest

from guardalign_guardrails.guarding.cache import VerdictCache


def filled(max_entries, *names):
    cache = VerdictCache(max_entries)
    for name in names:
        cache.put((name,), name.upper())
    return cache


def known(cache, names):
    return [name for name in names if cache.get((name,)) is not None]


def test_an_entry_is_known_by_its_whole_key():
    cache = VerdictCache()
    cache.put(("digest", "rule", "identity"), "outcome")
    assert cache.get(("digest", "rule", "identity")) == "outcome"
    assert cache.get(("digest", "rule", "other")) is None
    assert cache.get(("digest", "rule")) is None


def test_the_least_recently_used_entries_go_first():
    cache = filled(3, "a", "b", "c")
    assert cache.get(("a",)) == "A"
    cache.put(("d",), "D")
    assert known(cache, "abcd") == ["a", "c", "d"]
    assert len(cache) == 3


def test_an_entry_that_is_put_again_is_the_most_recent_one_and_has_its_new_value():
    cache = filled(3, "a", "b", "c")
    cache.put(("a",), "new")
    cache.put(("d",), "D")
    assert known(cache, "abcd") == ["a", "c", "d"]
    assert cache.get(("a",)) == "new"


@pytest.mark.parametrize(("max_entries", "kept"), [(0, ""), (1, "e"), (2, "de"), (5, "abcde"), (6, "abcde")])
def test_as_many_entries_are_kept_as_were_asked_for(max_entries, kept):
    cache = filled(max_entries, *"abcde")
    assert known(cache, "abcde") == list(kept)
    assert len(cache) == len(kept)


def test_a_thousand_entries_and_some_are_kept_by_default():
    cache = VerdictCache()
    for number in range(1030):
        cache.put((str(number),), number)
    assert len(cache) == 1024
    assert cache.get(("5",)) is None
    assert cache.get(("6",)) == 6


def test_hits_and_misses_are_counted():
    cache = filled(2, "a")
    assert (cache.hits, cache.misses) == (0, 0)
    known(cache, "aab")
    assert (cache.hits, cache.misses) == (2, 1)
    known(cache, "bba")
    assert (cache.hits, cache.misses) == (3, 3)


def test_a_pickled_cache_comes_back_empty_and_as_large():
    again = pickle.loads(pickle.dumps(filled(2, "a", "b")))
    assert len(again) == 0
    for name in "abc":
        again.put((name,), name)
    assert len(again) == 2
