"""Scores of answers."""

from jaxvlm.data.records import Record, Turn
from jaxvlm.evaluation.scoring import score


def test_exact_match_by_group():
    asked = [
        Record("1", (Turn("user", "?"), Turn("assistant", " red ")), (), "", "color"),
        Record("2", (Turn("user", "?"), Turn("assistant", "blue")), (), "", "color"),
        Record("3", (Turn("user", "?"), Turn("assistant", "no")), (), "", "yes/no"),
        Record("4", (Turn("user", "?"), Turn("assistant", "42")), (), ""),
    ]
    assert score(asked, ["red\n", "green", "No", "42"]) == {
        "exact_match": 0.5,
        "count": 4,
        "by_group": {"color": {"exact_match": 0.5, "count": 2}, "yes/no": {"exact_match": 0.0, "count": 1}},
    }
    assert score([], []) == {"exact_match": 0.0, "count": 0, "by_group": {}}
