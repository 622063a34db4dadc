"""The end of an answer before a text, however the answer is cut into pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvlm.errors import UserError
from jaxvlm.inference.stop_texts import StopTexts


def passed_on(pieces, *stops):
    texts = StopTexts(stops)
    shown = [texts.push(piece) for piece in pieces]
    return [*shown, texts.rest()]


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["Paris.", " Us", "eful.", " Use", "r: and"], ["User:"], ["Paris.", "", " Useful.", "", "", ""]),
        (["Paris.\nUser: x"], ["User:"], ["Paris.", ""]),
        (["a", "b", "a", "b", "c", "d"], ["abc"], ["", "", "ab", "", "", "", ""]),
        (["a", "a", "a", "b"], ["aab"], ["", "", "a", "", ""]),
        (["it ends", " in Us"], ["User:"], ["it ends", " in", " Us"]),
        (["U", "ser", ":"], ["User:"], ["", "", "", ""]),
        (["a", "b", "c"], ["abc", "b"], ["", "a", "", ""]),  # the one that is complete first
        (["abc"], ["abc", "b"], ["a", ""]),
        (["a", "b"], ["ab", "b"], ["", "", ""]),
        (["a ", " b"], [], ["a ", " b", ""]),
        (["a ", "\n", "b"], ["x"], ["a", "", " \nb", ""]),
    ],
)
def test_pieces(pieces, stops, shown):
    assert passed_on(pieces, *stops) == shown


@given(st.text("ab c", max_size=12), st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3), st.data())
def test_the_answer_does_not_depend_on_the_pieces(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    shown = "".join(passed_on(pieces, *stops))
    assert shown == "".join(passed_on([text], *stops))
    assert text.startswith(shown) and not any(stop in shown for stop in stops)
    if not any(stop in text for stop in stops):
        assert shown == text


def test_an_empty_text_is_refused():
    with pytest.raises(UserError, match="a stop text is empty"):
        StopTexts(["a", ""])
