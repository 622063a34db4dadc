"""What requests leave for later ones, and what is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvlm.serving.caches import ByteLru, PrefixCache, PromptKey
from jaxvlm.serving.statistics import Histogram


def key(tokens, images=(), hashes=()):
    """A prompt; at the tokens of the k-th of `images`, (begin, end), are features of image k."""
    owner = np.full(len(tokens), -1, np.int32)
    for number, (begin, end) in enumerate(images):
        owner[begin:end] = number
    return PromptKey(np.array(tokens, np.int32), owner, hashes)


def beginning(bytes_each):
    return np.zeros(bytes_each, np.uint8), np.zeros(bytes_each, np.uint8)


def test_what_was_used_least_recently_is_forgotten():
    cache = ByteLru(10)
    for name in "abc":
        cache.put(name, name.upper(), 4)
    assert [name for name, _ in cache.items()] == ["b", "c"] and cache.used == 8
    assert cache.get("b") == "B" and cache.get("a") is None
    cache.put("d", "D", 3)
    assert [name for name, _ in cache.items()] == ["b", "d"] and cache.used == 7
    cache.put("b", "new", 11)  # larger than the whole cache
    assert cache.get("b") is None and cache.used == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=30))
def test_it_is_never_larger_than_its_limit(puts):
    cache = ByteLru(20)
    for name, size in puts:
        cache.put(name, size, size)
        assert cache.used == sum(size for _, size in cache.items()) <= 20


def test_the_common_beginning_of_prompts():
    one = key([1, 2, 9, 9, 3, 4], [(2, 4)], (b"a",))
    assert one.common(key([1, 2, 9, 9, 3, 5], [(2, 4)], (b"a",))) == 5
    assert one.common(key([1, 2, 9, 9, 3, 4, 7], [(2, 4)], (b"a",))) == 6
    assert one.common(key([1, 2, 9, 9, 3, 4], [(2, 4)], (b"b",))) == 2  # another image
    assert one.common(key([1, 2, 9, 9, 3, 4])) == 2  # text that is spelled like a placeholder
    assert one.common(key([5])) == 0
    two = key([1, 9, 9, 9, 9, 6], [(1, 3), (3, 5)], (b"a", b"b"))
    assert two.common(key([1, 9, 9, 9, 9, 6], [(1, 3), (3, 5)], (b"a", b"c"))) == 3
    assert two.common(key([1, 9, 9, 6], [(1, 3)], (b"a",))) == 3
    assert one.common(key([7, 2], (), ())) == 0


def test_prompts_are_found_by_their_beginning():
    cache = PrefixCache(100)
    first, second = key(range(1, 9)), key([1, 2, 3, 50, 51, 52, 53, 54])
    for stored in (first, second):
        assert cache.wants(stored)
        cache.put(stored, beginning(20))
    found, length = cache.find(key([1, 2, 3, 50, 51, 60]))
    assert length == 5 and found[0].nbytes == 20
    assert cache.find(first)[1] == 7  # the last token is read again: its logits are wanted
    assert cache.find(key([4, 1, 2])) == (None, 0)
    assert not cache.wants(key([1, 2, 3, 4, 5, 6, 70, 71]))  # three quarters are there
    assert cache.wants(key([1, 2, 3, 4, 5, 70, 71, 72]))
    cache.put(key(range(1, 20)), beginning(20))  # in place of its own beginning
    assert cache.used == 80 and cache.find(first)[1] == 7
    cache.find(second)
    cache.put(key([7, 7]), beginning(30))  # the one that was used least recently leaves
    assert cache.used == 100 and cache.find(second)[1] == 7 and cache.find(first)[1] == 3


def test_a_cache_of_no_bytes_stores_nothing():
    cache = PrefixCache(0)
    cache.put(key([1, 2]), beginning(1))
    assert cache.find(key([1, 2, 3])) == (None, 0)


def test_a_histogram():
    histogram = Histogram(bounds=(1.0, 2.0), counts=[0, 0, 0])
    for seconds, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 1)):
        histogram.add(seconds, times)
    assert histogram.counts == [3, 1, 1] and histogram.total == pytest.approx(13.0)
