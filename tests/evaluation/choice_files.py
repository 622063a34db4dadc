"""What the tests of choice benchmarks share: TSV files, and sets of drawn items."""

import base64
import csv
import dataclasses
import random

import numpy as np

from tests.evaluation.layouts import jpeg


def base64_jpeg(number):
    """An image as a cell of a TSV file."""
    return base64.b64encode(jpeg(number)).decode()


def put_tsv(path, rows):
    """A TSV file with the keys of the first row as header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)


def shuffled(items, values):
    """Items and values in another order."""
    pairs = list(zip(items, values, strict=True))
    random.Random(0).shuffle(pairs)
    return [item for item, _ in pairs], [value for _, value in pairs]


def assert_shuffling_changes_nothing(benchmark, items, values, dialect):
    scores, other = benchmark.score(items, values, dialect), benchmark.score(*shuffled(items, values), dialect)
    np.testing.assert_allclose(list(other.numbers.values()), [other.numbers[key] for key in other.numbers])
    assert other.numbers.keys() == scores.numbers.keys()
    for key, number in scores.numbers.items():
        np.testing.assert_allclose(other.numbers[key], number, err_msg=key)
    assert {axis: set(groups) for axis, groups in other.groups.items()} == {
        axis: set(groups) for axis, groups in scores.groups.items()
    }


def assert_resample_equals_score(benchmark, items, values, dialect, draws=20):
    """Each draw of clusters has the main number that `score` gives for copies of the drawn items."""
    clusters = list(dict.fromkeys(item.cluster or item.id for item in items))
    draws_RC = np.random.default_rng(0).multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), draws)
    place = {cluster: at for at, cluster in enumerate(clusters)}
    draws_RN = draws_RC[:, [place[item.cluster or item.id] for item in items]].astype(np.int32)
    found_R = benchmark.resample(items, values, dialect, draws_RN)
    expected_R = []
    for draw_N in draws_RN:
        copies = [
            (dataclasses.replace(item, id=f"{item.id}@{copy}", cluster=f"{item.cluster}@{copy}"), value)
            for item, value, count in zip(items, values, draw_N, strict=True)
            for copy in range(count)
        ]
        numbers = benchmark.score([item for item, _ in copies], [value for _, value in copies], dialect).numbers
        expected_R.append(next(iter(numbers.values())))
    np.testing.assert_allclose(found_R, expected_R)
    assert len(set(np.round(expected_R, 6))) > 3  # the draws differ
