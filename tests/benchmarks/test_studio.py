"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import math

import pytest

from tests.benchmarks.studio import main


def test_prints_finite_numbers(capsys):
    results = main(["--runs", "2", "--lines", "200", "--watch", "0", "--json"])
    assert results["table of runs"].keys() == {"first", "first_cpu", "then", "then_cpu", "kilobytes"}
    numbers = [number for row in results.values() if isinstance(row, dict) for number in row.values()]
    assert len(numbers) == 37 and all(map(math.isfinite, numbers)) and results["megabytes"] > 1
    assert "curves after a line" in capsys.readouterr().out


@pytest.mark.browser
@pytest.mark.nightly
def test_pages_in_a_browser():
    results = main(["--runs", "2", "--lines", "200", "--watch", "0", "--browser"])
    pages = [row for name, row in results.items() if name.endswith("in a browser")]
    assert len(pages) == 4 and all(0 < number < math.inf for page in pages for number in page.values())
